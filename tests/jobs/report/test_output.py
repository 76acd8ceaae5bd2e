"""Output of `logpose report`: the file, the printed lines, and the commands on the page."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cnn.checkpoint import load_checkpoint, save_checkpoint
from jobs.console.output import Verbosity, verbosity_of
from jobs.options import ReportOptions
from jobs.report import report
from tests.jobs.conftest import Logpose
from tests.jobs.report.pages import edit_progress, read_report


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


@pytest.mark.parametrize(("model_class", "option"), [("nets:Small", " --model nets:Small"), ("__main__:Small", "")])
def test_commands_name_the_class_of_a_users_own_model(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, model_class: str, option: str
) -> None:
    """Except for a class of a notebook, which a command cannot import."""
    imported: list[str] = []
    monkeypatch.setattr("jobs.report.import_model", imported.append)
    model = load_checkpoint(run_copy / "model.safetensors")
    card = replace(model.card, model_class=model_class)
    save_checkpoint(run_copy / "model.safetensors", card, model.tensors, model.progress)
    last = load_checkpoint(run_copy / "last.safetensors").progress
    edit_progress(run_copy / "last.safetensors", recipe=last["recipe"].replace("epochs = 6", "epochs = 9"))
    report(run_copy, ReportOptions(device="cpu", model="nets:Small"))
    assert imported == ["nets:Small"]
    section = read_report(run_copy).section("reproduce").text
    resume = f"--resume{option}" if option else f"'{run_copy}', resume=True)"
    assert f"{resume}\n" in section and f"config.toml{option}\n" in section and "__main__" not in section
