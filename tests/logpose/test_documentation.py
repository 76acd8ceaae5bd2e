"""Examples in the docstrings of all public names, in the documents and in the notebook: they run."""

import doctest
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import logpose

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = [name for name in logpose.__all__ if name != "__version__"]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def run_examples(text: str, name: str, **names: Any) -> int:
    """Run the `>>>` examples of a text; return their number. Fails with what was found instead."""
    test = doctest.DocTestParser().get_doctest(text, {"logpose": logpose, **names}, name, None, 0)
    report: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append, clear_globs=False)
    assert not failed, "".join(report)
    return tried


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("name", OBJECTS)
def test_public_docstring_has_an_example_that_runs(name: str) -> None:
    text = inspect.getdoc(getattr(logpose, name)) or ""
    assert text, f"logpose.{name} has no docstring"
    assert run_examples(text, name), f"the docstring of logpose.{name} has no example"


@pytest.mark.usefixtures("workspace")
def test_public_methods_have_examples_that_run() -> None:
    for method in (logpose.Model.predict, logpose.Model.probabilities):
        assert run_examples(inspect.getdoc(method) or "", method.__qualname__)


@pytest.mark.usefixtures("workspace")
def test_examples_of_python_md_run() -> None:
    assert run_examples((ROOT / "docs" / "python.md").read_text(encoding="utf-8"), "docs/python.md") > 20


@pytest.mark.usefixtures("workspace")
def test_python_example_of_the_readme_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(block.strip().splitlines()) <= 14
    exec(compile(block, "README.md", "exec"), {})


def test_tutorial_notebook_runs(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs), "no curves were shown"
