"""`farebox customer-key`."""

import click

from farebox.cli import platform
from farebox.cli.framework import Group, State, pass_state
from farebox.cli.output import print_object


@click.group("customer-key", cls=Group)
def customer_key() -> None:
    """The key that what is stored is encrypted under."""


@customer_key.command("show", examples=["farebox customer-key show", "farebox customer-key show -o json"])
@pass_state
def customer_key_show(state: State) -> None:
    """Show which key it is, its public half."""
    print_object(state, state.client.customer_key.get())


@customer_key.command("rotate", examples=["farebox customer-key rotate"])
@pass_state
def customer_key_rotate(state: State) -> None:
    """Have the platform read the key's file anew: the first key in it counts from now on.

    What is stored need not be written anew. The old key may go once this is done.
    """
    print_object(state, state.client.customer_key.rotate())


for _verb, _summary, _examples in (
    ("new", "Make a key, in a file here.", ["farebox customer-key new ./customer.key"]),
    (
        "decrypt",
        "Decrypt collected data and copies of models here.",
        [
            "farebox customer-key decrypt ~/.farebox/collected/modelDataCollector/iris | jq .data",
            "farebox customer-key decrypt ~/.farebox/online/dep_1/1/model --to ./model",
        ],
    ),
):
    customer_key.add_command(platform.command("customer-key", _summary, _examples, verb=_verb))
