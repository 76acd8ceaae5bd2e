"""The stand-in for CuPy: how it replaces CuPy in tests, what it refuses, and its memory."""

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from cnn.backends import gpu, pick_backend
from tests import cuda_cpu

CODE = r"""
struct Pair { float first, second; };
extern "C" __global__ void __launch_bounds__(128) scale(float* y, const float* x, float factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = factor * x[i];
}
extern "C" __global__ void count(long long* y, double a, bool flag, Pair pair) {
    y[0] = (long long)(a + pair.first + pair.second) + flag;
}
"""
N = 24


@pytest.fixture(scope="module")
def kernels(device: Any) -> Any:
    return device.RawModule(code=CODE)


def numbers(emulator: Any, value: float = 1.0) -> Any:
    return emulator.asarray(np.full(N, value, np.float32))


def test_the_stand_in_is_gone_after_the_block() -> None:
    usable = not gpu.why_unusable()
    if cuda_cpu.why_unusable():
        pytest.skip(cuda_cpu.why_unusable())
    for _ in range(2):
        with cuda_cpu.emulated_cuda() as cupy:
            assert sys.modules["cupy"] is cupy and not gpu.why_unusable()
            assert pick_backend("auto").name == "cuda"
        assert (not gpu.why_unusable()) == usable
        assert "cupy" not in sys.modules or sys.modules["cupy"] is not cupy


