"""What every implementation of Admission promises: in memory, and on a real Redis."""

import asyncio

import pytest

from access.admission.model import (
    DAY_MS,
    Limits,
    Refusal,
    ScopePolicy,
    describe,
    seconds,
)
from access.admission.port import answered
from access.admission.values import Outcome
from tests.contract.admission_values import NOW, Driver, budget, granted, refused, request

MILLION_USD = 10**18


# --- requests and tokens ----------------------------------------------------------------------------


def test_without_policies_everything_is_admitted(admission: Driver) -> None:
    grant = granted(admission.admit("r1", NOW, 10**9, None))
    assert grant.requests is None and grant.tokens is None
    admission.settle(grant, 5)


def test_any_minute_holds_as_many_requests_as_the_limit_and_not_one_more(admission: Driver) -> None:
    admission.limits(requests_per_minute=3)
    for i in range(3):
        granted(admission.admit(f"a{i}", NOW + i * 10_000))
    refusal = refused(admission.admit("b", NOW + 59_999))
    assert (refusal.reason, refusal.limit, refusal.allowed, refusal.used) == (
        "rate",
        "requests_per_minute",
        3,
        3,
    )
    assert refusal.retry_after_ms == 1
    granted(admission.admit("c", NOW + 60_000))
    # The two later ones still count, and so does the new one.
    assert refused(admission.admit("d", NOW + 60_000)).retry_after_ms == 10_000
    granted(admission.admit("e", NOW + 70_000))


def test_tokens_are_reserved_at_their_worst_and_corrected_to_the_truth(admission: Driver) -> None:
    admission.limits(tokens_per_minute=100)
    first = granted(admission.admit("a", NOW, 80))
    assert first.tokens is not None and first.tokens.remaining == 20
    assert refused(admission.admit("b", NOW, 21)).used == 80
    admission.settle(first, 30, now_ms=NOW + 5)
    second = granted(admission.admit("c", NOW + 5, 70))
    assert second.tokens is not None and (second.tokens.limit, second.tokens.remaining) == (100, 0)
    assert second.tokens.reset_ms == 60_000
    # 30 leave at NOW + 60,000, all at NOW + 60,005.
    assert refused(admission.admit("d", NOW + 10, 30)).retry_after_ms == 59_990
    assert refused(admission.admit("d", NOW + 10, 31)).retry_after_ms == 59_995
    granted(admission.admit("d", NOW + 60_000, 30))


def test_an_underestimate_is_counted_too(admission: Driver) -> None:
    admission.limits(tokens_per_minute=100)
    admission.settle(admission.admit("a", NOW, 10), 95)
    assert refused(admission.admit("b", NOW, 6)).used == 95


def test_a_settlement_after_the_minute_changes_nothing_in_the_next(admission: Driver) -> None:
    admission.limits(tokens_per_minute=100)
    old = admission.admit("a", NOW, 100)
    granted(admission.admit("b", NOW + 60_000, 100))
    admission.settle(old, 1, now_ms=NOW + 60_001)
    assert refused(admission.admit("c", NOW + 60_001, 1)).used == 100


def test_what_can_never_fit_is_said_so(admission: Driver) -> None:
    admission.limits(tokens_per_minute=100)
    refusal = refused(admission.admit("a", NOW, 101))
    assert refusal.reason == "too_large" and refusal.retry_after_ms < 0
    assert "Waiting does not help" in describe(refusal) and "max_tokens" in describe(refusal)
    granted(admission.admit("b", NOW, 100))


def test_days_are_calendar_days(admission: Driver) -> None:
    admission.limits(requests_per_day=2)
    midnight = NOW - NOW % DAY_MS + DAY_MS
    granted(admission.admit("a", midnight - 3))
    granted(admission.admit("b", midnight - 2))
    refusal = refused(admission.admit("c", midnight - 1))
    assert (refusal.limit, refusal.retry_after_ms) == ("requests_per_day", 1)
    last = granted(admission.admit("d", midnight))
    assert last.requests is not None and (last.requests.remaining, last.requests.reset_ms) == (1, DAY_MS)


def test_parallel_requests_are_those_in_flight(admission: Driver) -> None:
    admission.limits("endpoint", "ep_1", parallel_requests=2)
    first, second = (granted(admission.admit(f"a{i}", NOW)) for i in range(2))
    refusal = refused(admission.admit("b", NOW))
    assert (refusal.reason, refusal.scope, refusal.retry_after_ms) == ("parallel", "endpoint", 1000)
    admission.settle(first)
    third = granted(admission.admit("c", NOW))
    admission.settle(second)
    admission.settle(second)  # again: no further room
    granted(admission.admit("d", NOW))
    assert refused(admission.admit("e", NOW)).reason == "parallel"
    admission.settle(third)


