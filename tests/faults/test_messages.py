"""Messages that name the cause and the remedy, and limits of the system that are checked before work begins."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import zipfile
from pathlib import Path

import pytest

from cnn.arena import Arena, Spec
from cnn.backends.reference import ReferenceBackend
from cnn.errors import ShapeError
from cnn.initialise import he_normal
from jobs.cli import main
from jobs.console.interrupts import DeferredInterrupt
from jobs.errors import explain
from logpose.common import limits
from logpose.common.files import atomic_writer
from logpose.common.limits import AddressSpaceError, check_address_space
from pipeline.build.build import build_dataset
from pipeline.build.options import BuildOptions
from pipeline.errors import ListingError
from pipeline.scan.class_folders import list_images
from tests.pipeline.conftest import SIZE, colour_of, draw_plain


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(8):
        draw_plain(tmp_path / "images" / "ab"[number % 2] / f"{number}.png", colour_of(str(number)))
    return tmp_path / "images"


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The only line of a command that is refused."""
    assert main([str(each) for each in arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_folder_one_level_too_high_or_too_low(images: Path) -> None:
    (images.parent / "above" / "inner").mkdir(parents=True)
    shutil.copytree(images, images.parent / "above" / "inner", dirs_exist_ok=True)
    with pytest.raises(ListingError, match=r"found only folders in inner of .*above: give .*above/inner itself"):
        list_images(images.parent / "above")
    with pytest.raises(ListingError, match="or give the folder above if this is one class"):
        list_images(images / "a")
    shutil.rmtree(images / "b")
    with pytest.raises(ListingError, match=r"found only a in .*images: add another class"):
        list_images(images)


@pytest.mark.parametrize("option", ["--json", "-q", "--verbose"])
def test_option_before_the_command(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"write 'logpose COMMAND {option}'" in error_of(capsys, option, "build", "a", "b")


def test_names_of_a_glob_are_not_all_printed(capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, "classify", *(f"images/{number:05}.jpg" for number in range(1000)), "run", "out.csv")
    assert "give a folder of images, not each of its files" in message and len(message) < 300


def test_archive_and_foreign_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    assert "unpack it first" in error_of(capsys, "classify", tmp_path / "images.zip", "run", tmp_path / "out.csv")
    for ending in ("xlsx", "json"):
        message = error_of(capsys, "classify", tmp_path, "run", tmp_path / f"out.{ending}")
        assert f"ends in .csv or .parquet, found out.{ending}; give such a name, or --format csv" in message


def test_small_budget_is_compared_with_all_that_is_needed(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = images.parent / "d.zarr"
    build_dataset(images, dataset, BuildOptions(size=SIZE, val=0.25))
    message = error_of(capsys, "train", dataset, images.parent / "run", "--ram-budget", "1")
    assert "in batches of 64, found 1e-06 MB: raise --ram-budget" in message


def test_missing_validation_has_a_reason(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(images), str(images.parent / "d.zarr"), "--size", "8", "--val", "0"]) == 0
    assert "no images to validate: --val is 0, or too small" in capsys.readouterr().out


def test_network_too_large_for_any_array() -> None:
    spec = Spec("block.weight", (3, 3, 10**9, 10**9), he_normal)
    with pytest.raises(ShapeError, match=r"3×3×1000000000×1000000000 of them in block\.weight: choose a smaller model"):
        Arena([spec], ReferenceBackend())
    assert "function" not in repr(spec) and " at 0x" not in repr(spec)


def test_disk_error_without_a_name_gets_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught, atomic_writer(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a")


def test_first_interrupt_says_that_the_step_is_finished_first(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "isatty", lambda descriptor: True)
    with DeferredInterrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
    assert "press Ctrl-C again to stop at once" in capfd.readouterr().err


def test_address_space_is_checked_before_work_begins(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """LLVM ends the process where it gets no memory, without a word of the cause."""
    monkeypatch.setattr(limits, "available_cpus", lambda: 2)
    for limit in (resource.RLIM_INFINITY, 2**31):
        monkeypatch.setattr(resource, "getrlimit", lambda which, limit=limit: (limit, limit))
        check_address_space()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (600 * 10**6, 600 * 10**6))
    with pytest.raises(AddressSpaceError, match=r"at least 1,207 MB, found a limit of 600 MB: raise it with"):
        check_address_space()
    assert main(["build", str(images), str(images.parent / "d.zarr")]) == 1
    assert "found a limit of 600 MB" in capsys.readouterr().err
    assert not (images.parent / "d.zarr").exists()


def test_errors_of_the_system_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        Path("out.csv").absolute()
    assert explain(caught.value) == (
        "expected to start in a folder, found that the current one has been deleted; change to another", 2
    )  # fmt: skip
    with pytest.raises(OSError, match="too long") as too_long:
        (tmp_path / ("x" * 300)).stat()
    assert explain(too_long.value) == (f"file name too long at {tmp_path / ('x' * 300)}; choose a shorter one", 2)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic") as loop:
        (tmp_path / "loop").read_bytes()
    assert explain(loop.value)[0].endswith("loop; remove what is there, or choose another path")
