"""`farebox chat`: one question to an endpoint, to see that it works."""

import sys
from typing import Any

import click

from farebox.cli.framework import Command, State, is_terminal, note, pass_state
from farebox.cli.output import print_data, write_text
from farebox.cli.problems import suggesting

_TEXT_MAX_CHARS = 1024 * 1024
_ADMIN_PREFIX = "fbx_admin_"


@click.command(
    cls=Command,
    examples=[
        'farebox chat --endpoint my-qwen "What is a fare box?"',
        'farebox chat --model Qwen/Qwen3-0.6B --api-key fbx_sk_… "Hello"',
        "cat question.txt | farebox chat --endpoint my-qwen -",
    ],
)
@click.argument("text")
@click.option(
    "--endpoint", metavar="NAME", help="Call this endpoint. With the admin key, its own key is fetched."
)
@click.option("--model", "model_id", metavar="ID", help="Call this model through the project of the key.")
@click.option("--system", metavar="TEXT", help="A system message before the question.")
@click.option("--max-tokens", type=click.IntRange(1), help="At most this many tokens of answer.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 is the most predictable.")
@click.option("--no-stream", is_flag=True, help="Wait for the whole answer.")
@pass_state
def chat(
    state: State,
    text: str,
    endpoint: str | None,
    model_id: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    no_stream: bool,
) -> None:
    """Ask one question.

    The answer is printed as it is written.

    TEXT of - reads standard input. The answer goes to stdout; on a terminal, tokens and the request id follow
    on stderr. -o json prints the API's whole answer instead.
    """
    if bool(endpoint) == bool(model_id):
        raise click.UsageError("give either --endpoint NAME or --model ID")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": _text_of(text)})
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    options = {name: value for name, value in options.items() if value is not None}
    whole = bool(state.output_format(text_by_default=True)) or no_stream
    call = _whole if whole else _streamed
    call(
        state,
        messages,
        {"endpoint": endpoint, "model": model_id, "api_key": _key_for(state, endpoint), **options},
    )


def _text_of(text: str) -> str:
    if text != "-":
        return text
    read = sys.stdin.read(_TEXT_MAX_CHARS + 1)
    if len(read) > _TEXT_MAX_CHARS:
        raise click.UsageError(f"standard input is longer than {_TEXT_MAX_CHARS} characters")
    if not read.strip():
        raise click.UsageError("standard input is empty: no question")
    return read


def _key_for(state: State, endpoint: str | None) -> str | None:
    """The endpoint's own key when only the admin key is at hand: the admin key makes no calls."""
    client = state.client
    key = client.connection.api_key
    if key is None or not key.startswith(_ADMIN_PREFIX):
        return None
    if endpoint is None:
        raise click.UsageError(
            "--model needs a project's key, not the admin key: make one with `farebox key create` and give "
            "it as FAREBOX_API_KEY or --api-key; or call an endpoint with --endpoint NAME"
        )
    names = client.serverless_endpoints
    with suggesting(
        endpoint, lambda: [row["name"] for row in names.list()], "farebox serverless-endpoint list"
    ):
        return names.get_keys(endpoint)["primaryKey"]


def _whole(state: State, messages: list[dict[str, str]], call: dict[str, Any]) -> None:
    answer = state.client.chat.complete(messages, **call)
    if state.output_format(text_by_default=True) and print_data(state, answer):
        return
    message = ((answer.get("choices") or [{}])[0].get("message") or {}).get("content")
    write_text(f"{message or ''}\n")
    _note_usage(answer.get("usage"), "")


def _streamed(state: State, messages: list[dict[str, str]], call: dict[str, Any]) -> None:
    waiting_said = started = False
    try:
        for event in state.client.chat.stream(messages, **call):
            if event.kind == "waiting" and not (waiting_said or started):
                waiting_said = True
                note("Waiting for the model server to start …")
            elif event.kind == "text":
                started = True
                write_text(event.text)
            elif event.kind == "end":
                write_text("\n")
                started = False
                _note_usage(event.usage, event.request_id)
    finally:
        if started:  # broke off in the middle: what follows must not stand on the answer's last line
            write_text("\n")


def _note_usage(usage: Any, request_id: str) -> None:
    if not is_terminal(sys.stderr):
        return
    if isinstance(usage, dict):
        note(f"{usage.get('prompt_tokens', 0)} tokens in, {usage.get('completion_tokens', 0)} out")
    if request_id:
        note(f"What it cost: farebox receipt {request_id}")
