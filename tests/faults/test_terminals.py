"""Standard output and error: any encoding, closed, full, a closed pipe; names with control characters or odd bytes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.console.output import say, say_aside
from jobs.console.streams import encodable
from jobs.errors import OutputLostError
from pipeline.errors import DecodeError
from pipeline.images.decode import decode_image
from tests.pipeline.conftest import colour_of, draw_plain

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("terminals") / "images"
    for number in range(12):
        draw_plain(root / "ab"[number % 2] / f"{number}.png", colour_of(str(number)))
    (root / os.fsdecode(b"loose \xe9\x1b]0;title\x07\n")).write_bytes(b"no class")
    return root


def run(*arguments: object, encoding: str = "utf-8", redirect: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run a command in a process of its own, through a shell that redirects it."""
    words = [sys.executable, "-m", "logpose", *map(str, arguments)]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    return subprocess.run(["sh", "-c", f'"$@" {redirect}', "sh", *words], env=environment, capture_output=True)


@pytest.mark.parametrize("encoding", ["ascii", "cp437"])
def test_output_of_any_encoding(images: Path, tmp_path: Path, encoding: str) -> None:
    dataset = tmp_path / "d.zarr"
    for command in (("build", images, dataset, "--size", "8"), ("info", dataset, "--no-sheet")):
        done = run(*command, encoding=encoding)
        assert (done.returncode, done.stderr) == (0, b"")
    assert b"8x8 (pad)" in done.stdout


@pytest.mark.parametrize("redirect", ["<&- >&- 2>&-", "2>&-"])
def test_closed_streams(images: Path, tmp_path: Path, redirect: str) -> None:
    done = run("build", images, tmp_path / "d.zarr", "--size", "8", redirect=redirect)
    assert (done.returncode, done.stderr) == (0, b"")
    assert run("verify", tmp_path / "d.zarr").returncode == 0, "nothing was printed into a file of the dataset"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_full_output_of_help(option: str) -> None:
    done = run(option, redirect=">/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: expected to print, found no space left on device at standard output: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("option", ["--verbose", "--json"])
def test_full_output_is_not_blamed_on_the_dataset(images: Path, tmp_path: Path, option: str) -> None:
    done = run("build", images, tmp_path / "d.zarr", "--size", "8", option, redirect=">/dev/full")
    assert done.returncode == 1
    message = b"error: expected to print, found no space left on device at standard output: send it elsewhere"
    assert done.stderr.startswith(message) and done.stderr.count(b"\n") == 1
    assert run("build", images, tmp_path / "d.zarr", "--size", "8").returncode == 0


def test_closed_pipe_ends_the_job_without_a_word(images: Path, tmp_path: Path) -> None:
    done = run("build", images, tmp_path / "d.zarr", "--size", "8", redirect="| true; sleep 0.01")
    assert done.stderr == b""


def test_names_reach_the_terminal_escaped(images: Path, tmp_path: Path) -> None:
    """A finished build, run again, too."""
    for _ in range(2):
        done = run("build", images, tmp_path / "a\x1b[31m\n.zarr", "--size", "8")
        assert (done.returncode, done.stderr) == (0, b"")
        assert not set(done.stdout) & (set(range(32)) - {10})
        assert rb"loose \udce9\x1b]0;title\x07\x0a" in done.stdout
        assert rb"a\x1b[31m\x0a.zarr: 2 classes" in done.stdout


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\nb\r\x9b1m \udce9 ラフテル")
    say_aside("c\nd")
    assert capsys.readouterr() == ("a\nb\\x0d\\x9b1m \\udce9 ラフテル\n", "c\\x0ad\n")


def test_characters_that_a_stream_lacks() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "cp1251")
    assert encodable("16×16 … ж ラ", stream) == "16x16 ... ж \\u30e9"
    assert encodable("16×16 …", io.TextIOWrapper(io.BytesIO(), "utf-8")) == "16×16 …"


def test_no_stream_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    say("this is not read")
    say_aside("nor this")


def test_stream_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    with pytest.raises((OutputLostError, ValueError)):
        say("a")


def test_libtiff_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)  # (64, 64, 3)
    Image.fromarray(noise).save(tmp_path / "a.tif", compression="tiff_lzw")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[60:4000] = b"\xff" * 3940
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(DecodeError):
        decode_image(tmp_path / "a.tif", (8, 8), "pad")
    assert capfd.readouterr() == ("", "")
