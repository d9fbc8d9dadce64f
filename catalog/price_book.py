"""The price book: immutable price versions of models, for everybody and for single organizations.

A version holds from its start until the next one of the same model and organization. An organization's own version
goes before the list's; one that is `ended` sends the organization back to the list. Every function works in the
caller's transaction. What is asked for by rating is `price_at` and `version` (`billing.model.PriceBook`).
"""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from catalog.model import PriceVersion
from catalog.tables import model_prices
from catalog.terms import Terms, check_terms, read_terms, terms_document
from core.clock import MINUTE_MS, minute_floor
from core.errors import Conflict, NotFound
from core.ids import new_id

LIST = ""  # in place of an organization: the price for everybody


def price_at(connection: Connection, model_id: str, at_ms: int, org_id: str = LIST) -> PriceVersion:
    """The prices that hold for an organization at `at_ms`, also of a model that was removed."""
    if org_id != LIST:
        own = _in_force(connection, model_id, at_ms, org_id)
        if own is not None and not own.ended:
            return own
    found = _in_force(connection, model_id, at_ms, LIST)
    if found is None:
        raise NotFound(f"there is no price for model {model_id!r}", code="model_not_found", param="model")
    return found


def _in_force(connection: Connection, model_id: str, at_ms: int, org_id: str) -> PriceVersion | None:
    table = model_prices
    row = connection.execute(
        select(table)
        .where(table.c.model_id == model_id, table.c.org_id == org_id, table.c.starts_ms <= at_ms)
        .order_by(table.c.starts_ms.desc())
        .limit(1)
    ).first()
    return None if row is None else _price(row)


def version(connection: Connection, version_id: str) -> PriceVersion | None:
    """The version with that id."""
    row = connection.execute(select(model_prices).where(model_prices.c.id == version_id)).first()
    return None if row is None else _price(row)


def price_versions(connection: Connection, model_id: str, org_id: str = LIST) -> list[PriceVersion]:
    """Every version for everybody (or of one organization), oldest first, also one that has not begun."""
    table = model_prices
    rows = connection.execute(
        select(table)
        .where(table.c.model_id == model_id, table.c.org_id == org_id)
        .order_by(table.c.starts_ms)
    )
    return [_price(row) for row in rows]


def own_versions(connection: Connection, org_id: str) -> list[PriceVersion]:
    """All versions that an organization has of its own, by model and start."""
    table = model_prices
    rows = connection.execute(
        select(table).where(table.c.org_id == org_id).order_by(table.c.model_id, table.c.starts_ms)
    )
    return [_price(row) for row in rows]


def newest_with_prefix(connection: Connection, prefix: str, limit: int = 1000) -> list[PriceVersion]:
    """Everybody's newest version of each model whose id begins so, by id."""
    table = model_prices
    rows = connection.execute(
        select(table)
        .where(table.c.org_id == LIST, table.c.model_id.startswith(prefix, autoescape=True))
        .order_by(table.c.model_id, table.c.starts_ms.desc())
    )
    newest: dict[str, PriceVersion] = {}
    for row in rows:
        newest.setdefault(row.model_id, _price(row))
        if len(newest) >= limit:
            break
    return list(newest.values())


def tariffs(connection: Connection, model_id: str, org_id: str, limit: int = 4) -> list[PriceVersion]:
    """What the organization pays, oldest first: the version in force, and those that have not begun.

    An organization's own prices hide the list's; where they end, the list's version of that instant stands.
    """
    own = _newest(connection, model_id, org_id, limit) if org_id != LIST else []
    if not own:
        return _newest(connection, model_id, LIST, limit)
    found: list[PriceVersion] = []
    if own[0].starts_ms > 0:
        found += [
            each for each in _newest(connection, model_id, LIST, limit) if each.starts_ms < own[0].starts_ms
        ]
    for number, each in enumerate(own):
        if not each.ended:
            found.append(each)
            continue
        until = own[number + 1].starts_ms if number + 1 < len(own) else None
        found += _list_between(connection, model_id, each.starts_ms, until, limit)
    return found


