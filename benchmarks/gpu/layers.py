"""Every convolution of the timed networks, each pass and each tile, beside cuDNN's: which tile is the best where."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import cupy
import numpy as np

from benchmarks.gpu.record import Record, in_turns
from benchmarks.gpu.setups import DEVICE, SETUPS, torch_or_none
from benchmarks.training.networks import leaves
from cnn.backends.base import Window
from cnn.backends.gpu import convolution
from cnn.layers import Conv2D

PASSES = ("forward", "input", "weight")
STORAGE = {"BF16": np.uint16, "TF32": np.float32}  # of feature maps, by the kind of product


class Shape(NamedTuple):
    """One convolution: the images (N, H, W, C), and what is done with them."""

    images: tuple[int, int, int, int]
    filters: int
    window: Window

    def __str__(self) -> str:
        n, h, w, c = self.images
        (kh, kw), stride = self.window.size, self.window.stride[0]
        return f"{n}x{h}x{w}x{c}->{self.filters} {kh}x{kw}" + (f"/{stride}" if stride > 1 else "")

    @property
    def out(self) -> tuple[int, int, int, int]:
        return (self.images[0], *self.window.out_size(*self.images[1:3]), self.filters)

    @property
    def flop(self) -> int:
        """Of each pass: two per multiply-add."""
        kh, kw = self.window.size
        return 2 * int(np.prod(self.out)) * kh * kw * self.images[3]


def shapes() -> Iterator[tuple[str, Shape]]:
    """Every convolution of the timed networks, once, with the first network that has it."""
    seen = set()
    for name, case in SETUPS.items():
        for leaf, in_shape in leaves(case.layer, case.in_shape):
            if isinstance(leaf, Conv2D):
                h, w, c = in_shape
                shape = Shape((case.batch, h, w, c), leaf.filters, leaf.window)
                if shape not in seen:
                    seen.add(shape)
                    yield name, shape


def against_cudnn(record: Record) -> None:
    """Milliseconds of each pass with each tile, and cuDNN's; then the table of the best tiles."""
    best: dict[str, str] = {}
    for math in STORAGE:
        for network, shape in shapes():
            for which in PASSES:
                if record.left() < 5:
                    return record.add("layers", "stopped", f"no time left at {math} {shape} {which}")
                sides = dict(our_sides(shape, which, math))
                if torch_or_none():
                    sides["cudnn"] = their_side(shape, which, math)
                times = in_turns(sides)
                ours = {name: ms for name, ms in times.items() if name != "cudnn"}
                fastest = min(ours, key=lambda name: ours[name])
                best[f"{math} {which} {shape}"] = fastest
                found: dict[str, Any] = {"ms": {name: round(ms, 4) for name, ms in times.items()}, "best": fastest}
                found["TFLOP_per_s"] = {name: round(shape.flop / ms / 1e9, 1) for name, ms in times.items()}
                record.add("layers", f"{network}: {math} {shape} {which}", found)
    return record.add("layers", "best tiles", best)


def our_sides(shape: Shape, which: str, math: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """One side for each tile, and `chosen`, which takes the tile that the product would."""
    dtype = STORAGE[math]
    x, weight, dy = (_random(each, dtype) for each in (shape.images, _weight(shape), shape.out))
    d_weight = cupy.empty(_weight(shape), np.float32)  # (KH, KW, C, K)

    def call() -> Any:
        if which == "forward":
            return convolution.forward(x, weight, None, shape.window, math)
        if which == "input":
            return convolution.input_gradient(dy, weight, shape.window, shape.images, math)
        return convolution.weight_gradient(dy, x, shape.window, math, d_weight)

    def call_with(tile: Any) -> Any:
        choose, convolution.choose_tile = convolution.choose_tile, lambda *_: tile
        try:
            return call()
        finally:
            convolution.choose_tile = choose

    yield "chosen", call
    vector = 16 // x.itemsize
    if shape.images[3] % vector == 0 and shape.filters % vector == 0:  # others have one tile
        for tile in convolution.TILES:
            yield f"{tile.rows}x{tile.cols}", partial(call_with, tile)


def their_side(shape: Shape, which: str, math: str) -> Callable[[], Any]:
    """The same pass in PyTorch, channels last."""
    import torch

    dtype = torch.bfloat16 if math == "BF16" else torch.float32
    window = shape.window
    kh, kw, c, k = _weight(shape)

    def random(*size: int) -> Any:
        return torch.randn(size, device=DEVICE).to(dtype).contiguous(memory_format=torch.channels_last)

    n, h, w, _ = shape.images
    x, weight, dy = random(n, c, h, w), random(k, c, kh, kw), random(n, k, *shape.out[1:3])
    padding = [window.top, window.left]
    if which == "forward":
        return lambda: torch.nn.functional.conv2d(x, weight, stride=window.stride, padding=padding)
    mask = [which == "input", which == "weight", False]
    backward = torch.ops.aten.convolution_backward
    settings = (list(window.stride), padding, [1, 1], False, [0, 0], 1)
    return lambda: backward(dy, x, weight, None, *settings, mask)


def _weight(shape: Shape) -> tuple[int, int, int, int]:
    return (*shape.window.size, shape.images[3], shape.filters)


def _random(shape: tuple[int, ...], dtype: Any) -> Any:
    """Normal values on the device; as bfloat16, cut off instead of rounded."""
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    return cupy.asarray((values.view(np.uint32) >> 16).astype(np.uint16) if dtype == np.uint16 else values)
