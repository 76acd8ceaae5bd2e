"""Arguments, questions and exit codes. Whatever goes wrong is one line with a remedy."""

import errno
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cnn.inference.tta import VIEWS
from jobs import cli
from jobs.commands.options import Views
from jobs.console.sizes import parse_bytes
from jobs.errors import JobError
from tests.jobs.conftest import Logpose, command, draw_classes, run_process

COMMANDS = ("build", "train", "recipes", "find-lr", "classify", "verify", "info", "report", "demo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "error: no such command 'trian'. Did you mean 'train'? (see 'logpose --help')"),
        (["--verison"], "error: no such option: --verison; did you mean --version? (see 'logpose --help')"),
        (["train", "a", "b", "--modle", "x"], "no such option: --modle; did you mean --model? (see 'logpose train"),
        (["train", "a", "b", "c"], "unexpected extra argument"),
        (["train", "a", "b", "--epochs", "many"], "invalid value for '--epochs'"),
        (["train", "a", "b", "--epochs", "0"], "invalid value for '--epochs'"),
        (["train", "a", "b", "--epochs"], "'--epochs' requires an argument"),
        (["build", "a", "b", "--fit", "stretch"], "'stretch' is not one of 'pad', 'crop', 'squash'"),
        (["build", "a", "b", "--size", "big"], "--size big: expected a number or WIDTHxHEIGHT, such as 128"),
        (["build", "a", "b", "--max-failures", "few"], "--max-failures few: expected a count such as 5"),
        (["build"], "missing argument IMAGES; 'logpose build --help' shows an example"),
        (["train", "a"], "missing argument RUN_DIR; 'logpose train --help' shows an example"),
        (["classify", "a", "b"], "missing argument OUT.csv; 'logpose classify --help' shows an example"),
        (["train", "a", "b", "--checkpoint-steps", "0"], "invalid value for '--checkpoint-steps'"),
        (["train", "a", "b", "--ram-budget", "1XB"], "--ram-budget 1XB: expected a size above 0, such as 256MB"),
        (["classify", "a", "b", "c", "--threshold", "1.5"], "invalid value for '--threshold'"),
        (["classify", "a", "b", "c", "--format", "xlsx"], "'xlsx' is not one of 'csv', 'parquet'"),
        (["verify"], "missing argument DATASET.zarr; 'logpose verify --help' shows an example"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(logpose: Logpose, arguments: list[str], message: str) -> None:
    outcome = logpose(*arguments)
    assert outcome.code == 2
    assert message in outcome.error
    assert outcome.out == ""


def test_a_process_of_its_own_says_the_same(tmp_path: Path) -> None:
    outcome = run_process("train", "nothing.zarr", "run", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    assert "found nothing at nothing.zarr" in outcome.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(logpose: Logpose, name: str) -> None:
    outcome = logpose(name, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"Example: logpose {name}" in outcome.out


def test_help_without_arguments_and_version(logpose: Logpose) -> None:
    outcome = logpose()
    assert outcome.code == 0
    assert all(f"  {name} " in outcome.out for name in COMMANDS)
    assert logpose("--version").out.startswith("logpose 0.")


def test_help_comes_at_once() -> None:
    """No timed assertion: what takes the time is what is imported."""
    script = "import sys; from jobs.cli import main; main(['train', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"numpy", "dask", "numba", "matplotlib", "zarr"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("300000000", 300_000_000),
        ("256MB", 256_000_000),
        ("1.5GiB", 1_610_612_736),
        ("0.29kB", 290),
        ("1 mib", 2**20),
        (" 2TB ", 2 * 10**12),
        ("7b", 7),
        ("1.9", 1),
    ],
)
def test_sizes_in_memory(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "MB", "-1MB", "0", "0.4", "1e9", "inf", "nan", "5XB", "1..5GB", "1GB2", "٣MB", "9" * 5000]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(JobError, match=f"--memory {text}: expected a size above 0"):
        parse_bytes(text, "--memory")


def test_options_reach_their_jobs(logpose: Logpose, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command hands on what was given, under the names that the jobs take."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def job(*arguments: Any, **options: Any) -> int:
        calls.append((arguments, options))
        return 0

    for name in ("classification.classify.classify", "datasets.info.info", "training.train.train"):
        monkeypatch.setattr(f"jobs.{name}", job)
    options = (
        "--topk", 2, "--threshold", 0.5, "--format", "parquet", "--spreadsheet-safe", "--views", "mirror",
        "--batch-size", 8,
    )  # fmt: skip
    assert logpose("classify", "a", "b", "c").code == 0
    assert logpose("classify", "a", "b", "c", *options, "--device", "cpu", "--workers", 3, "--overwrite").code == 0
    by_default = {
        "topk": 1, "threshold": None, "table_format": None, "spreadsheet_safe": False, "views": "none",
        "batch_size": 32, "device": "auto", "workers": None, "scheduler": None, "overwrite": False,
    }  # fmt: skip
    paths = (Path("a"), Path("b"), Path("c"))
    assert calls[0] == (paths, by_default)
    assert calls[1] == (paths, {
        "topk": 2, "threshold": 0.5, "table_format": "parquet", "spreadsheet_safe": True, "views": "mirror",
        "batch_size": 8, "device": "cpu", "workers": 3, "scheduler": None, "overwrite": True,
    })  # fmt: skip
    calls.clear()
    assert logpose("info", "a", "--shuffle", "--no-sheet").code == 0
    assert calls == [((Path("a"),), {"sheet": None, "no_sheet": True, "shuffle": True})]
    calls.clear()
    assert logpose("train", "a", "b").code == 0
    assert logpose("train", "a", "b", "--checkpoint-steps", 7, "--ram-budget", "1GiB").code == 0
    names = ("checkpoint_minutes", "checkpoint_steps", "ram_budget")
    taken = [[getattr(arguments[2], name) for name in names] for arguments, _ in calls]
    assert taken == [[5.0, None, 10**9], [5.0, 7, 2**30]]


def test_views_are_those_that_there_are() -> None:
    """Said twice, so that help need not wait for NumPy."""
    assert [each.value for each in Views] == list(VIEWS)


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(dataset: Path, report_to: Path | None = None) -> int:
        raise error

    monkeypatch.setattr("jobs.datasets.verify.verify", verify)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/disk/x"), 1, "no space left on device at /disk/x; make"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "permission denied at x; check the rights"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 2, "no such file at x; check the path"),
        (OSError(errno.EIO, "Input/output error"), 1, "input/output error; check the disk"),
        (MemoryError(), 1, "out of memory; use a smaller --batch-size"),
        (ZeroDivisionError("a\nb"), 1, "this is a bug: ZeroDivisionError: a\\x0ab; set LOGPOSE_DEBUG=1"),
    ],
)
def test_no_traceback_reaches_a_user(
    logpose: Logpose, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, message: str
) -> None:
    raising(error, monkeypatch)
    outcome = logpose("verify", "x")
    assert outcome.code == code
    assert message in outcome.error


def test_ctrl_c_exits_with_130(logpose: Logpose, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(KeyboardInterrupt(), monkeypatch)
    outcome = logpose("verify", "x")
    assert (outcome.code, outcome.err) == (130, "interrupted: run the same command again to go on\n")


def test_a_reader_that_leaves_is_no_error(dataset: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command("verify", dataset), stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_folder_name_with_a_newline_stays_on_one_line(logpose: Logpose) -> None:
    assert "at no\\x0awhere: check the path" in logpose("verify", "no\nwhere").error


# On a terminal ------------------------------------------------------------------------------------------


class Terminal:
    """A command line with a person in front of it."""

    def __init__(self, process: subprocess.Popen[bytes], end: int) -> None:
        self.process, self.end, self.text = process, end, ""

    def wait_for(self, words: str, seconds: float = 300) -> None:
        """Read what appears until `words` are there."""
        limit = time.monotonic() + seconds
        while words not in self.text:
            assert time.monotonic() < limit, f"no {words!r} in {self.text!r}"
            if not select.select([self.end], [], [], 0.2)[0]:
                continue
            try:
                self.text += os.read(self.end, 4096).decode()
            except OSError:  # the other end is closed: the process is gone
                assert words in self.text, self.text
                return

    def answer(self, question: str, text: str) -> None:
        self.wait_for(question)
        self.text = ""
        os.write(self.end, f"{text}\n".encode())

    def finish(self) -> int:
        """Read to the end; returns the exit code."""
        self.wait_for_end()
        return self.process.wait(60)

    def wait_for_end(self) -> None:
        while True:
            try:
                data = os.read(self.end, 4096)
            except OSError:
                return
            if not data:
                return
            self.text += data.decode()


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


def test_missing_arguments_are_asked_for_and_a_bar_moves(tmp_path: Path) -> None:
    draw_classes(tmp_path / "colours", 4)
    with terminal(tmp_path, "build", "--size", "16") as person:
        person.answer("Folder of images, one folder per class inside: ", "colours")
        person.answer("Dataset to write [colours.zarr]: ", "")
        assert person.finish() == 0
    assert "\x1b[" in person.text  # the bar
    assert "colours.zarr: 3 classes, 9 images to train on, 3 to validate" in person.text


def test_a_training_that_is_there_asks_continue_or_scratch(tmp_path: Path, dataset: Path, trained: Path) -> None:
    with terminal(tmp_path, "train", dataset, trained) as person:
        person.answer("Continue, or start from scratch? (continue / scratch) [continue]: ", "c")
        assert person.finish() == 0
    assert "is finished (3 epochs" in person.text


def test_a_new_training_asks_scratch_or_model(tmp_path: Path, dataset: Path) -> None:
    with terminal(tmp_path, "train") as person:
        person.answer("Dataset to train on: ", str(dataset))
        person.answer("Folder for the results [runs/colours]: ", "")
        person.answer("Train from scratch, or start from a saved model? (scratch / model) [scratch]: ", "x")
        person.answer("Please answer scratch or model.", "model")
        person.answer("Model to start from: ", "nothing.safetensors")
        assert person.finish() == 2
    assert "error: no model file at nothing.safetensors" in person.text


def test_nobody_has_to_answer(tmp_path: Path) -> None:
    with terminal(tmp_path, "verify") as person:
        person.answer("Dataset to check: ", "\x04")  # Ctrl-D
        assert person.finish() == 130


def test_main_takes_the_arguments_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["logpose", "--version"])
    assert cli.main() == 0