def _list_between(
    connection: Connection, model_id: str, start_ms: int, until_ms: int | None, limit: int
) -> list[PriceVersion]:
    newest = _newest(connection, model_id, LIST, limit)
    begun = [each for each in newest if each.starts_ms <= start_ms][-1:]
    later = [
        each
        for each in newest
        if each.starts_ms > start_ms and (until_ms is None or each.starts_ms < until_ms)
    ]
    return [_starting(each, start_ms) for each in begun] + later


def _starting(found: PriceVersion, at_ms: int) -> PriceVersion:
    """The version as a tariff that holds from `at_ms` on."""
    return PriceVersion(
        found.id, found.model_id, at_ms, found.unit_prices, found.created_ms, found.org_id, found.terms
    )


def _newest(connection: Connection, model_id: str, org_id: str, limit: int) -> list[PriceVersion]:
    table = model_prices
    rows = connection.execute(
        select(table)
        .where(table.c.model_id == model_id, table.c.org_id == org_id)
        .order_by(table.c.starts_ms.desc())
        .limit(limit)
    ).all()
    return [_price(row) for row in reversed(rows)]


def put_list_prices(
    connection: Connection, model_id: str, wanted: Mapping[str, int], now_ms: int
) -> PriceVersion | None:
    """A version for everybody from the next full minute on; None when the newest one says the same.

    The first version starts at 0, so that every call ever made has a price. The terms of the newest one go on.
    """
    versions = price_versions(connection, model_id)
    next_minute = minute_floor(now_ms) + MINUTE_MS
    terms = versions[-1].terms if versions else {}
    if versions and versions[-1].starts_ms == next_minute and versions[-1].unit_prices != wanted:
        # It has not begun, so nothing was priced with it.
        connection.execute(delete(model_prices).where(model_prices.c.id == versions.pop().id))
    if versions and versions[-1].unit_prices == wanted:
        return None
    starts_ms = 0
    if versions:
        # After a clock that was set back the newest version may start later than our next minute; a minute
        # that was begun once stays as it is, so the new one comes behind.
        starts_ms = max(next_minute, versions[-1].starts_ms + MINUTE_MS)
    kept = {sku: each for sku, each in terms.items() if sku in wanted}
    for sku, each in kept.items():
        check_terms(sku, each, wanted[sku])
    return add_version(connection, model_id, LIST, starts_ms, wanted, kept, now_ms)


def add_version(
    connection: Connection,
    model_id: str,
    org_id: str,
    starts_ms: int,
    unit_prices: Mapping[str, int],
    terms: Terms,
    now_ms: int,
    *,
    ended: bool = False,
) -> PriceVersion:
    """Append a version. Conflict: one that begins then or later is there already; prices never change in the past."""
    assert starts_ms % MINUTE_MS == 0, "versions start at full minutes"
    existing = price_versions(connection, model_id, org_id)
    if existing and existing[-1].starts_ms >= starts_ms:
        raise Conflict(
            f"starts_at: version {existing[-1].id} of these prices begins at that time or later; a new one must "
            "begin after it",
            param="starts_at",
        )
    made = PriceVersion(
        new_id("price", now_ms), model_id, starts_ms, dict(unit_prices), now_ms, org_id, dict(terms), ended
    )
    connection.execute(
        insert(model_prices).values(
            id=made.id,
            model_id=model_id,
            org_id=org_id,
            starts_ms=starts_ms,
            unit_prices=json.dumps(made.unit_prices),
            terms=json.dumps(terms_document(terms)),
            ended=ended,
            created_ms=now_ms,
        )
    )
    return made


def _price(row: Row[Any]) -> PriceVersion:
    return PriceVersion(
        row.id,
        row.model_id,
        row.starts_ms,
        json.loads(row.unit_prices),
        row.created_ms,
        row.org_id,
        read_terms(json.loads(row.terms)),
        bool(row.ended),
    )
