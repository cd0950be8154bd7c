"""Deadlines of waiting jobs are found by an index."""

import sqlalchemy as sa
from alembic import op

revision = "v0002"
down_revision = "v0001"
branch_labels = None
depends_on = None

_WAITING = sa.text("deadline_at IS NOT NULL AND state IN ('queued', 'paused')")


def upgrade() -> None:
    op.create_index(
        "ix_jobs_deadline",
        "jobs",
        ["deadline_at"],
        unique=False,
        sqlite_where=_WAITING,
        postgresql_where=_WAITING,
    )
