"""Augmentation on the GPU: the numbers and images of the host path."""

from typing import Any

import numpy as np
import pytest

from cnn.backends.base import AugmentNumbers
from cnn.backends.gpu import preprocess
from cnn.backends.reference import ReferenceBackend
from cnn.inputs.augment import Augment
from cnn.inputs.mixup import Mix
from cnn.inputs.training_inputs import TrainingInputs
from cnn.rng import key_of, uniform

pytestmark = pytest.mark.usefixtures("device")
REFERENCE = ReferenceBackend()
MEAN, STD = np.array([110.0, 120.0, 130.0]), np.array([60.0, 61.0, 62.0])
CLASSES = 5
OFF = {"flip": False, "crop_scale": 1.0}
JITTER = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.8}
EVERYTHING = Augment(True, 0.2, 0.3, 1.5, 0.5, **JITTER)
OPTIONS = [
    (Augment(**OFF), Mix()),
    (Augment(True, 0.0, 1.0), Mix()),
    (Augment("alternate", 0.25, 1.0), Mix("mixup")),
    (Augment(**OFF, cutout=0.4), Mix("cutmix")),
    (Augment(**OFF, **JITTER), Mix("either", alpha=0.3)),
    (Augment(crop_scale=0.2, crop_stretch=2.0), Mix("cutmix", alpha=0.4)),
    (EVERYTHING, Mix("mixup", alpha=0.2)),
    (EVERYTHING, Mix("cutmix")),
]
SIZES = [(1, 1), (2, 1), (5, 7), (16, 12)]
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "uint16": 5e-3}


def to_device(array: np.ndarray) -> Any:
    import cupy

    return cupy.asarray(array)


def to_host(array: Any) -> np.ndarray:
    import cupy

    return cupy.asnumpy(array)


def inputs_of(augment: Augment, mix: Mix, dtype: Any = np.float64) -> TrainingInputs:
    return TrainingInputs(REFERENCE, augment, mix, 3, MEAN.astype(dtype), STD.astype(dtype), CLASSES)


def batch(size: tuple[int, int], count: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (B, H, W, 3), labels (B,) and row numbers (B,)."""
    generator = np.random.default_rng(size[0])
    images = generator.integers(0, 256, (count, *size, 3), np.uint8)
    return images, generator.integers(0, CLASSES, count), generator.permutation(1000)[:count]


def to_float(x: Any) -> np.ndarray:
    """Device array as float64; uint16 holds the upper halves of float32 numbers."""
    values = to_host(x)
    return (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64) if x.dtype == np.uint16 else values


def check(found: Any, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    error = np.linalg.norm(to_float(found) - expected) / max(np.linalg.norm(expected), 1e-30)
    assert error < TOLERANCE[str(found.dtype)]


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The padded arrays (N, H, W, P) of all outputs."""
    made: list[Any] = []
    padded = preprocess._padded
    monkeypatch.setattr(preprocess, "_padded", lambda *arguments: made.append(padded(*arguments)) or made[-1])
    return made


def check_padding(buffers: list[Any]) -> None:
    """Pixels are padded with zeros to 16 or 32 bytes."""
    for buffer in buffers:
        assert buffer.shape[3] == {"float64": 4, "float32": 4, "uint16": 8}[str(buffer.dtype)]
        assert not to_host(buffer)[..., 3:].any()


def on_device(
    inputs: TrainingInputs, size: tuple[int, int], dtype: Any, step: int = 1, epoch: int = 0, whole: bool = False
) -> tuple[Any, Any]:
    images, labels, rows = batch(size)
    wide = np.float64 if dtype == np.float64 else np.float32
    if whole:
        dataset = np.zeros((1000, *size, 3), np.uint8)
        dataset[rows] = images
        images = dataset
    arrays = [to_device(array) for array in (images, rows, labels)]
    mean, std = to_device(MEAN.astype(wide)), to_device(STD.astype(wide))
    numbers = inputs.numbers(step, epoch, *size)
    return preprocess.augment(*arrays, numbers, mean, std, np.dtype(dtype), whole)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("augment", "mix"), OPTIONS)
def test_augment_is_the_host_path(augment: Augment, mix: Mix, size: tuple[int, int]) -> None:
    inputs = inputs_of(augment, mix)
    for step, epoch in ((1, 0), (2, 1)):
        x, targets = on_device(inputs, size, np.float64, step, epoch)
        expected = inputs(*batch(size), step, epoch)
        check(x, expected.x)
        if expected.targets.ndim == 1:
            np.testing.assert_array_equal(to_host(targets), expected.targets)
        else:
            assert targets.dtype == np.float32
            np.testing.assert_allclose(to_host(targets), expected.targets, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint16])
@pytest.mark.parametrize("whole", [False, True])
def test_augment_in_every_type(dtype: Any, whole: bool, buffers: list[Any]) -> None:
    inputs = inputs_of(EVERYTHING, Mix("mixup"))
    x, _ = on_device(inputs, (9, 11), dtype, whole=whole)
    assert x.dtype == dtype
    check_padding(buffers)
    check(x, inputs(*batch((9, 11)), 1, 0).x)


def test_images_of_the_whole_dataset_give_the_same_bits() -> None:
    inputs = inputs_of(EVERYTHING, Mix("cutmix"), np.float32)
    for own, other in zip(
        on_device(inputs, (9, 11), np.float32), on_device(inputs, (9, 11), np.float32, whole=True), strict=True
    ):
        np.testing.assert_array_equal(to_host(own), to_host(other))


def test_large_images_take_several_blocks() -> None:
    inputs = inputs_of(EVERYTHING, Mix("mixup"), np.float32)
    x, _ = on_device(inputs, (13, 90), np.float32)
    check(x, inputs(*batch((13, 90)), 1, 0).x)