def test_a_refusal_reserves_nothing_anywhere(admission: Driver) -> None:
    admission.policies(
        ScopePolicy("key", "key_1", Limits(requests_per_minute=5, tokens_per_minute=1000)),
        ScopePolicy("project", "proj_1", Limits(requests_per_minute=2)),
    )
    for i in range(2):
        granted(admission.admit(f"a{i}", NOW, 100))
    for i in range(9):
        assert refused(admission.admit(f"b{i}", NOW, 100)).scope == "project"
    other = granted(admission.admit("c", NOW + 60_000, 100))
    assert other.tokens is not None and other.tokens.remaining == 900
    assert (
        other.requests is not None and other.requests.remaining == 1
    )  # of the project: nearest to its limit


def test_when_several_limits_refuse_the_longest_wait_is_told(admission: Driver) -> None:
    admission.policies(
        ScopePolicy("key", "key_1", Limits(requests_per_minute=1)),
        ScopePolicy("organization", "org_1", Limits(requests_per_minute=2)),
    )
    granted(admission.admit("a", NOW, key="key_2"))
    granted(admission.admit("b", NOW + 20_000))
    refusal = refused(admission.admit("c", NOW + 30_000))
    assert (refusal.scope, refusal.retry_after_ms) == ("key", 50_000)
    granted(admission.admit("d", NOW + 80_000))


def test_a_clock_set_back_delays_nobody_for_longer_than_a_window(admission: Driver) -> None:
    admission.limits(requests_per_minute=1)
    admission.settle(admission.admit("a", NOW))
    back = NOW - 3_600_000
    assert refused(admission.admit("b", back)).retry_after_ms == 60_000
    granted(admission.admit("c", back + 60_000))


def test_a_key_is_held_to_the_limits_of_each_endpoint_that_it_calls(admission: Driver) -> None:
    admission.policies(
        ScopePolicy("key", "key_1", Limits(requests_per_minute=4)),
        ScopePolicy("endpoint", "ep_2", Limits(requests_per_minute=1)),
    )
    granted(admission.admit("a", NOW, endpoint="ep_1"))
    granted(admission.admit("b", NOW, endpoint="ep_2"))
    granted(admission.admit("c", NOW, endpoint="ep_1"))
    assert refused(admission.admit("d", NOW, endpoint="ep_2")).scope_id == "ep_2"
    granted(admission.admit("e", NOW, endpoint="ep_3"))
    assert refused(admission.admit("f", NOW, endpoint="ep_1")).scope_id == "key_1"


# --- holds ------------------------------------------------------------------------------------------


def test_a_hold_that_nobody_settles_expires(admission: Driver) -> None:
    admission.policies(
        ScopePolicy("key", "key_1", Limits(parallel_requests=1)),
        ScopePolicy("organization", "org_1", budgets=(budget(100),)),
    )
    lost = admission.admit("a", NOW, 10, 100, expires_ms=NOW + 5000)
    assert refused(admission.admit("b", NOW + 4999, 10, 100)).reason in ("parallel", "budget_held")
    second = granted(admission.admit("c", NOW + 5000, 10, 100))
    # It ended after all: what it cost counts, what it held is not given back twice.
    admission.settle(lost, 10, 60, now_ms=NOW + 6000)
    assert refused(admission.admit("d", NOW + 6000, 10, 1)).reason in ("parallel", "budget_held")
    admission.settle(second, 10, 0, now_ms=NOW + 6001)
    assert admission.exchange(now_ms=NOW + 6001)["budget_org_1"].spent_pico == 60
    assert refused(admission.admit("e", NOW + 6001, 10, 41)).reason == "budget"
    granted(admission.admit("f", NOW + 6001, 10, 40))


def test_a_renewed_hold_stays(admission: Driver) -> None:
    admission.limits(parallel_requests=1)
    stream = admission.admit("a", NOW, expires_ms=NOW + 1000)
    admission.renew(stream, NOW + 10_000)
    assert refused(admission.admit("b", NOW + 9999)).reason == "parallel"
    granted(admission.admit("c", NOW + 10_000))
    admission.settle(stream, now_ms=NOW + 10_001)
    assert refused(admission.admit("d", NOW + 10_001)).reason == "parallel"


