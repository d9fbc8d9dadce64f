"""Events of other meters, the quarantine and the audit log."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, cast

from farebox.resource import Resource
from farebox.transport import path_of
from farebox.types import AuditLine, EventAnswers, EventType, Page, QuarantineEntry

BATCH_MAX_EVENTS = 1000
_BATCH_MAX_BYTES = 900 * 1024  # the server takes 1 MiB
_BATCHED = "application/cloudevents-batch+json"


class Events(Resource):
    """What other meters counted, as CloudEvents 1.0. Sending an event again changes nothing."""

    def send(self, *events: Mapping[str, Any]) -> EventAnswers:
        """One batch, at most 1,000 events and 1 MiB. Each is answered for itself: look at `data`."""
        import json

        body = json.dumps(list(events), separators=(",", ":")).encode()
        answer = self._transport.json("POST", "/api/events", content=body, content_type=_BATCHED)
        return cast(EventAnswers, answer)

    def send_all(self, events: Iterable[Mapping[str, Any]]) -> Iterator[EventAnswers]:
        """Any number, in batches as they fit; an answer per batch."""
        import json

        batch: list[Mapping[str, Any]] = []
        size = 0
        for event in events:
            length = len(json.dumps(event, separators=(",", ":"))) + 1
            if batch and (len(batch) == BATCH_MAX_EVENTS or size + length > _BATCH_MAX_BYTES):
                yield self.send(*batch)
                batch, size = [], 0
            batch.append(event)
            size += length
        if batch:
            yield self.send(*batch)

    def types(self) -> list[EventType]:
        """Every type of events, taken in or sent to webhooks."""
        return self._all("/api/events/schemas")

    def schema(self, event_type: str) -> dict[str, Any]:
        """The JSON Schema of a type's whole CloudEvent."""
        path = "/api/events/schemas" + path_of(event_type)
        return cast("dict[str, Any]", self._transport.json("GET", path))


class Quarantine(Resource):
    """Events that could not be taken in, until somebody decides."""

    def list(self, *, state: str = "open", limit: int = 1000) -> list[QuarantineEntry]:
        """The newest `limit`; `state` is open, replayed, dropped or all."""
        return list(islice(self._pages("/api/quarantine", state=state), limit))

    def get(self, entry_id: str) -> QuarantineEntry:
        """With what was sent."""
        return cast(QuarantineEntry, self._transport.json("GET", self._path(entry_id)))

    def replay(
        self, entry_id: str, *, event: Mapping[str, Any] | None = None, note: str = ""
    ) -> QuarantineEntry:
        """Take the event in, mended where `event` is given. Refused (409) while it is still wrong."""
        body = {"event": event, "note": note}
        return cast(
            QuarantineEntry, self._transport.json("POST", self._path(entry_id) + "/replay", json=body)
        )

    def drop(self, entry_id: str, *, note: str = "") -> QuarantineEntry:
        """It will not be billed."""
        return cast(
            QuarantineEntry, self._transport.json("POST", self._path(entry_id) + "/drop", json={"note": note})
        )

    @staticmethod
    def _path(entry_id: str) -> str:
        return "/api/quarantine" + path_of(entry_id)


class AuditLog(Resource):
    """Who decided what, when."""

    def list(
        self,
        *,
        organization: str | None = None,
        action: str | None = None,
        object_id: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Page[AuditLine]:
        """One page, the newest first. `action` may be its first part, such as `quarantine`."""
        params = {
            "organization": organization,
            "action": action,
            "object": object_id,
            "limit": limit,
            "after": after,
        }
        return cast("Page[AuditLine]", self._transport.json("GET", "/api/audit", params=params))
