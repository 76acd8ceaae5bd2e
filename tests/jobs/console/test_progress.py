"""Progress: lines in a pipe, a bar on a terminal."""

import io

import pytest
from rich.console import Console

from jobs.console import progress
from jobs.console.output import Verbosity, verbosity_of
from jobs.console.progress import _RichBar, bar, duration, plural


def test_pipe_gets_the_first_and_the_last_state(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("reading", "files", 1000) as shown:
        for done in range(1001):
            shown.update(done)
    first, last = capsys.readouterr().out.splitlines()
    assert first == "reading: 0 of 1,000 files"
    assert last.startswith("reading: 1,000 of 1,000 files, ")
    assert "/s, took " in last


def test_pipe_gets_a_line_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with bar("reading", "files", 100, ends=False) as shown:
        for done in range(1, 36):
            shown.update(done, "note")
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) <= 4
    assert all("left, note" in line and "\x1b" not in line for line in lines)


def test_rate_excludes_the_work_of_an_earlier_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((0.0, 10.0, 10.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with bar("reading", "files", 1100, done=1000, ends=False) as shown:
        shown.update(1050)
    assert "5.0/s, 10 s left" in capsys.readouterr().out


def test_bar_passes_exceptions_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), bar("reading", "files", 3) as shown:
        shown.update(1)
        raise ValueError("broken")
    assert capsys.readouterr().out.startswith("reading: 1 of 3 files, ")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (42.4, "42 s"), (187, "3:07"), (3723, "1:02:03")]
)
def test_durations_are_rounded_and_have_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counts_have_singular_and_plural() -> None:
    assert [plural(1, "file"), plural(12000, "file"), plural(2, "class", "classes")] == [
        "1 file",
        "12,000 files",
        "2 classes",
    ]


@pytest.mark.parametrize("level", [Verbosity.QUIET, Verbosity.JSON])
def test_quiet_and_json_show_no_progress(capsys: pytest.CaptureFixture[str], level: Verbosity) -> None:
    with verbosity_of(level), bar("reading", "files", 3) as shown:
        shown.update(1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 100])
@pytest.mark.parametrize("what", ["classifying", "epoch 100/100"])
def test_bar_fits_into_one_line(width: int, what: str) -> None:
    line = rendered_bar(width, what)
    assert len(line) <= width
    shown = [text for text in ("files", "left", "/s", "loss 1.234") if text in line]
    assert shown == ["files", "left", "/s", "loss 1.234"][: {20: 0, 30: 0, 40: 1, 60: 2}.get(width, 4)]


def rendered_bar(width: int, what: str) -> str:
    """Return the only line of a bar on a terminal of this width."""
    console = Console(width=width, force_terminal=True, color_system=None, file=io.StringIO(), legacy_windows=False)
    clock = iter(range(100))
    shown = _RichBar(what, "files", 50_000, 0, console)
    shown.progress.get_time = shown.progress.tasks[0]._get_time = lambda: float(next(clock))
    for done in range(1000, 6000, 1000):
        shown.update(done, "loss 1.234")
    with console.capture() as captured:
        console.print(shown.progress.get_renderable())
    (line,) = captured.get().splitlines()
    return line
