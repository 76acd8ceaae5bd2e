"""Benchmarks: speed, memory and accuracy against other libraries and our own limits. See README.md."""
