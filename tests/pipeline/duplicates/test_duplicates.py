"""Copies are found, named and told from other images; the same on every machine and for any number of workers."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.duplicates import find as duplicates
from pipeline.duplicates import neighbours
from pipeline.duplicates.find import find_duplicates
from pipeline.duplicates.fingerprint import COEFFICIENTS, FINGERPRINT_BYTES, fingerprint

Pixels = npt.NDArray[np.uint8]
SIZE = (72, 96)


def draw_image(seed: int, size: tuple[int, int] = SIZE) -> Pixels:
    """(h, w, 3) smooth noise in colour, with some boxes on it."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))  # (h, w, 3)
    for _ in range(6):
        top, left = int(draw.integers(size[0] - 12)), int(draw.integers(size[1] - 12))
        height, width = draw.integers(6, 30, 2).tolist()
        image[top : top + height, left : left + width] = draw.integers(0, 256, 3)
    return image


def prints_of(*image_folder: Pixels) -> npt.NDArray[np.uint8]:
    return np.stack([fingerprint(image) for image in image_folder])


def resized(image: Pixels, height: int, width: int) -> Pixels:
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def inverted(image: Pixels) -> Pixels:
    return 255 - image


def exchanged(image: Pixels) -> Pixels:
    return image[..., [2, 0, 1]]


def cropped(image: Pixels) -> Pixels:
    height, width = image.shape[:2]
    return image[round(0.05 * height) : round(0.98 * height), round(0.03 * width) : round(0.96 * width)]


COPIES: dict[str, Callable[[Pixels], Pixels]] = {
    "same": lambda image: resized(image, 48, 60),
    "flipped": lambda image: image[:, ::-1],
    "turned 90": lambda image: np.rot90(image, 3),  # NumPy counts the other way round
    "turned 180": lambda image: np.rot90(image, 2),
    "turned 270": np.rot90,
    "flipped, turned 90": lambda image: np.rot90(image[:, ::-1], 3),
    "flipped, turned 180": lambda image: image[::-1],
    "flipped, turned 270": lambda image: np.rot90(image[:, ::-1]),
    "inverted": inverted,
    "recoloured": exchanged,
    "cropped": cropped,
    "turned 90, cropped": lambda image: np.rot90(cropped(image), 3),
    "turned 270, cropped": lambda image: np.rot90(cropped(image)),
    "flipped, inverted, cropped, recoloured": lambda image: inverted(exchanged(cropped(image)))[:, ::-1],
}

OTHERS = [draw_image(seed) for seed in range(1000, 1030)]


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("copy_first", [False, True])
def test_a_copy_is_found_and_named(how: str, copy_first: bool) -> None:
    found = []
    for seed in range(2):
        pair = [draw_image(seed), COPIES[how](draw_image(seed))]
        copies = find_duplicates(prints_of(*(pair[::-1] if copy_first else pair), *OTHERS))
        assert copies.lead.tolist() == [0, 0, *range(2, 32)]
        assert copies.how[0] == "" and set(copies.how[2:]) == {""}
        found.append(copies.how[1])
    # Seen from the copy, the original is turned the other way. A mirror image's turn is its own opposite.
    expected = how
    if copy_first and not how.startswith("flipped"):
        expected = how.replace("turned 90", "-").replace("turned 270", "turned 90").replace("-", "turned 270")
    assert found == [expected] * 2


def test_greyscale_is_a_copy() -> None:
    image = draw_image(1)
    grey = np.array(Image.fromarray(image).convert("L").convert("RGB"))
    assert find_duplicates(prints_of(image, *OTHERS, grey)).lead[-1] == 0


def test_images_of_their_own_stay_alone() -> None:
    drawn = prints_of(*(draw_image(seed) for seed in range(400)))
    assert find_duplicates(drawn).lead.tolist() == list(range(400))


