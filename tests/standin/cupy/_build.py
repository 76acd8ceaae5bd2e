"""Compile with g++: the emulator once, and each module of kernels, in parts that are compiled side by side."""

import ctypes
import hashlib
import os
import re
import subprocess
from functools import cache
from pathlib import Path
from tempfile import gettempdir

EMULATOR = Path(__file__).resolve().parents[2] / "cuda_cpu"
CACHE = Path(os.environ.get("CUDA_CPU_CACHE") or Path(gettempdir()) / f"cuda_cpu.{os.getuid()}")
CHECK = os.environ.get("CUDA_CPU_CHECK", "1") == "1"
FILE = "kernels.cu"  # in messages, what the source text is called until a #line directive names it
_FLAGS = ("-std=c++17", "-march=native", "-fPIC", "-w")
_RUNTIME_FLAGS = (*_FLAGS, "-O2", "-shared", "-fno-strict-aliasing")
# -O2 compiles half as fast and runs little faster. Static variables are the shared memory, which must not be unified
# with that of another module; and a load of 16 bytes must stay one, for the count of what it costs.
_MODULE_FLAGS = (*_FLAGS, "-O1", "-fno-strict-aliasing", "-fno-tree-sra", "-fno-gnu-unique", "-g1", f"-I{EMULATOR}")
_CHECK_FLAGS = ("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0")
_LINK_FLAGS = ("-shared", "-Wl,-Bsymbolic")


@cache
def _key_of_emulator() -> bytes:
    """What compiled code depends on beside its source: the emulator, and -march=native."""
    lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    processor = next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")
    files = [path.read_bytes() for path in sorted(EMULATOR.glob("*.[hc]*"))]
    return hashlib.blake2b(b"\0".join([*files, processor])).digest()


def _target(name: str, *parts: str) -> Path:
    key = hashlib.blake2b(_key_of_emulator() + "\0".join(parts).encode(), digest_size=10).hexdigest()
    return CACHE / f"{name}-{key}.so"


def _temporary(target: Path, suffix: str) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_suffix(f".{os.getpid()}{suffix}")


@cache
def runtime() -> ctypes.CDLL:
    """The emulator, built at first use."""
    target = _target("runtime", *_RUNTIME_FLAGS)
    if not target.exists():
        partial = _temporary(target, ".tmp")
        _wait(subprocess.Popen(["g++", *_RUNTIME_FLAGS, EMULATOR / "runtime.cpp", "-o", partial], **_PIPES))
        partial.rename(target)
    library = ctypes.CDLL(str(target), ctypes.RTLD_GLOBAL)
    library.cc_arena.restype = ctypes.c_void_p
    library.cc_launch.restype = library.cc_costs.restype = ctypes.c_char_p
    for name in ("cc_live", "cc_dead", "cc_is_live"):
        getattr(library, name).argtypes = [ctypes.c_size_t] * (1 if name == "cc_dead" else 2)
    return library


_PIPES = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}


def _wait(*processes: "subprocess.Popen[bytes]") -> None:
    messages = [process.communicate()[1].decode(errors="replace") for process in processes]
    for process, message in zip(processes, messages, strict=True):
        if process.returncode:
            raise CompileError(message[:6000])


class CompileError(Exception):
    """What g++ says of a kernel's source."""


def modules(code: str, options: tuple[str, ...], names: tuple[str, ...]) -> dict[str, tuple[ctypes.CDLL, Path, int]]:
    """Compile kernels of CUDA source `code`: name -> its library, the library's path, and its number there."""
    runtime()
    parts = min(len(os.sched_getaffinity(0)), len(names))
    found, running = {}, []
    for first in range(parts):
        part = names[first::parts]
        text = _text(code, part)
        flags = [*_MODULE_FLAGS, *(_CHECK_FLAGS if CHECK else ()), *(o for o in options if o.startswith(("-D", "-I")))]
        target = _target("module", text, *flags)
        if not target.exists():
            source, partial = _temporary(target, ".cpp"), _temporary(target, ".o")
            source.write_text(text, encoding="utf-8")
            process = subprocess.Popen(["g++", *flags, "-c", str(source), "-o", str(partial)], **_PIPES)
            running.append((process, source, partial, target))
        found.update({name: (target, number) for number, name in enumerate(part)})
    _wait(*(process for process, *_ in running))
    for _, source, partial, target in running:
        # Linked without -fsanitize=thread: the emulator answers the calls that it put in, not g++'s own library.
        linked = _temporary(target, ".tmp")
        _wait(subprocess.Popen(["g++", *_LINK_FLAGS, str(partial), "-o", str(linked)], **_PIPES))
        linked.rename(target)
        source.unlink()
        partial.unlink()
    libraries = {target: ctypes.CDLL(str(target)) for target in {target for target, _ in found.values()}}
    return {name: (libraries[target], target, number) for name, (target, number) in found.items()}


_DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s*)?([\w ]+?)\s*(\w+)\s*\[\s*\]\s*;")
_BOUNDED = re.compile(
    r"(template\s*<[^;{}]*?>\s*)?__global__\s+void\s+__launch_bounds__\(((?:[^()]|\([^()]*\))*)\)\s*(\w+)\s*\("
)


def _text(code: str, names: tuple[str, ...]) -> str:
    """C++ of the kernels, each with entry points that the stand-in can call by number."""
    text = _DYNAMIC.sub(r"CC_DYNAMIC(\1, \2);", code)
    bounds = {match[3]: f"{match[1] or ''}constexpr int cc_bound_{match[3]}() {{ return cc::first({match[2]}); }}\n"
              for match in _BOUNDED.finditer(code)}  # fmt: skip
    entries = []
    for number, name in enumerate(names):
        plain = re.match(r"\w+", name)
        bounded = plain is not None and plain[0] in bounds
        bound = f"cc_bound_{name}()" if bounded else "1024"
        entries.append(
            f"void cc_run_{number}(void** args) {{ cc::kernel(k{number}).call(args); }}\n"
            f"const char* cc_codes_{number}() {{ return decltype(cc::kernel(k{number}))::codes(); }}\n"
            f"const char* cc_pointees_{number}() {{ return decltype(cc::kernel(k{number}))::pointees(); }}\n"
            f"const int* cc_sizes_{number}() {{ return decltype(cc::kernel(k{number}))::sizes(); }}\n"
            f"int cc_bound_{number}() {{ return {bound}; }}\n"
        )
    pointers = "".join(f"static constexpr auto k{number} = &{name};\n" for number, name in enumerate(names))
    return (
        f'#include "cuda_cpu.h"\n#line 1 "{FILE}"\n{text}\n#line 1 "entries"\n'
        f'{"".join(bounds.values())}{pointers}extern "C" {{\n{"".join(entries)}}}\n'
    )
