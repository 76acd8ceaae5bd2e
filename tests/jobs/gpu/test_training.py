"""Trainings on an emulated GPU: the results, and what happens when they are interrupted or the card fails."""

import random
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from jobs.training.run_folder import RunFolder
from tests.jobs.conftest import Logpose
from tests.jobs.gpu.conftest import RECIPE, Gpu
from tests.jobs.killing import LoggedRun
from tests.jobs.training.runs import assert_same_weights, metrics_without_times, weights

STEPS = 2 * 3  # of RECIPE
MARKS = {"S": ("cnn.training.trainer:Trainer", "start_micro_batches")}


def assert_same_training(one: Path, other: Path) -> None:
    assert_same_weights(one, other)
    assert metrics_without_times(one) == metrics_without_times(other)


def test_float32_agrees_with_the_cpu(gpu: Gpu, logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    recipe = (*RECIPE, "--set", "optimizer.name=sgd", "--set", "augment.cutout=0.25")
    assert gpu("train", dataset, tmp_path / "gpu", *recipe, "--precision", "float32").code == 0
    assert logpose("train", dataset, tmp_path / "cpu", *recipe, "--device", "cpu").code == 0
    for name, values in weights(tmp_path / "cpu").items():
        np.testing.assert_allclose(weights(tmp_path / "gpu")[name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    for found, expected in zip(*map(metrics_without_times, (tmp_path / "gpu", tmp_path / "cpu")), strict=True):
        np.testing.assert_allclose(list(map(float, found)), list(map(float, expected)), rtol=1e-3)


def test_run_folder_tells_the_device(gpu_run: Path, trained: Path) -> None:
    summary, cpu = RunFolder(gpu_run).read_summary(), RunFolder(trained).read_summary()
    assert summary and cpu
    assert summary.device == "CUDA emulated on the CPU in bf16" and cpu.device.startswith("cpu, ")


def test_images_in_device_memory_give_the_same_bits(gpu: Gpu, dataset: Path, gpu_run: Path, tmp_path: Path) -> None:
    outcome = gpu("train", dataset, tmp_path / "run", *RECIPE, "--cache", "device")
    assert outcome.code == 0
    assert "cache    the 0.04 MB of training images are kept in the GPU's memory" in outcome.out
    assert_same_training(tmp_path / "run", gpu_run)


@pytest.mark.parametrize("number", range(2))
def test_killed_training_resumes_to_the_same_bits(
    gpu: Gpu, dataset: Path, gpu_run: Path, tmp_path: Path, number: int
) -> None:
    run_dir, draw = tmp_path / "run", random.Random(number)
    run = LoggedRun(tmp_path, MARKS, "train", dataset, run_dir, *RECIPE, "--checkpoint-steps", 2)
    run.wait_for("S", draw.randint(1, STEPS))
    run.process.send_signal(signal.SIGKILL if number else signal.SIGINT)
    assert run.process.wait(timeout=300) == (-signal.SIGKILL if number else 130), run.output
    outcome = gpu("train", dataset, run_dir, "--resume", "--device", "cuda")
    assert (outcome.code, outcome.err) == (0, "")
    assert "note" not in outcome.out
    assert_same_training(run_dir, gpu_run)


def test_training_on_a_card_that_fails_resumes_to_the_same_bits(
    gpu: Gpu, dataset: Path, gpu_run: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    outcome = gpu("train", dataset, run_dir, *RECIPE, "--precision", "bf16", "--checkpoint-steps", 2, fails_after=2)
    assert outcome.code == 1
    assert outcome.error == (
        "error: the GPU failed (cudaErrorIllegalAddress: an illegal memory access was encountered); the training is"
        f" saved up to step 2; resume with: logpose train {dataset} {run_dir} --resume --precision bf16"
    )
    assert gpu("train", dataset, run_dir, "--resume").code == 0
    assert_same_training(run_dir, gpu_run)


def test_resumed_training_notes_another_device(gpu: Gpu, logpose: Logpose, dataset: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert logpose("train", dataset, run_dir, *RECIPE, "--device", "cpu", "--epochs", 1).code == 0
    outcome = gpu("train", dataset, run_dir, "--resume", "--epochs", 2, "--precision", "float32")
    assert outcome.code == 0
    words = " ".join(outcome.out.split())
    now = "CUDA emulated on the CPU in float32"
    assert re.search(rf"note trained on cpu, \S+ so far, and now on {now}: the weights will", words)


def test_too_little_memory_names_a_batch_size_that_fits(
    gpu: Gpu, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_CPU_MEMORY", "300000")
    run_dir, recipe = tmp_path / "run", (*RECIPE, "--epochs", "1", "--cache", "none")
    outcome = gpu("train", dataset, run_dir, *recipe, "--batch-size", "48")
    assert outcome.code == 1
    start = "error: out of memory on CUDA emulated on the CPU with batches of 48 images; "
    found = re.fullmatch(start + r"start again with --overwrite --batch-size (\d+), which fits", outcome.error)
    assert found, outcome.error
    assert gpu("train", dataset, run_dir, *recipe, "--batch-size", found[1], "--overwrite").code == 0
    outcome = gpu("find-lr", dataset, *RECIPE[:4], "--steps", 20, "--device", "cuda", "--batch-size", "48")
    assert outcome.code == 1
    assert outcome.error == f"{start}use --batch-size {found[1]}, which fits"


def test_old_card_computes_in_float32(
    gpu: Gpu, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_CPU_CAPABILITY", "7.5")
    outcome = gpu("train", dataset, tmp_path / "run", *RECIPE, "--epochs", 1)
    assert outcome.code == 0
    assert re.search(r"device   cuda: CUDA emulated on the CPU, CuPy \S+, float32\n", outcome.out)
    outcome = gpu("train", dataset, tmp_path / "other", *RECIPE, "--precision", "bf16")
    assert outcome.code == 2
    assert outcome.error.endswith("capability 8.0 or newer, found 7.5; use --precision float32")


def test_find_lr(gpu: Gpu, dataset: Path) -> None:
    outcome = gpu("find-lr", dataset, *RECIPE[:4], "--steps", 30, "--device", "cuda", "--batch-size", 8)
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"  logpose train .* --lr \S+ .* --device cuda\n", outcome.out)
