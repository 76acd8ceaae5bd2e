"""Synthetic images for the demo: flags of 18 invented pirate crews.

A flag depends only on (crew, seed, index): the images are the same in any order, with any number of workers, and when
drawing is interrupted and resumed.
"""

from __future__ import annotations

import signal
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from jobs.flags.emblems import EMBLEMS
from jobs.flags.scene import draw_scene

__all__ = ["CREWS", "draw_flag", "draw_flags"]

CREWS: tuple[str, ...] = tuple(sorted(EMBLEMS))

SIZE = 256  # pixels
QUALITY = (60, 96)  # of the JPEG files; the upper bound is exclusive
BATCH = 16  # flags per task of a worker


def draw_flag(crew: str, seed: int, index: int, size: int = SIZE) -> Image.Image:
    """Draw flag `index` of a crew, size x size, RGB. Another seed gives another set of flags."""
    return draw_scene(crew, _rng(crew, seed, index), size)


def draw_flags(root: Path, per_class: int, seed: int, on_progress: Callable[[int, int], None], workers: int) -> None:
    """Draw `per_class` flags of every crew into root/<crew>/<crew>-0000.jpg and so on.

    Existing flags of this seed are left as they are, flags of other seeds are replaced. A file gets its name only once
    it is complete. `on_progress(done, total)` is called in the caller's thread. Raises OSError.
    """
    for crew in CREWS:
        (root / crew).mkdir(parents=True, exist_ok=True)
    wanted = [(crew, index) for crew in CREWS for index in range(per_class)]
    missing = [(crew, index) for crew, index in wanted if not _is_drawn(root, crew, seed, index)]
    batches = [missing[start : start + BATCH] for start in range(0, len(missing), BATCH)]
    total, done = len(wanted), len(wanted) - len(missing)
    on_progress(done, total)
    if workers <= 1 or len(batches) <= 1:
        for batch in batches:
            done += _draw_batch(root, seed, batch)
            on_progress(done, total)
        return
    # Processes, since half of the work is Python that holds the GIL. Spawned, since forking a process with threads can
    # deadlock.
    with ProcessPoolExecutor(min(workers, len(batches)), get_context("spawn"), _ignore_interrupts) as pool:
        try:
            for drawn in as_completed([pool.submit(_draw_batch, root, seed, batch) for batch in batches]):
                done += drawn.result()
                on_progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _rng(crew: str, seed: int, index: int, purpose: int = 0) -> np.random.Generator:
    """The random numbers of one flag. Keyed by name, so that a new crew does not change the flags of others."""
    key = np.array([seed % 2**64, zlib.crc32(crew.encode())], dtype=np.uint64)  # (2,)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, index, purpose, 0]))


def _path(root: Path, crew: str, index: int) -> Path:
    return root / crew / f"{crew}-{index:04d}.jpg"


def _signature(crew: str, seed: int, index: int) -> bytes:
    """JPEG comment that identifies a flag."""
    return f"logpose flag 1: crew {crew}, seed {seed}, index {index}.".encode()


def _is_drawn(root: Path, crew: str, seed: int, index: int) -> bool:
    try:
        with _path(root, crew, index).open("rb") as file:
            return _signature(crew, seed, index) in file.read(256)  # the comment is in the header
    except FileNotFoundError:
        return False


def _draw_batch(root: Path, seed: int, batch: list[tuple[str, int]]) -> int:
    for crew, index in batch:
        path = _path(root, crew, index)
        unfinished = path.with_suffix(".part")  # not synced to disk: a lost flag is simply drawn again
        quality = int(_rng(crew, seed, index, purpose=1).integers(*QUALITY))
        try:
            draw_flag(crew, seed, index).save(
                unfinished, format="JPEG", quality=quality, comment=_signature(crew, seed, index)
            )
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    return len(batch)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process; only the main process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
