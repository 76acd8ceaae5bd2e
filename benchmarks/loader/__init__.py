"""Data loading benchmarks."""
