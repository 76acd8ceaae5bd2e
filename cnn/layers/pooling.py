"""Pooling: windows or whole images, each channel separately."""

from dataclasses import dataclass

from cnn.arena import Shape, Tree
from cnn.backends.base import Array, Window
from cnn.errors import ShapeError
from cnn.layers.base import Cache, Run, Specs, image_shape, pair


@dataclass(frozen=True)
class _Pool:
    """A window that slides over each channel, by default with the stride of its size."""

    size: int | tuple[int, int] = 2
    stride: int | tuple[int, int] | None = None
    padding: int | tuple[int, int] = 0

    @property
    def window(self) -> Window:
        ph, pw = pair(self.padding)
        return Window(pair(self.size), pair(self.size if self.stride is None else self.stride), ph, ph, pw, pw)

    def specs(self, in_shape: Shape) -> Specs:
        height, width, channels = image_shape(self, in_shape)
        window = self.window
        out_h, out_w = window.out_size(height, width)
        if out_h < 1 or out_w < 1:
            raise ShapeError(f"{self} does not fit an image of {height}x{width}; use larger images")
        if 2 * window.top > window.size[0] or 2 * window.left > window.size[1]:
            raise ShapeError(f"{self} has windows entirely in the padding; make the padding at most half the size")
        return Specs((out_h, out_w, channels))


@dataclass(frozen=True)
class MaxPool(_Pool):
    """The largest value of each window: (N, H, W, C) -> (N, OH, OW, C)."""

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]:
        if not run.training:
            return run.backend.max_pool_infer(x, self.window), None  # (N, OH, OW, C)
        y, argmax = run.backend.max_pool(x, self.window)  # (N, OH, OW, C) each
        return y, (argmax, x.shape)

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        argmax, shape = cache
        return run.backend.max_pool_backward(dy, argmax, shape, self.window)  # (N, H, W, C)


@dataclass(frozen=True)
class AveragePool(_Pool):
    """The mean of each window, padding counted as zeros: (N, H, W, C) -> (N, OH, OW, C)."""

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]:
        return run.backend.average_pool(x, self.window), x.shape  # (N, OH, OW, C)

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        return run.backend.average_pool_backward(dy, cache, self.window)  # (N, H, W, C)


@dataclass(frozen=True)
class GlobalAveragePool:
    """Each channel's mean over the image: (N, H, W, C) -> (N, C)."""

    def specs(self, in_shape: Shape) -> Specs:
        return Specs((image_shape(self, in_shape)[2],))

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]:
        return run.backend.global_average_pool(x), (x.shape, x.dtype)  # (N, C)

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        return run.backend.global_average_pool_backward(dy, *cache)  # (N, H, W, C)


@dataclass(frozen=True)
class GlobalMaxPool:
    """Each channel's largest value over the image: (N, H, W, C) -> (N, C)."""

    def specs(self, in_shape: Shape) -> Specs:
        return Specs((image_shape(self, in_shape)[2],))

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]:
        y, argmax = run.backend.global_max_pool(x)  # (N, C) each
        return y, (argmax, x.shape, x.dtype)

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        return run.backend.global_max_pool_backward(dy, *cache)  # (N, H, W, C)
