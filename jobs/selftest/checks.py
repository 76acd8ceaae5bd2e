"""The checks of the self-test. Each compares numbers of the device with the reference backend's in float64."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from cnn.arena import Shape
from cnn.backends.base import Array, Backend, MicroSums
from cnn.backends.reference import ReferenceBackend
from cnn.inputs.augment import Augment
from cnn.inputs.mixup import Mix
from cnn.inputs.preprocess import normalisation
from cnn.inputs.training_inputs import TrainingInputs
from cnn.layers import Layer, Run
from cnn.losses import LOSSES
from cnn.models import ResNet9
from cnn.network import Network
from cnn.training.micro_batches import statistics_layout
from cnn.training.optimizers import OPTIMIZERS
from cnn.training.recipe import Recipe
from cnn.training.trainer import Trainer
from jobs.selftest.cases import CASES

ROWS = 5
GRADIENT_BOUND = 1e-6
# Of results in each precision: the norm of the error, relative to that of the result.
BOUNDS = {"float32": 1e-5, "tf32": 3e-3, "bf16": 2e-2}
REFERENCE = ReferenceBackend()
MIXES = {"augmentation": Mix(), "MixUp": Mix("mixup"), "CutMix": Mix("cutmix")}


class Check(NamedTuple):
    """One comparison; `measure` returns its error, which may be at most `bound`."""

    group: str
    name: str
    bound: float
    measure: Callable[[], float]


def all_checks(backend: Backend) -> list[Check]:
    """Every check, those first that explain the most."""
    bound, single = BOUNDS[backend.precision], BOUNDS["float32"]
    layers = [(name, partial(layer_error, backend, *case)) for name, case in CASES.items()]
    gradients = [(name, partial(gradient_error, backend, *case)) for name, case in CASES.items()]
    return [
        *(Check("layer", name, bound, measure) for name, measure in layers),
        *(Check("loss", name, single, partial(loss_error, backend, name)) for name in LOSSES),
        *(Check("optimizer", name, single, partial(optimizer_error, backend, name)) for name in OPTIMIZERS),
        Check("optimizer", "micro_batches", single, partial(micro_batches_error, backend)),
        *(Check("images", name, bound, partial(images_error, backend, mix)) for name, mix in MIXES.items()),
        *(Check("gradient", name, GRADIENT_BOUND, measure) for name, measure in gradients),
        Check("training", "same bits twice", 0.0, partial(repeat_error, backend)),
    ]


# Layers ------------------------------------------------------------------------------------------------


def layer_error(backend: Backend, layer: Layer, shape: Shape) -> float:
    """The largest error among output, input gradient, parameter gradients, state and inference."""
    generator = np.random.default_rng(0)
    ours = _random_network(layer, shape, backend, np.float32)
    exact = Network(layer, shape, REFERENCE, seed=None, dtype=np.float64)
    exact.load_tensors(ours.tensors())
    x = _stored(backend, _well_apart(generator, (ROWS, *shape)))  # (N, ...)
    dy = _stored(backend, generator.normal(size=(ROWS, *exact.out_shape)))  # (N, ...)
    expected, found = ([_float64(each, array) for array in _passes(network, *arrays)] for each, network, arrays in (
        (REFERENCE, exact, (_float64(backend, x), _float64(backend, dy))), (backend, ours, (x, dy))
    ))  # fmt: skip
    return max(map(relative_error, found, expected))


def _passes(network: Network, x: Array, dy: Array) -> tuple[Array, ...]:
    """Output, dx, gradients and state of a training pass, and the output of inference."""
    run = Run(network.backend, training=True, key=7)
    y, cache = network.forward(run, x)
    dx = network.backward(run, cache, dy)
    return y, dx, network.gradients.flat, network.state.flat, network.infer(x)


def gradient_error(backend: Backend, layer: Layer, shape: Shape) -> float:
    """Relative error of the gradients in float64, against a numeric derivative along a random direction."""
    generator = np.random.default_rng(1)
    network = _random_network(layer, shape, backend, np.float64)
    run = Run(backend, training=True, key=7)
    x = _well_apart(generator, (ROWS, *shape))  # (N, ...)
    y, cache = network.forward(run, backend.asarray(x))
    weights = generator.normal(size=y.shape)  # (N, ...): reduces the output to one number
    dx = network.backward(run, cache, backend.asarray(weights))
    parameters = backend.to_host(network.parameters.flat).copy()  # (size,)
    gradient = np.concatenate([backend.to_host(dx).ravel(), backend.to_host(network.gradients.flat)])  # (all,)
    at = np.concatenate([x.ravel(), parameters])  # (all,)
    direction = generator.normal(size=at.size)  # (all,)
    direction = direction / np.linalg.norm(direction) + gradient / max(float(np.linalg.norm(gradient)), 1e-30)

    def value(steps: float) -> float:
        moved = at + steps * 1e-4 * direction  # (all,)
        network.parameters.flat[...] = backend.asarray(moved[x.size :])
        outputs, _ = network.forward(run, backend.asarray(moved[: x.size].reshape(x.shape)))
        return float((backend.to_host(outputs) * weights).sum())

    numeric = (8 * (value(1) - value(-1)) - (value(2) - value(-2))) / 12e-4
    exact = float(gradient @ direction)
    return abs(numeric - exact) / max(abs(numeric), abs(exact), 1e-3)


# Losses, optimizers, images ----------------------------------------------------------------------------


def loss_error(backend: Backend, name: str) -> float:
    """The largest error of the loss and its gradient."""
    generator, loss = np.random.default_rng(0), LOSSES[name]()
    outputs = 3 * generator.normal(size=(ROWS, 4)).astype(np.float32)  # (N, 4)
    targets = generator.integers(0, 4, ROWS)  # (N,)
    results = []
    for each, dtype in ((REFERENCE, np.float64), (backend, np.float32)):
        value, gradient, correct = loss.forward(
            each, each.asarray(outputs.astype(dtype)), each.asarray(targets), ROWS
        )
        results.append([_float64(each, array) for array in (value, gradient, correct)])
    return max(map(relative_error, results[1], results[0]))


def optimizer_error(backend: Backend, name: str) -> float:
    """The largest error of the weights and the optimizer's state after three updates, with clipping."""
    layer, shape = CASES["Sequential"]
    optimizer = OPTIMIZERS[name]()
    results = []
    for each, dtype in ((REFERENCE, np.float64), (backend, np.float32)):
        generator = np.random.default_rng(0)
        network = _random_network(layer, shape, each, dtype)
        size = network.parameters.size
        slots = {slot: each.zeros((size,), dtype) for slot in optimizer.slots}
        outcome = each.asarray(np.array([1.0, 1.0, 0.0, 0.0]))  # (4,): see cnn.backends.base.OK
        for step in range(1, 4):
            gradient = each.asarray(generator.normal(size=size).astype(dtype))  # (size,)
            each.judge_step(outcome, each.zeros((), dtype), each.zeros((), np.int64), gradient, clip=1.0)
            optimizer.update(each, network.parameters, gradient, slots, outcome, 0.1, step)
        results.append([_float64(each, array) for array in (network.parameters.flat, *slots.values())])
    return max(map(relative_error, results[1], results[0]))


