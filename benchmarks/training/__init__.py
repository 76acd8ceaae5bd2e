"""Training benchmarks: step time, profile, rounding error and the seed project."""
