"""What is known of a scoring call."""

from access.principal import Principal
from functions.gateway.record import CallRecord
from metering.model import Status, Usage, UsageSource
from serving.route import Route
from wire.openai import ModelRequest


class ScoringRecord(CallRecord):
    """A call that has no tokens: it is counted, and the instances are what is paid for."""

    __slots__ = ()

    def _usage(self, status: Status) -> tuple[Usage, UsageSource]:
        return Usage(), "none"


def new_record(request_id: str, principal: Principal, route: Route, received_ms: int) -> ScoringRecord:
    """The record of a scoring call that begins."""
    nothing = ModelRequest({}, None, stream=False, wants_usage=False, choices=1, max_tokens=0)
    return ScoringRecord(request_id, "scoring", principal, nothing, route, received_ms)
