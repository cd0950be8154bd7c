"""The ledger: accounts, jobs, their results and their usage in SQLite or PostgreSQL."""
