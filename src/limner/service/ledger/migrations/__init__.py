"""Alembic scripts that bring a database to the schema of this program."""
