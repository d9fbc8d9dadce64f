"""Changes of prices: proposals, dry runs, an organization's own."""

from collections.abc import Mapping
from typing import Any, cast

from farebox.resource import Resource, given
from farebox.transport import path_of
from farebox.types import InstancePrice, OwnPrice, PriceDryRun, PriceProposal

_Proposals = list[PriceProposal]  # inside a class with a method named `list`, that name is the method
_Own = list[OwnPrice]
_InstancePrices = list[InstancePrice]


class InstancePrices(Resource):
    """What a minute of an online endpoint's instance costs, by instance type."""

    def set(self, instance_type: str, per_minute_usd: str) -> InstancePrice:
        """Begins with the next full minute; the first price of a type at once."""
        path = "/api/instance-prices" + path_of(instance_type)
        body = {"per_minute_usd": per_minute_usd}
        return cast(InstancePrice, self._transport.json("PUT", path, json=body))

    def list(self) -> _InstancePrices:
        return cast(_InstancePrices, self._transport.json("GET", "/api/instance-prices")["data"])


class Prices(Resource):
    """Prices for everybody or one organization. Two people change one: who proposes and who approves."""

    def propose(self, document: Mapping[str, Any]) -> PriceProposal:
        """`document`: model, organization, starts_at, prices, terms, ended, note (docs/prices.md)."""
        return cast(PriceProposal, self._transport.json("POST", "/api/price-proposals", json=dict(document)))

    def list(self, *, state: str | None = None) -> _Proposals:
        """Proposals, of one state or all."""
        return self._all("/api/price-proposals", state=state)

    def get(self, proposal_id: str) -> PriceProposal:
        return cast(PriceProposal, self._transport.json("GET", "/api/price-proposals" + path_of(proposal_id)))

    def approve(self, proposal_id: str, *, note: str | None = None) -> PriceProposal:
        """With another admin key than the one that proposed it."""
        return self._decide(proposal_id, "approve", note)

    def reject(self, proposal_id: str, *, note: str | None = None) -> PriceProposal:
        """Turn it down; with the key that proposed it, withdraw it."""
        return self._decide(proposal_id, "reject", note)

    def dry_run(
        self, proposal_id: str, *, period: str | None = None, organization: str | None = None
    ) -> PriceDryRun:
        """A month as it is, and as it would be at the proposed prices."""
        path = f"/api/price-proposals{path_of(proposal_id)}/dry-run"
        params = given(period=period, organization=organization)
        return cast(PriceDryRun, self._transport.json("POST", path, params=params))

    def try_out(
        self, document: Mapping[str, Any], *, period: str | None = None, only: str | None = None
    ) -> PriceDryRun:
        """The same for prices that nobody proposed yet."""
        body = {**document, **given(period=period, only=only)}
        return cast(PriceDryRun, self._transport.json("POST", "/api/price-dry-runs", json=body))

    def own(self, organization: str) -> _Own:
        """The versions that an organization has of its own."""
        return self._all(f"/api/organizations{path_of(organization)}/prices")

    def _decide(self, proposal_id: str, what: str, note: str | None) -> PriceProposal:
        path = f"/api/price-proposals{path_of(proposal_id)}/{what}"
        return cast(PriceProposal, self._transport.json("POST", path, json=given(note=note)))
