"""The built-in architectures, for any image size and number of classes.

A model is a frozen dataclass of options; `layers(in_shape, classes)` returns its layers, or raises `RecipeError` for
an invalid option. Its last layer is called `head`, and is the only one that depends on the classes.
"""

import math
from dataclasses import dataclass

from cnn.arena import Shape
from cnn.errors import RecipeError, check_range
from cnn.initialise import fan_in_uniform, identity
from cnn.layers import (
    GELU,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    GlobalMaxPool,
    Layer,
    MaxPool,
    Residual,
    Scale,
    Sequential,
    Sigmoid,
    Whitening,
    chain,
)
from cnn.layers.activations import check_activation


@dataclass(frozen=True)
class Seed:
    """The project's first network: three 3x3 convolutions of 5 channels, then dense 128-64-18, with sigmoids."""

    def layers(self, in_shape: Shape, classes: int) -> Sequential:
        return chain(
            conv1=Conv2D(5, 3, padding=0), sigmoid1=Sigmoid(),
            conv2=Conv2D(5, 3, padding=0), sigmoid2=Sigmoid(),
            conv3=Conv2D(5, 3, padding=0), sigmoid3=Sigmoid(),
            flatten=Flatten(),
            dense1=Dense(128), sigmoid4=Sigmoid(),
            dense2=Dense(64), sigmoid5=Sigmoid(),
            dense3=Dense(18), sigmoid6=Sigmoid(),
            head=Dense(classes),
        )  # fmt: skip


@dataclass(frozen=True)
class Plain:
    """Pairs of 3x3 convolutions with batch norm, each followed by a 2x2 max pool (VGG, Simonyan and Zisserman, 2015).

    Pairs are added until the image is about 4 pixels a side. The number of channels starts at `width` and doubles with
    each pair, up to 8 times `width`.
    """

    width: int = 32
    activation: str = "relu"
    dropout: float = 0.0

    def layers(self, in_shape: Shape, classes: int) -> Sequential:
        _check_options(self.width, self.activation)
        stages = max(1, round(math.log2(min(in_shape[:2]) / 4)))
        named: dict[str, Layer] = {}
        for stage in range(stages):
            filters = self.width * min(2**stage, 8)
            named[f"conv{stage + 1}a"] = _conv_norm(filters, self.activation)
            named[f"conv{stage + 1}b"] = _conv_norm(filters, self.activation)
            named[f"pool{stage + 1}"] = MaxPool(2)
        return chain(**named, dropout=Dropout(self.dropout), average=GlobalAveragePool(), head=Dense(classes))


