"""Colour jitter, mixup and cutmix: what they draw, what they do to images and targets, and training with them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn.backends.cpu import CpuBackend
from cnn.backends.reference import ReferenceBackend
from cnn.checkpoint import load_checkpoint, save_checkpoint
from cnn.errors import RecipeError, UnknownNameError
from cnn.inputs.augment import Augment
from cnn.inputs.mixup import Blend, Mix
from cnn.inputs.preprocess import preprocess
from cnn.layers import Run
from cnn.losses import LOSSES, Loss
from cnn.network import Network
from cnn.rng import key_of, uniform
from tests.cnn.oracles import BACKENDS, directional_error, get_backend, to_device
from tests.cnn.test_gradients import LOSS_ROWS, TOLERANCE, thorough
from tests.cnn.test_training import CARD, MEAN, SHAPE, STD, three_kinds, train, trainer

REFERENCE = ReferenceBackend()
JITTER = Augment(False, 0.0, 1.0, brightness=0.4, contrast=0.3, saturation=0.8)
MEANS, DEVIATIONS = np.array(MEAN), np.array(STD)


def draw(mix: Mix, rows: np.ndarray, height: int = 12, width: int = 10, key: int = 5) -> Blend:
    blend = mix.draw(key, rows, height, width)
    assert blend is not None
    return blend


# Colours


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_colours_are_those_of_a_plain_computation(backend_name: str) -> None:
    """Image by image, pixel by pixel, in colours from 0 to 255."""
    backend, rows = get_backend(backend_name), np.array([4, 0, 9])
    images = np.random.default_rng(0).integers(0, 256, (3, 7, 9, 3), np.uint8)
    colours = JITTER.colours(11, rows, MEANS, DEVIATIONS)
    moved = (to_device(backend, array) for array in (MEANS.astype(np.float32), DEVIATIONS.astype(np.float32)))
    found = backend.to_host(preprocess(backend, images, None, *moved, colours))
    draws = uniform(11, rows, 3).astype(np.float64)
    for n, image in enumerate(images):
        brightness, contrast, saturation = 1 + np.array([0.4, 0.3, 0.8]) * (2 * draws[n] - 1)
        for (i, j), _ in np.ndenumerate(image[:, :, 0]):
            real = brightness * image[i, j]
            real = MEANS + contrast * (real - MEANS)
            luma = 0.299 * real[0] + 0.587 * real[1] + 0.114 * real[2]
            real = luma + saturation * (real - luma)
            np.testing.assert_allclose(found[n, i, j], (real - MEANS) / DEVIATIONS, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_factors_are_spread_around_one(name: str) -> None:
    colours = Augment(**{name: 0.5}).colours(3, np.arange(2000), np.zeros(3), np.ones(3))
    assert colours is not None and colours.shape == (2000, 3, 4) and colours.dtype == np.float32
    np.testing.assert_array_equal(colours[:, :, 3], 0)  # of no mean, and no constant
    # What is left of the difference of two channels, which all three shrink or stretch.
    factors = colours[:, 0, 0] - colours[:, 1, 0]
    assert 0.5 <= factors.min() < 0.51 and 1.49 < factors.max() <= 1.5 and abs(factors.mean() - 1) < 0.02
    grey = colours @ np.array([1, 1, 1, 0])  # (2000, 3): what becomes of it
    expected = np.ones(2000) if name == "saturation" else factors
    np.testing.assert_allclose(grey, np.stack([expected] * 3, axis=1), rtol=1e-5)


def test_without_jitter_there_are_no_colours_and_maps_never_depend_on_them() -> None:
    rows = np.arange(5)
    assert Augment().colours(1, rows, MEANS, DEVIATIONS) is None
    plain, jittered = Augment(cutout=0.3), Augment(cutout=0.3, brightness=0.4, contrast=0.4, saturation=0.4)
    for one, other in zip(plain.maps(1, rows, 8, 8), jittered.maps(1, rows, 8, 8), strict=True):
        np.testing.assert_array_equal(one, other)


def test_colours_depend_on_key_and_row_alone() -> None:
    whole, part, other = (
        JITTER.colours(key, rows, MEANS, DEVIATIONS)
        for key, rows in ((9, np.arange(10)), (9, np.array([7, 2])), (8, np.arange(10)))
    )
    assert whole is not None and other is not None
    np.testing.assert_array_equal(whole[[7, 2]], part)
    assert (np.abs(whole - other).max(axis=(1, 2)) > 1e-3).all()


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_holes_stay_the_mean_colour(backend_name: str) -> None:
    backend, rows = get_backend(backend_name), np.arange(6)
    augment = Augment(True, 0.1, 0.5, cutout=0.5, brightness=0.4, contrast=0.3, saturation=0.8)
    maps = augment.maps(2, rows, 16, 12)
    assert maps.holes is not None
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 12, 3), np.uint8)
    moved = (to_device(backend, array) for array in (MEANS.astype(np.float32), DEVIATIONS.astype(np.float32)))
    out = backend.to_host(preprocess(backend, images, maps, *moved, augment.colours(3, rows, MEANS, DEVIATIONS)))
    for image, (top, bottom, left, right) in zip(out, maps.holes, strict=True):
        assert (image[top:bottom, left:right] == 0).all()
        assert (image == 0).all(axis=2).sum() == (bottom - top) * (right - left)


@pytest.mark.parametrize("threads", [1, 3])
@thorough
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 40), st.integers(1, 10)),
    dtype=st.sampled_from([np.float32, np.float64]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_channels_in_any_precision(threads: int, shape: tuple, dtype: type, seed: int) -> None:
    """Lanes turn through the channels in other ways; many images, so that threads share them."""
    generator = np.random.default_rng(seed)
    images = np.repeat(generator.integers(0, 256, shape, np.uint8), 40, axis=0)
    channels = shape[3]
    maps = Augment().maps(seed, np.arange(len(images)), *shape[1:3])
    mean, std = np.full(channels, 120, dtype), np.full(channels, 60, dtype)
    colours = generator.normal(size=(len(images), channels, channels + 1)).astype(np.float32)
    found = CpuBackend(threads).resample(images, *maps, mean, std, colours)
    expected = REFERENCE.resample(images, *maps, mean, std, colours)
    assert found.dtype == expected.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 if dtype is np.float32 else 1e-9)


# Mixing


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("backend_name", BACKENDS)
def test_targets_are_the_shares_of_the_pixels(kind: str, backend_name: str) -> None:
    """Images of one number each, so that pixels say whose they are."""
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
            share = (mixed[n] == n).mean()
            top, bottom, left, right = blend.boxes[n]
            assert (mixed[n, top:bottom, left:right] == partner).all()
        else:
            assert np.ptp(mixed[n]) == 0
            share = (mixed[n, 0, 0, 0] - partner) / (n - partner)
        expected = np.zeros(7)
        expected[labels[n]] += share
        expected[labels[partner]] += 1 - share
        np.testing.assert_allclose(targets[n], expected, atol=1e-5)
    assert 0.2 < targets.max(axis=1).min() < 0.6 and np.ptp(blend.label_weights) > 0.5


def test_a_cut_box_is_anywhere_and_cut_off_at_the_border() -> None:
    top, bottom, left, right = draw(Mix("cutmix"), np.arange(3000), 20, 30).boxes.T
    assert top.min() == 0 and bottom.max() == 20 and left.min() == 0 and right.max() == 30
    inside = (top > 0) & (bottom < 20) & (left > 0) & (right < 30)
    # Away from the border, both sides are the same share of the image's.
    np.testing.assert_allclose((bottom - top)[inside] / 20, (right - left)[inside] / 30, atol=0.05)
    middle = (top + bottom)[inside] / 2
    assert abs(middle.mean() - 10) < 0.5 and middle.min() < 3 and middle.max() > 17
    assert abs(np.corrcoef(middle, (left + right)[inside])[0, 1]) < 0.1


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 5.0])
def test_shares_are_from_a_beta_distribution(alpha: float) -> None:
    found = draw(Mix("mixup", alpha), np.arange(20_000)).label_weights
    expected = np.random.default_rng(0).beta(alpha, alpha, 20_000)
    assert found.min() >= 0 and found.max() <= 1
    for edge in np.linspace(0.01, 0.99, 50):
        assert abs((found < edge).mean() - (expected < edge).mean()) < 0.02
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_draws_depend_on_key_and_row_alone(kind: str) -> None:
    mix = Mix(kind)  # type: ignore[arg-type]
    whole, part = draw(mix, np.arange(10)), draw(mix, np.array([7, 2, 5]))
    for one, other in zip(whole[1:], part[1:], strict=True):
        np.testing.assert_array_equal(one[[7, 2, 5]], other)
    np.testing.assert_array_equal(part.partners, [1, 2, 0])
    assert (draw(mix, np.arange(10), key=6).label_weights != whole.label_weights).any()


def test_a_image_alone_is_mixed_with_itself() -> None:
    blend = draw(Mix("mixup"), np.array([3]))
    np.testing.assert_array_equal(blend.targets(np.array([2]), 4), [[0, 0, 1, 0]])


def test_how_often_and_which_way_is_drawn_for_each_step() -> None:
    rows = np.arange(4)
    assert Mix().draw(1, rows, 8, 8) is None and Mix("cutmix", share=0.0).draw(1, rows, 8, 8) is None
    drawn = [Mix("either", share=0.3).draw(key, rows, 8, 8) for key in range(1000)]
    blends = [blend for blend in drawn if blend is not None]
    assert 250 < len(blends) < 350
    ways = [{"mixup" if share > 0 else "cutmix" for share in blend.weights} for blend in blends]
    assert all(len(way) == 1 for way in ways)
    assert 0.4 < ways.count({"mixup"}) / len(ways) < 0.6


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Augment(brightness=1.0), r"augment brightness: expected 0 or more and less than 1, found 1\.0"),
        (lambda: Augment(contrast=-0.1), r"augment contrast: expected 0 or more and less than 1, found -0\.1"),
        (lambda: Augment(saturation=float("nan")), "augment saturation: .* found nan"),
        (lambda: Mix(alpha=0.0), r"mix alpha: expected a number above 0, found 0\.0"),
        (lambda: Mix(alpha=float("inf")), "mix alpha: expected a number above 0, found inf"),
        (lambda: Mix(share=1.5), r"mix share: expected 0 to 1, found 1\.5"),
    ],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(build: object, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build()  # type: ignore[operator]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="no mix kind is called 'cutmx'; did you mean 'cutmix'"):
        Mix("cutmx")  # type: ignore[arg-type]


# Losses of values


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("kind", LOSS_ROWS, ids=lambda kind: kind.__name__)
def test_gradients_of_losses_of_values(kind: type, backend_name: str) -> None:
    backend = get_backend(backend_name)

    @thorough
    @given(loss=LOSS_ROWS[kind], batch=st.integers(1, 6), seed=st.integers(0, 2**32 - 1), rest=st.integers(0, 5))
    def check(loss: Loss, batch: int, seed: int, rest: int) -> None:
        generator = np.random.default_rng(seed)
        outputs = 3 * generator.normal(size=(batch, 4))
        targets = to_device(backend, generator.dirichlet(np.ones(4), batch))

        def value(at: list[np.ndarray]) -> float:
            return float(loss.forward(backend, to_device(backend, at[0]), targets, batch + rest)[0])

        gradient = loss.forward(backend, to_device(backend, outputs), targets, batch + rest)[1]
        assert directional_error(value, [backend.to_host(gradient)], [outputs], seed) < TOLERANCE

    check()


@pytest.mark.parametrize("weights", [(), (0.5, 1.0, 2.0, 3.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("backend_name", BACKENDS)
def test_cross_entropy_of_values_is_the_mean_over_classes(
    backend_name: str, smoothing: float, weights: tuple[float, ...]
) -> None:
    """Without weights, of the losses with each class as the true one; with them, times the mean of the weights."""
    backend, generator = get_backend(backend_name), np.random.default_rng(0)
    logits, values = 3 * generator.normal(size=(1, 4)), generator.dirichlet(np.ones(4), 1)
    plain = LOSSES["softmax_cross_entropy"](smoothing)  # type: ignore[call-arg]
    weighted = LOSSES["softmax_cross_entropy"](smoothing, weights)  # type: ignore[call-arg]
    device = to_device(backend, logits)
    each = [float(plain.forward(backend, device, to_device(backend, np.array([k])), 1)[0]) for k in range(4)]
    expected = values[0] @ each * (values[0] @ (weights or np.ones(4)))
    found = float(weighted.forward(backend, device, to_device(backend, values), 1)[0])
    assert found == pytest.approx(expected, rel=1e-6)
    whole = weighted.forward(backend, device, to_device(backend, np.eye(4)[[2]]), 1)
    numbered = weighted.forward(backend, device, to_device(backend, np.array([2])), 1)
    for one, other in zip(whole, numbered, strict=True):
        np.testing.assert_allclose(backend.to_host(one), backend.to_host(other), rtol=1e-6)


# Training


EVERYTHING = {
    "augment": Augment(True, 0.1, 0.7, cutout=0.2, brightness=0.2, contrast=0.2, saturation=0.2),
    "mix": Mix("either", 0.8, 0.7),
}  # fmt: skip


@pytest.mark.parametrize("changes", [{"mix": Mix("mixup")}, {"mix": Mix("cutmix", share=0.5)}, {"augment": JITTER}])
def test_a_network_learns_from_such_images(changes: dict[str, object]) -> None:
    one = trainer(**changes)
    train(one, 42)
    images, labels = three_kinds(100, 1)
    assert one.evaluate([(images, labels)]).accuracy > 0.8


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_step_is_the_loss_of_the_blended_images(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Followed by hand, on the reference: recoloured, then blended; right is who says an image's heavier class."""
    one = trainer(augment=JITTER, mix=Mix(kind))  # type: ignore[arg-type]
    train(one, 2)
    images, labels = three_kinds(32, 6)
    rows, weights = np.arange(32) + 7, one.network.parameters.flat.copy()
    seen: list[np.ndarray] = []
    forward = Network.forward
    monkeypatch.setattr(Network, "forward", lambda self, run, x: (seen.append(x), forward(self, run, x))[1])
    result = one.train_batch(images, labels, rows)

    colours = JITTER.colours(key_of(0, "colours", 2), rows, MEANS, DEVIATIONS)
    blend = draw(Mix(kind), rows, 12, 12, key_of(0, "mix", 2))  # type: ignore[arg-type]
    x = preprocess(REFERENCE, images, None, MEANS.astype(np.float32), DEVIATIONS.astype(np.float32), colours)
    x = REFERENCE.blend(x, *blend[:3])
    np.testing.assert_allclose(seen[0], x, atol=1e-4)
    network = Network(one.network.layer, SHAPE, REFERENCE, seed=1)
    network.parameters.flat[...] = weights
    outputs, _ = forward(network, Run(REFERENCE, training=True), x)
    targets = blend.targets(labels, 3)
    loss, _ = one.recipe.loss.forward(REFERENCE, outputs, targets, 32)
    assert result.loss_sum == pytest.approx(float(loss) * 32, rel=1e-3)
    heavier = np.where(blend.label_weights > 0.5, labels, labels[blend.partners])
    assert result.correct == (outputs.argmax(axis=1) == heavier).sum() != (outputs.argmax(axis=1) == labels).sum()


def test_backends_take_the_same_way() -> None:
    losses = [train(trainer(name, **EVERYTHING), 6) for name in ("cpu", "reference")]
    np.testing.assert_allclose(*losses, rtol=2e-3)


def test_a_resumed_training_is_bit_identical(tmp_path: Path) -> None:
    straight, first = trainer(**EVERYTHING), trainer(**EVERYTHING)
    train(straight, 6)
    train(first, 3)
    save_checkpoint(tmp_path / "last.safetensors", CARD, first.tensors(), {"step": first.step})
    saved = load_checkpoint(tmp_path / "last.safetensors")
    second = trainer(**EVERYTHING)
    second.load_tensors(saved.tensors, saved.progress["step"])
    train(second, 3)
    for name, tensor in straight.tensors().items():
        assert tensor.tobytes() == second.tensors()[name].tobytes(), name
