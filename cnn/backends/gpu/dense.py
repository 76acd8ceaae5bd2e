"""Dense layers on the GPU: 1x1 convolutions of images of one pixel.

N rows, C inputs, K outputs. Vectors and weights are float32 or float64. `math` is PLAIN or TF32.
"""

from cnn.backends.base import Array, Window
from cnn.backends.gpu import convolution

_ONE = Window((1, 1), (1, 1))


def forward(x: Array, weight: Array, bias: Array | None, math: str) -> Array:
    """y (N, K) = x (N, C) @ weight (C, K) + bias (K,). A row's bits do not depend on the other rows."""
    y, _ = convolution.forward(x[:, None, None], weight[None, None], bias, _ONE, math)  # (N, 1, 1, K)
    return y[:, 0, 0]


def backward(
    dy: Array, x: Array, weight: Array, d_weight: Array, d_bias: Array | None, need_dx: bool, math: str
) -> Array | None:
    """Write d_weight (C, K) and d_bias (K,), and return dx (N, C), from dy (N, K)."""
    from cnn.backends.gpu.norm import channel_sums

    gradient = dy[:, None, None]  # (N, 1, 1, K)
    convolution.weight_gradient(gradient, x[:, None, None], _ONE, math, d_weight[None, None])
    if d_bias is not None:
        channel_sums(dy, d_bias)
    if not need_dx:
        return None
    dx = convolution.input_gradient(gradient, weight[None, None], _ONE, (len(x), 1, 1, x.shape[1]), math)
    return dx[:, 0, 0]
