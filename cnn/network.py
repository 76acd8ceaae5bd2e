"""A tree of layers together with its arrays: parameters, gradients and state, each one flat vector."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from cnn.arena import Arena, Shape, Spec
from cnn.backends.base import Array, Backend
from cnn.errors import ModelFileError, RecipeError
from cnn.layers import Cache, DataInitialised, Layer, Residual, Run, Sequential
from cnn.rng import key_of


class Network:
    """The layer tree `layer` and its arrays on `backend`, for inputs of `in_shape` (H, W, C).

    Parameters and state are initialised from `seed`; without one they are zeros until `load_tensors`. Raises
    `ShapeError` where the layers do not fit the shape or each other, and `RecipeError` for a user's own layers on a
    backend in bf16.
    """

    def __init__(
        self, layer: Layer, in_shape: Shape, backend: Backend, seed: int | None = 0, dtype: Any = np.float32
    ) -> None:
        if backend.precision == "bf16" and dtype == np.float32 and (foreign := foreign_layer(layer)):
            raise RecipeError(
                f"expected only layers of cnn.layers in bf16, whose feature maps no other code can compute with, found "
                f"{foreign}; use --precision tf32"
            )
        specs = layer.specs(in_shape)
        self.layer, self.in_shape, self.out_shape = layer, in_shape, specs.out_shape
        self.backend, self.dtype = backend, dtype
        self.parameters = Arena(specs.parameters, backend, dtype)
        self.gradients = Arena(specs.parameters, backend, dtype)
        self.state = Arena(specs.state, backend, dtype)
        if seed is not None:
            for arena in (self.parameters, self.state):
                arena.initialise(lambda name: key_of(seed, "initialise", name))

    @property
    def first(self) -> tuple[str, Layer]:
        """The first layer, with the prefix of its parameters' names."""
        name, layer = "", self.layer
        while isinstance(layer, Sequential) and layer.layers:
            inner, layer = layer.layers[0]
            name += f"{inner}."
        return name, layer

    @property
    def needs_data(self) -> bool:
        """Whether `initialise_from_images` must be called before the first step."""
        return isinstance(self.first[1], DataInitialised)

    def initialise_from_images(self, x: Array) -> None:
        """Compute the parameters that depend on training images, from normalised images x (N, *in_shape)."""
        name, layer = self.first
        if isinstance(layer, DataInitialised):
            for own_name, values in layer.parameters_from_images(self.backend.to_host(x)).items():
                self.parameters.assign(name + own_name, values)

    def forward(self, run: Run, x: Array, state: Arena | None = None) -> tuple[Array, Cache]:
        """Return outputs (N, *out_shape) for x (N, *in_shape), and the cache that `backward` needs.

        `state`, by default the network's own, is what the layers read and change.
        """
        self.backend.begin_pass(self.parameters.flat)
        y, cache = self.layer.forward(run, self.parameters.tree, (state or self.state).tree, x)
        if not run.training:
            self.backend.end_pass()
        return y, cache

    def backward(self, run: Run, cache: Cache, dy: Array, gradients: Arena | None = None) -> Array | None:
        """Write parameter gradients into `gradients`, by default the network's own. Consumes `cache`.

        Returns dx if `run.need_dx`.
        """
        gradients = gradients or self.gradients
        dx = self.layer.backward(run, self.parameters.tree, self.state.tree, gradients.tree, cache, dy)
        self.backend.end_pass()
        return dx

    def infer(self, x: Array) -> Array:
        """Return outputs (N, *out_shape) for x (N, *in_shape), in inference mode."""
        return self.forward(Run(self.backend, training=False), x)[0]

    def tensors(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and state on the host, by name."""
        return self.parameters.to_host() | self.state.to_host()

    def load_tensors(self, tensors: dict[str, np.ndarray]) -> None:
        """Copy parameters and state from `tensors`, by name; other entries are ignored.

        Raises `ModelFileError` where one is missing or of another shape; nothing is changed then.
        """
        for arena in (self.parameters, self.state):
            check_tensors(arena.specs, tensors)
        for arena in (self.parameters, self.state):
            for name in arena.views:
                arena.assign(name, tensors[name])


def check_tensors(specs: Iterable[Spec], tensors: dict[str, np.ndarray]) -> None:
    """Raise `ModelFileError` naming the first of a network's arrays that `tensors` lacks, or has in another shape."""
    for spec in specs:
        if spec.name not in tensors:
            raise ModelFileError(f"expected a parameter {spec.name} of shape {spec.shape}, found none")
        if tensors[spec.name].shape != spec.shape:
            raise ModelFileError(
                f"parameter {spec.name}: expected shape {spec.shape}, found {tensors[spec.name].shape}"
            )


def foreign_layer(layer: Layer) -> Layer | None:
    """Return the first layer that is not one of cnn.layers; None if all are."""
    inner: tuple[Layer, ...] = ()
    if isinstance(layer, Sequential):
        inner = tuple(each for _, each in layer.layers)
    elif isinstance(layer, Residual):
        inner = (layer.body, layer.shortcut)
    elif not type(layer).__module__.startswith("cnn."):
        return layer
    return next((found for each in inner if (found := foreign_layer(each))), None)