@dataclass(frozen=True)
class ResNet9:
    """Eight convolutions, four of them in two residual blocks: the network of the fast CIFAR-10 runs (Page, 2019).

    Strided 3x3 convolutions first halve images of 64 or more pixels a side, down to 32 to 63. `width` is the number of
    channels after the stem; the last block has 8 times as many.
    """

    width: int = 32
    activation: str = "relu"
    dropout: float = 0.0

    def layers(self, in_shape: Shape, classes: int) -> Sequential:
        _check_options(self.width, self.activation)
        width, act = self.width, self.activation
        named: dict[str, Layer] = {}
        halvings = max(0, int(math.log2(min(in_shape[:2]) / 32)))
        for i in range(halvings):
            named[f"reduce{i + 1}"] = _conv_norm(max(width // 2, 8), act, stride=2)
        named["stem"] = _conv_norm(width, act)
        side = min(in_shape[:2]) // 2**halvings
        for stage, filters in enumerate((2 * width, 4 * width, 8 * width), start=1):
            named[f"conv{stage}"] = _conv_norm(filters, act)
            if side >= 2:  # tiny images are not pooled below one pixel
                named[f"pool{stage}"] = MaxPool(2)
                side //= 2
            if stage != 2:
                block = chain(conv1=_conv_norm(filters, act), conv2=_conv_norm(filters, act))
                named[f"block{stage}"] = Residual(block)
        return chain(**named, average=GlobalAveragePool(), dropout=Dropout(self.dropout), head=Dense(classes))


@dataclass(frozen=True)
class ResNet18:
    """Four stages of two basic residual blocks (He et al., 2016).

    Images under 64 pixels enter through one 3x3 convolution; larger ones through a strided 7x7 and a max pool.
    """

    width: int = 64
    dropout: float = 0.0

    def layers(self, in_shape: Shape, classes: int) -> Sequential:
        _check_options(self.width, "relu")
        named: dict[str, Layer] = {}
        if min(in_shape[:2]) < 64:
            named["stem"] = _conv_norm(self.width, "relu")
        else:
            named["stem"] = _conv_norm(self.width, "relu", kernel=7, stride=2)
            named["pool"] = MaxPool(3, stride=2, padding=1)
        channels = self.width
        for stage in range(4):
            filters = self.width * 2**stage
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                named[f"stage{stage + 1}block{block + 1}"] = _basic_block(channels, filters, stride)
                channels = filters
        return chain(**named, average=GlobalAveragePool(), dropout=Dropout(self.dropout), head=Dense(classes))


@dataclass(frozen=True)
class Airbench94:
    """The network of the CIFAR-10 speed runs (Jordan, 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU").

    A whitening convolution of 2x2 patches, three groups of two convolutions, each group halving the image, and a
    global max pool. Convolutions start as the identity. Batch norm has only a shift, whose learning rate is multiplied
    by `shift_lr_factor`. `width` is the number of channels of the first group; the others have four times as many.

    `whiten_bias` is the fraction of the training during which the whitening layer's bias is trained; in the original,
    3 of 9.9 epochs. `scale` multiplies the outputs. For ablations: without `whiten` the first layer is a trained
    convolution, without `identity` all convolutions are initialised at random.
    """

    width: int = 64
    whiten: bool = True
    identity: bool = True
    shift_lr_factor: float = 64.0
    whiten_bias: float = 0.3
    scale: float = 1 / 9

    def layers(self, in_shape: Shape, classes: int) -> Sequential:
        _check_options(self.width, "gelu")
        if not self.shift_lr_factor > 0.0:
            raise RecipeError(f"model shift_lr_factor: expected a number above 0, found {self.shift_lr_factor}")
        check_range("model whiten_bias", self.whiten_bias, 0, 1)
        norm = BatchNorm(0.4, 1e-12, "gelu", scaled=False, shift_lr_factor=self.shift_lr_factor, shift_decay=True)
        filters = 2 * 2 * 2 * in_shape[2]
        start = identity if self.identity else fan_in_uniform
        whitening = Whitening(filters, bias_trained_until=self.whiten_bias)
        first = whitening if self.whiten else Conv2D(filters, 2, padding=0)
        named: dict[str, Layer] = {"whiten" if self.whiten else "conv": first, "gelu": GELU()}
        side = min(in_shape[:2]) - 1
        for number, filters in enumerate((self.width, 4 * self.width, 4 * self.width), start=1):
            group: dict[str, Layer] = {"conv1": Conv2D(filters, 3, bias=False, initialise=start)}
            if side >= 2:  # tiny images are not pooled below one pixel
                group["pool"] = MaxPool(2)
                side //= 2
            group |= {"norm1": norm, "conv2": Conv2D(filters, 3, bias=False, initialise=start), "norm2": norm}
            named[f"group{number}"] = chain(**group)
        named["largest"] = GlobalMaxPool()
        if self.scale != 1.0:
            named["scale"] = Scale(self.scale)  # as good as after the head, which has no bias
        return chain(**named, head=Dense(classes, bias=False, initialise=fan_in_uniform))


def _conv_norm(filters: int, activation: str, kernel: int = 3, stride: int = 1) -> Sequential:
    """Convolution, batch norm and activation. The norm's shift takes the place of a bias."""
    return chain(
        conv=Conv2D(filters, kernel, stride, padding=kernel // 2, bias=False),
        norm=BatchNorm(activation=activation),
    )


def _basic_block(channels: int, filters: int, stride: int) -> Sequential:
    body = chain(
        conv1=Conv2D(filters, 3, stride, padding=1, bias=False), norm1=BatchNorm(activation="relu"),
        conv2=Conv2D(filters, 3, 1, padding=1, bias=False), norm2=BatchNorm(),
    )  # fmt: skip
    shortcut = Sequential(())
    if stride != 1 or channels != filters:
        shortcut = chain(conv=Conv2D(filters, 1, stride, padding=0, bias=False), norm=BatchNorm())
    return chain(sum=Residual(body, shortcut, activation="relu"))


def _check_options(width: int, activation: str) -> None:
    check_range("model width", width, 1, kind=int)
    check_activation(activation, required=True)
