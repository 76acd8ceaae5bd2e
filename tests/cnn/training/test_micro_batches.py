"""Micro-batches: the order of sums, ghost batch norm's gradients, and the update by the sum."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cnn.arena import Spec
from cnn.backends.base import MicroSums
from cnn.backends.reference import ReferenceBackend
from cnn.checkpoint import load_checkpoint, save_checkpoint
from cnn.errors import InputError, NonFiniteError, RecipeError
from cnn.initialise import zeros
from cnn.inputs.augment import Augment
from cnn.inputs.mixup import Mix
from cnn.inputs.training_inputs import MicroBatch
from cnn.layers import BatchNorm, Dense, Dropout, Flatten, GlobalAveragePool, Layer, ReLU, Run, Specs, chain
from cnn.models import Plain, Seed
from cnn.network import Network
from cnn.rng import key_of
from cnn.training.averaging import EMA, Lookahead
from cnn.training.micro_batches import Memory, PartialSum, TreeSum, split_batch
from cnn.training.optimizers import SGD
from cnn.training.recipe import Recipe
from cnn.training.trainer import Trainer
from tests.cnn.oracles import BACKENDS, directional_error, get_backend
from tests.cnn.test_parity import close
from tests.cnn.tiny_task import CARD, MEAN, SHAPE, STD, draw_images, make_recipe, make_trainer, train
from tests.cnn.training.test_pending import Poisoned, vectors

IMAGES, LABELS = draw_images(200, 0)
REFERENCE = ReferenceBackend()
EVERYTHING: dict[str, object] = {
    "model": Plain(width=8, dropout=0.2), "mix": Mix("either", 0.8, 0.7), "augment": Augment(True, 0.1, 0.7),
    "lookahead": Lookahead(every=2, start=0.0), "ema": EMA(0.2), "clip": 0.5,
}  # fmt: skip


def trainer_of(layer: Layer, recipe: Recipe, dtype: type = np.float64) -> Trainer:
    """A trainer on the reference backend."""
    network = Network(layer, SHAPE, REFERENCE, seed=1, dtype=dtype)
    return Trainer(network, recipe, np.array(MEAN), np.array(STD), train_rows=200)


def batch(count: int, first: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels and row numbers of `count` images."""
    rows = np.arange(first, first + count)
    return IMAGES[rows], LABELS[rows], rows


def whole(trainer: Trainer, parts: list[MicroBatch], rows: int) -> MicroSums:
    return trainer.compute(parts, rows).total().sums


# The order of sums --------------------------------------------------------------------------------------


def term(first: int, last: int, text: str) -> PartialSum:
    """A partial sum that stands for itself: its correct rows are its term as text."""
    return PartialSum(first, last, MicroSums(None, None, text, None, 1), Memory(None, None))  # type: ignore[arg-type]


def add_terms(first: PartialSum, second: PartialSum) -> PartialSum:
    return term(first.first, second.last, f"({first.sums.correct} + {second.sums.correct})")


def by_definition(present: set[int], first: int, height: int) -> str:
    """The sum of the indices in [first, first + 2^height) that are present."""
    if height == 0:
        return str(first) if first in present else ""
    halves = [by_definition(present, first + half * 2 ** (height - 1), height - 1) for half in (0, 1)]
    return f"({halves[0]} + {halves[1]})" if all(halves) else "".join(halves)


def test_sums_follow_the_tree_for_any_division_among_workers() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        count = int(generator.integers(1, 40))
        present = {i for i in range(count) if generator.random() < generator.choice([0.5, 1.0])} or {0}
        borders = sorted({0, count, *generator.integers(0, count + 1, generator.integers(0, 5)).tolist()})
        everything = TreeSum(add_terms)
        for first, last in pairwise(borders):
            own = TreeSum(add_terms, first)
            for i in range(first, last):
                if i in present:
                    own.add(term(i, i + 1, str(i)))
                assert len(own.nodes) <= 2 * math.log2(count + 1) + 1
                assert first or len(own.nodes) <= math.log2(count) + 1
            for node in own.nodes:
                everything.add(node)
        assert everything.total().sums.correct == by_definition(present, 0, 6)


