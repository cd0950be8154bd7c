"""The service without HTTP: jobs in a ledger, workers that run them, storage, accounts, usage and metrics."""
