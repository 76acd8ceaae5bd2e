"""The Python interface: public names, lazy import, options, results, and errors of one line."""

import inspect
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import logpose
from jobs.options import ClassifyOptions, TrainOptions
from jobs.training.run_folder import RunFolder, TrainingState
from pipeline.build.options import BuildOptions
from tests.cnn.tiny_task import CARD


def test_public_names_are_few_and_listed() -> None:
    assert len(logpose.__all__) <= 20
    assert sorted(logpose.__all__, key=str.lower) == dir(logpose) or set(dir(logpose)) == set(logpose.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'fit'; it has"):
        logpose.fit  # noqa: B018


def test_import_is_lazy() -> None:
    script = "import sys, logpose; print(logpose.__version__, 'numpy' in sys.modules, 'jobs' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [logpose.__version__, "False", "False"]


@pytest.mark.parametrize(
    ("function", "options", "excluded"),
    [
        (logpose.build, BuildOptions, set()),
        (logpose.classify, ClassifyOptions, {"model"}),
        (logpose.train, TrainOptions, {"config", "set", "checkpoint_minutes", "checkpoint_steps"}),
    ],
)
def test_functions_take_the_options_of_the_command_line(
    function: object, options: type, excluded: set[str]
) -> None:
    """The same names and defaults; `excluded` are those with another form in Python."""
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    for field in fields(options):
        if field.name in excluded:
            continue
        default = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
        given = parameters[field.name].default
        assert given == default or (field.name == "size" and (given, given) == default), field.name


def test_paths_may_be_strings(workspace: Path) -> None:
    assert len(logpose.open("colours.zarr")) == len(logpose.open(Path("colours.zarr"))) == 60
    assert logpose.load("runs/colours").path == Path("runs/colours/model.safetensors")


@pytest.mark.usefixtures("workspace")
def test_predictions_are_the_same_for_every_form_of_an_image() -> None:
    model = logpose.load("runs/colours", device="cpu")
    data = logpose.open("colours.zarr")
    image, label, path = data.val[0]
    expected = model.probabilities(image)  # (1, C)
    with Image.open(f"images/{path}") as opened:
        np.testing.assert_array_equal(model.probabilities(opened), expected)
    for same in (f"images/{path}", Path("images", path), [image], image[None]):
        np.testing.assert_array_equal(model.probabilities(same), expected)
    (best,) = model.predict([image], topk=3)
    assert best.label == data.class_names[int(expected[0].argmax())] == best.top[0][0]
    assert best.probability == pytest.approx(expected.max())
    assert sum(probability for _, probability in best.top) == pytest.approx(1)
    assert isinstance(label, int)


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((16, 16, 3), np.float32), r"expected pixels of uint8 \(16, 16, 3\), found float32 \(16, 16, 3\)"),
        (np.zeros((32, 32, 3), np.uint8), r"found uint8 \(32, 32, 3\): give the file's path, or PIL.Image.fromarray"),
        (np.zeros((2, 32, 32, 3), np.uint8), r"\(N, 16, 16, 3\)|found .*\(2, 32, 32, 3\)"),
        (np.zeros((2, 16, 16, 3)), "uint8"),
        ("missing.png", "missing.png"),
        ("images", "found the folder images: classify it into a table with logpose.classify"),
        (None, "found NoneType: give one of these, or a list"),
    ],
)
def test_wrong_images_are_refused_in_one_line(image: object, message: str) -> None:
    with pytest.raises(logpose.LogposeError, match=message) as caught:
        logpose.load("runs/colours", device="cpu").predict(image)  # type: ignore[call-overload]
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet0"}, "no model is called 'resnet0'"),
        ({"optimizer": "sdg"}, "did you mean 'sgd'?"),
        ({"values": {"augment.cutoff": 1}}, "did you mean 'cutout'?"),
        ({"recipe": "bets"}, "did you mean 'best'?"),
        ({"epochs": 0}, "epochs: expected 1 or more, found 0"),
        ({"device": "gpu"}, "no device is called 'gpu'"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(logpose.LogposeError) as caught:
        logpose.train("colours.zarr", "runs/new", quiet=True, **options)  # type: ignore[arg-type]
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("workspace")
def test_runs_without_a_folder_are_numbered() -> None:
    few = {"model": "plain", "epochs": 1, "values": {"model.width": 2}, "device": "cpu", "quiet": True}
    names = [logpose.train("colours.zarr", **few).path.name for _ in range(2)]  # type: ignore[arg-type]
    assert names == ["colours-2", "colours-3"]  # runs/colours exists


@pytest.mark.usefixtures("workspace")
def test_objects_and_names_give_the_same_training() -> None:
    few = {"epochs": 1, "batch_size": 8, "device": "cpu", "quiet": True}
    width = {"model.width": 2}
    by_text = logpose.train("colours.zarr", "a", model="plain", optimizer="sgd", lr=0.02, values=width, **few)
    from cnn.models import Plain

    by_object = logpose.train(
        "colours.zarr", "b", model=Plain(width=2), optimizer=logpose.optimizers.SGD(lr=0.02), **few
    )
    assert (by_text.path / "config.toml").read_bytes() == (by_object.path / "config.toml").read_bytes()
    assert by_text.history["train_loss"] == by_object.history["train_loss"]
    assert logpose.train("colours.zarr", "a", resume=True, quiet=True).history["epoch"] == [1]


@pytest.mark.usefixtures("workspace")
def test_history_has_columns_rows_text_and_a_plot() -> None:
    history = logpose.load_run("runs/colours").history
    assert history["epoch"] == [1, 2, 3] and [row.epoch for row in history] == [1, 2, 3]
    assert len(history[:2]) == 2 and set(history.to_dict()) >= {"epoch", "val_accuracy"}
    assert repr(history).splitlines()[0] == "epoch  train loss  train acc  val loss  val acc"
    assert history._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"  # type: ignore[index]
    with pytest.raises(KeyError, match="no column is called 'loss'; there are epoch,"):
        history["loss"]


@pytest.mark.usefixtures("workspace")
def test_report_is_written_into_the_run_folder() -> None:
    run = logpose.load_run("runs/colours")
    assert run.report(quiet=True) == run.path / "report.html" and (run.path / "report.html").stat().st_size > 10_000
    with pytest.raises(logpose.LogposeError, match="found no model in runs/none"):
        logpose.load_run("runs/none")


def test_a_run_before_its_first_epoch_has_no_history(tmp_path: Path) -> None:
    RunFolder(tmp_path).save_last(CARD, {}, TrainingState("", ""))
    run = logpose.load_run(tmp_path)
    assert len(run.history) == 0
    assert repr(run) == f"TrainingRun({tmp_path}: 0 epochs, not finished)"


@pytest.mark.usefixtures("workspace")
def test_training_runs_in_any_thread() -> None:
    train = partial(logpose.train, "colours.zarr", "thread", model="plain", epochs=1, quiet=True)
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(train, values={"model.width": 2}).result().history) == 1
