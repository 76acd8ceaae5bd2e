"""The small parts: random numbers, arenas, schedules, losses, optimizers, augmentation, models, backends."""

import math

import numpy as np
import pytest

from cnn.arena import Arena, Group, Spec
from cnn.backends import pick_backend
from cnn.backends.gpu import why_unusable
from cnn.backends.reference import ReferenceBackend
from cnn.errors import DeviceError, RecipeError, ShapeError, UnknownNameError
from cnn.initialise import he_normal, identity, zeros
from cnn.inputs.augment import VIEWS, Augment, alternate_flips, identity_maps
from cnn.layers import GELU, Conv2D, Dense, Dropout, Flatten, MaxPool, Residual, Run, Whitening, chain
from cnn.losses import BinaryCrossEntropy, MeanSquaredError, SoftmaxCrossEntropy
from cnn.models import MODELS
from cnn.network import Network
from cnn.rng import key_of, normal, uniform
from cnn.training.lookahead import Lookahead
from cnn.training.optimizers import SGD, AdamW
from cnn.training.schedules import SCHEDULES, Constant, Cosine, Step, Triangular

REFERENCE = ReferenceBackend()


# Random numbers


def test_draws_belong_to_rows_and_not_to_their_order() -> None:
    rows = np.array([5, 0, 123456789])
    together = uniform(42, rows, 6)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(uniform(42, np.array([row]), 6)[0], together[i])
    assert not np.array_equal(uniform(43, rows, 6), together)


def test_draws_are_uniform_and_independent() -> None:
    draws = uniform(1, np.arange(20_000), 4).astype(np.float64)
    assert draws.min() >= 0.0 and draws.max() < 1.0
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.histogram(draws, 16, (0, 1))[0] / draws.size - 1 / 16).max() < 0.002
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(draws[1:, 0], draws[:-1, 0])[0, 1]) < 0.03
    bell = normal(3, 50_001)
    assert bell.shape == (50_001,) and abs(bell.mean()) < 0.02 and abs(bell.std() - 1) < 0.02


def test_draws_do_not_change_between_versions() -> None:
    """Saved seeds must mean the same for ever."""
    assert key_of(0, "augment", 1) == key_of("0", "augment", "1") == 11754942182748092211
    np.testing.assert_allclose(uniform(7, np.array([0, 1]), 2), [[0.5243, 0.3021], [0.7215, 0.6497]], atol=1e-4)


# Arenas


def test_arena_puts_decayed_vectors_first_and_views_share_memory() -> None:
    specs = [Spec("a.bias", (2,), zeros), Spec("a.weight", (3, 2), he_normal, decay=True), Spec("b.shift", (1,), zeros)]
    arena = Arena(specs, REFERENCE)
    assert (arena.size, arena.groups) == (9, (Group(0, 9, 6, 1.0, 1.0),))
    assert list(arena.views) == ["a.weight", "a.bias", "b.shift"]
    arena.tree["a"]["weight"][...] = 5
    np.testing.assert_array_equal(arena.flat, [5] * 6 + [0] * 3)


def test_parameters_that_are_trained_alike_lie_together_and_what_stays_comes_last() -> None:
    specs = [
        Spec("early", (2,), zeros, trained=0.5), Spec("frozen", (3,), zeros, True, trained=0.0), Spec("a", (4,), zeros),
        Spec("fast", (5,), zeros, lr_factor=64.0), Spec("b", (6,), zeros, True), Spec("quick", (1,), zeros, True, 64.0),
    ]  # fmt: skip
    arena = Arena([spec.under("x") for spec in specs], REFERENCE)
    assert list(arena.views) == ["x.b", "x.a", "x.quick", "x.fast", "x.early", "x.frozen"]
    assert arena.groups == (
        Group(0, 10, 6, 1.0, 1.0), Group(10, 16, 1, 64.0, 1.0), Group(16, 18, 0, 1.0, 0.5), Group(18, 21, 3, 1.0, 0.0),
    )  # fmt: skip
    assert [arena.moving(progress)[-1].last for progress in (0.0, 0.49, 0.5, 1.0)] == [18, 18, 16, 16]


# How parameters start


