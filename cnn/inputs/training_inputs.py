"""A training batch's inputs and targets: augmentation, normalisation, MixUp and CutMix, on the host or the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from cnn.backends.base import Array, AugmentingBackend, AugmentNumbers, Backend
from cnn.inputs.augment import Augment, alternate_flips
from cnn.inputs.device_images import DeviceRows
from cnn.inputs.mixup import Mix
from cnn.inputs.preprocess import preprocess
from cnn.rng import key_of


class MicroBatch(NamedTuple):
    """Images of a training batch that go through the network together."""

    images: np.ndarray | DeviceRows  # uint8 (B, H, W, 3)
    labels: np.ndarray  # (B,): class indices
    rows: np.ndarray  # (B,): row numbers


class TrainingBatch(NamedTuple):
    """What the network and the loss take, on the device."""

    x: Array  # (B, H, W, 3)
    targets: Array  # class indices (B,) or soft labels (B, classes)
    rows: Array  # int64 (B,): row numbers


@dataclass(frozen=True)
class TrainingInputs:
    """Makes a training's batches, or their micro-batches; all random numbers are functions of (seed, step, row).

    mean, std  of the images' channels, (3,) each, on the device: see `normalisation`
    classes    number of classes
    """

    backend: Backend
    augment: Augment
    mix: Mix
    seed: int
    mean: Array
    std: Array
    classes: int

    def __call__(
        self, images: np.ndarray | DeviceRows, labels: np.ndarray, rows: np.ndarray, step: int, epoch: int
    ) -> TrainingBatch:
        """The batch of `step` in `epoch`, both counted from 0, from uint8 images (B, H, W, 3).

        `labels` are class indices (B,), `rows` the images' row numbers (B,).
        """
        return next(self.micro_batches([MicroBatch(images, labels, rows)], step, epoch))

    def micro_batches(self, parts: Sequence[MicroBatch], step: int, epoch: int) -> Iterator[TrainingBatch]:
        """Those of `step` in `epoch`, each when it is asked for; a device that augments gets all images at once.

        Images are blended with others of the same micro-batch; how, `Mix` decides for the whole step.
        """
        own_classes = type(self.augment) is Augment and type(self.mix) is Mix  # others have only the methods below
        if isinstance(self.backend, AugmentingBackend) and own_classes:
            return self._on_device(self.backend, parts, step, epoch)
        return (self._on_host(part, step, epoch) for part in parts)

    def _on_device(
        self, backend: AugmentingBackend, parts: Sequence[MicroBatch], step: int, epoch: int
    ) -> Iterator[TrainingBatch]:
        arrays: list[Array] = []  # row numbers, labels and pixels of each part
        for images, labels, rows in parts:
            pixels = images.pixels if isinstance(images, DeviceRows) else images  # (N, H, W, 3) or (B, H, W, 3)
            arrays += [rows.astype(np.int64, copy=False), labels.astype(np.int64, copy=False), pixels]
        arrays = self.backend.upload(*arrays)
        for i, part in enumerate(parts):
            rows, labels, pixels = arrays[3 * i : 3 * i + 3]  # (B,), (B,), (B, H, W, 3) or (N, H, W, 3)
            numbers = self.numbers(step, epoch, *part.images.shape[1:3])
            whole = isinstance(part.images, DeviceRows)
            x, targets = backend.augment(pixels, rows, labels, numbers, self.mean, self.std, whole)
            yield TrainingBatch(x, targets, rows)

    def _on_host(self, part: MicroBatch, step: int, epoch: int) -> TrainingBatch:
        images, labels, rows = part
        seed, backend, size = self.seed, self.backend, images.shape[1:3]
        maps = self.augment.maps(key_of(seed, "augment", step), rows, *size)
        if self.augment.flip == "alternate":
            maps = maps.mirrored(alternate_flips(key_of(seed, "flip"), rows, epoch))
        colours = self.augment.colours(key_of(seed, "colours", step), rows, self._host_mean, self._host_std)
        pixels = images.pixels[backend.asarray(rows)] if isinstance(images, DeviceRows) else images  # (B, H, W, 3)
        x = preprocess(backend, pixels, maps, self.mean, self.std, colours)  # (B, H, W, 3)
        blend = self.mix.draw(key_of(seed, "mix", step), rows, *size)
        if blend is None:
            return TrainingBatch(x, backend.asarray(labels), backend.asarray(rows))
        x = backend.blend(x, *map(backend.asarray, (blend.partners, blend.weights, blend.boxes)))  # (B, H, W, 3)
        return TrainingBatch(x, backend.asarray(blend.targets(labels, self.classes)), backend.asarray(rows))

    def numbers(self, step: int, epoch: int, height: int, width: int) -> AugmentNumbers:
        """What `Backend.augment` draws the random numbers of `step` from, the same as those on the host."""
        augment, mix, seed = self.augment, self.mix, self.seed
        key, mix_key, alternates = key_of(seed, "augment", step), key_of(seed, "mix", step), augment.flip == "alternate"
        return AugmentNumbers(
            key=key,
            crop_scale=augment.crop_scale,
            crop_stretch=augment.crop_stretch,
            shift=(round(augment.shift * height), round(augment.shift * width)),
            hole=(round(augment.cutout * height), round(augment.cutout * width)),
            flips=bool(augment.flip),
            flip_key=key_of(seed, "flip") if alternates else key,
            flips_low=alternates and epoch % 2 == 0,
            colour_key=key_of(seed, "colours", step),
            jitter=(augment.brightness, augment.contrast, augment.saturation),
            mix=mix.kind_of_step(mix_key),
            mix_key=mix.rows_key(mix_key),
            alpha=mix.alpha,
            classes=self.classes,
        )

    @cached_property
    def _host_mean(self) -> np.ndarray:
        return self.backend.to_host(self.mean)  # (3,)

    @cached_property
    def _host_std(self) -> np.ndarray:
        return self.backend.to_host(self.std)  # (3,)
