"""Accuracy benchmarks: ablations, calibration, JPEG, and training in PyTorch."""
