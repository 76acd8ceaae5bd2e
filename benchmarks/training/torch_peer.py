"""Conversion of our networks to PyTorch modules, for the golden files and the benchmarks.

Only the layers' descriptions are used; forward and backward are PyTorch's. Needs the extra `bench`.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cnn import layers
from cnn.arena import Shape, Spec
from cnn.layers import Layer

# Activations after a batch norm or a sum, by our names.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "relu": functional.relu,
    "gelu": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


class BatchNorm(nn.BatchNorm2d):
    """Batch norm and activation, which is a function, so that the parameters have the names of `nn.BatchNorm2d`."""

    def __init__(self, channels: int, layer: layers.BatchNorm) -> None:
        super().__init__(channels, layer.epsilon, layer.momentum)
        self.activation = FUNCTIONS[layer.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(super().forward(x))


class Residual(nn.Module):
    """activation(body(x) + shortcut(x))."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: str) -> None:
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, FUNCTIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.shortcut(x))


class GlobalMax(nn.Module):
    """Global max pooling: (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(dim=(2, 3))


class GlobalAverage(nn.Module):
    """Global average pooling: (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class Scale(nn.Module):
    """Multiplication by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class FlattenChannelsLast(nn.Module):
    """Flatten in our order (H, W, C), so that dense weights can be compared."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


def to_torch(layer: Layer, in_shape: Shape) -> nn.Module:
    """`layer` for inputs of `in_shape` (H, W, C) as a PyTorch module for (N, C, H, W), with the same names.

    Raises ValueError where PyTorch has no counterpart.
    """
    match layer:
        case layers.Sequential():
            modules: OrderedDict[str, nn.Module] = OrderedDict()
            for name, inner in layer.layers:
                modules[name] = to_torch(inner, in_shape)
                in_shape = inner.specs(in_shape).out_shape
            return nn.Sequential(modules)
        case layers.Residual():
            return Residual(to_torch(layer.body, in_shape), to_torch(layer.shortcut, in_shape), layer.activation)
        case layers.Conv2D():
            window = layer.window
            if window.top != window.bottom or window.left != window.right:
                raise ValueError(f"expected symmetric padding, found {layer}: PyTorch's convolution supports no other")
            return nn.Conv2d(
                in_shape[2], layer.filters, window.size, window.stride, (window.top, window.left), bias=layer.bias
            )
        case layers.Dense():
            return nn.Linear(in_shape[0], layer.units, layer.bias)
        case layers.BatchNorm():
            return BatchNorm(in_shape[-1], layer)
        case layers.MaxPool():
            return nn.MaxPool2d(layer.size, layer.stride, layer.padding)
        case layers.AveragePool():
            return nn.AvgPool2d(layer.size, layer.stride, layer.padding)
        case layers.GlobalMaxPool():
            return GlobalMax()
        case layers.GlobalAveragePool():
            return GlobalAverage()
        case layers.Scale():
            return Scale(layer.factor)
        case layers.Flatten():
            return FlattenChannelsLast()
        case layers.Dropout():
            return nn.Dropout(layer.rate)
        case layers.ReLU():
            return nn.ReLU()
        case layers.GELU():
            return nn.GELU(approximate="tanh")
        case layers.SiLU():
            return nn.SiLU()
        case layers.Sigmoid():
            return nn.Sigmoid()
        case layers.Tanh():
            return nn.Tanh()
    raise ValueError(f"no PyTorch counterpart for {layer}")


def load_ours(module: nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Load our parameters and state into a module of `to_torch`, by name.

    Raises ValueError where names are missing or unexpected.
    """
    theirs = {_their_name(name): torch.from_numpy(_to_their_layout(tensor)) for name, tensor in tensors.items()}
    missing, unexpected = module.load_state_dict(theirs, strict=False)
    if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
        raise ValueError(f"expected the module's tensors, found missing {missing}, unexpected {unexpected}")


def our_gradients(module: nn.Module, names: list[str]) -> dict[str, np.ndarray]:
    """The module's gradients, with our names and layout."""
    theirs = dict(module.named_parameters())
    gradients = {}
    for name in names:
        gradient = theirs[_their_name(name)].grad
        assert gradient is not None
        gradients[name] = _to_our_layout(gradient.numpy())
    return gradients


def parameter_groups(module: nn.Module, specs: Sequence[Spec], weight_decay: float) -> list[dict[str, object]]:
    """The module's parameters in groups for PyTorch's optimizers, as `specs` require.

    Each group also has what those optimizers do not support: its `lr_factor`, and for how long it is `trained`.
    """
    theirs = dict(module.named_parameters())
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for spec in specs:
        alike = spec.decay, spec.lr_factor, spec.trained_until
        groups.setdefault(alike, []).append(theirs[_their_name(spec.name)])
    return [
        {"params": parameters, "weight_decay": weight_decay * decay / factor, "lr_factor": factor, "trained": trained}
        for (decay, factor, trained), parameters in groups.items()
    ]


def _their_name(name: str) -> str:
    names = {"scale": "weight", "shift": "bias", "mean": "running_mean", "variance": "running_var"}
    path, _, leaf = name.rpartition(".")
    return f"{path}.{names.get(leaf, leaf)}"


def to_nchw(x: np.ndarray) -> Tensor:
    """Our images (N, H, W, C) in PyTorch's layout: (N, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def _to_their_layout(tensor: np.ndarray) -> np.ndarray:
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(tensor.ndim)  # (KH, KW, C, K) -> (K, C, KH, KW); (C, K) -> (K, C)
    return np.array(tensor if axes is None else tensor.transpose(axes), order="C")


def _to_our_layout(tensor: np.ndarray) -> np.ndarray:
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(tensor.ndim)
    return np.array(tensor if axes is None else tensor.transpose(axes), order="C")
