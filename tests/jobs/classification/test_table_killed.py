"""A table killed at any step: the same command again gives the same file."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.classification import table as module
from jobs.classification.table import ResumableTable
from jobs.errors import JobError
from jobs.options import ClassifyOptions
from tests.jobs.classification.tables import IDENTITY, PARQUET, PLAIN, SPLITS, TABLE, digest, names_in, read, save


class Killed(BaseException):
    """A simulated kill: nothing on the disk changes after it."""


STEPS = ("fsync", "mkdir", "replace", "rmdir", "unlink")  # every call that changes a folder or makes a file durable


class Machine:
    """Counts the calls that change the disk; after `fatal` of them, every call raises Killed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step, self.fatal = 0, sys.maxsize
        for name in STEPS:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name) if name != "fsync" else lambda *_: None))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.step += 1
            if self.step > self.fatal:
                raise Killed
            return call(*arguments, **options)

        return counted

    def kills(self, fatal: int, run: Callable[[], object]) -> bool:
        """Run for `fatal` steps; return whether the run was killed before its end."""
        self.step, self.fatal = 0, fatal
        try:
            run()
        except Killed:
            return True
        finally:
            self.fatal = sys.maxsize
        return False


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with monkeypatch.context() as patch:
        yield Machine(patch)


def command(out: Path, options: ClassifyOptions) -> tuple[int, int]:
    return save(ResumableTable(out, IDENTITY, options), SPLITS, merge=True)


@pytest.mark.parametrize("options", [PLAIN, PARQUET], ids=["csv", "parquet"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_rerun_after_a_kill_at_any_step(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, options: ClassifyOptions, overwrite: bool
) -> None:
    monkeypatch.setattr(module, "MAX_OPEN_FILES", 2)  # three parts are merged in rounds
    command(tmp_path / "whole", options)
    whole = (tmp_path / "whole").read_bytes()
    survived = 0
    for fatal in range(1000):
        out = tmp_path / f"{fatal}" / "out"
        out.parent.mkdir()
        before = b"mine" if overwrite else None
        if overwrite:
            out.write_bytes(b"mine")
        if not machine.kills(fatal, lambda out=out: command(out, replace(options, overwrite=overwrite))):
            break
        survived += 1
        at_kill = out.read_bytes() if out.exists() else None
        assert at_kill in (before, whole)
        assert command(out, replace(options, overwrite=overwrite)) == (4, 1), f"killed after {fatal} steps"
        assert out.read_bytes() == whole
        assert names_in(out.parent) == ["out"]
    assert survived > 30
    before = out.stat().st_mtime_ns
    assert command(out, options) == (4, 1)  # finished: there is nothing to do
    assert (out.stat().st_mtime_ns, names_in(out.parent)) == (before, ["out"])
    with pytest.raises(JobError, match="already exists; give --overwrite"):
        ResumableTable(out, {**IDENTITY, "model": "other"}, options)


def test_rerun_after_two_kills(tmp_path: Path, machine: Machine) -> None:
    kills = 0
    for first in range(1000):
        for second in range(1000):
            out = tmp_path / f"{first}-{second}" / "out"
            table = ResumableTable(out, IDENTITY, PLAIN)
            for number, rows in enumerate(SPLITS):
                table.write(number, digest(number), rows)
            if not machine.kills(first, lambda table=table: table.finish(3)):
                return
            if not machine.kills(second, lambda out=out: command(out, PLAIN)):
                assert out.read_bytes() == TABLE
                break
            kills += 1
            assert command(out, PLAIN) == (4, 1)
            assert out.read_bytes() == TABLE
            assert names_in(out.parent) == ["out"]
    assert kills > 100


@pytest.fixture
def uncleaned(tmp_path: Path, machine: Machine) -> Path:
    """A complete table, killed while its parts were removed: one of them is left."""
    for steps in range(1000):
        out = tmp_path / f"{steps}" / "out.csv"
        table = ResumableTable(out, IDENTITY, PLAIN)
        assert machine.kills(steps, lambda table=table: save(table, SPLITS))
        if out.exists() and len(list(table.scratch.glob("part-*"))) == 1:
            return out
    raise AssertionError("no step leaves one part")


def test_complete_table_with_leftover_parts_is_not_reused_for_other_files(uncleaned: Path) -> None:
    before = names_in(uncleaned.parent)
    for number, files in ((0, 5), (3, 3)):
        table = ResumableTable(uncleaned, IDENTITY, PLAIN)
        with pytest.raises(JobError, match="already exists; give --overwrite"):
            table.is_finished(number, digest(files))
    for parts in (2, 4):
        with pytest.raises(JobError, match="already exists; give --overwrite"):
            ResumableTable(uncleaned, IDENTITY, PLAIN).finish(parts)
    with pytest.raises(JobError, match="already exists; give --overwrite"):
        ResumableTable(uncleaned, {**IDENTITY, "model": "other"}, PLAIN)
    assert names_in(uncleaned.parent) == before
    assert uncleaned.read_bytes() == TABLE
    assert command(uncleaned, PLAIN) == (4, 1)
    assert names_in(uncleaned.parent) == ["out.csv"]


def test_table_changed_after_the_kill_is_not_touched(uncleaned: Path) -> None:
    uncleaned.write_text("mine")
    with pytest.raises(JobError, match="already exists; give --overwrite"):
        ResumableTable(uncleaned, IDENTITY, PLAIN)
    assert uncleaned.read_text() == "mine"
    uncleaned.unlink()
    assert command(uncleaned, PLAIN) == (4, 1)
    assert uncleaned.read_bytes() == TABLE
    assert names_in(uncleaned.parent) == ["out.csv"]


@pytest.mark.parametrize("change", ["model", "files"])
def test_overwrite_of_a_table_with_leftover_parts(uncleaned: Path, change: str) -> None:
    identity = {**IDENTITY, "model": "other"} if change == "model" else IDENTITY
    table = ResumableTable(uncleaned, identity, replace(PLAIN, overwrite=True))
    digests = [digest(number + 10 * (change == "files")) for number in range(3)]
    for number, rows in enumerate(SPLITS[::-1]):
        assert not table.is_finished(number, digests[number])
        table.write(number, digests[number], rows)
    assert table.finish(3) == (4, 1)
    assert [row[0] for row in read(uncleaned)[1:]] == ["z.png", "c\r.png", "caf\udce9.png", "a.png", "b.png"]
    assert names_in(uncleaned.parent) == ["out.csv"]
