"""MixUp and CutMix, and training with them and with colour jitter."""

from pathlib import Path

import numpy as np
import pytest

from cnn.backends.reference import ReferenceBackend
from cnn.checkpoint import load_checkpoint, save_checkpoint
from cnn.errors import RecipeError, UnknownNameError
from cnn.inputs.augment import Augment
from cnn.inputs.mixup import Blend, Mix
from cnn.inputs.preprocess import preprocess
from cnn.layers import Run
from cnn.network import Network
from cnn.rng import key_of
from tests.cnn.inputs.test_augment import JITTER, MEANS, STDS
from tests.cnn.oracles import BACKENDS, get_backend, to_device
from tests.cnn.tiny_task import CARD, SHAPE, draw_images, make_trainer, train

REFERENCE = ReferenceBackend()


def draw(mix: Mix, rows: np.ndarray, height: int = 12, width: int = 10, key: int = 5) -> Blend:
    blend = mix.draw(key, rows, height, width)
    assert blend is not None
    return blend


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("backend_name", BACKENDS)
def test_targets_are_the_fractions_of_the_pixels(kind: str, backend_name: str) -> None:
    """Images of one value each, which identifies the image that a pixel comes from."""
    backend, rows = get_backend(backend_name), np.arange(40) + 100
    blend = draw(Mix(kind), rows)  # type: ignore[arg-type]
    x = np.broadcast_to(np.arange(40, dtype=np.float32)[:, None, None, None], (40, 12, 10, 3))
    arrays = (to_device(backend, array) for array in (x, blend.partners, blend.weights, blend.boxes))
    mixed = backend.to_host(backend.blend(*arrays))
    labels = np.arange(40) % 7
    targets = blend.targets(labels, 7)
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    for n in range(40):
        partner = (n + 1) % 40
        if kind == "cutmix":
            assert set(np.unique(mixed[n])) <= {n, partner}
            fraction = (mixed[n] == n).mean()
            top, bottom, left, right = blend.boxes[n]
            assert (mixed[n, top:bottom, left:right] == partner).all()
        else:
            assert np.ptp(mixed[n]) == 0
            fraction = (mixed[n, 0, 0, 0] - partner) / (n - partner)
        expected = np.zeros(7)
        expected[labels[n]] += fraction
        expected[labels[partner]] += 1 - fraction
        np.testing.assert_allclose(targets[n], expected, atol=1e-5)
    assert 0.2 < targets.max(axis=1).min() < 0.6 and np.ptp(blend.label_weights) > 0.5


def test_boxes_are_anywhere_and_clipped_at_the_border() -> None:
    top, bottom, left, right = draw(Mix("cutmix"), np.arange(3000), 20, 30).boxes.T
    assert top.min() == 0 and bottom.max() == 20 and left.min() == 0 and right.max() == 30
    inside = (top > 0) & (bottom < 20) & (left > 0) & (right < 30)
    # Away from the border, height and width are the same fraction of the image's.
    np.testing.assert_allclose((bottom - top)[inside] / 20, (right - left)[inside] / 30, atol=0.05)
    middle = (top + bottom)[inside] / 2
    assert abs(middle.mean() - 10) < 0.5 and middle.min() < 3 and middle.max() > 17
    assert abs(np.corrcoef(middle, (left + right)[inside])[0, 1]) < 0.1


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 5.0])
def test_weights_have_a_beta_distribution(alpha: float) -> None:
    found = draw(Mix("mixup", alpha), np.arange(20_000)).label_weights
    expected = np.random.default_rng(0).beta(alpha, alpha, 20_000)
    assert found.min() >= 0 and found.max() <= 1
    for edge in np.linspace(0.01, 0.99, 50):
        assert abs((found < edge).mean() - (expected < edge).mean()) < 0.02
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_blends_are_a_function_of_key_and_row(kind: str) -> None:
    mix = Mix(kind)  # type: ignore[arg-type]
    whole, some = draw(mix, np.arange(10)), draw(mix, np.array([7, 2, 5]))
    for one, other in zip(whole[1:], some[1:], strict=True):
        np.testing.assert_array_equal(one[[7, 2, 5]], other)
    np.testing.assert_array_equal(some.partners, [1, 2, 0])
    assert (draw(mix, np.arange(10), key=6).label_weights != whole.label_weights).any()


def test_a_single_image_is_blended_with_itself() -> None:
    blend = draw(Mix("mixup"), np.array([3]))
    np.testing.assert_array_equal(blend.targets(np.array([2]), 4), [[0, 0, 1, 0]])


