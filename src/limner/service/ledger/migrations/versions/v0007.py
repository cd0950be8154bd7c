"""Images have a watermark, hash and size of the file that is delivered, and a decision about their pixels."""

import sqlalchemy as sa
from alembic import op

revision = "v0007"
down_revision = "v0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("images", sa.Column("watermark", sa.String(), nullable=True))
    op.add_column("images", sa.Column("delivered_sha256", sa.String(), nullable=True))
    op.add_column(
        "images",
        sa.Column(
            "delivered_bytes",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            server_default=sa.text("0"),
            nullable=False,
        ),
    )
    op.add_column("images", sa.Column("safety", sa.JSON(none_as_null=True), nullable=True))
    op.create_index("ix_images_watermark", "images", ["watermark"], unique=False)
