"""The demo's flags: deterministic, distinct, and written as complete files."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

import jobs.flags
from jobs.flags import CREWS, draw_flag, draw_flags
from jobs.flags.emblems import stencil


def pixels(crew: str, seed: int, index: int, size: int = 64) -> NDArray[np.uint8]:
    return np.asarray(draw_flag(crew, seed, index, size))  # (size, size, 3)


def ignore_progress(done: int, total: int) -> None:
    pass


def test_crew_names_are_folder_names() -> None:
    assert len(CREWS) == 18
    assert list(CREWS) == sorted(set(CREWS))
    assert all(crew.replace("-", "").isalpha() and crew.islower() for crew in CREWS)


@pytest.mark.parametrize("crew", CREWS)
def test_flag_depends_only_on_crew_seed_and_index(crew: str) -> None:
    flag = pixels(crew, 1, 2)
    np.testing.assert_array_equal(flag, pixels(crew, 1, 2))
    assert not np.array_equal(flag, pixels(crew, 2, 2)), "another seed drew the same flag"
    assert not np.array_equal(flag, pixels(crew, 1, 3)), "another index drew the same flag"


def test_crews_have_different_random_numbers() -> None:
    """Otherwise flags with the same index would have the same background."""
    corners = {pixels(crew, 1, 0)[:8, :8].tobytes() for crew in CREWS}
    assert len(corners) == len(CREWS)


@pytest.mark.parametrize("size", [32, 64, 100, 256])
def test_flag_has_the_requested_size(size: int) -> None:
    flag = draw_flag(CREWS[0], 0, 0, size)
    assert flag.size == (size, size)
    assert flag.mode == "RGB"


def test_large_and_negative_seeds_differ() -> None:
    assert not np.array_equal(pixels(CREWS[0], -1, 0), pixels(CREWS[0], 2**63, 0))


def test_emblems_differ_even_when_flipped() -> None:
    """Flags are seen from both sides, and augmentation flips images: no emblem is the mirror image of another."""

    def coverage(image: Image.Image) -> NDArray[np.float64]:
        return np.asarray(image, dtype=np.float64) / 255  # (48, 48, 3)

    stencils = {crew: stencil(crew, 48) for crew in CREWS}
    for one, other in combinations(CREWS, 2):
        for seen in (stencils[other], ImageOps.mirror(stencils[other])):
            difference = np.abs(coverage(stencils[one]) - coverage(seen)).sum()
            inked = coverage(stencils[one]).sum()
            assert difference > 0.4 * inked, f"{one} and {other} differ in {difference / inked:.0%} of their ink"


@pytest.mark.parametrize("crew", CREWS)
def test_emblem_fits_its_stencil(crew: str) -> None:
    coverage = np.asarray(stencil(crew, 96))  # (96, 96, 3)
    rim = np.concatenate([coverage[0], coverage[-1], coverage[:, 0], coverage[:, -1]])  # (384, 3)
    assert not rim.any(), "ink at the edge"
    assert (coverage.sum(axis=2, dtype=np.int64) <= 258).all(), "more than one ink on a pixel"


@pytest.mark.parametrize("workers", [1, 2])
def test_files_do_not_depend_on_the_workers(tmp_path: Path, workers: int) -> None:
    seen: list[tuple[int, int]] = []
    draw_flags(tmp_path, 1, 7, lambda done, total: seen.append((done, total)), workers)

    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert names == [f"{crew}/{crew}-0000.jpg" for crew in CREWS]
    assert seen[0] == (0, 18)
    assert seen[-1] == (18, 18)
    assert seen == sorted(seen)
    for crew in CREWS:
        with Image.open(tmp_path / crew / f"{crew}-0000.jpg") as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (256, 256))
            lossy = np.asarray(image, dtype=np.float64)  # (256, 256, 3)
        assert np.abs(lossy - pixels(crew, 7, 0, 256)).mean() < 16


def test_rerun_draws_only_missing_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_flags(tmp_path, 1, 7, ignore_progress, 1)
    lost = tmp_path / CREWS[3] / f"{CREWS[3]}-0000.jpg"
    before = lost.read_bytes()
    lost.unlink()

    drawn: list[tuple[str, int, int]] = []

    def spy(crew: str, seed: int, index: int) -> Image.Image:
        drawn.append((crew, seed, index))
        return draw_flag(crew, seed, index)

    monkeypatch.setattr(jobs.flags, "draw_flag", spy)
    draw_flags(tmp_path, 1, 7, ignore_progress, 1)
    assert drawn == [(CREWS[3], 7, 0)]
    assert lost.read_bytes() == before

    draw_flags(tmp_path, 1, 7, ignore_progress, 1)
    assert len(drawn) == 1, "a complete folder was drawn again"


def test_flags_of_another_seed_are_replaced(tmp_path: Path) -> None:
    for seed in (7, 8):
        draw_flags(tmp_path / "twice", 1, seed, ignore_progress, 1)
    draw_flags(tmp_path / "once", 1, 8, ignore_progress, 1)
    for crew in CREWS:
        name = f"{crew}/{crew}-0000.jpg"
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()


def test_interruption_leaves_only_complete_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Image.Image.save

    def cut_off(image: Image.Image, path: Path, **options: object) -> None:
        if path.name.startswith(CREWS[2]):
            path.write_bytes(b"half an image")
            raise KeyboardInterrupt
        save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        draw_flags(tmp_path, 1, 7, ignore_progress, 1)
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == [f"{crew}-0000.jpg" for crew in CREWS[:2]]
