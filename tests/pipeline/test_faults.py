"""Faults of the system: never a verdict on a file, tried again, and an error with exit code 1 if they stay."""

from __future__ import annotations

import errno
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DecodeError, ListingError, ReadError
from pipeline.faults import PAUSES, fault_of_system
from pipeline.images import sources
from pipeline.images.decode import decode_image, decode_pixels
from pipeline.scan.class_folders import list_images
from tests.pipeline.conftest import draw_plain

OF_THE_SYSTEM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ENOTCONN)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.faults.PAUSES", (0,) * len(PAUSES))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "a.png"
    draw_plain(path, (1, 2, 3))
    return path


class Failing(io.FileIO):
    """A file whose first reads fail with `code`."""

    code, left = errno.EIO, 0

    def readall(self) -> bytes:
        if type(self).left:
            type(self).left -= 1
            raise OSError(self.code, os.strerror(self.code))
        return super().readall()


@pytest.fixture
def fail_reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """fail_reads(code, times): the next reads of a file fail."""

    def fail(code: int, times: int) -> None:
        monkeypatch.setattr(Failing, "code", code)
        monkeypatch.setattr(Failing, "left", times)
        monkeypatch.setattr("pipeline.images.sources.io.FileIO", Failing)

    return fail


@pytest.mark.parametrize("code", OF_THE_SYSTEM)
def test_passing_fault_costs_nothing(image: Path, fail_reads: Callable[[int, int], None], code: int) -> None:
    fail_reads(code, len(PAUSES))
    assert (decode_pixels(image, (2, 2), "squash") == (1, 2, 3)).all()
    assert Failing.left == 0


@pytest.mark.parametrize("code", OF_THE_SYSTEM)
def test_fault_that_stays_is_not_the_image_s(image: Path, fail_reads: Callable[[int, int], None], code: int) -> None:
    fail_reads(code, len(PAUSES) + 1)
    with pytest.raises(ReadError, match=rf"^expected to read {image}, found .*, and run the same command again$") as e:
        decode_pixels(image, (2, 2), "pad")
    assert e.value.exit_code == 1
    assert os.strerror(code).lower() in str(e.value)
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)


def test_memory_that_is_short_is_not_the_image_s(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(ReadError, match=r"found too little memory: use fewer --workers"):
        decode_pixels(image, (2, 2), "pad")


def test_fault_that_a_decoder_hides_is_found(tmp_path: Path, fail_reads: Callable[[int, int], None]) -> None:
    """A large file is decoded while it is read: where that fails, all of it is read once more."""
    path = tmp_path / "large.bmp"
    Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(path)
    with path.open("r+b") as file:
        file.truncate(5000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "MAX_SINGLE_READ", 100)
        with pytest.raises(DecodeError, match="broken"):
            decode_pixels(path, (2, 2), "pad")
        fail_reads(errno.EIO, 100)
        with pytest.raises(ReadError, match="input/output error"):
            decode_pixels(path, (2, 2), "pad")


def test_missing_file_is_a_failure_and_a_missing_folder_a_fault(image: Path) -> None:
    absent = FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert fault_of_system(absent, image.with_name("absent.png")) is None
    image.unlink()  # its folder is empty now, as the place of a drive that is not mounted
    assert "check that its drive is mounted" in str(fault_of_system(absent, image))
    image.parent.rmdir()
    assert isinstance(fault_of_system(absent, image), ReadError)


def test_link_to_a_drive_that_is_gone_is_a_fault(image: Path, tmp_path: Path) -> None:
    link = tmp_path / "links" / "a.png"
    link.parent.mkdir()
    link.symlink_to(image)
    image.parent.rename(tmp_path / "away")
    with pytest.raises(ReadError, match="check that its drive is mounted"):
        decode_pixels(link, (2, 2), "pad")
    with pytest.raises(DecodeError, match="unreadable: a link to nothing"):  # it was one when it was listed
        decode_image(link, (2, 2), "pad", unchanged=(-1, 0))


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG])
def test_rights_and_names_are_the_file_s(image: Path, code: int) -> None:
    assert fault_of_system(OSError(code, os.strerror(code)), image) is None


@pytest.mark.parametrize("call", ["stat", "scandir"])
@pytest.mark.parametrize("code", OF_THE_SYSTEM)
def test_listing_stops_at_a_fault_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    for name in "ab":
        draw_plain(tmp_path / name / "0.png", (0, 0, 0))
    real, failures = getattr(os, call), 1

    def fail(path: str | Path, **options: object) -> object:
        nonlocal failures
        if failures and str(path).rpartition("/")[2] in ("a", "0.png"):
            failures -= 1
            raise OSError(code, os.strerror(code), str(path))
        return real(path, **options)

    monkeypatch.setattr(os, call, fail)
    assert len(list_images(tmp_path).files) == 2, "it is tried again"
    failures = 100
    with pytest.raises(ReadError) as caught:
        list_images(tmp_path)
    assert not isinstance(caught.value, ListingError)
    assert caught.value.exit_code == 1
