"""Tables of organizations, projects, keys, limits and budgets."""

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Table, Text, UniqueConstraint

from core.database import ROW_NUMBER, metadata
from core.money_column import Pico

organizations = Table(
    "organizations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created_ms", BigInteger, nullable=False),
)

projects = Table(
    "projects",
    metadata,
    Column("id", Text, primary_key=True),
    Column("org_id", Text, ForeignKey("organizations.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("org_id", "name"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),  # admin | project | endpoint
    Column("key_hash", Text, nullable=False, unique=True),  # SHA-256, hex; the key itself is nowhere
    Column("hint", Text, nullable=False),  # the first and last characters, to tell keys apart
    Column("name", Text, nullable=False),
    Column("org_id", Text, nullable=False),  # "" for an admin key
    Column("project_id", Text, nullable=False),
    Column("endpoint_id", Text, nullable=False),
    Column("slot", Text, nullable=False),  # primary | secondary for an endpoint key, else ""
    Column("sealed", Text, nullable=False),  # an endpoint key under the home's secret, else ""
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),  # 0: never
    Column("revoked_ms", BigInteger, nullable=False),  # 0: not revoked
    Index("ix_api_keys_project_id", "project_id"),
    Index("ix_api_keys_endpoint_id", "endpoint_id"),
)

# What a key, project, organization or endpoint may do. No row: an endpoint has the defaults, others no limit.
limits = Table(
    "limits",
    metadata,
    Column("scope_id", Text, primary_key=True),
    Column("scope", Text, nullable=False),  # key | project | organization | endpoint
    Column("org_id", Text, nullable=False),
    Column("requests_per_minute", BigInteger),  # NULL: no limit
    Column("requests_per_day", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("parallel_requests", BigInteger),
    Column(
        "open_on_outage", Boolean, nullable=False
    ),  # of an organization: serve while limits cannot be checked
    Column("updated_ms", BigInteger, nullable=False),
)

budgets = Table(
    "budgets",
    metadata,
    Column("id", Text, primary_key=True),
    Column("scope", Text, nullable=False),  # key | project | organization
    Column("scope_id", Text, nullable=False),
    Column("org_id", Text, nullable=False),
    Column("amount_pico", Pico, nullable=False),
    Column("time_window", Text, nullable=False),  # day | month | total
    Column("hard", Boolean, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    # What is on record as spent in the window that starts at window_ms (0 for total).
    Column("window_ms", BigInteger, nullable=False),
    Column("spent_pico", Pico, nullable=False),
    Column("version", BigInteger, nullable=False),  # grows with each change of the two above
    # Shares in per cent at which somebody is told, as 50,80,100; and the highest that was told of in this window.
    Column("alerts", Text, nullable=False, server_default="50,80,100"),
    Column("alerted_percent", BigInteger, nullable=False, server_default="0"),
    Index("ix_budgets_scope_id", "scope_id"),
    Index("ix_budgets_org_id", "org_id"),
)

# What gateways read of budgets that moved: rows at the end of a table, where an index of versions would be changed all
# over with every call. The newest minute of them is kept.
budget_moves = Table(
    "budget_moves",
    metadata,
    Column("seq", ROW_NUMBER, primary_key=True, autoincrement=True),
    Column("budget_id", Text, nullable=False),
    Column("window_ms", BigInteger, nullable=False),
    Column("spent_pico", Pico, nullable=False),
    Column("version", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
