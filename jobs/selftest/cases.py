"""Fixed cases of the self-test: every kind of layer, at small odd shapes and at shapes of several tiles."""

from cnn import layers
from cnn.arena import Shape
from cnn.layers import Layer, chain
from cnn.layers.normalisation import PooledBatchNorm

CASES: dict[str, tuple[Layer, Shape]] = {
    "Conv2D 3x3": (layers.Conv2D(24, 3), (9, 11, 16)),
    "Conv2D 3x3, images": (layers.Conv2D(16, 3), (7, 6, 3)),
    "Conv2D strided": (layers.Conv2D(32, 3, 2, 1), (9, 10, 16)),
    "Conv2D odd": (layers.Conv2D(5, (3, 2), (2, 1), (1, 0)), (9, 8, 3)),
    "Conv2D 1x1, many": (layers.Conv2D(136, 1, padding=0, bias=False), (5, 7, 40)),
    "Whitening": (layers.Whitening(24, 2), (6, 7, 3)),
    "Dense": (layers.Dense(7), (33,)),
    "Flatten": (layers.Flatten(), (3, 4, 5)),
    "MaxPool 2x2": (layers.MaxPool(2), (6, 7, 16)),
    "MaxPool 3x3": (layers.MaxPool(3, 2, 1), (7, 8, 5)),
    "AveragePool": (layers.AveragePool(3, 2, 1), (7, 8, 8)),
    "GlobalMaxPool": (layers.GlobalMaxPool(), (5, 4, 16)),
    "GlobalAveragePool": (layers.GlobalAveragePool(), (5, 4, 6)),
    "BatchNorm": (layers.BatchNorm(activation="gelu"), (5, 6, 16)),
    "BatchNorm and MaxPool": (PooledBatchNorm(layers.BatchNorm(activation="relu")), (6, 7, 16)),
    "BatchNorm of vectors": (layers.BatchNorm(), (12,)),
    "Dropout": (layers.Dropout(0.3), (4, 5, 8)),
    "ReLU": (layers.ReLU(), (4, 5, 8)),
    "GELU": (layers.GELU(), (4, 5, 3)),
    "SiLU": (layers.SiLU(), (4, 5, 8)),
    "Sigmoid": (layers.Sigmoid(), (4, 5, 8)),
    "Tanh": (layers.Tanh(), (4, 5, 8)),
    "Scale": (layers.Scale(0.3), (4, 5, 8)),
    "Softmax": (layers.Softmax(), (9,)),
    "Residual": (
        layers.Residual(
            chain(conv=layers.Conv2D(16, 3), norm=layers.BatchNorm(activation="tanh")),
            layers.Conv2D(16, 1, bias=False), "silu",
        ), (6, 5, 8),
    ),
    "Sequential": (
        chain(conv=layers.Conv2D(16), norm=layers.BatchNorm(activation="silu"), pool=layers.GlobalAveragePool(),
              head=layers.Dense(5)), (7, 6, 3),
    ),
}  # fmt: skip