def test_the_group_is_named_by_its_first_image() -> None:
    image = draw_image(1)
    copies = find_duplicates(prints_of(OTHERS[0], cropped(image), OTHERS[1], image, np.rot90(image), image))
    assert copies.lead.tolist() == [0, 1, 2, 1, 1, 1]
    assert copies.how == ["", "", "", "cropped", "turned 270, cropped", "cropped"]


def test_the_same_for_any_workers_and_blocks_and_from_a_memory_map(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image_folder = [draw_image(seed) for seed in range(60)]
    prints = prints_of(*image_folder, *(cropped(image) for image in image_folder[:30]), *image_folder[30:50])
    expected = find_duplicates(prints)
    assert expected.lead.tolist() == [*range(60), *range(50)]
    path = tmp_path / "prints"
    prints.tofile(path)
    mapped = np.memmap(path, np.uint8, "r", shape=prints.shape)
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    monkeypatch.setattr(duplicates, "PAIRS", 5)
    for workers in (1, 3):
        seen: list[tuple[int, int]] = []
        copies = find_duplicates(mapped, workers, lambda done, total, seen=seen: seen.append((done, total)))  # type: ignore[misc]
        assert copies.lead.tolist() == expected.lead.tolist() and copies.how == expected.how
        assert seen == sorted(seen) and seen[-1] == (110, 110)


def test_cells_find_what_comparing_all_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    image_folder = [draw_image(seed) for seed in range(300)]
    prints = prints_of(*image_folder, *(COPIES["flipped, inverted, cropped, recoloured"](p) for p in image_folder))
    monkeypatch.setattr(neighbours, "ONE_CELL", 100)
    lead = find_duplicates(prints).lead
    assert lead[:300].tolist() == list(range(300))
    assert np.mean(lead[300:] == np.arange(300)) >= 0.98


# Images with little or nothing in them -----------------------------------------------------------------


def flat(*colour: int, size: tuple[int, int] = SIZE) -> Pixels:
    return np.full((*size, 3), colour, np.uint8)


def test_flat_images_are_copies_if_of_one_colour() -> None:
    image_folder = [flat(10, 200, 90), flat(12, 199, 90), flat(10, 200, 96), flat(245, 55, 165), flat(10, 200, 90)]
    copies = find_duplicates(prints_of(*image_folder))
    assert copies.lead.tolist() == [0, 0, 2, 3, 0]
    assert copies.how == ["", "same", "", "", "same"]


def test_flat_images_do_not_chain() -> None:
    lead = find_duplicates(prints_of(*(flat(level, level, level) for level in range(100, 130)))).lead
    assert np.bincount(lead).max() <= 3


def test_faint_noise_is_no_structure() -> None:
    draw = np.random.default_rng(0)
    image_folder = [flat(40 * n, 128, 255 - 40 * n) for n in range(6)]
    image_folder = [np.clip(p + draw.normal(0, 2, p.shape), 0, 255).astype(np.uint8) for p in image_folder]
    again = np.clip(flat(40, 128, 215) + draw.normal(0, 2, image_folder[1].shape), 0, 255).astype(np.uint8)
    assert find_duplicates(prints_of(*image_folder, again)).lead.tolist() == [*range(6), 1]


def test_faint_images_are_copies_only_in_their_colour() -> None:
    shape = (draw_image(1).mean(2, keepdims=True) - 128) / 25  # (h, w, 1) a few levels
    image_folder = [np.rint(level + shape).repeat(3, axis=2).astype(np.uint8) for level in (60, 64, 180)]
    assert find_duplicates(prints_of(*image_folder)).lead.tolist() == [0, 0, 2]


def test_gradients_are_not_all_alike() -> None:
    draw = np.random.default_rng(0)
    down, across = np.mgrid[0:72, 0:96] / 96
    image_folder = []
    for _ in range(60):
        angle = draw.uniform(0, 2 * np.pi)
        ramp = np.cos(angle) * across + np.sin(angle) * down  # (h, w)
        ramp = ((ramp - ramp.min()) / np.ptp(ramp))[..., None]
        ends = draw.uniform(0, 255, (2, 3))
        image_folder.append((ends[0] * ramp + ends[1] * (1 - ramp)).astype(np.uint8))
    assert find_duplicates(prints_of(*image_folder)).lead.tolist() == list(range(60))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (300, 5)])
