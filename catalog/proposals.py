"""Changes of prices by two people: one proposes, another approves. SQL; works in the caller's transaction.

A person is an admin key. What is approved becomes an immutable version of the price book; what is rejected or
withdrawn stays on record as such.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, insert, select, update

from catalog import price_book
from catalog.batch_prices import BATCH
from catalog.model import PriceVersion
from catalog.store import find_model, set_prices
from catalog.tables import price_proposals
from catalog.terms import Terms, check_terms, read_terms, terms_document
from core.changes import record_change
from core.clock import MINUTE_MS, iso, minute_floor
from core.errors import Conflict, Forbidden, Invalid, NotFound
from core.ids import new_id

ProposalState = Literal["proposed", "approved", "rejected", "withdrawn"]
MAX_OPEN = 1000
MAX_NOTE = 1000


@dataclass(frozen=True, slots=True)
class Wanted:
    """Prices that somebody proposes. `starts_ms` 0: from the next full minute after the approval on."""

    model_id: str
    org_id: str  # "" for everybody
    starts_ms: int
    unit_prices: dict[str, int]
    terms: Terms
    ended: bool = False  # of an organization's own prices: back to the list
    note: str = ""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposed change and what became of it."""

    id: str
    wanted: Wanted
    state: ProposalState
    proposed_by: str  # key ids
    proposed_ms: int
    decided_by: str
    decided_ms: int  # 0: not decided
    decision_note: str
    version_id: str  # of what was approved


def check(connection: Connection, wanted: Wanted, now_ms: int) -> None:
    """Refuse prices that could not begin: Invalid, Conflict or NotFound name the field."""
    listed = price_book.price_versions(connection, wanted.model_id)
    if not listed:
        raise NotFound(f"model: there is no model {wanted.model_id!r} with prices", param="model")
    if len(wanted.note) > MAX_NOTE:
        raise Invalid(f"note: expected at most {MAX_NOTE} characters", param="note")
    if wanted.starts_ms:
        if wanted.starts_ms % MINUTE_MS:
            raise Invalid(
                f"starts_at: expected a full minute, got {iso(wanted.starts_ms)}", param="starts_at"
            )
        if wanted.starts_ms <= now_ms:
            raise Invalid(
                f"starts_at: {iso(wanted.starts_ms)} is past; what was used is never priced anew. Use a credit note "
                "for past usage",
                param="starts_at",
            )
        own = price_book.price_versions(connection, wanted.model_id, wanted.org_id)
        if own and own[-1].starts_ms >= wanted.starts_ms:
            raise Conflict(
                f"starts_at: version {own[-1].id} of these prices begins at {iso(own[-1].starts_ms)} already; a new "
                "one must begin after it",
                param="starts_at",
            )
    if wanted.ended:
        _check_end(connection, wanted)
        return
    for sku in listed[-1].unit_prices:
        if sku not in wanted.unit_prices:
            raise Invalid(
                f"prices.{sku}: the field is missing, and the model is sold by it", param=f"prices.{sku}"
            )
    for sku in wanted.unit_prices:
        if sku.removeprefix(BATCH) not in listed[-1].unit_prices:
            raise Invalid(
                f"prices.{sku}: model {wanted.model_id} is not sold by {sku}", param=f"prices.{sku}"
            )
    for sku, terms in wanted.terms.items():
        if sku not in wanted.unit_prices:
            raise Invalid(f"terms.{sku}: model {wanted.model_id} is not sold by {sku}", param=f"terms.{sku}")
        check_terms(sku, terms, wanted.unit_prices[sku])


def _check_end(connection: Connection, wanted: Wanted) -> None:
    own = price_book.price_versions(connection, wanted.model_id, wanted.org_id) if wanted.org_id else []
    if not own or own[-1].ended:
        raise Invalid(
            "ended: only prices of an organization's own can end, and this one has none for the model",
            param="ended",
        )


def propose(connection: Connection, wanted: Wanted, key_id: str, now_ms: int) -> Proposal:
    """Put a change up for approval."""
    check(connection, wanted, now_ms)
    table = price_proposals
    still_open = connection.execute(
        select(table.c.id).where(table.c.state == "proposed").limit(MAX_OPEN)
    ).all()
    if len(still_open) >= MAX_OPEN:
        raise Conflict(f"{MAX_OPEN} proposals wait for a decision; decide some of them first")
    made = Proposal(new_id("proposal", now_ms), wanted, "proposed", key_id, now_ms, "", 0, "", "")
    connection.execute(
        insert(table).values(
            id=made.id,
            model_id=wanted.model_id,
            org_id=wanted.org_id,
            starts_ms=wanted.starts_ms,
            unit_prices=json.dumps(wanted.unit_prices),
            terms=json.dumps(terms_document(wanted.terms)),
            ended=wanted.ended,
            note=wanted.note,
            state=made.state,
            proposed_by=key_id,
            proposed_ms=now_ms,
            decided_by="",
            decided_ms=0,
            decision_note="",
            version_id="",
        )
    )
    return made


