"""The catalog: models and their price versions."""

import json
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Query, Request, Response, status
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from catalog import price_book, store
from catalog.load import model_document, parse_model, parse_model_yaml, prices_document
from catalog.model import TASKS, CatalogModel, ModelSpec, Prices, PriceVersion, Task
from catalog.price_document import terms_out
from catalog.proposals import Wanted, propose
from core.clock import iso
from core.errors import BadRequest, Conflict
from functions.console.dependencies import Caller, Deps
from functions.console.routing import console_router
from functions.console.shapes import After, Limit, Page, RawBody, iso_or_none, page
from serving.fine_tunes import check_fine_tune, check_no_fine_tunes
from serving.store import model_in_use

router = console_router("models")

_EXAMPLE = """\
id: acme/mock-chat
task: chat
context_length: 8192
engine: {kind: external, url: "http://127.0.0.1:9100"}
prices: {input: "0.15", cached_input: "0.075", output: "0.60", endpoint_minute: "0.0005"}
"""
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/yaml": {"schema": {"type": "string"}, "example": _EXAMPLE},
            "application/json": {"schema": {"type": "object"}},
        },
    }
}


class ModelOut(BaseModel):
    """A catalog entry: the fields of its file, and where it came from. What is not stated is left out."""

    id: str = Field(examples=["acme/mock-chat"])
    task: Task
    prices: dict[str, str] = Field(
        description="US dollars per million tokens, or per second or minute.",
        examples=[{"input": "0.15", "cached_input": "0.075", "output": "0.6", "endpoint_minute": "0.0005"}],
    )
    name: str | None = None
    publisher: str | None = None
    description: str | None = None
    source: dict[str, Any] | None = None
    adapter: dict[str, Any] | None = None
    license: dict[str, Any] | None = None
    marketplace: dict[str, Any] | None = None
    context_length: int | None = Field(default=None, examples=[8192])
    parameters: int | None = None
    active_parameters: int | None = None
    precision: str | None = None
    requirements: dict[str, Any] | None = None
    engine: dict[str, Any] | None = None
    capabilities: dict[str, bool] | None = None
    references: list[str] | None = None
    tags: list[str] | None = None
    sample: bool | None = None
    origin: str = Field(
        examples=["operator"], description="builtin, or operator for one that was added or changed."
    )
    created_at: str
    updated_at: str


class PriceVersionOut(BaseModel):
    """Prices from `starts_at` on, until the next version starts; null: since ever."""

    id: str = Field(examples=["price_01kafn3m8hzq4v6p9x2c7d5b1w"])
    model: str
    starts_at: str | None
    prices: dict[str, str]
    terms: dict[str, dict[str, object]] = Field(
        default={}, description="By SKU: tiers, packages, included amounts."
    )
    created_at: str


class PutModelOut(BaseModel):
    """What became of the model that was sent."""

    id: str = Field(examples=["acme/mock-chat"])
    outcome: str = Field(examples=["added"], description="added, changed or unchanged.")
    message: str = Field(examples=["acme/mock-chat was added"])
    price_version: PriceVersionOut | None = Field(
        description="The version that was made, when prices changed."
    )
    price_proposal: str | None = Field(
        default=None, description="Where two people decide on prices: what a second one has to approve."
    )
    model: ModelOut


@router.post(
    "/models",
    summary="Add or change a model",
    openapi_extra=_BODY,
    response_model_exclude_none=True,
    responses={201: {"model": PutModelOut, "description": "The model is new."}},
)
def put_model(
    request: Request,
    response: Response,
    body: RawBody,
    caller: Caller,
    deps: Deps,
) -> PutModelOut:
    """The body is a model's YAML file, or the same fields as JSON.

    Other prices make a new, immutable version from the next full minute (UTC) on.
    """
    spec = _parse(request.headers.get("content-type", ""), body)
    now_ms, proposal = deps.clock.now_ms(), None
    with deps.db.begin() as connection:
        if deps.settings.two_person_prices:
            spec, wanted = _keep_prices(connection, spec)
            if wanted is not None:
                proposal = propose(connection, wanted, caller.key_id, now_ms)
        check_fine_tune(connection, spec)
        result = store.put_model(connection, spec, now_ms)
    message = (
        f"{spec.id} was {result.outcome}" if result.outcome != "unchanged" else f"{spec.id} is unchanged"
    )
    if result.new_price is not None and result.new_price.starts_ms:
        message += f"; its new prices hold from {iso(result.new_price.starts_ms)} on"
    if proposal is not None:
        message += f"; its new prices wait for another admin key: farebox price approve {proposal.id}"
    if result.outcome == "added":
        response.status_code = status.HTTP_201_CREATED
    return PutModelOut(
        id=spec.id,
        outcome=result.outcome,
        message=message,
        price_version=None if result.new_price is None else _price(result.new_price),
        price_proposal=None if proposal is None else proposal.id,
        model=_model(result.model),
    )


