"""OpenAI's usage and costs API over our usage and ledger, in its own shapes, under /v1/organization."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Header, Path, Query, Response
from pydantic import BaseModel
from sqlalchemy import Connection

from billing.costs import DayCost, daily_costs
from catalog.store import model_tasks
from core.errors import BadRequest
from core.money import format_pico
from functions.console.buckets import COST_WIDTH, MAX_SECONDS, USAGE_WIDTHS, Pages, page_of_buckets
from functions.console.dependencies import Caller, Deps
from functions.console.routing import openai_router
from functions.console.scope import Scope, read_scope
from metering.summary import UsageQuery, usage_totals
from metering.tables import ROLLUP_COUNTS
from serving.online.routes import SCRIPT_MODEL

router = openai_router("usage and costs in OpenAI's shapes")

Kind = Literal[
    "completions", "embeddings", "audio_transcriptions",
    # What theirs counts and we do not have: always empty buckets.
    "audio_speeches", "code_interpreter_sessions", "decisions", "file_search_calls", "images", "moderations",
    "vector_stores", "web_search_calls",
]  # fmt: skip
Group = Literal[
    "project_id", "user_id", "api_key_id", "model", "batch", "service_tier", "api_source",
    "size", "source", "vector_store_id", "context_level",
]  # fmt: skip
CostGroup = Literal["project_id", "user_id", "line_item", "api_key_id", "api_source"]
_GROUPS = ("project_id", "user_id", "api_key_id", "model")
_GROUPS_OF = {
    "completions": (*_GROUPS, "batch", "service_tier", "api_source"),
    "embeddings": _GROUPS,
    "audio_transcriptions": _GROUPS,
}
_COLUMNS = {"project_id": "project_id", "api_key_id": "key_id", "model": "model_id"}
_TASKS = {"embedding": "embeddings", "transcription": "audio_transcriptions"}  # all others are completions
# Groups that are the same for every call of ours, and by what theirs names that.
_SAME: Mapping[str, Any] = {
    "user_id": None,
    "service_tier": "default",
    "api_source": "unlabeled",
}
_UNITS = {
    "input": "tokens",
    "cached_input": "tokens",
    "output": "tokens",
    "batch_input": "tokens",
    "batch_cached_input": "tokens",
    "batch_output": "tokens",
    "audio_second": "duration_seconds",
    "endpoint_minute": "duration_minutes",
}
_MAX_VALUES = 100
_NONE: list[str] = []

_Start = Annotated[int, Query(ge=0, le=MAX_SECONDS, description="Unix seconds, inclusive.")]
_End = Annotated[
    int | None, Query(ge=0, le=MAX_SECONDS, description="Unix seconds, exclusive; default: now.")
]
_Texts = Annotated[list[str], Query(max_length=_MAX_VALUES, description="Repeat it for several values.")]
_Limit = Annotated[int | None, Query(description="How many buckets.")]
_Page = Annotated[str | None, Query(max_length=100, description="`next_page` of the answer before.")]
_Organization = Annotated[str | None, Query(max_length=200, description="Its id or name.")]
_OrganizationHeader = Annotated[str | None, Header(alias="openai-organization", max_length=200)]
_ProjectHeader = Annotated[str | None, Header(alias="openai-project", max_length=200)]


class Bucket(BaseModel):
    """[start_time, end_time), Unix seconds; the members of results are those of OpenAI's reference."""

    object: Literal["bucket"]
    start_time: int
    end_time: int
    results: list[dict[str, Any]]


class BucketPage(BaseModel):
    """OpenAI's `page` of buckets."""

    object: Literal["page"]
    data: list[Bucket]
    has_more: bool
    next_page: str | None


@dataclass(frozen=True, slots=True)
class _Filter:
    """Whose rows count. `nothing`: a filter that no call of ours passes."""

    project_ids: Sequence[str]
    key_ids: Sequence[str]
    models: Sequence[str] = ()
    nothing: bool = False

    def projects(self, scope: Scope) -> list[str] | None:
        """The projects that count; None: all of the organization's."""
        if scope.project_id is None:
            return list(self.project_ids) or None
        return [each for each in self.project_ids or [scope.project_id] if each == scope.project_id]


