"""Networks of the training benchmarks, their input, and their multiply-add counts."""

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

# All sides use this optimizer and loss. The learning rate is tiny, to leave the networks as initialised: training on
# noise would saturate units and produce subnormal numbers, which change the timing.
OPTIMIZER, LOSS = AdamW(lr=1e-7), SoftmaxCrossEntropy()


@dataclass(frozen=True)
class Airbench:
    """The CIFAR-10 speedrun network (Jordan, 2024, airbench94), with all parameters trained.

    Unlike `cnn.models.Airbench94`, it has no whitening or identity initialisation, no frozen first layer, no learning
    rate factors and no output scale of 1/9, which PyTorch's optimizers and layers lack and which cost no time: both
    sides compute the same with plain layers.
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
    """A row of the benchmark: a network, the side of its images in pixels, and the batch size."""

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
        """Multiply-adds in the forward pass of one batch."""
        return self.batch * macs(self.layer, self.in_shape)

    def batch_of_noise(self) -> tuple[np.ndarray, np.ndarray]:
        """Random normalised images (B, H, W, 3) float32 and class indices (B,), the same for every side."""
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
    """Every layer inside that is not a container, with its input shape."""
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
    """Multiply-adds of all convolutions (computed directly) and dense layers for one image."""
    total = 0
    for leaf, shape in leaves(layer, in_shape):
        out_shape, parameters, _ = leaf.specs(shape)
        weights = sum(math.prod(spec.shape) for spec in parameters if spec.decay)
        if weights and not isinstance(leaf, Conv2D | Dense):
            raise ValueError(f"expected weights in Conv2D and Dense only, found {leaf}: count its multiply-adds here")
        total += weights * math.prod(out_shape[:-1])
    return total
