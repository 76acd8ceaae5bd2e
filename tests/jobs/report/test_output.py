"""Where `logpose report` writes, what it prints, and its option --model."""

import json
from pathlib import Path

import pytest

from jobs.console.output import Verbosity, verbosity_of
from jobs.options import ReportOptions
from jobs.report import report
from tests.jobs.conftest import Logpose
from tests.jobs.report.pages import read_report


def test_report_is_written_to_the_run_or_elsewhere(logpose: Logpose, run_copy: Path, tmp_path: Path) -> None:
    (run_copy / "report.html").write_text("an earlier report")
    outcome = logpose("report", run_copy)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"report: {run_copy / 'report.html'} (" in outcome.out
    assert read_report(run_copy).all("img")
    assert logpose("report", run_copy, "--out", tmp_path / "new" / "my.html").code == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["my.html"]
    refused = logpose("report", run_copy, "--out", run_copy / "model.safetensors").error
    assert "expected a name that ends in .html" in refused
    assert not list(run_copy.glob(".*"))


def test_json_is_one_object_with_the_accuracy(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with verbosity_of(Verbosity.JSON):
        path = report(run_copy, ReportOptions(device="cpu"))
    printed = json.loads(capsys.readouterr().out)
    assert path == run_copy / "report.html" == Path(printed["report"])
    assert 0 < printed["accuracy_low"] < printed["accuracy"] < printed["accuracy_high"] < 1


def test_model_option_imports_the_class(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr("cnn.models.import_model", imported.append, raising=False)
    report(run_copy, ReportOptions(device="cpu", model="package.module:Class"))
    assert imported == ["package.module:Class"]
    assert "--model package.module:Class" in read_report(run_copy).section("reproduce").text
