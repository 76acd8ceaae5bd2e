"""Duplicate search: finds near-duplicates and their transforms, without false positives, deterministically."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.duplicates import find, neighbours
from pipeline.duplicates.find import find_duplicates
from pipeline.duplicates.fingerprint import COEFFICIENTS, FINGERPRINT_BYTES, fingerprint

Pixels = npt.NDArray[np.uint8]
SIZE = (72, 96)


def draw_image(seed: int, size: tuple[int, int] = SIZE) -> Pixels:
    """Smooth noise in colour with some boxes on it, (h, w, 3)."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))  # (h, w, 3)
    for _ in range(6):
        top, left = int(draw.integers(size[0] - 12)), int(draw.integers(size[1] - 12))
        height, width = draw.integers(6, 30, 2).tolist()
        image[top : top + height, left : left + width] = draw.integers(0, 256, 3)
    return image


def prints_of(*images: Pixels) -> npt.NDArray[np.uint8]:
    """The fingerprints of the images, (n, FINGERPRINT_BYTES)."""
    return np.stack([fingerprint(image) for image in images])


def resized(image: Pixels, height: int, width: int) -> Pixels:
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def inverted(image: Pixels) -> Pixels:
    return 255 - image


def channels_permuted(image: Pixels) -> Pixels:
    return image[..., [2, 0, 1]]


def cropped(image: Pixels) -> Pixels:
    height, width = image.shape[:2]
    return image[round(0.05 * height) : round(0.98 * height), round(0.03 * width) : round(0.96 * width)]


TRANSFORMS: dict[str, Callable[[Pixels], Pixels]] = {
    "same": lambda image: resized(image, 48, 60),
    "flipped": lambda image: image[:, ::-1],
    "rotated 90": lambda image: np.rot90(image, 3),  # NumPy's angles are counter-clockwise
    "rotated 180": lambda image: np.rot90(image, 2),
    "rotated 270": np.rot90,
    "flipped, rotated 90": lambda image: np.rot90(image[:, ::-1], 3),
    "flipped, rotated 180": lambda image: image[::-1],
    "flipped, rotated 270": lambda image: np.rot90(image[:, ::-1]),
    "inverted": inverted,
    "recoloured": channels_permuted,
    "cropped": cropped,
    "rotated 90, cropped": lambda image: np.rot90(cropped(image), 3),
    "rotated 270, cropped": lambda image: np.rot90(cropped(image)),
    "flipped, inverted, cropped, recoloured": lambda image: inverted(channels_permuted(cropped(image)))[:, ::-1],
}

OTHERS = [draw_image(seed) for seed in range(1000, 1030)]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("original_last", [False, True])
def test_duplicate_is_found_and_its_transform_named(transform: str, original_last: bool) -> None:
    found = []
    for seed in range(2):
        pair = [draw_image(seed), TRANSFORMS[transform](draw_image(seed))]
        groups = find_duplicates(prints_of(*(pair[::-1] if original_last else pair), *OTHERS))
        assert groups.representative.tolist() == [0, 0, *range(2, 32)]
        assert groups.transforms[0] == "" and set(groups.transforms[2:]) == {""}
        found.append(groups.transforms[1])
    # The inverse of a quarter turn is the opposite one; with a flip, a quarter turn is its own inverse.
    expected = transform
    if original_last and not transform.startswith("flipped"):
        expected = transform.replace("rotated 90", "-").replace("rotated 270", "rotated 90").replace("-", "rotated 270")
    assert found == [expected] * 2


def test_greyscale_version_is_a_duplicate() -> None:
    image = draw_image(1)
    grey = np.array(Image.fromarray(image).convert("L").convert("RGB"))
    assert find_duplicates(prints_of(image, *OTHERS, grey)).representative[-1] == 0


def test_distinct_images_are_not_grouped() -> None:
    drawn = prints_of(*(draw_image(seed) for seed in range(400)))
    assert find_duplicates(drawn).representative.tolist() == list(range(400))