def get_proposal(connection: Connection, proposal_id: str) -> Proposal:
    """The proposal with that id; NotFound."""
    row = connection.execute(
        select(price_proposals).where(price_proposals.c.id == proposal_id).with_for_update()
    ).first()
    if row is None:
        raise NotFound(f"there is no price proposal {proposal_id!r}", param="proposal_id")
    return _proposal(row)


def list_proposals(
    connection: Connection, *, state: str | None = None, limit: int = 50, after: str = ""
) -> list[Proposal]:
    """In order of proposal."""
    table = price_proposals
    query = select(table).where(table.c.id > after).order_by(table.c.id).limit(limit)
    if state is not None:
        query = query.where(table.c.state == state)
    return [_proposal(row) for row in connection.execute(query)]


def approve(connection: Connection, proposal_id: str, key_id: str, now_ms: int, note: str = "") -> Proposal:
    """Make it a version. Forbidden for the key that proposed it; Conflict when it was decided or came too late."""
    found = _undecided(connection, proposal_id)
    if key_id == found.proposed_by:
        raise Forbidden(
            "the key that proposed a price may not approve it: another person must, with an admin key of their own "
            "(farebox key create --admin --name NAME)"
        )
    made = put(connection, found.wanted, now_ms)
    return _decide(connection, found, "approved", key_id, now_ms, note, made.id)


def put(connection: Connection, wanted: Wanted, now_ms: int) -> PriceVersion:
    """Add the version to the price book, from its start (or the next full minute) on."""
    check(connection, wanted, now_ms)
    starts_ms = wanted.starts_ms
    if not starts_ms:
        own = price_book.price_versions(connection, wanted.model_id, wanted.org_id)
        after = own[-1].starts_ms + MINUTE_MS if own else 0
        starts_ms = max(minute_floor(now_ms) + MINUTE_MS, after)
    made = price_book.add_version(
        connection,
        wanted.model_id,
        wanted.org_id,
        starts_ms,
        wanted.unit_prices,
        wanted.terms,
        now_ms,
        ended=wanted.ended,
    )
    if not wanted.org_id and find_model(connection, wanted.model_id, include_removed=True) is not None:
        # The entry says what was decided. The operator decided it: a file of a release does not undo it.
        set_prices(connection, wanted.model_id, wanted.unit_prices, now_ms)
    record_change(connection, "model", wanted.model_id, now_ms)
    return made


def reject(connection: Connection, proposal_id: str, key_id: str, now_ms: int, note: str = "") -> Proposal:
    """Turn it down; the key that proposed it withdraws it."""
    found = _undecided(connection, proposal_id)
    state: ProposalState = "withdrawn" if key_id == found.proposed_by else "rejected"
    return _decide(connection, found, state, key_id, now_ms, note, "")


def _undecided(connection: Connection, proposal_id: str) -> Proposal:
    found = get_proposal(connection, proposal_id)
    if found.state != "proposed":
        raise Conflict(f"proposal {proposal_id} was {found.state} at {iso(found.decided_ms)}")
    return found


def _decide(
    connection: Connection,
    found: Proposal,
    state: ProposalState,
    key_id: str,
    now_ms: int,
    note: str,
    version_id: str,
) -> Proposal:
    if len(note) > MAX_NOTE:
        raise Invalid(f"note: expected at most {MAX_NOTE} characters", param="note")
    connection.execute(
        update(price_proposals)
        .where(price_proposals.c.id == found.id)
        .values(state=state, decided_by=key_id, decided_ms=now_ms, decision_note=note, version_id=version_id)
    )
    return get_proposal(connection, found.id)


def _proposal(row: Row[Any]) -> Proposal:
    wanted = Wanted(
        row.model_id,
        row.org_id,
        row.starts_ms,
        json.loads(row.unit_prices),
        read_terms(json.loads(row.terms)),
        bool(row.ended),
        row.note,
    )
    return Proposal(
        row.id,
        wanted,
        row.state,
        row.proposed_by,
        row.proposed_ms,
        row.decided_by,
        row.decided_ms,
        row.decision_note,
        row.version_id,
    )
