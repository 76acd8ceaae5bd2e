"""Results against float64 on the CPU; the tests for a GPU; and NVIDIA's own tools, where they are installed."""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.gpu.record import STANDIN, Record, relative_error
from benchmarks.gpu.setups import PRECISIONS, SETUPS, Ours, gpu
from benchmarks.worker import ROOT
from cnn.backends.base import Backend, Window
from cnn.backends.reference import ReferenceBackend
from cnn.inputs.preprocess import preprocess
from cnn.layers import Run
from cnn.losses import SoftmaxCrossEntropy
from cnn.models import MODELS
from cnn.network import Network

# Relative errors in norm that are allowed: of one product, and of the gradient of a whole network.
BOUNDS = {"float64": (1e-12, 1e-10), "float32": (1e-5, 1e-3), "tf32": (2e-3, 0.05), "bf16": (1e-2, 0.2)}
# Images (N, H, W, C), filters, window: odd sizes, several tiles, strides, and channels in no multiple of anything.
CONVOLUTIONS = (
    ((3, 13, 11, 24), 40, Window((3, 3), (1, 1), 1, 1, 1, 1)),
    ((2, 9, 10, 3), 16, Window((3, 3), (1, 1), 1, 1, 1, 1)),
    ((2, 12, 13, 32), 64, Window((3, 3), (2, 2), 1, 1, 1, 1)),
    ((1, 5, 7, 64), 130, Window((1, 1), (1, 1))),
    ((2, 17, 16, 5), 7, Window((7, 5), (2, 3), 3, 2, 2, 2)),
    ((5, 8, 8, 128), 256, Window((3, 3), (1, 1), 1, 1, 1, 1)),
)


def kernels_and_networks(record: Record) -> None:
    """Every convolution pass at odd shapes, then whole networks, in every precision."""
    for precision in PRECISIONS:
        errors = dict(convolution_errors(precision))
        bound = BOUNDS[precision][0]
        record.add("correctness", f"convolutions {precision}", {
            "worst": max(errors.values()), "bound": bound, "failed": {k: v for k, v in errors.items() if v > bound}
        })  # fmt: skip
    for name in ("plain",) if STANDIN else MODELS:
        for precision in PRECISIONS:
            errors = network_errors(name, precision)
            failed = not max(errors.values()) <= BOUNDS[precision][1]
            record.add("correctness", f"{name} {precision}", errors | {"failed": failed})


def convolution_errors(precision: str) -> Iterator[tuple[str, float]]:
    """Yield the relative error of each array of each case: y, dx and d_weight."""
    generator, reference = np.random.default_rng(0), ReferenceBackend()
    for shape, filters, window in CONVOLUTIONS[: 2 if STANDIN else None]:
        weight = (*window.size, shape[3], filters)
        out = (shape[0], *window.out_size(*shape[1:3]), filters)
        backend = gpu(precision)
        x, w, dy = (_stored(backend, generator.normal(size=each), precision) for each in (shape, weight, out))
        exact = [_float64(backend, each) for each in (x, w, dy)]
        d_weight = backend.zeros(weight, np.float32)
        found: dict[str, Any] = {"y": backend.conv2d(x, w, None, window)}
        found |= {"dx": backend.conv2d_backward(dy, x, w, window, d_weight, None, True), "d_weight": d_weight}
        expected = {"y": reference.conv2d(exact[0], exact[1], None, window), "d_weight": np.empty(weight)}
        expected["dx"] = reference.conv2d_backward(exact[2], *exact[:2], window, expected["d_weight"], None, True)
        for name, array in found.items():
            yield f"{shape}->{filters} {window.size} {name}", relative_error(_float64(backend, array), expected[name])


def _stored(backend: Backend, values: np.ndarray, precision: str) -> Any:
    """Random values as the backend stores feature maps: float32, or bfloat16 in uint16."""
    single = values.astype(np.float32)
    if precision != "bf16":
        return backend.asarray(single)
    bits = single.view(np.uint32)
    return backend.asarray(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16))  # to the nearest


def _float64(backend: Backend, array: Any) -> np.ndarray:
    host = backend.to_host(array)
    if host.dtype == np.uint16:
        host = (host.astype(np.uint32) << 16).view(np.float32)
    return host.astype(np.float64)


