"""Commands, options, help and exit codes. Every error is one line with a remedy."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cnn.inference.tta import VIEWS
from jobs import cli
from jobs.commands.app import app
from jobs.options import ClassifyOptions, InfoOptions, TrainOptions, VerifyOptions
from logpose.__main__ import main as start
from pipeline.build.options import BuildOptions
from tests.jobs.conftest import Logpose, command, run_process

COMMANDS = ("build", "train", "recipes", "find-lr", "classify", "verify", "info", "report", "selftest", "demo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "error: no such command 'trian'. Did you mean 'train'? (see 'logpose --help')"),
        (["--verison"], "error: no such option: --verison; did you mean --version? (see 'logpose --help')"),
        (["train", "a", "b", "--modle", "x"], "no such option: --modle; did you mean --model? (see 'logpose train"),
        (["train", "a", "b", "c"], "unexpected extra argument"),
        (["train", "a", "b", "--epochs", "many"], "'--epochs': expected a whole number of 1 or more, found 'many'"),
        (["train", "a", "b", "--epochs=0"], "'--epochs': expected a whole number of 1 or more, found '0'"),
        (["train", "a", "b", "--epochs"], "'--epochs' requires an argument"),
        (["build", "a", "b", "--fit", "stretch"], "'--fit': expected pad, crop or squash, found 'stretch' (see"),
        (["build", "a", "b", "--size", "big"], "--size big: expected a number or WIDTHxHEIGHT, such as 128"),
        (["build", "a", "b", "--max-failures", "few"], "--max-failures few: expected a count such as 5"),
        (["build"], "missing argument IMAGES; 'logpose build --help' shows an example"),
        (["train", "a"], "missing argument RUN_DIR; 'logpose train --help' shows an example"),
        (["classify", "a", "b"], "missing argument OUT.csv; 'logpose classify --help' shows an example"),
        (["train", "a", "b", "--checkpoint-steps", "0"], "invalid value for '--checkpoint-steps'"),
        (["train", "a", "b", "--ram-budget", "1XB"], "--ram-budget 1XB: expected a size above 0, such as 256MB"),
        (["classify", "a", "b", "c", "--threshold", "1.5"], "invalid value for '--threshold'"),
        (["classify", "a", "b", "c", "--format", "xlsx"], "'--format': expected csv or parquet, found 'xlsx' (see"),
        (["build", "a", "b", "--workers", "1e9"], "'--workers': expected a whole number from 1 to 1,024, found '1e9'"),
        (["build", "a", "b", "--val", ""], "expected a value, found an empty argument; check the variable that it"),
        (["build", "a", "b", "--val="], "'--val': expected a number from 0 to 1, found '' (see"),
        (["build", "a", "b", "--max-failures="], "--max-failures : expected a count such as 5, or a percentage"),
        (["verify"], "missing argument DATASET.zarr; 'logpose verify --help' shows an example"),
        (["info", "a", "-q", "--json"], "--quiet and --json contradict each other; give one of them"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(logpose: Logpose, arguments: list[str], message: str) -> None:
    outcome = logpose(*arguments)
    assert outcome.code == 2
    assert message in outcome.error
    assert outcome.out == ""


def test_error_names_no_more_of_a_long_text_than_fits(logpose: Logpose) -> None:
    outcome = logpose("info", "x" * 100_000)
    assert outcome.code == 2
    assert len(outcome.error) < 2100
    assert outcome.error.endswith("; choose a shorter one")


def test_process_exit_code_and_message(tmp_path: Path) -> None:
    outcome = run_process("train", "nothing.zarr", "run", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    assert "found nothing at nothing.zarr" in outcome.error


# Help ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns_and_has_an_example(logpose: Logpose, name: str) -> None:
    outcome = logpose(name, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"Example: logpose {name}" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert "\n  -h, --help     Show this message and exit.\n" in outcome.out
    assert logpose(name, "-h").out == outcome.out


def test_help_lists_the_commands(logpose: Logpose) -> None:
    outcome = logpose()
    assert outcome.code == 0
    assert all(f"\n  {name}" in outcome.out for name in COMMANDS)
    assert logpose("-h").out == outcome.out
    assert logpose("--version").out.startswith("logpose 0.")


def test_help_groups_the_options(logpose: Logpose) -> None:
    headings = [line for line in logpose("build", "-h").out.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings == ["Arguments:", "Images:", "Split:", "Options:", "Common options:"]


def test_help_imports_no_heavy_library() -> None:
    script = "import sys; from jobs.cli import main; main(['train', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"numpy", "dask", "numba", "matplotlib", "zarr"} & set(done.stdout.split())


def test_shell_completion_is_installable_and_light(logpose: Logpose) -> None:
    assert "--install-completion" in logpose("--help").out
    script = "import atexit, sys; from jobs.cli import main; atexit.register(lambda: print(*sys.modules)); main(['x'])"
    environment = {**os.environ, "_LOGPOSE_COMPLETE": "complete_bash", "COMP_WORDS": "logpose tr", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    suggestion, modules = done.stdout.splitlines()
    assert suggestion == "train"
    assert not {"numpy", "dask", "numba", "matplotlib", "zarr", "rich"} & set(modules.split())


# Options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "arguments", "options"),
    [
        ("datasets.build.build", ["build", "a", "b"], BuildOptions()),
        (
            "datasets.build.build",
            ["build", "a", "b", "--size", "30x20", "--fit", "crop", "--max-failures", "5%", "--no-group-copies"],
            BuildOptions(size=(20, 30), fit="crop", max_failures=0.05, group_copies=False),
        ),
        ("classification.classify.classify", ["classify", "a", "b", "c"], ClassifyOptions()),
        (
            "classification.classify.classify",
            [
                *("classify", "a", "b", "c", "--topk", "2", "--threshold", "0.5", "--format", "parquet", "--views"),
                *("mirror", "--spreadsheet-safe", "--batch-size", "8", "--model", "my.module:Net", "--overwrite"),
            ],
            ClassifyOptions(2, 0.5, "parquet", True, True, "mirror", 8, "my.module:Net"),
        ),
        ("training.train.train", ["train", "a", "b"], TrainOptions()),
        (
            "training.train.train",
            [
                *("train", "a", "b", "--set", "x.y=1", "--set", "z.w=2", "--lr", "0.1", "--ram-budget", "1GiB"),
                *("--checkpoint-steps", "7", "--resume", "--config", "c.toml"),
            ],
            TrainOptions(
                set=("x.y=1", "z.w=2"), lr=0.1, ram_budget=2**30, checkpoint_steps=7, resume=True, config=Path("c.toml")
            ),
        ),
        ("datasets.info.info", ["info", "a", "--shuffle", "--no-sheet"], InfoOptions(no_sheet=True, shuffle=True)),
    ],
)
def test_options_reach_the_job(
    logpose: Logpose, monkeypatch: pytest.MonkeyPatch, job: str, arguments: list[str], options: object
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(f"jobs.{job}", lambda *given: calls.append(given))
    outcome = logpose(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    paths = [Path(name) for name in ("a", "b", "c") if name in arguments]
    assert calls == [(*paths, options)]


def test_recipe_values_are_the_given_options() -> None:
    options = TrainOptions(model="plain", lr=0.1, patience=0, config=Path("c.toml"), set=("a.b=1",))
    assert options.recipe_values() == {"model.name": "plain", "optimizer.lr": 0.1, "train.patience": 0}


def test_every_command_has_a_name_in_the_list() -> None:
    names = [each.callback.__name__.replace("_", "-") for each in app.registered_commands if each.callback]
    assert sorted(names) == sorted(COMMANDS)


def test_views_option_equals_the_registry(logpose: Logpose) -> None:
    assert "|".join(VIEWS) in logpose("classify", "--help").out


# Errors -------------------------------------------------------------------------------------------------


def raise_in_verify(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(dataset: Path, options: VerifyOptions) -> int:
        raise error

    monkeypatch.setattr("jobs.datasets.verify.verify", verify)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/disk/x"), 1, "no space left on device at /disk/x; make"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "permission denied at x; check the permissions"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 2, "no such file at x; check the path"),
        (OSError(errno.EIO, "Input/output error"), 1, "input/output error; check the disk"),
        (MemoryError(), 1, "out of memory; use a smaller --batch-size"),
        (ZeroDivisionError("a\nb"), 1, "this is a bug: ZeroDivisionError: a\\x0ab; set LOGPOSE_DEBUG=1"),
    ],
)
def test_exceptions_are_one_line(
    logpose: Logpose, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, message: str
) -> None:
    raise_in_verify(error, monkeypatch)
    for options in ([], ["--quiet"], ["--json"]):
        outcome = logpose("verify", "x", *options)
        assert (outcome.code, outcome.out) == (code, "")
        assert message in outcome.error


def test_ctrl_c_exits_with_130(logpose: Logpose, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_in_verify(KeyboardInterrupt(), monkeypatch)
    outcome = logpose("verify", "x")
    assert (outcome.code, outcome.err) == (130, "interrupted: run the same command again to resume\n")


def test_closed_pipe_is_silent(dataset: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command("verify", dataset), stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_newline_in_a_path_is_escaped(logpose: Logpose) -> None:
    assert "at no\\x0awhere: check the path" in logpose("verify", "no\nwhere").error


def test_main_reads_the_arguments_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["logpose", "--version"])
    assert cli.main() == 0


@pytest.mark.parametrize(
    "where", [("jobs.commands.app", "local_path"), ("logpose.own_packages", "prefer_own_packages")]
)
def test_interrupt_before_a_job_begins_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: tuple[str, str]
) -> None:
    """While the command line is read, and while the rest is imported."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[where[0]], where[1], interrupt)
    assert start(["info", "a.zarr"]) == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to resume\n"
