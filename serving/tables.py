"""Tables of endpoints, deployments and replicas."""

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, Table, Text, text, true

from core.database import metadata

_LIVING = text("deleted_ms IS NULL")

endpoints = Table(
    "endpoints",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),  # serverless | online
    Column("name", Text, nullable=False),
    Column("name_key", Text, nullable=False),  # the name in lower case: `Chat` and `chat` may not both live
    Column("org_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("model_id", Text, nullable=False),
    Column("deployment_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("tags", Text, nullable=False),  # JSON object of texts
    Column("created_ms", BigInteger, nullable=False),
    Column("deleted_ms", BigInteger, nullable=True),  # rows stay: their minutes were billed
    Column("content_safety", Boolean, nullable=False, server_default=true()),
    Index(
        "uq_endpoints_living_name", "name_key", unique=True, sqlite_where=_LIVING, postgresql_where=_LIVING
    ),
    Index("ix_endpoints_project_id", "project_id"),
    Index("ix_endpoints_org_id", "org_id"),
    Index("ix_endpoints_deployment_id", "deployment_id"),
)

# Beside the model of the endpoint's own row, which is the deployment `default`.
serverless_deployments = Table(
    "serverless_deployments",
    metadata,
    Column("endpoint_id", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("model_id", Text, nullable=False),
    Column("deployment_id", Text, nullable=False),  # the model's pool
    Column("mirror_percent", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Index("ix_serverless_deployments_deployment_id", "deployment_id"),
    Index("ix_serverless_deployments_model_id", "model_id"),
)

subscriptions = Table(
    "marketplace_subscriptions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("org_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("model_id", Text, nullable=False),  # the one that it was made for; it is good for all of the offer
    Column("offer", Text, nullable=False),
    Column("terms_url", Text, nullable=False),  # as they were accepted
    Column("accepted_by", Text, nullable=False),  # the key's id
    Column("created_ms", BigInteger, nullable=False),
    Column("deleted_ms", BigInteger, nullable=True),  # rows stay: who accepted what, and when
    Index(
        "uq_subscriptions_living_name", "name", unique=True, sqlite_where=_LIVING, postgresql_where=_LIVING
    ),
    Index(
        "uq_subscriptions_living_offer",
        "project_id",
        "offer",
        unique=True,
        sqlite_where=_LIVING,
        postgresql_where=_LIVING,
    ),
)

deployments = Table(
    "deployments",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),  # pool | online
    # A pool belongs to no organization: every organization's endpoints on the model share it.
    Column("model_id", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("deleted_ms", BigInteger, nullable=True),
    Index(
        "uq_deployments_living_pool",
        "model_id",
        unique=True,
        sqlite_where=text("kind = 'pool' AND deleted_ms IS NULL"),
        postgresql_where=text("kind = 'pool' AND deleted_ms IS NULL"),
    ),
)

replicas = Table(
    "replicas",
    metadata,
    Column("id", Text, primary_key=True),
    Column("deployment_id", Text, nullable=False),
    Column("state", Text, nullable=False),  # starting | ready | stopping | stopped | failed
    Column("phase", Text, nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    Column("spawned_ms", BigInteger, nullable=True),
    Column("ready_ms", BigInteger, nullable=True),
    Column("stopped_ms", BigInteger, nullable=True),
    Column("reason", Text, nullable=False),
    Column("pid", BigInteger, nullable=True),  # also its process group and session
    Column("process_mark", Text, nullable=False),
    Column("port", Integer, nullable=True),
    Column("spec_hash", Text, nullable=False),
    Index("ix_replicas_deployment_id", "deployment_id", "started_ms"),
    Index("ix_replicas_state", "state"),
)
