"""Files of the user, and finished work of another process: no job replaces them; a finished job run again says so."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cnn.checkpoint import load_checkpoint
from jobs.training import train as module
from pipeline.build import build as build_module
from tests.jobs.conftest import RECIPE, Logpose, draw_image

NAMES = ("config.toml", "metrics.csv", "summary.json", "report.html", "classes.csv", "curves.png", "model.safetensors")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("names", [NAMES, ("config.toml",), ("holiday.jpg",), ("last.safetensors",)])
@pytest.mark.parametrize("option", ["", "--overwrite", "--resume"])
def test_folder_of_other_files_is_no_run_folder(
    logpose: Logpose, dataset: Path, tmp_path: Path, names: tuple[str, ...], option: str
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in names:
        (mine / name).write_text(f"my own {name}")
    before = contents(mine)
    outcome = logpose("train", dataset, mine, *RECIPE, *filter(None, [option]))
    assert outcome.code == 2
    assert "holds no training but other files" in outcome.error
    assert contents(mine) == before and [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_empty_folder_and_hidden_files_are_no_obstacle(logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / ".gitkeep").touch()
    assert logpose("train", dataset, tmp_path, *RECIPE, "--epochs", 1).code == 0
    assert logpose("train", dataset, tmp_path, *RECIPE, "--epochs", 1, "--seed", 1, "--overwrite").code == 0


@pytest.mark.parametrize("job", ["verify", "report", "find-lr", "info"])
def test_reports_replace_only_themselves(
    logpose: Logpose, dataset: Path, trained: Path, tmp_path: Path, job: str
) -> None:
    option, name, arguments = {
        "verify": ("--report", "note.csv", ("verify", dataset)),
        "report": ("--out", "page.html", ("report", trained, "--device", "cpu")),
        "find-lr": ("--plot", "plot.png", ("find-lr", dataset, *RECIPE[:6], "--steps", 20)),
        "info": ("--sheet", "sheet.png", ("info", dataset)),
    }[job]
    out = tmp_path / name
    out.write_text("precious")
    outcome = logpose(*arguments, option, out)
    assert outcome.code == 2 and out.read_text() == "precious"
    assert f"{out} exists and is not a" in outcome.error
    out.unlink()
    for _ in range(2):
        code = logpose(*arguments, option, out).code
        assert code == 0 or (job == "find-lr" and code == 1)  # which may find no rate here
    pipe = out.with_stem("pipe")
    os.mkfifo(pipe)
    assert "found a pipe at" in logpose(*arguments, option, pipe).error
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["null", "full"])
def test_devices_are_not_replaced(logpose: Logpose, image_folder: Path, model: Path, name: str) -> None:
    outcome = logpose("classify", image_folder, model, f"/dev/{name}", "--overwrite")
    assert outcome.code == 2 and f"found a device at /dev/{name}; give the name of a file" in outcome.error
    assert Path(f"/dev/{name}").is_char_device()


@pytest.mark.parametrize(
    "arguments",
    [("build", "{images}", "s3://b/d.zarr"), ("train", "{data}", "s3://b/run"), ("classify", "{images}", "{model}",
      "s3://b/out.csv"), ("classify", "s3://b/images", "{model}", "out.csv"), ("verify", "{data}", "--report", "s3://b")],
)  # fmt: skip
def test_urls_make_nothing(
    logpose: Logpose, dataset: Path, image_folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = logpose(*(each.format(images=image_folder, data=dataset, model=model) for each in arguments))
    assert outcome.code == 2 and "expected a path on this machine, found the URL s3://b" in outcome.error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("job", ["build", "train", "classify"])
def test_empty_arguments_are_refused(
    logpose: Logpose, dataset: Path, image_folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    job: str,
) -> None:
    """Of a variable that is not set; Path("") is the current folder."""
    monkeypatch.chdir(tmp_path)
    arguments = {"build": (image_folder,), "train": (dataset,), "classify": (image_folder, model)}[job]
    assert "found an empty argument; check the variable" in logpose(job, *arguments, "").error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("run/table.csv", "a model file"),  # by its content
        ("run/metrics.csv", "a file of a training"),
        ("d.zarr/failures.csv", "a dataset"),
        ("link.csv", "a file of a training"),
    ],
)
def test_table_replaces_no_file_of_another_job(
    logpose: Logpose, image_folder: Path, dataset: Path, trained: Path, tmp_path: Path, name: str, found: str
) -> None:
    run_dir = Path(shutil.copytree(trained, tmp_path / "run"))
    shutil.copytree(dataset, tmp_path / "d.zarr")
    shutil.copy(run_dir / "model.safetensors", run_dir / "table.csv")
    (tmp_path / "link.csv").symlink_to(run_dir / "classes.csv")
    out = tmp_path / name
    before = out.read_bytes()
    outcome = logpose("classify", image_folder, run_dir, out, "--overwrite")
    assert outcome.code == 2 and out.read_bytes() == before
    assert f"expected a place for the table, found {found} at" in outcome.error


@pytest.mark.parametrize("name", ["model.safetensors", "photo.JPG", "photo.png"])
def test_table_has_no_name_of_something_else(
    logpose: Logpose, image_folder: Path, model: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("precious")
    outcome = logpose("classify", image_folder, model, tmp_path / name, "--overwrite")
    assert outcome.code == 2 and (tmp_path / name).read_text() == "precious"
    assert f"expected a table that ends in .csv or .parquet, found {name}" in outcome.error


# Decisions under the lock -------------------------------------------------------------------------------


def test_training_that_gets_the_lock_late_does_not_replace_another(
    logpose: Logpose, dataset: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one begins after the first look at the folder, and is finished when the lock is free."""
    run_dir, lock = tmp_path / "run", module.output_lock

    @contextmanager
    def late(path: Path, what: str) -> Iterator[None]:
        shutil.copytree(trained, run_dir)
        with lock(path, what):
            yield

    monkeypatch.setattr(module, "output_lock", late)
    outcome = logpose("train", dataset, run_dir, *RECIPE, "--seed", 7)
    assert outcome.code == 2 and "holds a training; add --resume" in outcome.error
    assert contents(run_dir) == contents(trained)


