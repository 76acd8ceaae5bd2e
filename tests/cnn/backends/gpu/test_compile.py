"""Compile every CUDA kernel for real GPUs, without one, and check registers, occupancy and instructions.

Each run compiles all instances for one architecture, and the main ones for some others. To compile all for all, which
takes minutes:

    LOGPOSE_COMPILE_ALL=1 pytest tests/cnn/backends/gpu/test_compile.py
"""

import os
import re
from pathlib import Path

import pytest

from cnn.backends.gpu import kernels
from tests.cuda_compile.instances import INSTANCES
from tests.cuda_compile.nvrtc import CompileError, compile_cuda, why_missing
from tests.cuda_compile.resources import MULTIPROCESSORS, Kernel, read_kernels

FOLDER = Path(kernels.__file__).parent / "cuda"
FULLY_CHECKED = 90
OTHERS = (80, 100, 120)
LARGE_SHARED = 164 << 10  # bytes of a multiprocessor of A100, H100 and B200

needs_compiler = pytest.mark.skipif(bool(why_missing()), reason=why_missing())


def cases() -> list[tuple[str, int]]:
    """The files and architectures to compile."""
    everything = bool(os.environ.get("LOGPOSE_COMPILE_ALL"))
    return [
        (file, architecture)
        for file, instances in INSTANCES.items()
        if (FOLDER / file).exists()
        for architecture in (MULTIPROCESSORS if everything else (FULLY_CHECKED, *OTHERS))
        if everything or architecture == FULLY_CHECKED or any(instance.main for instance in instances)
    ]


@needs_compiler
@pytest.mark.parametrize(("file", "architecture"), cases())
def test_kernels_compile_without_spills_and_use_the_right_instructions(file: str, architecture: int) -> None:
    everything = architecture == FULLY_CHECKED or os.environ.get("LOGPOSE_COMPILE_ALL")
    instances = {instance.name: instance for instance in INSTANCES[file] if everything or instance.main}
    compiled = compile_cuda(kernels.source(file), tuple(instances), architecture)
    problems = []
    for name, kernel in read_kernels(compiled, architecture).items():
        instance, blocks = instances[name], kernel.blocks(instances[name].dynamic_shared)
        problems += [f"{name}: no {key}" for key in instance.needs if not kernel.instructions[key]]
        forbidden = ("float atomic",) if instance.local else ("float atomic", "local")
        problems += [f"{name}: {kernel.instructions[key]} {key}" for key in forbidden if kernel.instructions[key]]
        if kernel.spilled:
            problems.append(f"{name}: {kernel.spilled} bytes spilled")
        # The largest tiles of convolutions fill half of the shared memory of a small multiprocessor, and a little more.
        small = MULTIPROCESSORS[architecture].shared < LARGE_SHARED and instance.dynamic_shared
        if blocks < (1 if small else instance.min_blocks):
            problems.append(f"{name}: {blocks} blocks with {kernel.registers} registers, not {instance.min_blocks}")
    assert not problems, f"sm_{architecture}: {problems}"


def test_every_kernel_has_an_instance() -> None:
    """A kernel that INSTANCES does not list would never be compiled here."""
    for path in FOLDER.glob("*.cu"):
        bounds = r"(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s*)?"
        found = set(re.findall(rf"__global__\s+void\s+{bounds}(\w+)", path.read_text("utf-8")))
        listed = {instance.name.partition("<")[0] for instance in INSTANCES.get(path.name, ())}
        assert found == listed, path.name


def test_sources_are_ascii() -> None:
    """CuPy writes them to a file in the encoding of the locale before it compiles them."""
    for path in FOLDER.iterdir():
        assert path.read_bytes().isascii(), path.name


# The checks themselves ----------------------------------------------------------------------------------

SAMPLES = """
extern "C" __global__ void __launch_bounds__(256) copy4(const float4* x, float4* y) { y[threadIdx.x] = x[threadIdx.x]; }
extern "C" __global__ void __launch_bounds__(256) add_up(const float* x, float* sum) { atomicAdd(sum, x[threadIdx.x]); }
extern "C" __global__ void __launch_bounds__(1024, 2) spill(const float* x, float* y) {
    float kept[64];
    for (int i = 0; i < 64; i++) kept[i] = x[threadIdx.x + 1024 * i];
    __syncthreads();
    for (int i = 0; i < 64; i++) y[threadIdx.x + 1024 * i] = kept[i] * kept[63 - i];
}
"""


@needs_compiler
def test_spills_vector_copies_and_atomics_are_found() -> None:
    found = read_kernels(compile_cuda(SAMPLES, ("copy4", "add_up", "spill"), 90), 90)
    assert found["copy4"].instructions["LDG.128"] == found["copy4"].instructions["STG.128"] == 1
    assert found["add_up"].instructions["float atomic"] == 1
    assert found["spill"].spilled and found["spill"].instructions["local"]
    assert not any(kernel.spilled for name, kernel in found.items() if name != "spill")
    assert found["spill"].threads == 1024 and found["spill"].registers <= 32


@needs_compiler
def test_compile_errors_have_the_compilers_message() -> None:
    with pytest.raises(CompileError, match="unknown_name"):
        compile_cuda("__global__ void broken() { unknown_name(); }", ("broken",), 90)


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks"),
    [
        (90, 256, 32, 0, 8),  # all 64 warps
        (90, 256, 128, 0, 2),
        (90, 256, 129, 0, 1),
        (90, 256, 255, 0, 1),
        (90, 256, 32, 100 << 10, 2),
        (120, 256, 32, 40 << 10, 2),
        (120, 256, 32, 0, 6),  # all 48 warps
        (80, 32, 16, 0, 32),  # the limit of blocks
    ],
)
def test_blocks_per_multiprocessor(architecture: int, threads: int, registers: int, shared: int, blocks: int) -> None:
    assert Kernel("sample", architecture, threads, registers, 0, 0, shared, {}).blocks() == blocks
