"""Images: pixels, records, and the metadata of every program."""
