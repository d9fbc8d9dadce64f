"""`farebox serverless-endpoint` and `farebox deployment`."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import click

from farebox.cli.files import read_mapping
from farebox.cli.framework import Group, State, is_terminal, note, parse_tags, pass_state
from farebox.cli.models import model_ids
from farebox.cli.organizations import project_names
from farebox.cli.output import Column, print_data, print_done, print_list, print_object, write_text
from farebox.cli.problems import suggesting
from farebox.registry import catalog_id
from farebox.types import ContentSafety, ServerlessEndpoint

_FOLLOW_EVERY_S = 1.0
_FOLLOW_LINES = 1000

_FILE_FIELDS = ("name", "model", "model_id", "project", "tags", "content_safety")
# Fields of Azure ML's serverless YAML that say nothing to this server: accepted, and said so once.
_AZURE_FIELDS = ("auth_mode", "description", "display_name", "properties")
_SWITCH = click.Choice(("enabled", "disabled"))


@click.group("serverless-endpoint", cls=Group)
def serverless_endpoint() -> None:
    """Endpoints: a stable URL and keys for a model."""


@serverless_endpoint.command(
    "create",
    examples=[
        "farebox serverless-endpoint create my-qwen --model Qwen/Qwen3-0.6B",
        "farebox serverless-endpoint create my-qwen --model Qwen/Qwen3-0.6B --project web --tag team=search",
        "farebox serverless-endpoint create -f endpoint.yaml",
    ],
)
@click.argument("name", required=False)
@click.option("--model", "model_id", metavar="ID", help="The model's catalog id.")
@click.option(
    "--project", metavar="P", help="The project: name, organization/name or id. Default: the only one."
)
@click.option(
    "--tag", "tags", multiple=True, callback=parse_tags, metavar="K=V", help="A tag; may be repeated."
)
@click.option(
    "--content-safety",
    type=_SWITCH,
    help="Check calls, where the server has a content check (as without it).",
)
@click.option(
    "-f", "--file", "path", metavar="FILE", help="A YAML file, ours or Azure ML's; options win over it."
)
@pass_state
def endpoint_create(
    state: State,
    name: str | None,
    model_id: str | None,
    project: str | None,
    tags: Mapping[str, str],
    content_safety: ContentSafety | None,
    path: str | None,
) -> None:
    """Make an endpoint for a model of the catalog.

    The endpoint is billed by the minute until it is deleted; its model server starts with the first call.
    """
    wanted = _from_file(path) if path else {}
    name = name or wanted.get("name")
    model_id = model_id or wanted.get("model")
    project = project or wanted.get("project")
    if not name:
        raise click.UsageError(
            "the endpoint's name is missing: farebox serverless-endpoint create NAME --model ID"
        )
    if not model_id:
        raise click.UsageError(
            "the model is missing: add --model ID (farebox model list shows what there is)"
        )
    all_tags = {**wanted.get("tags", {}), **tags}
    with (
        suggesting(model_id, lambda: model_ids(state), "farebox model list", param="model"),
        suggesting(project, lambda: project_names(state), "farebox project list", param="project"),
    ):
        created = state.client.serverless_endpoints.create(
            name,
            model=model_id,
            project=project,
            tags=all_tags,
            content_safety=content_safety or wanted.get("content_safety"),
        )
    _note_unchecked(content_safety or wanted.get("content_safety"), created)
    print_object(state, created)
    if is_terminal(sys.stderr):
        note(f'Try it: farebox chat --endpoint {name} "Hello!"')


def _from_file(path: str) -> dict[str, Any]:
    """The fields of an endpoint's file under our names."""
    fields = read_mapping(path)
    unknown = [each for each in fields if each not in (*_FILE_FIELDS, *_AZURE_FIELDS, "$schema")]
    if unknown:
        from farebox.cli.problems import close_names

        close = close_names(unknown[0], (*_FILE_FIELDS, *_AZURE_FIELDS))
        hint = f"did you mean {close[0]}?" if close else f"known fields: {', '.join(_FILE_FIELDS)}"
        raise click.UsageError(f"-f {path}: unknown field {unknown[0]!r}; {hint}")
    for each in ("name", "model", "model_id", "project"):
        if each in fields and not isinstance(fields[each], str):
            raise click.UsageError(
                f"-f {path}: {each}: expected a text, got {fields[each]!r}; put it in quotes"
            )
    if fields.get("model") and fields.get("model_id"):
        raise click.UsageError(f"-f {path}: model and model_id say the same thing; keep one")
    if str(fields.get("auth_mode", "key")).lower() != "key":
        raise click.UsageError(
            f"-f {path}: auth_mode: serverless endpoints know only key, got {fields['auth_mode']!r}"
        )
    ignored = [each for each in fields if each in _AZURE_FIELDS and each != "auth_mode"]
    if ignored:
        note(f"Note: {path}: no meaning here, ignored: {', '.join(ignored)}")
    wanted = {each: fields[each] for each in ("name", "project") if fields.get(each)}
    model_id = fields.get("model") or fields.get("model_id")
    if model_id:
        wanted["model"] = catalog_id(str(model_id))
    if "content_safety" in fields:
        wanted["content_safety"] = _switch_of(fields["content_safety"], path)
    return wanted | {"tags": _tags_of(fields.get("tags"), path)}


