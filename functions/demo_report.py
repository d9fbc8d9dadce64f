"""What `make run` prints: tables a person can check."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table

from functions.hand_calculation import Sum, total_exact, total_rounded


@contextmanager
def waiting(console: Console, text: str) -> Iterator[Callable[[], None]]:
    """A spinner with seconds until the yielded callable is called (a plain line where there is no terminal)."""
    began = time.monotonic()
    status = console.status(text)
    if console.is_terminal:
        status.start()
    else:
        console.print(f"  … {text}")

    def _done() -> None:
        status.stop()
        console.print(f"  {text}: first byte after {time.monotonic() - began:.1f} s")

    try:
        yield _done
    finally:
        status.stop()


def call(console: Console, receipt: Mapping[str, Any], usage: Any, prices: Mapping[str, str]) -> None:
    """The call's tokens as the client saw them and as the receipt bills them."""
    table = Table(title=f"\nReceipt {receipt['request_id']}", title_justify="left")
    for heading in ("", "tokens", "US$ per million", "US$"):
        table.add_column(heading, justify="left" if not heading else "right")
    for sku, quantity in receipt["billed"].items():
        if sku not in prices:  # what this kind of model is not billed by
            continue
        exact = quantity * Decimal(prices[sku]) / 1_000_000
        table.add_row(sku, str(quantity), prices[sku], f"{exact.normalize():f}")
    table.add_row(
        "[b]cost[/b]", str(usage.total_tokens), "", f"[b]{receipt['cost_usd']}[/b]", end_section=True
    )
    console.print(table)
    console.print(
        f"  the client was told: {usage.prompt_tokens} prompt + {usage.completion_tokens} completion tokens"
        f"\n  status: {receipt['status']}, counted by: {receipt['usage_source']}"
    )


def invoice(console: Console, preview: Mapping[str, Any], sums: Sequence[Sum]) -> bool:
    """The preview and the hand calculation side by side; True when the totals agree to the last digit."""
    by_hand = {(s.sku, s.what): s for s in sums}
    table = Table(title=f"\nInvoice preview, {preview['period_start'][:7]}", title_justify="left")
    for heading in ("line", "quantity", "US$ exact", "US$", "by hand"):
        table.add_column(heading, justify="left" if heading == "line" else "right", no_wrap=True)
    for line in preview["lines"]:
        what = line.get("model") or line.get("endpoint") or ""
        mine = by_hand.get((line["sku"], what))
        table.add_row(
            f"{line['sku']}\n{what}",
            str(line["quantity"]),
            line["amount_usd"],
            line["rounded_usd"],
            f"{mine.quantity} × {mine.unit_usd.normalize():f}\n= {mine.amount_usd.normalize():f}"
            if mine
            else "missing",
            end_section=True,
        )
    exact, rounded = total_exact(sums), total_rounded(sums)
    table.add_row(
        "[b]total[/b]", "", f"[b]{preview['total_exact_usd']}[/b]", f"[b]{preview['total_usd']}[/b]",
        f"[b]= {exact.normalize():f}[/b]",
    )  # fmt: skip
    console.print(table)
    matches = Decimal(preview["total_exact_usd"]) == exact and Decimal(preview["total_usd"]) == rounded
    if matches:
        console.print(f"[green]The preview equals the hand calculation: US$ {exact.normalize():f}[/green]")
    else:
        console.print(
            f"[red]The preview differs from the hand calculation: {exact} exact, {rounded} rounded[/red]"
        )
    return matches


def how_to_go_on(console: Console, url: str, key: str, model: str) -> None:
    """A call to copy, and where the documents are."""
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    console.print("\nCall it yourself:\n")
    console.print(
        f"curl {url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\\n"
        f"  -H 'Content-Type: application/json' -d '{body}'\n",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"API documents   {url}/docs (calls)   {url}/api/docs (management)", soft_wrap=True)
    console.print("Command line    .venv/bin/farebox --help")
    console.print("\nServing until Ctrl-C.")
