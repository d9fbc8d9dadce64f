"""Credit over time: granted, spent, given back, expired; what is left is always what the ledger says."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.invoicing import credit
from billing.invoicing.credit import NewGrant
from billing.invoicing.issue import invoice_period
from billing.invoicing.model import CreditScope, Grant
from billing.invoicing.run import run_invoicer
from billing.invoicing.settle import void_invoice
from core.clock import month_bounds
from core.database import Database
from core.errors import Conflict, FareboxError, Invalid
from core.money import PICO_PER_CENT
from tests.metering_values import MINUTE, T0
from tests.store.invoice_values import AFTER, DOLLAR_IN, END, HOUR, MONTH, START, balances, call, check, made

NEXT = month_bounds(END)


def give(db: Database, cents: int, **values: object) -> Grant:
    with db.begin() as conn:
        return credit.grant_credit(conn, NewGrant("org_1", "promotional", cents, **values), T0)  # type: ignore[arg-type]


def left(db: Database) -> dict[str, int]:
    """What is left by grant, in cents; checked against the ledger."""
    with db.read() as conn:
        grants = credit.list_grants(conn, org_id="org_1")
    assert sum(g.left_pico for g in grants) == -balances(db).get("credit:org_1", 0)
    return {g.id: g.left_pico // PICO_PER_CENT for g in grants}


def test_credit_that_expires_within_the_month_pays_for_usage_before(db: Database) -> None:
    world, issuer = made(db)
    soon = give(db, 1000, expires_ms=T0 + HOUR)
    later = give(db, 100, starts_ms=T0 + HOUR, scope=CreditScope(skus=("input",)))
    world.store(call(1, T0, 2 * DOLLAR_IN), call(2, T0 + 2 * HOUR, 3 * DOLLAR_IN))
    world.close(T0 + 3 * HOUR)
    assert run_invoicer(db, issuer, T0 + 3 * HOUR).expired_grants == 0  # December is not invoiced yet
    world.close(AFTER)
    outcome = run_invoicer(db, issuer, AFTER)
    [invoice] = outcome.invoices
    assert (check(db, invoice.id).total_cents, invoice.credit_cents) == (500, 300)
    assert outcome.expired_grants == 1
    assert left(db) == {soon.id: 0, later.id: 0}
    assert balances(db)["promotion"] == 300 * PICO_PER_CENT  # 800 of it came back
    assert run_invoicer(db, issuer, AFTER).expired_grants == 0


def test_a_void_invoice_gives_expired_credit_back_for_its_own_period_only(db: Database) -> None:
    world, issuer = made(db)
    gone = give(db, 150, expires_ms=END)
    world.store(call(1, T0, 2 * DOLLAR_IN))
    world.close(AFTER)
    [invoice] = run_invoicer(db, issuer, AFTER).invoices
    assert invoice.credit_cents == 150
    with db.begin() as conn:
        void_invoice(conn, invoice.id, AFTER)
    assert left(db) == {gone.id: 150}
    assert run_invoicer(db, issuer, AFTER).expired_grants == 0
    world.store(call(2, END + HOUR, DOLLAR_IN))
    world.close(NEXT[1] + 5 * MINUTE)
    [january] = run_invoicer(db, issuer, NEXT[1] + 5 * MINUTE).invoices
    assert january.credit_cents == 0
    with db.begin() as conn:
        [again] = invoice_period(conn, issuer, "org_1", MONTH, NEXT[1])
    assert check(db, again.id).credit_cents == 150
    assert left(db) == {gone.id: 0}


def test_void_credit_pays_for_nothing(db: Database) -> None:
    world, issuer = made(db)
    with db.begin() as conn:
        prepaid = credit.grant_credit(conn, NewGrant("org_1", "prepaid", 500), T0)
        credit.void_grant(conn, prepaid.id, T0)
        with pytest.raises(Conflict, match="void already"):
            credit.void_grant(conn, prepaid.id, T0)
    assert balances(db) == {}
    world.store(call(1))
    world.close(AFTER)
    assert run_invoicer(db, issuer, AFTER).invoices[0].credit_cents == 0


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"amount_cents": 0}, "0.01 to a billion"),
        ({"expires_ms": T0 - MINUTE}, "that is past; a credit that is expired pays for nothing"),
        ({"starts_ms": T0 + HOUR, "expires_ms": T0 + HOUR}, "after starts_at"),
        ({"starts_ms": T0 + 1}, "full minutes"),
        ({"priority": 101}, "0 .spent first. to 100"),
        ({"scope": CreditScope(models=("m",) * 51)}, "at most 50"),
    ],
)
def test_credit_that_could_not_be_spent_is_refused(
    db: Database, values: dict[str, object], says: str
) -> None:
    wanted = {"org_id": "org_1", "kind": "prepaid", "amount_cents": 100} | values
    with pytest.raises(Invalid, match=says), db.begin() as conn:
        credit.grant_credit(conn, NewGrant(**wanted), T0)  # type: ignore[arg-type]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("use"), st.integers(0, 40), st.integers(1, 5 * DOLLAR_IN)),
        st.tuples(
            st.just("grant"), st.integers(1, 700), st.sampled_from([0, T0 + HOUR, END, END + 9 * 24 * HOUR])
        ),
        st.tuples(st.just("void grant"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("void"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("again"), st.just(0), st.just(0)),
        st.tuples(st.just("run"), st.integers(1, 25), st.just(0)),
    ),
    max_size=14,
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_happens_the_sums_hold(
    make_db: Callable[[], Database], steps: list[tuple[str, int, int]]
) -> None:
    """Calls, grants, voids and runs in any order: ledger, invoices and credit stay one."""
    db = make_db()
    world, issuer = made(db)
    now_ms, invoices = T0, []
    for number, (what, a, b) in enumerate(steps):
        with db.read() as conn:
            grants = credit.list_grants(conn, org_id="org_1")
        try:
            if what == "use":
                world.store(call(number, now_ms + a * MINUTE, b))
            elif what == "run":
                now_ms += a * 24 * HOUR // 3
                world.close(now_ms)
                invoices += run_invoicer(db, issuer, now_ms).invoices
            else:
                with db.begin() as conn:
                    if what == "grant":
                        credit.grant_credit(conn, NewGrant("org_1", "prepaid", a, expires_ms=b), now_ms)
                    elif what == "void grant" and grants:
                        credit.void_grant(conn, grants[a % len(grants)].id, now_ms)
                    elif what == "void" and invoices:
                        void_invoice(conn, invoices[a % len(invoices)].id, now_ms)
                    elif what == "again":
                        invoices += invoice_period(conn, issuer, "org_1", MONTH, now_ms)
        except FareboxError:
            pass  # refused, and then nothing may have changed: checked below
        assert sum(balances(db).values()) == 0
        assert min(left(db).values(), default=0) >= 0
    living = [check(db, i.id) for i in invoices]
    living = [i for i in living if i.state != "void"]
    assert balances(db).get("billed:org_1", 0) == PICO_PER_CENT * sum(i.due_cents for i in living)
    spans = sorted((i.start_ms, i.end_ms) for i in living)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert not living or spans[0][0] >= START
