"""Hypothesis settings of all tests, and the device of those that are marked `gpu`."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from cnn.backends import gpu
from tests import cuda_cpu

# The same examples in every run, and no time limit per example.
settings.register_profile("stable", derandomize=True, database=None, deadline=None)
settings.load_profile("stable")


@pytest.fixture(autouse=True)
def _gpu_or_emulator(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where there is no GPU, run tests marked `gpu` on the emulated one, under its checker.

    Each kernel runs in three orders of threads and blocks, which must give the same bits, for all sizes it is given.
    """
    if not request.node.get_closest_marker("gpu") or not gpu.why_unusable():
        yield
        return
    if reason := cuda_cpu.why_unusable():
        pytest.skip(reason)
    with cuda_cpu.emulated_cuda() as cupy, cupy._kernels.first_in_orders((0, 1, 2)):
        yield
