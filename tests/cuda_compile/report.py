"""Table of all compiled kernels: registers, shared memory, blocks per multiprocessor, instructions.

    python -m tests.cuda_compile.report [--architectures 80 90 ...] [--files convolution.cu ...]

Blocks: how many run at a time on one multiprocessor. Spills: bytes of a thread's registers in local memory.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from cnn.backends.gpu import kernels
from tests.cuda_compile.instances import INSTANCES
from tests.cuda_compile.nvrtc import compile_cuda, why_missing
from tests.cuda_compile.resources import MULTIPROCESSORS, Kernel, read_kernels

COLUMNS = ("HMMA", "LDSM", "LDGSTS", "LDG.128", "STG.128", "all")


def rows(architectures: list[int], files: list[str]) -> Iterator[tuple[Kernel, int, int]]:
    """Yield each kernel, its bytes of shared memory and its blocks per multiprocessor."""
    folder = Path(kernels.__file__).parent / "cuda"
    for file in (name for name in files if (folder / name).exists()):
        instances = {instance.name: instance for instance in INSTANCES[file]}
        for architecture in architectures:
            compiled = compile_cuda(kernels.source(file), tuple(instances), architecture)
            for name, kernel in read_kernels(compiled, architecture).items():
                dynamic = instances[name].dynamic_shared
                yield kernel, kernel.shared + dynamic, kernel.blocks(dynamic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", type=int, nargs="+", choices=MULTIPROCESSORS, default=[90])
    parser.add_argument("--files", nargs="+", choices=INSTANCES, default=list(INSTANCES))
    arguments = parser.parse_args()
    if reason := why_missing():
        raise SystemExit(reason)
    print(f"| kernel | sm | registers | spills | shared bytes | blocks | {' | '.join(COLUMNS)} |")
    print("|---|" + "---:|" * (5 + len(COLUMNS)))
    for kernel, shared, blocks in rows(arguments.architectures, arguments.files):
        counts = " | ".join(str(kernel.instructions[column]) for column in COLUMNS)
        print(
            f"| `{kernel.name}` | {kernel.architecture} | {kernel.registers} | {kernel.spilled} | {shared} | {blocks} "
            f"| {counts} |"
        )


if __name__ == "__main__":
    main()
