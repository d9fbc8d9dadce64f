"""`farebox invoice`, `credit`, `credit-note`, `contract`, `billing-profile`, `export` on a real console."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from billing.invoicing.run import run_invoicer
from billing.tables import ledger_postings
from core.clock import MINUTE_MS, iso, month_bounds
from tests.api.console_cli import RunCommand, cli_of
from tests.api.console_platform import ConsolePlatform, open_platform
from tests.api.test_console_invoices import a_month


@pytest.fixture
def console(tmp_path: Path) -> ConsolePlatform:
    console = open_platform(tmp_path)
    console.add_model()
    console.project()
    return console


def read(result: Result) -> Any:
    """What a command printed: JSON, for nobody looks at it."""
    return json.loads(result.stdout)


def test_a_month_from_contract_to_proof(
    console: ConsolePlatform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    month = iso(console.clock.now_ms())[:7]
    with cli_of(console, monkeypatch) as cli:
        made = read(cli("contract", "create", "--org", "acme", "--starts", month, "--discount", "10"))
        assert made["id"] in cli("contract", "list", "-o", "table").stdout
        cli(
            "billing-profile",
            "set",
            "acme",
            "--name",
            "Acme 東京 Ltd",
            "--address",
            "1 Road\\nTown",
            "--due-days",
            "7",
        )
        assert "Acme 東京 Ltd" in cli("billing-profile", "show", "acme", "-o", "table").stdout
        said = cli("billing-profile", "set", "acme", code=2).stderr
        assert "name something to change" in said
        assert "did you mean" in cli("credit", "list", "--org", "acne", code=1).stderr
        gift = read(
            cli("credit", "grant", "--org", "acme", "--amount", "1.25", "--sku", "output", "--note", "hi")
        )
        cli("credit", "grant", "--org", "acme", "--amount", "1", "--expires", "2020-01-01", code=1)
        a_month(console)
        shown = cli("credit", "balance", "--org", "acme", "-o", "table").stdout
        assert "reserved_usd     1.25" in shown and gift["id"] in shown
        preview = tmp_path / "preview.html"
        cli("invoice", "preview", "--org", "acme", "--period", month, "-f", str(preview))
        page = preview.read_text(encoding="utf-8")
        assert "Acme 東京 Ltd" in page and ">PREVIEW<" in page and "5.40" in page
        refused = cli("export", "focus", "--org", "acme", "--period", month, code=1).stderr
        assert "no final invoice" in refused
        run_invoicer(console.db, console.app.state.dependencies.issuer, console.clock.now_ms())
        [invoice] = read(cli("invoice", "list", "--org", "acme"))["data"]
        number = invoice["number"]
        assert (invoice["total_usd"], invoice["due_usd"]) == ("5.40", "4.15")
        assert number in cli("invoice", "list", "-o", "table").stdout
        text = cli("invoice", "show", number, "-o", "table").stdout
        assert "Acme 東京 Ltd" in text and "10 % discount" in text and "4.15" in text
        _documents(cli, number, tmp_path)
        _drill(cli, number)
        proved = cli("invoice", "verify", number, "-o", "table")
        assert "proved" in proved.stdout
        note = read(cli("credit-note", "create", number, "--amount", "0.15", "--reason", "sorry"))
        assert note["number"] in cli("credit-note", "list", "-o", "table").stdout
        assert read(cli("credit-note", "show", note["number"])) == note
        assert (
            "amount or --line"
            in cli(
                "credit-note", "create", number, "--amount", "1", "--line", "1", "--reason", "x", code=2
            ).stderr
        )
        paid = read(cli("invoice", "pay", number, "--reference", "bank 1", "--amount", "4.00"))
        assert paid["state"] == "paid"
        assert "paid already" in cli("invoice", "pay", number, "--reference", "again", code=1).stderr
        assert read(cli("contract", "end", made["id"], "--ends", "2031-01"))["ends"] == "2031-01"
        _focus(cli, number, month, tmp_path)


def _documents(cli: RunCommand, number: str, folder: Path) -> None:
    pdf = folder / "invoice.pdf"
    cli("invoice", "document", number, "-f", str(pdf))
    assert pdf.read_bytes().startswith(b"%PDF-")
    assert number in cli("invoice", "document", number, "--format", "html").stdout
    assert cli("invoice", "document", number, "--format", "csv").stdout.count(number) == 3  # lines
    whole = json.loads(cli("invoice", "document", number, "--format", "json").stdout)
    assert len(whole["lines"]) == 3 and whole["number"] == number


def _drill(cli: RunCommand, number: str) -> None:
    lines = read(cli("invoice", "lines", number))["data"]
    line = next(each for each in lines if each["sku"] == "output")
    minutes = read(cli("invoice", "lines", number, "--line", str(line["line"]), "--limit", "2"))
    assert minutes["next"] and minutes["line_quantity"] == line["quantity"]
    minute = minutes["data"][0]["id"]
    shown = cli("invoice", "lines", number, "--line", str(line["line"]), "--minute", minute, "-o", "table")
    assert "req_" in shown.stdout and "The minute:" in shown.stderr
    assert "--minute needs --line" in cli("invoice", "lines", number, "--minute", minute, code=2).stderr


def _focus(cli: RunCommand, number: str, month: str, folder: Path) -> None:
    path = folder / "focus.csv"
    cli("export", "focus", "--org", "acme", "--period", month, "-f", str(path))
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    assert {row["InvoiceId"] for row in rows} == {
        number
    }  # the credit note is of the month in which it was made
    assert sum(round(float(row["BilledCost"]) * 100) for row in rows) == 415
    assert {row["ChargeCategory"] for row in rows} == {"Usage", "Credit"}


def test_voiding_asks_and_the_draft_waits(console: ConsolePlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    period = a_month(console)
    with cli_of(console, monkeypatch) as cli:
        [draft] = read(cli("invoice", "create", "--org", "acme", "--period", period, "--draft"))["data"]
        final = read(cli("invoice", "finalize", draft["id"]))
        assert "not void, as you said" in cli("invoice", "void", final["number"], code=2, stdin="n\n").stderr
        gone = cli("invoice", "void", final["number"], "--yes", "-o", "json")
        assert json.loads(gone.stdout)["state"] == "void"
        assert f"invoice create --org {final['organization_id']} --period {period}" in gone.stderr
        credit = read(cli("credit", "grant", "--org", "acme", "--amount", "3", "--prepaid", "--raise-budget"))
        assert credit["budget_id"].startswith("budget_")
        assert "not taken back" in cli("credit", "void", credit["id"], code=2, stdin="n\n").stderr
        assert "Took back" in cli("credit", "void", credit["id"], "--yes", "-o", "table").stdout


def test_a_forged_ledger_makes_verify_fail(console: ConsolePlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    period = a_month(console)
    with cli_of(console, monkeypatch) as cli:
        [invoice] = read(cli("invoice", "create", "--org", "acme", "--period", period))["data"]
        with console.db.begin() as connection:
            connection.execute(
                ledger_postings.update().where(ledger_postings.c.sku == "output").values(quantity=1)
            )
        failed = cli("invoice", "verify", invoice["number"], "-o", "table", code=1)
        assert "NOT proved" in failed.stderr
        assert "the raw events" in failed.stdout


def test_the_current_month_is_not_invoiced(console: ConsolePlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    console.clock.advance(MINUTE_MS)
    month = iso(month_bounds(console.clock.now_ms())[0])[:7]
    with cli_of(console, monkeypatch) as cli:
        assert (
            "is not over yet" in cli("invoice", "create", "--org", "acme", "--period", month, code=1).stderr
        )
        assert "is not over yet" in cli("export", "focus", "--org", "acme", "--period", month, code=1).stderr
