"""The processor's vector instructions: on another set of them, the last bits of results may differ.

Not with the width of vectors (`lanes`), which is only a matter of speed: see `widths.py`.
"""

import os
import platform
from functools import cache

import llvmlite.binding

from cnn.errors import DeviceError
from logpose.common.notices import note_once

_SETS = {"avx512f": "AVX-512", "avx2": "AVX2", "sve": "SVE", "neon": "NEON"}  # LLVM's feature -> name; first wins

# Processors, as LLVM names them, whose clock drops where they execute AVX-512, or that have few of its instructions.
_SLOW_AVX512 = {"skylake-avx512", "cascadelake", "cooperlake", "cannonlake", "knl", "knm"}


def instruction_set() -> str:
    """Return the widest vector instructions, such as 'AVX-512', or the processor's kind where none are known."""
    features = llvmlite.binding.get_host_cpu_features()
    return next((name for feature, name in _SETS.items() if features.get(feature)), platform.machine() or "unknown")


@cache
def lanes() -> int:
    """Return how many numbers a vector has at most: 16 where AVX-512 is fast, 8 elsewhere; LOGPOSE_LANES overrides it.

    Raises DeviceError where LOGPOSE_LANES is something else.
    """
    chosen = os.environ.get("LOGPOSE_LANES", "")
    if chosen not in ("", "8", "16"):
        raise DeviceError(f"expected LOGPOSE_LANES to be 8 or 16, found {chosen!r}: correct or unset it")
    has_avx512 = instruction_set() == "AVX-512"
    if chosen == "16" and not has_avx512:
        note_once("lanes", "LOGPOSE_LANES=16, but this processor has no AVX-512: vectors are computed in parts, slower")
    if chosen:
        return int(chosen)
    return 16 if has_avx512 and llvmlite.binding.get_host_cpu_name() not in _SLOW_AVX512 else 8