def test_an_identity_passes_images_on_and_its_other_filters_are_small() -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 3))
    for filters in (2, 3, 7):
        network = Network(Conv2D(filters, 3, bias=False, initialise=identity), (5, 5, 3), REFERENCE, 0, np.float64)
        y = network.infer(x)
        np.testing.assert_allclose(y[..., :3], x[..., :filters])
    others = network.tensors()["weight"][..., 3:]
    assert 0.9 / math.sqrt(27) < np.abs(others).max() <= 1 / math.sqrt(27)
    assert abs(others.mean()) < 0.03 and others.std() == pytest.approx(1 / math.sqrt(3 * 27), rel=0.15)


def test_whitened_patches_are_uncorrelated_and_of_one_size() -> None:
    smooth = np.random.default_rng(0).normal(size=(70, 9, 8, 3)).cumsum(axis=1).cumsum(axis=2)  # neighbours are alike
    layer = Whitening(24, epsilon=0.0)
    network = Network(chain(inner=chain(whiten=layer, gelu=GELU())), (9, 8, 3), REFERENCE, 0, np.float64)
    assert network.needs_data
    network.measure(smooth)
    weight = network.tensors()["inner.whiten.weight"]
    y = REFERENCE.conv2d(smooth, weight, None, layer.window).reshape(-1, 24)
    np.testing.assert_allclose(y[:, :12].T @ y[:, :12] / len(y), np.eye(12), atol=1e-6)
    np.testing.assert_array_equal(y[:, 12:], -y[:, :12])
    flat = weight.reshape(12, 24)
    assert (flat[np.abs(flat[:, :12]).argmax(axis=0), range(12)] > 0).all()
    assert (np.diff(np.linalg.norm(flat[:, :12], axis=0)) > 0).all()  # the largest variance first
    assert np.abs(layer.measure(smooth)["weight"]).max() > 10 * np.abs(
        Whitening(24, epsilon=1e3).measure(smooth)["weight"]
    ).max()


def test_a_network_without_a_measured_layer_is_left_alone() -> None:
    network = Network(chain(conv=Conv2D(2), whiten=Whitening(16)), (5, 5, 1), REFERENCE)
    before = network.parameters.flat.copy()
    assert not network.needs_data
    network.measure(np.ones((2, 5, 5, 1)))
    np.testing.assert_array_equal(network.parameters.flat, before)


# Schedules


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_warms_up_and_stays_within_bounds(name: str) -> None:
    factors = [SCHEDULES[name](warmup=0.1).factor(step, 200) for step in range(200)]  # type: ignore[call-arg]
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    assert factors[:20] == sorted(factors[:20]) and factors[0] == pytest.approx(0.5 / 20)
    assert factors[20] == pytest.approx(1.0)


def test_schedules_end_where_they_should() -> None:
    assert Constant().factor(99, 100) == 1.0
    assert [Step(0.0, (0.5, 0.75), 0.1).factor(step, 100) for step in (0, 49, 50, 75)] == pytest.approx(
        [1.0, 1.0, 0.1, 0.01]
    )
    assert Cosine(0.0, 0.1).factor(50, 100) == pytest.approx(0.55)
    assert Cosine(0.0).factor(100, 100) == pytest.approx(0.0)
    assert Triangular(0.5, 0.2).factor(75, 100) == pytest.approx(0.6)
    climbing = Triangular(0.5, 0.0, 0.2)
    assert [climbing.factor(step, 100) for step in (0, 25, 50)] == pytest.approx([0.208, 0.608, 1.0])
    with pytest.raises(RecipeError, match="warmup: expected a share"):
        Cosine(warmup=1.5)


# Losses


def test_guessing_costs_the_logarithm_of_the_classes() -> None:
    loss, gradient = SoftmaxCrossEntropy(0.0).forward(REFERENCE, np.zeros((4, 18)), np.array([0, 1, 2, 17]), 4)
    assert float(loss) == pytest.approx(math.log(18))
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-15)


def test_parts_of_a_batch_sum_to_the_whole() -> None:
    outputs, labels = np.random.default_rng(0).normal(size=(7, 3)), np.array([0, 1, 2, 0, 1, 2, 0])
    for loss in (SoftmaxCrossEntropy(0.1, (1.0, 2.0, 0.5)), BinaryCrossEntropy(), MeanSquaredError()):
        whole = loss.forward(REFERENCE, outputs, labels, 7)
        parts = [loss.forward(REFERENCE, outputs[part], labels[part], 7) for part in (slice(0, 5), slice(5, 7))]
        assert float(whole[0]) == pytest.approx(float(parts[0][0] + parts[1][0]))
        np.testing.assert_allclose(whole[1], np.concatenate([parts[0][1], parts[1][1]]))


