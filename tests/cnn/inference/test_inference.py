"""Inference: an image's outputs are bitwise independent of the batch and of the number of threads."""

import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn.backends import pick_backend
from cnn.backends.base import Array, Backend
from cnn.backends.reference import ReferenceBackend
from cnn.checkpoint import ModelCard, save_checkpoint
from cnn.inference.folded import FoldedNetwork
from cnn.inference.predictor import Predictor
from cnn.layers import Layer
from cnn.layers.activations import ACTIVATIONS
from cnn.losses import LOSSES, LossResult, SoftmaxCrossEntropy
from cnn.models import MODELS
from cnn.network import Network
from cnn.training.recipe import Recipe
from cnn.training.trainer import Trainer
from tests.cnn.oracles import LAYERS, random_network, thorough

CPUS = {threads: pick_backend("cpu", threads) for threads in (1, 2, 3)}
MEAN, STD = (110.0, 120.0, 130.0), (60.0, 61.0, 62.0)
some = settings(parent=thorough, max_examples=12)


def trained(layer: Layer, shape: tuple[int, ...], backend: Backend, seed: int) -> Network:
    """A network with random parameters and random running statistics."""
    network = random_network(layer, shape, backend, seed, np.float32)
    generator = np.random.default_rng(seed)
    for name, view in network.state.views.items():
        network.state.assign(name, generator.uniform(0.5, 2.0, view.shape))
    return network


def check_rows(network: Network, x: np.ndarray, place: int) -> np.ndarray:
    """Assert that row `place` of x (N, ...) alone, first and last, on any number of threads, has the same outputs.

    Returns the outputs (N, ...) of all rows.
    """
    infer = FoldedNetwork(network)
    expected = infer(x)  # (N, ...)
    assert np.isfinite(expected).all()
    for backend in CPUS.values():
        other = infer.on(backend)
        np.testing.assert_array_equal(other(x), expected)
        np.testing.assert_array_equal(other(x[place : place + 1])[0], expected[place])
        np.testing.assert_array_equal(other(x[place:])[0], expected[place])
        np.testing.assert_array_equal(other(x[: place + 1])[place], expected[place])
    return expected


# Layers and models


@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
def test_a_layers_outputs_do_not_depend_on_the_batch(kind: type) -> None:
    @some
    @given(case=LAYERS[kind], rows=st.integers(1, 40), place=st.integers(0, 39), seed=st.integers(0, 2**32 - 1))
    def check(case: tuple, rows: int, place: int, seed: int) -> None:
        layer, shape = case
        x = np.random.default_rng(seed).normal(size=(rows, *shape)).astype(np.float32)  # (N, ...)
        check_rows(trained(layer, shape, CPUS[2], seed), x, place % rows)

    check()


def options(name: str) -> st.SearchStrategy[dict[str, object]]:
    widths = st.integers(1, 12)
    match name:
        case "seed":
            return st.just({})
        case "resnet18" | "airbench94":
            return st.fixed_dictionaries({"width": widths})
    return st.fixed_dictionaries({"width": widths, "activation": st.sampled_from(list(ACTIVATIONS))})


@pytest.mark.parametrize("name", MODELS)
def test_a_models_outputs_do_not_depend_on_the_batch(name: str) -> None:
    @some
    @given(
        chosen=options(name), side=st.tuples(st.integers(8, 33), st.integers(8, 33)), classes=st.integers(2, 20),
        rows=st.integers(1, 130), place=st.integers(0, 129), seed=st.integers(0, 2**32 - 1),
    )  # fmt: skip
    def check(
        chosen: dict[str, object], side: tuple[int, int], classes: int, rows: int, place: int, seed: int
    ) -> None:
        shape = (*side, 3)
        x = np.random.default_rng(seed).normal(size=(rows, *shape)).astype(np.float32)  # (N, H, W, 3)
        layer = MODELS[name](**chosen).layers(shape, classes)
        outputs = check_rows(trained(layer, shape, CPUS[2], seed), x, place % rows)  # (N, C)
        for backend in (CPUS[1], CPUS[3]):  # folded with another number of threads
            np.testing.assert_array_equal(FoldedNetwork(trained(layer, shape, backend, seed))(x), outputs)

    check()


