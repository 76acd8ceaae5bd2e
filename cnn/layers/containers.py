"""Layers that contain layers: sequences and residual blocks."""

from dataclasses import dataclass
from functools import cached_property

from cnn.arena import Shape, Tree
from cnn.backends.base import HALVING, Array
from cnn.errors import RecipeError, ShapeError
from cnn.layers.activations import ACTIVATIONS, check_activation
from cnn.layers.base import Cache, Layer, Run, Specs
from cnn.layers.normalisation import BatchNorm, PooledBatchNorm
from cnn.layers.pooling import MaxPool


@dataclass(frozen=True)
class Sequential:
    """Named layers, one after the other; written as `chain(conv=Conv2D(8), relu=ReLU())`.

    Raises `RecipeError` unless `layers` are pairs of a name and a layer.
    """

    layers: tuple[tuple[str, Layer], ...]

    def __post_init__(self) -> None:
        for pair in self.layers:
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise RecipeError(
                    f"Sequential: expected pairs of a name and a layer, found {pair!r}; write chain(name=layer, ...)"
                )
            check_layer(*pair)
        names = [name for name, _ in self.layers]
        for name in names:
            if not isinstance(name, str) or not name or "." in name or names.count(name) > 1:
                raise RecipeError(f"Sequential: expected a name of its own for each layer, found {name!r}; rename it")

    def specs(self, in_shape: Shape) -> Specs:
        parameters, state, shape = [], [], in_shape
        for name, layer in self.layers:
            inner = layer.specs(shape)
            parameters += [spec.under(name) for spec in inner.parameters]
            state += [spec.under(name) for spec in inner.state]
            shape = inner.out_shape
        return Specs(shape, tuple(parameters), tuple(state))

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]:
        caches, layers = [], self._passes if run.training else self.layers
        for i, (name, layer) in enumerate(layers):
            before_norm = any(isinstance(after, BatchNorm | PooledBatchNorm) for _, after in layers[i + 1 : i + 2])
            inner = run.inside(name, before_norm=run.training and before_norm)
            x, cache = layer.forward(inner, p.get(name, {}), s.get(name, {}), x)
            caches.append(cache if run.training else None)  # in inference, free the arrays
        return x, caches

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        # Without `need_dx`, the pass ends at the first layer with parameters: no gradient before it is needed.
        layers = self._passes
        first_with_parameters = next((i for i, (name, _) in enumerate(layers) if name in g), len(layers))
        for i, (name, layer) in reversed(list(enumerate(layers))):
            if not run.need_dx and i < first_with_parameters:
                return None
            inner = run.inside(name, need_dx=run.need_dx or i > first_with_parameters)
            dx = layer.backward(inner, p.get(name, {}), s.get(name, {}), g.get(name, {}), cache.pop(), dy)
            if dx is None:
                return None
            dy = dx
        return dy

    @cached_property
    def _passes(self) -> tuple[tuple[str, Layer], ...]:
        """The layers as training computes them: a batch norm and a 2x2 max pool after it are one."""
        passes: list[tuple[str, Layer]] = []
        for name, layer in self.layers:
            halves = type(layer) is MaxPool and layer.window == HALVING
            if halves and passes and (pooled := _pooled(passes[-1][1])):
                passes[-1] = (passes[-1][0], pooled)
            else:
                passes.append((name, layer))
        return tuple(passes)


def _pooled(layer: Layer) -> Layer | None:
    """A layer that ends with a batch norm, and a 2x2 max pool after it; None for other layers."""
    if type(layer) is BatchNorm:
        return PooledBatchNorm(layer)
    if type(layer) is Sequential and layer.layers:
        name, last = layer.layers[-1]
        pooled = _pooled(last)
        return pooled and Sequential((*layer.layers[:-1], (name, pooled)))
    return None


def chain(**layers: Layer) -> Sequential:
    """Return a `Sequential` of the keyword arguments, in order. Raises `RecipeError` unless they are layers."""
    return Sequential(tuple(layers.items()))


def check_layer(name: str, layer: object) -> None:
    """Raise `RecipeError` unless `layer` is an instance of a layer."""
    if isinstance(layer, type):
        raise RecipeError(f"{name}: expected a layer, found the class {layer.__name__}; write {layer.__name__}(...)")
    if not all(callable(getattr(layer, method, None)) for method in ("specs", "forward", "backward")):
        raise RecipeError(f"{name}: expected a layer such as Dense(10), found {layer!r}; see cnn.layers")


@dataclass(frozen=True)
class Residual:
    """activation(body(x) + shortcut(x)) (He et al., 2016); the shortcut is the identity unless given.

    `activation` is a name, or empty for none. Raises `RecipeError` unless body and shortcut are layers, and
    `UnknownNameError` for an unknown activation.
    """

    body: Layer
    shortcut: Layer = Sequential(())
    activation: str = ""

    def __post_init__(self) -> None:
        check_layer("body", self.body)
        check_layer("shortcut", self.shortcut)
        check_activation(self.activation)

    def specs(self, in_shape: Shape) -> Specs:
        body, shortcut = self.body.specs(in_shape), self.shortcut.specs(in_shape)
        if body.out_shape != shortcut.out_shape:
            raise ShapeError(
                f"a residual block's body and shortcut must have the same output shape, found {body.out_shape} and "
                f"{shortcut.out_shape}; give the shortcut a 1x1 convolution"
            )
        return Specs(
            body.out_shape,
            tuple(s.under("body") for s in body.parameters) + tuple(s.under("shortcut") for s in shortcut.parameters),
            tuple(s.under("body") for s in body.state) + tuple(s.under("shortcut") for s in shortcut.state),
        )

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]:
        left, body_cache = self.body.forward(run.inside("body"), p.get("body", {}), s.get("body", {}), x)
        right, shortcut_cache = self.shortcut.forward(
            run.inside("shortcut"), p.get("shortcut", {}), s.get("shortcut", {}), x
        )
        if self.activation and ACTIVATIONS[self.activation].keeps_input:
            total = run.backend.add(left, right)
            return run.backend.activate(self.activation, total), (body_cache, shortcut_cache, total)
        y = run.backend.add(left, right, self.activation)
        return y, (body_cache, shortcut_cache, y if self.activation else None)

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        body_cache, shortcut_cache, cached = cache
        if self.activation:
            # `cached` is the activation's input or output, from which its gradient is computed.
            dy = run.backend.activate_backward(self.activation, dy, cached, cached)
        branches = (("body", self.body, body_cache), ("shortcut", self.shortcut, shortcut_cache))
        left, right = (
            layer.backward(
                run.inside(name, run.need_dx), p.get(name, {}), s.get(name, {}), g.get(name, {}), branch_cache, dy
            )
            for name, layer, branch_cache in branches
        )
        return None if left is None or right is None else run.backend.add(left, right)
