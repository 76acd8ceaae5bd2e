"""Fast backends against the reference, in float32: every layer, loss, optimizer and image kernel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn.arena import Arena, Spec
from cnn.backends import pick_backend
from cnn.backends.reference import ReferenceBackend
from cnn.inference.folded import FoldedNetwork
from cnn.initialise import he_normal, zeros
from cnn.inputs.augment import Augment
from cnn.inputs.mixup import Mix
from cnn.layers import BatchNorm, Layer, MaxPool, Run
from cnn.models import MODELS
from cnn.training.optimizers import OPTIMIZERS
from tests.cnn.oracles import (
    BACKENDS,
    LAYERS,
    get_backend,
    random_network,
    thorough,
    to_device,
    training_run,
    well_apart,
)

FAST_BACKENDS = BACKENDS[1:]
REFERENCE = ReferenceBackend()


def close(found: np.ndarray, expected: np.ndarray, rtol: float = 1e-4) -> None:
    """Assert equality within `rtol` of the largest value, at least 0.1: float32 sums differ by their order."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * float(np.abs(expected).max(initial=0.1)))


def whole_network(name: str, backend_name: str) -> tuple[Layer, tuple[int, int, int]]:
    """A model, and the shape of its images; both small on a GPU, which is emulated where there is none."""
    small = backend_name == "cuda"
    shape = (13, 17, 3) if small else (33, 37, 3)
    options = {"width": 8} if small and name != "seed" else {}
    return MODELS[name](**options).layers(shape, 5), shape


@pytest.mark.parametrize("backend_name", FAST_BACKENDS)
@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
def test_layer_matches_the_reference(kind: type, backend_name: str) -> None:
    backend = get_backend(backend_name)

    @thorough
    @given(case=LAYERS[kind], batch=st.integers(2, 5), seed=st.integers(0, 2**32 - 1))
    def check(case: tuple, batch: int, seed: int) -> None:
        layer, shape = case
        generator = np.random.default_rng(seed)
        x = well_apart(generator, (batch, *shape)).astype(np.float32)
        dy = None
        results = []
        for each in (REFERENCE, backend):
            network = random_network(layer, shape, each, seed, np.float32)
            run = training_run(each, rows=to_device(each, 10 + 3 * np.arange(batch)))
            y, cache = network.forward(run, to_device(each, x))
            dy = generator.normal(size=y.shape).astype(np.float32) if dy is None else dy
            dx = network.backward(run, cache, to_device(each, dy))
            inferred = network.infer(to_device(each, x))
            arrays = (y, dx, network.gradients.flat, network.state.flat, inferred)
            results.append([each.to_host(array) for array in arrays])
        for found, expected in zip(results[1], results[0], strict=True):
            close(found, expected)

    check()


