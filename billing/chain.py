"""The ledger's hash chain: one per organization, so that it can be shown to that organization alone. Pure.

`hash(n) = SHA-256(hash(n-1) ‖ canonical JSON of transaction n with its postings)`, hexadecimal; the hash before the
first is empty. Whoever holds one hash (it is printed on every invoice) can tell whether anything before it was
changed, left out or put in.
"""

import hashlib

import msgspec

from billing.entries import LedgerTransaction

GENESIS = ""
_encoder = msgspec.json.Encoder()


def link(previous: str, seq: int, transaction: LedgerTransaction, posted_ms: int) -> str:
    """The hash of a transaction that follows the one with hash `previous`."""
    return hashlib.sha256(previous.encode() + canonical(seq, transaction, posted_ms)).hexdigest()


def canonical(seq: int, transaction: LedgerTransaction, posted_ms: int) -> bytes:
    """The transaction as one JSON array. Amounts are texts: JSON numbers of readers end at 2^53."""
    return _encoder.encode(
        [
            seq,
            transaction.id,
            transaction.kind,
            transaction.org_id,
            transaction.project_id,
            transaction.key_id,
            transaction.endpoint_id,
            transaction.model_id,
            transaction.minute_ms,
            transaction.service_minute_ms,
            posted_ms,
            [
                [p.account, p.sku, p.quantity, str(p.unit_price_pico), p.price_version, str(p.amount_pico)]
                for p in transaction.postings
            ],
        ]
    )
