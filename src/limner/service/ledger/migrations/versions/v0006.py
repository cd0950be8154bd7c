"""The audit log is a Merkle tree. Entries that are there become its leaves when the service starts."""

import sqlalchemy as sa
from alembic import op

revision = "v0006"
down_revision = "v0005"
branch_labels = None
depends_on = None

_KEPT = sa.text("prompts IS NOT NULL")


def _big() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.drop_index("ix_audit_subject", "audit")
    op.add_column("audit", sa.Column("prompts", sa.JSON(none_as_null=True), nullable=True))
    op.create_table(
        "audit_leaves",
        sa.Column("leaf", _big(), autoincrement=False, nullable=False),
        sa.Column("id", _big(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("details", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("prompts", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("leaf", name="pk_audit_leaves"),
        sa.UniqueConstraint("id", name="uq_audit_leaves_id"),
    )
    op.create_index("ix_audit_leaves_subject", "audit_leaves", ["subject"], unique=False)
    op.create_index(
        "ix_audit_leaves_prompts",
        "audit_leaves",
        ["at"],
        unique=False,
        sqlite_where=_KEPT,
        postgresql_where=_KEPT,
    )
    op.create_table(
        "audit_nodes",
        sa.Column("level", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", _big(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "number", name="pk_audit_nodes"),
    )
    op.create_table(
        "audit_checkpoints",
        sa.Column("size", _big(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("size", name="pk_audit_checkpoints"),
    )
    op.create_table(
        "audit_signers",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_audit_signers"),
    )
    op.create_table(
        "audit_aliases",
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", name="pk_audit_aliases"),
        sa.UniqueConstraint("alias", name="uq_audit_aliases_alias"),
    )
    op.create_table(
        "audit_keys",
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("month", sa.String(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "month", name="pk_audit_keys"),
    )
