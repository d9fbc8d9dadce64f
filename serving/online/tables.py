"""Tables of online endpoints, their deployments, and the operations that change them."""

from sqlalchemy import BigInteger, Column, Index, Integer, Table, Text, UniqueConstraint, text

from core.database import metadata

_LIVING = text("deleted_ms IS NULL")

# Beside the row in `endpoints` of kind `online`, whose model_id and deployment_id are empty.
online_endpoints = Table(
    "online_endpoints",
    metadata,
    Column("endpoint_id", Text, primary_key=True),
    Column("spec", Text, nullable=False),  # JSON of EndpointSpec, without the two below
    Column("traffic", Text, nullable=False),  # JSON object: percent by deployment name
    Column("mirror_traffic", Text, nullable=False),  # the same, at most one entry
    Column("provisioning_state", Text, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
)

# Beside the row in `deployments` of kind `online`, whose model_id is the catalog model's or empty.
online_deployments = Table(
    "online_deployments",
    metadata,
    Column("id", Text, primary_key=True),
    Column("endpoint_id", Text, nullable=False),
    Column("org_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("name_key", Text, nullable=False),  # in lower case: `Blue` and `blue` may not both live
    Column("spec", Text, nullable=False),  # JSON of DeploymentSpec
    Column("provisioning_state", Text, nullable=False),  # Creating | Updating | Succeeded | Failed | Deleting
    Column("failure_code", Text, nullable=False),
    Column("failure_message", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("instance_count", Integer, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Column("deleted_ms", BigInteger, nullable=True),  # rows stay: what they served was metered
    Index(
        "uq_online_deployments_living_name",
        "endpoint_id",
        "name_key",
        unique=True,
        sqlite_where=_LIVING,
        postgresql_where=_LIVING,
    ),
    Index("ix_online_deployments_provisioning_state", "provisioning_state"),
)

operations = Table(
    "operations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("target", Text, nullable=False),  # id of the endpoint or deployment
    Column("endpoint_id", Text, nullable=False),
    Column("state", Text, nullable=False),  # Running | Succeeded | Failed
    Column("error", Text, nullable=True),  # JSON: code, message
    Column("detail", Text, nullable=False),  # JSON: what is to be done when it succeeds
    Column("phase", Text, nullable=False),  # what it is doing, for people
    Column("started_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger, nullable=True),
    Index("ix_operations_endpoint_id", "endpoint_id", "state"),
    Index("ix_operations_target", "target", "state"),
    Index("ix_operations_ended_ms", "ended_ms"),
)

# Registered models and environments.
assets = Table(
    "assets",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),  # model | environment
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("document", Text, nullable=False),  # JSON: the YAML's fields, with absolute paths
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("kind", "name", "version"),
)
