"""Search over the images of accounts: words, settings and likeness; prompt memory and taste."""
