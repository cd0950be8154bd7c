"""Sets have a dial."""

import sqlalchemy as sa
from alembic import op

revision = "v0009"
down_revision = "v0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sets", sa.Column("dial", sa.JSON(none_as_null=True), nullable=True))