def test_losses_survive_extreme_outputs() -> None:
    outputs, labels = np.array([[1000.0, -1000.0], [-1000.0, 1000.0]], np.float32), np.array([0, 0])
    for loss in (SoftmaxCrossEntropy(0.0), BinaryCrossEntropy()):
        value, gradient = loss.forward(REFERENCE, outputs, labels, 2)
        assert math.isfinite(float(value)) and np.isfinite(gradient).all() and float(value) >= 999
        assert ((loss.probabilities(REFERENCE, outputs) >= 0) & (loss.probabilities(REFERENCE, outputs) <= 1)).all()


def test_class_weights_must_fit_the_classes() -> None:
    with pytest.raises(RecipeError, match="one number for each of the 3 classes, found 2"):
        SoftmaxCrossEntropy(0.0, (1.0, 2.0)).forward(REFERENCE, np.zeros((1, 3)), np.array([0]), 1)


# Optimizers, against their textbook formulas worked out by hand for one weight


def _one_weight(optimizer: SGD | AdamW, gradients: list[float]) -> float:
    arena = Arena([Spec("weight", (1,), lambda shape, key: np.ones(shape), decay=True)], REFERENCE, np.float64)
    arena.initialise(lambda name: 0)
    slots = {name: np.zeros(1) for name in optimizer.slots}
    for step, gradient in enumerate(gradients, start=1):
        optimizer.update(REFERENCE, arena, np.array([gradient]), slots, 1.0, optimizer.lr, step)
    return float(arena.flat[0])


def test_sgd_by_hand() -> None:
    assert _one_weight(SGD(0.1, 0.0, False, 0.0), [2.0]) == pytest.approx(0.8)
    assert _one_weight(SGD(0.1, 0.9, False, 0.0), [1.0, 1.0]) == pytest.approx(1 - 0.1 - 0.19)
    assert _one_weight(SGD(0.1, 0.9, True, 0.0), [1.0]) == pytest.approx(1 - 0.19)
    assert _one_weight(SGD(0.1, 0.0, False, 0.5), [0.0]) == pytest.approx(0.95)


def test_decoupled_sgd_by_hand() -> None:
    # Momentum 0.5: the rate over 3, and Nesterov's first step 1.5 times the gradient.
    assert _one_weight(SGD(0.6, 0.5, True, 0.0, True), [1.0]) == pytest.approx(1 - 0.2 * 1.5)
    for lr in (0.6, 1.2):
        assert _one_weight(SGD(lr, 0.0, False, 0.5, True), [0.0]) == pytest.approx(1 - 0.25)
    assert _one_weight(SGD(0.0, 0.5, True, 0.5, True), [1.0]) == 1.0


@pytest.mark.parametrize(
    "optimizer", [SGD(0.01, 0.0, False, 0.5), SGD(0.01, 0.0, False, 0.5, True), AdamW(0.01, weight_decay=0.5)]
)
def test_a_faster_group_learns_faster_and_decays_the_same(optimizer: SGD | AdamW) -> None:
    weights, decays = [], []
    for factor in (1.0, 8.0):
        start = lambda shape, key: np.ones(shape)  # noqa: E731
        arena = Arena([Spec("weight", (1,), start, True, factor)], REFERENCE, np.float64)
        for gradient, ends in ((1.0, weights), (0.0, decays)):
            arena.initialise(lambda name: 0)
            slots = {name: np.zeros(1) for name in optimizer.slots}
            optimizer.update(REFERENCE, arena, np.array([gradient]), slots, 1.0, optimizer.lr, 1)
            ends.append(float(arena.flat[0]))
    assert decays[0] == pytest.approx(decays[1]) and decays[0] < 1
    assert decays[1] - weights[1] == pytest.approx(8 * (decays[0] - weights[0]))


