"""`make run`: from the catalog to an invoice on this machine, then go on serving.

A user's first minutes, so it does what a user would: through the HTTP API and the official OpenAI client.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import farebox
from rich.console import Console

from core.errors import FareboxError
from core.settings import Settings, load_settings
from functions import demo_report as report
from functions.demo_setup import ensure_engine_and_model, running_platform
from functions.hand_calculation import Sum, minute_sum, token_sums

if TYPE_CHECKING:
    from openai.types import CompletionUsage

ORGANIZATION, PROJECT, ENDPOINT, MODEL = "demo", "demo", "sample-chat", "farebox/sample-chat"
QUESTION = "What is Farebox?"
_RECEIPTS_SHOWN_AT_MOST = 100_000


def main(argv: Sequence[str]) -> int:
    """Exit status 0 when the preview equals the hand calculation, 1 when it does not or a step failed."""
    parser = argparse.ArgumentParser(prog="farebox demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the invoice preview")
    parser.add_argument("--port", type=int, help="port to listen on (default: 8080)")
    arguments = parser.parse_args(argv)
    console = Console(highlight=False)
    # A closed terminal or a `kill` must stop the children as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return _run(console, load_settings(os.environ, port=arguments.port), once=arguments.once)
    except (FareboxError, farebox.FareboxAPIError) as error:
        console.print(f"[red]{error}[/red]")
        return 1
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _run(console: Console, settings: Settings, *, once: bool) -> int:
    ensure_engine_and_model(console, settings)
    with running_platform(console, settings) as platform:
        with farebox.Client(platform.url, platform.admin_key) as client:
            key = _ensure_customer(console, client, settings)
            matches = _call_and_bill(console, client, platform.url, key)
        if once or not matches:
            return 0 if matches else 1
        report.how_to_go_on(console, platform.url, key, ENDPOINT)
        try:
            return platform.wait()
        except KeyboardInterrupt:  # the asked-for end, so no failure
            console.print("\nStopping.")
            return 0


def _ensure_customer(console: Console, client: farebox.Client, settings: Settings) -> str:
    """An organization, a project, a key and an endpoint; found again on a second run. Returns the key."""
    if ORGANIZATION not in {row["name"] for row in client.organizations.list()}:
        client.organizations.create(ORGANIZATION)
    mine = [row for row in client.projects.list() if row["organization"] == ORGANIZATION]
    if PROJECT not in {row["name"] for row in mine}:
        client.projects.create(PROJECT, organization=ORGANIZATION)
    key = _ensure_key(client, settings.home / "demo.key")
    if ENDPOINT not in {row["name"] for row in client.serverless_endpoints.list()}:
        client.serverless_endpoints.create(ENDPOINT, model=MODEL, project=f"{ORGANIZATION}/{PROJECT}")
    console.print(
        f"Organization [b]{ORGANIZATION}[/b], project [b]{PROJECT}[/b], endpoint [b]{ENDPOINT}[/b] on {MODEL}"
    )
    return key


def _ensure_key(client: farebox.Client, path: Path) -> str:
    """The server keeps only a key's hash, so this caller keeps its own copy, as any caller would."""
    project = f"{ORGANIZATION}/{PROJECT}"
    if path.exists():
        key = path.read_text().strip()
        living = {row["hint"] for row in client.keys.list(project=project) if not row.get("revoked_at")}
        if any(key.endswith(hint.lstrip(".…")) for hint in living if hint):
            return key
        path.unlink()
    key = client.keys.create(project=project, name="make run")["key"]
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key + "\n")
    return key


def _call_and_bill(console: Console, client: farebox.Client, url: str, key: str) -> bool:
    request_id, usage = _ask(console, url, key)
    receipt = client.receipts.get(request_id)
    preview = client.invoices.preview(ORGANIZATION)
    prices = _prices(client)
    report.call(console, receipt, usage, prices[receipt["model"]])
    sums = _by_hand(client, preview, prices)
    return report.invoice(console, preview, sums)


def _ask(console: Console, url: str, key: str) -> "tuple[str, CompletionUsage]":
    """One streamed chat call with the official client; returns its request id and what the engine counted."""
    import openai

    console.print(f"\n[b]You[/b]      {QUESTION}")
    usage = None
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=900) as ai:
        with report.waiting(console, "the first call starts the model server") as started:
            raw = ai.chat.completions.with_raw_response.create(
                model=ENDPOINT,
                messages=[{"role": "user", "content": QUESTION}],
                max_tokens=48,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
            stream = iter(raw.parse())
            first = next(stream)
            started()
        console.print("[b]Farebox[/b]  ", end="")
        for chunk in _chain(first, stream):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                console.print(choice.delta.content or "", end="", markup=False, soft_wrap=True)
        console.print()
    if usage is None:
        raise FareboxError("the stream ended without the usage it was asked for")
    return raw.headers["x-request-id"], usage


def _chain(first: Any, rest: Any) -> Any:
    yield first
    yield from rest


def _prices(client: farebox.Client) -> dict[str, dict[str, str]]:
    return {row["id"]: row["prices"] for row in client.models.list()}


def _by_hand(client: farebox.Client, preview: Any, prices: dict[str, dict[str, str]]) -> list[Sum]:
    receipts = []
    for receipt in client.receipts.iterate(organization=ORGANIZATION, start=preview["period_start"]):
        receipts.append(receipt)
        if len(receipts) > _RECEIPTS_SHOWN_AT_MOST:
            raise FareboxError("too many calls to add up by hand; use `farebox invoice preview`")
    sums = token_sums(receipts, prices)
    mine = [
        e
        for e in client.serverless_endpoints.list()
        if e["organization_id"] == receipts[0]["organization_id"]
    ]
    living = {endpoint["name"] for endpoint in mine}
    for endpoint in mine:
        per_minute = prices[endpoint["model"]].get("endpoint_minute", "0")
        sums.append(minute_sum(endpoint, preview["period_start"], preview["as_of"], per_minute))
    for line in preview[
        "lines"
    ]:  # endpoints deleted since: their life is no longer listed, so as the preview says
        if line["sku"] == "endpoint_minute" and line["endpoint"] not in living:
            sums.append(
                Sum("endpoint_minute", line["endpoint"], line["quantity"], Decimal(line["unit_price_usd"]))
            )
    return sums


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
