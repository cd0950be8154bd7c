"""Run by alembic: migrates over the connection that `database.migrate` hands it, in its transaction."""

from alembic import context

from limner.service.ledger.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
)
context.run_migrations()