@pytest.mark.parametrize("optimizer", [SGD(0.1), AdamW(0.1)])
def test_what_is_trained_for_a_while_stops_then(optimizer: SGD | AdamW) -> None:
    specs = [Spec(name, (1,), zeros, True, trained=part) for name, part in (("a", 1.0), ("b", 0.5), ("c", 0.0))]
    arena = Arena(specs, REFERENCE, np.float64)
    slots = {name: np.zeros(3) for name in optimizer.slots}
    moved = []
    for step, progress in ((1, 0.4), (2, 0.5)):
        before = arena.flat.copy()
        optimizer.update(REFERENCE, arena, np.ones(3), slots, 1.0, optimizer.lr, step, progress)
        moved.append((arena.flat != before).tolist())
    assert moved == [[True, True, False], [True, False, False]]


def test_adamw_by_hand() -> None:
    # The first step is lr times the gradient's sign, whatever its size; the decay is the weight's own.
    assert _one_weight(AdamW(0.1, weight_decay=0.0), [123.0]) == pytest.approx(0.9)
    assert _one_weight(AdamW(0.1, weight_decay=0.5), [0.0]) == pytest.approx(0.95)


def test_optimizers_refuse_nonsense() -> None:
    with pytest.raises(RecipeError, match="lr: expected a number of 0 or more, found nan"):
        SGD(lr=math.nan)
    with pytest.raises(RecipeError, match="beta1: expected 0 or more and less than 1"):
        AdamW(beta1=1.0)


def test_lookahead_begins_at_a_multiple_and_keeps_more_and_more() -> None:
    ahead = Lookahead(every=5, start=0.3)
    assert [ahead.first(total) for total in (490, 476, 10, 3)] == [150, 145, 5, 5]
    assert ahead.kept(100, 100) == pytest.approx(0.95**5)
    assert ahead.kept(50, 100) == pytest.approx(0.95**5 / 8)
    with pytest.raises(RecipeError, match=r"lookahead decay: expected 0 to 1, found 1\.5"):
        Lookahead(decay=1.5)


# Augmentation


def _apply(images: np.ndarray, augment: Augment, key: int) -> np.ndarray:
    ys, xs, holes = augment.maps(key, np.arange(len(images)), *images.shape[1:3])
    return REFERENCE.resample(images, ys, xs, holes, np.zeros(3), np.ones(3))


