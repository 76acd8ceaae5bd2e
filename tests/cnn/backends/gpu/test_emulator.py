"""The emulator that runs CUDA kernels in tests: tensor-core layouts, and what its checker finds."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn.backends import gpu

# What ptx.cuh has as instructions, on fragments that the test lays out.
FRAGMENTS = r"""
template <bool BF16> __global__ void multiply_fragments(const unsigned* a, const unsigned* b, float* d) {
    unsigned ra[4], rb[2];
    float rd[4];
    for (int i = 0; i < 4; i++) ra[i] = a[4 * threadIdx.x + i];
    for (int i = 0; i < 2; i++) rb[i] = b[2 * threadIdx.x + i];
    for (int i = 0; i < 4; i++) rd[i] = d[4 * threadIdx.x + i];
    if (BF16) mma_bf16(rd, ra, rb);
    else mma_tf32(rd, ra, rb);
    for (int i = 0; i < 4; i++) d[4 * threadIdx.x + i] = rd[i];
}
// matrices is (4, 8, 8); each lane gets four registers of each way to load them.
__global__ void load_fragments(const unsigned short* matrices, unsigned* plain, unsigned* transposed) {
    __shared__ __align__(16) unsigned short rows[32 * 8];
    for (int i = threadIdx.x; i < 256; i += 32) rows[i] = matrices[i];
    __syncwarp();
    unsigned r[4];
    ldmatrix4(r, rows + 8 * threadIdx.x);
    for (int i = 0; i < 4; i++) plain[4 * threadIdx.x + i] = r[i];
    ldmatrix4_transposed(r, rows + 8 * threadIdx.x);
    for (int i = 0; i < 4; i++) transposed[4 * threadIdx.x + i] = r[i];
}
"""

Layout = Callable[[int, int], int]


def cute_layout(shape: Any, stride: Any) -> Layout:
    """A layout of CuTe: (thread, value) -> place in a matrix whose first index is the fastest."""

    def flat(sizes: Any, steps: Any) -> list[tuple[int, int]]:
        if isinstance(sizes, int):
            return [(sizes, steps)]
        return [mode for size, step in zip(sizes, steps, strict=True) for mode in flat(size, step)]

    def place(modes: list[tuple[int, int]], index: int) -> int:
        found = 0
        for size, step in modes:
            found += index % size * step
            index //= size
        return found

    threads, values = flat(shape[0], stride[0]), flat(shape[1], stride[1])
    return lambda thread, value: place(threads, thread) + place(values, value)


# MMA_Traits of SM80_16x8x8_F32TF32TF32F32_TN and SM80_16x8x16_F32BF16BF16F32_TN in CUTLASS's mma_traits_sm80.hpp. They
# state the fragments independently of the PTX manual's figures, after which the emulator was written.
SUMS = cute_layout(((4, 8), (2, 2)), ((32, 1), (16, 8)))
LEFT_TF32 = cute_layout(((4, 8), (2, 2)), ((16, 1), (8, 64)))
RIGHT_TF32 = cute_layout(((4, 8), 2), ((8, 1), 32))
LEFT_BF16 = cute_layout(((4, 8), (2, 2, 2)), ((32, 1), (16, 8, 128)))
RIGHT_BF16 = cute_layout(((4, 8), (2, 2)), ((16, 1), (8, 64)))


def fragments(matrix: np.ndarray, layout: Layout, values: int) -> np.ndarray:
    """What each of 32 lanes holds of a matrix: (32, values)."""
    column_first = matrix.T.ravel()  # (rows * columns,)
    return np.array([[column_first[layout(t, v)] for v in range(values)] for t in range(32)], matrix.dtype)


def to_bf16(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("kind", ["tf32", "bf16"])
def test_mma_has_the_layouts_of_cute(device: Any, kind: str) -> None:
    depth = 16 if kind == "bf16" else 8
    draw = np.random.default_rng(0)
    # Small integers are exact in every format.
    a, b, c = (draw.integers(-8, 8, s).astype(np.float32) for s in ((16, depth), (8, depth), (16, 8)))
    if kind == "bf16":
        left = fragments(to_bf16(a), LEFT_BF16, 8).view(np.uint32)  # (32, 4)
        right = fragments(to_bf16(b), RIGHT_BF16, 4).view(np.uint32)  # (32, 2)
    else:
        left = fragments(a, LEFT_TF32, 4).view(np.uint32)  # (32, 4)
        right = fragments(b, RIGHT_TF32, 2).view(np.uint32)  # (32, 2)
    sums = device.asarray(fragments(c, SUMS, 4))  # (32, 4)
    name = f"multiply_fragments<{str(kind == 'bf16').lower()}>"
    _fragment_kernels(device).get_function(name)((1,), (32,), (device.asarray(left), device.asarray(right), sums))
    found = np.zeros(16 * 8, np.float32)
    for thread, value in itertools.product(range(32), range(4)):
        found[SUMS(thread, value)] = sums.get()[thread, value]
    np.testing.assert_array_equal(found.reshape(8, 16).T, a @ b.T + c)


def test_ldmatrix_gives_each_lane_two_neighbours(device: Any) -> None:
    matrices = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    plain, transposed = (device.empty((32, 4), np.uint32) for _ in range(2))
    _fragment_kernels(device).get_function("load_fragments")((1,), (32,), (device.asarray(matrices), plain, transposed))
    for found, expected in ((plain, matrices), (transposed, matrices.swapaxes(1, 2))):
        # Row g of each matrix goes to lanes 4 g to 4 g + 3, two values in a register.
        per_lane = expected.reshape(4, 32, 2).swapaxes(0, 1)  # (32, 4, 2)
        np.testing.assert_array_equal(found.get().view(np.uint16).reshape(32, 4, 2), per_lane)


def _fragment_kernels(device: Any) -> Any:
    headers = (Path(gpu.__file__).parent / "cuda" / name for name in ("common.cuh", "ptx.cuh"))
    code = "".join(header.read_text(encoding="utf-8") for header in headers) + FRAGMENTS
    names = ("multiply_fragments<true>", "multiply_fragments<false>", "load_fragments")
    return device.RawModule(code=code, options=("-std=c++17",), name_expressions=names)


# Kernels with one mistake each, and what the checker says. `x` has 64 floats, `counts` 4 zeros; 2 blocks of 64 threads.
MISTAKES = {
    "reads_too_far": ("y[i] = x[i + 1];", "read out of bounds"),
    "writes_too_far": ("y[i + 1] = 1;", "write out of bounds"),
    "writes_before": ("y[i - 1] = 1;", "4 bytes before a device array of 512 bytes"),
    "null_pointer": ("y[i] = *(const float*)(counts - counts);", "null pointer"),
    "misaligned": ("y[i] = *(const float*)((const char*)x + 2 * threadIdx.x % 8);", "misaligned"),
    "static_too_far": ("__shared__ float s[64]; s[threadIdx.x] = 1; __syncthreads(); y[i] = s[threadIdx.x + 1000000];",
                       "host memory, or none|another thread's local variable"),
    "dynamic_too_far": ("room[threadIdx.x + 1] = 1;", "shared memory out of bounds"),
    "never_written": ("__shared__ float s[64]; if (i % 64) s[threadIdx.x] = 1; __syncthreads(); y[i] = s[threadIdx.x];",
                      "shared memory is read that was never written"),
    "no_barrier": ("room[threadIdx.x] = i; y[i] = room[63 - threadIdx.x];", "shared memory"),
    "barrier_too_early": ("room[threadIdx.x] = i; __syncthreads();\ny[i] = room[63 - i % 64]; room[i % 64] = 0;",
                          "race in shared memory, read and write"),
    "within_a_warp": ("room[threadIdx.x ^ 1] = i; y[i] = room[threadIdx.x];", "shared memory"),
    "blocks_write_one_place": ("y[threadIdx.x] = i;", "race in global memory, two writes"),
    "block_reads_anothers": ("y[i] = 1; y[i] += y[(i + 64) % 128];", "race in global memory"),
    "writes_what_others_read": ("y[i] = x[threadIdx.x]; ((float*)x)[threadIdx.x] = 0;", "read and write"),
    "plain_and_atomic": ("counts[0] = 1; atomicAdd(counts, 1);", "race in global memory"),
    "different_barriers": ("if (threadIdx.x < 32) __syncthreads();\nelse __syncthreads();", "a block is not together"),
    "ends_without_barrier": ("if (threadIdx.x == 3) return;\n__syncthreads();", "ends without the barrier"),
    "warp_diverges": ("if (threadIdx.x % 2) __syncwarp();\nelse y[i] = __shfl_sync(0xffffffff, 1.0f, 0);",
                      "a warp is not together"),
    "not_in_its_mask": ("__syncwarp(0xfffffffe);", "not in its own mask"),
    "part_of_a_warp": ("unsigned a[4] = {}; float d[4]; if (threadIdx.x < 16) mma_tf32(d, a, a);\n__syncthreads();",
                       "a warp is not together"),
    "copy_not_awaited": ("copy16(room + 4 * threadIdx.x % 64, x, true); copies_commit();", "cp.async"),
    "copy_without_barrier": ("if (threadIdx.x < 16) copy16(room + 4 * threadIdx.x, x + 4 * threadIdx.x, true);\n"
                             "copies_commit(); copies_wait<0>(); y[i] = room[threadIdx.x];", "shared memory"),
    "two_write_a_byte": ("((char*)room)[threadIdx.x / 2] = i;", "race in shared memory, two writes"),
    "a_byte_of_anothers_word": ("room[threadIdx.x] = 0; ((char*)room)[4 * (threadIdx.x ^ 1)] = 1;", "two writes"),
    "a_word_of_anothers_bytes": ("((char*)y)[4 * i + 3] = 1; y[i ^ 1] = 1;", "race in global memory, two writes"),
    "trap": ("__trap();", "__trap at"),
}  # fmt: skip
# These are right, and must pass.
CORRECT = {
    "reverses": "room[threadIdx.x] = x[threadIdx.x]; __syncthreads(); y[i] = room[63 - threadIdx.x];",
    "reverses_in_warps": "room[threadIdx.x] = x[threadIdx.x]; __syncwarp(); y[i] = room[threadIdx.x ^ 31];",
    "copies": "if (threadIdx.x < 16) copy16(room + 4 * threadIdx.x, x + 4 * threadIdx.x, true);\n"
    "copies_commit(); copies_wait<0>(); __syncthreads(); y[i] = room[threadIdx.x];",
    "shuffles": "float v = x[threadIdx.x]; for (int by = 4; by; by /= 2) v += __shfl_down_sync(0xffffffff, v, by, 8);\n"
    "y[i] = __shfl_sync(0xffffffff, v, 0, 8);",
    "votes": "y[i] = __syncthreads_count(x[threadIdx.x] > 9) + __popc(__ballot_sync(0xffffffff, threadIdx.x % 2));",
    "bytes": "((char*)room)[threadIdx.x] = 0; __syncthreads(); if (threadIdx.x < 16) y[i] = room[threadIdx.x];",
    "counts": "atomicAdd(counts, 1); atomicMax(counts + 1, i); y[i] = 0;",
    "reads_and_rewrites": "y[i] = 1; y[i] += x[threadIdx.x]; __syncthreads(); y[i ^ 1] += 1;",
    # The last block to count reads what all have written.
    "last_block": "__shared__ int last; y[i] = i; __threadfence(); __syncthreads();\n"
    "if (threadIdx.x == 0) last = atomicAdd(counts, 1) == gridDim.x - 1;\n"
    "__syncthreads(); if (last) { y[i] = i + 0 * y[127 - i]; if (threadIdx.x == 0) counts[0] = 0; }",
    "last_block_fence_after_barrier": "__shared__ int last; y[i] = i; __syncthreads();\n"
    "if (threadIdx.x == 0) { __threadfence(); last = atomicAdd(counts, 1) == gridDim.x - 1; }\n"
    "__syncthreads(); if (!last || threadIdx.x) return;\n"
    "float sum = 0; for (int k = 0; k < 128; k++) sum += y[k]; y[0] = sum;",
}
RACES_OF_BLOCKS = {
    "no_fence": CORRECT["last_block"].replace("__threadfence();", ""),
    "fence_too_early": CORRECT["last_block"].replace("y[i] = i; __threadfence();", "__threadfence(); y[i] = i;"),
    "fence_of_one_thread": CORRECT["last_block"].replace("__threadfence();", "if (threadIdx.x == 0) __threadfence();"),
    "no_barrier_after_the_count": CORRECT["last_block"].replace("__syncthreads(); if (last)", "if (last)"),
}


@pytest.fixture(scope="module")
def small_kernels(device: Any, checked: None) -> Any:
    bodies = {**{name: body for name, (body, _) in MISTAKES.items()}, **CORRECT, **RACES_OF_BLOCKS}
    code = "".join(
        f'extern "C" __global__ void __launch_bounds__(64) {name}(const float* x, float* y, int* counts) {{\n'
        "extern __shared__ __align__(16) float room[];\n"
        f"const int i = blockIdx.x * 64 + threadIdx.x;\n{body}\n}}\n"
        for name, body in bodies.items()
    )
    return device.RawModule(code=code)


def launch(emulator: Any, kernels: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = emulator.asarray(np.arange(64, dtype=np.float32)), emulator.zeros(128, np.float32)
    counts = emulator.zeros(4, np.int32)
    kernels.get_function(name)((2,), (64,), (x, y, counts), shared_mem=256)
    return y.get(), counts.get()


@pytest.mark.parametrize("name", MISTAKES)
def test_checker_finds(emulator: Any, small_kernels: Any, name: str) -> None:
    with pytest.raises(RuntimeError, match=MISTAKES[name][1]) as error:
        launch(emulator, small_kernels, name)
    assert name in str(error.value) and "kernels.cu:" in str(error.value)


@pytest.mark.parametrize("name", RACES_OF_BLOCKS)
def test_checker_finds_races_of_blocks_despite_a_counter(emulator: Any, small_kernels: Any, name: str) -> None:
    with pytest.raises(RuntimeError, match=r"race in|never written"):
        launch(emulator, small_kernels, name)


@pytest.mark.parametrize("name", CORRECT)
def test_checker_accepts(emulator: Any, small_kernels: Any, name: str) -> None:
    launch(emulator, small_kernels, name)


def test_results(emulator: Any, small_kernels: Any) -> None:
    x = np.arange(64)
    for name, expected in {
        "reverses": x[::-1],
        "reverses_in_warps": x ^ 31,
        "copies": x,
        "shuffles": np.repeat(x.reshape(8, 8).sum(1), 8),
        "votes": np.full(64, 54 + 16),
    }.items():
        np.testing.assert_array_equal(launch(emulator, small_kernels, name)[0], np.tile(expected, 2), err_msg=name)
    y, counts = launch(emulator, small_kernels, "counts")
    np.testing.assert_array_equal(counts, [128, 127, 0, 0])
    y, counts = launch(emulator, small_kernels, "last_block_fence_after_barrier")
    assert y[0] == 127 * 64 and counts[0] == 2


def test_orders_of_threads_give_other_bits_where_they_matter(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code = r"""
    extern "C" __global__ void first_come(int* place, int* counter) { place[threadIdx.x] = atomicAdd(counter, 1); }
    extern "C" __global__ void total(int* place, int* counter) {
        place[threadIdx.x] = 0;
        atomicAdd(counter, threadIdx.x);
    }
    """
    monkeypatch.setattr("cupy._kernels.ORDERS", (0, 1, 2, 3))
    kernels = emulator.RawModule(code=code)
    place, counter = emulator.zeros(64, np.int32), emulator.zeros(1, np.int32)
    kernels.get_function("total")((1,), (64,), (place, counter))
    assert counter.get()[0] == 63 * 32
    with pytest.raises(RuntimeError, match=r"order 1 of the threads gives other bits than order 0 in arrays \[0\]"):
        kernels.get_function("first_come")((1,), (64,), (place, counter))


def test_only_first_launches_are_checked_where_that_is_asked_for(emulator: Any, checked: None) -> None:
    """By sizes and arguments, without the contents of arrays; `first_in_orders` ends with its block."""
    code = 'extern "C" __global__ void take(float* y, const int* at) { y[0] = y[at[0]]; }'
    take = emulator.RawKernel(code, "take")
    y, at = emulator.zeros(64, np.float32), emulator.zeros(1, np.int32)
    with emulator._kernels.first_in_orders((0, 1)):
        take((1,), (1,), (y, at))
        at.fill(64)
        take((1,), (1,), (y, at))
        with pytest.raises(RuntimeError, match="read out of bounds"):
            take((1,), (1,), (y[:32].copy(), at))
    with pytest.raises(RuntimeError, match="read out of bounds"):
        take((1,), (1,), (y, at))


def test_bytes_side_by_side_are_no_race(emulator: Any, checked: None) -> None:
    code = """extern "C" __global__ void each(unsigned char* y, int step) {
    y[threadIdx.x / step] = threadIdx.x;
}"""
    each, y = emulator.RawKernel(code, "each"), emulator.zeros(64, np.uint8)
    each((1,), (64,), (y, 1))
    np.testing.assert_array_equal(y.get(), np.arange(64))
    with pytest.raises(RuntimeError, match="race in global memory, two writes"):
        each((1,), (64,), (y, 2))


def test_line_directives_name_the_file_in_messages(emulator: Any, checked: None) -> None:
    code = 'extern "C" __global__ void wrong(float* y) {\n#line 12 "norm.cu"\ny[1] = 0;\n}'
    with pytest.raises(RuntimeError, match=r"write out of bounds at norm\.cu:12 by thread \(0,0,0\)"):
        emulator.RawKernel(code, "wrong")((1,), (1,), (emulator.zeros(1, np.float32),))


def test_costs_count_sectors_and_bank_conflicts(
    emulator: Any, checked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cupy._kernels.ORDERS", (0,))
    code = """extern "C" __global__ void walk(const float* x, float* y) {
    __shared__ float tile[32][32];
    for (int i = 0; i < 32; i++) tile[i][threadIdx.x] = x[32 * i + threadIdx.x];
    __syncwarp();
    for (int i = 0; i < 32; i++) y[32 * threadIdx.x + i] = tile[threadIdx.x][i];
}"""
    from cupy._kernels import costs

    kernel = emulator.RawKernel(code, "walk")
    x, y = emulator.zeros(1024, np.float32), emulator.empty(1024, np.float32)
    with costs(kernel) as rows:
        kernel((1,), (32,), (x, y))
    # Each lane reads or writes 4 of the 32 bytes of a sector in line 5, and all lanes use the same bank.
    assert rows == [
        ("line 3", "global", 32, 1.0), ("line 3", "shared", 32, 1.0),
        ("line 5", "global", 32, 8.0), ("line 5", "shared", 32, 32.0),
    ]  # fmt: skip
