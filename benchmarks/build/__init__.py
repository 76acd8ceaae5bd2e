"""Dataset build benchmarks: throughput, memory, codecs and near-duplicate detection."""
