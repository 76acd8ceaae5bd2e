"""The processor's vector instructions: on another set of them, the last bits of results may differ."""

import platform

import llvmlite.binding

_SETS = {"avx512f": "AVX-512", "avx2": "AVX2", "sve": "SVE", "neon": "NEON"}  # LLVM's feature -> name; first wins


def instruction_set() -> str:
    """Return the widest vector instructions, such as 'AVX-512', or the processor's kind where none are known."""
    features = llvmlite.binding.get_host_cpu_features()
    return next((name for feature, name in _SETS.items() if features.get(feature)), platform.machine() or "unknown")
