"""What reconciliation found, as values and as JSON. Five columns: engine, events, ledger, invoice, provider."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from billing.invoice_check import InvoiceCheck
from core.clock import iso
from metering.engine_match import MEANINGS, EngineMatch
from metering.model import CALL_SKUS
from metering.records import ENDPOINT_MINUTE_SKU
from metering.recount import Finding

Verdict = Literal["equal", "explained", "unexplained"]
Scope = Literal["endpoint", "deployment", "platform"]
SKUS = (*CALL_SKUS, ENDPOINT_MINUTE_SKU)
MAX_ROWS = 5000


@dataclass(slots=True)
class Figures:
    """One SKU in the five records; None: that record says nothing about it."""

    engine: int | None = None
    events: int | None = None
    ledger: int | None = None
    invoice: int | None = None
    provider: int | None = None

    def as_json(self) -> dict[str, int | None]:
        return {name: getattr(self, name) for name in ("engine", "events", "ledger", "invoice", "provider")}


@dataclass(slots=True)
class HourRow:
    """An endpoint's hour; or that of a deployment which several share; or what is of no endpoint."""

    hour_ms: int
    scope: Scope
    id: str
    name: str = ""
    org_id: str = ""
    organization: str = ""
    model_id: str = ""
    deployment_id: str = ""
    figures: dict[str, Figures] = field(default_factory=dict)
    findings: list[tuple[str, Finding]] = field(default_factory=list)  # stage, finding
    no_counters: str = ""
    invoice: str = ""

    def of(self, sku: str) -> Figures:
        """The SKU's figures, made if need be."""
        return self.figures.setdefault(sku, Figures())

    @property
    def verdict(self) -> Verdict:
        if any(not finding.explained for _, finding in self.findings):
            return "unexplained"
        return "explained" if self.findings or self.no_counters else "equal"

    def add_engine(self, match: EngineMatch) -> None:
        """A deployment's counters. Billed quantities are disjoint, so cached tokens are taken out of the input."""
        self.no_counters = match.problem
        if match.engine is not None:
            total, cached, output = match.engine
            for sku, count in (("input", total - cached), ("cached_input", cached), ("output", output)):
                if count or sku in self.figures:
                    self.of(sku).engine = count
        for cause in match.causes:
            total, cached, output = cause.tokens
            parts = {"input": total - cached, "cached_input": cached, "output": output}
            for sku, quantity in parts.items():
                if quantity:
                    found = Finding(
                        cause.kind,
                        cause.explained,
                        MEANINGS[cause.kind],
                        sku,
                        quantity,
                        cause.events,
                        cause.ids,
                    )
                    self.findings.append(("engine", found))

    def as_json(self) -> dict[str, Any]:
        ordered = sorted(self.figures.items(), key=lambda item: (_order(item[0]), item[0]))
        return {
            "hour": iso(self.hour_ms),
            "scope": self.scope,
            "id": self.id,
            "name": self.name,
            "organization_id": self.org_id or None,
            "organization": self.organization or None,
            "model": self.model_id or None,
            "deployment": self.deployment_id or None,
            "figures": {sku: figures.as_json() for sku, figures in ordered},
            "invoice": self.invoice or None,
            "no_counters": self.no_counters or None,
            "differences": [
                {
                    "between": stage,
                    "kind": found.kind,
                    "explained": found.explained,
                    "detail": found.detail,
                    "sku": found.sku or None,
                    "quantity": found.quantity,
                    "count": found.count,
                    "ids": list(found.ids),
                }
                for stage, found in self.findings
            ],
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """Everything about [start, end) as it was known at `as_of_ms`."""

    start_ms: int
    end_ms: int
    as_of_ms: int
    rows: Sequence[HourRow]
    invoices: Sequence[InvoiceCheck]
    truncated: bool = False

    @property
    def unexplained(self) -> int:
        """Differences that nothing explains."""
        rows = sum(not finding.explained for row in self.rows for _, finding in row.findings)
        return rows + sum(not finding.explained for check in self.invoices for finding in check.findings)

    @property
    def verdict(self) -> Verdict:
        if self.unexplained:
            return "unexplained"
        return "explained" if any(row.verdict != "equal" for row in self.rows) else "equal"

    def as_json(self) -> dict[str, Any]:
        return {
            "start": iso(self.start_ms),
            "end": iso(self.end_ms),
            "as_of": iso(self.as_of_ms),
            "verdict": self.verdict,
            "unexplained": self.unexplained,
            "truncated": self.truncated,
            "data": [row.as_json() for row in self.rows],
            "invoices": [_invoice_json(check) for check in self.invoices],
        }


def _invoice_json(check: InvoiceCheck) -> Mapping[str, Any]:
    return {
        "id": check.invoice_id,
        "number": check.number or None,
        "organization_id": check.org_id,
        "state": check.state,
        "period_start": iso(check.start_ms),
        "period_end": iso(check.end_ms),
        "provider": None if check.provider is None else check.provider.provider_id,
        "differences": [
            {
                "kind": found.kind,
                "explained": found.explained,
                "detail": found.detail,
                "sku": found.sku or None,
                "quantity": found.quantity,
            }
            for found in check.findings
        ],
        "verdict": "equal" if check.equal else "unexplained",
    }


def _order(sku: str) -> int:
    return SKUS.index(sku) if sku in SKUS else len(SKUS)
