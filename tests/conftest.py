"""For all tests: Hypothesis draws the same examples every time, and none has to be quick."""

from hypothesis import settings

settings.register_profile("stable", derandomize=True, database=None, deadline=None)
settings.load_profile("stable")