@router.get("/usage/{kind}", summary="Usage by time bucket", response_model=BucketPage)
def get_organization_usage(
    kind: Annotated[Kind, Path()],
    caller: Caller,
    deps: Deps,
    start_time: _Start,
    end_time: _End = None,
    bucket_width: Annotated[Literal["1m", "1h", "1d"], Query(description="Width of a bucket.")] = "1d",
    project_ids: _Texts = _NONE,
    user_ids: _Texts = _NONE,
    api_key_ids: _Texts = _NONE,
    models: _Texts = _NONE,
    batch: Annotated[bool | None, Query(description="Batch jobs only, or all others only.")] = None,
    group_by: Annotated[list[Group], Query(max_length=_MAX_VALUES)] = [],  # noqa: B006  FastAPI copies it
    limit: _Limit = None,
    page: _Page = None,
    organization: _Organization = None,
    openai_organization: _OrganizationHeader = None,
    openai_project: _ProjectHeader = None,
) -> Response:
    """As OpenAI's `organization.usage.completions.result` and so on. A project's key sees its own project."""
    allowed = _GROUPS_OF.get(kind)
    for name in group_by:
        if allowed is not None and name not in allowed:
            raise BadRequest(f"group_by: {kind} has {', '.join(allowed)}, not {name}", param="group_by")
    if batch is not None and kind != "completions":
        raise BadRequest(f"batch: {kind} are not told apart by it", param="batch")
    width = USAGE_WIDTHS[bucket_width]
    pages = page_of_buckets(width, start_time, end_time, limit, page, deps.clock.now_ms())
    # Keys belong to projects, not to users.
    wanted = _Filter(project_ids, api_key_ids, models, nothing=bool(user_ids))
    deps.catch_up()
    with deps.db.read() as connection:
        scope = read_scope(connection, caller, organization or openai_organization, openai_project)
        if allowed is None or wanted.nothing:
            return _answer(pages, {})
        columns = [_COLUMNS[name] for name in group_by if name in _COLUMNS and name != "model"]
        totals = _usage(connection, scope, wanted, pages, width.ms, columns, kind)
    results: dict[int, list[dict[str, Any]]] = {}
    groups = [name for name in ("project_id", "api_key_id", "model") if name in group_by]
    for (bucket_ms, *names), counts in sorted(_regrouped(totals, columns, groups).items()):
        fixed = {name: _SAME[name] if name in group_by else None for name in allowed if name in _SAME}
        named = dict.fromkeys(_COLUMNS) | dict(zip(groups, names, strict=True))
        for tier, part in _tiers(counts, batch, apart="batch" in group_by):
            told = {"batch": tier} if "batch" in allowed else {}
            results.setdefault(bucket_ms, []).append(_RESULTS[kind](part) | named | told | fixed)
    return _answer(pages, results)


def _usage(
    connection: Connection,
    scope: Scope,
    wanted: _Filter,
    pages: Pages,
    width_ms: int,
    columns: Sequence[str],
    kind: str,
) -> dict[tuple[Any, ...], list[int]]:
    """By bucket (as in `pages`), the columns, and the model: of this kind's models only."""
    only: dict[str, Sequence[str]] = {"key_id": wanted.key_ids, "model_id": wanted.models}
    only = {name: values for name, values in only.items() if values}
    projects = wanted.projects(scope)
    if projects is not None:
        only["project_id"] = projects
    query = UsageQuery(
        scope.organization.id, pages.start_ms, pages.end_ms, [*columns, "model_id"], width_ms, only
    )
    tasks = model_tasks(connection)
    # The first bucket may begin later than the minute, hour or day that it is part of.
    starts = {start_ms - start_ms % width_ms: start_ms for start_ms, _ in pages.buckets}
    found = {}
    for (bucket_ms, *names), counts in usage_totals(connection, query).items():
        used = any(counts[: len(ROLLUP_COUNTS) - 1])  # all but endpoint minutes, which are no calls
        if names[-1].startswith(SCRIPT_MODEL):
            continue  # calls of scoring scripts are none of OpenAI's
        if used and _TASKS.get(tasks.get(names[-1], ""), "completions") == kind:
            found[(starts[bucket_ms], *names)] = counts
    return found


def _regrouped(
    totals: Mapping[tuple[Any, ...], list[int]], columns: Sequence[str], groups: Sequence[str]
) -> dict[tuple[Any, ...], dict[str, int]]:
    """Added up by the bucket and `groups`, in their order."""
    places = [1 + [*columns, "model_id"].index(_COLUMNS[name]) for name in groups]
    found: dict[tuple[Any, ...], dict[str, int]] = {}
    for key, counts in totals.items():
        group = found.setdefault((key[0], *(key[place] for place in places)), dict.fromkeys(ROLLUP_COUNTS, 0))
        for name, count in zip(ROLLUP_COUNTS, counts, strict=True):
            group[name] += count
    return found


def _tiers(
    counts: Mapping[str, int], only: bool | None, *, apart: bool
) -> Iterator[tuple[bool | None, Mapping[str, int]]]:
    """Calls of batch jobs and all others: together, apart, or one of the two."""
    names = ("input", "cached_input", "output")
    batch = {name: counts[f"batch_{name}"] for name in names} | {"requests": counts["batch_requests"]}
    others = {name: counts[name] for name in (*names, "audio_second", "requests")}
    others["requests"] -= batch["requests"]
    if only is None and not apart:
        yield None, {name: count + batch.get(name, 0) for name, count in others.items()}
        return
    for tier, part in ((False, others), (True, {"audio_second": 0} | batch)):
        if only in (None, tier) and any(part.values()):
            yield tier if apart else None, part


