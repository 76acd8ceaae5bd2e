"""The rehearsal of a training and of inference: it calls every kernel that the work calls, and changes nothing."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from cnn.backends.cpu import CpuBackend, compiling
from cnn.backends.cpu.team import Team, listing
from cnn.checkpoint import ModelCard, save_checkpoint
from cnn.inference.predictor import Predictor
from cnn.inputs.augment import Augment
from cnn.inputs.mixup import Mix
from cnn.models import Airbench94, Plain, ResNet9, ResNet18, Seed
from cnn.network import Network
from cnn.training import rehearsal
from cnn.training.averaging import EMA, Lookahead
from cnn.training.optimizers import SGD
from cnn.training.recipe import Recipe
from cnn.training.rehearsal import batch_sizes, prepare_training
from cnn.training.trainer import Trainer

SIZE, CLASSES, ROWS = 24, 5, 14  # pixels; 14 images: batches of 8 and of 6

RECIPES = {
    "default": Recipe(model=ResNet9(width=8), batch_size=8, epochs=1),
    "micro-batches": Recipe(model=ResNet18(width=8), batch_size=8, micro_batch=3, epochs=1, clip=1.0),
    "blended": Recipe(
        model=Plain(), optimizer=SGD(), batch_size=8, epochs=1, mix=Mix(kind="cutmix", share=0.5), ema=EMA(horizon=0.5),
        augment=Augment(brightness=0.2), views="mirror_shift",
    ),
    "whitening": Recipe(model=Airbench94(), batch_size=8, epochs=1, lookahead=Lookahead(every=1)),
    "few channels": Recipe(model=Seed(), batch_size=8, epochs=1),
}  # fmt: skip


def new_trainer(recipe: Recipe) -> Trainer:
    network = Network(recipe.model.layers((SIZE, SIZE, 3), CLASSES), (SIZE, SIZE, 3), CpuBackend(2))
    return Trainer(network, recipe, np.full(3, 100.0), np.full(3, 50.0), ROWS)


def images(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images (rows, H, W, 3) uint8 and classes (rows,)."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (rows, SIZE, SIZE, 3), np.uint8), rng.integers(0, CLASSES, rows)


Calls = set[tuple[str, tuple[Any, ...]]]


def calls_of(needed: compiling.Needed) -> Calls:
    return {(kernel.py_func.__qualname__, signature) for kernel, found in needed.items() for signature in found}


def recorded(calls: Calls) -> AbstractContextManager[Any]:
    """While it is open, kernels run as usual, and their calls are added to `calls`."""
    run = Team.run

    def record(team: Team, kernel: Callable[..., Any], *arguments: Any) -> None:
        if hasattr(kernel, "typeof_pyval"):
            types = tuple(map(kernel.typeof_pyval, (0, team.threads, *arguments)))
            calls.add((kernel.py_func.__qualname__, types))
        run(team, kernel, *arguments)

    return patch.object(Team, "run", record)


@pytest.mark.parametrize("name", RECIPES)
def test_training_calls_no_other_kernel(name: str) -> None:
    """Of an epoch and an evaluation, those with other argument types included."""
    recipe, called = RECIPES[name], Calls()
    trainer = new_trainer(recipe)
    rehearsed = calls_of(compiling.list_kernels(lambda: rehearsal._rehearse(trainer, ROWS)))
    pixels, labels = images(ROWS)
    with recorded(called):
        if trainer.network.needs_data:
            trainer.initialise_from_images(pixels)
        for rows in (slice(0, 8), slice(8, ROWS)):
            trainer.train_batch(pixels[rows], labels[rows], np.arange(ROWS)[rows])
        trainer.evaluate([(pixels, labels)], recipe.views)
    assert called and called <= rehearsed, sorted(name for name, _ in called - rehearsed)


def test_inference_calls_no_other_kernel(tmp_path: Path) -> None:
    trainer, called = new_trainer(RECIPES["default"]), Calls()
    names = tuple(map(str, range(CLASSES)))
    card = ModelCard("resnet9", {"width": 8}, (SIZE, SIZE, 3), names, "pad", (1.0,) * 3, (1.0,) * 3)
    save_checkpoint(tmp_path / "model.safetensors", card, trainer.network.tensors(), {})
    listed: list[compiling.Needed] = []

    def prepare(self: CpuBackend, run: Callable[[], object], *_: object) -> None:
        listed.append(compiling.list_kernels(run))

    with patch.object(CpuBackend, "prepare", prepare), recorded(called):
        predictor = Predictor(tmp_path / "model.safetensors", CpuBackend(2), "mirror")
        predictor.probabilities(images(ROWS)[0])
        predictor.for_thread().probabilities(images(ROWS)[0])
    assert called and called <= calls_of(listed[0])


def test_rehearsal_changes_nothing() -> None:
    """The same weights, bit for bit, as without it, and a step counter at 0."""
    recipe, (pixels, labels) = RECIPES["default"], images(8)
    plain, rehearsed = new_trainer(recipe), new_trainer(recipe)
    compiling.list_kernels(lambda: rehearsal._rehearse(rehearsed, ROWS))
    assert rehearsed.step == 0
    for trainer in (plain, rehearsed):
        trainer.train_batch(pixels, labels, np.arange(8))
    expected, found = plain.tensors(), rehearsed.tensors()
    assert expected.keys() == found.keys()
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_listing_computes_nothing_and_ends() -> None:
    backend, x = CpuBackend(2), np.ones((4, 8), np.float32)
    with listing(lambda kernel, arguments: None):
        y = backend.add(x, x)
        y[...] = 7
        backend.add(x, x)
    assert (y == 7).all()
    assert (backend.add(x, x) == 2).all()


def test_errors_of_a_rehearsal_do_not_matter() -> None:
    """What was listed before counts; and the thread computes again afterwards."""
    backend, x = CpuBackend(1), np.ones((4, 8), np.float32)

    def fails() -> None:
        backend.add(x, x)
        raise ZeroDivisionError

    assert [kernel.py_func.__name__ for kernel in compiling.list_kernels(fails)] == ["_add"]
    assert (backend.add(x, x) == 2).all()


def test_users_own_code_is_not_rehearsed() -> None:
    class OwnLoss:
        forward = probabilities = None

    trainer = new_trainer(RECIPES["default"])
    with patch.object(CpuBackend, "prepare") as prepare:
        trainer.recipe = replace(trainer.recipe, loss=OwnLoss())  # type: ignore[arg-type]
        prepare_training(trainer, ROWS)
        prepare.assert_not_called()
        trainer.recipe = RECIPES["default"]
        prepare_training(trainer, ROWS)
        prepare.assert_called_once()


@pytest.mark.parametrize(
    ("batch", "micro", "rows", "sizes"),
    [(64, 64, 1000, [64, 40]), (64, 64, 128, [64]), (64, 64, 10, [10]), (1024, 128, 5000, [264, 256]),
     (1000, 128, 5000, [360]), (1000, 128, 5100, [360, 100])],
)  # fmt: skip
def test_rehearsed_batches_have_all_kinds_of_micro_batches(batch: int, micro: int, rows: int, sizes: list[int]) -> None:
    """1000 is 7 micro-batches and one of 104 images: two and that one are as good."""
    assert batch_sizes(batch, micro, rows) == sizes