@pytest.mark.parametrize("backend_name", FAST_BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_model_matches_the_reference(name: str, backend_name: str) -> None:
    """A whole network, wide enough for several tiles per convolution."""
    backend, batch = get_backend(backend_name), 3
    layer, shape = whole_network(name, backend_name)
    x = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
    outputs = []
    for each in (REFERENCE, backend):
        network = random_network(layer, shape, each, 1, np.float32)
        y, cache = network.forward(training_run(each), to_device(each, x))
        network.backward(training_run(each), cache, y)
        outputs.append([each.to_host(array) for array in (y, network.gradients.flat)])
    close(outputs[1][0], outputs[0][0], rtol=1e-3)
    close(outputs[1][1], outputs[0][1], rtol=1e-2)  # a ReLU near 0 may have either sign


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_folded_inference_matches_the_layers(name: str, backend_name: str) -> None:
    """Batch norm and activations folded into the convolutions give the outputs of the separate layers."""
    backend = get_backend(backend_name)
    layer, shape = whole_network(name, backend_name)
    network = random_network(layer, shape, backend, 1, np.float32)
    generator = np.random.default_rng(0)
    for spec_name, view in network.state.views.items():
        network.state.assign(spec_name, generator.uniform(0.5, 2.0, view.shape))
    x = to_device(backend, generator.normal(size=(3, *shape)).astype(np.float32))
    close(backend.to_host(FoldedNetwork(network)(x)), backend.to_host(network.infer(x)), rtol=1e-3)


@pytest.mark.parametrize("backend_name", FAST_BACKENDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_matches_the_reference(name: str, backend_name: str) -> None:
    backend = get_backend(backend_name)
    optimizer = OPTIMIZERS[name]()
    specs = [
        Spec("bias", (7,), zeros), Spec("weight", (5, 3), he_normal, decay=True),
        Spec("shift", (9,), zeros, True, lr_factor=4.0), Spec("fixed", (3,), zeros, trained_until=0.0),
    ]  # fmt: skip
    ends = []
    for each in (REFERENCE, backend):
        arena = Arena(specs, each)
        arena.initialise(lambda name: len(name))
        slots = {slot: each.zeros((arena.size,), np.float32) for slot in optimizer.slots}
        generator = np.random.default_rng(0)
        outcome = to_device(each, np.array([1.0, 0.0, 0.0, 0.0]))  # (4,)
        for step in range(1, 6):
            gradient = to_device(each, generator.normal(size=arena.size).astype(np.float32))
            loss, correct = (to_device(each, np.array(value)) for value in (0.5, 7))  # () each
            each.judge_step(outcome, loss, correct, gradient, 2.0)
            norm = float(np.linalg.norm(each.to_host(gradient)))
            np.testing.assert_allclose(each.to_host(outcome), [1.0, 2.0 / norm, 0.5, 7.0], rtol=1e-5)
            optimizer.update(each, arena, gradient, slots, outcome, 0.01 * step, step)
        ends.append([each.to_host(arena.flat), *(each.to_host(slot) for slot in slots.values())])
    for found, expected in zip(ends[1], ends[0], strict=True):
        close(found, expected, rtol=1e-5)


@pytest.mark.parametrize("backend_name", FAST_BACKENDS)
@thorough
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    augment=st.builds(
        Augment, st.booleans(), st.sampled_from([0.0, 0.2]), st.sampled_from([1.0, 0.3]), st.just(1.5),
        st.sampled_from([0.0, 0.5]), *[st.sampled_from([0.0, 0.4])] * 3,
    ),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_resample_matches_the_reference(
    backend_name: str, shape: tuple[int, int, int], augment: Augment, seed: int
) -> None:
    backend = get_backend(backend_name)
    images = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    maps = augment.maps(seed, np.arange(shape[0]), *shape[1:])
    mean, std = np.array([100, 110, 120], np.float32), np.array([50, 60, 70], np.float32)
    colours = augment.colours(seed, np.arange(shape[0]), mean, std)
    out = []
    for each in (REFERENCE, backend):
        arrays = [None if array is None else to_device(each, array) for array in (*maps, mean, std, colours)]
        out.append(each.to_host(each.resample(to_device(each, images), *arrays)))
    close(out[1], out[0], rtol=1e-5)


@pytest.mark.parametrize("backend_name", FAST_BACKENDS)
@thorough
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 19), st.integers(1, 19), st.integers(1, 4)),
    kind=st.sampled_from(["mixup", "cutmix"]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_blend_matches_the_reference(backend_name: str, shape: tuple[int, int, int, int], kind: str, seed: int) -> None:
    backend = get_backend(backend_name)
    shape = (*shape[:3], 3) if backend_name == "cuda" else shape  # whose kernels are for RGB only
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    drawn = Mix(kind).draw(seed, np.arange(shape[0]), *shape[1:3])  # type: ignore[arg-type]
    assert drawn is not None
    out = []
    for each in (REFERENCE, backend):
        arrays = [to_device(each, array) for array in (x, drawn.partners, drawn.weights, drawn.boxes)]
        out.append(each.to_host(each.blend(*arrays)))
        np.testing.assert_array_equal(each.to_host(arrays[0]), x)  # the input must not change
    close(out[1], out[0], rtol=1e-6)


@pytest.mark.parametrize("backend_name", FAST_BACKENDS)
@thorough
@given(
    rows=st.integers(1, 9), classes=st.integers(1, 20), smoothing=st.sampled_from([0.0, 0.1]),
    weighted=st.booleans(), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_cross_entropy_of_soft_labels_matches_the_reference(
    backend_name: str, rows: int, classes: int, smoothing: float, weighted: bool, seed: int
) -> None:
    backend, generator = get_backend(backend_name), np.random.default_rng(seed)
    logits = (3 * generator.normal(size=(rows, classes))).astype(np.float32)
    targets = generator.dirichlet(np.ones(classes), rows).astype(np.float32)
    weights = generator.uniform(0.5, 2.0, classes).astype(np.float32)
    results = []
    for each in (REFERENCE, backend):
        class_weights = to_device(each, weights) if weighted else None
        loss, gradient, correct = each.softmax_cross_entropy(
            to_device(each, logits), to_device(each, targets), smoothing, class_weights, rows + 1
        )
        assert int(correct) == (logits.argmax(axis=1) == targets.argmax(axis=1)).sum()
        results.append([each.to_host(np.float32(float(loss))), each.to_host(gradient)])
    for found, expected in zip(results[1], results[0], strict=True):
        close(found, expected, rtol=1e-5)


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_batch_norm_does_not_cancel(backend_name: str) -> None:
    """A small std around a large mean, in float32, where E[x^2] - E[x]^2 cancels."""
    backend = get_backend(backend_name)
    x = (1000 + 0.1 * np.random.default_rng(0).normal(size=(64, 8, 8, 3))).astype(np.float32)
    network = random_network(BatchNorm(momentum=1.0), (8, 8, 3), backend, 0, np.float32)
    network.forward(Run(backend, training=True), to_device(backend, x))
    expected = x.astype(np.float64).var(axis=(0, 1, 2), ddof=1)
    np.testing.assert_allclose(backend.to_host(network.state.views["variance"]), expected, rtol=2e-2)


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_max_pool_propagates_nan(backend_name: str) -> None:
    """Otherwise a diverging training would not be detected."""
    backend = get_backend(backend_name)
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, 1, 1] = np.nan
    y = backend.to_host(backend.max_pool(to_device(backend, x), MaxPool(2).window)[0])
    assert np.isnan(y[0, :, :, 0]).tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gradients_are_deterministic(threads: int) -> None:
    backend = pick_backend("cpu", threads)
    layer = MODELS["resnet9"](width=8).layers((32, 32, 3), 4)  # type: ignore[call-arg]
    x = np.random.default_rng(0).normal(size=(5, 32, 32, 3)).astype(np.float32)
    gradients = []
    for _ in range(2):
        network = random_network(layer, (32, 32, 3), backend, 1, np.float32)
        y, cache = network.forward(training_run(backend), x)
        network.backward(training_run(backend), cache, y)
        gradients.append(backend.to_host(network.gradients.flat))
    assert gradients[0].tobytes() == gradients[1].tobytes()
