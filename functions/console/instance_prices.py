"""What a minute of an online endpoint's instance costs, by instance type."""

import re
from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, Field

from catalog import price_book
from catalog.model import INSTANCE_MODEL, PriceVersion
from catalog.price_document import parse_price, price_text
from core.changes import record_change
from core.clock import iso
from core.errors import Conflict, Invalid
from functions.console.dependencies import Deps
from functions.console.routing import console_router
from functions.console.shapes import Input, Text
from metering.records import ENDPOINT_MINUTE_SKU

router = console_router("prices")
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
InstanceType = Annotated[
    str, Path(description="As in deployments' `instance_type`; `local` where they name none.")
]


class InstancePrice(Input):
    """The price."""

    per_minute_usd: Text = Field(examples=["0.0150"], description="Of one instance.")


class InstancePriceOut(BaseModel):
    """The price in force, or the one that begins next."""

    instance_type: str = Field(examples=["Standard_DS3_v2"])
    per_minute_usd: str = Field(examples=["0.015"])
    model: str = Field(description="Its name in the price book: for farebox price propose, and on invoices.")
    starts_at: str = Field(
        description="From here on it is charged; the first price of a type begins when it is set."
    )


class InstancePrices(BaseModel):
    """All of them."""

    data: list[InstancePriceOut]


@router.get("/instance-prices", summary="List prices of instances")
def list_instance_prices(deps: Deps) -> InstancePrices:
    """A type that is not listed costs nothing."""
    with deps.db.read() as connection:
        newest = price_book.newest_with_prefix(connection, INSTANCE_MODEL)
    return InstancePrices(data=[_shown(each) for each in newest])


@router.put("/instance-prices/{instance_type}", summary="Set the price of an instance type")
def put_instance_price(instance_type: InstanceType, body: InstancePrice, deps: Deps) -> InstancePriceOut:
    """Another price than before begins with the next full minute; minutes that have begun keep theirs.

    Where two people decide on prices, only the first price of a type can be set here.
    """
    if not _TYPE.fullmatch(instance_type):
        raise Invalid(
            f"instance_type: expected letters, digits, '_', '.' or '-', at most 64, got {instance_type!r:.80}",
            param="instance_type",
        )
    pico = parse_price(ENDPOINT_MINUTE_SKU, body.per_minute_usd, "per_minute_usd")
    model, now_ms = INSTANCE_MODEL + instance_type, deps.clock.now_ms()
    with deps.db.begin() as connection:
        before = price_book.price_versions(connection, model)
        if (
            before
            and deps.settings.two_person_prices
            and before[-1].unit_prices != {ENDPOINT_MINUTE_SKU: pico}
        ):
            raise Conflict(
                f"per_minute_usd: changed prices need two people here; farebox price propose --model {model} "
                f"--set {ENDPOINT_MINUTE_SKU}={body.per_minute_usd}",
                code="needs_approval",
                param="per_minute_usd",
            )
        made = price_book.put_list_prices(connection, model, {ENDPOINT_MINUTE_SKU: pico}, now_ms)
        if made is not None:
            record_change(connection, "model", model, now_ms)
        return _shown(made or before[-1])


def _shown(found: PriceVersion) -> InstancePriceOut:
    return InstancePriceOut(
        instance_type=found.model_id.removeprefix(INSTANCE_MODEL),
        per_minute_usd=price_text(ENDPOINT_MINUTE_SKU, found.unit_prices[ENDPOINT_MINUTE_SKU]),
        model=found.model_id,
        starts_at=iso(found.starts_ms or found.created_ms),
    )