def test_build_that_gets_the_lock_late_does_not_write_into_another_folder(
    logpose: Logpose, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, lock = tmp_path / "d.zarr", build_module.exclusive_lock

    @contextmanager
    def late(path: Path, what: str) -> Iterator[None]:
        (data / "mine.txt").write_text("mine")
        with lock(path, what):
            yield

    monkeypatch.setattr(build_module, "exclusive_lock", late)
    outcome = logpose("build", image_folder, data, "--size", 8)
    assert outcome.code == 2 and "found a folder of something else" in outcome.error
    assert [path.name for path in data.iterdir()] == ["mine.txt"]


# Run again ----------------------------------------------------------------------------------------------


def test_finished_jobs_run_again_say_so_and_change_nothing(
    logpose: Logpose, image_folder: Path, tmp_path: Path
) -> None:
    data, run_dir, table = tmp_path / "d.zarr", tmp_path / "run", tmp_path / "out.csv"
    jobs = [
        (("build", image_folder, data, "--size", 16), "already complete"),
        (("train", data, run_dir, *RECIPE, "--epochs", 1), "is finished (1 epoch)"),
        (("classify", image_folder, run_dir, table), "out.csv, already complete"),
    ]
    for arguments, _ in jobs:
        assert logpose(*arguments).code == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    for arguments, message in jobs:
        outcome = logpose(*arguments)
        assert (outcome.code, outcome.err) == (0, "") and message in outcome.out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    # Anything else is another job.
    assert logpose("train", data, run_dir, *RECIPE, "--epochs", 2).code == 2
    assert logpose("classify", image_folder, run_dir, table, "--topk", 2).code == 2


def test_table_is_not_complete_once_files_have_changed(
    logpose: Logpose, image_folder: Path, model: Path, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(image_folder, tmp_path / "images"))
    arguments = ("classify", images, model, tmp_path / "out.csv")
    assert logpose(*arguments).code == 0
    draw_image(images / "one more.png", 0, 777)
    outcome = logpose(*arguments)
    assert outcome.code == 2 and "already exists; give --overwrite" in outcome.error
    assert {path.name for path in tmp_path.iterdir()} == {"images", "out.csv", ".out.csv.finished"}


# Results that are damaged -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES[:3], *NAMES[4:], "confusion.png"])
@pytest.mark.parametrize("how", ["missing", "changed"])
def test_damaged_results_of_a_finished_training_are_made_again(
    logpose: Logpose, dataset: Path, trained: Path, tmp_path: Path, name: str, how: str
) -> None:
    run_dir = Path(shutil.copytree(trained, tmp_path / "run"))
    before = contents(run_dir)
    best = load_checkpoint(run_dir / "model.safetensors").progress["epoch"]
    if how == "missing":
        (run_dir / name).unlink()
    else:
        (run_dir / name).write_bytes(before[name][:-3] + bytes([before[name][-3] ^ 1]) + before[name][-2:])
    outcome = logpose("train", dataset, run_dir, *RECIPE)
    assert outcome.code == 2 and "holds a training; add --resume" in outcome.error
    outcome = logpose("train", dataset, run_dir, "--resume", "--device", "cpu")
    if name == "model.safetensors" and best != 3:  # the weights of the best epoch are lost
        assert outcome.code == 2 and "model.safetensors" in outcome.error
        return
    assert (outcome.code, outcome.err) == (0, "")
    assert f"note     missing or damaged, and made again: {name}" in outcome.out
    after = contents(run_dir)
    del before["last.safetensors"], after["last.safetensors"]
    assert after == before
