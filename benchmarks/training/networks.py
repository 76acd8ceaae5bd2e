"""The networks that the benchmarks time, their input, and how many multiplications they take."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cnn.arena import Shape
from cnn.layers import (
    GELU,
    BatchNorm,
    Conv2D,
    Dense,
    Flatten,
    Layer,
    MaxPool,
    Residual,
    Sequential,
    chain,
)
from cnn.losses import SoftmaxCrossEntropy
from cnn.models import Model, Plain, ResNet9, ResNet18, Seed
from cnn.training.optimizers import AdamW

# Both sides train with the product's optimizer and loss. The rate is next to nothing, which costs as much time as any
# other and leaves the networks as they start: trained on noise, units would saturate and numbers become subnormal.
OPTIMIZER, LOSS = AdamW(lr=1e-7), SoftmaxCrossEntropy()


@dataclass(frozen=True)
class Airbench:
    """The network of the CIFAR-10 speed runs (Jordan, 2024, airbench94), all of its parameters trained.

    Its whitening layer and the factor 1/9 at its end are matters of initialisation and scale, and left out.
    """

    def layers(self, in_shape: Shape, classes: int) -> Sequential:
        def group(filters: int) -> Sequential:
            return chain(
                conv1=Conv2D(filters, 3, bias=False), pool=MaxPool(2), norm1=BatchNorm(activation="gelu"),
                conv2=Conv2D(filters, 3, bias=False), norm2=BatchNorm(activation="gelu"),
            )  # fmt: skip

        return chain(
            whiten=Conv2D(24, 2, padding=0), gelu=GELU(),
            group1=group(64), group2=group(256), group3=group(256),
            pool=MaxPool(3), flatten=Flatten(), head=Dense(classes, bias=False),
        )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One row of the benchmark: a network, the side of its images, and how many there are in a batch."""

    name: str
    model: Model
    size: int
    batch: int
    classes: int = 10

    @property
    def in_shape(self) -> tuple[int, int, int]:
        return self.size, self.size, 3

    @property
    def layer(self) -> Sequential:
        return self.model.layers(self.in_shape, self.classes)

    @property
    def macs(self) -> int:
        """Multiplications in the forward pass of one batch."""
        return self.batch * macs(self.layer, self.in_shape)

    def batch_of_noise(self) -> tuple[np.ndarray, np.ndarray]:
        """Normalised images (B, H, W, 3) float32 and class numbers (B,), the same for every side."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.batch, *self.in_shape), np.float32)
        return x, rng.integers(0, self.classes, self.batch)


CASES = {
    case.name: case
    for case in (
        Case("plain", Plain(), 32, 128),
        Case("resnet9", ResNet9(), 32, 128),
        Case("airbench", Airbench(), 32, 256),
        Case("resnet18", ResNet18(), 64, 64),
        Case("default", ResNet9(), 128, 32),
        Case("seed", Seed(), 256, 32, classes=18),
    )
}


def leaves(layer: Layer, in_shape: Shape) -> Iterator[tuple[Layer, Shape]]:
    """Every layer inside that is no container, with the shape that enters it."""
    match layer:
        case Sequential():
            for _, inner in layer.layers:
                yield from leaves(inner, in_shape)
                in_shape = inner.specs(in_shape).out_shape
        case Residual():
            yield from leaves(layer.body, in_shape)
            yield from leaves(layer.shortcut, in_shape)
        case _:
            yield layer, in_shape


def macs(layer: Layer, in_shape: Shape) -> int:
    """Multiplications of all convolutions and dense layers for one image, convolutions taken as plain sums."""
    total = 0
    for leaf, shape in leaves(layer, in_shape):
        out_shape, parameters, _ = leaf.specs(shape)
        weights = sum(math.prod(spec.shape) for spec in parameters if spec.decay)
        if weights and not isinstance(leaf, Conv2D | Dense):
            raise ValueError(f"how many multiplications does {leaf} take?")
        total += weights * math.prod(out_shape[:-1])
    return total
