"""Of several reasons to refuse a call, the one to tell: first what waiting cannot mend, then the longest wait."""

from collections.abc import Sequence

import msgspec

from access.admission.model import Reason, Refusal
from access.admission.values import Figures

_RANK: dict[Reason, int] = {"too_large": 3, "no_price": 2, "budget": 2, "unavailable": 1}


def hardest(found: Sequence[Refusal], requests: Figures | None, tokens: Figures | None) -> Refusal:
    """The refusal to answer with: when its time has come, none of the others is in the way any more."""
    assert found, "a call is refused for a reason"
    chosen = max(found, key=lambda refusal: (_RANK.get(refusal.reason, 0), refusal.retry_after_ms))
    return msgspec.structs.replace(chosen, requests=requests, tokens=tokens)
