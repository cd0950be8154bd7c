"""Reviews of what the safety policy flags, blurs and blocks; notices; which images are delivered blurred."""

import sqlalchemy as sa
from alembic import op

revision = "v0010"
down_revision = "v0009"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_JSON = sa.JSON(none_as_null=True)


def upgrade() -> None:
    op.add_column("images", sa.Column("blurred", sa.Boolean(), server_default=sa.false(), nullable=False))
    images = sa.table("images", sa.column("safety", _JSON), sa.column("blurred", sa.Boolean()))
    op.execute(sa.update(images).where(images.c.safety["action"].as_string() == "blur").values(blurred=True))
    op.create_table(
        "reviews",
        sa.Column("seq", _BIG, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("image_id", sa.String(), nullable=True),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("decision", _JSON, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("withheld", _JSON, nullable=True),
        sa.Column("withheld_key", sa.String(), nullable=True),
        sa.Column("withheld_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_reviews_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("seq", name="pk_reviews"),
        sa.UniqueConstraint("id", name="uq_reviews_id"),
        sa.UniqueConstraint("withheld_key", name="uq_reviews_withheld_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_reviews_account_id_seq", "reviews", ["account_id", "seq"], unique=False)
    op.create_index("ix_reviews_image_id", "reviews", ["image_id"], unique=False)
    op.create_index("ix_reviews_job_id", "reviews", ["job_id"], unique=False)
    for name, column, where in (
        ("ix_reviews_open", "seq", "state = 'open'"),
        ("ix_reviews_withheld_at", "withheld_at", "withheld_at IS NOT NULL"),
    ):
        op.create_index(
            name,
            "reviews",
            [column],
            unique=False,
            sqlite_where=sa.text(where),
            postgresql_where=sa.text(where),
        )
    op.create_table(
        "review_decisions",
        sa.Column("seq", _BIG, autoincrement=True, nullable=False),
        sa.Column("review_id", sa.String(), nullable=False),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["review_id"], ["reviews.id"], name="fk_review_decisions_review_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("seq", name="pk_review_decisions"),
    )
    op.create_index("ix_review_decisions_review_id", "review_decisions", ["review_id"], unique=False)
    op.create_table(
        "notices",
        sa.Column("seq", _BIG, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("image_id", sa.String(), nullable=True),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("delivery", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("read_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_notices_account_id"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_notices_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("seq", name="pk_notices"),
        sa.UniqueConstraint("id", name="uq_notices_id"),
    )
    op.create_index("ix_notices_account_id_seq", "notices", ["account_id", "seq"], unique=False)
    op.create_index("ix_notices_job_id", "notices", ["job_id"], unique=False)
