"""Checks of a user's own layers, in one small pass before a training: what they return, and what they leave out."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cnn.arena import Shape, Spec, Tree
from cnn.backends.base import Array, Backend
from cnn.errors import NetworkError, RecipeError
from cnn.layers import Layer, Residual, Sequential, Specs
from cnn.layers.base import Cache, Run
from cnn.network import Network

_IMAGES = 5  # an unusual number, so that a layer that mixes up its axes is found


def checked(layer: Layer, name: str = "") -> Layer:
    """The same layers, which raise `RecipeError` where one of them breaks the protocol of `cnn.layers.base.Layer`."""
    prefix = f"{name}." if name else ""
    if isinstance(layer, Sequential):
        return Sequential(tuple((inner, checked(each, prefix + inner)) for inner, each in layer.layers))
    if isinstance(layer, Residual):
        body, shortcut = checked(layer.body, f"{prefix}body"), checked(layer.shortcut, f"{prefix}shortcut")
        return replace(layer, body=body, shortcut=shortcut)
    return _Checked(name, layer)


def check_passes(layers: Layer, in_shape: Shape, backend: Backend) -> None:
    """Run a few random images forward and backward. Raises `RecipeError` where a layer breaks the protocol."""
    network = Network(checked(layers), in_shape, backend)
    run = Run(backend, training=True, rows=backend.asarray(np.arange(_IMAGES)), need_dx=False)
    noise = np.random.default_rng(0).standard_normal((_IMAGES, *in_shape), np.float32)  # (N, H, W, C)
    outputs, cache = network.forward(run, backend.asarray(noise))  # (N, classes)
    network.backward(run, cache, backend.asarray(np.ones(outputs.shape, np.float32)))


@dataclass(frozen=True)
class _Checked:
    """A layer, called `name` in messages, that checks each result of another."""

    name: str
    layer: Layer

    def specs(self, in_shape: Shape) -> Specs:
        specs = self._call("specs", in_shape)
        if not isinstance(specs, Specs) or not _is_shape(specs.out_shape):
            raise self._error(f"expected Specs of a shape of whole numbers above 0 from specs, found {specs!r}")
        for spec in (*self._listed(specs.parameters), *self._listed(specs.state)):
            if not _is_shape(spec.shape) or not callable(spec.initialise):
                raise self._error(f"expected a shape of whole numbers above 0 and an initialiser, found {spec!r}")
        return specs

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]:
        result = self._call("forward", run, p, s, x)
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._error(f"expected (output, cache) from forward, found {type(result).__name__}")
        self._check("forward", result[0], (len(x), *self.specs(x.shape[1:]).out_shape), x.dtype)
        return result[0], (x.shape, result[1])

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        gradients = list(_leaves(g)) if not type(self.layer).__module__.startswith("cnn.") else []
        for _, gradient in gradients:
            gradient[...] = np.nan
        dx = self._call("backward", run, p, s, g, cache[1], dy)
        for name, gradient in gradients:
            if bool((gradient != gradient).all()):
                raise self._error(f"expected backward to set g['{name}'], found it unset: write g['{name}'][...] = ...")
        if run.need_dx:
            self._check("backward", dx, cache[0], dy.dtype)
        return dx

    def _check(self, method: str, found: Any, shape: Shape, dtype: Any) -> None:
        if getattr(found, "shape", None) != shape or getattr(found, "dtype", None) != dtype:
            kind = f"{found.dtype} {found.shape}" if hasattr(found, "dtype") else type(found).__name__
            raise self._error(f"expected {dtype} {shape} from {method}, found {kind}")

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self.layer, method)(*arguments)
        except NetworkError:
            raise
        except Exception as error:  # a user's layer may raise anything
            raise self._error(f"{method} failed with {type(error).__name__}: {error}") from error

    def _listed(self, specs: Any) -> tuple[Spec, ...]:
        if not isinstance(specs, tuple | list) or not all(isinstance(spec, Spec) for spec in specs):
            raise self._error(f"expected a tuple of Spec from specs, found {specs!r}")
        return tuple(specs)

    def _error(self, message: str) -> RecipeError:
        return RecipeError(f"layer '{self.name}' ({type(self.layer).__name__}): {message}; correct it there")


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple) and all(isinstance(side, int | np.integer) and side > 0 for side in shape)


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
