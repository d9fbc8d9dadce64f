"""SQL of what the provider calls our things, what it has for our invoices, and what it told us."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from billing.payments.model import Heard, ProviderAmount, ProviderInvoice
from billing.payments.tables import (
    provider_amounts,
    provider_customers,
    provider_events,
    provider_objects,
)
from core.inserts import insert_ignoring


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event of the provider and what became of it."""

    id: str
    org_id: str
    type: str
    object_id: str
    created_ms: int
    received_ms: int
    deliveries: int
    processed_ms: int
    outcome: str


def customer_of(conn: Connection, org_id: str) -> str:
    """The provider's name for an organization, "" when it has none."""
    table = provider_customers
    return conn.execute(select(table.c.provider_id).where(table.c.org_id == org_id)).scalar() or ""


def organization_of(conn: Connection, customer_id: str) -> str:
    """The organization that the provider calls so, "" for a stranger."""
    table = provider_customers
    return conn.execute(select(table.c.org_id).where(table.c.provider_id == customer_id)).scalar() or ""


def put_customer(conn: Connection, org_id: str, provider_id: str, now_ms: int) -> None:
    """From now on it is called so; the first name stays."""
    row = {"org_id": org_id, "provider_id": provider_id, "created_ms": now_ms}
    insert_ignoring(conn, provider_customers, [row])


def object_of(conn: Connection, org_id: str, kind: str, name: str) -> str:
    """The provider's name of one of our meters, prices or items; "" when it has none."""
    table = provider_objects
    where = (table.c.org_id == org_id, table.c.kind == kind, table.c.name == name)
    return conn.execute(select(table.c.provider_id).where(*where)).scalar() or ""


def put_object(
    conn: Connection, org_id: str, kind: str, name: str, provider_id: str, now_ms: int, parent: str = ""
) -> None:
    """The provider has it, under this name."""
    row = {"org_id": org_id, "kind": kind, "name": name, "provider_id": provider_id, "parent": parent}
    insert_ignoring(conn, provider_objects, [row | {"created_ms": now_ms}])


def put_amount(conn: Connection, org_id: str, there: ProviderInvoice, now_ms: int) -> None:
    """What was read back of an invoice."""
    table = provider_amounts
    conn.execute(delete(table).where(table.c.invoice_id == there.ours))
    conn.execute(
        insert(table).values(
            invoice_id=there.ours,
            org_id=org_id,
            provider_id=there.id,
            status=there.status,
            due_cents=there.total_cents,
            tax_cents=there.tax_cents,
            read_ms=now_ms,
        )
    )


def provider_amount(conn: Connection, invoice_id: str) -> ProviderAmount | None:
    """What the provider has for an invoice, as it was last read back; None: nothing (yet). For reconciliation."""
    table = provider_amounts
    row = conn.execute(
        select(table.c.provider_id, table.c.due_cents).where(table.c.invoice_id == invoice_id)
    ).first()
    return None if row is None else ProviderAmount(row.provider_id, row.due_cents)


def unsettled(conn: Connection, limit: int) -> list[tuple[str, str]]:
    """(our invoice, the provider's) of invoices that are neither paid nor void there, those read longest ago first."""
    table = provider_amounts
    query = select(table.c.invoice_id, table.c.provider_id).where(table.c.status.not_in(("paid", "void")))
    return [(row[0], row[1]) for row in conn.execute(query.order_by(table.c.read_ms).limit(limit))]


def amounts_by_status(conn: Connection) -> dict[str, int]:
    """How many invoices the provider has, by its word for their state."""
    counts: dict[str, int] = {}
    for status in conn.execute(select(provider_amounts.c.status)).scalars():
        counts[status] = counts.get(status, 0) + 1
    return counts


def put_event(conn: Connection, heard: Heard, now_ms: int) -> bool:
    """Store what was delivered; whether it is new."""
    table = provider_events
    changed = conn.execute(
        update(table).where(table.c.id == heard.id).values(deliveries=table.c.deliveries + 1)
    ).rowcount
    if changed:
        return False
    row = {
        "id": heard.id,
        "org_id": "",
        "type": heard.type,
        "object_id": heard.object_id,
        "created_ms": heard.created_ms,
        "received_ms": now_ms,
        "deliveries": 1,
        "processed_ms": 0,
        "outcome": "",
    }
    insert_ignoring(conn, table, [row])
    return True


def find_event(conn: Connection, event_id: str) -> StoredEvent:
    """An event that was stored."""
    row = conn.execute(select(provider_events).where(provider_events.c.id == event_id)).one()
    return StoredEvent(*row)


def processed(conn: Connection, event_id: str, org_id: str, outcome: str, now_ms: int) -> None:
    """What became of it."""
    table = provider_events
    values = {"processed_ms": now_ms, "org_id": org_id, "outcome": outcome[:500]}
    conn.execute(update(table).where(table.c.id == event_id).values(**values))


def list_events(conn: Connection, limit: int, after: str = "") -> Sequence[StoredEvent]:
    """The newest first; `after` is the id of the last one of the page before."""
    table = provider_events
    query = select(table).order_by(table.c.received_ms.desc(), table.c.id.desc()).limit(limit)
    if after:
        received = select(table.c.received_ms).where(table.c.id == after).scalar_subquery()
        query = query.where(
            (table.c.received_ms < received) | ((table.c.received_ms == received) & (table.c.id < after))
        )
    return [StoredEvent(*row) for row in conn.execute(query)]
