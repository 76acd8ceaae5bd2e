"""What a compiled kernel needs of a multiprocessor, and which instructions it consists of."""

import re
from collections import Counter
from typing import NamedTuple

from tests.cuda_compile.nvrtc import Compiled, disassemble

# What to count: SASS opcodes by a regular expression of the whole opcode.
INSTRUCTIONS = {
    "HMMA": r"HMMA\..*",  # matrix product of a warp, on tensor cores
    "LDSM": r"LDSM\..*",  # ldmatrix: shared memory to matrix fragments
    "LDGSTS": r"LDGSTS\..*",  # cp.async: global to shared memory in the background
    "LDG.128": r"LDG\..*\b128\b.*",
    "STG.128": r"STG\..*\b128\b.*",
    "local": r"(LDL|STL)\b.*",  # registers that did not fit, or arrays indexed at run time: in memory
    "float atomic": r"(ATOM|ATOMG|ATOMS|RED|REDG)\..*F(16|32|64).*",  # would sum in random order
    "DFMA": r"D(FMA|MUL|ADD)\b.*",  # double precision: 1/2 to 1/64 of the speed of single
    "all": r".*",
}


class Multiprocessor(NamedTuple):
    """Limits of one multiprocessor (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability")."""

    warps: int
    blocks: int
    shared: int  # bytes
    registers: int = 65536


MULTIPROCESSORS = {
    80: Multiprocessor(64, 32, 164 << 10),  # A100
    86: Multiprocessor(48, 16, 100 << 10),  # RTX 30 series
    89: Multiprocessor(48, 24, 100 << 10),  # RTX 40 series
    90: Multiprocessor(64, 32, 228 << 10),  # H100, H200
    100: Multiprocessor(64, 32, 228 << 10),  # B200
    120: Multiprocessor(48, 24, 100 << 10),  # RTX 50 series
}
PARTITIONS = 4  # of a multiprocessor, each with a fourth of its registers and warps


class Kernel(NamedTuple):
    """One instance, compiled for one architecture."""

    name: str
    architecture: int
    threads: int  # of a block, at most
    registers: int  # of a thread
    stack: int  # bytes of a thread
    spilled: int  # bytes of a thread that are stored to local memory, and loaded again
    shared: int  # bytes of a block that are declared in the kernel
    instructions: dict[str, int]  # key of INSTRUCTIONS -> how many

    def blocks(self, dynamic_shared: int = 0) -> int:
        """How many blocks run at a time on one multiprocessor, each with `dynamic_shared` bytes more."""
        limit = MULTIPROCESSORS[self.architecture]
        warps = -(-self.threads // 32)
        registers = -(-self.registers * 32 // 256) * 256  # of a warp, in units of 256
        resident = PARTITIONS * (limit.registers // PARTITIONS // registers)  # warps, by their registers
        shared = -(-(self.shared + dynamic_shared) // 128) * 128 + 1024  # the system takes 1 KiB of each block
        return min(resident // warps, limit.warps // warps, limit.shared // shared, limit.blocks)


def read_kernels(compiled: Compiled, architecture: int) -> dict[str, Kernel]:
    """Name -> kernel, of all instances of one compilation."""
    opcodes = _opcodes(disassemble(compiled.cubin))
    return {
        name: _kernel(name, architecture, compiled, symbol, opcodes[symbol])
        for name, symbol in compiled.symbols.items()
    }


def _kernel(name: str, architecture: int, compiled: Compiled, symbol: str, opcodes: Counter[str]) -> Kernel:
    log, threads = _log_of(symbol, compiled.log), _threads(symbol, compiled.ptx)

    def number(pattern: str) -> int:
        found = re.search(pattern, log)
        return int(found[1]) if found else 0

    spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    counts = {
        key: sum(count for opcode, count in opcodes.items() if re.fullmatch(pattern, opcode))
        for key, pattern in INSTRUCTIONS.items()
    }
    registers, stack = number(r"Used (\d+) registers"), number(r"(\d+) bytes stack frame")
    return Kernel(name, architecture, threads, registers, stack, spilled, number(r"(\d+) bytes smem"), counts)


def _log_of(symbol: str, log: str) -> str:
    """What the assembler says of one kernel."""
    found = re.search(rf"entry function '{symbol}'(.*?)(?=entry function|\Z)", log, re.DOTALL)
    if found is None:
        raise ValueError(f"expected the resources of {symbol} in the assembler's log, found {log[:200]!r}")
    return found[1]


def _threads(symbol: str, ptx: str) -> int:
    """The threads of a block as `__launch_bounds__` says; without, the compiler assumes the most that are possible."""
    found = re.search(rf"\.entry {symbol}\([^)]*\)\s*\.maxntid (\d+)", ptx)
    return int(found[1]) if found else 1024


def _opcodes(sass: str) -> dict[str, Counter[str]]:
    """Symbol -> the number of times that each opcode occurs, such as `LDG.E.128.CONSTANT`."""
    _, *parts = re.split(r"^\.text\.(\w+):$", sass, flags=re.MULTILINE)
    line = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)", re.MULTILINE)
    return {symbol: Counter(line.findall(code)) for symbol, code in zip(parts[::2], parts[1::2], strict=True)}
