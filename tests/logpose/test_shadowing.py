"""The installed package: it is whole, and files in the current folder with the names of packages do not break it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import logpose

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with logpose installed from a wheel and this environment's dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(listing, cwd=ROOT, capture_output=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout: cannot list the files to build from")
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = Path(subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip())
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(place)
    (place / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # .pth files in that folder are not read
    return python


def run(python: Path, folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "MPLBACKEND": "agg", **environment},
    )  # fmt: skip


def test_wheel_holds_every_file_of_the_packages(installed: Path) -> None:
    place = next((installed.parent.parent / "lib").glob("python*/site-packages"))
    files = [path for name in ("logpose", "pipeline", "cnn", "jobs") for path in (ROOT / name).rglob("*")]
    ours = {path.relative_to(ROOT) for path in files if path.is_file() and "__pycache__" not in path.parts}
    assert Path("cnn/backends/gpu/cuda/convolution.cu") in ours
    missing = sorted(str(path) for path in ours if not (place / path).exists())
    assert not missing, f"add to package-data in pyproject.toml: {missing}"


def test_wheel_runs_the_demo_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    few = "demo.TRAIN, demo.VAL, demo.NEW = (3, 1), (1, 2), (1, 3); demo.RECIPE['train.epochs'] = 1"
    script = f"import sys; from jobs import demo; {few}; from logpose.__main__ import main; sys.exit(main(['demo']))"
    done = run(installed, tmp_path, "-c", script, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    assert {"new.csv", "flags.zarr", "run"} <= {path.name for path in (tmp_path / "demo").iterdir()}
    script = "import logpose, jobs, cnn; print(logpose.__file__, jobs.__file__)"
    files = run(installed, tmp_path, "-c", script, PYTHONPATH="")
    assert str(ROOT) not in files.stdout, "the checkout ran instead of the wheel"


@pytest.mark.parametrize("path", ["", "."])
def test_command_line_ignores_packages_and_modules_in_the_current_folder(
    installed: Path, finished: Path, tmp_path: Path, path: str
) -> None:
    for name in ("jobs", "cnn", "pipeline"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    for name in ("numpy", "json", "click", "signal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    for python in (installed, Path(sys.executable)):
        out = tmp_path / f"{python.parent.parent.name}.csv"
        command = ("-m", "logpose", "classify", finished / "images", finished / "runs/colours", out, "--device", "cpu")
        done = run(python, tmp_path, *command, PYTHONPATH=path)
        assert done.returncode == 0, done.stderr + done.stdout
        assert len(out.read_text().splitlines()) == 61


def test_command_line_works_in_a_deleted_folder(tmp_path: Path) -> None:
    (tmp_path / "deleted").mkdir()
    script = "import os, sys; os.rmdir(os.getcwd()); from logpose.__main__ import main; sys.exit(main(['--version']))"
    done = run(Path(sys.executable), tmp_path / "deleted", "-c", script, PYTHONPATH=str(ROOT))
    assert done.returncode == 0 and done.stdout.startswith("logpose "), done.stderr


def test_import_error_names_the_shadowing_package(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").touch()
    done = run(Path(sys.executable), tmp_path, "-c", "import logpose; logpose.load", PYTHONPATH=str(ROOT))
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ImportError: expected logpose's own package 'jobs'"), done.stderr
    assert str(tmp_path / "jobs") in last


def test_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert logpose.__version__ == version("logpose-cnn")


@pytest.mark.parametrize("name", ["random", "json", "secrets", "csv"])
def test_modules_of_the_standard_library_on_the_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / f"{name}.py").write_text("raise RuntimeError('another module')")
    search = os.pathsep.join([str(tmp_path / "path"), str(ROOT)])
    done = run(Path(sys.executable), tmp_path, "-m", "logpose", "verify", "nowhere.zarr", PYTHONPATH=search)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: expected a dataset built by logpose, found nothing at nowhere.zarr")
