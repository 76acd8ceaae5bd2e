"""cupy.cuda.nccl: as in CuPy, a module that warns and has nothing but `available` where NCCL is not installed."""

import os
import warnings

available = os.environ.get("CUDA_CPU_NCCL") != "0"
if available:
    from .._nccl import NCCL_UINT8, NcclCommunicator, NcclError, get_unique_id, get_version, groupEnd, groupStart

    __all__ = [
        "NCCL_UINT8", "NcclCommunicator", "NcclError", "available", "get_unique_id", "get_version", "groupEnd",
        "groupStart",
    ]  # fmt: skip
else:
    warnings.warn("nccl library could not be loaded.", stacklevel=1)
