"""Metrics and confidence calibration of a network's outputs."""
