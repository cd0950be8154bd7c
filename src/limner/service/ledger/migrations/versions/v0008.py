"""A set can be extended under an idempotency key."""

import sqlalchemy as sa
from alembic import op

revision = "v0008"
down_revision = "v0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "extensions",
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("idempotency_key", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("set_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["set_id"], ["sets.id"], name="fk_extensions_set_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("account_id", "idempotency_key", name="pk_extensions"),
    )
    op.create_index("ix_extensions_set_id", "extensions", ["set_id"], unique=False)
