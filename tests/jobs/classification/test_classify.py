"""Classification: one row per file, whatever its name and content."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from cnn.backends import pick_backend
from cnn.checkpoint import load_checkpoint, save_checkpoint
from cnn.inference.predictor import Predictor
from cnn.losses import SoftmaxCrossEntropy
from cnn.training.trainer import Recipe, Trainer
from jobs.classification import inputs, task
from jobs.errors import JobError
from jobs.options import ClassifyOptions
from pipeline.dataset.store import Dataset, shard_file
from pipeline.loader.stream import BatchStream
from tests.jobs.classification.tables import read
from tests.jobs.conftest import CLASSES, Logpose, draw_classes, draw_image

HEADER = ["filename", "status", "label", "prob", "error"]
ODD_NAMES = ("comma, here.png", 'quo"te.png', "new\nline.png", " space .png", "ünïcödé ルフィ.png", "=1+1.png", "#.png")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Images with unusual names in nested folders, some of them broken."""
    root = tmp_path / "mixed"
    for number, name in enumerate(ODD_NAMES):
        draw_image(root / name, number % 3, number)
    draw_image(root / "deep" / "er" / "still.png", 1, 100)
    (root / "broken.jpg").write_bytes(b"")
    (root / "deep" / "notes.txt").write_text("no image")
    (root / "deep" / "cut.png").write_bytes((root / "#.png").read_bytes()[:200])
    return root


