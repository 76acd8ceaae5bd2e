"""Classification benchmarks: throughput and memory."""