def _some_images(count: int = 64, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def test_nothing_to_vary_changes_nothing() -> None:
    images = _some_images()
    np.testing.assert_array_equal(_apply(images, Augment(False, 0.0, 1.0), 1), images)
    out = REFERENCE.resample(images, *identity_maps(64, 8, 8), np.zeros(3), np.ones(3))
    np.testing.assert_array_equal(out, images)


def test_flip_mirrors_about_half() -> None:
    images = _some_images(400)
    out = _apply(images, Augment(True, 0.0, 1.0), 1)
    mirrored = (out == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert ((out == images).all(axis=(1, 2, 3)) | mirrored).all()
    assert 160 < mirrored.sum() < 240


def test_flips_by_turns_mirror_a_random_half_and_then_the_others() -> None:
    rows = np.arange(1000)
    sides = [alternate_flips(7, rows, epoch) for epoch in range(4)]
    assert 450 < sides[0].sum() < 550
    np.testing.assert_array_equal(sides[1], ~sides[0])
    np.testing.assert_array_equal(sides[2:], sides[:2])
    np.testing.assert_array_equal(alternate_flips(7, rows[[9, 3]], 0), sides[0][[9, 3]])
    assert 400 < (alternate_flips(8, rows, 0) ^ sides[0]).sum() < 600


def test_maps_mirror_whom_they_are_told_to() -> None:
    images = _some_images(6)
    which = np.array([True, False, True, True, False, False])
    maps = Augment("alternate", 0.0, 1.0).maps(1, np.arange(6), 8, 8).mirrored(which)
    out = REFERENCE.resample(images, *maps, np.zeros(3), np.ones(3))
    np.testing.assert_array_equal(out, np.where(which[:, None, None, None], images[:, :, ::-1], images))


def test_views_are_what_they_say() -> None:
    images = _some_images(3, 32)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    plain = [images, padded[:, :32, :32], padded[:, 2:, 2:]]
    expected = [side for image in plain for side in (image, image[:, :, ::-1])]
    views = VIEWS["mirror_shift"]
    for view, image in zip(views, expected, strict=True):
        out = REFERENCE.resample(images, *view.maps(3, 32, 32), np.zeros(3), np.ones(3))
        np.testing.assert_array_equal(out, image)
    assert [view.weight for view in views] == [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]
    assert views[:2] == tuple(view._replace(weight=view.weight / 2) for view in VIEWS["mirror"])
    assert all(sum(view.weight for view in some) == 1.0 for some in VIEWS.values())
    down = VIEWS["mirror_shift"][2].maps(1, 128, 96)
    assert (down.ys[0, :6].tolist(), down.xs[0, :6].tolist()) == ([4, 3, 2, 1, 0, 1], [3, 2, 1, 0, 1, 2])


def test_shift_reflects_the_border() -> None:
    images = _some_images()
    out = _apply(images, Augment(False, 0.25, 1.0), 2)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    seen = set()
    for n in range(len(images)):
        places = [
            (i, j) for i in range(5) for j in range(5) if np.array_equal(out[n], padded[n, i : i + 8, j : j + 8])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 15  # of 25


def test_crop_stays_inside_and_varies() -> None:
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, :, None, None], (50, 32, 32, 3))
    out = _apply(np.ascontiguousarray(ramp), Augment(False, 0.0, 0.25, 1.3), 3)[:, :, 0, 0]
    assert out.min() >= 0 and out.max() <= 31
    assert (np.diff(out, axis=1) >= 0).all()  # never folded
    extent = out[:, -1] - out[:, 0]
    assert extent.min() < 20 and extent.max() > 26


def test_cutout_blanks_a_square() -> None:
    out = _apply(np.full((50, 8, 8, 3), 9, np.uint8), Augment(False, 0.0, 1.0, cutout=0.5), 4)
    blank = (out == 0).all(axis=3).sum(axis=(1, 2))
    assert blank.max() == 16 and blank.min() >= 4


def test_draws_depend_on_key_and_row_alone() -> None:
    augment = Augment(True, 0.1, 0.5, cutout=0.3)
    whole = augment.maps(9, np.arange(10), 16, 12)
    part = augment.maps(9, np.array([7, 2]), 16, 12)
    for one, other in zip(whole, part, strict=True):
        assert one is not None and other is not None
        np.testing.assert_array_equal(one[[7, 2]], other)


# Layers and models


def test_dropout_keeps_the_mean_and_does_nothing_outside_training() -> None:
    x = np.ones((50, 200))
    layer = Dropout(0.25)
    y, _ = layer.forward(Run(REFERENCE, training=True, key=1), {}, {}, x)
    assert set(np.unique(y)) == {0.0, 1 / 0.75} and abs(y.mean() - 1) < 0.02
    assert layer.forward(Run(REFERENCE, training=False), {}, {}, x)[0] is x
    again, _ = layer.forward(Run(REFERENCE, training=True, key=1, rows=np.arange(50)), {}, {}, x)
    np.testing.assert_array_equal(again, y)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(8, 8, 3), (9, 17, 3), (32, 32, 3), (65, 64, 3), (130, 100, 3)])
def test_models_take_any_image_and_any_classes(name: str, shape: tuple[int, int, int]) -> None:
    model = MODELS[name](**({} if name == "seed" else {"width": 8}))
    for classes in (2, 11):
        network = Network(model.layers(shape, classes), shape, pick_backend("reference"))
        assert network.out_shape == (classes,)
        other = Network(model.layers(shape, classes + 1), shape, pick_backend("reference"), seed=None)
        shapes, others = ({spec.name: spec.shape for spec in one.parameters.specs} for one in (network, other))
        assert {key.partition(".")[0] for key in shapes if shapes[key] != others[key]} == {"head"}
    assert network.infer(np.zeros((2, *shape), np.float32)).shape == (2, 11)


def test_the_seed_is_the_seed() -> None:
    """Three 3x3 convolutions of 5 channels on 256x256 images, then dense 128, 64, 18 and 18 classes."""
    specs = MODELS["seed"]().layers((256, 256, 3), 18).specs((256, 256, 3)).parameters
    weights = {spec.name: spec.shape for spec in specs if spec.name.endswith("weight")}
    assert list(weights.values()) == [
        (3, 3, 3, 5), (3, 3, 5, 5), (3, 3, 5, 5), (250 * 250 * 5, 128), (128, 64), (64, 18), (18, 18)
    ]  # fmt: skip


