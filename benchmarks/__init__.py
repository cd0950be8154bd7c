"""Comparisons of Limner with its peers on the same weights, in one run: see docs/guides/benchmarks.md."""
