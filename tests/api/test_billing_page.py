"""docs/billing.md runs as printed: its blocks, in order, in one shell, while the test moves the platform's clock."""

import csv
import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests import platform as platforms
from tests.mock_engine import Behaviour, MockEngine
from tests.stripe_double import SECRET, StripeDouble, serving
from tests.webhook_receiver import Receiver, receiver

PAGE = platforms.ROOT / "docs" / "billing.md"
STEPS = re.compile(r"^```sh\n(.*?)^```|^<!-- test: (.*?) -->$", re.MULTILINE | re.DOTALL)
HOURS_BEFORE = 2  # the page begins this long before a month ends

pytestmark = pytest.mark.timeout(420)


def ahead_s(path: Path) -> float:
    """How far the platform's clock is ahead."""
    return float(struct.unpack("<q", path.read_bytes())[0] / 1e9)


def set_ahead(path: Path, seconds: float) -> None:
    """Written in place: the platform's processes have the file mapped."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(struct.pack("<q", int(seconds * 1e9)))


def next_month(at: datetime) -> datetime:
    """The first instant of the month after."""
    first = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)


@dataclass(frozen=True, slots=True)
class Ran:
    """What is left after the page was run."""

    platform: platforms.Platform
    folder: Path
    printed: str
    hooks: Receiver
    engine: MockEngine
    stripe: StripeDouble


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("page")
    clock = folder / "ahead"
    now = datetime.now(UTC)
    set_ahead(clock, (next_month(now) - timedelta(hours=HOURS_BEFORE) - now).total_seconds())
    settings = {
        "FAREBOX_TWO_PERSON_PRICES": "1",
        "FAREBOX_WEBHOOK_ALLOW_PRIVATE": "1",
        "FAREBOX_MINUTE_LATENESS_S": "5",
        "FAREBOX_STRIPE_API_KEY": "sk_test_double",
        "FAREBOX_STRIPE_WEBHOOK_SECRET": SECRET,
        "FAREBOX_INVOICE_ISSUER": "Farebox of the page",
        "TEST_CLOCK_AHEAD": str(clock),
        "PYTHONPATH": f"{platforms.ROOT / 'tests' / 'set_clock'}:{os.environ.get('PYTHONPATH', '')}",
    }
    stripe = StripeDouble(now_s=lambda: int(time.time() + ahead_s(clock)))
    with (
        MockEngine() as engine,
        receiver() as hooks,
        serving(stripe) as address,
        platforms.running(folder / "home", FAREBOX_STRIPE_API_BASE=address, **settings) as platform,
        _told(stripe, platform.url),
    ):
        engine.default = Behaviour(tokens=200, prompt_tokens=10_000, cached_tokens=2_000)
        script = "\n".join([_prelude(clock), *_steps()])
        for printed, real in (
            ("http://127.0.0.1:9100", engine.url),
            ("http://127.0.0.1:9200/hooks", hooks.url),
        ):
            assert printed in script
            script = script.replace(printed, real)
        environ = platform.environ | {
            "FAREBOX_URL": platform.url,
            "STRIPE": address,
            "FAREBOX_HOME": str(platform.home),
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "PATH": f"{platforms.FAREBOX.parent}:{os.environ['PATH']}",
        }
        run = subprocess.run(
            ["bash", "-c", script], cwd=folder, env=environ, capture_output=True, text=True, timeout=220
        )
        (folder / "printed").write_text(run.stdout + run.stderr)
        assert run.returncode == 0, run.stdout[-4000:] + run.stderr
        yield Ran(platform, folder, run.stdout, hooks, engine, stripe)


@contextmanager
def _told(stripe: StripeDouble, url: str) -> Iterator[None]:
    """Meanwhile Stripe's webhooks are delivered to the platform."""
    end = threading.Event()

    def deliver() -> None:
        while not end.wait(0.1):
            while stripe.pending:
                body, signature = stripe.signed(stripe.pending.pop(0), at_s=stripe.now_s())
                headers = {"Stripe-Signature": signature, "Content-Type": "application/json"}
                request = urllib.request.Request(url + "/api/stripe/webhook", body, headers)
                urllib.request.urlopen(request, timeout=10).close()

    thread = threading.Thread(target=deliver, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(15)


def _steps() -> list[str]:
    return [block or hidden for block, hidden in STEPS.findall(PAGE.read_text())]


def _prelude(clock: Path) -> str:
    """Two commands for the test's own steps, which a reader does not see."""
    me = f"PYTHONPATH={platforms.ROOT} {sys.executable} -m tests.api.test_billing_page {clock}"
    return f'set -euo pipefail\nahead() {{ {me} "$1"; }}\nnext-month() {{ {me} next-month; }}\n'


def _json(ran: Ran, *command: str) -> Any:
    return json.loads(ran.platform.cli(*command, "-o", "json").stdout)


def test_the_page_runs_as_printed(ran: Ran) -> None:
    printed = ran.printed
    assert "not with the key that proposed it" in printed
    assert '"proved": true' in printed, "farebox invoice verify"


def test_reconcile_is_clean_from_the_engine_to_the_invoice(ran: Ran) -> None:
    answer = _json(ran, "reconcile")
    assert answer["unexplained"] == 0
    calls = len(ran.engine.seen)
    [figures] = [hour["figures"]["output"] for hour in answer["data"] if "output" in hour["figures"]]
    assert [figures[each] for each in ("engine", "events", "ledger", "invoice")] == [200 * calls] * 4


def test_the_budget_stopped_the_key_and_told_the_webhook(ran: Ran) -> None:
    statuses = re.findall(r"^(200|402)$", ran.printed, re.MULTILINE)
    assert len(statuses) == 6 and statuses[-1] == "402" and statuses == sorted(statuses)
    told = [json.loads(got.body) for got in ran.hooks.got]
    percents = [each["data"]["threshold_percent"] for each in told if "budget" in each["type"]]
    assert sorted(percents) == [50, 80, 100]
    assert any("invoice.finalized" in each["type"] for each in told)


def test_the_invoice_is_what_was_used_less_tiers_and_credit(ran: Ran) -> None:
    [invoice] = _json(ran, "invoice", "list", "--org", "acme")["data"]
    assert (invoice["state"], invoice["open_usd"]) == ("paid", "0.00")
    lines = _json(ran, "invoice", "show", invoice["number"])["lines"]
    calls = len(ran.engine.seen)
    quantities: dict[str, int] = {}
    for line in lines:
        if line["kind"] == "charge":
            quantities[line["sku"]] = quantities.get(line["sku"], 0) + line["quantity"]
    assert quantities["output"] == 200 * calls
    assert quantities["input"] == 8_000 * calls and quantities["cached_input"] == 2_000 * calls
    prices = {line["price_per_million_usd"] for line in lines if line["sku"] == "output" and line["quantity"]}
    assert len(prices) == 2, "before and after the change"
    assert _sum(lines, "terms") < 0 and _sum(lines, "credit") == Decimal("-0.60")
    assert invoice["credit_usd"] == "0.60"


def test_stripe_has_the_invoice_to_the_cent(ran: Ran) -> None:
    [invoice] = _json(ran, "invoice", "list", "--org", "acme")["data"]
    [there] = ran.stripe.invoices.values()
    assert there["id"] == invoice["provider_id"] and there["status"] == "paid"
    assert there["total"] == Decimal(invoice["due_usd"]) * 100
    [checked] = _json(ran, "reconcile")["invoices"]
    assert checked["verdict"] == "equal" and checked["provider"]


def test_the_files(ran: Ran) -> None:
    [invoice] = _json(ran, "invoice", "list", "--org", "acme")["data"]
    assert (ran.folder / "invoice.pdf").read_bytes().startswith(b"%PDF-")
    assert invoice["number"] in (ran.folder / "invoice.html").read_text()
    rows = list(csv.DictReader((ran.folder / "focus.csv").read_text().splitlines()))
    billed = sum(
        (Decimal(row["BilledCost"]) for row in rows if row["InvoiceId"] == invoice["number"]), Decimal(0)
    )
    assert billed == Decimal(invoice["due_usd"])


def _sum(lines: list[dict[str, Any]], kind: str) -> Decimal:
    return sum((Decimal(line["rounded_usd"]) for line in lines if line["kind"] == kind), Decimal(0))


def _main(path: Path, to: str) -> None:
    """`ahead SECONDS` more, or to a minute after the month's end."""
    before = ahead_s(path)
    if to == "next-month":
        now = datetime.now(UTC) + timedelta(seconds=before)
        set_ahead(path, before + (next_month(now) - now).total_seconds() + 90)
    else:
        set_ahead(path, before + float(to))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
