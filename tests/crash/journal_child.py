"""What the crash test kills: `gateway` appends for ever, `control` takes in, closes and posts for ever."""

import asyncio
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from billing.close import close_and_post
from catalog.terms import SkuTerms
from core.clock import SystemClock
from core.database import open_database
from metering.journal import Journal
from metering.model import Usage
from metering.relay import Relay
from tests.metering_values import event

PRICES = {"input": 3, "cached_input": 2, "output": 5}


@dataclass(frozen=True)
class Version:
    id: str = "price_1"

    @property
    def unit_prices(self) -> dict[str, int]:
        return PRICES

    @property
    def terms(self) -> dict[str, SkuTerms]:
        return {}


class Book:
    """One price for everything."""

    def price_at(self, _: Any, __: str, ___: int, ____: str) -> Version:
        return Version()

    def version(self, _: Any, __: str) -> Version:
        return Version()


async def gateway(directory: Path, life: str) -> None:
    """32 callers at once, and a stream that never ends. What was acknowledged is told at once, one id a line."""
    clock = SystemClock()
    journal = Journal.open(directory, "gw-1", clock, 1 << 30, segment_bytes=256 * 1024)
    os.write(1, b"\n")

    async def caller(number: int) -> None:
        for call in range(1_000_000):
            request_id = f"{life}-{number}-{call}"
            usage = Usage(number, 0, call % 7)
            now_ms = clock.now_ms()
            if number == 0:
                journal.note_progress(event(request_id, Usage(1), status="interrupted", ended_ms=now_ms))
                await asyncio.sleep(0.3)
            await journal.append(event(request_id, usage, ended_ms=now_ms, key_id=f"key_{number % 4}"))
            os.write(1, f"{request_id}\n".encode())

    journal.note_progress(event(f"{life}-open", Usage(1), status="interrupted", ended_ms=clock.now_ms()))
    await asyncio.gather(*[caller(number) for number in range(32)])


def control(directory: Path, url: str) -> None:
    """Minutes are closed at once, without any lateness, so that most of what arrives is late."""
    clock = SystemClock()
    db = open_database(url)
    relay = Relay(directory, db, clock)
    os.write(1, b"\n")
    while True:
        relay.run_once()
        close_and_post(db, Book(), clock.now_ms() + 60_000, 0)
        time.sleep(0.002)


if __name__ == "__main__":
    if sys.argv[1] == "gateway":
        asyncio.run(gateway(Path(sys.argv[2]), sys.argv[3]))
    else:
        control(Path(sys.argv[2]), sys.argv[3])