def test_any_size_will_do(size: tuple[int, int]) -> None:
    image_folder = [draw_image(seed, (300, 300))[: size[0], : size[1]] for seed in range(3)]
    assert find_duplicates(prints_of(*image_folder)).lead.tolist() == [0, 1, 2]


def test_no_images_no_copies() -> None:
    copies = find_duplicates(np.empty((0, FINGERPRINT_BYTES), np.uint8))
    assert copies.lead.shape == (0,) and copies.how == []


def test_a_chain_of_links_is_not_one_group() -> None:
    middle = np.arange(40)
    middles = duplicates._join_linked(np.stack([np.arange(39), np.arange(1, 40)], axis=1), middle, duplicates.REACH)
    assert np.bincount(middle).max() <= 5
    assert set(middles) <= set(middle) and np.array_equal(middle[middle], middle)


def test_a_crowd_of_near_equals_is_one_group() -> None:
    # All are alike, but each has more neighbours than are looked at: those a little more like the one or the other.
    one, other = draw_image(1).astype(float), draw_image(2).astype(float)
    crowd = [np.rint(one + share * (other - one)).astype(np.uint8) for share in np.linspace(0, 0.25, 300)]
    assert find_duplicates(prints_of(*OTHERS, *crowd)).lead.tolist() == [*range(30), *[30] * 300]


# Fingerprints -------------------------------------------------------------------------------------------


def test_a_fingerprint_is_the_same_for_good() -> None:
    # Written down once, with one build of NumPy: another one, or another machine, must come to the same bytes.
    rows, columns = np.mgrid[0:90, 0:128]
    image = np.stack([rows * columns % 251, rows * 2, (rows - columns) ** 2 % 256], axis=2).astype(np.uint8)
    assert blake2b(fingerprint(image).tobytes(), digest_size=8).hexdigest() == "601c58670c47c35a"


def test_coefficients_change_as_matching_takes_them_to() -> None:
    image = draw_image(1)
    signs = (-1) ** np.arange(16)
    own, mirrored, turned, negative, mixed = (
        print_[:COEFFICIENTS].view(np.int8).reshape(2, 16, 16).astype(int)
        for print_ in prints_of(image, image[:, ::-1], image.swapaxes(0, 1), 255 - image, exchanged(image))
    )
    assert np.array_equal(mirrored, own * signs)
    assert np.array_equal(turned, own.swapaxes(1, 2))
    assert np.abs(negative + own).max() <= 1  # luma is rounded
    assert np.array_equal(mixed[1], own[1]) and not np.array_equal(mixed[0], own[0])


def test_brightness_leaves_coefficients_as_they_are() -> None:
    # About 2 levels, and a size without the symmetries that would let the rounding of the cosines cancel out.
    faint = np.rint((draw_image(1, (71, 97)).astype(float) - 128) / 30)  # (h, w, 3)
    dark, bright = (
        print_[:COEFFICIENTS].view(np.int8)
        for print_ in prints_of((faint + 10).astype(np.uint8), (faint + 240).astype(np.uint8))
    )
    assert dark.any() and np.array_equal(dark, bright)


def test_tall_images_are_summed_exactly_too() -> None:
    image = draw_image(1, (600, 20))
    tall, low = prints_of(image, resized(image, 200, 20))
    difference = tall[:COEFFICIENTS].view(np.int8).astype(int) - low[:COEFFICIENTS].view(np.int8)
    assert np.abs(difference).max() <= 4
