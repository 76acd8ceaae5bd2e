"""Training images in the memory of the device: the same training, and only where they fit.

The device is the CPU with the methods of one that augments images itself.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnn.backends.base import Array, AugmentNumbers
from cnn.backends.cpu import CpuBackend
from cnn.inputs.augment import alternate_flips, identity_maps
from cnn.inputs.preprocess import preprocess
from cnn.training.recipe import Recipe
from jobs.errors import JobError
from jobs.training import train as train_module
from jobs.training.device_cache import cached_stream, is_cached
from pipeline.dataset.store import Dataset, Split, shard_file
from pipeline.errors import DamageError
from tests.jobs.conftest import RECIPE, Logpose
from tests.jobs.training.runs import assert_same_weights, metrics_without_times


class Device(CpuBackend):
    """Flips at random, as the real one."""

    def __init__(self, free: int = 10**9) -> None:
        super().__init__(1)
        self.free, self.whole = free, set[bool]()

    def free_bytes(self) -> int:
        return self.free

    def prepare(self, *_: object, **__: object) -> None:
        """A GPU compiles as it goes."""

    def augment(
        self, images: Array, rows: Array, labels: Array, numbers: AugmentNumbers, mean: Array, std: Array,
        whole: bool = False,
    ) -> tuple[Array, Array]:
        self.whole.add(whole)
        pixels = images[rows] if whole else images
        maps = identity_maps(*pixels.shape[:3]).mirrored(alternate_flips(numbers.key, rows, 0))
        return preprocess(self, pixels, maps, mean, std), labels


def train(
    logpose: Logpose, monkeypatch: pytest.MonkeyPatch, device: Device, dataset: Path, run_dir: Path, *options: object
) -> Any:
    monkeypatch.setattr(train_module, "choose_backend", lambda *_: device)
    return logpose("train", dataset, run_dir, *RECIPE, *options)


def test_training_is_the_same_with_and_without_the_cache(
    logpose: Logpose, monkeypatch: pytest.MonkeyPatch, dataset: Path, tmp_path: Path
) -> None:
    for name, cached in (("none", False), ("device", True), ("auto", True)):
        device = Device()
        outcome = train(logpose, monkeypatch, device, dataset, tmp_path / name, "--cache", name)
        assert outcome.code == 0
        assert device.whole == {cached}
        assert ("kept in the GPU's memory" in outcome.out) == cached
        assert_same_weights(tmp_path / "none", tmp_path / name)
        assert metrics_without_times(tmp_path / "none") == metrics_without_times(tmp_path / name)


def test_training_is_the_same_where_augmentation_is_the_users_own(
    logpose: Logpose, monkeypatch: pytest.MonkeyPatch, dataset: Path, tmp_path: Path
) -> None:
    """Then the host draws the numbers, also for images on the device."""
    monkeypatch.setattr("cnn.inputs.training_inputs.Augment", type(None))
    for name in ("none", "device"):
        device = Device()
        assert train(logpose, monkeypatch, device, dataset, tmp_path / name, "--cache", name).code == 0
        assert not device.whole
    assert_same_weights(tmp_path / "none", tmp_path / "device")


def test_resumed_training_may_have_another_cache(
    logpose: Logpose, monkeypatch: pytest.MonkeyPatch, dataset: Path, tmp_path: Path
) -> None:
    for name, first, second in (("one", "none", "none"), ("other", "device", "none"), ("third", "none", "device")):
        run_dir = tmp_path / name
        assert train(logpose, monkeypatch, Device(), dataset, run_dir, "--epochs", 1, "--cache", first).code == 0
        again = ("--resume", "--epochs", 2, "--cache", second)
        assert train(logpose, monkeypatch, Device(), dataset, run_dir, *again).code == 0
        assert_same_weights(tmp_path / "one", run_dir)


def size_of(split: Split) -> int:
    return split.rows * split.size[0] * split.size[1] * 3


def test_auto_leaves_half_of_the_memory(dataset: Path) -> None:
    split = Dataset.open(dataset).train
    assert is_cached("auto", Device(2 * size_of(split)), split)
    assert not is_cached("auto", Device(2 * size_of(split) - 2), split)
    assert not is_cached("none", Device(), split)
    assert is_cached("device", Device(size_of(split)), split)


def test_refusals(dataset: Path) -> None:
    split = Dataset.open(dataset).train
    with pytest.raises(JobError, match=r"expected 0\.04 MB of free memory for the \d+ training images, found 0\.04 MB"):
        is_cached("device", Device(size_of(split) - 1), split)
    cpu = CpuBackend(1)
    assert not is_cached("auto", cpu, split) and not is_cached("none", cpu, split)
    with pytest.raises(JobError, match=r"expected a GPU of compute capability .* or newer, found cpu"):
        is_cached("device", cpu, split)


def test_refusal_on_the_command_line(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    outcome = logpose("train", dataset, tmp_path / "run", *RECIPE, "--cache", "device")
    assert outcome.code == 2
    assert outcome.error.startswith("error: --cache device: expected a GPU")
    assert not (tmp_path / "run").exists()


def test_images_are_copied_in_parts_and_checked(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    split, device = Dataset.open(dataset).train, Device()
    monkeypatch.setattr("jobs.training.device_cache._COPY_BYTES", 5 * size_of(split) // split.rows)
    stream = cached_stream(split, Recipe(batch_size=7), 2, device)
    expected = split.read(0, split.rows)
    for batch in stream.epoch(0):
        np.testing.assert_array_equal(batch.images.pixels, expected)  # type: ignore[attr-defined]
        assert batch.images.shape == (len(batch.rows), *expected.shape[1:])


def test_damaged_dataset(dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "copy.zarr"))
    file = shard_file(copy, "train", 0)
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 255
    file.write_bytes(bytes(data))
    with pytest.raises(DamageError):
        cached_stream(Dataset.open(copy).train, Recipe(batch_size=7), 2, Device())