def test_transforms_are_relative_to_the_first_image_of_a_group() -> None:
    image = draw_image(1)
    groups = find_duplicates(prints_of(OTHERS[0], cropped(image), OTHERS[1], image, np.rot90(image), image))
    assert groups.representative.tolist() == [0, 1, 2, 1, 1, 1]
    assert groups.transforms == ["", "", "", "cropped", "rotated 270, cropped", "cropped"]


def test_result_is_the_same_for_any_workers_and_blocks_and_a_memory_map(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = [draw_image(seed) for seed in range(60)]
    prints = prints_of(*images, *(cropped(image) for image in images[:30]), *images[30:50])
    expected = find_duplicates(prints)
    assert expected.representative.tolist() == [*range(60), *range(50)]
    path = tmp_path / "prints"
    prints.tofile(path)
    mapped = np.memmap(path, np.uint8, "r", shape=prints.shape)
    monkeypatch.setattr(find, "BLOCK_IMAGES", 7)
    monkeypatch.setattr(find, "BLOCK_PAIRS", 5)
    for workers in (1, 3):
        seen: list[tuple[int, int]] = []
        groups = find_duplicates(mapped, workers, lambda done, total, seen=seen: seen.append((done, total)))  # type: ignore[misc]
        assert groups.representative.tolist() == expected.representative.tolist()
        assert groups.transforms == expected.transforms
        assert seen == sorted(seen) and seen[-1] == (110, 110)


def test_search_by_cells_finds_98_percent_of_an_exhaustive_search(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [draw_image(seed) for seed in range(300)]
    prints = prints_of(*images, *(TRANSFORMS["flipped, inverted, cropped, recoloured"](p) for p in images))
    monkeypatch.setattr(neighbours, "MAX_EXHAUSTIVE", 100)
    found = find_duplicates(prints).representative
    assert found[:300].tolist() == list(range(300))
    assert np.mean(found[300:] == np.arange(300)) >= 0.98


# Flat and low-texture images ----------------------------------------------------------------------------


def flat(*colour: int, size: tuple[int, int] = SIZE) -> Pixels:
    return np.full((*size, 3), colour, np.uint8)


def test_flat_images_are_duplicates_if_their_colours_agree() -> None:
    images = [flat(10, 200, 90), flat(12, 199, 90), flat(10, 200, 96), flat(245, 55, 165), flat(10, 200, 90)]
    groups = find_duplicates(prints_of(*images))
    assert groups.representative.tolist() == [0, 0, 2, 3, 0]
    assert groups.transforms == ["", "same", "", "", "same"]


def test_flat_images_do_not_form_chains() -> None:
    groups = find_duplicates(prints_of(*(flat(level, level, level) for level in range(100, 130))))
    assert np.bincount(groups.representative).max() <= 3


def test_faint_noise_does_not_count_as_structure() -> None:
    draw = np.random.default_rng(0)
    images = [flat(40 * n, 128, 255 - 40 * n) for n in range(6)]
    images = [np.clip(p + draw.normal(0, 2, p.shape), 0, 255).astype(np.uint8) for p in images]
    again = np.clip(flat(40, 128, 215) + draw.normal(0, 2, images[1].shape), 0, 255).astype(np.uint8)
    assert find_duplicates(prints_of(*images, again)).representative.tolist() == [*range(6), 1]


def test_low_contrast_images_must_agree_in_colour() -> None:
    shape = (draw_image(1).mean(2, keepdims=True) - 128) / 25  # (h, w, 1) a few levels
    images = [np.rint(level + shape).repeat(3, axis=2).astype(np.uint8) for level in (60, 64, 180)]
    assert find_duplicates(prints_of(*images)).representative.tolist() == [0, 0, 2]


def test_gradients_are_not_grouped() -> None:
    draw = np.random.default_rng(0)
    down, across = np.mgrid[0:72, 0:96] / 96
    images = []
    for _ in range(60):
        angle = draw.uniform(0, 2 * np.pi)
        ramp = np.cos(angle) * across + np.sin(angle) * down  # (h, w)
        ramp = ((ramp - ramp.min()) / np.ptp(ramp))[..., None]
        ends = draw.uniform(0, 255, (2, 3))
        images.append((ends[0] * ramp + ends[1] * (1 - ramp)).astype(np.uint8))
    assert find_duplicates(prints_of(*images)).representative.tolist() == list(range(60))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (300, 5)])
