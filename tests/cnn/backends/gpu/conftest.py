"""Fixtures of the GPU backend's tests, which need no GPU: without one, kernels are emulated on the CPU."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from cnn.backends import gpu
from tests import cuda_cpu


@pytest.fixture(scope="module")
def device() -> Iterator[Any]:
    """The module `cupy`: the real one where it can use a GPU, else the stand-in, until the test module ends."""
    if not gpu.why_unusable():
        import cupy

        yield cupy
        return
    if reason := cuda_cpu.why_unusable():
        pytest.skip(reason)
    with cuda_cpu.emulated_cuda() as cupy:
        yield cupy


@pytest.fixture
def emulator(device: Any) -> Iterator[Any]:
    """The stand-in for CuPy, with its counters at zero; skips the test where there is a real GPU."""
    if not hasattr(device.cuda, "schedule"):
        pytest.skip("tests what only the emulator can show")
    device.cuda.finish_all()
    for counter in (device.cuda.waits, device.cuda.launches, device.cuda.copied, device.cuda.grown):
        counter.clear()
    yield device
    device.cuda.discard_all()


@pytest.fixture(scope="module")
def checked() -> None:
    """For tests of the checker of loads and stores."""
    if os.environ.get("CUDA_CPU_CHECK", "1") != "1":
        pytest.skip("loads and stores are not checked")


@pytest.fixture(params=("late", "early", "copies", "kernels"))
def stream_schedule(request: pytest.FixtureRequest, device: Any) -> Iterator[str]:
    """Run the test once in each schedule of streams that CUDA allows; once on a real GPU."""
    if hasattr(device.cuda, "schedule"):
        with device.cuda.schedule(request.param):
            yield request.param
    elif request.param == "late":
        yield "real"
    else:
        pytest.skip("a GPU has its own schedule")


@pytest.fixture
def cuda_environment(device: Any) -> dict[str, str]:
    """The environment in which a subprocess has the same device."""
    return cuda_cpu.environment() if hasattr(device.cuda, "schedule") else dict(os.environ)
