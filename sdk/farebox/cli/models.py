"""`farebox model`."""

from collections.abc import Mapping
from typing import Any

import click

from farebox.cli.files import read_file
from farebox.cli.framework import Group, State, pass_state
from farebox.cli.output import Column, print_done, print_list, print_object
from farebox.cli.problems import suggesting

TASKS = ("chat", "completion", "embedding", "rerank", "transcription")


@click.group(cls=Group)
def model() -> None:
    """The catalog: models and their prices."""


def _price(sku: str) -> Column:
    def of(row: Mapping[str, Any]) -> object:
        prices = row.get("prices")
        return prices.get(sku) if isinstance(prices, Mapping) else None

    return Column(
        {"endpoint_minute": "$/minute", "audio_second": "$/audio s"}.get(sku, f"{sku} $/M"), of, number=True
    )


@model.command("list", examples=["farebox model list", "farebox model list --task embedding -o json"])
@click.option("--task", type=click.Choice(TASKS), help="Only models for this task.")
@pass_state
def model_list(state: State, task: str | None) -> None:
    """List the catalog. Prices are US dollars per million tokens, and per endpoint and minute."""
    columns = [
        Column("id", "id"),
        Column("task", "task"),
        Column("context", "context_length", number=True),
        _price("input"),
        _price("cached_input"),
        _price("output"),
        _price("endpoint_minute"),
    ]
    empty = (
        f"No models for {task}." if task else "The catalog is empty. Add a model: farebox model add -f FILE"
    )
    print_list(state, state.client.models.list(task=task), columns, empty=empty)


@model.command(
    "show", examples=["farebox model show Qwen/Qwen3-0.6B", "farebox model show Qwen/Qwen3-0.6B -o yaml"]
)
@click.argument("model_id", metavar="ID")
@pass_state
def model_show(state: State, model_id: str) -> None:
    """Show one model."""
    with suggesting(model_id, lambda: model_ids(state), "farebox model list"):
        print_object(state, state.client.models.get(model_id))


@model.command(
    "add", examples=["farebox model add -f my-model.yaml", "cat my-model.yaml | farebox model add -f -"]
)
@click.option(
    "-f", "--file", "path", required=True, metavar="FILE", help="The model's YAML file; - for stdin."
)
@pass_state
def model_add(state: State, path: str) -> None:
    """Add a model, or change the one with the same id.

    A changed price makes a new price version from the next full minute (UTC) on.
    """
    content = read_file(path)
    kind = "application/json" if path.lower().endswith(".json") else "application/yaml"
    print_object(state, state.client.models.add(content, content_type=kind), skip=["model"])


@model.command("remove", examples=["farebox model remove acme/mock-chat"])
@click.argument("model_id", metavar="ID")
@pass_state
def model_remove(state: State, model_id: str) -> None:
    """Take a model out of the catalog. Refused while an endpoint uses it."""
    with suggesting(model_id, lambda: model_ids(state), "farebox model list"):
        answer = state.client.models.remove(model_id)
    print_done(state, answer, f"Removed {model_id}.")


@model.command("prices", examples=["farebox model prices Qwen/Qwen3-0.6B"])
@click.argument("model_id", metavar="ID")
@pass_state
def model_prices(state: State, model_id: str) -> None:
    """List a model's price versions, in US dollars per million tokens, second or minute."""
    with suggesting(model_id, lambda: model_ids(state), "farebox model list"):
        rows = state.client.models.prices(model_id)
    batch = ["batch_input", "batch_cached_input", "batch_output"]
    skus = ["input", "cached_input", "output", *batch, "audio_second", "endpoint_minute"]
    used = [sku for sku in skus if any(sku in (row.get("prices") or {}) for row in rows)]
    columns = [
        Column("version", "id"),
        Column("starts", lambda row: row.get("starts_at") or "always"),
        *(_price(sku) for sku in used),
    ]
    print_list(state, rows, columns, empty="No prices.")


def model_ids(state: State) -> list[str]:
    """Every id of the catalog, for suggestions."""
    return [row["id"] for row in state.client.models.list()]
