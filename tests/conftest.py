"""Hypothesis settings of all tests: the same examples in every run, and no time limit per example."""

from hypothesis import settings

settings.register_profile("stable", derandomize=True, database=None, deadline=None)
settings.load_profile("stable")
