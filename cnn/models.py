"""Named architectures, for any image size and number of classes.

A model is a frozen dataclass of options; `layers(in_shape, classes)` spells it out as layers. Its last layer is
called `head`, the only one that depends on the classes.
"""

import importlib
import math
from dataclasses import dataclass
from typing import Protocol

from cnn.arena import Shape
from cnn.errors import RecipeError, UnknownNameError
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
from cnn.layers.activations import ACTIVATIONS


class Model(Protocol):
    def layers(self, in_shape: Shape, classes: int) -> Sequential:
        """The network for images of `in_shape` (H, W, C)."""
        ...


@dataclass(frozen=True)
class Seed:
    """The network that the project grew from: three 3x3 convolutions of 5 channels, then dense 128-64-18, sigmoids."""

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
    """Pairs of 3x3 convolutions with batch norm, halved by a max pool after each pair (after Simonyan, 2015).

    There are as many pairs as it takes to come down to about 4 pixels; `width` doubles with each, up to 8 times.
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
        if self.dropout:
            named["dropout"] = Dropout(self.dropout)
        return chain(**named, average=GlobalAveragePool(), head=Dense(classes))


@dataclass(frozen=True)
class ResNet9:
    """Eight convolutions, two of the blocks residual: the network of the fast CIFAR-10 runs (Page, 2019).

    Its body works at 32 to 63 pixels a side: an image of 64 or more first passes strided 3x3 convolutions, each
    halving it. `width` is the body's first number of channels; the last is 8 times as many.
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
            if side >= 2:  # an image of a few pixels is not halved to nothing
                named[f"pool{stage}"] = MaxPool(2)
                side //= 2
            if stage != 2:
                block = chain(conv1=_conv_norm(filters, act), conv2=_conv_norm(filters, act))
                named[f"block{stage}"] = Residual(block)
        named["average"] = GlobalAveragePool()
        if self.dropout:
            named["dropout"] = Dropout(self.dropout)
        return chain(**named, head=Dense(classes))


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
        named["average"] = GlobalAveragePool()
        if self.dropout:
            named["dropout"] = Dropout(self.dropout)
        return chain(**named, head=Dense(classes))


@dataclass(frozen=True)
class Airbench94:
    """The network of the CIFAR-10 speed runs (Jordan, 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU").

    2x2 patches are whitened, then three groups of two convolutions, each group halving the image, and a max pool
    over what is left. Convolutions start as the identity. Of batch norm there is only the shift, which learns
    `shift_lr_factor` times as fast. `width` is the first group's channels; the others have four times as many.

    `whiten_bias` is the share of the training in which the whitening layer's bias is trained: 3 epochs of 9.9 there.
    `scale` multiplies the outputs. Without `whiten` the first layer is a convolution that learns, without `identity`
    all start at random: to see what the two are good for.
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
        if not 0.0 <= self.whiten_bias <= 1.0:
            raise RecipeError(f"model whiten_bias: expected a share from 0 to 1, found {self.whiten_bias}")
        norm = BatchNorm(0.4, 1e-12, "gelu", scaled=False, shift_lr_factor=self.shift_lr_factor, shift_decay=True)
        filters = 2 * 2 * 2 * in_shape[2]
        start = identity if self.identity else fan_in_uniform
        first = Whitening(filters, bias_trained=self.whiten_bias) if self.whiten else Conv2D(filters, 2, padding=0)
        named: dict[str, Layer] = {"whiten" if self.whiten else "conv": first, "gelu": GELU()}
        side = min(in_shape[:2]) - 1
        for number, filters in enumerate((self.width, 4 * self.width, 4 * self.width), start=1):
            group: dict[str, Layer] = {"conv1": Conv2D(filters, 3, bias=False, initialise=start)}
            if side >= 2:  # an image of a few pixels is not halved to nothing
                group["pool"] = MaxPool(2)
                side //= 2
            group |= {"norm1": norm, "conv2": Conv2D(filters, 3, bias=False, initialise=start), "norm2": norm}
            named[f"group{number}"] = chain(**group)
        named["largest"] = GlobalMaxPool()
        if self.scale != 1.0:
            named["scale"] = Scale(self.scale)  # before the head, which has no bias, as well as after it
        return chain(**named, head=Dense(classes, bias=False, initialise=fan_in_uniform))


def _conv_norm(filters: int, activation: str, kernel: int = 3, stride: int = 1) -> Sequential:
    """Convolution, batch norm and activation. The norm's shift does what a bias would."""
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
    if width < 1:
        raise RecipeError(f"model width: expected 1 or more channels, found {width}")
    if activation not in ACTIVATIONS:
        raise UnknownNameError("activation", activation, ACTIVATIONS)


MODELS: dict[str, type[Model]] = {
    "seed": Seed,
    "plain": Plain,
    "resnet9": ResNet9,
    "resnet18": ResNet18,
    "airbench94": Airbench94,
}


def register_model(model: type[Model]) -> type[Model]:
    """Stand-in until the registry of models exists."""
    MODELS[model.__name__.lower()] = model
    return model


def import_model(path: str) -> str:
    """Stand-in until the registry of models exists."""
    module, _, name = path.partition(":")
    try:
        model = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"model '{path}': {error}; correct it there") from error
    register_model(model)
    return name.lower()


def model_path(name: str) -> str:
    """Stand-in until the registry of models exists."""
    module = MODELS[name].__module__
    return "" if module == __name__ else f"{module}:{MODELS[name].__qualname__}"
