"""The tables of the ledger, in SQLAlchemy Core. What alters them is a script in `migrations/versions`.

Times are seconds since the epoch by the database's clock. States, lanes and kinds are those of
`limner.service.jobs`.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
    text,
)

HEAD = "v0010"
"""Revision of the schema that this program uses: the newest script in `migrations/versions`."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_Big = BigInteger().with_variant(Integer(), "sqlite")  # SQLite counts up INTEGER keys alone
_Json = JSON(none_as_null=True)

accounts = Table(
    "accounts",
    metadata,
    Column("id", String, primary_key=True),
    Column("role", String, nullable=False),
    Column("weight", Double, nullable=False),
    Column("quotas", _Json, nullable=False),
    Column("policy", _Json, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("disabled", Boolean, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("account_id", String, ForeignKey("accounts.id"), nullable=False, index=True),
    Column("name", String, nullable=False),
    Column("hash", String, nullable=False),
    Column("scopes", _Json, nullable=False),
    Column("policy", _Json, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("last_used_at", Double),
)

sets = Table(
    "sets",
    metadata,
    Column("seq", _Big, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("account_id", String, ForeignKey("accounts.id"), nullable=False),
    Column("key_id", String),
    Column("kind", String, nullable=False),
    Column("lane", String, nullable=False),
    Column("client", String, nullable=False),
    Column("request", _Json, nullable=False),
    Column("dial", _Json),  # field and values, one for each job
    Column("relation", String),  # of its images to their parents
    Column("warnings", _Json, nullable=False),
    Column("idempotency_key", String),
    Column("digest", String, nullable=False),
    Column("external_id", String),
    Column("webhook", _Json),
    Column("traceparent", String),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("account_id", "idempotency_key"),
    Index(None, "account_id", "seq"),
    Index(None, "account_id", "external_id"),
    sqlite_autoincrement=True,
)

# The images that those of a set were made from. Ids stay when an image is deleted.
set_parents = Table(
    "set_parents",
    metadata,
    Column("set_id", String, ForeignKey("sets.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("image_id", String, nullable=False, index=True),
)

# Requests to extend a set that had an idempotency key.
extensions = Table(
    "extensions",
    metadata,
    Column("account_id", String, primary_key=True),
    Column("idempotency_key", String, primary_key=True),
    Column("digest", String, nullable=False),
    Column("set_id", String, ForeignKey("sets.id", ondelete="CASCADE"), nullable=False, index=True),
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", _Big, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("set_id", String, ForeignKey("sets.id"), nullable=False),
    Column("index", Integer, nullable=False),
    Column("account_id", String, nullable=False),
    Column("key_id", String),
    Column("kind", String, nullable=False),
    Column("lane", String, nullable=False),
    Column("state", String, nullable=False),
    Column("params", _Json, nullable=False),
    Column("model", String, nullable=False),
    Column("predicted_seconds", Double, nullable=False),
    Column("position", Double, nullable=False),
    Column("passed_over", Integer, nullable=False, server_default=text("0")),
    Column("passed_since", Double),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("fence", Integer, nullable=False, server_default=text("0")),
    Column("cancel_requested", Boolean, nullable=False, server_default=false()),
    Column("notify", Boolean, nullable=False, server_default=false()),  # the set has a webhook
    Column("owner", String),
    Column("lease_seconds", Double),
    Column("lease_until", Double),
    Column("not_before", Double),
    Column("deadline_at", Double),
    Column("created_at", Double, nullable=False),
    Column("queued_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("error", _Json),
    Column("device_seconds", Double),
    Column("cost", Double),
    Column("safety", _Json),  # what the policy says about the prompts
    Index("ix_jobs_set_id_index", "set_id", "index"),
    Index("ix_jobs_account_id_seq", "account_id", "seq"),
    # Small whatever has been done before: they hold what is waiting or running now.
    *(
        Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))
        for name, columns, where in (
            ("ix_jobs_waiting", ("lane", "account_id", "position", "seq"), "state = 'queued'"),
            ("ix_jobs_paused", ("account_id",), "state = 'paused'"),
            ("ix_jobs_running", ("account_id", "lease_until"), "state = 'running'"),
            (
                "ix_jobs_deadline",
                ("deadline_at",),
                "deadline_at IS NOT NULL AND state IN ('queued', 'paused')",
            ),
        )
    ),
    sqlite_autoincrement=True,
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", String, ForeignKey("jobs.id"), primary_key=True),
    Column("fence", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, nullable=False),
    Column("worker", String, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("outcome", String),
    Column("error", _Json),
)

images = Table(
    "images",
    metadata,
    Column("seq", _Big, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("job_id", String, ForeignKey("jobs.id"), nullable=False, unique=True),
    Column("account_id", String, nullable=False),
    Column("key", String, nullable=False, unique=True),
    Column("sha256", String, nullable=False),
    Column("pixels_sha256", String, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("bytes", _Big, nullable=False),
    Column("record", _Json, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("kept", Boolean, nullable=False, server_default=false()),
    Column("deleted_at", Double),  # put into the trash
    Column("watermark", String),  # id
    Column("delivered_sha256", String),
    Column("delivered_bytes", _Big, nullable=False, server_default=text("0")),
    Column("safety", _Json),  # what the policy says about the pixels
    Column("blurred", Boolean, nullable=False, server_default=false()),  # what is delivered
    Index(None, "account_id", "seq"),
    Index(None, "created_at"),
    Index(None, "watermark"),
    # All that the compact index of a library needs: records make the rows of the table large.
    Index("ix_images_library", "account_id", "deleted_at", "seq", "kept", "width", "height", "created_at"),
    Index(
        "ix_images_trash",
        "deleted_at",
        sqlite_where=text("deleted_at IS NOT NULL"),
        postgresql_where=text("deleted_at IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
)

albums = Table(
    "albums",
    metadata,
    Column("id", String, primary_key=True),
    Column("account_id", String, ForeignKey("accounts.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    UniqueConstraint("account_id", "name"),
)

album_images = Table(
    "album_images",
    metadata,
    Column("album_id", String, ForeignKey("albums.id", ondelete="CASCADE"), primary_key=True),
    Column("number", _Big, ForeignKey("images.seq", ondelete="CASCADE"), primary_key=True, index=True),
)

# Images that the safety policy flags, blurs or blocks. One that is withheld has its row here and none in
# `images`, so that nothing that reads images finds it.
reviews = Table(
    "reviews",
    metadata,
    Column("seq", _Big, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("account_id", String, nullable=False),
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("fence", Integer, nullable=False),
    Column("image_id", String, index=True),  # None: blocked, and not stored
    Column("stage", String, nullable=False),
    Column("action", String, nullable=False),  # of the decision
    Column("decision", _Json, nullable=False),  # of the policy
    Column("state", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("withheld", _Json),  # the columns of the image, and the ids of its albums
    Column("withheld_key", String, unique=True),
    Column("withheld_at", Double),
    Index(None, "account_id", "seq"),
    *(
        Index(name, column, sqlite_where=text(where), postgresql_where=text(where))
        for name, column, where in (
            ("ix_reviews_open", "seq", "state = 'open'"),
            ("ix_reviews_withheld_at", "withheld_at", "withheld_at IS NOT NULL"),
        )
    ),
    sqlite_autoincrement=True,
)

# What people have decided about reviews. No row is changed or deleted while the review is there.
review_decisions = Table(
    "review_decisions",
    metadata,
    Column("seq", _Big, primary_key=True, autoincrement=True),
    Column("review_id", String, ForeignKey("reviews.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("decision", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("at", Double, nullable=False),
    Column("note", String, nullable=False),
)

# Notices to accounts about their images.
notices = Table(
    "notices",
    metadata,
    Column("seq", _Big, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("account_id", String, ForeignKey("accounts.id"), nullable=False),
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("image_id", String),
    Column("cause", String, nullable=False),
    Column("delivery", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("note", String, nullable=False),
    Column("at", Double, nullable=False),
    Column("read_at", Double),
    Index(None, "account_id", "seq"),
)

usage = Table(
    "usage",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("fence", Integer, primary_key=True, autoincrement=False),
    Column("account_id", String, nullable=False),
    Column("key_id", String),
    Column("kind", String, nullable=False),
    Column("model", String, nullable=False),
    Column("images", Integer, nullable=False),
    Column("predicted_seconds", Double, nullable=False),
    Column("device_seconds", Double, nullable=False),
    Column("cost", Double, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("at", Double, nullable=False),
    Index(None, "account_id", "at"),
    Index(None, "at"),
)

events = Table(
    "events",
    metadata,
    Column("id", _Big, primary_key=True, autoincrement=True),
    # PostgreSQL only: ids are given before transactions commit, in another order than they become visible.
    Column("seq", _Big, unique=True),
    Column("account_id", String, nullable=False),
    # Of the job that has changed. Changes of a library are of none: they have "", "" and 0.
    Column("set_id", String, nullable=False),
    Column("job_id", String, nullable=False),
    Column("index", Integer, nullable=False),
    Column("change", String, nullable=False),
    Column("at", Double, nullable=False),
    Column("data", _Json, nullable=False),
    Index(None, "account_id", "id"),
    sqlite_autoincrement=True,
)

counters = Table(
    "counters",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", _Big, nullable=False),
)
COUNTERS = ("events", "audit")
"""Rows of `counters`: numbers of events in PostgreSQL, and leaves of the audit log."""


# The audit log. Entries are written into the first table in the transaction of what they record, and moved
# into the second as the leaves of a Merkle tree, in which no name of an account stands: `auditing`.
def _entry() -> tuple[Column[Any], ...]:
    return (
        Column("at", Double, nullable=False),
        Column("actor", String, nullable=False),
        Column("action", String, nullable=False),
        Column("subject", String, nullable=False),
        Column("details", _Json, nullable=False),
    )


audit = Table(
    "audit",
    metadata,
    Column("id", _Big, primary_key=True, autoincrement=True),
    *_entry(),
    Column("prompts", _Json),  # by the field of the request, as they were given
    sqlite_autoincrement=True,
)

audit_leaves = Table(
    "audit_leaves",
    metadata,
    Column("leaf", _Big, primary_key=True, autoincrement=False),
    Column("id", _Big, nullable=False, unique=True),
    *_entry(),
    Column("hash", LargeBinary, nullable=False),
    Column("prompts", _Json),  # where they are kept as they are; the leaf has hashes of them
    Index(None, "subject"),
    Index(
        "ix_audit_leaves_prompts",
        "at",
        sqlite_where=text("prompts IS NOT NULL"),
        postgresql_where=text("prompts IS NOT NULL"),
    ),
)

# Inner nodes of the tree, at every eighth level, so that a root or a proof needs few reads.
audit_nodes = Table(
    "audit_nodes",
    metadata,
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("number", _Big, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
)

audit_checkpoints = Table(
    "audit_checkpoints",
    metadata,
    Column("size", _Big, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("note", String, nullable=False),
)

# The public keys of the log, one after the other.
audit_signers = Table(
    "audit_signers",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("key", String, nullable=False),
    Column("created_at", Double, nullable=False),
)

# What the entries call an account, and what its prompts are sealed with. Both end with the account.
audit_aliases = Table(
    "audit_aliases",
    metadata,
    Column("account_id", String, primary_key=True),
    Column("alias", String, nullable=False, unique=True),
)

audit_keys = Table(
    "audit_keys",
    metadata,
    Column("account_id", String, primary_key=True),
    Column("month", String, primary_key=True),
    Column("key", LargeBinary, nullable=False),
)

# Fair sharing: the tags of `limner.service.ledger.order`. The row of a lane itself has the account "": its
# own start and finish tag, and the virtual time between its accounts.
shares = Table(
    "shares",
    metadata,
    Column("lane", String, primary_key=True),
    Column("account_id", String, primary_key=True),
    Column("start", Double, nullable=False, server_default=text("0")),
    Column("finish", Double, nullable=False, server_default=text("0")),
    Column("virtual", Double, nullable=False, server_default=text("0")),
)

workers = Table(
    "workers",
    metadata,
    Column("id", String, primary_key=True),
    Column("device", String, nullable=False),
    Column("warm", _Json, nullable=False),
    Column("details", _Json, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
)

uploads = Table(
    "uploads",
    metadata,
    Column("account_id", String, ForeignKey("accounts.id"), primary_key=True),
    Column("sha256", String, primary_key=True),
    Column("bytes", _Big, nullable=False),
    Column("media_type", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("used_at", Double, nullable=False),
    Index(None, "sha256"),
)

preferences = Table(
    "preferences",
    metadata,
    Column("account_id", String, ForeignKey("accounts.id"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("value", _Json, nullable=False),
    Column("updated_at", Double, nullable=False),
)

drafts = Table(
    "drafts",
    metadata,
    Column("account_id", String, ForeignKey("accounts.id"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("value", _Json, nullable=False),
    Column("version", Integer, nullable=False),
    Column("updated_at", Double, nullable=False),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String, primary_key=True),
    Column("set_id", String, ForeignKey("sets.id"), nullable=False, index=True),
    Column("account_id", String, nullable=False),
    Column("webhook", _Json, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("due_at", Double),  # None: delivered, or given up
    Column("attempts", Integer, nullable=False),
    Column("delivered_at", Double),
    Column("status", Integer),
    Column("error", String),
    Index(None, "due_at"),
)
