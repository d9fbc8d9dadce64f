"""The outbox and its sender on both databases, a real server at the other end; a foreign library checks signatures."""

import json
import time
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from standardwebhooks.webhooks import Webhook as Verifier

from access.sealer import Sealer
from core.clock import ManualClock
from core.database import Database
from functions.webhook_sender.handler import PER_WEBHOOK, WebhookSender
from metering.store import list_alarms
from tests.webhook_receiver import receiver
from webhooks.model import BUDGET_THRESHOLD, ENDPOINT_STATE, INVOICE_FINALIZED, Webhook
from webhooks.outbox import (
    CLAIM_MS,
    LOG_KEPT_MS,
    MESSAGES_KEPT_MS,
    SCHEDULE_S,
    Attempt,
    any_due,
    claim,
    enqueue_event,
    find_delivery,
    forget_old,
    list_attempts,
    list_deliveries,
    replay_message,
    replay_since,
    settle,
)
from webhooks.sign import new_secret, signature_headers
from webhooks.store import add_webhook, get_webhook, new_webhook_id, save_webhook

STATE = {
    "endpoint_id": "ep_1",
    "name": "my-chat",
    "kind": "serverless",
    "project_id": "proj_1",
    "model": "acme/chat",
    "state": "Online",
    "previous_state": None,
}


