"""User-defined model with a user-defined layer: training, saving, loading and classifying."""

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
from dataclasses import dataclass
import logpose
from logpose import layers

@dataclass(frozen=True)
class Square:
    def specs(self, in_shape): return layers.Specs(in_shape)
    def forward(self, run, p, s, x): return x * x, x
    def backward(self, run, p, s, g, cache, dy): return 2 * cache * dy

@logpose.register_model
@dataclass(frozen=True)
class Tiny:
    width: int = 4

    def layers(self, in_shape, classes):
        return layers.chain(
            conv=layers.Conv2D(self.width, 3), square=Square(),
            average=layers.GlobalAveragePool(), head=layers.Dense(classes),
        )
"""


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def module(workspace: Path) -> Path:
    (workspace / "my_networks.py").write_text(MODULE)
    return workspace


def test_user_model_trains_saves_and_loads(module: Path) -> None:
    script = (
        "import logpose, my_networks\n"
        "run = logpose.train('colours.zarr', 'runs/tiny', model=my_networks.Tiny(width=5), epochs=2, quiet=True)\n"
        "print(run.model, len(run.model.predict(['images/red/000.png'])))\n"
    )
    done = python(module, "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Model(tiny: 3 classes") and done.stdout.endswith(" 1\n")
    # Loading a model file imports no user code; the error names the class that is missing.
    alone = python(module, "-c", "import logpose; logpose.load('runs/tiny')")
    assert alone.returncode == 1 and "my_networks:Tiny" in alone.stderr.splitlines()[-1]
    again = python(module, "-c", "import logpose, my_networks; print(logpose.load('runs/tiny'))")
    assert again.stdout.startswith("Model(tiny:"), again.stderr


def test_commands_take_the_class_by_name(module: Path) -> None:
    cli = ("-m", "logpose")
    few = ("--epochs", "1", "--device", "cpu")
    done = python(module, *cli, "train", "colours.zarr", "runs/tiny", "--model", "my_networks:Tiny", *few)
    assert done.returncode == 0, done.stderr
    bare = python(module, *cli, "classify", "images", "runs/tiny", "out.csv")
    assert bare.returncode == 2 and "--model my_networks:Tiny" in bare.stderr, bare.stderr
    named = python(module, *cli, "classify", "images", "runs/tiny", "out.csv", "--model", "my_networks:Tiny")
    assert named.returncode == 0, named.stderr
    assert len((module / "out.csv").read_text().splitlines()) == 61
    resumed = python(
        module, *cli, "train", "colours.zarr", "runs/tiny", "--model", "my_networks:Tiny", "--resume", "--epochs", "2"
    )
    assert resumed.returncode == 0, resumed.stderr
    report = python(module, *cli, "report", "runs/tiny", "--model", "my_networks:Tiny")
    assert report.returncode == 0, report.stderr


def test_missing_class_is_an_error_of_one_line(module: Path) -> None:
    for name in ("no_such_module:Tiny", "my_networks:Other", "my_networks:Square"):
        done = python(module, "-m", "logpose", "train", "colours.zarr", "runs/x", "--model", name)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("error: ") and "bug" not in done.stderr


def test_unregistered_model_is_refused_with_the_remedy(module: Path) -> None:
    text = MODULE.replace("@logpose.register_model\n", "")
    (module / "my_networks.py").write_text(text)
    done = python(module, "-c", "import logpose, my_networks as m; logpose.train('colours.zarr', model=m.Tiny())")
    assert "register_model" in done.stderr.splitlines()[-1], done.stderr


def test_cluster_workers_import_the_registered_class(module: Path) -> None:
    pytest.importorskip("distributed")
    script = (
        "import logpose, my_networks\n"
        "from distributed import LocalCluster\n"
        "if __name__ == '__main__':\n"
        "    logpose.train('colours.zarr', 'runs/tiny', model='tiny', epochs=1, device='cpu', quiet=True)\n"
        "    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:\n"
        "        address = cluster.scheduler_address\n"
        "        logpose.classify('images', 'runs/tiny', 'a.csv', scheduler=address, device='cpu', quiet=True)\n"
        "    logpose.classify('images', 'runs/tiny', 'b.csv', device='cpu', quiet=True)\n"
    )
    (module / "main.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "main.py"], cwd=module, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (module / "a.csv").read_bytes() == (module / "b.csv").read_bytes()
