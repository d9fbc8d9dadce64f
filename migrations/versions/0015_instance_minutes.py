"""instance minutes

Revision: 0015, after 0014. Minutes of instances are counted beside those of their endpoint, and priced by instance type,
which is no model of the catalog: so prices refer to no row of it any more. What stands in the tables stays as it is.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    column = sa.Column("of_endpoint_id", sa.Text(), nullable=False, server_default="")
    op.add_column("endpoint_cursors", column)
    for table in ("model_prices", "price_proposals"):
        with op.batch_alter_table(table) as batch_op:  # SQLite makes the table anew
            batch_op.drop_constraint(op.f(f"fk_{table}_model_id"), type_="foreignkey")


def downgrade() -> None:
    raise NotImplementedError("Farebox migrates forward only; restore a backup instead")
