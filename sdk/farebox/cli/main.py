"""The command `farebox`: its root, the commands that fit nowhere else, what happens when something fails."""

import os
import sys
from typing import Any

import click

import farebox
from farebox.cli import (
    assets,
    billing,
    chat,
    credit,
    customer_key,
    endpoints,
    events,
    instance_prices,
    invoices,
    limits,
    models,
    online_deployments,
    online_endpoints,
    organizations,
    platform,
    prices,
    reconcile,
    serverless_deployments,
    stripe,
    subscriptions,
    webhooks,
)
from farebox.cli.framework import (
    ENVIRONMENT,
    EXIT_BROKEN_PIPE,
    EXIT_CODES,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_USAGE,
    Command,
    Group,
    State,
    common_options,
    note,
    pass_state,
    write_pairs,
)
from farebox.cli.output import print_data, print_object, print_table
from farebox.cli.problems import report, report_bug
from farebox.errors import FareboxError


class Root(Group):
    """Turns every failure into a message and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        sys.exit(self._run(*args, **kwargs))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FareboxError as error:
            raise click.exceptions.Exit(report(error, ctx.ensure_object(State))) from None
        except BrokenPipeError:
            # Nothing more can be said on stdout, and the interpreter must not try when it ends.
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # closed by the process's end
            raise click.exceptions.Exit(EXIT_BROKEN_PIPE) from None

    def _run(self, *args: Any, **kwargs: Any) -> int:
        try:
            result = super().main(*args, **kwargs)
        except click.Abort:
            return EXIT_INTERRUPTED
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            return EXIT_USAGE
        except click.ClickException as error:
            _show_usage_error(error)
            return EXIT_USAGE
        except Exception as error:  # the last resort: a person gets one line instead of a traceback
            return report_bug(error)
        return result if isinstance(result, int) else 0

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_pairs("Exit codes", EXIT_CODES, formatter)
        write_pairs("Environment", ENVIRONMENT, formatter)
        super().format_epilog(ctx, formatter)


def _show_usage_error(error: click.ClickException) -> None:
    note(f"Error: {error.format_message()}")
    context = getattr(error, "ctx", None)
    if context is not None:
        note(f"  Next: {context.command_path} --help")


@click.group(
    "farebox",
    cls=Root,
    params=common_options(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    examples=[
        "farebox up",
        "farebox model list",
        "farebox serverless-endpoint create my-qwen --model Qwen/Qwen3-0.6B",
        'farebox chat --endpoint my-qwen "Hello!"',
        "farebox invoice preview --org acme -o json",
    ],
)
@click.version_option(farebox.__version__, message="farebox %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Farebox: a pay-as-you-go model API on your own GPUs.

    `farebox up` starts the platform; every other command talks to a running one over HTTP.
    """
    state = context.ensure_object(State)
    context.call_on_close(state.close)


@click.command(cls=Command, examples=["farebox status", "farebox status --url http://gpu-box:8080 -o json"])
@pass_state
@click.pass_context
def status(context: click.Context, state: State) -> None:
    """Show whether the server is up, and models.

    Exits 1 when it is up but not ready, 3 when nobody answers.
    """
    now = state.client.status()
    if not print_data(state, now):
        deployments = now["deployments"]
        print_object(state, {name: value for name, value in now.items() if name != "deployments"})
        if deployments is None:
            note("Deployments: not shown, this needs the admin key.")
        elif deployments and state.output_format() == "table":
            columns = endpoints.DEPLOYMENT_COLUMNS
            click.echo()
            cells = [[column.of(row) for column in columns] for row in deployments]
            print_table([column.title for column in columns], cells, [column.number for column in columns])
    if not now["ready"]:
        context.exit(EXIT_REFUSED)


@click.command(cls=Command, examples=["farebox version", "farebox version -o json"])
@pass_state
def version(state: State) -> None:
    """Print the version of this command line."""
    if not state.output_format(text_by_default=True):
        click.echo(f"farebox {farebox.__version__}")
    else:
        print_object(state, {"version": farebox.__version__, "python": sys.version.split()[0]})


@click.command(
    cls=Command,
    common=False,
    examples=[
        'eval "$(farebox completion bash)"                      # in ~/.bashrc',
        'eval "$(farebox completion zsh)"                       # in ~/.zshrc',
        "farebox completion fish > ~/.config/fish/completions/farebox.fish",
    ],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell script that completes commands."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(cli, {}, "farebox", "_FAREBOX_COMPLETE").source())


cli.add_command(
    platform.command(
        "up",
        "Start the platform here, in the foreground.",
        ["farebox up", "farebox up --home ./data --port 9000", "farebox up --help"],
    )
)
cli.add_command(
    platform.command(
        "engine",
        "Install, list and check engines on this machine.",
        ["farebox engine install", "farebox engine list", "farebox engine --help"],
    )
)
cli.add_command(
    platform.command(
        "demo",
        "Make one call to a sample model and show its cost.",
        ["farebox demo --once", "farebox demo --help"],
    )
)
for _command in (
    status,
    organizations.org,
    organizations.project,
    organizations.key,
    models.model,
    prices.price,
    instance_prices.instance_price,
    endpoints.serverless_endpoint,
    serverless_deployments.serverless_deployment,
    subscriptions.marketplace_subscription,
    online_endpoints.online_endpoint,
    online_deployments.online_deployment,
    assets.environment,
    endpoints.deployment,
    chat.chat,
    billing.usage,
    billing.receipt,
    billing.receipts,
    billing.invoice,
    credit.credit,
    credit.credit_note,
    credit.contract,
    credit.billing_profile,
    invoices.export,
    reconcile.reconcile,
    reconcile.alarms,
    limits.limit,
    limits.budget,
    events.event,
    events.quarantine,
    events.audit,
    webhooks.webhook,
    stripe.stripe,
    customer_key.customer_key,
    completion,
    version,
):
    cli.add_command(_command)


def main() -> None:
    """The console script."""
    cli.main(prog_name="farebox")


if __name__ == "__main__":
    main()
