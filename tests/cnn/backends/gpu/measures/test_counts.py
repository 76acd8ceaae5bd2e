"""What a steady step asks of the device: launches, at most one wait, no new memory, and copies of the batch only."""

from typing import Any

import pytest

from tests.cnn.backends.gpu.measures.steps import CLASSES, MODELS, Counts, inference_step, training_step

ROWS = 4
# Launches of a step with clipping, an average and mixing. Parameters of `seed` are no multiples of 16 bytes: it copies.
MAX_LAUNCHES = {"resnet9": 100, "airbench94": 95, "resnet18": 210, "seed": 75}
MAX_INFERENCE_LAUNCHES = 6  # one is a graph, of all the network's kernels


def padded(*sizes: int) -> int:
    """Bytes of arrays in an upload, each at a multiple of 256."""
    return sum(-(-size // 256) * 256 for size in sizes)


def check(found: Counts, launches: int, to_device: int, to_host: int) -> None:
    assert found.launches.total() <= launches, found.launches
    # The host waits for nothing but the event of a copy, in a training step that of the step before.
    assert found.waits.total() <= 1 and set(found.waits) <= {"event.synchronize"}
    assert not found.early and not found.grown
    assert found.copied == {"bytes": to_device, "to_host": to_host}


@pytest.mark.parametrize("name", MODELS)
def test_training_step(emulator: Any, name: str) -> None:
    side, numbers = MODELS[name][1], 8 * ROWS  # bytes of row numbers, and of labels
    found = training_step(emulator, name, ROWS)
    check(found, MAX_LAUNCHES[name], padded(numbers, numbers, ROWS * side * side * 3), 4 * 8)


@pytest.mark.parametrize("name", MODELS)
def test_inference_step(emulator: Any, name: str) -> None:
    side = MODELS[name][1]
    positions = 4 * ROWS * side  # bytes of the rows, and of the columns, of images
    found = inference_step(emulator, name, ROWS)
    check(found, MAX_INFERENCE_LAUNCHES, padded(ROWS * side * side * 3, positions, positions), 4 * ROWS * CLASSES)


def test_split_sums_of_large_batches_are_few_launches(emulator: Any) -> None:
    """Large batches add up portions of each weight gradient, and those of the loss."""
    launches = training_step(emulator, "resnet9", ROWS).launches
    gradients = sum(count for name, count in launches.items() if ", WEIGHT, " in name)
    assert launches.total() - launches["add_splits<float>"] + gradients + 1 <= MAX_LAUNCHES["resnet9"]


def test_micro_batches_cost_a_launch_for_each_sum_and_one_for_the_statistics(emulator: Any) -> None:
    side, one = MODELS["resnet9"][1], training_step(emulator, "resnet9", ROWS)
    found = training_step(emulator, "resnet9", ROWS, micro_batch=1)
    numbers, pixels = 8, side * side * 3  # bytes of a micro-batch's row numbers, of its labels, and of its image
    check(found, ROWS * MAX_LAUNCHES["resnet9"], ROWS * padded(numbers, numbers, pixels), 4 * 8)
    sums = found.launches.pop("merge_sums<float, 4>") + found.launches.pop("move_statistics<float>")
    assert sums == ROWS - 1 + 1
    for name, count in found.launches.items():
        assert count <= ROWS * max(one.launches[name], 1), name
    for name in ("judge_step<float>", "sgd_step<float, 4>", "sum_squares<float, 4>"):
        assert found.launches[name] == one.launches[name], name


def test_mixup_costs_no_more_launches(emulator: Any) -> None:
    launches = [training_step(emulator, "seed", ROWS, mix).launches.total() for mix in ("none", "mixup")]
    assert launches[0] == launches[1]