@pytest.mark.parametrize("inputs, units", [(5000, 40), (700, 90), (256, 18), (257, 16), (1, 1), (255, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_layer_of_any_size(inputs: int, units: int, bias: bool) -> None:
    """More rows, inputs and outputs than fit in a block, and enough work for several threads."""
    generator = np.random.default_rng(0)
    x, weight = (generator.normal(size=size).astype(np.float32) for size in ((200, inputs), (inputs, units)))
    offset = generator.normal(size=units).astype(np.float32) if bias else None  # (K,)
    expected = ReferenceBackend().dense(x.astype(np.float64), weight.astype(np.float64), offset)  # (N, K)
    plain = ReferenceBackend().dense_infer(x, weight, offset)  # (N, K)
    outputs = CPUS[1].dense_infer(x, weight, offset)  # (N, K)
    for found in (plain, outputs):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * inputs)
    for backend in CPUS.values():
        for rows in (slice(0, 200), slice(0, 1), slice(95, 97), slice(3, 133), slice(199, 200)):
            np.testing.assert_array_equal(backend.dense_infer(x[rows], weight, offset), outputs[rows])


# Predictors


def random_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def card(name: str = "resnet9", side: int = 32, loss: str = "softmax_cross_entropy", **chosen: object) -> ModelCard:
    return ModelCard(name, chosen, (side, side, 3), tuple("abcde"), "pad", MEAN, STD, loss)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[ModelCard], Path]:
    """Writes a model file with random parameters and statistics."""

    def write(of: ModelCard) -> Path:
        network = trained(of.build_model().layers(of.in_shape, 5), of.in_shape, CPUS[1], 1)
        save_checkpoint(tmp_path / "model.safetensors", of, network.tensors(), {})
        return tmp_path / "model.safetensors"

    return write


def in_threads(predictors: list[Predictor], batches: list[np.ndarray]) -> list[np.ndarray]:
    """The logits of every batch; predictor i of n classifies the batches i, i + n, i + 2n, ..."""
    with ThreadPoolExecutor(len(predictors)) as pool:
        step = len(predictors)
        tasks = [
            pool.submit(lambda p, own: [p.logits(batch) for batch in own], predictor, batches[i::step])
            for i, predictor in enumerate(predictors)
        ]
        found: list[np.ndarray] = [np.empty(0)] * len(batches)
        for i, task in enumerate(tasks):
            found[i::step] = task.result(timeout=60)
    return found


@pytest.mark.parametrize("loss", LOSSES)
def test_probabilities_match_the_logits_in_any_batch(loss: str, save: Callable[[ModelCard], Path]) -> None:
    path, images = save(card(loss=loss, width=8)), random_images(11, (32, 32, 3))
    predictor = Predictor(path, CPUS[2])
    logits, probabilities = predictor.logits(images), predictor.probabilities(images)  # (B, C) each
    assert logits.dtype == probabilities.dtype == np.float32 and logits.shape == (11, 5)
    np.testing.assert_array_equal(LOSSES[loss]().probabilities(CPUS[1], logits), probabilities)
    for first, stop in ((0, 1), (3, 10), (10, 11)):
        np.testing.assert_array_equal(predictor.logits(images[first:stop]), logits[first:stop])
        np.testing.assert_array_equal(predictor.probabilities(images[first:stop]), probabilities[first:stop])


@dataclass(frozen=True)
class Watched(SoftmaxCrossEntropy):
    """A loss that records its outputs."""

    seen: list[np.ndarray] = field(default_factory=list)

    def forward(self, backend: Backend, outputs: Array, targets: Array, denominator: int) -> LossResult:
        self.seen.append(backend.to_host(outputs))
        return super().forward(backend, outputs, targets, denominator)


@pytest.mark.parametrize("name, side", [("seed", 17), ("plain", 20), ("resnet9", 32), ("resnet18", 32)])
def test_evaluation_and_predictor_have_the_same_logits(name: str, side: int, save: Callable[[ModelCard], Path]) -> None:
    of = card(name, side, **({} if name == "seed" else {"width": 6}))
    path, images, labels = save(of), random_images(75, of.in_shape), np.arange(75) % 5
    network = trained(of.build_model().layers(of.in_shape, 5), of.in_shape, CPUS[2], 1)
    trainer = Trainer(network, Recipe(loss=Watched()), np.array(MEAN), np.array(STD), 75)
    evaluation = trainer.evaluate([(images[:64], labels[:64]), (images[64:], labels[64:])])
    logits = np.concatenate([Predictor(path, CPUS[3]).logits(images[i : i + 7]) for i in range(0, 75, 7)])  # (75, C)
    np.testing.assert_array_equal(np.concatenate(trainer.recipe.loss.seen), logits)  # type: ignore[attr-defined]
    assert evaluation.confusion.trace() == (logits.argmax(axis=1) == labels).sum()


@pytest.mark.parametrize("name", ["seed", "resnet9"])
def test_predictors_work_concurrently(name: str, save: Callable[[ModelCard], Path]) -> None:
    of = card(name, **({} if name == "seed" else {"width": 8}))
    batches = [random_images(1 + 5 * i % 17, of.in_shape, seed=i) for i in range(24)]
    for threads in (1, 2, 3):
        predictor = Predictor(save(of), CPUS[threads])
        expected = [predictor.logits(batch) for batch in batches]
        with ThreadPoolExecutor(3) as pool:
            own = [made.result() for made in [pool.submit(predictor.for_thread) for _ in range(3)]]
        for found in (in_threads([predictor, *own], batches), in_threads([predictor] * 3, batches)):
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)


