"""Limner beside its peers on the same weights, side by side in one run; `docs/guides/benchmarks.md` says more."""