def test_whether_to_blend_and_the_kind_are_drawn_per_step() -> None:
    rows = np.arange(4)
    assert Mix().draw(1, rows, 8, 8) is None and Mix("cutmix", share=0.0).draw(1, rows, 8, 8) is None
    drawn = [Mix("either", share=0.3).draw(key, rows, 8, 8) for key in range(1000)]
    blends = [blend for blend in drawn if blend is not None]
    assert 250 < len(blends) < 350
    kinds = [{"mixup" if weight > 0 else "cutmix" for weight in blend.weights} for blend in blends]
    assert all(len(kind) == 1 for kind in kinds)
    assert 0.4 < kinds.count({"mixup"}) / len(kinds) < 0.6


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Augment("random"), r"augment flip: expected True, False or 'alternate', found 'random'"),
        (lambda: Augment(brightness=1.0), r"augment brightness: .* less than 1, found 1\.0"),
        (lambda: Augment(contrast=-0.1), r"augment contrast: expected a number of 0 or more .*, found -0\.1"),
        (lambda: Augment(saturation=float("nan")), "augment saturation: .* found nan"),
        (lambda: Mix(alpha=0.0), r"mix alpha: expected a number above 0, found 0\.0"),
        (lambda: Mix(alpha=float("inf")), "mix alpha: expected a number above 0, found inf"),
        (lambda: Mix(share=1.5), r"mix share: expected a number from 0 to 1, found 1\.5"),
    ],
)  # fmt: skip
def test_invalid_options_are_refused(build: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build()  # type: ignore[operator]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="no mix kind is called 'cutmx'; did you mean 'cutmix'"):
        Mix("cutmx")  # type: ignore[arg-type]


# Training


EVERYTHING = {
    "augment": Augment(True, 0.1, 0.7, cutout=0.2, brightness=0.2, contrast=0.2, saturation=0.2),
    "mix": Mix("either", 0.8, 0.7),
}  # fmt: skip


@pytest.mark.parametrize("changes", [{"mix": Mix("mixup")}, {"mix": Mix("cutmix", share=0.5)}, {"augment": JITTER}])
def test_a_network_learns_from_blended_and_recoloured_images(changes: dict[str, object]) -> None:
    trainer = make_trainer(**changes)
    train(trainer, 42)
    images, labels = draw_images(100, 1)
    assert trainer.evaluate([(images, labels)]).accuracy > 0.8


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_training_step_has_the_loss_of_the_blended_images(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed step by step on the reference; the class with the larger weight counts as correct."""
    trainer = make_trainer(augment=JITTER, mix=Mix(kind))  # type: ignore[arg-type]
    train(trainer, 2)
    images, labels = draw_images(32, 6)
    rows, weights = np.arange(32) + 7, trainer.network.parameters.flat.copy()
    seen: list[np.ndarray] = []
    forward = Network.forward
    monkeypatch.setattr(Network, "forward", lambda self, run, x, *s: (seen.append(x), forward(self, run, x, *s))[1])
    result = trainer.train_batch(images, labels, rows)

    colours = JITTER.colours(key_of(0, "colours", 2), rows, MEANS, STDS)
    blend = draw(Mix(kind), rows, 12, 12, key_of(0, "mix", 2))  # type: ignore[arg-type]
    x = preprocess(REFERENCE, images, None, MEANS.astype(np.float32), STDS.astype(np.float32), colours)
    x = REFERENCE.blend(x, *blend[:3])
    np.testing.assert_allclose(seen[0], x, atol=1e-4)
    network = Network(trainer.network.layer, SHAPE, REFERENCE, seed=1)
    network.parameters.flat[...] = weights
    outputs, _ = forward(network, Run(REFERENCE, training=True), x)
    targets = blend.targets(labels, 3)
    loss = trainer.recipe.loss.forward(REFERENCE, outputs, targets, 32).loss
    assert result.loss_sum == pytest.approx(float(loss) * 32, rel=1e-3)
    heavier = np.where(blend.label_weights > 0.5, labels, labels[blend.partners])
    assert result.correct == (outputs.argmax(axis=1) == heavier).sum() != (outputs.argmax(axis=1) == labels).sum()


def test_backends_have_the_same_losses() -> None:
    losses = [train(make_trainer(name, **EVERYTHING), 6) for name in ("cpu", "reference")]
    np.testing.assert_allclose(*losses, rtol=2e-3)


def test_a_resumed_training_is_bit_identical(tmp_path: Path) -> None:
    straight, first = make_trainer(**EVERYTHING), make_trainer(**EVERYTHING)
    train(straight, 6)
    train(first, 3)
    save_checkpoint(tmp_path / "last.safetensors", CARD, first.tensors(), {"step": first.step})
    saved = load_checkpoint(tmp_path / "last.safetensors")
    second = make_trainer(**EVERYTHING)
    second.load_tensors(saved.tensors, saved.progress["step"])
    train(second, 3)
    for name, tensor in straight.tensors().items():
        assert tensor.tobytes() == second.tensors()[name].tobytes(), name
