"""The import rules of docs/architecture.md, read off the syntax tree of every file of the product."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("logpose", "pipeline", "cnn", "jobs")
FILES = sorted(path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py"))

# What each package may import of the others; `logpose.common` is below all of them, the rest of `logpose` above.
MAY_IMPORT = {"pipeline": set[str](), "cnn": set[str](), "jobs": {"pipeline", "cnn"}, "logpose": set(PACKAGES)}
MAX_FILES = 15  # in a folder; the kernels of a backend excepted, which are one a file

# A library with a door of its own: only these files open it.
DOORS = {
    # store.py reads and writer.py writes: two ideas. Pixels pass through shard_format.py, which does without zarr.
    "zarr": ["pipeline/dataset/store.py", "pipeline/dataset/writer.py", "pipeline/dataset/codecs.py"],
    "numcodecs": ["pipeline/dataset/codecs.py"],
    "cupy": ["cnn/backends/gpu/*.py"],
    "cupyx": ["cnn/backends/gpu/*.py"],
    "numba": ["cnn/backends/cpu/*.py", "pipeline/images/resize.py", "pipeline/images/pixel_sums.py"],
    "llvmlite": ["cnn/backends/cpu/simd.py", "pipeline/images/resize.py"],
    "dask": ["pipeline/build/scheduler.py", "pipeline/parallel/cluster.py", "jobs/console/sizes.py"],
    "PIL": [
        "pipeline/images/decode.py", "pipeline/images/colours.py", "jobs/drawing/contact_sheet.py",
        "jobs/drawing/fonts.py", "jobs/report/thumbnails.py", "jobs/flags*", "logpose/model.py",
    ],
    "matplotlib": ["jobs/drawing/plots.py", "logpose/training.py"],
    "pyarrow": ["jobs/classification/parquet.py"],
    "jinja2": ["jobs/report/page.py"],
    "typer": ["jobs/cli.py", "jobs/commands/*.py"],
}  # fmt: skip

# Where the name to import is not the name to install.
INSTALLED_AS = {
    "PIL": "pillow", "tomli_w": "tomli-w", "cupy": "cupy-cuda12x",
    "cupyx": "cupy-cuda12x",
}  # fmt: skip


def imported_modules(path: str) -> Iterator[str]:
    """Every module a file imports, wherever in the file, by its full dotted name."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"), path)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # `from ..x import y` in a/b/c.py is a.x
                parents = list(Path(path).parent.parts)
                parents = parents[: len(parents) - node.level + 1]
                yield ".".join([*parents, *([node.module] if node.module else [])])
            elif node.module:
                yield node.module


def imported_libraries(path: str) -> set[str]:
    return {module.partition(".")[0] for module in imported_modules(path)}


def test_the_packages_are_found() -> None:
    assert {path.partition("/")[0] for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("path", FILES)
def test_only_jobs_imports_both(path: str) -> None:
    package = path.partition("/")[0]
    others = {module for module in imported_modules(path) if module.partition(".")[0] in set(PACKAGES) - {package}}
    others = {module for module in others if not module.startswith("logpose.common")}
    forbidden = {module for module in others if module.partition(".")[0] not in MAY_IMPORT[package]}
    assert not forbidden, f"{path} imports {sorted(forbidden)}"


@pytest.mark.parametrize("path", [path for path in FILES if path.startswith("logpose/common/")])
def test_what_all_share_imports_none_of_them(path: str) -> None:
    ours = {module for module in imported_modules(path) if module.partition(".")[0] in PACKAGES}
    assert all(module.startswith("logpose.common") for module in ours), f"{path} imports {sorted(ours)}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    """No cycle among all files, imports inside of functions included."""
    files = set(FILES)
    arrows = {path: sorted({_file_of(module, files) for module in _targets(path)} - {None, path}) for path in FILES}
    done: set[str] = set()

    def visit(path: str, above: tuple[str, ...]) -> None:
        assert path not in above, " -> ".join([*above[above.index(path) :], path])
        if path not in done:
            for target in arrows[path]:
                visit(target, (*above, path))  # type: ignore[arg-type]
            done.add(path)

    for path in FILES:
        visit(path, ())


def _targets(path: str) -> Iterator[str]:
    """The modules that a file imports from, `from a.b import c` being a.b.c where that is a module."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"), path)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield inner if _file_of(inner, set(FILES)) else node.module


def _file_of(module: str, files: set[str]) -> str | None:
    stem = module.replace(".", "/")
    return next((path for path in (f"{stem}.py", f"{stem}/__init__.py") if path in files), None)


FOLDERS = {path.parent for top in (*PACKAGES, "tests", "benchmarks") for path in (ROOT / top).rglob("*.py")}


@pytest.mark.parametrize("folder", sorted(folder.relative_to(ROOT).as_posix() for folder in FOLDERS))
def test_a_folder_holds_few_files(folder: str) -> None:
    count = sum(path.is_file() and path.suffix != ".pyc" for path in (ROOT / folder).iterdir())
    assert count <= MAX_FILES or folder == "cnn/backends/cpu", f"{folder} has {count} files"


@pytest.mark.parametrize("path", FILES)
def test_each_library_comes_in_by_its_own_door(path: str) -> None:
    for library in imported_libraries(path) & set(DOORS):
        assert any(fnmatch(path, door) for door in DOORS[library]), (
            f"{path} imports {library}; only {', '.join(DOORS[library])} may"
        )


@pytest.mark.parametrize("path", FILES)
def test_no_pickle(path: str) -> None:
    assert not imported_libraries(path) & {"pickle", "cPickle", "dill", "cloudpickle", "shelve"}


@pytest.mark.parametrize("path", FILES)
def test_what_is_imported_is_declared(path: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for_developers = {"test", "bench", "dev"}
    extras = project["optional-dependencies"]
    lists = [project["dependencies"], *(extras[name] for name in extras.keys() - for_developers)]
    declared = {_distribution(requirement) for requirements in lists for requirement in requirements}
    third_party = imported_libraries(path) - set(sys.stdlib_module_names) - set(PACKAGES)
    undeclared = {name for name in third_party if INSTALLED_AS.get(name, name) not in declared}
    assert not undeclared, f"{path} imports {sorted(undeclared)}, which pyproject.toml does not list"


def _distribution(requirement: str) -> str:
    """The bare name in a requirement such as `cupy-cuda12x[ctk]>=14.0`."""
    return requirement.split(">")[0].split("[")[0].strip()


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_one_idea(path: str) -> None:
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{path} has {lines} lines; over 400 it is two ideas"


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    heavy = ["numpy", "zarr", "dask", "numba", "matplotlib", "PIL", "safetensors", "rich", "jinja2"]
    script = f"import sys, jobs.cli; print(sorted(set({heavy!r}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
