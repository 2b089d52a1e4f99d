"""Benchmarks: engines timed side by side. Not part of the package; run by the `make bench-…` targets."""
