"""2-D convolution with any kernel size, stride and padding."""

from dataclasses import dataclass
from typing import Literal

from cnn.arena import Initialiser, Shape, Spec, Tree
from cnn.backends.base import Array, Window
from cnn.errors import ShapeError
from cnn.initialise import he_normal, zeros
from cnn.layers.base import Cache, Run, Specs, image_shape, pair


@dataclass(frozen=True)
class Conv2D:
    """Convolution: (N, H, W, C) -> (N, OH, OW, filters).

    Each filter computes, at each position of a `kernel`-sized window, a weighted sum of all the window's values. The
    kernels are not flipped (cross-correlation). `padding` is the number of zeros on each side, or a pair for height and
    width; `same` keeps the image size at stride 1, and puts the odd zero of an even kernel below and on the right.
    `initialise` gives the initial kernels.
    """

    filters: int
    kernel: int | tuple[int, int] = 3
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] | Literal["same"] = "same"
    bias: bool = True
    initialise: Initialiser = he_normal

    @property
    def window(self) -> Window:
        (kh, kw), stride = pair(self.kernel), pair(self.stride)
        if self.padding == "same":
            return Window((kh, kw), stride, (kh - 1) // 2, kh // 2, (kw - 1) // 2, kw // 2)
        ph, pw = pair(self.padding)
        return Window((kh, kw), stride, ph, ph, pw, pw)

    def specs(self, in_shape: Shape) -> Specs:
        height, width, channels = image_shape(self, in_shape)
        out_h, out_w = self.window.out_size(height, width)
        if out_h < 1 or out_w < 1:
            raise ShapeError(
                f"{self} does not fit an image of {height}x{width}; use larger images, or a shallower model"
            )
        parameters = [Spec("weight", (*self.window.size, channels, self.filters), self.initialise, decay=True)]
        if self.bias:
            parameters.append(Spec("bias", (self.filters,), zeros))
        return Specs((out_h, out_w, self.filters), tuple(parameters))

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]:
        y = run.backend.conv2d(x, p["weight"], p.get("bias"), self.window, run.before_norm)  # (N, OH, OW, filters)
        return y, x

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        x = cache  # (N, H, W, C)
        return run.backend.conv2d_backward(
            dy, x, p["weight"], self.window, g["weight"], g.get("bias"), run.need_dx
        )  # (N, H, W, C)
