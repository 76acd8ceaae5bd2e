"""What a first session on a real GPU proves and measures, in under nine minutes: `python -m benchmarks.gpu.first_run`."""
