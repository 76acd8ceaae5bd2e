"""Arguments of the Python interface: wrong types, NumPy numbers, values out of range, and every kind of image."""

import copy
import inspect
import pickle
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import logpose
from cnn.models import Plain
from jobs.console.output import Verbosity, verbosity, verbosity_of
from jobs.options import ClassifyOptions, TrainOptions
from pipeline.build.options import BuildOptions

FEW: dict[str, Any] = {"model": "plain", "epochs": 1, "batch_size": 8, "device": "cpu", "quiet": True}
WRONG = (object(), [], {}, b"x", 1.5, -3, "", "nonsense", True, np.zeros(2), float("nan"))


def call(function: Callable[..., Any], **options: Any) -> Any:
    arguments = {
        logpose.build: ("images", "new.zarr"),
        logpose.train: ("colours.zarr", "new"),
        logpose.classify: ("images", "runs/colours", "new.csv"),
    }[function]
    return function(*arguments, quiet=True, **options)


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(
    ("function", "options"),
    [(logpose.build, BuildOptions), (logpose.train, TrainOptions), (logpose.classify, ClassifyOptions)],
)
def test_options_of_wrong_types_are_refused_in_one_line(
    function: Callable[..., Any], options: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value is refused before the job starts, or reaches it as a plain Python value."""
    name = {logpose.build: "data.build_job", logpose.train: "training.train_job"}.get(
        function, "classification.classify_job"
    )
    started: list[Any] = []

    def job(*arguments: Any) -> None:
        started.append(next(each for each in arguments if isinstance(each, options)))
        raise logpose.LogposeError("started")

    monkeypatch.setattr(f"logpose.{name}", job)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.name == "quiet":
            continue
        for value in WRONG:
            with pytest.raises(logpose.LogposeError) as caught:
                call(function, **{parameter.name: value})
            assert "\n" not in str(caught.value), (parameter.name, value)
            if str(caught.value) == "started" and hasattr(started[-1], parameter.name):
                passed = getattr(started[-1], parameter.name)
                assert not isinstance(passed, np.generic | np.ndarray | dict | bytes), (parameter.name, value)


@pytest.mark.parametrize("value", [None, 5, b"images", ["images"], "", "a\0b", object()])
def test_paths_of_wrong_types_are_refused_in_one_line(value: Any, workspace: Path) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: logpose.open(value),
        lambda: logpose.load(value),
        lambda: logpose.load_run(value),
        lambda: logpose.build(value, "x.zarr", quiet=True),
        lambda: logpose.build("images", value, quiet=True),
        lambda: logpose.train(value, "x", **FEW),
        lambda: logpose.classify(value, "runs/colours", "x.csv", quiet=True),
        lambda: logpose.classify("images", value, "x.csv", quiet=True),
        lambda: logpose.classify("images", "runs/colours", value, quiet=True),
        lambda: logpose.load("runs/colours", device="cpu").predict([value]),
    ]
    for attempt in calls:
        with pytest.raises(logpose.LogposeError) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert not (workspace / "x.zarr").exists() and not (workspace / "x.csv").exists()


@pytest.mark.usefixtures("workspace")
def test_model_object_instead_of_its_path_is_refused_with_the_path() -> None:
    with pytest.raises(logpose.LogposeError, match=r"give its path, runs/colours/model\.safetensors"):
        logpose.classify("images", logpose.load("runs/colours", device="cpu"), "x.csv")  # type: ignore[arg-type]


@pytest.mark.usefixtures("workspace")
def test_errors_of_the_operating_system_have_a_remedy() -> None:
    for attempt in (
        lambda: logpose.train("colours.zarr", "images/red/000.png/run", **FEW),
        lambda: logpose.open("a" * 300),
        lambda: logpose.load("a" * 300),
        lambda: logpose.load_run("a" * 300),
        lambda: logpose.classify("images", "runs/colours", "a" * 300, quiet=True),
    ):
        with pytest.raises(logpose.LogposeError, match=r"; |: check"):
            attempt()


@pytest.mark.usefixtures("workspace")
def test_numpy_numbers_are_accepted() -> None:
    data = logpose.build("images", "b.zarr", size=np.int64(16), val=np.float32(0.25), seed=np.int8(3), quiet=True)  # type: ignore[arg-type]
    assert data.size == (16, 16) and len(data.val) == 15
    values = {"model.width": np.int64(2), "augment.cutout": np.float32(0.25), "augment.flip": np.bool_(True)}
    run = logpose.train(data, "a", **FEW | {"epochs": np.int64(1), "lr": np.float64(0.01)}, values=values)
    same = logpose.train(data, "b", **FEW | {"model": Plain(width=np.int64(2))}, lr=0.01, values={**values})  # type: ignore[arg-type]
    assert run.history["train_loss"] == same.history["train_loss"]
    order = [batch.rows.copy() for batch in logpose.BatchStream(data.train, np.int64(8), seed=np.uint8(3))]  # type: ignore[arg-type]
    for rows, batch in zip(order, logpose.BatchStream(data.train, 8, seed=3).epoch(np.int64(0)), strict=True):  # type: ignore[arg-type]
        np.testing.assert_array_equal(rows, batch.rows)


@pytest.mark.usefixtures("workspace")
def test_streams_of_wrong_types_are_refused_in_one_line() -> None:
    data = logpose.open("colours.zarr")
    for options in ({"batch_size": 8.0}, {"seed": "a"}, {"workers": 1.5}, {"ram_budget": "1GB"}, {"split": data}):
        with pytest.raises(logpose.LogposeError, match="expected a"):
            logpose.BatchStream(**{"split": data.train, "batch_size": 8, "seed": 0, **options})  # type: ignore[arg-type]
    with pytest.raises(logpose.LogposeError, match="epoch: expected a whole number"):
        logpose.BatchStream(data.train, 8, seed=0).epoch("a")  # type: ignore[arg-type]
    for index in ([[1], [1, 2]],):
        with pytest.raises(TypeError, match="expected an int, a slice or an array of ints"):
            data.train[index]  # type: ignore[index]


@pytest.mark.usefixtures("workspace")
def test_values_override_objects() -> None:
    sgd = logpose.optimizers.SGD(lr=0.5)
    run = logpose.train(
        "colours.zarr", "a", **FEW | {"model": Plain(width=3)}, optimizer=sgd, lr=0.02,
        values={"optimizer.momentum": 0.5},
    )  # fmt: skip
    text = (run.path / "config.toml").read_text()
    assert "lr = 0.02" in text and "momentum = 0.5" in text and "width = 3" in text
    # Resuming with an object keeps the rest of the recipe, as with a name.
    longer = logpose.train("colours.zarr", "a", model=Plain(width=3), epochs=2, resume=True, quiet=True)
    assert len(longer.history) == 2
    started = logpose.train("colours.zarr", "b", optimizer=sgd, init="a", epochs=1, device="cpu", quiet=True)
    assert "width = 3" in (started.path / "config.toml").read_text()
    again = logpose.train("colours.zarr", "c", recipe="a/config.toml", epochs=1, device="cpu", quiet=True)
    assert "momentum = 0.5" in (again.path / "config.toml").read_text()


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("kind", ["colours.zarr", "/"])
def test_dataset_or_root_as_run_folder_is_refused(kind: str) -> None:
    with pytest.raises(logpose.LogposeError, match="expected a folder for the results"):
        logpose.train("colours.zarr", kind, **FEW)


def test_ctrl_c_raises_an_error_that_explains_how_to_resume(workspace: Path) -> None:
    timer = threading.Timer(1.0, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(logpose.LogposeError, match="resume with"):
        logpose.train("colours.zarr", "a", **FEW | {"epochs": 100_000})
    assert (workspace / "a" / "last.safetensors").exists()


def test_verbosity_is_separate_in_each_thread() -> None:
    inside, leave = threading.Event(), threading.Event()

    def quiet() -> None:
        with verbosity_of(Verbosity.QUIET):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=quiet)
    thread.start()
    assert inside.wait(10)
    with verbosity_of(Verbosity.NORMAL):
        leave.set()
        thread.join()
    assert verbosity() is Verbosity.NORMAL


# Images -------------------------------------------------------------------------------------------------


def pillow_images() -> dict[str, tuple[Image.Image, str]]:
    """One image of each mode, with the ending of a file that can hold it."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    image = Image.fromarray(noise.repeat(2, 0).repeat(2, 1))
    with_alpha = image.convert("RGBA")
    with_alpha.putalpha(image.convert("L"))
    modes = {mode: (image.convert(mode), "png") for mode in ("1", "L", "P", "RGB", "LA")}
    deep = Image.fromarray((noise[..., 0].astype(np.uint16)) * 200)
    return modes | {
        "RGBA": (with_alpha, "png"),
        "I;16": (deep, "png"),
        "CMYK": (image.convert("CMYK"), "tif"),
        "F": (Image.fromarray(noise[..., 0] / np.float32(255)), "tif"),
        "JPEG": (image, "jpg"),
    }


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("mode", pillow_images())
@pytest.mark.parametrize("orientation", [1, 6])
def test_pillow_image_has_the_probabilities_of_its_file(mode: str, orientation: int) -> None:
    image, ending = pillow_images()[mode]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(f"x.{ending}", **({"exif": exif} if ending != "tif" else {}))
    model = logpose.load("runs/colours", device="cpu")
    expected = model.probabilities(f"x.{ending}")
    with Image.open(f"x.{ending}") as opened:
        np.testing.assert_array_equal(model.probabilities(opened), expected)
        np.testing.assert_array_equal(model.probabilities(opened), expected)  # not changed by the first call
        opened.load()
        if mode != "JPEG":  # decoded at a reduced size from its file
            np.testing.assert_array_equal(model.probabilities(opened), expected)


@pytest.mark.usefixtures("workspace")
def test_damaged_pillow_images_are_refused_in_one_line() -> None:
    model = logpose.load("runs/colours", device="cpu")
    Path("cut.png").write_bytes(Path("images/red/000.png").read_bytes()[:200])
    with Image.open("cut.png") as cut, pytest.raises(logpose.LogposeError, match="found a Pillow image, which is"):
        model.predict(cut)
    with pytest.raises(logpose.LogposeError, match="found a Pillow image, which is"):
        model.predict(Image.new("RGB", (0, 0)))


@pytest.mark.usefixtures("workspace")
def test_arrays_of_any_memory_order_have_the_same_probabilities() -> None:
    model = logpose.load("runs/colours", device="cpu")
    images = logpose.open("colours.zarr").val[:4].images
    expected = model.probabilities(images)
    spread = np.zeros((8, *images.shape[1:]), np.uint8)
    spread[::2] = images
    for same in (np.asfortranarray(images), images[::-1].copy()[::-1], spread[::2]):
        np.testing.assert_array_equal(model.probabilities(same), expected)
    assert model.predict(images[:0]) == [] == model.predict([])
    assert model.probabilities([]).shape == (0, 3)


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("topk", [0, 4, 1.5, "1", None, True])
def test_topk_out_of_range_or_of_wrong_type_is_refused(topk: Any) -> None:
    with pytest.raises(logpose.LogposeError, match="topk: expected"):
        logpose.load("runs/colours", device="cpu").predict("images/red/000.png", topk=topk)


def test_models_and_datasets_can_be_copied_and_pickled(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = logpose.load("runs/colours", device="cpu"), logpose.open(workspace / "colours.zarr")
    expected = model.probabilities("images/red/000.png")
    written = pickle.dumps(model)
    monkeypatch.chdir("/")
    for other in (pickle.loads(written), copy.deepcopy(pickle.loads(written))):
        np.testing.assert_array_equal(other.probabilities(workspace / "images/red/000.png"), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data)).val[0].image, data.val[0].image)


def test_a_run_whose_path_is_not_valid_utf8_has_a_report(workspace: Path) -> None:
    odd = workspace / "run \udcff\n"
    (workspace / "runs" / "colours").rename(odd)
    assert logpose.load_run(odd).report(quiet=True).stat().st_size > 10_000


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("out", ["images", ".", "/"])
def test_folder_as_table_is_refused(out: str) -> None:
    with pytest.raises(logpose.LogposeError, match="is a folder; give the name of a file, such as"):
        logpose.classify("images", "runs/colours", out, quiet=True)
