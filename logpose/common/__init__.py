"""Helpers shared by pipeline, cnn and jobs, and independent of all three."""
