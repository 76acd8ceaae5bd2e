"""One list of dependencies, one test command: the files that repeat them must agree."""

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


def test_environment_lists_only_python_pip_and_this_project() -> None:
    environment = yaml.safe_load(_read("environment.yml"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    pip = [entry for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert environment["name"] == "logpose"
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip == [{"pip": ["--editable .[dev]"]}]


def test_extras_are_those_the_readers_are_told_of() -> None:
    extras = PROJECT["optional-dependencies"]
    assert {"cuda12", "test", "bench", "dev"} <= set(extras)
    assert any(requirement.startswith("cupy-cuda12x") for requirement in extras["cuda12"])
    assert any(requirement.startswith("torch") for requirement in extras["bench"])
    assert "cuda12" in _read("environment.yml")


def test_continuous_integration_runs_the_command_of_the_readme() -> None:
    run = [line for line in _read(".ci/run").splitlines() if line.startswith("exec ")]
    assert run == ["exec make test"]
    assert "make test" in _read("README.md")
    assert "make demo" in _read("README.md")


def test_make_test_checks_style_types_and_behaviour() -> None:
    commands = [command.split("/")[-1].split()[0] for command in _recipe("test")]
    assert commands == ["ruff", "mypy", "pytest"]


def test_make_demo_runs_the_demo() -> None:
    assert _recipe("demo") == ["$(BIN)/logpose demo"]


def test_the_console_script_exists() -> None:
    from jobs.cli import main

    assert PROJECT["scripts"] == {"logpose": "jobs.cli:main"}
    assert callable(main)


def test_licence_is_mit() -> None:
    assert PROJECT["license"] == "MIT"
    assert _read("LICENSE").startswith("MIT License")
