"""Makes invoices of months that are over, of thresholds that are reached, and writes expired credit off."""

import asyncio
from collections.abc import Callable, Sequence

from billing.invoicing.model import Invoice
from core.log import get_logger

_log = get_logger(__name__)
_EVERY_S = 20.0


class Invoicer:
    """`work` does whatever is due and returns the invoices it made; it decides by what is closed, not by the time."""

    def __init__(self, work: Callable[[], Sequence[Invoice]]) -> None:
        self._work = work

    def run_once(self) -> int:
        """Do what is due. Safe at any time, any number of times, from any process; returns how many invoices."""
        made = self._work()
        for invoice in made:
            _log.info(
                "invoice made",
                extra={
                    "invoice": invoice.number or invoice.id,
                    "org": invoice.org_id,
                    "state": invoice.state,
                    "due_cents": invoice.due_cents,
                },
            )
        return len(made)

    async def run(self) -> None:
        """Look every 20 seconds."""
        while True:
            try:
                await asyncio.to_thread(self.run_once)
            except Exception:
                _log.exception("the invoicer failed; what it had not finished is tried again")
            await asyncio.sleep(_EVERY_S)
