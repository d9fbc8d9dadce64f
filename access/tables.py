"""Tables of organizations, projects and keys."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Table, Text, UniqueConstraint

from core.database import metadata

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
