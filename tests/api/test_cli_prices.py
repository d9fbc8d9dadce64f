"""`farebox price` on a real console: from a proposal to the version, and what it would have cost."""

import json
from pathlib import Path

import pytest

from tests.api.console_cli import cli_of
from tests.api.console_platform import open_platform

MODEL = "acme/mock-chat"
TIERS = """\
model: acme/mock-chat
organization: acme
prices: {output: "0.40"}
terms:
  input: {included: 1000}
  output: {scheme: graduated, tiers: [{up_to: 1000000, price: "0.40"}, {price: "0.20"}]}
note: from the file
"""


def test_a_price_from_proposal_to_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    platform = open_platform(tmp_path)
    platform.add_model()
    platform.project()
    file = tmp_path / "tiers.yaml"
    file.write_text(TIERS)
    with cli_of(platform, monkeypatch) as cli:
        maria = json.loads(cli("key", "create", "--admin", "--name", "maria", "-o", "json").stdout)["key"]
        made = json.loads(cli("price", "propose", "-f", str(file), "-o", "json").stdout)
        assert made["terms"]["input"] == {"scheme": "per_unit", "included": 1000}
        assert "from the file" in cli("price", "list", "--state", "proposed", "-o", "table").stdout
        assert "0.4" in cli("price", "show", made["id"], "-o", "tsv").stdout
        tried = cli("price", "dry-run", made["id"], "--period", "2026-11", "-o", "table")
        assert "0.00 USD" in tried.stderr
        other = cli("price", "dry-run", "--model", MODEL, "--set", "output=1", "--only", "acme", "-o", "json")
        assert json.loads(other.stdout)["organizations"][0]["organization"] == "acme"

        refused = cli("price", "approve", made["id"], code=4)
        assert "another person" in refused.stderr
        assert "approved" in cli("price", "approve", made["id"], "--note", "ok", key=maria).stdout
        assert "graduated" in cli("price", "own", "acme", "-o", "table").stdout

        gone = json.loads(cli("price", "propose", "--model", MODEL, "--set", "input=9", "-o", "json").stdout)
        assert "withdrawn" in cli("price", "reject", gone["id"]).stdout
        assert (
            "did you mean"
            in cli("price", "propose", "--model", "acme/mock-chta", "--set", "input=1", code=1).stderr
        )
        cli("price", "propose", "--model", MODEL, "--set", "input", code=2)
        cli("price", "propose", "--set", "input=1", code=2)
    platform.db.close()
