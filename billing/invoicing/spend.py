"""Which credit pays for what of an invoice. Pure.

Order: lower priority number first; then what expires sooner (never: last); then promotional before prepaid; then the
older one. Credit is in whole cents and pays whole cents, never more than what its scope and its time have on the
invoice, and never more than the invoice.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from billing.invoicing.model import Grant
from billing.invoicing.periods import Span
from billing.model import Line
from core.money import PICO_PER_CENT, round_to_cents, split_largest_remainder

Share = tuple[str, str]
"""SKU and model; ("", "") for a contract's minimum."""

_NEVER = 2**62


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the invoice's time within which no grant begins or ends, with its exact charges by share."""

    span: Span
    charged_pico: Mapping[Share, int]


@dataclass(frozen=True, slots=True)
class Use:
    """What an invoice takes from a grant."""

    grant: Grant
    cents: int


def spending_order(grants: Iterable[Grant]) -> list[Grant]:
    """The grants in the order in which they are spent."""
    return sorted(
        grants,
        key=lambda g: (g.priority, g.expires_ms or _NEVER, g.kind != "promotional", g.created_ms, g.id),
    )


def boundaries(span: Span, grants: Iterable[Grant]) -> list[Span]:
    """The span cut where grants begin and end."""
    cuts = {at for grant in grants for at in (grant.starts_ms, grant.expires_ms) if span[0] < at < span[1]}
    edges = [span[0], *sorted(cuts), span[1]]
    return list(pairwise(edges))


def spend(lines: Sequence[Line], grants: Iterable[Grant], segments: Sequence[Segment]) -> list[Use]:
    """What each grant pays of an invoice with these lines; `segments` are in order of time."""
    shares = shares_of(lines)
    left = min(sum(shares.values()), sum(round_to_cents(line.amount_pico) for line in lines))
    open_cents = _by_segment(shares, segments)
    uses: list[Use] = []
    for grant in spending_order(grants):
        credit = grant.left_pico // PICO_PER_CENT
        for number, segment in enumerate(segments):
            if not _holds(grant, segment.span):
                continue
            for share in shares:
                if grant.scope.covers(*share):
                    cents = max(0, min(open_cents[number, share], left, credit))
                    open_cents[number, share] -= cents
                    left, credit = left - cents, credit - cents
        paid = grant.left_pico // PICO_PER_CENT - credit
        if paid:
            uses.append(Use(grant, paid))
    return uses


def shares_of(lines: Sequence[Line]) -> dict[Share, int]:
    """Rounded cents by SKU and model, after terms and discount; what is not positive is left out."""
    sums: dict[Share, int] = {}
    discount = 0
    for line in lines:
        cents = round_to_cents(line.amount_pico)
        if line.kind == "discount":
            discount -= cents
        elif line.kind in ("charge", "terms", "minimum"):
            sums[line.sku, line.model_id] = sums.get((line.sku, line.model_id), 0) + cents
    shares = {share: cents for share, cents in sums.items() if cents > 0}
    discounted = [share for share in shares if share[0]]
    weights = [shares[share] for share in discounted]
    if discount > 0 and weights:
        parts = split_largest_remainder(min(discount, sum(weights)), weights)
        for share, part in zip(discounted, parts, strict=True):
            shares[share] -= part
    return shares


def _by_segment(shares: Mapping[Share, int], segments: Sequence[Segment]) -> dict[tuple[int, Share], int]:
    """Each share's cents split over the segments by what was charged in them; a minimum is due at the end."""
    found: dict[tuple[int, Share], int] = {}
    for share, cents in shares.items():
        weights = [max(0, segment.charged_pico.get(share, 0)) for segment in segments]
        if not any(weights):
            weights[-1] = 1
        for number, part in enumerate(split_largest_remainder(cents, weights)):
            found[number, share] = part
    return found


def _holds(grant: Grant, span: Span) -> bool:
    return grant.starts_ms <= span[0] and (not grant.expires_ms or span[1] <= grant.expires_ms)