def test_any_size_is_accepted(size: tuple[int, int]) -> None:
    images = [draw_image(seed, (300, 300))[: size[0], : size[1]] for seed in range(3)]
    assert find_duplicates(prints_of(*images)).representative.tolist() == [0, 1, 2]


def test_no_images_give_no_groups() -> None:
    groups = find_duplicates(np.empty((0, FINGERPRINT_BYTES), np.uint8))
    assert groups.representative.shape == (0,) and groups.transforms == []


def test_chain_of_links_is_split_into_groups() -> None:
    centre = np.arange(40)
    centres = find._group_linked(np.stack([np.arange(39), np.arange(1, 40)], axis=1), centre, find.RADIUS)
    assert np.bincount(centre).max() <= 5
    assert set(centres) <= set(centre) and np.array_equal(centre[centre], centre)


def test_many_near_equal_images_are_one_group() -> None:
    # Each has more near-duplicates than MAX_CANDIDATES: its candidates are those nearest to it in the series.
    one, other = draw_image(1).astype(float), draw_image(2).astype(float)
    crowd = [np.rint(one + fraction * (other - one)).astype(np.uint8) for fraction in np.linspace(0, 0.25, 300)]
    assert find_duplicates(prints_of(*OTHERS, *crowd)).representative.tolist() == [*range(30), *[30] * 300]


# Fingerprints -------------------------------------------------------------------------------------------


def test_fingerprint_matches_the_recorded_bytes() -> None:
    # Recorded once; any other version of NumPy, or machine, must give the same bytes.
    rows, columns = np.mgrid[0:90, 0:128]
    image = np.stack([rows * columns % 251, rows * 2, (rows - columns) ** 2 % 256], axis=2).astype(np.uint8)
    assert blake2b(fingerprint(image).tobytes(), digest_size=8).hexdigest() == "601c58670c47c35a"


def test_coefficients_under_each_transform() -> None:
    image = draw_image(1)
    signs = (-1) ** np.arange(16)
    own, mirrored, transposed, negative, permuted = (
        print_[:COEFFICIENTS].view(np.int8).reshape(2, 16, 16).astype(int)
        for print_ in prints_of(image, image[:, ::-1], image.swapaxes(0, 1), 255 - image, channels_permuted(image))
    )
    assert np.array_equal(mirrored, own * signs)
    assert np.array_equal(transposed, own.swapaxes(1, 2))
    assert np.abs(negative + own).max() <= 1  # luma is rounded
    assert np.array_equal(permuted[1], own[1]) and not np.array_equal(permuted[0], own[0])


def test_brightness_does_not_change_coefficients() -> None:
    # About 2 levels, and a size without symmetries that would let the rounding errors of the cosines cancel.
    faint = np.rint((draw_image(1, (71, 97)).astype(float) - 128) / 30)  # (h, w, 3)
    dark, bright = (
        print_[:COEFFICIENTS].view(np.int8)
        for print_ in prints_of((faint + 10).astype(np.uint8), (faint + 240).astype(np.uint8))
    )
    assert dark.any() and np.array_equal(dark, bright)


def test_tall_images_are_summed_exactly() -> None:
    image = draw_image(1, (600, 20))
    tall, low = prints_of(image, resized(image, 200, 20))
    difference = tall[:COEFFICIENTS].view(np.int8).astype(int) - low[:COEFFICIENTS].view(np.int8)
    assert np.abs(difference).max() <= 4