def relative_names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_one_row_for_each_file_sorted_by_path(
    logpose: Logpose, mixed: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, computed = tmp_path / "results" / "out.csv", []
    whole = Predictor.probabilities
    monkeypatch.setattr(Predictor, "probabilities", lambda s, x: computed.append(len(x)) or whole(s, x))
    outcome = logpose("classify", mixed, model, out, "--topk", 3, "--batch-size", 4)
    assert (outcome.code, outcome.err) == (0, "")
    assert "8 images classified, 3 files could not be read (status 'error')" in outcome.out
    header, *rows = read(out)
    assert header == [*HEADER, "label_2", "prob_2", "label_3", "prob_3"]
    assert [row[0] for row in rows] == relative_names(mixed)
    assert {len(row) for row in rows} == {9}
    for name, status, label, prob, error, *more in rows:
        if name in ("broken.jpg", "deep/notes.txt", "deep/cut.png"):
            assert (status, label, prob, more) == ("error", "", "", [""] * 4)
            assert error
        else:
            assert (status, error) == ("ok", "")
            assert {label, more[0], more[2]} == set(CLASSES)
            probs = [float(value) for value in (prob, more[1], more[3])]
            assert probs == sorted(probs, reverse=True)
            assert sum(probs) == pytest.approx(1, abs=2e-6)
    assert not out.with_name("out.csv.parts").exists()
    assert b"\r" not in out.read_bytes()
    assert sum(computed) == 8, "unreadable files are not predicted"


def test_task_raises_where_the_model_file_differs(model: Path, tmp_path: Path) -> None:
    another = task.TaskSettings(model, "0" * 64, ClassifyOptions(device="cpu"))
    with pytest.raises(JobError, match=r"expected the same model throughout a classification, found another one .*at"):
        task.classify_task(another, task.FileTask(str(tmp_path), ["a.png"]))


def test_model_class_is_imported_here_and_on_workers(
    logpose: Logpose, image_folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported: list[str] = []
    for module in ("classify", "task"):
        monkeypatch.setattr(f"jobs.classification.{module}.import_model", imported.append)
    assert logpose("classify", image_folder, model, tmp_path / "a.csv").code == 0
    assert imported == [], "a model file alone imports nothing"
    assert logpose("classify", image_folder, model, tmp_path / "b.csv", "--model", "nets.small:Small").code == 0
    assert imported == ["nets.small:Small"]
    options = ClassifyOptions(device="cpu", model="nets.small:Small")
    settings = task.TaskSettings(model, load_checkpoint(model).digest, options)
    task.classify_task(settings, task.FileTask(str(image_folder), ["red/000.png"]))
    assert imported == ["nets.small:Small"] * 2


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system accepts only UTF-8")
def test_file_name_that_is_not_utf8_is_written_unchanged(logpose: Logpose, model: Path, tmp_path: Path) -> None:
    draw_image(tmp_path / "odd" / "a.png", 0, 0)
    os.rename(tmp_path / "odd" / "a.png", os.fsencode(tmp_path / "odd") + b"/caf\xe9.png")  # noqa: PTH104
    assert logpose("classify", tmp_path / "odd", model, tmp_path / "out.csv").code == 0
    assert b"\ncaf\xe9.png,ok," in (tmp_path / "out.csv").read_bytes()


def test_logits_equal_those_of_validation(
    logpose: Logpose, image_folder: Path, dataset: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: logits of an image read from a file, in any batch, and of the same image in the dataset."""
    from_files: dict[bytes, bytes] = {}  # pixels -> logits
    probabilities = Predictor.probabilities

    def spied(self: Predictor, images: np.ndarray) -> np.ndarray:
        for pixels, logits in zip(images, self.logits(images), strict=True):  # (H, W, 3), (C,)
            from_files[pixels.tobytes()] = logits.tobytes()
        return probabilities(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "probabilities", spied)
        options = ("--batch-size", 7, "--device", "cpu")
        assert logpose("classify", image_folder, model, tmp_path / "out.csv", *options).code == 0

    val, seen = Dataset.open(dataset).val, []
    loss_of = SoftmaxCrossEntropy.forward

    def spied_loss(self: SoftmaxCrossEntropy, backend: Any, outputs: Any, *rest: Any) -> Any:
        seen.extend(logits.tobytes() for logits in outputs)  # (C,) each
        return loss_of(self, backend, outputs, *rest)

    monkeypatch.setattr(SoftmaxCrossEntropy, "forward", spied_loss)
    checkpoint, backend = load_checkpoint(model), pick_backend("cpu")
    card = checkpoint.card
    network = card.build_network(backend)
    checkpoint.load_into(network)
    trainer = Trainer(network, Recipe(), np.array(card.mean), np.array(card.std), 1)
    trainer.evaluate((batch.images, batch.labels) for batch in BatchStream(val, 5, seed=0, shuffle=False).epoch(0))
    assert seen == [from_files[pixels.tobytes()] for pixels in val.read(0, val.rows)]


def test_views_average_the_outputs(
    logpose: Logpose, image_folder: Path, dataset: Path, model: Path, tmp_path: Path
) -> None:
    """Probabilities of the mean outputs over an image and its mirror image, in any batch."""
    probs: dict[str, list[list[str]]] = {}
    for views, batch in (("none", 7), ("mirror", 7), ("mirror", 3), ("mirror_shift", 7)):
        out = tmp_path / f"{views}-{batch}.csv"
        assert logpose("classify", dataset, model, out, "--views", views, "--batch-size", batch).code == 0
        assert probs.setdefault(views, read(out)) == read(out)
    assert probs["none"] != probs["mirror"] != probs["mirror_shift"] != probs["none"]
    assert logpose("classify", image_folder, model, tmp_path / "files.csv", "--views", "mirror").code == 0
    assert read(tmp_path / "files.csv") == probs["mirror"]
    task._process_cache.clear()  # as on a cluster worker, which loads the model itself, for one job after the other
    files = task.FileTask(str(image_folder), [row[0] for row in probs["mirror"][1:4]])
    for views in ("mirror", "none"):
        options = ClassifyOptions(device="cpu", views=views, batch_size=8)
        settings = task.TaskSettings(model, load_checkpoint(model).digest, options)
        assert task.classify_task(settings, files) == probs[views][1:4]
    predictor, val = Predictor(model, pick_backend("cpu")), Dataset.open(dataset).val
    images = val.read(0, val.rows)  # (N, H, W, 3)
    outputs = (predictor.logits(images) + predictor.logits(np.ascontiguousarray(images[:, :, ::-1]))) / 2  # (N, C)
    expected = predictor.loss.probabilities(predictor.backend, outputs / predictor.card.temperature).max(axis=1)
    prob = {row[0]: float(row[3]) for row in probs["mirror"][1:]}
    np.testing.assert_allclose([prob[name] for name in val.paths], expected, rtol=1e-4, atol=1e-6)


def test_dataset_and_its_folder_give_the_same_bytes(
    logpose: Logpose, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_classes(tmp_path / "colours", 20)
    (tmp_path / "colours" / "red" / "broken, too.png").write_bytes(b"")
    assert logpose("build", tmp_path / "colours", tmp_path / "colours.zarr", "--size", 16, "--val", 0.2).code == 0
    monkeypatch.setattr(inputs, "ROWS_PER_PART", 16)
    outs = [tmp_path / "folder.csv", tmp_path / "dataset.csv"]
    for images, out in zip((tmp_path / "colours", tmp_path / "colours.zarr"), outs, strict=True):
        assert logpose("classify", images, model, out, "--topk", 2).code == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert len(read(outs[0])) == 62


def test_dataset_of_another_size_is_rejected(logpose: Logpose, image_folder: Path, model: Path, tmp_path: Path) -> None:
    assert logpose("build", image_folder, tmp_path / "small.zarr", "--size", 8).code == 0
    outcome = logpose("classify", tmp_path / "small.zarr", model, tmp_path / "out.csv")
    assert outcome.code == 2
    assert "expected images of 16×16 (pad), as the model was trained on, found 8×8 (pad) in" in outcome.error
    assert not list(tmp_path.glob("out.csv*"))


def test_damaged_dataset_is_an_error(logpose: Logpose, dataset: Path, model: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(dataset, tmp_path / "broken.zarr"))
    shard_file(broken, "train", 0).unlink()
    outcome = logpose("classify", broken, model, tmp_path / "out.csv")
    assert outcome.code == 2
    assert "found damage in train images, chunk" in outcome.error


def test_label_below_the_threshold_is_unknown(
    logpose: Logpose, image_folder: Path, model: Path, tmp_path: Path
) -> None:
    assert logpose("classify", image_folder, model, tmp_path / "all.csv").code == 0
    assert logpose("classify", image_folder, model, tmp_path / "sure.csv", "--threshold", 0.6).code == 0
    rows = list(zip(read(tmp_path / "all.csv")[1:], read(tmp_path / "sure.csv")[1:], strict=True))
    assert {float(row[3]) >= 0.6 for row, _ in rows} == {True, False}, "some on either side of the threshold"
    for row, sure in rows:
        label = row[2] if float(row[3]) >= 0.6 else "unknown"
        assert sure == [row[0], "ok", label, row[3], ""]


def test_spreadsheet_safe_escapes_formulas(logpose: Logpose, mixed: Path, model: Path, tmp_path: Path) -> None:
    assert logpose("classify", mixed, model, tmp_path / "out.csv", "--spreadsheet-safe").code == 0
    names = [row[0] for row in read(tmp_path / "out.csv")[1:]]
    assert "'=1+1.png" in names and "=1+1.png" not in names


def test_parquet_equals_csv(logpose: Logpose, mixed: Path, model: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert logpose("classify", mixed, model, tmp_path / "out.csv").code == 0
    assert logpose("classify", mixed, model, tmp_path / "out.parquet").code == 0
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    for row, (name, status, label, prob, error) in zip(rows, read(tmp_path / "out.csv")[1:], strict=True):
        assert (row["filename"], row["status"], row["label"] or "", row["error"] or "") == (name, status, label, error)
        assert prob == "" if row["prob"] is None else row["prob"] == pytest.approx(float(prob), abs=1e-6)


def test_single_image_and_run_folder_as_model(
    logpose: Logpose, image_folder: Path, trained: Path, tmp_path: Path
) -> None:
    one = image_folder / "red" / "000.png"
    assert logpose("classify", one, trained, tmp_path / "out.csv").code == 0
    header, row = read(tmp_path / "out.csv")
    assert header == HEADER
    assert row[0] == "000.png"


def test_batch_without_a_readable_file(logpose: Logpose, model: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    for number in range(5):
        (tmp_path / "broken" / f"{number}.png").write_bytes(b"")
    outcome = logpose("classify", tmp_path / "broken", model, tmp_path / "out.csv", "--batch-size", 2)
    assert outcome.code == 0
    assert "0 images classified, 5 files could not be read" in outcome.out
    assert [row[1] for row in read(tmp_path / "out.csv")[1:]] == ["error"] * 5


def test_table_inside_the_image_folder_is_not_an_input(
    logpose: Logpose, image_folder: Path, model: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(image_folder, tmp_path / "copy"))
    out = root / "out.csv"
    assert logpose("classify", root, model, out).code == 0
    assert logpose("classify", root, model, out, "--overwrite").code == 0
    assert len(read(out)) == 61


# Rejected -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "no model file at"),
        ("truncated", "may be truncated"),
        ("flipped bit", "is damaged: it does not match its checksum"),
        ("not ours", "is a safetensors file but not"),
        ("no safetensors", "is not a complete model file"),
        ("other shape", "parameter head.weight: expected shape"),
        ("lacks one", "expected a parameter head.weight of shape"),
        ("unknown model", "needs the model 'resnet8', which is not registered; import"),
    ],
)
def test_unusable_model_is_an_error(
    logpose: Logpose, image_folder: Path, model: Path, tmp_path: Path, damage: str, message: str
) -> None:
    broken = Path(shutil.copy(model, tmp_path / "broken.safetensors"))
    content = bytearray(model.read_bytes())
    checkpoint = load_checkpoint(model)
    tensors = dict(checkpoint.tensors)
    if damage == "missing":
        broken.unlink()
    elif damage == "truncated":
        broken.write_bytes(content[: len(content) // 2])
    elif damage == "flipped bit":
        content[-10] ^= 1
        broken.write_bytes(content)
    elif damage == "not ours":
        save_file({"weight": np.zeros(3)}, broken)
    elif damage == "no safetensors":
        shutil.copy(image_folder / "red" / "000.png", broken)
    elif damage == "other shape":
        tensors["head.weight"] = tensors["head.weight"][:, :2]
        save_checkpoint(broken, checkpoint.card, tensors, {})
    elif damage == "lacks one":
        del tensors["head.weight"]
        save_checkpoint(broken, checkpoint.card, tensors, {})
    else:
        object.__setattr__(checkpoint.card, "model", "resnet8")
        save_checkpoint(broken, checkpoint.card, tensors, {})
    outcome = logpose("classify", image_folder, broken, tmp_path / "out.csv")
    assert outcome.code == 2
    assert message in outcome.error
    assert not list(tmp_path.glob("out.csv*"))


@pytest.mark.parametrize(
    ("images", "out", "options", "message"),
    [
        ("nowhere", "out.csv", (), "found nothing at"),
        ("empty", "out.csv", (), "found no file in"),
        ("some", "empty", (), "is a folder; give the name of a file, such as"),
        ("some", "new/out.parquet", ("--spreadsheet-safe",), "leave it out, or give --format csv"),
        ("some", "out.csv", ("--topk", 4), "--topk 4: expected at most 3, as "),
        ("some", "out.csv", ("--topk", 0), "invalid value for '--topk'"),
        ("some", "out.csv", ("--threshold", "nan"), "invalid value for '--threshold'"),
        ("some", "out.csv", ("--batch-size", 0), "invalid value for '--batch-size'"),
        ("some", "out.csv", ("--scheduler", "tcp://nowhere:1"), "--scheduler"),
        ("some", "some/a.png/out.csv", (), "check the path"),
    ],
)
def test_unusable_arguments_are_errors(
    logpose: Logpose, model: Path, tmp_path: Path, images: str, out: str, options: tuple[object, ...], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    draw_image(tmp_path / "some" / "a.png", 0, 0)
    outcome = logpose("classify", tmp_path / images, model, tmp_path / out, *options)
    assert outcome.code == 2
    assert message in outcome.error
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "some"}


def test_images_are_resized_to_the_model(logpose: Logpose, model: Path, tmp_path: Path) -> None:
    (tmp_path / "wide").mkdir()
    Image.new("L", (300, 20)).save(tmp_path / "wide" / "grey.gif")
    assert logpose("classify", tmp_path / "wide", model, tmp_path / "out.csv").code == 0
    assert read(tmp_path / "out.csv")[1][1] == "ok"
