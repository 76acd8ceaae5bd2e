"""Images, a dataset and a model, made once in seconds and shared by the tests of the jobs."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main

CLASSES = ("blue", "green", "red")
# A network that trains in a second: the tests are about the jobs around it.
RECIPE = (
    *("--model", "plain", "--set", "model.width=4", "--batch-size", "8", "--epochs", "3"),
    *("--device", "cpu", "--workers", "2"),
)


@dataclass(frozen=True)
class Outcome:
    """Result of a command line."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The line on standard error. Asserts that it is a single one, with a remedy."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        what, mark, remedy = lines[0].removeprefix("error: ").rpartition("; " if "; " in lines[0] else ": ")
        assert (mark and what and remedy) or "(see 'logpose" in lines[0], f"no remedy: {self.err}"
        return lines[0]


Logpose = Callable[..., Outcome]


@pytest.fixture
def logpose(capsys: pytest.CaptureFixture[str]) -> Logpose:
    """Run a command line in this process, without a terminal."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def command(*arguments: object) -> list[str]:
    """Return the arguments of a new process in which warnings are errors."""
    return [sys.executable, "-W", "error", "-m", "logpose", *map(str, arguments)]


def run_process(*arguments: object, cwd: Path | None = None) -> Outcome:
    """Run a command line in a new process."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, cwd=cwd, check=False, timeout=120)
    return Outcome(done.returncode, done.stdout, done.stderr)


def draw_image(path: Path, channel: int, seed: int, side: int = 16) -> None:
    """Draw noise that is slightly stronger in one colour."""
    pixels = np.random.default_rng(seed).integers(0, 160, (side, side, 3), dtype=np.uint8)  # (H, W, 3)
    pixels[..., channel] += 60
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def draw_classes(root: Path, per_class: int, classes: Sequence[str] = CLASSES) -> Path:
    """Draw a folder of images per class."""
    for channel, name in enumerate(classes):
        for number in range(per_class):
            draw_image(root / name / f"{number:03}.png", channel % 3, 1000 * channel + number)
    return root


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_classes(tmp_path_factory.mktemp("images") / "colours", 20)


@pytest.fixture(scope="session")
def dataset(image_folder: Path) -> Path:
    path = image_folder.parent / "colours.zarr"
    assert main(["build", str(image_folder), str(path), "--size", "16", "--val", "0.2"]) == 0
    return path


@pytest.fixture(scope="session")
def trained(dataset: Path) -> Path:
    """A finished RUN_DIR. Read or copy it, do not change it."""
    run_dir = dataset.parent / "run"
    assert main(["train", str(dataset), str(run_dir), *RECIPE]) == 0
    return run_dir


@pytest.fixture
def model(trained: Path) -> Path:
    return trained / "model.safetensors"