def network_errors(name: str, precision: str) -> dict[str, float]:
    """Errors of the loss, the outputs and the gradient of a network's first step, against float64 on the CPU."""
    shape, batch = ((9, 11, 3), 2) if STANDIN else ((37, 41, 3), 8)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (batch, *shape), np.uint8)  # (B, H, W, 3)
    labels = generator.integers(0, 10, batch)  # (B,)
    layer = MODELS[name]().layers(shape, 10)
    results: list[list[np.ndarray]] = []
    for backend, dtype in ((ReferenceBackend(), np.float64), (gpu(precision), np.float32)):
        network = Network(layer, shape, backend, seed=0, dtype=dtype)
        mean, std = (backend.asarray(np.full(3, value, dtype)) for value in (127.5, 64.0))  # (3,) each
        x = preprocess(backend, images, None, mean, std)  # (B, H, W, 3)
        run = Run(backend, training=True, key=1, rows=backend.asarray(np.arange(batch)), need_dx=False)
        outputs, cached = network.forward(run, x)  # (B, 10)
        loss, gradient, *_ = SoftmaxCrossEntropy().forward(backend, outputs, backend.asarray(labels), batch)
        network.backward(run, cached, gradient)
        results.append([backend.to_host(each) for each in (loss, outputs, network.gradients.flat)])
    return {
        key: relative_error(found, expected)
        for key, expected, found in zip(("loss", "outputs", "gradient"), *results, strict=True)
    }


# Other programs ----------------------------------------------------------------------------------------


def run_selftest(record: Record) -> None:
    """`logpose selftest` in each precision."""
    for precision in PRECISIONS:
        command = [sys.executable, "-m", "logpose", "selftest", "--device", "cuda", "--precision", precision, "-v"]
        _run(record, "selftest", precision, command)


def run_pytest(record: Record) -> None:
    """The project's own tests that are marked `gpu`."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu", "--no-header", "-p", "no:cacheprovider"]
    command += ["tests/cnn/test_gradients.py", "-k", "Dense"] if STANDIN else ["tests/cnn"]
    _run(record, "pytest", "tests", command)


def run_sanitizer(record: Record) -> None:
    """compute-sanitizer on one small training step: memory errors, then races in shared memory."""
    program = _installed("compute-sanitizer")
    if not program:
        return record.add("sanitizer", "skipped", "compute-sanitizer is not installed")
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        short = [sys.executable, "-m", "benchmarks.gpu.correctness", "--small"]
        _run(record, "sanitizer", tool, [program, "--tool", tool, "--error-exitcode", "9", *short])
    return None


def run_ncu(record: Record) -> None:
    """Nsight Compute on three kernels of a step of resnet9."""
    program = _installed("ncu")
    if not program:
        return record.add("ncu", "skipped", "ncu is not installed")
    for kernels in ("conv", "norm"):
        chosen = ["--kernel-name", f"regex:{kernels}", "--launch-skip", "12", "--launch-count", "3"]
        step = [sys.executable, "-m", "benchmarks.gpu.correctness"]
        _run(record, "ncu", kernels, [program, "--set", "basic", *chosen, *step])
    return None


def _installed(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")


def _run(record: Record, stage: str, key: str, command: list[str]) -> None:
    """Run a program to its end or the stage's; keep its output in a file, and the end of it in the record."""
    path = record.folder / f"{stage}-{key}.txt"
    seconds = max(record.left() - 3, 1)
    with path.open("w+", encoding="utf-8", errors="replace") as output:
        with subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT) as process:
            try:
                ended: Any = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                ended = f"stopped after {seconds:.0f} s"
        output.seek(0)
        text = output.read()
    record.add(stage, key, {"exit": ended, "output": text[-2500:], "file": str(path)})


def main() -> None:
    """The work that the tools watch: a training step of resnet9 in bfloat16."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--small", action="store_true", help="odd convolutions and a small network, in all precisions")
    if parser.parse_args().small:
        for precision in PRECISIONS:
            print(max(error for _, error in convolution_errors(precision)), network_errors("plain", precision))
        return
    ours = Ours(SETUPS["resnet9"], "bf16")
    for _ in range(2):
        ours.step()
    print(ours.finish())


if __name__ == "__main__":
    main()