def plans_of(numbers: AugmentNumbers, rows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    mean, std = to_device(MEAN), to_device(STD)
    plans = preprocess.plan(to_device(rows), numbers, *size, mean, std, np.dtype(np.float64))
    return to_host(plans).view(preprocess.PLAN)[:, 0]


def test_numbers_of_many_images_are_those_of_the_host() -> None:
    """Whole numbers exactly, the others up to rounding."""
    rows, size = np.concatenate([np.arange(300), [2**40, 2**62]]), (33, 57)
    inputs = inputs_of(EVERYTHING, Mix("cutmix"))
    numbers = inputs.numbers(4, 0, *size)
    plans = plans_of(numbers, rows, size)
    maps = EVERYTHING.maps(numbers.key, rows, *size)
    np.testing.assert_array_equal(plans["hole"], maps.holes)
    np.testing.assert_array_equal(plans["mirrored"], (maps.xs[:, 0] > maps.xs[:, -1]).astype(int))
    colours = EVERYTHING.colours(numbers.colour_key, rows, MEAN, STD)
    np.testing.assert_allclose(plans["colours"].reshape(-1, 3, 4), colours, rtol=1e-5, atol=1e-6)
    blend = inputs.mix.draw(_mix_key(inputs), rows, *size)
    assert blend is not None
    np.testing.assert_array_equal(plans["box"], blend.boxes)
    np.testing.assert_array_equal(plans["own_label"], blend.label_weights)
    assert not plans["own"].any()


def test_draws_are_exactly_those_of_the_host() -> None:
    """Of a crop without stretch, whose position and size are exact functions of three draws."""
    rows, size = np.concatenate([np.arange(500), [2**31, 2**40, 2**63 - 1]]), (33, 57)
    numbers = inputs_of(Augment(False, 0.0, 0.3, crop_stretch=1.0), Mix()).numbers(9, 0, *size)
    draws = uniform(numbers.key, rows, 9).astype(np.float64)
    plans = plans_of(numbers, rows, size)
    side = np.sqrt(0.3 + 0.7 * draws[:, 3])  # (N,)
    for axis in range(2):
        np.testing.assert_array_equal(plans["scale"][:, axis], side)
        np.testing.assert_array_equal(plans["start"][:, axis], draws[:, 5 + axis] * (1 - side) * size[axis])


def _mix_key(inputs: TrainingInputs) -> int:
    return key_of(inputs.seed, "mix", 4)


def test_shifts_and_flips_are_exactly_those_of_the_host() -> None:
    """Without a crop all positions are whole numbers."""
    rows, size = np.arange(200), (9, 31)
    for augment, epoch in ((Augment(True, 0.3, 1.0), 0), (Augment("alternate", 0.3, 1.0), 1)):
        inputs = inputs_of(augment, Mix())
        ramp = np.zeros((200, *size, 3), np.uint8)
        ramp[..., 0], ramp[..., 1] = np.arange(9)[:, None], np.arange(31)
        arrays = [to_device(array) for array in (ramp, rows, rows % CLASSES, np.zeros(3), np.ones(3))]
        images, row_numbers, labels, mean, std = arrays
        x, _ = preprocess.augment(
            images, row_numbers, labels, inputs.numbers(2, epoch, *size), mean, std, np.dtype(np.float64)
        )
        own = TrainingInputs(REFERENCE, augment, Mix(), 3, np.zeros(3), np.ones(3), CLASSES)
        np.testing.assert_array_equal(to_host(x), own(ramp, rows % CLASSES, rows, 2, epoch).x)


@pytest.mark.parametrize("size", [(1, 1), (6, 5)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint16])
def test_resample_and_blend(dtype: Any, size: tuple[int, int], buffers: list[Any]) -> None:
    images, _, rows = batch(size)
    wide = np.float64 if dtype == np.float64 else np.float32
    maps = EVERYTHING.maps(1, rows, *size)
    ys = np.concatenate([maps.ys, maps.ys[:, :1]], axis=1)  # (B, H + 1): the output has another size
    holes = np.array([[0, 1, 0, 1], [2, 9, 1, 3], [0, 0, 0, 0], [3, 4, 2, 9], [0, 9, 0, 9], [5, 6, 4, 5]])  # (6, 4)
    blend = Mix("cutmix").draw(5, rows, size[0] + 1, size[1])
    assert blend is not None
    weights = np.linspace(0, 1, len(rows)).astype(np.float32)  # (B,)
    for colours in (None, EVERYTHING.colours(2, rows, MEAN, STD)):
        for given in (None, holes):
            arrays = (images, ys, maps.xs, given, MEAN.astype(wide), STD.astype(wide), colours)
            moved = [None if array is None else to_device(array) for array in arrays]
            x = preprocess.resample(*moved, np.dtype(dtype))
            expected = REFERENCE.resample(images, ys, maps.xs, given, MEAN, STD, colours)
            assert x.dtype == dtype
            check(x, expected)
            mixed = preprocess.blend(x, *map(to_device, (blend.partners, weights, blend.boxes)))
            check(mixed, REFERENCE.blend(expected, blend.partners, weights, blend.boxes))
    check_padding(buffers)


@pytest.mark.parametrize("mix", [Mix(), Mix("mixup")])
def test_no_images(mix: Mix) -> None:
    inputs = inputs_of(EVERYTHING, mix)
    images, rows = to_device(np.zeros((0, 4, 4, 3), np.uint8)), to_device(np.zeros(0, np.int64))
    mean, std = to_device(MEAN), to_device(STD)
    x, targets = preprocess.augment(images, rows, rows, inputs.numbers(0, 0, 4, 4), mean, std, np.dtype(np.float64))
    assert x.shape == (0, 4, 4, 3) and len(targets) == 0
