"""Inference benchmarks."""