def micro_batches_error(backend: Backend) -> float:
    """The largest error of the sums of a step's micro-batches, and of the running statistics moved by them."""
    layer, shape = CASES["Sequential"]
    results = []
    for each, dtype in ((REFERENCE, np.float64), (backend, np.float32)):
        generator = np.random.default_rng(0)
        network = _random_network(layer, shape, each, dtype)
        layout, state = statistics_layout(network), network.state.flat  # (state size,)
        sums = []
        for rows in (5, 3):
            gradient = each.asarray(generator.normal(size=network.parameters.size).astype(dtype))  # (size,)
            statistics = each.asarray(generator.uniform(0.5, 1.5, network.state.size).astype(dtype))  # (state size,)
            loss, correct = each.asarray(np.array(rows / 7, dtype)), each.asarray(np.array(rows))  # () each
            sums.append(MicroSums(gradient, loss, correct, statistics, rows))
        total = each.merge_sums(sums[0], sums[1], layout)
        each.move_statistics(state, total.statistics, layout, total.rows, each.asarray(np.ones(4)))
        results.append([_float64(each, array) for array in (*total[:4], state)])
    return max(map(relative_error, results[1], results[0]))


def images_error(backend: Backend, mix: Mix) -> float:
    """The largest error of a training batch's inputs and targets, with every augmentation."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (ROWS, 12, 11, 3), np.uint8)  # (N, H, W, 3)
    labels, rows = generator.integers(0, 4, ROWS), np.arange(10, 10 + ROWS)  # (N,) each
    augment = Augment(shift=0.2, cutout=0.3, brightness=0.3, contrast=0.3, saturation=0.3)
    batches = []
    for each, dtype in ((REFERENCE, np.float64), (backend, np.float32)):
        network = Network(*CASES["Sequential"], each, dtype=dtype)
        statistics = normalisation(network, np.array([100.0, 120.0, 130.0]), np.array([50.0, 60.0, 70.0]))
        batch = TrainingInputs(each, augment, mix, 0, *statistics, 4)(images, labels, rows, 3, 0)
        batches.append([_float64(each, batch.x), _float64(each, batch.targets)])
    return max(map(relative_error, batches[1], batches[0]))


# A training --------------------------------------------------------------------------------------------


def repeat_error(backend: Backend) -> float:
    """The fraction of weights that differ after two equal trainings of a small network."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (12, 16, 16, 3), np.uint8)  # (N, H, W, 3)
    labels = generator.integers(0, 4, len(images))  # (N,)
    recipe = Recipe(model=ResNet9(width=8), batch_size=len(images), epochs=3)
    results = []
    for _ in range(2):
        network = Network(recipe.model.layers((16, 16, 3), 4), (16, 16, 3), backend)
        trainer = Trainer(network, recipe, np.full(3, 127.0), np.full(3, 70.0), len(images))
        for _ in range(recipe.epochs):
            trainer.train_batch(images, labels, np.arange(len(images)))
        results.append(backend.to_host(network.parameters.flat).copy())  # (size,)
    return float((results[0].view(np.uint32) != results[1].view(np.uint32)).mean())


