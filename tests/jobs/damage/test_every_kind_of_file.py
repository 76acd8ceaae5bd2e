"""Every kind of file that logpose writes and reads again, damaged in every way: noticed, or without effect.

The job that reads the file fails in one line, or gives exactly the result it gives with whole files. Journals of builds
are in `tests/pipeline/build/test_journal_damage.py`, the cache of compiled kernels in `tests/common/test_kernels.py`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import logpose
from jobs.classification import inputs
from logpose.common.errors import LogposeError
from pipeline.dataset.verify import verify_dataset
from tests.jobs.conftest import CLASSES, RECIPE, draw_classes
from tests.jobs.damage.judging import is_accepted
from tests.pipeline.conftest import failing_after

HOW = ("bit", "cut", "emptied", "another", "folder", "pipe")
ARRAYS = ("", "images/", "labels/", "paths/")
DATASET = (
    "zarr.json", *(f"{split}/{array}zarr.json" for split in ("train", "val") for array in ARRAYS), "failures.csv",
    "duplicates.csv", "train/images/c/0/0/0/0", "val/images/c/0/0/0/0", "train/labels/c/0", "val/paths/c/0",
)  # fmt: skip
RUN = (
    "model.safetensors", "last.safetensors", "config.toml", "metrics.csv", "summary.json", "classes.csv", "curves.png",
    "confusion.png",
)  # fmt: skip
PARTS = ("fingerprint.json", "part-000000-", "part-000001-", ".out.csv.finished", "out.csv")


@pytest.fixture(autouse=True)
def _alarm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("pipeline.faults.PAUSES", ())
    monkeypatch.setattr(inputs, "FILES_PER_PART", 32)
    with failing_after(60):
        yield


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other images of the same names, with their dataset, training and table."""
    root = tmp_path_factory.mktemp("another")
    draw_classes(root / "images", 20, CLASSES[1:] + CLASSES[:1])
    (root / "images" / "red" / "000.png").write_bytes(b"")
    assert is_accepted("build", root / "images", root / "data.zarr", "--size", 16, "--val", 0.2)
    assert is_accepted("train", root / "data.zarr", root / "run", *RECIPE)
    return root


def damage(path: Path, how: str, other: Path) -> None:
    """Damage a file; `other` is a whole one of its kind."""
    content = path.read_bytes()
    middle = len(content) // 2
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    else:
        contents = {
            "bit": content[:middle] + bytes(byte ^ 4 for byte in content[middle : middle + 1]) + content[middle + 1 :],
            "cut": content[:middle],
            "emptied": b"",
            "another": other.read_bytes(),
        }
        path.write_bytes(contents[how])


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", DATASET)
def test_verification_finds_damage_of_a_dataset(
    dataset: Path, another: Path, tmp_path: Path, name: str, how: str
) -> None:
    data = Path(shutil.copytree(dataset, tmp_path / "data.zarr"))
    other = another / "data.zarr" / name
    if other.read_bytes() == (data / name).read_bytes() and how == "another":
        pytest.skip("is the same")
    damage(data / name, how, other)
    try:
        assert not verify_dataset(data).ok
    except (LogposeError, OSError) as error:
        assert "\n" not in str(error)
    assert not is_accepted("verify", data)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by name. last.safetensors holds times: a resume writes others."""
    names = {path.name for path in folder.iterdir()} - {"last.safetensors"}
    return {name: (folder / name).read_bytes() for name in sorted(names)}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", RUN)
def test_damage_of_a_training_is_refused_or_repaired(
    dataset: Path, trained: Path, another: Path, tmp_path: Path, name: str, how: str
) -> None:
    run_dir, page = Path(shutil.copytree(trained, tmp_path / "run")), tmp_path / "page.html"
    before = contents(run_dir)
    damage(run_dir / name, how, another / "run" / name)
    if name.endswith(".safetensors"):  # which all others are made from
        for arguments in (("info", run_dir), ("report", run_dir, "--out", page, "--device", "cpu")):
            if not (name.startswith("last") and how == "another"):  # a whole training, of another dataset
                assert not is_accepted(*arguments)
    else:
        assert is_accepted("info", run_dir), "which reads only these"
    with pytest.raises((LogposeError, OSError)) if name in ("summary.json", "last.safetensors") else failing_after():
        _ = logpose.load_run(run_dir).summary
    assert not is_accepted("train", another / "data.zarr", run_dir, "--resume") or how == "another"
    if is_accepted("train", dataset, run_dir, "--resume", "--device", "cpu"):
        assert contents(run_dir) == before and name != "last.safetensors"


class _Stop(Exception):
    pass


@pytest.fixture
def begun(image_folder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table whose first two of two parts are finished, in the folder of a complete one."""
    from jobs.classification.table import ResumableTable

    def stop(*_: object, **__: object) -> None:
        raise _Stop

    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="_Stop"):
        patch.setattr(ResumableTable, "finish", stop)
        is_accepted("classify", image_folder, trained, tmp_path / "out.csv")
    return tmp_path / "out.csv"


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", PARTS)
def test_damage_of_a_table_is_refused_or_repaired(
    image_folder: Path, trained: Path, another: Path, begun: Path, name: str, how: str
) -> None:
    command = ("classify", image_folder, trained, begun)
    whole, others = begun.with_name("whole.csv"), begun.with_name("others.csv")
    assert is_accepted(*command[:3], whole) and is_accepted("classify", image_folder, another / "run", others)
    if "out.csv" in name:
        assert is_accepted(*command)
        path, other = begun.with_name(name), begun.with_name(name.replace("out", "others"))
    else:
        (path,) = begun.with_name("out.csv.parts").glob(f"{name}*")
        other = others
    damage(path, how, other)
    if is_accepted(*command):
        assert begun.read_bytes() == whole.read_bytes()
    else:
        assert begun.exists() == (name in ("out.csv", ".out.csv.finished"))
        assert how in ("folder", "pipe") or is_accepted(*command, "--overwrite"), "what is no file is for the user"
