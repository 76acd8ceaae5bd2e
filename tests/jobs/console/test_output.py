"""--quiet, --verbose and --json of every command."""

import io
import json
from pathlib import Path

import pytest

from jobs.console.output import Verbosity, detail, emit, fit, say, verbosity, verbosity_of
from tests.jobs.conftest import CLASSES, RECIPE, Logpose


def test_each_level_prints_its_lines_only(capsys: pytest.CaptureFixture[str]) -> None:
    for level, expected in (
        (Verbosity.JSON, '{"a": 2}\n'),
        (Verbosity.QUIET, ""),
        (Verbosity.NORMAL, "line\n"),
        (Verbosity.VERBOSE, "line\nmore\n"),
    ):
        with verbosity_of(level):
            say("line")
            detail("more")
            emit({"a": 1})
            emit({"a": 2})
        assert capsys.readouterr().out == expected
    assert verbosity() is Verbosity.NORMAL


def test_lone_surrogates_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    say("caf\udce9")
    assert capsys.readouterr().out == "caf\\udce9\n"


def test_json_holds_paths_and_numpy_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    numpy = pytest.importorskip("numpy")
    with verbosity_of(Verbosity.JSON):
        emit({"path": Path("a\udcff"), "number": numpy.float32(0.5), "count": numpy.int64(3)})
    assert json.loads(capsys.readouterr().out) == {"path": "a\\udcff", "number": 0.5, "count": 3}


def test_no_result_after_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), verbosity_of(Verbosity.JSON):
        emit({"a": 1})
        raise ValueError("broken")
    assert capsys.readouterr().out == ""
    assert verbosity() is Verbosity.NORMAL


FIND_LR = ("--model", "plain", "--set", "model.width=4", "--batch-size", "8", "--steps", "30", "--device", "cpu")


def arguments_of(name: str, images: Path, dataset: Path, trained: Path, folder: Path) -> tuple[object, ...]:
    return {
        "build": ("build", images, folder / "d.zarr", "--size", 8),
        "info": ("info", dataset, "--no-sheet"),
        "verify": ("verify", dataset),
        "train": ("train", dataset, folder / "run", *RECIPE),
        "find-lr": ("find-lr", dataset, *FIND_LR),
        "classify": ("classify", images, trained, folder / "out.csv"),
        "report": ("report", trained, "--out", folder / "report.html"),
        "recipes": ("recipes",),
    }[name]


@pytest.mark.parametrize("name", ["build", "info", "verify", "train", "find-lr", "classify", "report", "recipes"])
def test_quiet_prints_nothing_and_json_one_object(
    logpose: Logpose, name: str, image_folder: Path, dataset: Path, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "quiet").mkdir()
    quiet = logpose(*arguments_of(name, image_folder, dataset, trained, tmp_path / "quiet"), "-q")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    (tmp_path / "json").mkdir()
    outcome = logpose(*arguments_of(name, image_folder, dataset, trained, tmp_path / "json"), "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.count("\n") == 1
    assert isinstance(json.loads(outcome.out), dict)


def test_json_results(logpose: Logpose, image_folder: Path, dataset: Path, trained: Path, tmp_path: Path) -> None:
    def result(name: str) -> dict[str, object]:
        found = json.loads(logpose(*arguments_of(name, image_folder, dataset, trained, tmp_path), "--json").out)
        assert isinstance(found, dict)
        return found

    built = result("build")
    assert (built["classes"], built["train"], built["val"], built["unreadable"]) == (list(CLASSES), 54, 6, 0)
    assert result("info")["classes"] == {name: {"train": 16, "val": 4} for name in CLASSES}
    assert (result("verify")["ok"], result("verify")["damaged"]) == (True, [])
    assert result("classify") == {
        "table": str(tmp_path / "out.csv"),
        "ok": 60,
        "failed": 0,
        "model": str(trained / "model.safetensors"),
        "classes": 3,
    }


def test_verbose_prints_more(logpose: Logpose, image_folder: Path, tmp_path: Path) -> None:
    outcome = logpose("build", image_folder, tmp_path / "d.zarr", "--size", 8, "-v")
    assert f"classes: {', '.join(CLASSES)}" in outcome.out.splitlines()
    assert "classes: " not in logpose("build", image_folder, tmp_path / "e.zarr", "--size", 8).out


@pytest.mark.parametrize("name", ["train", "find-lr", "classify", "report"])
def test_missing_gpu_is_reported_with_verbose_only(
    logpose: Logpose, name: str, image_folder: Path, dataset: Path, trained: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for module in ("cnn.backends.gpu", "jobs.console.device"):
        monkeypatch.setattr(f"{module}.why_unusable", lambda: "CuPy is not installed")
    arguments = arguments_of(name, image_folder, dataset, trained, tmp_path)
    again = () if name == "find-lr" else ("--out", tmp_path / "b.html") if name == "report" else ("--overwrite",)
    usual = logpose(*arguments, "--device", "auto")
    assert usual.code == 0 and "CuPy" not in usual.out
    assert "no GPU: CuPy is not installed\n" in logpose(*arguments, *again, "--device", "auto", "-v").out
    assert "CuPy is not installed" in logpose(*arguments, *again, "--device", "cuda").error


@pytest.mark.parametrize("name", ["build", "info", "verify", "train", "find-lr", "classify", "report", "recipes"])
def test_lines_fit_80_columns(
    logpose: Logpose, name: str, image_folder: Path, dataset: Path, trained: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for link, target in (("images", image_folder), ("d.zarr", dataset), ("run", trained)):
        Path(link).symlink_to(target)
    Path("out").mkdir()
    arguments = arguments_of(name, Path("images"), Path("d.zarr"), Path("run"), Path("out"))
    outcome = logpose(*arguments, *(["--recipe", "best"] if name in ("train", "find-lr") else []), "-v")
    unlimited = (str(tmp_path.parent), "logpose train")  # paths, and commands to copy
    lines = [line for line in outcome.out.splitlines() if not any(text in line for text in unlimited)]
    assert outcome.code == 0 and lines
    assert [line for line in lines if len(line) > 80 or "\\x" in line] == []


def test_build_names_the_next_command(logpose: Logpose, image_folder: Path, tmp_path: Path) -> None:
    outcome = logpose("build", image_folder, tmp_path / "my flags.zarr", "--size", 8)
    assert outcome.out.splitlines()[-1] == f"next: logpose train '{tmp_path}/my flags.zarr' 'runs/my flags'"


# Terminals ----------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")


@pytest.mark.usefixtures("narrow")
def test_terminal_lines_wrap_at_spaces() -> None:
    text = "  near-duplicates: 118 images in 51 groups; each in one split\nshort"
    assert fit(text, Terminal()) == (
        "  near-duplicates: 118 images in 51\n    groups; each in one split\nshort"
    )  # fmt: skip
    assert fit(text, io.StringIO()) == text


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    "whole",
    ["logpose train 'my flags.zarr' runs/flags --resume", "'logpose train --help' and more", '"pip install numpy"'],
)
def test_terminal_keeps_commands_and_quoted_text_whole(whole: str) -> None:
    quoted = whole if whole.startswith("logpose") else whole[: whole.rindex(whole[0]) + 1]
    assert quoted in fit(f"interrupted: saved after 25 steps; resume with: {whole}", Terminal())


@pytest.mark.usefixtures("narrow")
def test_recipes_are_printed_as_they_are(logpose: Logpose, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = logpose("recipes", "best").out
    monkeypatch.setattr("jobs.console.output.fit", lambda text, stream: "wrapped")
    assert logpose("recipes", "best").out == expected
