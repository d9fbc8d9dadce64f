"""Tables of models and their price versions."""

from sqlalchemy import BigInteger, Boolean, Column, Index, Table, Text, UniqueConstraint, false

from core.database import metadata

models = Table(
    "models",
    metadata,
    Column("id", Text, primary_key=True),
    Column("task", Text, nullable=False),
    Column("origin", Text, nullable=False),  # builtin | operator
    Column("spec", Text, nullable=False),  # the whole ModelSpec as JSON
    Column("created_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Column("removed_ms", BigInteger, nullable=False),  # 0: in the catalog; a removed model's prices stay
)

model_prices = Table(
    "model_prices",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model_id", Text, nullable=False),  # of the catalog, or `instance:` and an instance type
    Column("starts_ms", BigInteger, nullable=False),  # a full UTC minute, 0 for the first version
    Column(
        "org_id", Text, nullable=False, server_default=""
    ),  # "" for everybody, else one organization's own
    Column("unit_prices", Text, nullable=False),  # JSON: SKU to pico-dollars
    Column("terms", Text, nullable=False, server_default="{}"),  # JSON: SKU to tiers and the like (terms.py)
    Column("ended", Boolean, nullable=False, server_default=false()),  # from here on the list's prices again
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("model_id", "org_id", "starts_ms"),
    Index("ix_model_prices_org_id", "org_id"),
)

# Prices that wait for a second person, and what became of them.
price_proposals = Table(
    "price_proposals",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model_id", Text, nullable=False),  # of the catalog, or `instance:` and an instance type
    Column("org_id", Text, nullable=False),  # "" for everybody
    Column("starts_ms", BigInteger, nullable=False),  # 0: with the approval
    Column("unit_prices", Text, nullable=False),
    Column("terms", Text, nullable=False),
    Column("ended", Boolean, nullable=False),
    Column("note", Text, nullable=False),
    Column("state", Text, nullable=False),  # proposed | approved | rejected | withdrawn
    Column("proposed_by", Text, nullable=False),  # a key's id
    Column("proposed_ms", BigInteger, nullable=False),
    Column("decided_by", Text, nullable=False),
    Column("decided_ms", BigInteger, nullable=False),
    Column("decision_note", Text, nullable=False),
    Column("version_id", Text, nullable=False),
    Index("ix_price_proposals_state", "state"),
)

builtin_files = Table(
    "builtin_files",
    metadata,
    Column("name", Text, primary_key=True),
    Column("digest", Text, nullable=False),  # of the file that was last read into `models`
)
