"""The `limner` command: one file per command, each of which imports what is heavy when it runs."""