def test_airbench94_is_that_of_the_speed_runs() -> None:
    """Its sizes, what is frozen or faster in it, and the number of parameters that are trained there."""
    network = Network(MODELS["airbench94"]().layers((32, 32, 3), 10), (32, 32, 3), REFERENCE)
    specs = {spec.name: spec for spec in network.parameters.specs}
    weights = [spec.shape for spec in network.layer.specs((32, 32, 3)).parameters if spec.name.endswith("weight")]
    assert weights == [
        (2, 2, 3, 24), (3, 3, 24, 64), (3, 3, 64, 64), (3, 3, 64, 256), (3, 3, 256, 256), (3, 3, 256, 256),
        (3, 3, 256, 256), (256, 10),
    ]  # fmt: skip
    assert {name for name, spec in specs.items() if spec.trained == 0.0} == {
        "whiten.weight", *(f"group{group}.norm{norm}.scale" for group in (1, 2, 3) for norm in (1, 2))
    }  # fmt: skip
    assert {name.rpartition(".")[2] for name, spec in specs.items() if spec.lr_factor == 64.0} == {"shift"}
    assert (specs["whiten.bias"].trained, specs["whiten.bias"].decay) == (0.3, True)
    assert [(group.lr_factor, group.trained) for group in network.parameters.groups] == [
        (1.0, 1.0), (64.0, 1.0), (1.0, 0.3), (1.0, 0.0)
    ]  # fmt: skip
    assert network.needs_data and network.parameters.moving(0.0)[-1].last == 1_971_352
    centre = network.tensors()["group2.conv1.weight"][1, 1, :, :64]
    np.testing.assert_array_equal(centre, np.eye(64))


def test_airbench94_may_learn_its_first_layer_and_start_at_random() -> None:
    layers = MODELS["airbench94"](whiten=False, identity=False).layers((32, 32, 3), 10)  # type: ignore[call-arg]
    network = Network(layers, (32, 32, 3), REFERENCE)
    assert not network.needs_data and network.parameters.views["conv.weight"].shape == (2, 2, 3, 24)
    assert {spec.trained for spec in network.parameters.specs if spec.name.startswith("conv.")} == {1.0}
    assert abs(network.tensors()["group2.conv1.weight"]).max() < 0.1


def test_shapes_that_do_not_fit_are_explained() -> None:
    for layer, shape, words in (
        (Conv2D(4, 5, padding=0), (3, 3, 1), "does not fit an image of 3x3"),
        (Conv2D(4), (12,), "expects images"),
        (Dense(3), (4, 4, 1), "put Flatten or a global pool before"),
        (MaxPool(4), (2, 2, 1), "use larger images"),
        (MaxPool(2, padding=2), (8, 8, 1), "padding may be at most half"),
        (Whitening(24), (8, 8, 1), "needs 8 filters for images of 1 channels"),
        (Residual(chain(flatten=Flatten())), (2, 2, 1), "give the shortcut a 1x1 convolution"),
    ):
        with pytest.raises(ShapeError, match=words):
            layer.specs(shape)  # type: ignore[attr-defined]


def test_wrong_names_and_options_are_explained() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'cpu'"):
        pick_backend("cpuu")
    with pytest.raises(DeviceError, match="threads must be 1 or more"):
        pick_backend("cpu", 0)
    with pytest.raises(UnknownNameError, match="did you mean 'relu'"):
        MODELS["plain"](activation="rellu").layers((8, 8, 3), 2)  # type: ignore[call-arg]
    with pytest.raises(RecipeError, match="model width"):
        MODELS["resnet9"](width=0).layers((8, 8, 3), 2)  # type: ignore[call-arg]
    with pytest.raises(RecipeError, match="model whiten_bias: expected a share from 0 to 1, found 3"):
        MODELS["airbench94"](whiten_bias=3.0).layers((8, 8, 3), 2)  # type: ignore[call-arg]
    with pytest.raises(RecipeError, match="model shift_lr_factor: expected a number above 0, found 0"):
        MODELS["airbench94"](shift_lr_factor=0.0).layers((8, 8, 3), 2)  # type: ignore[call-arg]


@pytest.mark.skipif(not why_unusable(), reason="this machine has a working GPU")
def test_auto_without_a_gpu_is_the_cpu() -> None:
    assert pick_backend("auto").name == "cpu"
    with pytest.raises(DeviceError, match=r"no usable GPU: .*; use --device cpu"):
        pick_backend("cuda")
