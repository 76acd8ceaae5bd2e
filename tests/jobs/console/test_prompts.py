"""Questions on a terminal."""

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.console.prompts import _path_completion
from tests.jobs.conftest import command, draw_classes


class Terminal:
    """A command line in a pseudo-terminal."""

    def __init__(self, process: subprocess.Popen[bytes], end: int) -> None:
        self.process, self.end, self.text = process, end, ""

    def wait_for(self, words: str, seconds: float = 300) -> None:
        """Read until `words` appear."""
        limit = time.monotonic() + seconds
        while words not in self.text:
            assert time.monotonic() < limit, f"no {words!r} in {self.text!r}"
            if not select.select([self.end], [], [], 0.2)[0]:
                continue
            try:
                self.text += os.read(self.end, 4096).decode()
            except OSError:  # the process has closed its end
                assert words in self.text, self.text
                return

    def answer(self, question: str, text: str) -> None:
        self.wait_for(question)
        self.text = ""
        os.write(self.end, f"{text}\n".encode())

    def finish(self) -> int:
        """Read to the end; return the exit code."""
        while True:
            try:
                data = os.read(self.end, 4096)
            except OSError:
                break
            if not data:
                break
            self.text += data.decode()
        return self.process.wait(60)


@contextmanager
def terminal(cwd: Path, *arguments: object) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        command(*arguments), stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=environment, close_fds=True
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_build_asks_for_missing_arguments_and_shows_a_bar(tmp_path: Path) -> None:
    draw_classes(tmp_path / "colours", 4)
    with terminal(tmp_path, "build", "--size", "16") as console:
        console.answer("Folder of images, one folder per class inside: ", "colors")
        console.answer("There is nothing at colors.", "colours")
        console.answer("Dataset to write [colours.zarr]: ", "")
        assert console.finish() == 0
    assert "\x1b[" in console.text  # the bar
    assert "colours.zarr: 3 classes, 9 images to train on, 3 to validate" in console.text
    assert "next: logpose train colours.zarr runs/colours" in console.text


def test_tab_completes_a_path(tmp_path: Path) -> None:
    draw_classes(tmp_path / "my colours", 4)
    with terminal(tmp_path, "build", "--size", "16") as console:
        console.wait_for("Folder of images, one folder per class inside: ")
        os.write(console.end, b"my c\t\n")
        console.answer("Dataset to write [my colours.zarr]: ", "")
        assert console.finish() == 0


def test_train_asks_to_continue_an_existing_training(tmp_path: Path, dataset: Path, trained: Path) -> None:
    with terminal(tmp_path, "train", dataset, trained) as console:
        console.answer("Continue, or start from scratch? (continue / scratch) [continue]: ", "c")
        assert console.finish() == 0
    assert "is finished (3 epochs" in console.text


def test_train_asks_for_a_model_until_there_is_one(tmp_path: Path, dataset: Path, trained: Path) -> None:
    with terminal(tmp_path, "train", "--epochs", "1", "--batch-size", "8") as console:
        console.answer("Dataset to train on: ", str(tmp_path))
        console.answer("There is no dataset at", str(dataset))
        console.answer("Folder for the results [runs/colours]: ", "")
        console.answer("Train from scratch, or start from a saved model? (scratch / model) [scratch]: ", "x")
        console.answer("Please answer scratch or model.", "model")
        console.answer("Model to start from: ", "nothing.safetensors")
        console.answer("There is no model file at nothing.safetensors.", str(trained))
        assert console.finish() == 0
    assert "starting from" in console.text


def test_ctrl_d_stops(tmp_path: Path) -> None:
    with terminal(tmp_path, "verify") as console:
        console.answer("Dataset to check: ", "\x04")
        assert console.finish() == 130
    assert "interrupted: nothing was started" in console.text


def test_classify_asks_for_an_unused_name(tmp_path: Path, image_folder: Path, trained: Path) -> None:
    (tmp_path / "mine.csv").touch()
    with terminal(tmp_path, "classify", image_folder, trained) as console:
        console.answer("Table to write [colours.csv]: ", "mine.csv")
        console.answer("There is already something at mine.csv.", "")
        assert console.finish() == 0
    assert "60 images classified: colours.csv" in console.text


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_quiet_and_json_ask_nothing(tmp_path: Path, option: str) -> None:
    with terminal(tmp_path, "verify", option) as console:
        assert console.finish() == 2
    assert "missing argument DATASET.zarr" in console.text


def test_path_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flags").mkdir()
    (tmp_path / "flags" / "a b.png").touch()
    for name in ("flat.csv", ".hidden"):
        (tmp_path / name).touch()

    def completions(start: str) -> list[str]:
        found: list[str] = []
        while (path := _path_completion(start, len(found))) is not None:
            found.append(path)
        return found

    assert completions("fl") == ["flags/", "flat.csv"]
    assert completions("") == ["flags/", "flat.csv"]
    assert completions(".h") == [".hidden"]
    assert completions("flags/") == ["flags/a b.png"]
    assert completions(f"{tmp_path}/flags/a") == [f"{tmp_path}/flags/a b.png"]
    assert completions("nowhere/x") == []
