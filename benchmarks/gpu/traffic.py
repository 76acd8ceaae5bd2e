"""Arithmetic and memory traffic of a training step on a GPU, by family of kernels: counted, not measured.

    python -m benchmarks.gpu.traffic [NETWORK] [--tflops X] [--tbs X]

Feature maps are in bfloat16. Every array that a kernel must read or write counts once; caches may hold some. The time
is the longer of arithmetic and memory at the card's data-sheet rates, by default an H100's, summed over the layers: no
step can be faster, and none is as fast.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.training.networks import Airbench, Case
from cnn.arena import Shape
from cnn.layers import BatchNorm, Conv2D, Layer, MaxPool, Residual, Sequential
from cnn.layers.activations import Activation
from cnn.models import ResNet9, ResNet18

CASES = {
    case.name: case
    for case in (
        Case("airbench94", Airbench(), 32, 1024),
        Case("resnet9", ResNet9(), 32, 512),
        Case("resnet18", ResNet18(), 64, 256),
        Case("default", ResNet9(), 128, 256),
    )
}
MAP, WIDE = 2, 4  # bytes of a number in feature maps, and in parameters
PADDED = 8  # channels of the input, which has 3
# Bytes for each parameter: AdamW reads weight, gradient and two moments and writes three of them; the norm of the
# gradient reads it once more; the copy in bfloat16 is written from the weights.
OPTIMIZER = 7 * WIDE + WIDE + WIDE + MAP


class Work(NamedTuple):
    """One kernel's work on a batch, at most twice for the two halves of a pass."""

    family: str
    flop: float
    bytes: float


def work(layer: Layer, in_shape: Shape, batch: int, first: bool = True, after_conv: bool = False) -> Iterator[Work]:
    """All kernels of a layer's forward and backward pass. `first`: no gradient w.r.t. its input is needed."""
    x, y = (batch * math.prod(shape) * MAP for shape in (in_shape, layer.specs(in_shape).out_shape))
    match layer:
        case Sequential():
            for _, inner in layer.layers:
                yield from work(inner, in_shape, batch, first, after_conv)
                first, after_conv = first and not inner.specs(in_shape).parameters, isinstance(inner, Conv2D)
                in_shape = inner.specs(in_shape).out_shape
        case Residual():
            yield from work(layer.body, in_shape, batch, False)
            yield from work(layer.shortcut, in_shape, batch, False)
            yield Work("sums of residual blocks", 0, 3 * y + (3 * y if layer.activation else 0) + 3 * x)
        case Conv2D():
            weights = math.prod(layer.specs(in_shape).parameters[0].shape)
            flop = 2 * weights * batch * math.prod(layer.specs(in_shape).out_shape[:2])
            if first:
                x = x // in_shape[2] * PADDED
            yield Work("convolution, forward", flop, x + weights * MAP + y)
            yield Work("convolution, weight gradient", flop, x + y + weights * WIDE)
            if not first:
                yield Work("convolution, input gradient", flop, y + weights * MAP + x)
        case BatchNorm():
            statistics = 0 if after_conv else x  # a convolution's kernel computes those of its output
            yield Work("batch norm and activation, forward", 0, 2 * x + statistics)
            yield Work("batch norm and activation, backward", 0, 5 * x)
        case MaxPool():
            yield Work("pooling", 0, 2 * (x + y + y // MAP))  # and a byte for each winner
        case Activation():
            yield Work("activation", 0, 5 * x)
        case _ if len(in_shape) == 3 and len(layer.specs(in_shape).out_shape) == 1:
            yield Work("pooling", 0, 2 * x)  # global


def table(case: Case, tflops: float = 989, tbs: float = 3.35) -> list[str]:
    """The lines of a Markdown table: a row for each family, and one for the step."""
    lines = ["| kernels | GFLOP | MB read and written | ms at least |", "|---|---:|---:|---:|"]
    for family, (flop, size, seconds) in totals(case, tflops, tbs).items():
        lines.append(f"| {family} | {flop / 1e9:,.0f} | {size / 1e6:,.0f} | {seconds * 1e3:.3f} |")
    return lines


def totals(case: Case, tflops: float, tbs: float) -> dict[str, list[float]]:
    """Family -> operations, bytes and seconds; the whole step comes last."""
    parameters = sum(math.prod(spec.shape) for spec in case.layer.specs(case.in_shape).parameters)
    rows = [
        *work(case.layer, case.in_shape, case.batch),
        Work("input", 0, case.batch * case.size**2 * (3 + PADDED * MAP)),
        Work("optimizer", 0, parameters * OPTIMIZER),
    ]
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for row in rows:
        at_least = max(row.flop / tflops / 1e12, row.bytes / tbs / 1e12)
        for family in (row.family, "step"):
            sums[family] = [a + b for a, b in zip(sums[family], (row.flop, row.bytes, at_least), strict=True)]
    sums["step"] = sums.pop("step")  # last
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", choices=CASES, default="resnet9")
    parser.add_argument("--tflops", type=float, default=989, help="TFLOP/s in bfloat16; default: H100 SXM")
    parser.add_argument("--tbs", type=float, default=3.35, help="TB/s of memory")
    arguments = parser.parse_args()
    case = CASES[arguments.network]
    print(f"{case.name}, {case.size} x {case.size}, batch {case.batch}")
    print("\n".join(table(case, arguments.tflops, arguments.tbs)))


if __name__ == "__main__":
    main()