def test_a_subprocess_can_have_the_stand_in(device: Any, cuda_environment: dict[str, str]) -> None:
    program = "from cnn.backends import pick_backend; print(pick_backend('cuda').description)"
    done = subprocess.run([sys.executable, "-c", program], env=cuda_environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("cuda: "), done.stderr


# What it refuses


def test_kernels_get_what_they_declare(emulator: Any, kernels: Any) -> None:
    kernel = kernels.get_function("scale")
    x, y = numbers(emulator), emulator.empty(N, np.float32)
    factor = np.float32(2)
    kernel((1,), (N,), (y, x, factor, N))
    assert (y.get() == 2).all()
    for message, error, args in (
        ("argument 2 is float32, given float", TypeError, (y, x, 2.0, N)),
        ("argument 2 is float32, given int", TypeError, (y, x, 2, N)),
        ("argument 2 is float32, given float64", TypeError, (y, x, np.float64(2), N)),
        ("argument 3 is int32, given int64", TypeError, (y, x, factor, np.int64(N))),
        ("argument 3 is int32, given bool", TypeError, (y, x, factor, True)),  # CuPy passes a single byte
        ("does not fit", OverflowError, (y, x, factor, 1 << 31)),
        ("points to float32, given an array of float64", TypeError, (y, emulator.zeros(N), factor, N)),
        ("strided view", TypeError, (y, emulator.zeros((N, 2), np.float32)[:, 0], factor, N)),
        ("is a pointer, given ndarray", TypeError, (y, np.ones(N, np.float32), factor, N)),
        ("4 arguments expected, 3 given", TypeError, (y, x, factor)),
    ):
        with pytest.raises(error, match=message):
            kernel((1,), (N,), args)


def test_launches_must_be_possible(emulator: Any, kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernels.get_function("scale")
    args = (emulator.empty(N, np.float32), numbers(emulator), np.float32(2), N)
    for message, error, grid, block, shared in (
        ("1 or more", ValueError, (0,), (N,), 0),
        ("1 or more", ValueError, (1.5,), (N,), 0),
        ("129,. threads, 128 at most", RuntimeError, (1,), (129,), 0),
        ("too large in y or z", RuntimeError, (1, 65536), (N,), 0),
        ("max_dynamic_shared_size_bytes", RuntimeError, (1,), (N,), 49153),
    ):
        with pytest.raises(error, match=message):
            kernel(grid, block, args, shared_mem=shared)
    with pytest.raises(TypeError, match="must be tuples"):
        kernel([1], (N,), args)
    with pytest.raises(TypeError, match="options a tuple"):
        emulator.RawModule(code=CODE, options=["-std=c++17"])
    kernel.max_dynamic_shared_size_bytes = 227 << 10
    kernel((1,), (N,), args, shared_mem=227 << 10)
    monkeypatch.setenv("CUDA_CPU_CAPABILITY", "7.5")
    assert emulator.cuda.Device().compute_capability == "75"
    with pytest.raises(RuntimeError, match="65536 at most"):
        kernel.max_dynamic_shared_size_bytes = 65537


def test_numbers_and_structs_arrive(emulator: Any, kernels: Any) -> None:
    y = emulator.empty(1, np.int64)
    pair = np.array((1.5, 2.5), np.dtype([("first", np.float32), ("second", np.float32)]))
    kernels.get_function("count")((1,), (1,), (y, 3.0, True, pair))
    assert y.item() == 8


def test_numpy_and_cupy_do_not_mix(emulator: Any) -> None:
    x, host = numbers(emulator), np.ones(N, np.float32)
    for mix in (lambda: x + host, lambda: x.__setitem__(0, host), lambda: np.asarray(x), lambda: x[np.arange(3)],
                lambda: emulator.add(x, host), lambda: x.set(np.ones(N)), lambda: x.get(out=np.empty(N))):  # fmt: skip
        with pytest.raises(TypeError):
            mix()
    for copy in (lambda: x.set(np.ones(1, np.float32)), lambda: x.get(out=np.empty(1, np.float32))):
        with pytest.raises(ValueError, match="Shape mismatch"):
            copy()


def test_ascontiguousarray_is_for_device_arrays_and_adds_an_axis(emulator: Any) -> None:
    with pytest.raises(TypeError, match=r"expected cupy\.ndarray"):
        emulator.ascontiguousarray(np.ones(N, np.float32))
    assert emulator.ascontiguousarray(emulator.zeros(())).shape == (1,)
    assert not hasattr(emulator, "errstate")  # CuPy's is in cupyx, and is about linear algebra


def test_fresh_memory_is_nan_and_waits_are_counted(emulator: Any, kernels: Any) -> None:
    x = emulator.empty(N, np.float32)
    assert np.isnan(x.get()).all()
    x.fill(3)
    y = emulator.empty_like(x)
    kernels.get_function("scale")((1,), (N,), (y, x[:N], np.float32(2), N))
    assert float(y[0]) == 6 and (y + 1).sum().item() == 7 * N
    assert dict(emulator.cuda.waits) == {"get": 1, "item": 2}
    assert emulator.cuda.launches["scale"] == 1 and emulator.cuda.copied["bytes"] == 0


# Memory


def test_the_pool_uses_blocks_again_and_counts_growth(emulator: Any) -> None:
    pool = emulator.get_default_memory_pool()
    emulator.cuda.finish_all()
    pool.free_all_blocks()
    emulator.cuda.grown.clear()
    x = emulator.empty(300, np.uint8)
    address, used = x.data.ptr, pool.used_bytes()
    del x
    y = emulator.empty(512, np.uint8)
    assert y.data.ptr == address and pool.used_bytes() == used
    z = emulator.empty(513, np.uint8)
    assert dict(emulator.cuda.grown) == {"times": 2, "bytes": 512 + 1024}
    assert pool.n_free_blocks() == 0
    del y, z
    assert pool.n_free_blocks() == 2 and pool.free_bytes() == 1536
    assert np.isnan(emulator.empty(128, np.float32).get()).all()


def test_memory_runs_out(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    emulator.get_default_memory_pool().free_all_blocks()
    free, total = emulator.cuda.runtime.memGetInfo()
    in_use = total - free  # by this pool, and by what earlier tests left
    monkeypatch.setenv("CUDA_CPU_MEMORY", str(in_use + (1 << 20)))
    assert emulator.cuda.runtime.memGetInfo() == (1 << 20, in_use + (1 << 20))
    first = emulator.empty(3 << 18, np.uint8)
    with pytest.raises(emulator.cuda.memory.OutOfMemoryError, match="Out of memory allocating"):
        emulator.empty(3 << 18, np.uint8)
    del first
    emulator.empty(1 << 20, np.uint8)  # free blocks of other sizes are given back first


def test_arrays_over_a_block_of_memory(emulator: Any) -> None:
    memory = emulator.cuda.alloc(1024)
    x = emulator.ndarray((2, 3), np.float32, memory + 512)
    x.fill(1)
    assert x.data.ptr == memory.ptr + 512 and x.data.mem.ptr == memory.ptr
    address = memory.ptr
    del memory
    assert emulator.empty(1024, np.uint8).data.ptr != address  # x keeps it
    with pytest.raises(ValueError, match="does not fit"):
        emulator.ndarray((129,), np.float32, x.data)


def test_pools_of_their_own(emulator: Any) -> None:
    pool = emulator.cuda.MemoryPool()
    with emulator.cuda.using_allocator(pool.malloc):
        x = emulator.zeros(N, np.float32)
        with pytest.raises(ValueError, match="inside `using_allocator`"):
            emulator.cuda.set_allocator()
        with ThreadPoolExecutor(1) as threads:  # other threads keep their allocator
            threads.submit(emulator.zeros, N).result()
    assert pool.used_bytes() == 512 and (x.get() == 0).all()
    del x
    assert pool.n_free_blocks() == 1


def test_a_dropped_pool_keeps_its_free_blocks(emulator: Any) -> None:
    def free_bytes() -> int:
        return int(emulator.cuda.runtime.memGetInfo()[0])

    before = free_bytes()
    for frees, lost in ((True, 0), (False, 512)):
        pool = emulator.cuda.MemoryPool()
        with emulator.cuda.using_allocator(pool.malloc):
            emulator.zeros(N, np.float32)
        if frees:
            pool.free_all_blocks()
        del pool
        assert before - free_bytes() == lost
