"""Jobs have the decision of the safety policy about their prompts."""

import sqlalchemy as sa
from alembic import op

revision = "v0005"
down_revision = "v0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("safety", sa.JSON(none_as_null=True), nullable=True))
