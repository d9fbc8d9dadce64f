"""Create, find, list and delete serverless endpoints: a stable URL before a catalog model's shared pool."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from catalog.store import get_model
from core.errors import Conflict, Invalid, NotFound
from core.ids import new_id
from serving import store
from serving.fine_tunes import pool_model
from serving.model import Endpoint, EndpointKind, EndpointState
from webhooks.model import ENDPOINT_STATE
from webhooks.outbox import enqueue_event
from wire.suggestions import suggest

MIN_NAME, MAX_NAME = 3, 32
MAX_TAGS, MAX_TAG_NAME, MAX_TAG_VALUE = 50, 512, 256

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*")


def check_name(name: object, param: str = "name") -> str:
    """`name` when it may name an endpoint, else Invalid saying which part of the rule it breaks."""
    fault = _fault(name)
    if fault:
        raise Invalid(
            f"{param}: {fault}; a name has {MIN_NAME} to {MAX_NAME} characters, starts with a letter, and "
            'goes on with letters, digits and single dashes, e.g. "my-chat"',
            param=param,
        )
    assert isinstance(name, str)
    return name


def _fault(name: object) -> str:
    if not isinstance(name, str):
        return f"expected a text, got {type(name).__name__}"
    shown = name if len(name) <= 60 else name[:59] + "…"
    if not MIN_NAME <= len(name) <= MAX_NAME:
        return f"{shown!r} has {len(name)} characters"
    if not re.match(r"[A-Za-z]", name):
        return f"{shown!r} does not start with a letter"
    strange = re.search(r"[^A-Za-z0-9-]", name)
    if strange:
        return f"{shown!r} has the character {strange.group()!r}"
    if "--" in name:
        return f"{shown!r} has two dashes in a row"
    return "" if _NAME.fullmatch(name) else f"{shown!r} ends with a dash"


def check_tags(tags: object, param: str = "tags") -> dict[str, str]:
    """`tags` when they are a bounded object of texts, else Invalid naming the tag."""
    if tags is None:
        return {}
    if not isinstance(tags, Mapping):
        raise Invalid(f"{param}: expected an object of texts, got {type(tags).__name__}", param=param)
    if len(tags) > MAX_TAGS:
        raise Invalid(f"{param}: at most {MAX_TAGS} tags, got {len(tags)}", param=param)
    for name, value in tags.items():
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_TAG_NAME:
            raise Invalid(f"{param}: a tag's name is a text of 1 to {MAX_TAG_NAME} characters", param=param)
        if not isinstance(value, str) or len(value) > MAX_TAG_VALUE:
            raise Invalid(
                f"{param}.{name[:60]}: expected a text of at most {MAX_TAG_VALUE} characters",
                param=f"{param}.{name[:60]}",
            )
    return dict(tags)


def create_serverless(
    connection: Connection,
    *,
    name: str,
    model_id: str,
    org_id: str,
    project_id: str,
    now_ms: int,
    tags: Mapping[str, str] | None = None,
    content_safety: bool = True,
) -> Endpoint:
    """A new endpoint, Online at once: its model server starts on the first call.

    Invalid for a name or tag that breaks the rules, NotFound (param `model`, with the closest id) for a model
    that the catalog lacks, Conflict for a name that a living endpoint has, in whatever case.
    """
    check_name(name)
    checked_tags = check_tags(tags)
    model = get_model(connection, model_id).spec
    refuse_name_in_use(connection, name, org_id)
    pool = store.pool_for(connection, pool_model(connection, model).id, now_ms)
    endpoint = Endpoint(
        id=new_id("ep", now_ms),
        kind="serverless",
        name=name,
        org_id=org_id,
        project_id=project_id,
        model_id=model.id,
        deployment_id=pool.id,
        state="Online",
        tags=checked_tags,
        created_ms=now_ms,
        content_safety=content_safety,
    )
    try:
        with connection.begin_nested():
            store.insert_endpoint(connection, endpoint)
    except IntegrityError:  # another transaction was faster (PostgreSQL; SQLite has one writer)
        raise name_in_use(name) from None
    announce_state(connection, endpoint, None, now_ms)
    return endpoint


def announce_state(
    connection: Connection, endpoint: Endpoint, previous: str | None, now_ms: int, state: str = ""
) -> None:
    """Tell the organization's webhooks that the endpoint is in another state than before; None: there was none.

    `state`: as it is shown, where that is not the one that is kept.
    """
    data = {
        "endpoint_id": endpoint.id,
        "name": endpoint.name,
        "kind": endpoint.kind,
        "project_id": endpoint.project_id,
        "model": endpoint.model_id,
        "state": state or endpoint.state,
        "previous_state": previous,
    }
    enqueue_event(connection, endpoint.org_id, ENDPOINT_STATE, endpoint.id, data, now_ms)


def refuse_name_in_use(connection: Connection, name: str, org_id: str) -> None:
    """Conflict when a living endpoint of any kind has the name, in whatever case."""
    other = store.find_endpoint(connection, name=name, any_case=True)
    if other is None:
        return
    # Who else has the name is nobody's business, but one's own endpoint may be shown as it is written.
    raise name_in_use(other.name if other.org_id == org_id else name)


def name_in_use(name: str) -> Conflict:
    """The refusal of a name that is taken."""
    return Conflict(
        f"name: an endpoint named {name!r} exists; choose another name or delete that endpoint first",
        code="name_in_use",
        param="name",
    )


def get_endpoint(
    connection: Connection,
    name: str,
    *,
    project_id: str | None = None,
    org_id: str | None = None,
    kind: EndpointKind = "serverless",
) -> Endpoint:
    """The living endpoint `name` of that kind within the project or organization given.

    NotFound says when one of another kind has the name, else suggests a close name.
    """
    endpoint = store.find_endpoint(connection, name=name, project_id=project_id, org_id=org_id)
    if endpoint is not None and endpoint.kind == kind:
        return endpoint
    hint = f"; {name!r} is of kind {endpoint.kind}" if endpoint else ""
    if endpoint is None:
        near = store.list_endpoints(connection, project_id=project_id, org_id=org_id, kind=kind, limit=2000)
        by_lower = {e.name.lower(): e.name for e in near}
        close = by_lower.get(suggest(name, by_lower), "")
        hint = f"; did you mean {close!r}?" if close else ""
    shown = name if len(name) <= 60 else name[:59] + "…"
    of_kind = "" if kind == "serverless" and endpoint is None else f"{kind} "
    raise NotFound(f"there is no {of_kind}endpoint {shown!r}{hint}", code="endpoint_not_found", param="name")


def delete_endpoint(connection: Connection, endpoint: Endpoint, now_ms: int) -> None:
    """End the endpoint's life: no call reaches it from now on, the minute under way is its last one billed.

    The caller revokes its keys in the same transaction. The pool stays; without endpoints its servers stop.
    """
    store.mark_endpoint_deleted(connection, endpoint, max(now_ms, endpoint.created_ms))
    announce_state(connection, replace(endpoint, state="Deleted"), endpoint.state, now_ms)


def update_serverless(
    connection: Connection,
    endpoint: Endpoint,
    now_ms: int,
    *,
    tags: Mapping[str, str] | None = None,
    content_safety: bool | None = None,
) -> Endpoint:
    """Change what is given. Invalid for a tag that breaks the rules."""
    given: dict[str, Any] = {} if tags is None else {"tags": check_tags(tags)}
    if content_safety is not None:
        given["content_safety"] = content_safety
    if given:
        store.set_endpoint_options(connection, endpoint.id, given, now_ms)
    return replace(endpoint, **given)


def suspend_endpoint(connection: Connection, endpoint: Endpoint, now_ms: int) -> Endpoint:
    """Have calls refused until it is reinstated; calls under way go on. Its minutes are billed: URL and keys stay.

    A second time changes nothing.
    """
    return _become(connection, endpoint, "Suspended", now_ms)


def reinstate_endpoint(connection: Connection, endpoint: Endpoint, now_ms: int) -> Endpoint:
    """Let it be called again."""
    return _become(connection, endpoint, "Online", now_ms)


def _become(connection: Connection, endpoint: Endpoint, state: EndpointState, now_ms: int) -> Endpoint:
    if endpoint.state not in ("Online", "Suspended"):
        raise Conflict(f"the endpoint {endpoint.name!r} is {endpoint.state}", code="wrong_state")
    if endpoint.state == state:
        return endpoint
    store.set_endpoint_state(connection, endpoint, state, now_ms)
    changed = replace(endpoint, state=state)
    announce_state(connection, changed, endpoint.state, now_ms)
    return changed
