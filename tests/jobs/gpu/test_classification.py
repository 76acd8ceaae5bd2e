"""Classifications on an emulated GPU: the table does not depend on the batch, and none blames an image for the card."""

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.jobs.conftest import Logpose
from tests.jobs.gpu.conftest import Gpu

OPTIONS = ("--device", "cuda", "--topk", "3", "--views", "mirror")


def probabilities(table: Path) -> np.ndarray:
    """Those of each image, sorted by label: (N, 3)."""
    with table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "ok"]
    columns = (("label", "prob"), ("label_2", "prob_2"), ("label_3", "prob_3"))
    pairs = [sorted((row[label], float(row[prob])) for label, prob in columns) for row in rows]
    return np.array([[prob for _, prob in each] for each in pairs])  # (N, 3)


@pytest.fixture
def images(image_folder: Path) -> Path:
    return image_folder / "red"


def test_table_is_the_same_for_any_batch_size(
    gpu: Gpu, logpose: Logpose, images: Path, gpu_run: Path, tmp_path: Path
) -> None:
    """Batches of 3 come often enough for a CUDA graph."""
    tables = {size: tmp_path / f"{size}.csv" for size in (1, 3, 32)}
    for size, table in tables.items():
        assert gpu("classify", images, gpu_run, table, *OPTIONS, "--batch-size", size).code == 0
        assert table.read_bytes() == tables[1].read_bytes()
    assert logpose("classify", images, gpu_run, tmp_path / "cpu.csv", *OPTIONS, "--device", "cpu").code == 0
    np.testing.assert_allclose(probabilities(tables[1]), probabilities(tmp_path / "cpu.csv"), atol=5e-3)


def test_card_that_fails_ends_the_classification(gpu: Gpu, images: Path, gpu_run: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    outcome = gpu("classify", images, gpu_run, table, *OPTIONS, "--batch-size", 4, fails_after=1)
    assert outcome.code == 1
    assert outcome.error == (
        "error: the GPU failed (cudaErrorIllegalAddress: an illegal memory access was encountered); finished parts are"
        " saved; run the same command again to resume"
    )
    assert not table.exists()
    outcome = gpu("classify", images, gpu_run, table, *OPTIONS, "--batch-size", 4)
    assert outcome.code == 0
    assert "20 images classified: " in outcome.out


def test_too_little_memory_for_a_batch(
    gpu: Gpu, images: Path, gpu_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = tmp_path / "much.csv", tmp_path / "little.csv"
    assert gpu("classify", images, gpu_run, tables[0], *OPTIONS).code == 0
    monkeypatch.setenv("CUDA_CPU_MEMORY", "150000")
    outcome = gpu("classify", images, gpu_run, tables[1], *OPTIONS)
    assert outcome.code == 0
    assert "note: batches of " in outcome.out
    assert tables[0].read_bytes() == tables[1].read_bytes()
    monkeypatch.setenv("CUDA_CPU_MEMORY", "30000")
    outcome = gpu("classify", images, gpu_run, tmp_path / "none.csv", *OPTIONS)
    assert outcome.code == 1
    assert "expected memory for one image" in outcome.error or "out of GPU memory" in outcome.error