def _completions(counts: Mapping[str, int]) -> dict[str, Any]:
    uncached, cached, output = counts["input"], counts["cached_input"], counts["output"]
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": uncached + cached,
        "output_tokens": output,
        "input_cached_tokens": cached,
        "input_uncached_tokens": uncached,
        "input_text_tokens": uncached,
        "output_text_tokens": output,
        "input_cached_text_tokens": cached,
        # Engines do not tell tokens of pictures and sound apart.
        "input_audio_tokens": 0,
        "output_audio_tokens": 0,
        "input_cached_audio_tokens": 0,
        "input_image_tokens": 0,
        "output_image_tokens": 0,
        "input_cached_image_tokens": 0,
        "num_model_requests": counts["requests"],
    }


def _embeddings(counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        "object": "organization.usage.embeddings.result",
        "input_tokens": counts["input"] + counts["cached_input"],
        "num_model_requests": counts["requests"],
    }


def _transcriptions(counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        "object": "organization.usage.audio_transcriptions.result",
        "seconds": counts["audio_second"],
        "num_model_requests": counts["requests"],
    }


_RESULTS = {
    "completions": _completions,
    "embeddings": _embeddings,
    "audio_transcriptions": _transcriptions,
}


@router.get("/costs", summary="Costs by day", response_model=BucketPage)
def get_organization_costs(
    caller: Caller,
    deps: Deps,
    start_time: _Start,
    end_time: _End = None,
    bucket_width: Annotated[Literal["1d"], Query(description="Days only.")] = "1d",
    project_ids: _Texts = _NONE,
    api_key_ids: _Texts = _NONE,
    line_items: _Texts = _NONE,
    group_by: Annotated[list[CostGroup], Query(max_length=_MAX_VALUES)] = [],  # noqa: B006  FastAPI copies it
    limit: _Limit = None,
    page: _Page = None,
    organization: _Organization = None,
    openai_organization: _OrganizationHeader = None,
    openai_project: _ProjectHeader = None,
) -> Response:
    """OpenAI's `organization.costs.result`, from the ledger: charges at list price of whole UTC days."""
    day_s = COST_WIDTH.ms // 1000
    whole_end = None if end_time is None else -(-end_time // day_s) * day_s
    start_s = start_time - start_time % day_s
    pages = page_of_buckets(COST_WIDTH, start_s, whole_end, limit, page, deps.clock.now_ms())
    wanted = _Filter(project_ids, api_key_ids)
    deps.catch_up()
    with deps.db.read() as connection:
        scope = read_scope(connection, caller, organization or openai_organization, openai_project)
        costs = daily_costs(
            connection,
            scope.organization.id,
            pages.start_ms,
            pages.end_ms,
            project_ids=wanted.projects(scope),
            key_ids=api_key_ids or None,
            by_key="api_key_id" in group_by,
        )
    groups = [name for name in ("project_id", "api_key_id", "line_item") if name in group_by]
    totals: dict[tuple[Any, ...], list[DayCost]] = {}
    for cost in costs:
        if not line_items or _line_item(cost) in line_items:
            known = {"project_id": cost.project_id, "api_key_id": cost.key_id, "line_item": _line_item(cost)}
            totals.setdefault((cost.day_ms, *(known[name] for name in groups)), []).append(cost)
    results: dict[int, list[dict[str, Any]]] = {}
    for (day_ms, *names), parts in sorted(totals.items()):
        named = dict(zip(groups, names, strict=True))
        source = _SAME["api_source"] if "api_source" in group_by else None
        results.setdefault(day_ms, []).append(_cost_result(parts, named) | {"api_source": source})
    return _answer(pages, results)


def _line_item(cost: DayCost) -> str:
    """What theirs writes like `gpt-4o, input`."""
    return f"{cost.model_id}, {cost.sku}"


def _cost_result(parts: Sequence[DayCost], named: Mapping[str, str]) -> dict[str, Any]:
    by_item = "line_item" in named
    return {
        "object": "organization.costs.result",
        # A JSON number, as theirs has it, with every digit: written from the exact amount, never a float of ours.
        "amount": {
            "value": msgspec.Raw(format_pico(sum(part.amount_pico for part in parts)).encode()),
            "currency": "usd",
        },
        "line_item": named.get("line_item"),
        "project_id": named.get("project_id"),
        "api_key_id": named.get("api_key_id") or None,  # an endpoint's minutes belong to no key
        "user_id": None,
        "quantity": sum(part.quantity for part in parts) if by_item else None,
        "quantity_unit": _UNITS.get(parts[0].sku) if by_item else None,
    }


def _answer(pages: Pages, results: Mapping[int, Sequence[dict[str, Any]]]) -> Response:
    buckets = [
        {
            "object": "bucket",
            "start_time": start_ms // 1000,
            "end_time": end_ms // 1000,
            "results": results.get(start_ms, ()),
        }
        for start_ms, end_ms in pages.buckets
    ]
    page = {
        "object": "page",
        "data": buckets,
        "has_more": bool(pages.next_page),
        "next_page": pages.next_page or None,
    }
    return Response(msgspec.json.encode(page), media_type="application/json")
