"""Events of other meters, the quarantine, the audit log, and webhooks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

from farebox.resource import Resource, given
from farebox.transport import path_of
from farebox.types import AuditLine, EventAnswers, EventType, Page, QuarantineEntry, Webhook, WebhookDelivery

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


class Webhooks(Resource):
    """Addresses that are told of events, signed as Standard Webhooks has it."""

    def create(
        self,
        url: str,
        *,
        organization: str | None = None,
        events: Sequence[str] = (),
        description: str = "",
    ) -> Webhook:
        """The answer's `secret` is shown this once. No `events`: all types."""
        body = given(url=url, organization=organization, events=list(events), description=description)
        return cast(Webhook, self._transport.json("POST", "/api/webhooks", json=body))

    def list(self, *, organization: str | None = None) -> list[Webhook]:
        return self._all("/api/webhooks", organization=organization)

    def get(self, webhook_id: str) -> Webhook:
        return cast(Webhook, self._transport.json("GET", self._path(webhook_id)))

    def change(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
    ) -> Webhook:
        """What is not given stays."""
        body = given(
            url=url,
            events=None if events is None else [*events],
            description=description,
            enabled=enabled,
        )
        return cast(Webhook, self._transport.json("PATCH", self._path(webhook_id), json=body))

    def delete(self, webhook_id: str) -> Webhook:
        """Nothing is sent there any more."""
        return cast(Webhook, self._transport.json("DELETE", self._path(webhook_id)))

    def rotate_secret(self, webhook_id: str) -> Webhook:
        """A new `secret`, shown this once; the old one signs too for a day."""
        return cast(Webhook, self._transport.json("POST", self._path(webhook_id) + "/rotate-secret"))

    def test(self, webhook_id: str) -> WebhookDelivery:
        """Send a test message."""
        return cast(WebhookDelivery, self._transport.json("POST", self._path(webhook_id) + "/test"))

    def replay(self, webhook_id: str, *, message: str | None = None, since: str | None = None) -> int:
        """Send one message again, or all since a time that did not arrive; returns how many."""
        body = given(message=message, since=since)
        answer = self._transport.json("POST", self._path(webhook_id) + "/replay", json=body)
        return cast(int, answer["replayed"])

    def deliveries(
        self,
        webhook_id: str,
        *,
        state: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Page[WebhookDelivery]:
        """One page of what was sent there, the newest first."""
        params = {"state": state, "limit": limit, "after": after}
        answer = self._transport.json("GET", self._path(webhook_id) + "/deliveries", params=params)
        return cast("Page[WebhookDelivery]", answer)

    def delivery(self, webhook_id: str, message_id: str) -> WebhookDelivery:
        """One message, with the log of its attempts."""
        path = f"{self._path(webhook_id)}/deliveries{path_of(message_id)}"
        return cast(WebhookDelivery, self._transport.json("GET", path))

    @staticmethod
    def _path(webhook_id: str) -> str:
        return "/api/webhooks" + path_of(webhook_id)