def test_a_predictor_for_a_thread_has_one_thread_and_shares_the_parameters(save: Callable[[ModelCard], Path]) -> None:
    predictor = Predictor(save(card(width=16)), CPUS[3])
    predictor.for_thread()  # warm-up: some objects are created only once
    tracemalloc.start()
    other = predictor.for_thread()
    allocated = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert allocated < 500_000  # bytes; the parameters take 1.6 MB
    assert other.backend.description == "cpu: 1 thread" and other.card == predictor.card
    images = random_images(2, (32, 32, 3))
    np.testing.assert_array_equal(other.for_thread().probabilities(images), predictor.probabilities(images))


def test_calls_from_several_threads_are_serialised(save: Callable[[ModelCard], Path]) -> None:
    predictor = Predictor(save(card(width=4)), pick_backend("reference"))
    assert predictor.for_thread() is predictor
    running: list[int] = []
    infer = predictor.infer

    def alone(x: Array) -> Array:
        running.append(1)
        assert len(running) == 1
        y = infer(x)
        running.pop()
        return y

    predictor.infer = alone  # type: ignore[assignment]
    assert len(in_threads([predictor.for_thread()] * 3, [random_images(4, (32, 32, 3))] * 6)) == 6


def test_a_model_file_is_loaded_without_drawing_parameters(
    save: Callable[[ModelCard], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(card(width=4))

    def drawn(key: int, count: int) -> np.ndarray:
        raise AssertionError("random numbers were drawn")

    monkeypatch.setattr("cnn.initialise.normal", drawn)
    assert np.isfinite(Predictor(path, CPUS[1]).logits(random_images(1, (32, 32, 3)))).all()
    assert not card(width=4).build_network(CPUS[1], seed=None).parameters.flat.any()
    with pytest.raises(AssertionError, match="were drawn"):
        card(width=4).build_network(CPUS[1])
