"""SQL of the catalog: models (their prices are in `price_book`). Every function works in the caller's transaction."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, insert, select, update

from catalog.model import CatalogModel, ModelSpec, Origin, Outcome, Prices, PutResult
from catalog.price_book import put_list_prices
from catalog.tables import builtin_files, models
from core.changes import record_change
from core.errors import NotFound
from wire.suggestions import suggest


def put_model(connection: Connection, spec: ModelSpec, now_ms: int, origin: Origin = "operator") -> PutResult:
    """Add the model, or change it; another price makes a new version from the next full minute (UTC) on.

    The first version starts at 0, so that every call ever made has a price. Old versions are never touched.
    """
    row = connection.execute(select(models).where(models.c.id == spec.id).with_for_update()).first()
    text = _encode(spec)
    outcome: Outcome
    if row is None:
        outcome = "added"
        values = {"created_ms": now_ms, "updated_ms": now_ms, "removed_ms": 0}
        connection.execute(
            insert(models).values(id=spec.id, task=spec.task, origin=origin, spec=text, **values)
        )
    elif row.spec == text and row.origin == origin and not row.removed_ms:
        outcome = "unchanged"
    else:
        outcome = "added" if row.removed_ms else "changed"
        values = {"updated_ms": now_ms, "removed_ms": 0}
        connection.execute(
            update(models)
            .where(models.c.id == spec.id)
            .values(task=spec.task, origin=origin, spec=text, **values)
        )
    new_price = put_list_prices(connection, spec.id, spec.prices.by_sku(), now_ms)
    if outcome != "unchanged" or new_price:
        record_change(connection, "model", spec.id, now_ms)
    model = get_model(connection, spec.id)
    assert model is not None, "it was just written"
    return PutResult(model, outcome, new_price)


def find_model(
    connection: Connection, model_id: str, *, include_removed: bool = False
) -> CatalogModel | None:
    """The model with that id, None when the catalog has none (or it was removed)."""
    query = select(models).where(models.c.id == model_id)
    if not include_removed:
        query = query.where(models.c.removed_ms == 0)
    row = connection.execute(query).first()
    return None if row is None else _model(row)


def get_model(connection: Connection, model_id: str, param: str = "model") -> CatalogModel:
    """The model with that id; NotFound names `param` and suggests a close id."""
    model = find_model(connection, model_id)
    if model is None:
        known = (
            connection.execute(select(models.c.id).where(models.c.removed_ms == 0).limit(2000))
            .scalars()
            .all()
        )
        # A slip is often in the case or in the publisher's part alone.
        by_lower = {k.lower(): k for k in known} | {k.rpartition("/")[2].lower(): k for k in known}
        close = by_lower.get(suggest(model_id, by_lower), "")
        hint = f"did you mean {close!r}?" if close else "see `farebox model list`"
        raise NotFound(
            f"{param}: there is no model {model_id!r}; {hint}", code="model_not_found", param=param
        )
    return model


def list_models(
    connection: Connection, *, task: str | None = None, limit: int | None = None, after: str = ""
) -> list[CatalogModel]:
    """The catalog in order of id, one task's or all; those with an id greater than `after`."""
    query = select(models).where(models.c.removed_ms == 0, models.c.id > after).order_by(models.c.id)
    if task is not None:
        query = query.where(models.c.task == task)
    return [_model(row) for row in connection.execute(query if limit is None else query.limit(limit))]


def model_tasks(connection: Connection) -> dict[str, str]:
    """The task of every model that there is or was."""
    return {row.id: row.task for row in connection.execute(select(models.c.id, models.c.task))}


def remove_model(connection: Connection, model_id: str, now_ms: int) -> None:
    """Take the model out of the catalog. Its prices stay: past calls must stay provable."""
    get_model(connection, model_id)
    connection.execute(
        update(models).where(models.c.id == model_id).values(removed_ms=now_ms, updated_ms=now_ms)
    )
    record_change(connection, "model", model_id, now_ms)


def set_prices(connection: Connection, model_id: str, unit_prices: Mapping[str, int], now_ms: int) -> None:
    """The catalog entry names these prices from now on; the price book's versions decide what is paid."""
    spec = replace(get_model(connection, model_id).spec, prices=Prices(**unit_prices))
    connection.execute(
        update(models)
        .where(models.c.id == model_id)
        .values(spec=_encode(spec), origin="operator", updated_ms=now_ms)
    )


# --- the files that come with Farebox -------------------------------------------------------------


def builtin_digests(connection: Connection) -> dict[str, str]:
    """The digest of each builtin file as it was last read, by file name."""
    return {row.name: row.digest for row in connection.execute(select(builtin_files))}


def put_builtin_digest(connection: Connection, name: str, digest: str) -> None:
    """Remember that the file was read."""
    connection.execute(delete(builtin_files).where(builtin_files.c.name == name))
    connection.execute(insert(builtin_files).values(name=name, digest=digest))


def builtin_may_write(connection: Connection, model_id: str) -> bool:
    """False when an operator changed or removed the model: a builtin file does not undo that."""
    row = connection.execute(
        select(models.c.origin, models.c.removed_ms).where(models.c.id == model_id)
    ).first()
    return row is None or (row.origin == "builtin" and not row.removed_ms)


# --- rows to values -------------------------------------------------------------------------------


def _encode(spec: ModelSpec) -> str:
    return msgspec.json.encode(spec).decode()


def _model(row: Row[Any]) -> CatalogModel:
    spec = msgspec.json.decode(row.spec, type=ModelSpec)
    return CatalogModel(spec, row.origin, row.created_ms, row.updated_ms)
