"""Reliability of the service: processes are killed while clients work, and the result is checked."""
