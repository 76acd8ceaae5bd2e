"""Commands in the documents: their options exist, and they print what the documents show."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from jobs.training.summary import Summary
from tests.jobs.conftest import RECIPE, Logpose, draw_classes
from tests.jobs.conftest import logpose as logpose  # the fixture
from tests.test_docs import DOCUMENTS, ROOT, file_of, section

COMMANDS = "build|train|classify|report|verify|info|find-lr|recipes|selftest"


def test_options_of_documented_commands_exist(logpose: Logpose) -> None:
    """Every option on a `logpose COMMAND …` line of the documents is an option of the command."""
    helps: dict[str, str] = {}
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        for command, rest in re.findall(rf"logpose ({COMMANDS})\b(.*)", text):
            if command not in helps:
                helps[command] = logpose(command, "--help").out
            for option in re.findall(r"(?<=\s)--[a-z][\w-]*", rest.partition("`")[0].partition("#")[0]):
                assert option in helps[command], f"{document.name}: logpose {command} has no {option}"


def test_options_of_documented_benchmarks_exist() -> None:
    """Every option on a `python -m benchmarks…` (or `tests…`) line of the documents is an option of the module."""
    for document in [*DOCUMENTS, ROOT / "benchmarks" / "README.md"]:
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        for module, rest in re.findall(r"python -m ((?:benchmarks|tests)\.[a-z_.]+)\b(.*)", text):
            code = file_of(module).read_text(encoding="utf-8")
            for option in re.findall(r"(?<=[\s\[])--[a-z][\w-]*", rest.partition("`")[0].partition("#")[0]):
                assert f'"{option}"' in code, f"{document.name}: {module} has no {option}"


def test_commands_print_what_the_readme_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logpose: Logpose
) -> None:
    """Run the commands of README's example on other images: each line shown is printed, apart from its numbers."""
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```\n(\$ logpose build .*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    draw_classes(Path("cartoons"), 12)
    for name in ("blue", "red"):  # near-duplicates
        (Path("cartoons") / name / "copy.png").write_bytes((Path("cartoons") / name / "000.png").read_bytes())
    draw_classes(Path("new"), 2)
    (Path("new") / "torn.jpg").write_bytes(b"no image")
    for command, shown in re.findall(r"^\$ logpose (.*)\n((?:(?!\$).*\n)*)", block, re.MULTILINE):
        result = logpose(*command.split())
        assert result.code == 0, result.err
        printed = without_numbers(result.out)
        missing = [line for line in shown.splitlines() if line != "…" and without_numbers(line) not in printed]
        assert not missing, f"README.md shows {missing}, but 'logpose {command}' prints {result.out}"


def without_numbers(text: str) -> str:
    text = re.sub(r"(?<=^images of each class:).*", "", text, flags=re.MULTILINE)  # of other classes
    return " ".join(re.sub(r"\d[\d.,]*", "0", text).replace(" best ", " ").split())


def test_json_output_has_the_documented_keys(tmp_path: Path, logpose: Logpose) -> None:
    images, data, run = draw_classes(tmp_path / "images", 12), tmp_path / "d.zarr", tmp_path / "run"
    commands: dict[str, tuple[Any, ...]] = {
        "build": (images, data, "--size", 16, "--val", 0.25),
        "train": (data, run, *RECIPE, "--epochs", 1),
        "classify": (images, run, tmp_path / "out.csv"),
        "report": (run,),
        "verify": (data,),
        "info": (data,),
    }
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", section("JSON output"), re.MULTILINE))
    for command, arguments in commands.items():
        result = logpose(command, *arguments, "--json")
        assert result.code == 0, result.err
        documented = set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", rows[command])))
        documented |= {field.name for field in fields(Summary)} if command == "train" else set()
        assert set(json.loads(result.out)) == documented, command
