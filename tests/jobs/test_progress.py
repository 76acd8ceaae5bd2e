"""Lines in a pipe, a bar on a terminal."""

import pytest

from jobs.console import progress
from jobs.console.progress import bar, duration, plural


def test_a_pipe_gets_the_first_and_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("reading", "files", 1000) as shown:
        for done in range(1001):
            shown.update(done)
    first, last = capsys.readouterr().out.splitlines()
    assert first == "reading: 0 of 1,000 files"
    assert last.startswith("reading: 1,000 of 1,000 files, ")
    assert "/s, took " in last


def test_a_pipe_gets_a_line_every_ten_seconds(
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


def test_the_rate_leaves_out_what_an_earlier_run_did(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((0.0, 10.0, 10.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with bar("reading", "files", 1100, done=1000, ends=False) as shown:
        shown.update(1050)
    assert "5.0/s, 10 s left" in capsys.readouterr().out


def test_an_exception_passes_through(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), bar("reading", "files", 3) as shown:
        shown.update(1)
        raise ValueError("broken")
    assert capsys.readouterr().out.startswith("reading: 1 of 3 files, ")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (42.4, "42 s"), (187, "3:07"), (3723, "1:02:03")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plurals() -> None:
    assert [plural(1, "file"), plural(12000, "file"), plural(2, "class", "classes")] == [
        "1 file",
        "12,000 files",
        "2 classes",
    ]
