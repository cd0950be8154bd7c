"""A loaded model: its facts, and the execution of model calls."""
