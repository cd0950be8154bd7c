"""Limner beside its peers on the same weights, side by side in one run: see docs/guides/benchmarks.md."""
