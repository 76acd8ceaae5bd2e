"""The machine itself: versions, its ceilings, the cost of a launch; and how long our kernels take to compile there."""

import platform
import shutil
import subprocess
import time
from typing import Any

import cupy
import numpy as np

from benchmarks.gpu.record import REPEATS, STANDIN, Record, in_turns, synchronize
from benchmarks.gpu.setups import PRECISIONS, SETUPS, Ours, torch_or_none

KERNEL = """
extern "C" __global__ void nothing(float* a, int b, int c, int d, int e, int f, int g, int h) { if (b) a[0] = 1; }
"""
MANY = 4 if STANDIN else 2000  # launches


def describe(record: Record) -> None:
    """The card, its driver, and the versions of the libraries."""
    device, torch = cupy.cuda.Device(), torch_or_none()
    properties = cupy.cuda.runtime.getDeviceProperties(device.id)
    record.add("machine", "card", properties["name"].decode())
    record.add("machine", "properties", {k: v for k, v in properties.items() if isinstance(v, int)})
    record.add("machine", "versions", {
        "python": platform.python_version(), "numpy": np.__version__, "cupy": cupy.__version__,
        "torch": torch.__version__ if torch else None, "cudnn": torch.backends.cudnn.version() if torch else None,
    })  # fmt: skip
    if not STANDIN:
        runtime = cupy.cuda.runtime
        found = {"driver": runtime.driverGetVersion(), "runtime": runtime.runtimeGetVersion()}
        record.add("machine", "cuda", found | {"nvrtc": cupy.cuda.nvrtc.getVersion()})
    if smi := shutil.which("nvidia-smi"):
        query = "name,driver_version,pstate,clocks.max.sm,clocks.max.mem,power.limit,memory.total,mig.mode.current"
        command = [smi, f"--query-gpu={query}", "--format=csv"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        record.add("machine", "nvidia-smi", done.stdout or done.stderr)


def ceilings(record: Record) -> None:
    """The best rates of memory and of tensor cores: what our kernels' times are compared with."""
    size = 1 << (12 if STANDIN else 28)  # float32 values: 1 GiB, beyond any cache
    source, target = cupy.ones(size, np.float32), cupy.empty(size, np.float32)  # (size,) each

    def copy() -> None:
        target[...] = source

    record.add("ceilings", "copy_GB_per_s", round(8 * size / in_turns({"copy": copy})["copy"] / 1e6, 1))
    torch = torch_or_none()
    if torch is None:
        record.add("ceilings", "products", "PyTorch is not installed")
        return
    side, device = (64, "cpu") if STANDIN else (8192, "cuda")
    torch.backends.cuda.matmul.allow_tf32 = True
    for name, dtype in (("bf16", torch.bfloat16), ("tf32", torch.float32)):
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        ms = in_turns({name: lambda a=a, b=b: a @ b})[name]
        record.add("ceilings", f"product_{name}_TFLOP_per_s", round(2 * side**3 / ms / 1e9, 1))


def compile_cold(record: Record) -> None:
    """The first training step of each precision with an empty kernel cache, and the second."""
    shutil.rmtree(record.folder / "cupy_cache", ignore_errors=True)
    for name in ("resnet9", "airbench94"):
        for precision in PRECISIONS:
            times = []
            ours = Ours(SETUPS[name], precision)
            for _ in range(2):
                began = time.perf_counter()
                ours.step()
                ours.finish()
                synchronize()
                times.append(round(time.perf_counter() - began, 3))
            record.add("compile", f"{name} {precision}", {"first_step_s": times[0], "second_step_s": times[1]})


def launches(record: Record) -> None:
    """Microseconds of a launch: from Python, with its kernel, and as part of a graph."""
    numbers = cupy.zeros(256, np.float32)  # (256,)
    kernel = cupy.RawKernel(KERNEL, "nothing")
    arguments = (numbers, *map(np.int32, range(7)))

    def launch(times: int) -> None:
        for _ in range(times):
            kernel((1,), (256,), arguments)

    launch(10)
    synchronize()
    began = time.perf_counter()
    launch(MANY)
    issued = time.perf_counter()
    synchronize()
    found: dict[str, Any] = {"host_us": (issued - began) / MANY * 1e6}
    found["with_kernel_us"] = (time.perf_counter() - began) / MANY * 1e6
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        launch(100)
        graph = stream.end_capture()
        graph.launch(stream)
        stream.synchronize()
        began = time.perf_counter()
        for _ in range(REPEATS):
            graph.launch(stream)
        stream.synchronize()
    found["in_graph_us"] = (time.perf_counter() - began) / (100 * REPEATS) * 1e6
    record.add("launches", "us", {name: round(us, 2) for name, us in found.items()})