# Arrays ------------------------------------------------------------------------------------------------


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The norm of the difference over that of `expected`; infinite where shapes differ or a value is not finite."""
    if found.shape != expected.shape:
        return math.inf
    error = float(np.linalg.norm(found - expected)) / max(float(np.linalg.norm(expected)), 1e-30)
    return error if math.isfinite(error) else math.inf


def _random_network(layer: Layer, shape: Shape, backend: Backend, dtype: Any) -> Network:
    """A network whose parameters are all random, also those that begin as zeros or ones."""
    network = Network(layer, shape, backend, 0, dtype)
    generator = np.random.default_rng(0)
    for name, view in network.parameters.views.items():
        network.parameters.assign(name, backend.to_host(view) + 0.3 * generator.normal(size=view.shape))
    return network


def _well_apart(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Values of both signs whose distances from 0 and from each other exceed the steps of a numeric derivative."""
    size = math.prod(shape)
    return (4.0 / size * (generator.permutation(size) - size // 2 + 0.5)).reshape(shape)


def _stored(backend: Backend, values: np.ndarray) -> Array:
    """The values as the device stores them: in bf16, those of feature maps (N, H, W, C) are rounded to 16 bits."""
    single = values.astype(np.float32)  # shape of values
    if backend.precision != "bf16" or values.ndim != 4:
        return backend.asarray(single)
    bits = single.view(np.uint32)  # shape of values
    return backend.asarray(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16))  # to the nearest


def _float64(backend: Backend, array: Array) -> np.ndarray:
    host: np.ndarray = backend.to_host(array)
    return host.astype(np.float64)