def test_a_batch_is_split_in_order() -> None:
    parts = split_batch(*batch(20, 3), 6)
    assert [len(part.labels) for part in parts] == [6, 6, 6, 2]
    for joined, expected in zip(map(np.concatenate, zip(*parts, strict=True)), batch(20, 3), strict=True):
        np.testing.assert_array_equal(joined, expected)


# Gradients ----------------------------------------------------------------------------------------------


def test_gradients_match_numeric_derivatives_of_the_loss_with_ghost_batch_norm() -> None:
    recipe = make_recipe(micro_batch=6, **(EVERYTHING | {"model": Plain(width=4, activation="tanh", dropout=0.2)}))
    trainer = trainer_of(recipe.model.layers(SHAPE, 3), recipe)
    parts, flat = split_batch(*batch(20), 6), trainer.network.parameters.flat  # (size,)
    gradient, before = whole(trainer, parts, 20).gradient.copy(), flat.copy()  # (size,) each

    def loss(at: list[np.ndarray]) -> float:
        flat[...] = at[0]
        return float(whole(trainer, parts, 20).loss)

    assert directional_error(loss, [gradient], [before], 0) < 1e-6
    flat[...] = before
    together = whole(trainer_of(trainer.network.layer, replace(recipe, micro_batch=0)), split_batch(*batch(20), 20), 20)
    assert np.linalg.norm(together.gradient - gradient) > 0.1 * np.linalg.norm(gradient)  # other statistics


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_is_the_sum_of_its_micro_batches_bit_for_bit(backend: str) -> None:
    """Computed one by one by the network, and added by hand."""
    trainer = make_trainer(backend, micro_batch=1, model=Plain(width=8, dropout=0.2))
    device, network, size = trainer.backend, trainer.network, 1 if backend == "cuda" else 5
    parts = split_batch(*batch(6 * size - size // 2), size)
    gradients, losses, correct = [], [], 0
    for part, inputs in zip(parts, trainer.inputs.micro_batches(parts, 0, 0), strict=True):
        run = Run(device, training=True, key=key_of(0, "layers", 0), rows=inputs.rows, need_dx=False)
        outputs, cache = network.forward(run, inputs.x)
        result = trainer.recipe.loss.forward(device, outputs, inputs.targets, 6 * size - size // 2)
        network.backward(run, cache, result.gradient)
        gradients.append(device.to_host(network.gradients.flat).copy())  # (size,)
        losses.append(device.to_host(result.loss))
        correct += int(result.correct)
        assert len(part.labels) == len(inputs.x)
    found = whole(trainer, parts, 6 * size - size // 2)
    for sums, terms in ((found.gradient, gradients), (found.loss, losses)):
        expected = ((terms[0] + terms[1]) + (terms[2] + terms[3])) + (terms[4] + terms[5])
        np.testing.assert_array_equal(device.to_host(sums), expected)
    assert int(found.correct) == correct and found.rows == 6 * size - size // 2


def test_without_batch_norm_micro_batches_change_only_roundings() -> None:
    recipe = make_recipe(model=Seed(), micro_batch=3)
    layer, rows = chain(flat=Flatten(), drop=Dropout(0.3), hidden=Dense(16), head=Dense(3)), 20
    trainers = [trainer_of(layer, replace(recipe, micro_batch=size)) for size in (0, 3)]
    one, many = (whole(each, split_batch(*batch(rows), size), 20) for each, size in zip(trainers, (20, 3), strict=True))
    np.testing.assert_allclose(many.gradient, one.gradient, rtol=1e-10, atol=1e-14)
    assert float(many.loss) == pytest.approx(float(one.loss), rel=1e-13) and many.correct == one.correct


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_backends_agree_with_the_reference(backend: str) -> None:
    changes = {"model": Plain(width=8, activation="silu", dropout=0.2), "mix": Mix("mixup")}
    size = 2 if backend == "cuda" else 6
    results = []
    for name in ("reference", backend):
        trainer = make_trainer(name, micro_batch=size, **changes)
        found = whole(trainer, split_batch(*batch(3 * size - 1), size), 3 * size - 1)
        arrays = (found.gradient, found.statistics, np.float32(float(found.loss)))
        trainer.train_batch(*batch(3 * size - 1))
        results.append([trainer.backend.to_host(each) for each in (*arrays, trainer.network.state.flat)])
    for found, expected in zip(results[1], results[0], strict=True):
        close(found, expected, rtol=2e-3)


# The update ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_running_statistics_are_those_of_the_whole_batch(backend: str) -> None:
    """Of a first layer, whose input does not depend on the division."""
    layer, rows = chain(norm=BatchNorm(momentum=0.3), average=GlobalAveragePool(), head=Dense(3)), 20
    ends = []
    for size in (0, 6, 1):
        network = Network(layer, SHAPE, get_backend(backend), seed=1)
        trainer = Trainer(network, make_recipe(micro_batch=size), np.array(MEAN), np.array(STD), 200)
        before = network.backend.to_host(network.state.flat).copy()  # (6,)
        if size:
            trainer.compute(split_batch(*batch(rows), size), rows)
            np.testing.assert_array_equal(network.backend.to_host(network.state.flat), before)
        for step in range(2):
            trainer.train_batch(*batch(rows, 20 * step))
        ends.append(network.backend.to_host(network.state.flat))  # (6,)
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_micro_batch_is_the_batch_bit_for_bit(backend: str) -> None:
    sizes = (0, 50) if backend == "cuda" else (0, 32, 50)
    trainers = [make_trainer(backend, micro_batch=size, **EVERYTHING) for size in sizes]
    losses = [train(each, 4) for each in trainers]
    assert all(each == losses[0] for each in losses) and all(len(each._memory) == 1 for each in trainers)
    for name, tensor in trainers[0].tensors().items():
        for other in trainers[1:]:
            assert tensor.tobytes() == other.tensors()[name].tobytes(), name


def test_the_statistics_of_one_micro_batch_move_as_those_of_a_batch() -> None:
    """An epoch's last batch may be one micro-batch."""
    ends = []
    for size in (0, 16):
        trainer = make_trainer(micro_batch=size)
        trainer.train_batch(*batch(10))
        ends.append(trainer.tensors())
    assert all(tensor.tobytes() == ends[1][name].tobytes() for name, tensor in ends[0].items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_workers_give_the_same_bits(backend: str) -> None:
    size = 1 if backend == "cuda" else 4
    one, other = (make_trainer(backend, micro_batch=size, **EVERYTHING) for _ in range(2))
    for step in range(3):
        parts = split_batch(*batch(7 * size, 7 * size * step), size)
        one.start_micro_batches([*parts, MicroBatch(IMAGES[:0], LABELS[:0], np.arange(0))], 7 * size)
        borders, total = ([0, 7], [0, 3, 4, 7], [0, 1, 6, 7])[step], TreeSum(other._merge)
        for first, last in pairwise(borders):
            for node in other.compute(parts[first:last], 7 * size, first).nodes:
                total.add(node)
        assert other.start_update(total).result() == one._pending[-1].result()
    for name, tensor in one.tensors().items():
        assert tensor.tobytes() == other.tensors()[name].tobytes(), name


def test_few_gradients_exist_at_a_time() -> None:
    trainer = make_trainer(micro_batch=2)
    for _ in range(2):
        trainer.train_batch(*batch(32))
        assert len(trainer._memory) == 5  # log2(16) + 1
        assert trainer._memory[-1].gradients is trainer.network.gradients


def test_a_resumed_training_is_bit_identical(tmp_path: Path) -> None:
    straight, first, second = (make_trainer(micro_batch=12, **EVERYTHING) for _ in range(3))
    train(straight, 6)
    train(first, 3)
    save_checkpoint(tmp_path / "last.safetensors", CARD, first.tensors(), {"step": first.step})
    saved = load_checkpoint(tmp_path / "last.safetensors")
    second.load_tensors(saved.tensors, saved.progress["step"])
    train(second, 3)
    for name, tensor in straight.tensors().items():
        assert tensor.tobytes() == second.tensors()[name].tobytes(), name


def test_a_network_learns() -> None:
    trainer = make_trainer(micro_batch=8)
    train(trainer, 42)
    images, labels = draw_images(100, 1)
    assert trainer.evaluate([(images, labels)]).accuracy > 0.9


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_that_is_not_finite_changes_nothing(backend: str) -> None:
    """Nor do the steps after it; that one of its micro-batches is not finite suffices."""
    poison = Poisoned(gradient=math.nan)
    size = 4 if backend == "cuda" else 10
    changes = {"optimizer": SGD(0.05), "lookahead": Lookahead(every=2, start=0.0), "ema": EMA(0.2)}
    poison.left[:] = [False] * 6 + [False, True, False]
    losses = poison, make_recipe().loss
    trainer, sound = (make_trainer(backend, micro_batch=size, loss=loss, **changes) for loss in losses)

    def start(of: Trainer) -> None:
        of.start_batch(*batch(3 * size - 1, of.step))

    def everything(of: Trainer) -> dict[str, np.ndarray]:
        return vectors(of) | {"state": of.backend.to_host(of.network.state.flat)}

    for each in (trainer, sound):
        start(each)
        start(each)
        each._pending[-1].result()
    before = everything(trainer)
    start(trainer)
    start(trainer)
    with pytest.raises(NonFiniteError, match="not finite at step 3 of 42"):
        trainer._pending[-1].result()
    assert trainer.step == 2
    for each in (trainer, sound):
        for name, vector in everything(each).items():
            np.testing.assert_array_equal(vector, before[name], err_msg=name)
        start(each)
        each._pending[-1].result()
    after = everything(sound)
    for name, vector in everything(trainer).items():
        np.testing.assert_array_equal(vector, after[name], err_msg=name)


# Inputs and errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_images_are_mixed_within_their_micro_batch(backend: str, kind: str) -> None:
    mix, augment = Mix(kind), Augment(True, 0.1, 0.7, brightness=0.2)  # type: ignore[arg-type]
    inputs, alone = (make_trainer(backend, mix=mix, augment=augment).inputs for _ in range(2))
    parts = split_batch(*batch(8), 3)
    for part, together in zip(parts, inputs.micro_batches(parts, 2, 1), strict=True):
        for found, expected in zip(together, alone(*part, 2, 1), strict=True):
            np.testing.assert_array_equal(*map(inputs.backend.to_host, (found, expected)))


@dataclass(frozen=True)
class Counter(ReLU):
    """A layer with a state of its own."""

    def specs(self, in_shape: tuple[int, ...]) -> Specs:
        return Specs(in_shape, (), (Spec("count", (1,), zeros),))


def test_layers_whose_state_cannot_be_merged_are_refused() -> None:
    layer = chain(mine=Counter(), average=GlobalAveragePool(), head=Dense(3))
    with pytest.raises(RecipeError, match=r"train\.micro_batch: .* found mine\.count; set train\.micro_batch=0"):
        trainer_of(layer, make_recipe(micro_batch=8))
    trainer_of(layer, make_recipe(micro_batch=32))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(InputError, match=r"whole batch at once, found 2 micro-batches; set train\.micro_batch"):
        make_trainer().start_micro_batches(split_batch(*batch(8), 4), 8)
    with pytest.raises(RecipeError, match="micro_batch: expected a whole number of 0 or more, found -1"):
        make_recipe(micro_batch=-1)
    with pytest.raises(InputError, match="labels: expected integers"):
        make_trainer(micro_batch=4).train_batch(IMAGES[:8], LABELS[:6], np.arange(8))


