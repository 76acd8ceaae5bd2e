"""Let each call of the system fail once, in every job, and check what comes of it.

    python -m tests.faults.sweep [--part sample|K/N] [--case NAME]

A process that is started with the shim imports everything and runs each job once. Then, for each point, it forks a
child in which one call fails, looks at what the child has left, and forks another that runs the command again. A point
is a call and an error; each call is tried with several errors, and with one that stays.

Of each point is expected:

-   The command ends with exit code 0 and the results of an undisturbed run; or with exit code 1 and one line that names
    a place and a remedy. Whatever it has finished by then is right.
-   The command, run again, ends with exit code 0 and these results, and leaves nothing else behind.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import pkgutil
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from tests.faults.sweep.cases import BUILD, CASES, SETTINGS, TRAIN, Case, content_of
from tests.faults.sweep.shim import ERRORS, Call, Shim, error_name

LIMIT_SECONDS = 60  # no command takes longer, unless it hangs
TEMPORARY = (".tmp", ".partial", ".lock")  # endings of what a rerun removes


@dataclass(frozen=True)
class Point:
    """What fails: in which case, which call, with which error, and whether it fails from then on."""

    case: str
    call: Call
    error: int
    stays: bool


@dataclass(frozen=True)
class Outcome:
    """What came of a point.

    hits     calls that failed; 0 if the command did not make this call
    code     exit code
    message  on standard error
    problem  what is wrong with it; empty if nothing is
    """

    case: str
    call: Call
    error: str
    stays: bool
    hits: int
    code: int
    message: str
    problem: str


@dataclass(frozen=True)
class Run:
    """An ended child: exit code, or minus the signal that ended it; standard error; calls that failed."""

    code: int
    errors: str
    hits: int


class Sweep:
    """The sweep in the folder `root`, below which calls are watched."""

    def __init__(self, root: Path) -> None:
        from jobs.cli import main

        self._main, self.root, self.work, self._shim = main, root, root / "work", Shim(root)
        self._output = root.with_name("output")  # not watched
        self._starts = root.with_name("starts")
        self.paths = {"images": root / "images", "data": root / "data.zarr", "model": root / "run", "work": self.work}
        self._draw_images()
        for name, value in SETTINGS.items():
            place, _, constant = name.partition(":")
            setattr(pkgutil.resolve_name(place), constant, value)
        _replace_drawings()
        warnings.simplefilter("ignore")
        self._starts.mkdir()
        self.work.mkdir()
        for command, result in ((BUILD, "data.zarr"), (TRAIN, "run")):
            assert main(self._arguments(command)) == 0
            (self.work / result).rename(self.root / result)
        for case in CASES:  # in this process, so that its children have imported and compiled everything
            if not case.stop:
                self._start(case)
                assert main(self._arguments(case.command)) == 0, case.name
        self._inputs = content_of(self.root)
        _forget()
        gc.collect()
        gc.freeze()  # so that children do not copy the memory by counting references

    def run(self, case: Case, part: str) -> Iterator[Outcome]:
        """Try the points of a case: a 'sample', or the Kth of N parts, K/N."""
        self._start(case)
        before = content_of(self.work)
        calls = self._traced(case.command)
        expected = content_of(self.work)
        self._reruns: dict[tuple[tuple[str, str], ...], str] = {}
        points = _sample(case, calls) if part == "sample" else _points(case, calls)
        start, step = (1, 1) if part == "sample" else map(int, part.split("/"))
        for point in islice(points, start - 1, None, step):
            yield self._try(case, point, before, expected)

    def check_inputs(self) -> None:
        """Check that no command has changed what it reads."""
        shutil.rmtree(self.work)
        self.work.mkdir()
        found = content_of(self.root)
        inputs = {name: content for name, content in self._inputs.items() if not name.startswith("work")}
        changed = [name for name, content in inputs.items() if found.get(name) != content]
        assert not changed, changed

    def _try(self, case: Case, point: Point, before: dict[str, str], expected: dict[str, str]) -> Outcome:
        self._start(case)
        run = self._child(case.command, point)
        problem = self._problem(case, point, run, before, expected)
        problem = problem or self._rerun(case, expected)
        return Outcome(
            case.name, point.call, error_name(point.error), point.stays, run.hits, run.code, run.errors, problem
        )

    def _rerun(self, case: Case, expected: dict[str, str]) -> str:
        """Run the command again; return what is wrong then. Most points leave a state that another has left as well."""
        state = tuple(content_of(self.work).items())
        if state not in self._reruns:
            again = self._child(case.rerun)
            difference = _difference(content_of(self.work), expected)
            failed = f"exit code {again.code}: {again.errors.strip()}" if again.code or again.errors else ""
            self._reruns[state] = f"run again: {failed or difference}" if failed or difference else ""
        return self._reruns[state]

    def _problem(
        self, case: Case, point: Point, run: Run, before: dict[str, str], expected: dict[str, str]
    ) -> str:
        """What is wrong with the disturbed run; empty if nothing is."""
        if run.code < 0:
            return "hangs" if run.code == -signal.SIGALRM else f"ended by signal {-run.code}"
        found = content_of(self.work)
        if not run.code:
            if not all(line.startswith("note: ") for line in run.errors.splitlines()):
                return "exit code 0, with an error"
            kept = {name: each for name, each in found.items() if not _is_temporary(name)}
            return _difference(kept, expected)
        if run.code != 1 and not (run.code == 2 and point.error == errno.EACCES):
            return f"exit code {run.code}"
        lines = run.errors.splitlines()
        if len(lines) != 1 or not lines[0].startswith("error: ") or "this is a bug" in lines[0]:
            return "not one line of error"
        if point.call.kind != "thread" and str(self.root) not in lines[0]:
            return "names no place"
        if not any(mark in lines[0].removeprefix("error: ") for mark in ("; ", ": ")):
            return "names no remedy"
        return self._unfinished(case, found, before, expected)

    def _unfinished(
        self, case: Case, found: dict[str, str], before: dict[str, str], expected: dict[str, str]
    ) -> str:
        """What is wrong with results that a failed command has left: they are whole, old, or known to be unfinished."""
        metadata = self.work / "data.zarr" / "zarr.json"
        if metadata.exists() and json.loads(metadata.read_bytes())["attributes"].get("sealed"):
            now, old, new = (
                {name: each[name] for name in each if "/." not in name and not _is_temporary(name)}
                for each in (found, before, expected)
            )
            return "" if now in (old, new) else "a sealed dataset of mixed content"
        for name in ("out.csv", "out.parquet"):  # of a training, reading the model files was the check
            if found.get(name) not in (None, before.get(name), expected.get(name)):
                return f"a wrong {name}"
        return ""

    def _start(self, case: Case) -> None:
        """Make the state that the case starts from; `work` itself stays."""
        shutil.rmtree(self.work, ignore_errors=True)
        start = self._starts / case.name.replace(" ", "-")
        if not start.exists():
            self.work.mkdir()
            for number, command in enumerate(case.before, 1):
                if case.stop and number == len(case.before):
                    self._stop(case, command)
                else:
                    assert self._child(command).code == 0, case.name
            self.work.rename(start)
        shutil.copytree(start, self.work)

    def _stop(self, case: Case, command: Sequence[str]) -> None:
        """Run a command until a call of it fails, that of `case.stop`, and goes on failing."""
        assert case.stop
        (kind, part), calls = case.stop, self._traced(command)
        shutil.rmtree(self.work)
        self.work.mkdir()
        call = next(call for call in calls if call.kind == kind and part in call.path)
        run = self._child(command, Point(case.name, call, errno.EIO, True))
        assert run.code == 1, (case.name, run)

    def _traced(self, command: Sequence[str]) -> list[Call]:
        """The calls of a command that is not disturbed."""

        def run() -> None:
            child = self._child(command)
            assert (child.code, child.errors) == (0, ""), child

        return self._shim.calls_of(run)

    def _child(self, command: Sequence[str], point: Point | None = None) -> Run:
        """Run a command line in a child, in which the call of the point fails."""
        self._output.unlink(missing_ok=True)
        arguments = self._arguments(command)
        process = os.fork()
        if not process:
            code = 99
            try:
                signal.alarm(LIMIT_SECONDS)
                output = os.open(self._output, os.O_CREAT | os.O_RDWR | os.O_APPEND)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(output, 2)
                if point:
                    self._shim.arm(point.call, point.error, stays=point.stays)
                code = self._main(arguments)
                os.write(output, f"{self._shim.hits}".encode())
            finally:
                os._exit(code)
        _, status = os.waitpid(process, 0)
        errors, _, hits = self._output.read_text(errors="replace").rpartition("\n")
        return Run(os.waitstatus_to_exitcode(status), f"{errors}\n" if errors else "", int(hits or -1))

    def _arguments(self, command: Sequence[str]) -> list[str]:
        return [word.format(**self.paths) for word in command]

    def _draw_images(self) -> None:
        from tests.jobs.conftest import draw_classes

        draw_classes(self.paths["images"], 4, ("a", "b"))
        for image in self.paths["images"].rglob("*.png"):  # a part's name depends on these times
            os.utime(image, (1e9, 1e9))


def _points(case: Case, calls: Sequence[Call]) -> Iterator[Point]:
    """All points of a case, in the order of its calls: each call fails once; the first at a path in all ways."""
    for call in calls:
        errors = ERRORS[call.kind]
        for error in errors if call.nth == 1 else errors[:1]:
            yield Point(case.name, call, error, False)
        if call.nth == 1:
            yield Point(case.name, call, errors[0], True)


def _sample(case: Case, calls: Sequence[Call]) -> Iterator[Point]:
    """A few points: of half the kinds of calls one, the first, the middle one or the last; others in other cases."""
    turn = CASES.index(case)
    for number, kind in enumerate(sorted({call.kind for call in calls})):
        if (number + turn) % 2 == 0:
            own, errors = [call for call in calls if call.kind == kind], ERRORS[kind]
            call = own[(len(own) - 1) * ((turn + number) // 2 % 3) // 2]
            yield Point(case.name, call, errors[(turn + number) % len(errors)], turn % 3 == 0 and call.nth == 1)


def _difference(found: dict[str, str], expected: dict[str, str]) -> str:
    """How the content of a folder differs from what is expected; empty if it does not."""
    if lost := [name for name in expected if name not in found]:
        return f"lacks {', '.join(lost[:3])}"
    if more := [name for name in found if name not in expected]:
        return f"leaves {', '.join(more[:3])}"
    wrong = [name for name in expected if found[name] != expected[name]]
    return f"another {', '.join(wrong[:3])}" if wrong else ""


def _is_temporary(name: str) -> bool:
    return name.endswith(TEMPORARY)


def _replace_drawings() -> None:
    """Write a line in place of each drawing, in the same way: Matplotlib takes a second."""
    from jobs.training import artifacts
    from logpose.common.files import write_atomically

    artifacts.draw_curves = lambda path, history: write_atomically(path, f"{len(history)} epochs\n")
    artifacts.draw_confusion = lambda path, confusion, names, title: write_atomically(path, f"{title}\n")


def _forget() -> None:
    """Empty the caches of a process that only long-lived ones have."""
    from jobs.classification import task

    task._open_split.cache_clear()
    task._process_cache.clear()


def main() -> None:
    """In the process with the shim: print an outcome a line, as JSON."""
    root, part, *cases = sys.argv[1:]
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # which commands print to
    sweep = Sweep(Path(root))
    for case in CASES:
        if not cases or case.name in cases:
            for outcome in sweep.run(case, part):
                print(json.dumps(asdict(outcome)), file=results, flush=True)
    sweep.check_inputs()


if __name__ == "__main__":
    main()