def _switch_of(value: object, path: str) -> str:
    """Of `content_safety: enabled`, or as Azure ML writes it: `content_safety: {content_safety_status: enabled}`."""
    status = value.get("content_safety_status") if isinstance(value, dict) else value
    wanted = str(status).lower()
    if wanted not in _SWITCH.choices:
        raise click.UsageError(f"-f {path}: content_safety: expected enabled or disabled, got {status!r}")
    return wanted


def _note_unchecked(asked: str | None, endpoint: ServerlessEndpoint) -> None:
    if asked == "enabled" and endpoint["content_safety"] == "not configured":
        note(
            "Note: calls are not checked: the server has no content check (setting FAREBOX_CONTENT_SAFETY_URL)"
        )


def _tags_of(tags: object, path: str) -> dict[str, str]:
    if tags is None:
        return {}
    if not isinstance(tags, dict):
        raise click.UsageError(f"-f {path}: tags: expected names with values, got {tags!r}")
    for name, value in tags.items():
        if isinstance(value, dict | list) or value is None:
            raise click.UsageError(f"-f {path}: tags.{name}: expected a text, got {value!r}")
    return {
        str(name): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in tags.items()
    }


@serverless_endpoint.command(
    "update",
    examples=[
        "farebox serverless-endpoint update my-qwen --content-safety disabled",
        "farebox serverless-endpoint update my-qwen --tag team=search --tag stage=prod",
        "farebox serverless-endpoint update my-qwen --no-tags",
    ],
)
@click.argument("name")
@click.option("--content-safety", type=_SWITCH, help="Check calls, where the server has a content check.")
@click.option(
    "--tag",
    "tags",
    multiple=True,
    callback=parse_tags,
    metavar="K=V",
    help="A tag; may be repeated. Those given replace all there are.",
)
@click.option("--no-tags", is_flag=True, help="Take all tags away.")
@pass_state
def endpoint_update(
    state: State, name: str, content_safety: ContentSafety | None, tags: Mapping[str, str], no_tags: bool
) -> None:
    """Change an endpoint's content check or its tags. Calls go on meanwhile."""
    if tags and no_tags:
        raise click.UsageError("give either --tag or --no-tags")
    if content_safety is None and not tags and not no_tags:
        raise click.UsageError("nothing to change: add --content-safety, --tag or --no-tags")
    with _suggesting_endpoint(state, name):
        changed = state.client.serverless_endpoints.update(
            name, tags=tags if tags or no_tags else None, content_safety=content_safety
        )
    _note_unchecked(content_safety, changed)
    print_object(state, changed)