@router.get("/models", summary="List models", response_model_exclude_none=True)
def list_models(
    deps: Deps,
    task: Annotated[Task | None, Query(description=f"One of {', '.join(TASKS)}.")] = None,
    limit: Limit = 200,
    after: After = "",
) -> Page[ModelOut]:
    """In order of id."""
    with deps.db.read() as connection:
        found = store.list_models(connection, task=task, limit=limit + 1, after=after)
    return page(found, limit, _model, lambda entry: entry.spec.id)


@router.get("/models/{model_id:path}", summary="Show a model", response_model_exclude_none=True)
def get_model(model_id: str, deps: Deps) -> ModelOut:
    """404 suggests the closest id."""
    with deps.db.read() as connection:
        return _model(store.get_model(connection, model_id))


@router.delete("/models/{model_id:path}", summary="Remove a model", response_model_exclude_none=True)
def remove_model(model_id: str, deps: Deps) -> ModelOut:
    """409 while an endpoint uses it. Its prices are kept, so that past calls stay provable."""
    with deps.db.begin() as connection:
        model = store.get_model(connection, model_id)
        users = model_in_use(connection, model_id)
        if users:
            more = f" and {len(users) - 5} more" if len(users) > 5 else ""
            raise Conflict(
                f"model {model_id} is used by endpoint {', '.join(users[:5])}{more}; delete that first",
                code="model_in_use",
                param="model",
            )
        check_no_fine_tunes(connection, model_id)
        store.remove_model(connection, model_id, deps.clock.now_ms())
    return _model(model)


@router.get("/model-prices/{model_id:path}", summary="List the price versions of a model")
def list_prices(model_id: str, deps: Deps) -> Page[PriceVersionOut]:
    """Oldest first, also of a model that was removed, and also a version that has not begun."""
    with deps.db.read() as connection:
        versions = price_book.price_versions(connection, model_id)
        if not versions:
            store.get_model(connection, model_id)
    return Page(data=[_price(version) for version in versions])


def _keep_prices(connection: Connection, spec: ModelSpec) -> tuple[ModelSpec, Wanted | None]:
    """The entry with the prices that hold already, and the change that somebody else has to approve."""
    versions = price_book.price_versions(connection, spec.id)
    wanted = spec.prices.by_sku()
    if not versions or versions[-1].unit_prices == wanted:
        return spec, None
    kept = replace(spec, prices=Prices(**versions[-1].unit_prices))
    return kept, Wanted(spec.id, price_book.LIST, 0, wanted, versions[-1].terms, note="from a model's file")


def _parse(content_type: str, body: bytes) -> ModelSpec:
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json":
        return parse_model_yaml(body)  # whatever else it is called: the reader says what is wrong with it
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON: {str(error)[:200]}") from error
    return parse_model(value)


def _model(model: CatalogModel) -> ModelOut:
    return ModelOut(
        **model_document(model.spec),
        origin=model.origin,
        created_at=iso(model.created_ms),
        updated_at=iso(model.updated_ms),
    )


def _price(version: PriceVersion) -> PriceVersionOut:
    return PriceVersionOut(
        id=version.id,
        model=version.model_id,
        starts_at=iso_or_none(version.starts_ms),
        prices=prices_document(version.unit_prices),
        terms=terms_out(version.terms),
        created_at=iso(version.created_ms),
    )