# --- money ------------------------------------------------------------------------------------------


def test_a_budget_is_reserved_settled_and_never_overdrawn(admission: Driver) -> None:
    admission.budgets(budget(1000))
    first = granted(admission.admit("a", NOW, 1, 600))
    held = refused(admission.admit("b", NOW, 1, 401))
    assert (held.reason, held.retry_after_ms) == ("budget_held", 1000)
    second = granted(admission.admit("c", NOW, 1, 400))
    admission.settle(first, 1, 500)
    assert refused(admission.admit("d", NOW, 1, 501)).reason == "budget"  # waiting would not help
    assert admission.exchange()["budget_org_1"].held_pico == 400
    third = granted(admission.admit("e", NOW, 1, 100))
    admission.settle(second, 1, 400)
    admission.settle(third, 1, 100)
    use = admission.exchange()["budget_org_1"]
    assert (use.spent_pico, use.held_pico) == (1000, 0)
    assert refused(admission.admit("f", NOW, 1, 1)).reason == "budget"
    granted(admission.admit("g", NOW, 1, 0))


@pytest.mark.parametrize("offset", [0, 1, 999_999_999_999, 10**12, 123_456_789_012])
def test_amounts_are_exact_far_beyond_two_to_the_fifty_third(admission: Driver, offset: int) -> None:
    admission.budgets(budget(1000 * MILLION_USD + offset))
    grants = [granted(admission.admit(f"a{i}", NOW, 1, 100 * MILLION_USD + 1)) for i in range(9)]
    left = 100 * MILLION_USD + offset - 9
    assert refused(admission.admit("b", NOW, 1, left + 1)).reason == "budget_held"
    last = granted(admission.admit("c", NOW, 1, left))
    for grant in [*grants, last]:
        admission.settle(grant, 1, MILLION_USD + 7)
    use = admission.exchange()["budget_org_1"]
    assert (use.spent_pico, use.held_pico) == (10 * MILLION_USD + 70, 0)
    assert refused(admission.admit("d", NOW, 1, 990 * MILLION_USD + offset - 69)).used == use.spent_pico
    granted(admission.admit("d", NOW, 1, 990 * MILLION_USD + offset - 70))


def test_budgets_of_all_scopes_are_kept_together(admission: Driver) -> None:
    admission.budgets(
        budget(100, "key", "key_1"), budget(150, "project", "proj_1"), budget(1000, "organization", "org_1")
    )
    admission.settle(admission.admit("a", NOW, 1, 90), 1, 90)
    assert refused(admission.admit("b", NOW, 1, 20)).scope == "key"
    admission.settle(admission.admit("c", NOW, 1, 50, key="key_2"), 1, 50)
    refusal = refused(admission.admit("d", NOW, 1, 20, key="key_2"))
    assert (refusal.scope, refusal.used, refusal.allowed, refusal.limit) == (
        "project",
        140,
        150,
        "budget_proj_1",
    )
    uses = admission.exchange()
    assert [uses[f"budget_{name}"].spent_pico for name in ("key_1", "proj_1", "org_1")] == [90, 140, 140]


def test_a_soft_budget_counts_and_refuses_nobody(admission: Driver) -> None:
    admission.budgets(budget(10, hard=False))
    admission.settle(admission.admit("a", NOW, 1, 1000), 1, 900)
    granted(admission.admit("b", NOW, 1, None))
    assert admission.exchange()["budget_org_1"].spent_pico == 900


def test_a_soft_budget_refuses_nobody_whatever_was_spent(admission: Driver) -> None:
    """More than fits into 64 bits, too: 2^62 pico-dollars are 4.6 million dollars."""
    soft = budget(10, hard=False)
    admission.budgets(soft)
    admission.exchange([admission.balance(soft, 10**21)])
    admission.settle(granted(admission.admit("a", NOW, 1, 10**20)), 1, 10**20)
    granted(admission.admit("b", NOW, 1, 10**20))
    assert admission.exchange()[soft.id].spent_pico == 10**21 + 10**20


def test_a_model_without_a_price_does_not_pass_a_hard_budget(admission: Driver) -> None:
    admission.budgets(budget(10**15))
    assert refused(admission.admit("a", NOW, 1, None)).reason == "no_price"