@serverless_endpoint.command("list", examples=["farebox serverless-endpoint list"])
@click.option("--project", metavar="P", help="Only this project's endpoints.")
@pass_state
def endpoint_list(state: State, project: str | None) -> None:
    """List the endpoints."""
    columns = [
        Column("name", "name"),
        Column("state", "state"),
        Column("model", "model"),
        Column("deployment", "deployment.state"),
        Column("created", "created_at"),
        Column("base URL", "openai_base_url"),
    ]
    empty = "No endpoints yet. Make one: farebox serverless-endpoint create NAME --model ID"
    with suggesting(project, lambda: project_names(state), "farebox project list", param="project"):
        rows = state.client.serverless_endpoints.list(project=project)
    print_list(state, rows, columns, empty=empty)


@serverless_endpoint.command("show", examples=["farebox serverless-endpoint show my-qwen"])
@click.argument("name")
@pass_state
def endpoint_show(state: State, name: str) -> None:
    """Show one endpoint: its addresses, its state and its deployment's."""
    with _suggesting_endpoint(state, name):
        print_object(state, state.client.serverless_endpoints.get(name))


@serverless_endpoint.command(
    "delete",
    examples=[
        "farebox serverless-endpoint delete my-qwen",
        "farebox serverless-endpoint delete my-qwen --yes",
    ],
)
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@pass_state
def endpoint_delete(state: State, name: str, yes: bool) -> None:
    """Delete an endpoint: its URL and keys stop working, and it costs nothing any more."""
    with _suggesting_endpoint(state, name):
        if not yes:
            state.client.serverless_endpoints.get(name)  # a wrong name is said before the question
            confirm(f"Delete endpoint {name}? Its URL and keys stop working at once.")
        answer = state.client.serverless_endpoints.delete(name)
    print_done(state, answer, f"Deleted {name}.")


@serverless_endpoint.command("suspend", examples=["farebox serverless-endpoint suspend my-qwen"])
@click.argument("name")
@pass_state
def endpoint_suspend(state: State, name: str) -> None:
    """Refuse calls until it is reinstated. URL and keys stay, so its minutes go on being billed."""
    with _suggesting_endpoint(state, name):
        answer = state.client.serverless_endpoints.suspend(name)
    print_done(state, answer, f"Suspended {name}.")


@serverless_endpoint.command("reinstate", examples=["farebox serverless-endpoint reinstate my-qwen"])
@click.argument("name")
@pass_state
def endpoint_reinstate(state: State, name: str) -> None:
    """Let a suspended endpoint be called again."""
    with _suggesting_endpoint(state, name):
        answer = state.client.serverless_endpoints.reinstate(name)
    print_done(state, answer, f"Reinstated {name}.")


@serverless_endpoint.command(
    "get-credentials",
    examples=[
        "farebox serverless-endpoint get-credentials my-qwen",
        "farebox serverless-endpoint get-credentials my-qwen -o json | jq -r .primaryKey",
    ],
)
@click.argument("name")
@pass_state
def endpoint_get_credentials(state: State, name: str) -> None:
    """Show the endpoint's two keys; either one opens it."""
    with _suggesting_endpoint(state, name):
        print_object(state, state.client.serverless_endpoints.get_keys(name))
    note("These keys open the endpoint: keep them secret.")


@serverless_endpoint.command(
    "regenerate-keys",
    examples=["farebox serverless-endpoint regenerate-keys my-qwen --key-type secondary"],
)
@click.argument("name")
@click.option("--key-type", type=click.Choice(["primary", "secondary"]), default="primary", show_default=True)
@pass_state
def endpoint_regenerate_keys(state: State, name: str, key_type: Any) -> None:
    """Replace one of the two keys. The old one stops working at once; the other one stays valid."""
    with _suggesting_endpoint(state, name):
        print_object(state, state.client.serverless_endpoints.regenerate_keys(name, key_type=key_type))
    note(f"The old {key_type} key no longer works. These keys open the endpoint: keep them secret.")


