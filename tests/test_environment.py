"""Agreement of pyproject.toml, environment.yml, the Makefile, CI and the documents on dependencies and commands."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _recipe(target: str) -> list[str]:
    """The commands of one Makefile target."""
    lines = _read("Makefile").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{target}:"))
    commands = []
    for line in lines[start + 1 :]:
        if not line.startswith("\t"):
            break
        commands.append(line.strip())
    return commands


LISTED = ("cupy-cuda12x", "numpy", "pillow", "dask", "zarr", "numcodecs")  # listed by name in environment.yml


def test_environment_yml_agrees_with_pyproject() -> None:
    """The packages of LISTED have the same requirements; the others come from pyproject.toml."""
    environment = yaml.safe_load(_read("environment.yml"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert environment["name"] == "logpose"
    assert conda[0] == f"python{PROJECT['requires-python']}" and conda[-1] == "pip"
    assert pip[-1] == "--editable .[dev]"
    declared = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cuda12"]]
    listed = [*conda[1:-1], *(requirement.partition(";")[0] for requirement in pip[:-1])]
    assert set(listed) <= set(declared), "environment.yml and pyproject.toml disagree"
    assert {re.split(r"[\[>]", requirement)[0] for requirement in listed} == set(LISTED)


def test_documented_extras_exist() -> None:
    extras = PROJECT["optional-dependencies"]
    assert {"cuda12", "test", "bench", "dev"} <= set(extras)
    assert any(requirement.startswith("cupy-cuda12x") for requirement in extras["cuda12"])
    assert any(requirement.startswith("torch") for requirement in extras["bench"])
    assert "cuda12" in _read("environment.yml")


def test_ci_runs_the_documented_test_command() -> None:
    run = [line for line in _read(".ci/run").splitlines() if line.startswith("exec ")]
    assert run == ["exec make test"]
    assert "make test" in _read("CONTRIBUTING.md")
    assert "make demo" in _read("README.md")


def test_make_test_runs_ruff_mypy_and_pytest() -> None:
    commands = [command.split("/")[-1].split()[0] for command in _recipe("test")]
    assert commands == ["ruff", "mypy", "pytest"]


def test_make_demo_runs_the_demo() -> None:
    demo, hint = _recipe("demo")
    assert demo == "$(BIN)/logpose demo"
    assert "$(BIN)/activate" in hint


def test_console_script_exists() -> None:
    from logpose.__main__ import main

    assert PROJECT["scripts"] == {"logpose": "logpose.__main__:main"}
    assert callable(main)


def test_licence_is_mit() -> None:
    assert PROJECT["license"] == "MIT"
    assert _read("LICENSE").startswith("MIT License")
