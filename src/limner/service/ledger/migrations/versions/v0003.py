"""The library: images are kept, put into the trash and into albums, and know what they were made from."""

import sqlalchemy as sa
from alembic import op

revision = "v0003"
down_revision = "v0002"
branch_labels = None
depends_on = None

_IN_TRASH = sa.text("deleted_at IS NOT NULL")


def upgrade() -> None:
    op.add_column("sets", sa.Column("relation", sa.String(), nullable=True))
    op.create_table(
        "set_parents",
        sa.Column("set_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("image_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["set_id"], ["sets.id"], name="fk_set_parents_set_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("set_id", "position", name="pk_set_parents"),
    )
    op.create_index("ix_set_parents_image_id", "set_parents", ["image_id"], unique=False)
    op.add_column("images", sa.Column("kept", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("images", sa.Column("deleted_at", sa.Double(), nullable=True))
    op.create_index(
        "ix_images_library",
        "images",
        ["account_id", "deleted_at", "seq", "kept", "width", "height", "created_at"],
        unique=False,
    )
    op.create_index(
        "ix_images_trash",
        "images",
        ["deleted_at"],
        unique=False,
        sqlite_where=_IN_TRASH,
        postgresql_where=_IN_TRASH,
    )
    op.create_table(
        "albums",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_albums_account_id"),
        sa.PrimaryKeyConstraint("id", name="pk_albums"),
        sa.UniqueConstraint("account_id", "name", name="uq_albums_account_id_name"),
    )
    op.create_table(
        "album_images",
        sa.Column("album_id", sa.String(), nullable=False),
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(
            ["album_id"], ["albums.id"], name="fk_album_images_album_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["number"], ["images.seq"], name="fk_album_images_number", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("album_id", "number", name="pk_album_images"),
    )
    op.create_index("ix_album_images_number", "album_images", ["number"], unique=False)