@serverless_endpoint.command(
    "get-logs",
    examples=[
        "farebox serverless-endpoint get-logs my-qwen --lines 50",
        "farebox serverless-endpoint get-logs my-qwen --follow",
    ],
)
@click.argument("name")
@click.option(
    "--lines", type=click.IntRange(1, 10_000), default=200, show_default=True, help="How many, from the end."
)
@click.option("--follow", is_flag=True, help="Go on printing new lines until Ctrl-C.")
@pass_state
def endpoint_get_logs(state: State, name: str, lines: int, follow: bool) -> None:
    """Print the log of the endpoint's model server."""
    kind = state.output_format(text_by_default=True)
    if follow and kind:
        raise click.UsageError("--follow prints text: leave out -o")
    window = max(lines, _FOLLOW_LINES) if follow else lines
    logs = state.client.serverless_endpoints.get_logs
    with _suggesting_endpoint(state, name):
        read = logs(name, lines=window).splitlines()
    shown = read[-lines:]
    if not (kind and print_data(state, {"name": name, "lines": shown})):
        write_text("".join(f"{line}\n" for line in shown))
        if not shown:
            note("The log is empty: the model server starts with the first call.")
    if follow:
        follow_log(lambda: logs(name, lines=window), read)


def follow_log(read: Callable[[], str], shown: list[str]) -> None:
    """Prints what is new in each reading of the log's end, for ever."""
    while True:
        time.sleep(_FOLLOW_EVERY_S)
        latest = read().splitlines()
        fresh = new_lines(shown, latest)
        if fresh:
            write_text("\n".join(fresh) + "\n")
        shown = latest


def new_lines(before: list[str], after: list[str]) -> list[str]:
    """What `after` has beyond `before`; both are the last lines, up to one same number, of a growing log."""
    for skipped in range(len(before)):
        tail = before[skipped:]
        if after[: len(tail)] == tail:
            return after[len(tail) :]
    return after


@click.group(cls=Group)
def deployment() -> None:
    """Deployments: the servers behind the endpoints."""


@deployment.command("list", examples=["farebox deployment list"])
@pass_state
def deployment_list(state: State) -> None:
    """List the deployments: state, replicas, times, the reason of the last failure."""
    empty = "No deployments yet: each endpoint's model gets one with the first endpoint."
    print_list(state, state.client.deployments.list(), DEPLOYMENT_COLUMNS, empty=empty)


def _newest(member_name: str) -> Callable[[Mapping[str, Any]], object]:
    """The member of the replica that was started last."""

    def of(row: Mapping[str, Any]) -> object:
        replicas = row.get("replicas") or []
        latest: Mapping[str, Any] = max(replicas, key=lambda each: each.get("started_at") or "", default={})
        return latest.get(member_name)

    return of


def _failure(row: Mapping[str, Any]) -> object:
    failure = row.get("last_failure") or {}
    return " ".join(failure[each] for each in ("at", "reason") if failure.get(each))


def _ready_replicas(row: Mapping[str, Any]) -> object:
    if row.get("external"):
        return "attached"
    return sum(each.get("state") == "ready" for each in row.get("replicas") or [])


DEPLOYMENT_COLUMNS = (
    Column("model", "model"),
    Column("state", "state"),
    Column("phase", "phase"),
    Column("replicas", _ready_replicas, number=True),
    Column("in flight", "in_flight", number=True),
    Column("started", _newest("started_at")),
    Column("ready", _newest("ready_at")),
    Column("stopped", _newest("stopped_at")),
    Column("last failure", _failure),
)


def confirm(question: str) -> None:
    """Asks; a usage error where nobody can answer, exit 2 for a no."""
    if not is_terminal(sys.stdin):
        raise click.UsageError("this asks before it deletes; add --yes where nobody can answer")
    if not click.confirm(question, err=True):
        note("Nothing was changed.")
        raise click.exceptions.Exit(2)


def _suggesting_endpoint(state: State, name: str) -> Any:
    endpoints = state.client.serverless_endpoints
    return suggesting(
        name, lambda: [row["name"] for row in endpoints.list()], "farebox serverless-endpoint list"
    )