def test_a_daily_budget_starts_anew_and_what_is_in_flight_counts_on(admission: Driver) -> None:
    admission.budgets(budget(100, window="day"))
    midnight = NOW - NOW % DAY_MS + DAY_MS
    admission.settle(admission.admit("a", midnight - 10, 1, 60), 1, 60, now_ms=midnight - 9)
    late = granted(admission.admit("b", midnight - 5, 1, 40))
    refusal = refused(admission.admit("c", midnight - 1, 1, 41))
    assert (refusal.reason, refusal.resets_ms) == ("budget", midnight)
    assert refused(admission.admit("d", midnight, 1, 61)).reason == "budget_held"
    admission.settle(late, 1, 30, now_ms=midnight + 1)
    assert admission.exchange(now_ms=midnight + 1)["budget_org_1"].spent_pico == 30
    granted(admission.admit("e", midnight + 1, 1, 70))


def test_a_monthly_budget_follows_the_calendar(admission: Driver) -> None:
    admission.budgets(budget(100, window="month"))
    november = 1_793_491_200_000  # 2026-11-01T00:00:00Z
    admission.settle(admission.admit("a", november - 1, 1, 100), 1, 100, now_ms=november - 1)
    assert refused(admission.admit("b", november - 1, 1, 1)).resets_ms == november
    granted(admission.admit("c", november, 1, 100))


def test_balances_from_the_record_neither_double_nor_miss_a_call(admission: Driver) -> None:
    each = budget(1000)
    admission.budgets(each)
    one = admission.settle(admission.admit("a", NOW, 1, 100), 1, 100)
    admission.settle(admission.admit("b", NOW, 1, 50), 1, 50)
    # On record: the first call, and 7 of something the gateway knows nothing of (an endpoint's minutes).
    newer = admission.balance(each, 107, through=one)
    assert admission.exchange([newer])[each.id].spent_pico == 157
    assert admission.exchange([newer])[each.id].spent_pico == 157
    two = admission.balance(each, 157, through=one + 1)
    assert admission.exchange([two])[each.id].spent_pico == 157
    assert admission.exchange([newer])[each.id].spent_pico == 157  # an older version changes nothing
    # The record may know of a call before its gateway has settled it.
    grant = admission.admit("c", NOW, 1, 10)
    assert admission.exchange([admission.balance(each, 167, through=one + 2)])[each.id].spent_pico == 167
    admission.settle(grant, 1, 10)
    use = admission.exchange()[each.id]
    assert (use.spent_pico, use.held_pico) == (167, 0)


def test_a_raised_budget_and_a_corrected_balance_count_at_once(admission: Driver) -> None:
    admission.budgets(budget(100))
    admission.settle(admission.admit("a", NOW, 1, 100), 1, 100)
    assert refused(admission.admit("b", NOW, 1, 1)).reason == "budget"
    admission.book.put(ScopePolicy("organization", "org_1", budgets=(budget(200),)))
    assert refused(admission.admit("c", NOW, 1, 101)).reason == "budget"
    granted(admission.admit("d", NOW, 1, 100))


def test_a_thousand_concurrent_callers_never_exceed_a_budget(admission: Driver) -> None:
    """Each reserves 10 and costs 1 to 10. What fits is admitted: refused ones come again until money is the reason."""
    amount = 2000
    admission.budgets(budget(amount, "key", "key_1"))
    spent = finished = 0

    async def caller(number: int) -> None:
        nonlocal spent, finished
        for attempt in range(200):
            asked = request(f"r{number}_{attempt}", NOW, 1, 10)
            decision = await answered(admission.admission.admit(asked))
            if isinstance(decision, Refusal):
                if decision.reason == "budget":
                    return
                await asyncio.sleep(0)
                continue
            await asyncio.sleep(0)
            cost = number % 10 + 1
            spent += cost
            finished += 1
            await answered(admission.admission.settle(decision, Outcome(1, cost, finished, NOW)))
            assert spent <= amount
            return

    async def all_of_them() -> None:
        await asyncio.gather(*(caller(number) for number in range(1000)))

    admission.run(all_of_them())
    assert amount - 10 < spent <= amount
    assert admission.exchange()["budget_key_1"].spent_pico == spent
    assert admission.exchange()["budget_key_1"].held_pico == 0


# --- words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0ms"),
        (120, "120ms"),
        (999, "999ms"),
        (1000, "1s"),
        (1500, "1.5s"),
        (8640, "8.64s"),
        (59_999, "59.999s"),
        (60_000, "1m0s"),
        (360_000, "6m0s"),
        (3_600_000, "1h0m0s"),
        (86_400_000, "24h0m0s"),
    ],
)
def test_durations_are_written_as_openai_does(ms: int, text: str) -> None:
    assert seconds(ms) == text
