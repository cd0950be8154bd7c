"""X/Y/Z plots: one request with the values of up to three axes."""
