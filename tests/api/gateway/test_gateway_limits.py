"""Limits and budgets at the gateway, judged by the official client: in both lanes, plain and streamed."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from access.admission.book import PolicyBook
from access.admission.memory import MemoryAdmission
from access.admission.model import Budget, Limits, ScopePolicy
from access.admission.values import Balance
from access.principal import Principal
from functions.gateway.dependencies import GatewayDependencies
from functions.gateway.limiter import Limiting
from serving.route import Tariff
from tests.gateway_fixture import MODEL, PROJECT_KEY, RunningGateway
from tests.mock_engine import Behaviour, MockEngine, wait_until

MESSAGES: list[Any] = [{"role": "user", "content": "Say hello."}]
PRICES = {"input": 1_000_000, "cached_input": 500_000, "output": 4_000_000}


class LimitedGateway(RunningGateway):
    """A gateway whose policies the test sets."""

    def __init__(self, tmp_path: Path, upstream_url: str, **settings: Any) -> None:
        super().__init__(tmp_path, upstream_url, **settings)
        self.policies: dict[str, ScopePolicy] = {}
        self.balances: list[Balance] = []
        self.sql_fails = False
        self.directory.routes = [replace(self.directory.routes[0], tariffs=(Tariff(0, PRICES),))]

    def _dependencies(self) -> GatewayDependencies:
        book = PolicyBook()
        parts = Limiting(
            MemoryAdmission(book, "gateway-1"), book, "gateway-1", lambda: len(self.journal.events), self
        )
        return replace(super()._dependencies(), limiting=parts)

    def read_policies(self) -> list[ScopePolicy]:
        if self.sql_fails:
            raise OSError("database gone")
        return list(self.policies.values())

    def read_policy(self, scope_id: str) -> ScopePolicy:
        return self.policies.get(scope_id, ScopePolicy("key", scope_id))

    def read_balances(self, after: int) -> tuple[list[Balance], int]:
        moved = [balance for balance in self.balances if balance.version > after]
        return moved, max((balance.version for balance in self.balances), default=0)

    def set(self, policy: ScopePolicy) -> None:
        """Change a policy, and let the gateway learn of it."""
        self.policies[policy.id] = policy
        self.directory.changed("limit", policy.id)
        limits = self.gateway.limits  # type: ignore[union-attr]
        wait_until(lambda: limits._book.scope(policy.id) == policy)

    def use(self, budget_id: str) -> tuple[int, int]:
        """Spent and held."""
        limits = self.gateway.limits  # type: ignore[union-attr]

        async def look() -> Any:
            return limits._admission.exchange((), limits._clock.now_ms())

        use = self.in_loop(look)[budget_id]
        return use.spent_pico, use.held_pico


@pytest.fixture
def gateway(tmp_path: Path, engine: MockEngine) -> Iterator[LimitedGateway]:
    with LimitedGateway(tmp_path, engine.url) as running:
        yield running


@pytest.fixture
def client(gateway: LimitedGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=PROJECT_KEY, max_retries=0) as made:
        yield made


def chat(client: openai.OpenAI, **more: Any) -> Any:
    values: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 50} | more
    return client.chat.completions.with_raw_response.create(**values)


def key_limits(**limits: int) -> ScopePolicy:
    return ScopePolicy("key", "key_1", Limits(**limits))


def org_budget(amount_pico: int, **changes: Any) -> ScopePolicy:
    values: dict[str, Any] = {"window": "total", "hard": True} | changes
    budget = Budget("budget_1", "organization", "org_1", "org_1", amount_pico, **values)
    return ScopePolicy("organization", "org_1", budgets=(budget,))


# --- rates ------------------------------------------------------------------------------------------


def test_answers_say_what_is_left(gateway: LimitedGateway, client: openai.OpenAI) -> None:
    plain = chat(client).headers
    assert plain["x-ratelimit-limit-requests"] == "1000"  # a serverless endpoint's default
    assert plain["x-ratelimit-remaining-requests"] == "999"
    assert plain["x-ratelimit-limit-tokens"] == "200000"
    assert 199_000 < int(plain["x-ratelimit-remaining-tokens"]) < 200_000
    assert plain["x-ratelimit-reset-requests"] == plain["x-ratelimit-reset-tokens"] == "1m0s"
    gateway.set(key_limits(requests_per_minute=5))
    for remaining in ("4", "3"):  # the slow lane, then the fast one
        with client.chat.completions.with_streaming_response.create(
            model=MODEL, messages=MESSAGES, stream=True
        ) as stream:
            assert stream.headers["x-ratelimit-remaining-requests"] == remaining
            assert stream.headers["x-ratelimit-limit-requests"] == "5"
            list(stream.iter_lines())


def test_a_refusal_tells_exactly_when_to_come_again(gateway: LimitedGateway, client: openai.OpenAI) -> None:
    gateway.set(key_limits(requests_per_minute=2))
    before = time.time()
    for _ in range(2):
        chat(client)
    with pytest.raises(openai.RateLimitError) as caught:
        chat(client)
    headers, error = caught.value.response.headers, caught.value.body
    wait_ms = int(headers["retry-after-ms"])
    assert 60_000 - (time.time() - before) * 1000 - 100 < wait_ms <= 60_000
    assert int(headers["retry-after"]) == -(-wait_ms // 1000)
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert error["code"] == "rate_limit_exceeded" and error["type"] == "rate_limit_error"  # type: ignore[index]
    assert "limit 2 requests per minute" in error["message"]  # type: ignore[index]
    assert len(gateway.journal.events) == 2  # a refusal leaves no usage


def test_the_official_client_backs_off_and_succeeds(gateway: LimitedGateway) -> None:
    gateway.set(key_limits(parallel_requests=1))
    patient = openai.OpenAI(base_url=gateway.url + "/v1", api_key=PROJECT_KEY, max_retries=5)
    with patient, ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: chat(patient).status_code, range(3)))
    assert answers == [200, 200, 200]


@pytest.mark.timing
def test_a_request_that_never_fits_is_not_tried_again(gateway: LimitedGateway) -> None:
    gateway.set(key_limits(tokens_per_minute=200))
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=PROJECT_KEY, max_retries=5) as eager:
        began = time.monotonic()
        with pytest.raises(openai.RateLimitError, match="Waiting does not help") as caught:
            chat(eager, max_tokens=1000)
        assert time.monotonic() - began < 1
        assert "retry-after" not in caught.value.response.headers
        assert chat(eager, max_tokens=10).status_code == 200


def test_tokens_are_settled_to_the_true_count(gateway: LimitedGateway, client: openai.OpenAI) -> None:
    gateway.set(key_limits(tokens_per_minute=10_000))
    first = int(chat(client, max_tokens=5000).headers["x-ratelimit-remaining-tokens"])
    assert first < 5000
    for stream in (False, True):
        list(chat(client, stream=stream).parse() if stream else [chat(client)])
    used = sum(event.usage.input + event.usage.output for event in gateway.journal.wait_events(3))
    answer = chat(client, max_tokens=1)
    left = int(answer.headers["x-ratelimit-remaining-tokens"])
    assert 10_000 - used - 300 < left < 10_000 - used


def test_parallel_requests_count_streams_until_they_end(
    gateway: LimitedGateway, client: openai.OpenAI, engine: MockEngine
) -> None:
    gateway.set(ScopePolicy("endpoint", "ep_1", Limits(parallel_requests=1)))
    for _ in range(3):  # one after the other: the slot is free before the last byte is sent
        list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
    engine.default = Behaviour(tokens=20, chunk_delay=0.1)
    stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    with pytest.raises(openai.RateLimitError, match="1 calls are in flight"):
        chat(client)
    stream.close()
    engine.default = Behaviour()
    wait_until(lambda: len(gateway.journal.events) == 4)
    wait_until(lambda: chat(client).status_code == 200)


def test_limits_change_while_the_gateway_runs(gateway: LimitedGateway, client: openai.OpenAI) -> None:
    gateway.set(key_limits(requests_per_minute=1))
    chat(client)
    with pytest.raises(openai.RateLimitError):
        chat(client)
    gateway.set(key_limits(requests_per_minute=2))
    chat(client)
    with pytest.raises(openai.RateLimitError):
        chat(client)


# --- money ------------------------------------------------------------------------------------------


@pytest.mark.timing
def test_a_used_up_budget_is_insufficient_quota_and_nobody_retries(gateway: LimitedGateway) -> None:
    gateway.set(org_budget(0))
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=PROJECT_KEY, max_retries=5) as eager:
        began = time.monotonic()
        with pytest.raises(openai.APIStatusError) as caught:
            chat(eager)
        assert time.monotonic() - began < 1
    assert caught.value.status_code == 402
    assert caught.value.code == "insufficient_quota" and caught.value.type == "insufficient_quota"
    assert gateway.journal.events == []


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_call_cost_is_spent_to_the_pico_dollar(
    gateway: LimitedGateway, client: openai.OpenAI, stream: bool
) -> None:
    gateway.set(org_budget(10**13))
    for _ in range(2):
        answer = chat(client, stream=stream)
        if stream:
            list(answer.parse())
    cost = 0
    for event in gateway.journal.wait_events(2):
        billable = event.usage.billable()
        cost += sum(quantity * PRICES[sku] for sku, quantity in billable.items() if quantity)
    assert cost > 0
    wait_until(lambda: gateway.use("budget_1") == (cost, 0))


def test_an_unanswered_call_gives_its_reservation_back(
    gateway: LimitedGateway, client: openai.OpenAI
) -> None:
    gateway.set(org_budget(10**13))
    with pytest.raises(openai.APIStatusError):
        chat(client, model="nobody")
    gateway.journal.broken_append = True
    with pytest.raises(openai.APIStatusError):
        chat(client)
    assert gateway.use("budget_1") == (0, 0)


def test_a_crowd_never_overspends_a_budget(gateway: LimitedGateway, client: openai.OpenAI) -> None:
    amount = 60 * 2_000_000_000
    gateway.set(org_budget(amount))
    stop = threading.Event()
    highest = 0

    def watch() -> None:
        nonlocal highest
        while not stop.is_set():
            highest = max(highest, sum(gateway.use("budget_1")))
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()

    def one(_: int) -> int:
        try:
            return int(chat(client, max_tokens=200).status_code)
        except openai.APIStatusError as error:
            return error.status_code

    with ThreadPoolExecutor(32) as pool:
        statuses = list(pool.map(one, range(300)))
    stop.set()
    watcher.join()
    assert set(statuses) <= {200, 402, 429} and statuses.count(200) > 10
    spent, held = gateway.use("budget_1")
    assert spent <= amount and held == 0 and highest <= amount


def test_a_bound_that_the_engine_does_not_read_reserves_nothing_less(
    gateway: LimitedGateway, client: openai.OpenAI
) -> None:
    gateway.set(org_budget(10**10))  # 2,500 tokens of output
    prompt: dict[str, Any] = {"model": MODEL, "prompt": "Say hello."}
    assert client.completions.create(**prompt, max_tokens=2000).choices
    for more in ({"max_tokens": 5000}, {"max_tokens": 2000, "extra_body": {"best_of": 3}}):
        with pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(**prompt | {"extra_body": {"max_completion_tokens": 1}} | more)
        assert caught.value.status_code in (402, 429)
    with pytest.raises(openai.APIStatusError):
        client.completions.create(**prompt, max_tokens=5000, extra_body={"max_completion_tokens": 1})
    assert len(gateway.journal.events) == 1


def test_what_is_taken_away_in_mid_stream_refuses_the_next_call(
    gateway: LimitedGateway, engine: MockEngine, client: openai.OpenAI
) -> None:
    """The stated rule: the stream that was admitted goes on to its end and is billed."""
    gateway.set(org_budget(10**13))
    engine.default = Behaviour(tokens=100, chunk_delay=0.02)
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, max_tokens=200)
    next(answer)
    gateway.set(org_budget(0))
    gateway.directory.add_key(PROJECT_KEY, "revoked")
    gateway.directory.changed("key", "key_1")
    gateway.wait_for_changes()
    with pytest.raises(openai.AuthenticationError, match="revoked"):
        chat(client)
    assert not gateway.journal.events, "the stream still goes on"
    assert len(list(answer)) == 100
    [event] = gateway.journal.wait_events(1)
    assert (event.status, event.usage.output) == ("completed", 100)
    wait_until(lambda: gateway.use("budget_1")[0] > 0 and gateway.use("budget_1")[1] == 0)
    gateway.directory.add_key(PROJECT_KEY, Principal("project", "key_1", "org_1", "prj_1"))
    gateway.directory.changed("key", "key_1")
    gateway.wait_for_changes()
    with pytest.raises(openai.APIStatusError) as caught:
        chat(client)
    assert caught.value.code == "insufficient_quota"


def test_balances_on_record_count_and_are_not_counted_twice(
    gateway: LimitedGateway, client: openai.OpenAI
) -> None:
    gateway.set(org_budget(10**13))
    chat(client)
    spent, _ = gateway.use("budget_1")
    # On record: that call, and as much again for the endpoint's minutes.
    gateway.balances = [Balance("budget_1", 0, 2 * spent, 1, {"gateway-1": 1})]
    gateway.directory.changed("budget", "*")
    wait_until(lambda: gateway.use("budget_1") == (2 * spent, 0))
    chat(client)
    wait_until(lambda: gateway.use("budget_1") == (3 * spent, 0))


# --- trouble ----------------------------------------------------------------------------------------


def test_no_call_is_taken_before_limits_are_loaded(tmp_path: Path, engine: MockEngine) -> None:
    gateway = LimitedGateway(tmp_path, engine.url)
    gateway.sql_fails = True
    with gateway, openai.OpenAI(base_url=gateway.url + "/v1", api_key=PROJECT_KEY, max_retries=0) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            chat(client)
        assert caught.value.status_code == 503 and caught.value.response.headers["retry-after"] == "1"
        gateway.sql_fails = False
        wait_until(lambda: bool(gateway.gateway and gateway.gateway.limits.ready))
        assert chat(client).status_code == 200
