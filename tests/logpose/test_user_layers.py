"""User-defined layers: a correct one with parameters, and violations of the protocol, found before training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import logpose
from cnn.arena import Spec
from cnn.backends.reference import ReferenceBackend
from cnn.initialise import ones
from cnn.layers import Residual, Sequential, Specs, chain
from cnn.network import Network
from logpose import layers
from tests.cnn.oracles import directional_error


@dataclass(frozen=True)
class Gain:
    """One factor per channel: a layer with parameters. A test breaks one of the methods."""

    broken: str = ""
    replacement: Callable[..., Any] | None = None

    def specs(self, in_shape: Any) -> Any:
        if self.broken == "specs":
            return self.replacement(in_shape)  # type: ignore[misc]
        return Specs(in_shape, (Spec("factor", in_shape[-1:], ones),))

    def forward(self, run: Any, p: Any, s: Any, x: Any) -> Any:
        if self.broken == "forward":
            return self.replacement(x)  # type: ignore[misc]
        return x * p["factor"], x

    def backward(self, run: Any, p: Any, s: Any, g: Any, cache: Any, dy: Any) -> Any:
        if self.broken == "backward":
            return self.replacement(g, dy)  # type: ignore[misc]
        g["factor"][...] = (cache * dy).reshape(-1, dy.shape[-1]).sum(axis=0)
        return p["factor"] * dy


def network(layer: Any) -> Sequential:
    return chain(
        conv=layers.Conv2D(4, 3), block=Residual(chain(mine=layer)), average=layers.GlobalAveragePool(),
        head=layers.Dense(3),
    )  # fmt: skip


def model_of(build: Callable[[], Any]) -> Any:
    class Own:
        def layers(self, in_shape: Any, classes: int) -> Any:
            return build()

    return logpose.register_model(dataclass(frozen=True)(Own))()


def train(model: Any) -> logpose.TrainingRun:
    return logpose.train("colours.zarr", "own", model=model, epochs=1, batch_size=8, device="cpu", quiet=True)


def break_gradient(g: dict[str, Any], dy: Any) -> Any:
    g["factor"] = dy.sum(axis=(0, 1, 2))  # replaces the array instead of writing into it
    return dy


@pytest.mark.usefixtures("workspace")
def test_layer_with_parameters_trains_and_its_gradient_is_correct() -> None:
    run = train(model_of(lambda: network(Gain())))
    assert run.model.predict("images/red/000.png").label in ("blue", "green", "red")
    own = Network(network(Gain()), (5, 4, 3), ReferenceBackend(), dtype=np.float64)
    context = layers.Run(own.backend, training=True)
    x = np.random.default_rng(0).standard_normal((2, 5, 4, 3))  # (N, H, W, C)
    weights = np.random.default_rng(1).standard_normal((2, 3))  # (N, classes)
    _, cache = own.forward(context, x)
    dx = own.backward(context, cache, weights)

    def value(arguments: list[np.ndarray]) -> float:
        own.parameters.flat[:] = arguments[0]
        return float((own.forward(context, arguments[1])[0] * weights).sum())

    gradients = [own.gradients.flat.copy(), dx]
    assert directional_error(value, gradients, [own.parameters.flat.copy(), x], seed=0) < 1e-7


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(
    ("method", "replacement", "message"),
    [
        ("specs", lambda shape: None, "expected Specs"),
        ("specs", lambda shape: Specs((0, 4, 4)), "whole numbers above 0"),
        ("specs", lambda shape: Specs(shape, ("factor",)), "expected a tuple of Spec"),
        ("specs", lambda shape: 1 / 0, "specs failed with ZeroDivisionError"),
        ("forward", lambda x: x, r"expected \(output, cache\) from forward, found ndarray"),
        ("forward", lambda x: (x[:, :2], None), "expected float32 .* from forward"),
        ("forward", lambda x: (x[:2], None), "expected float32 .* from forward"),
        ("forward", lambda x: (x.astype(np.float64), None), "from forward, found float64"),
        ("forward", lambda x: 1 / 0, "forward failed with ZeroDivisionError"),
        ("backward", lambda g, dy: g["factor"].fill(0), "expected float32 .* from backward, found NoneType"),
        ("backward", lambda g, dy: (g["factor"].fill(0), dy[:3])[1], "from backward, found float32"),
        ("backward", lambda g, dy: dy, r"expected backward to set g\['factor'\]"),
        ("backward", break_gradient, r"write g\['factor'\]\[...\] = ..."),
        ("backward", lambda g, dy: 1 / 0, "backward failed with ZeroDivisionError"),
    ],
)
def test_broken_layer_is_named_before_training(method: str, replacement: Any, message: str) -> None:
    model = model_of(lambda: network(Gain(method, replacement)))
    with pytest.raises(logpose.LogposeError, match=message) as caught:
        train(model)
    assert "layer 'block.body.mine' (Gain)" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: 1 / 0, "Own.layers failed with ZeroDivisionError"),
        (lambda: {}["x"], "Own.layers failed with KeyError"),
        (lambda: chain(flat=layers.Flatten(), a=layers.Dense(0), head=layers.Dense(3)), r"layer 'a' \(Dense\)"),
        (lambda: chain(flat=layers.Flatten(), a=layers.Dense("4"), head=layers.Dense(3)), r"layer 'a' \(Dense\)"),  # type: ignore[arg-type]
        (lambda: chain(a=layers.Conv2D(4, 3, stride=0), head=layers.Dense(3)), r"layer 'a' \(Conv2D\)"),
        (
            lambda: Sequential((("a", layers.Flatten()), ("head", layers.Dense(4)), ("head", layers.Dense(3)))),
            "name of its own",
        ),
        (
            lambda: chain(flat=layers.Flatten(), head=layers.Dense(3, initialise=lambda shape, key: np.zeros(3))),
            "expected initial values of",
        ),
    ],
)
def test_broken_network_is_refused_in_one_line(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(logpose.LogposeError, match=message) as caught:
        train(model_of(build))
    assert "\n" not in str(caught.value)


def linear(self: Any, in_shape: Any, classes: int) -> Any:
    return chain(flat=layers.Flatten(), head=layers.Dense(classes))


@pytest.mark.parametrize("name", ["a b", "a:b", "a\nb", 5])
def test_model_name_other_than_one_word_is_refused(name: Any) -> None:
    with pytest.raises(logpose.LogposeError, match="the model name"):
        logpose.register_model(name=name)(dataclass(frozen=True)(type("Odd", (), {"layers": linear})))


def test_options_that_a_recipe_cannot_hold_are_refused() -> None:
    named = type("Named", (), {"layers": linear, "name": "x", "__annotations__": {"name": str}})
    with pytest.raises(logpose.LogposeError, match="an option cannot be called 'name'"):
        logpose.register_model(dataclass(frozen=True)(named))
    unknown = type("Unknown", (), {"layers": linear, "width": 4, "__annotations__": {"width": "Nope"}})
    with pytest.raises(logpose.LogposeError, match="the type of an option is unknown"):
        logpose.register_model(dataclass(frozen=True)(unknown))


@pytest.mark.usefixtures("workspace")
def test_error_in_a_models_post_init_is_reported_in_one_line() -> None:
    def check(self: Any) -> None:
        if self.width > 4:
            raise ValueError("too wide")

    wide = type("Wide", (), {"layers": linear, "width": 4, "__annotations__": {"width": int}, "__post_init__": check})
    logpose.register_model(dataclass(frozen=True)(wide))
    with pytest.raises(logpose.LogposeError, match=r"Wide\(width=5\): ValueError: too wide"):
        logpose.train("colours.zarr", "own", model="wide", values={"model.width": 5}, quiet=True)
