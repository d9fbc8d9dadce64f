"""Redis that cannot be reached, or that lost everything: closed by default, open where an organization chose so."""

import json
from typing import Any

import pytest

from access.admission.book import PolicyBook
from access.admission.model import Limits, Refusal, ScopePolicy, describe
from access.admission.redis_admission import RedisAdmission, connect
from access.admission.values import Balance, Grant, Outcome
from functions.gateway.limiter import refused
from tests.contract.admission_values import NOW, budget, request


async def test_without_redis_calls_are_refused_unless_the_organization_chose_otherwise() -> None:
    book = PolicyBook()
    client = connect("unix:///nowhere/redis.sock")
    admission = RedisAdmission(book, "gateway-1", client)
    refusal = await admission.admit(request("a", NOW))
    assert isinstance(refusal, Refusal) and refusal.reason == "unavailable"
    error = refused(refusal)
    assert (error.status, error.retry_after_s) == (503, 1)
    book.put(ScopePolicy("organization", "org_1", Limits(1), (budget(1),), open_on_outage=True))
    for name in ("b", "c", "d"):
        grant = await admission.admit(request(name, NOW, 10, 10**15))
        assert isinstance(grant, Grant)
        await admission.renew(grant, NOW + 1)
        await admission.settle(grant, Outcome(1, 1, 1, NOW))
    assert await admission.exchange([], NOW) == {}
    await admission.close()


async def test_balances_that_redis_did_not_take_are_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    book = PolicyBook()
    book.put(ScopePolicy("organization", "org_1", None, (budget(10**12),)))
    admission = RedisAdmission(book, "gateway-1", connect("unix:///nowhere/redis.sock"))
    balance = Balance("budget_org_1", 0, 7, 1, {})
    assert await admission.exchange([balance], NOW) == {}
    told = []

    async def taken(*, keys: object, args: list[Any]) -> list[tuple[str, str]]:
        told.append([each["version"] for each in json.loads(args[0])])
        return [("0:7", "0:0")]

    monkeypatch.setattr(admission, "_exchange", taken)
    for _ in range(2):
        await admission.exchange([], NOW)
    assert told == [[1], []]
    await admission.close()


async def test_what_falls_under_nothing_does_not_need_redis() -> None:
    client = connect("unix:///nowhere/redis.sock")
    admission = RedisAdmission(PolicyBook(endpoint_default=None), "gateway-1", client)
    assert isinstance(await admission.admit(request("a", NOW)), Grant)
    await admission.close()


def test_every_refusal_says_what_it_is_about() -> None:
    for reason in ("rate", "parallel", "too_large", "budget", "budget_held", "no_price", "unavailable"):
        refusal = Refusal(reason, "key", "key_1", "tokens_per_minute", 5, 5, 5, 1500, NOW)  # type: ignore[arg-type]  # each
        assert len(describe(refusal)) > 40
