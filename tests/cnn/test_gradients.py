"""Gradient checks: every layer and loss, on every backend, in float64, against numeric derivatives."""

import importlib
import inspect
import pkgutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cnn.layers
import cnn.losses
from cnn.layers.normalisation import PooledBatchNorm
from cnn.losses import LOSSES, BinaryCrossEntropy, Loss, MeanSquaredError, SoftmaxCrossEntropy
from tests.cnn.oracles import (
    BACKENDS,
    LAYERS,
    directional_error,
    get_backend,
    random_network,
    thorough,
    to_device,
    training_run,
    well_apart,
)

TOLERANCE = 1e-6
# Losses to draw; a test checks that none is missing.
LOSS_ROWS: dict[type, st.SearchStrategy[Loss]] = {
    SoftmaxCrossEntropy: st.builds(
        SoftmaxCrossEntropy, st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([(), (0.5, 1.0, 2.0, 3.0)])
    ),
    BinaryCrossEntropy: st.builds(BinaryCrossEntropy),
    MeanSquaredError: st.builds(MeanSquaredError),
}


def test_every_layer_and_loss_is_checked() -> None:
    modules = [
        importlib.import_module(f"cnn.layers.{module.name}") for module in pkgutil.iter_modules(cnn.layers.__path__)
    ]
    found = {
        kind
        for module in modules
        for kind in vars(module).values()
        if inspect.isclass(kind) and hasattr(kind, "backward") and "__dataclass_params__" in vars(kind)
    }
    assert found == set(LAYERS)
    assert set(LOSSES.values()) == set(LOSS_ROWS)


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
def test_layer_gradients_match_numeric_derivatives(kind: type, backend_name: str) -> None:
    backend = get_backend(backend_name)

    @thorough
    @given(case=LAYERS[kind], batch=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
    def check(case: tuple, batch: int, seed: int) -> None:
        layer, shape = case
        if kind in (cnn.layers.BatchNorm, PooledBatchNorm):
            batch += 1  # the variance of a single value is always 0
        generator = np.random.default_rng(seed)
        network = random_network(layer, shape, backend, seed, np.float64)
        run = training_run(backend)
        x = well_apart(generator, (batch, *shape))
        y, cache = network.forward(run, to_device(backend, x))
        assert y.shape == (batch, *network.out_shape), "specs() and forward() disagree on the output's shape"
        weights = generator.normal(size=y.shape)  # reduces the output to one number
        dx = network.backward(run, cache, to_device(backend, weights))
        assert dx is not None and dx.shape == x.shape
        parameters = backend.to_host(network.parameters.flat)

        def value(at: list[np.ndarray]) -> float:
            network.parameters.flat[...] = to_device(backend, at[1])
            moved, _ = network.forward(run, to_device(backend, at[0]))
            return float((backend.to_host(moved) * weights).sum())

        gradients = [backend.to_host(dx), backend.to_host(network.gradients.flat)]
        assert directional_error(value, gradients, [x, parameters], seed) < TOLERANCE

    check()


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("kind", LOSS_ROWS, ids=lambda kind: kind.__name__)
def test_loss_gradients_match_numeric_derivatives(kind: type, backend_name: str) -> None:
    backend = get_backend(backend_name)

    @thorough
    @given(loss=LOSS_ROWS[kind], batch=st.integers(1, 6), seed=st.integers(0, 2**32 - 1), rest=st.integers(0, 5))
    def check(loss: Loss, batch: int, seed: int, rest: int) -> None:
        generator = np.random.default_rng(seed)
        outputs = 3 * generator.normal(size=(batch, 4))
        targets = to_device(backend, generator.integers(0, 4, batch))

        def value(at: list[np.ndarray]) -> float:
            return float(loss.forward(backend, to_device(backend, at[0]), targets, batch + rest)[0])

        gradient = loss.forward(backend, to_device(backend, outputs), targets, batch + rest)[1]
        assert directional_error(value, [backend.to_host(gradient)], [outputs], seed) < TOLERANCE

    check()


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_without_need_dx_no_input_gradient_is_computed(backend_name: str) -> None:
    """The parameters have the same gradients."""
    backend = get_backend(backend_name)
    layer = cnn.layers.chain(
        relu=cnn.layers.ReLU(), conv=cnn.layers.Conv2D(3), norm=cnn.layers.BatchNorm(), flat=cnn.layers.Flatten(),
        head=cnn.layers.Dense(2),
    )  # fmt: skip
    network = random_network(layer, (5, 5, 2), backend, 3, np.float64)
    x = to_device(backend, well_apart(np.random.default_rng(0), (4, 5, 5, 2)))
    dy = to_device(backend, np.ones((4, 2)))
    gradients = []
    for need_dx in (True, False):
        run = cnn.layers.Run(backend, training=True, need_dx=need_dx)
        _, cache = network.forward(run, x)
        dx = network.backward(run, cache, dy)
        assert (dx is not None) == need_dx
        gradients.append(backend.to_host(network.gradients.flat))
    np.testing.assert_array_equal(*gradients)