class Town:
    """Two organizations, a clock and a sender without jitter."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.clock = ManualClock(time.time_ns() // 1_000_000)
        self.sealer = Sealer(b"s" * 32)
        self.secrets: dict[str, str] = {}
        self.sender = WebhookSender(db, self.clock, self.sealer, allow_private=True, jitter=lambda: 0.0)

    def hook(self, url: str, *types: str, org_id: str = "org_1") -> Webhook:
        webhook_id, secret = new_webhook_id(self.clock.now_ms()), new_secret()
        self.secrets[webhook_id] = secret
        made = Webhook(
            webhook_id, org_id, url, "", types, True, "", self.sealer.seal(secret, webhook_id), "", 0, 0,
            self.clock.now_ms(),
        )  # fmt: skip
        with self.db.begin() as conn:
            add_webhook(conn, made)
        return made

    def tell(self, org_id: str = "org_1", **changes: Any) -> str:
        with self.db.begin() as conn:
            return enqueue_event(conn, org_id, ENDPOINT_STATE, "ep_1", STATE | changes, self.clock.now_ms())

    def state(self, hook: Webhook, message_id: str) -> tuple[str, int]:
        with self.db.read() as conn:
            found = find_delivery(conn, hook.id, message_id)
        assert found is not None
        return found.state, found.attempts

    def now(self, hook: Webhook) -> Webhook:
        with self.db.read() as conn:
            return get_webhook(conn, hook.id)


async def test_a_message_is_signed_a_cloudevent_and_delivered_once(db: Database) -> None:
    town = Town(db)
    with receiver(204) as server:
        hook = town.hook(server.url)
        message_id = town.tell()
        assert await town.sender.drain() == 1
        assert await town.sender.drain() == 0
    (got,) = server.got
    Verifier(town.secrets[hook.id]).verify(got.body, got.headers)
    assert got.headers["webhook-id"] == message_id
    assert got.headers["content-type"].startswith("application/cloudevents+json")
    event = json.loads(got.body)
    assert (event["id"], event["type"], event["specversion"], event["data"]) == (
        message_id,
        ENDPOINT_STATE,
        "1.0",
        STATE,
    )
    assert event["time"] and event["timestamp"].endswith("Z")
    assert town.state(hook, message_id) == ("delivered", 1)
    assert town.now(hook).last_success_ms > 0


async def test_who_wants_what_gets_it(db: Database) -> None:
    town = Town(db)
    with receiver() as server:
        town.hook(server.url, INVOICE_FINALIZED)
        town.hook(server.url, org_id="org_2")
        wanting = town.hook(server.url, ENDPOINT_STATE, BUDGET_THRESHOLD)
        town.tell()
        await town.sender.drain()
    assert len(server.got) == 1
    Verifier(town.secrets[wanting.id]).verify(server.got[0].body, server.got[0].headers)


def test_a_message_is_there_exactly_when_its_cause_is(db: Database) -> None:
    town = Town(db)
    town.hook("http://127.0.0.1:1")
    now_ms = town.clock.now_ms()
    with db.engine.connect() as conn, conn.begin() as transaction:
        enqueue_event(conn, "org_1", ENDPOINT_STATE, "ep_1", STATE, now_ms)
        assert any_due(conn, now_ms)
        transaction.rollback()
    with db.read() as conn:
        assert not any_due(conn, now_ms)
        with pytest.raises(msgspec.ValidationError):
            enqueue_event(conn, "org_1", ENDPOINT_STATE, "ep_1", {"state": 1}, now_ms)


async def test_failures_are_tried_again_for_three_days_and_then_disable(db: Database) -> None:
    town = Town(db)
    with receiver(500) as server:
        hook = town.hook(server.url)
        message_id = town.tell()
        waited = 0
        for number, wait_s in enumerate(SCHEDULE_S):
            if wait_s:
                town.clock.advance(wait_s * 1000 - 1)
                assert await town.sender.drain() == 0
                town.clock.advance(1)
            waited += wait_s
            assert town.now(hook).enabled
            assert await town.sender.drain() == 1, number
    assert 3 * 86_400 < waited < 4 * 86_400
    assert len({got.headers["webhook-id"] for got in server.got}) == 1
    assert len({got.headers["webhook-timestamp"] for got in server.got}) == len(SCHEDULE_S)
    assert town.state(hook, message_id) == ("failed", 10)
    disabled = town.now(hook)
    assert not disabled.enabled and "accepted nothing" in disabled.disabled_reason
    with db.read() as conn:
        assert [(alarm.kind, alarm.source) for alarm in list_alarms(conn)] == [("webhook_disabled", hook.id)]
        log = list_attempts(conn, hook.id, message_id)
    assert len(log) == 10 and all(each.status == 500 for each in log)
    # What happens meanwhile is not queued, and can be replayed once it is enabled again.
    town.clock.advance(60_000)
    missed = town.tell(state="Suspended")
    with receiver(200) as server, db.begin() as conn:
        back = replace(disabled, url=server.url, enabled=True)
        save_webhook(conn, back)
        assert replay_since(conn, back, 0, town.clock.now_ms()) == 2
        assert replay_since(conn, back, 0, town.clock.now_ms()) == 0  # they are pending already
    with receiver(200) as server:
        with db.begin() as conn:
            save_webhook(conn, replace(back, url=server.url))
        assert await town.sender.drain() == 2
    assert town.state(hook, message_id)[0] == town.state(hook, missed)[0] == "delivered"


async def test_an_endpoint_that_takes_others_is_not_disabled(db: Database) -> None:
    town = Town(db)
    with receiver(500) as server:
        hook = town.hook(server.url)
        bad = town.tell()
        for wait_s in SCHEDULE_S[:-1]:
            town.clock.advance(wait_s * 1000)
            await town.sender.drain()
        server.statuses = [200, 500]
        town.clock.advance(1)
        town.tell(state="Suspended")
        await town.sender.drain()
        town.clock.advance(SCHEDULE_S[-1] * 1000)
        await town.sender.drain()
    assert town.state(hook, bad)[0] == "failed"
    assert town.now(hook).enabled


async def test_gone_disables_at_once_and_retry_after_is_heeded(db: Database) -> None:
    town = Town(db)
    with receiver(429, 204, Retry_After="3600") as server:
        hook = town.hook(server.url)
        message_id = town.tell()
        await town.sender.drain()
        town.clock.advance(3_599_000)
        assert await town.sender.drain() == 0
        town.clock.advance(1_000)
        assert await town.sender.drain() == 1
        assert town.state(hook, message_id) == ("delivered", 2)
        server.statuses = [410]
        gone = town.tell()
        await town.sender.drain()
    assert town.state(hook, gone) == ("failed", 1)
    assert "410" in town.now(hook).disabled_reason


async def test_redirects_are_not_followed_and_silence_is_a_failure(db: Database) -> None:
    town = Town(db)
    with receiver() as inner, receiver(302, Location=inner.url) as server:
        hook = town.hook(server.url)
        dead = town.hook("http://127.0.0.1:9/")
        message_id = town.tell()
        await town.sender.drain()
        assert (len(server.got), len(inner.got)) == (1, 0)
    assert town.state(hook, message_id) == ("pending", 1)
    with db.read() as conn:
        (failed,) = list_deliveries(conn, dead.id, limit=10)
    assert failed.last_status == 0 and failed.last_error


async def test_private_addresses_are_not_called_however_they_are_written(db: Database) -> None:
    town = Town(db)
    strict = WebhookSender(db, town.clock, town.sealer, allow_private=False)
    with receiver() as server:
        port = server.url.split(":")[2].split("/")[0]
        hosts = ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]")
        hooks = [town.hook(f"http://{host}:{port}/") for host in hosts]
        town.tell()
        await strict.drain()
        assert server.got == []
    for hook in hooks:
        with db.read() as conn:
            (found,) = list_deliveries(conn, hook.id, limit=1)
        assert found.last_error and found.last_status == 0, hook.url


async def test_after_a_rotation_both_secrets_sign_for_a_while(db: Database) -> None:
    town = Town(db)
    with receiver() as server:
        hook = town.hook(server.url)
        fresh = new_secret()
        with db.begin() as conn:
            rotated = replace(
                hook,
                secret_sealed=town.sealer.seal(fresh, hook.id),
                previous_sealed=hook.secret_sealed,
                previous_until_ms=town.clock.now_ms() + 1000,
            )
            save_webhook(conn, rotated)
        town.tell()
        await town.sender.drain()
        town.clock.advance(1000)
        town.tell()
        await town.sender.drain()
    first, second = server.got
    for secret in (fresh, town.secrets[hook.id]):
        Verifier(secret).verify(first.body, first.headers)
    Verifier(fresh).verify(second.body, second.headers)
    assert " " not in second.headers["webhook-signature"]


def test_a_claim_is_exclusive_ends_and_yields_to_a_replay(db: Database) -> None:
    town = Town(db)
    hook = town.hook("http://127.0.0.1:1")
    message_id = town.tell()
    now_ms = town.clock.now_ms()
    with db.begin() as conn:
        (mine,) = claim(conn, now_ms, 10, PER_WEBHOOK)
    with db.begin() as conn:
        assert claim(conn, now_ms + CLAIM_MS - 1, 10, PER_WEBHOOK) == []
        (again,) = claim(conn, now_ms + CLAIM_MS, 10, PER_WEBHOOK)  # the sender died
        assert (again.message_id, again.attempts) == (message_id, 0)
        replay_message(conn, hook, message_id, now_ms)
        settle(conn, mine, Attempt(now_ms, 5, 500, "late"), 0, now_ms)
    assert town.state(hook, message_id) == ("pending", 0)


def test_one_slow_endpoint_leaves_room_for_others(db: Database) -> None:
    town = Town(db)
    slow, other = town.hook("http://127.0.0.1:1"), town.hook("http://127.0.0.1:1", org_id="org_2")
    for _ in range(50):
        town.tell()
    town.tell("org_2")
    now_ms = town.clock.now_ms()
    with db.begin() as conn:
        taken = [each.webhook.id for each in claim(conn, now_ms, 32, PER_WEBHOOK)]
        assert taken.count(slow.id) == PER_WEBHOOK
        rest = claim(conn, now_ms, 32, PER_WEBHOOK, {slow.id: PER_WEBHOOK})
    assert [*taken, *(each.webhook.id for each in rest)].count(other.id) == 1


def test_the_log_and_old_messages_are_forgotten(db: Database) -> None:
    town = Town(db)
    hook = town.hook("http://127.0.0.1:1")
    message_id = town.tell()
    now_ms = town.clock.now_ms()
    with db.begin() as conn:
        (mine,) = claim(conn, now_ms, 10, PER_WEBHOOK)
        settle(conn, mine, Attempt(now_ms, 5, 204, ""), 0, now_ms)
        assert forget_old(conn, now_ms + LOG_KEPT_MS) == 0
        assert len(list_attempts(conn, hook.id, message_id)) == 1
        forget_old(conn, now_ms + LOG_KEPT_MS + 1)
        assert list_attempts(conn, hook.id, message_id) == []
        assert forget_old(conn, now_ms + MESSAGES_KEPT_MS + 1) == 1
        assert find_delivery(conn, hook.id, message_id) is None


def test_signatures_are_what_the_specification_says() -> None:
    now_s = int(time.time())
    secret = new_secret()
    headers = signature_headers([secret], "msg_1", now_s, b'{"a":1}')
    Verifier(secret).verify(b'{"a":1}', headers)
    with pytest.raises(Exception, match="signature"):
        Verifier(secret).verify(b'{"a":2}', headers)
