"""`farebox instance-price`."""

import click

from farebox.cli.framework import Group, State, pass_state
from farebox.cli.output import Column, print_list, print_object


@click.group("instance-price", cls=Group)
def instance_price() -> None:
    """What a minute of an instance costs."""


@instance_price.command(
    "set",
    examples=["farebox instance-price set Standard_DS3_v2 0.015", "farebox instance-price set local 0.002"],
)
@click.argument("instance_type", metavar="TYPE")
@click.argument("usd", metavar="USD")
@pass_state
def instance_price_set(state: State, /, instance_type: str, usd: str) -> None:
    """Set the price of a minute of one instance. TYPE is a deployment's instance_type, `local` where it has none.

    Another price begins with the next full minute; without any, instances of the type cost nothing.
    """
    print_object(state, state.client.instance_prices.set(instance_type, usd))


@instance_price.command("list", examples=["farebox instance-price list"])
@pass_state
def instance_price_list(state: State, /) -> None:
    """List the prices."""
    columns = (
        Column("instance type", "instance_type"),
        Column("USD a minute", "per_minute_usd"),
        Column("from", "starts_at"),
    )
    print_list(state, state.client.instance_prices.list(), columns, empty="Instances cost nothing here.")
