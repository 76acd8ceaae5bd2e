"""Check that a device computes correctly, and print what was found."""

import math
import time
from typing import NamedTuple

from cnn.backends.base import Backend
from cnn.errors import first_line
from jobs.console.device import choose_backend
from jobs.console.output import detail, emit, say
from jobs.console.progress import bar, plural
from jobs.options import SelftestOptions
from jobs.selftest.checks import Check, all_checks

_GROUPS = {
    "layer": "layers: outputs and gradients",
    "loss": "losses and their gradients",
    "optimizer": "optimizers, sums of micro-batches",
    "images": "augmentation and mixing",
    "gradient": "gradients in float64, numerically",
    "training": "training twice: weights that differ",
}


class _Result(NamedTuple):
    check: Check
    error: float
    problem: str = ""  # of a check that failed with an exception

    @property
    def ok(self) -> bool:
        return self.error <= self.check.bound  # false for NaN


def selftest(options: SelftestOptions) -> int:
    """Check the device that `options` choose, and return the exit code: 1 if a result is wrong.

    Raises DeviceError where the device or the precision is not available.
    """
    began = time.perf_counter()
    backend = choose_backend(options.device, options.precision)
    say(backend.description)
    results = _run(backend)
    for result in results:
        detail(_row(f"{result.check.group} {result.check.name}", result))
    for group, meaning in _GROUPS.items():
        say(_row(meaning, max((each for each in results if each.check.group == group), key=_badness)))
    failed = [result for result in results if not result.ok]
    for result in failed:
        say(f"wrong: {result.check.group} {result.check.name}: {result.problem or f'error {result.error:.1e}'}")
    seconds = time.perf_counter() - began
    if failed:
        say(f"{len(failed)} of {plural(len(results), 'check')} failed: do not use this device")
        say("use --device cpu, and report the lines above with the versions of CuPy and of the driver")
    else:
        say(f"all {plural(len(results), 'check')} passed in {seconds:.0f} s")
    emit({
        "ok": not failed, "device": backend.description, "precision": backend.precision, "seconds": round(seconds, 1),
        "checks": [
            {"group": check.group, "name": check.name, "error": error if math.isfinite(error) else None,
             "bound": check.bound, "ok": result.ok}
            for result in results for check, error in (result[:2],)
        ],
    })  # fmt: skip
    return 1 if failed else 0


def _run(backend: Backend) -> list[_Result]:
    """Do all checks. The first time on a machine, compiling kernels takes most of the time."""
    results, checks = [], all_checks(backend)
    with bar("checking", "checks", len(checks), ends=False) as progress:
        for check in checks:
            try:
                results.append(_Result(check, check.measure()))
            except Exception as error:  # a kernel that fails must not hide the others' results
                results.append(_Result(check, math.inf, f"{type(error).__name__}: {first_line(error)}"))
            progress.update(len(results))
    return results


def _badness(result: _Result) -> float:
    """The error relative to its bound; a wrong result is worse than any that is not."""
    return result.error / max(result.check.bound, 1e-30) if result.error == result.error else math.inf


def _row(name: str, result: _Result) -> str:
    return f"{name:36} error {result.error:7.1e}, at most {result.check.bound:.0e}  {'ok' if result.ok else 'WRONG'}"
