"""Training from scratch and further: one loop (`loop.train`), a task for each thing trained."""
