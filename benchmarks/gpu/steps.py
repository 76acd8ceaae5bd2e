"""Training steps and inference of whole networks beside PyTorch's, and a short training of the CIFAR-10 speed run."""

import time
from typing import Any

import cupy
import numpy as np

from benchmarks.gpu.record import STANDIN, Record, in_turns, synchronize, whole_steps
from benchmarks.gpu.setups import DEVICE, PRECISIONS, SETUPS, Ours, Theirs, gpu, sides_of, torch_or_none
from benchmarks.training.networks import Airbench, Case
from cnn.inputs.device_images import DeviceImages
from cnn.network import Network
from cnn.training.trainer import Trainer
from jobs.options import RecipeOptions
from jobs.recipes.config import resolve

STEPS, ROUNDS = (1, 1) if STANDIN else (10, 7)


def eager(record: Record) -> None:
    """Against eager PyTorch. Bfloat16 of all networks first, then the other precisions."""
    _compare(record, "steps", with_compile=False, precisions=PRECISIONS)


def compiled(record: Record) -> None:
    """Against `torch.compile`, whose compilation takes most of the stage."""
    if torch_or_none() is None or STANDIN:
        return record.add("compiled", "skipped", "no PyTorch, or no GPU")
    return _compare(record, "compiled", with_compile=True, precisions=("bf16",))


def _compare(record: Record, stage: str, with_compile: bool, precisions: tuple[str, ...]) -> None:
    for precision in precisions:
        for name, case in SETUPS.items():
            ours = Ours(case, precision)
            theirs = Theirs(case, precision) if torch_or_none() else None
            began = time.perf_counter()
            if with_compile and theirs:
                theirs.compile()
                theirs.step()
                theirs.infer()
                synchronize()
            found: dict[str, Any] = {"warm_up_s": round(time.perf_counter() - began, 1)} if with_compile else {}
            # Kernels alone (`passes` is forward, loss and backward), then whole steps by the clock. Ours begin with
            # uint8 images and augment them, PyTorch's with a normalised batch.
            found["passes_ms"] = in_turns(sides_of(ours, theirs, "passes"))
            found["infer_ms"] = in_turns(sides_of(ours, theirs, "infer"))
            steps = sides_of(ours, theirs, "step") | {"ours, images uploaded": ours.step_with_upload}
            found["step_ms"] = whole_steps(steps, STEPS, ROUNDS)
            ours.finish()
            for key in ("passes_ms", "infer_ms", "step_ms"):
                if theirs:
                    found[key]["torch / ours"] = round(found[key]["torch"] / found[key]["ours"], 3)
            found["step_TFLOP_per_s"] = round(3 * 2 * case.macs / found["step_ms"]["ours"] / 1e9, 2)
            found["our_pool_MB"] = round(cupy.get_default_memory_pool().total_bytes() / 1e6)
            record.add(stage, f"{name} {precision}", found)
            del ours, theirs
            cupy.get_default_memory_pool().free_all_blocks()


# The speed run -----------------------------------------------------------------------------------------


def speedrun(record: Record) -> None:
    """Ten epochs of 50,000 synthetic images at batch 1024 by the recipe `cifar-speedrun`, and the same in PyTorch."""
    epochs, images, batch = (1, 12, 4) if STANDIN else (10, 50_000, 1024)
    x, labels = _images(images, 8 if STANDIN else 32)
    changes = f"train.epochs={epochs}", f"train.batch_size={batch}"
    recipe = resolve(RecipeOptions(recipe="cifar-speedrun", set=changes))
    shape = x.shape[1:]
    layer = recipe.model.layers(shape, 10)
    network = Network(layer, shape, gpu("bf16"), recipe.seed)
    trainer = Trainer(network, recipe, x.mean(axis=(0, 1, 2)), x.std(axis=(0, 1, 2)), images)
    trainer.initialise_from_images(x[: min(5000, images)])
    cached = DeviceImages(network.backend, x.shape)
    cached.fill(0, x)
    order = np.random.default_rng(1)
    seconds, correct = [], 0
    for _ in range(epochs):
        began, batches = time.perf_counter(), np.array_split(order.permutation(images), -(-images // batch))
        pending = [trainer.start_batch(cached.take(rows), labels[rows], rows) for rows in batches]
        correct = sum(each.result().correct for each in pending)
        seconds.append(time.perf_counter() - began)
    record.add("speedrun", "ours", {"epoch_s": np.round(seconds, 3).tolist(), "train_accuracy": correct / images})
    if torch_or_none():
        theirs = _their_epochs(x, labels, epochs, batch)
        record.add("speedrun", "torch", {"epoch_s": np.round(theirs, 3).tolist()})


def _images(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten noisy patterns, uint8 (N, side, side, 3), and their classes (N,)."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, count)  # (N,)
    blocks = generator.integers(64, 192, (10, 4, 4, 3))  # (10, 4, 4, 3)
    patterns = blocks.repeat(side // 4, 1).repeat(side // 4, 2)  # (10, side, side, 3)
    x = np.empty((count, side, side, 3), np.uint8)
    for rows in np.array_split(np.arange(count), 10):
        noise = generator.integers(-60, 61, (len(rows), side, side, 3), np.int16)
        x[rows] = np.clip(patterns[labels[rows]] + noise, 0, 255)
    return x, labels


def _their_epochs(x: np.ndarray, labels: np.ndarray, epochs: int, batch: int) -> list[float]:
    """Seconds of each epoch in PyTorch: the plain Airbench network; all images on the device, augmented there."""
    import torch

    side = Theirs(Case("airbench94", Airbench(), max(x.shape[1], 32), 2), "bf16")
    optimizer = torch.optim.SGD(side.module.parameters(), 1e-3, momentum=0.85, nesterov=True, fused=not STANDIN)
    images = torch.from_numpy(x).to(DEVICE).permute(0, 3, 1, 2)  # (N, 3, H, W) uint8, channels last in memory
    classes = torch.from_numpy(labels).to(DEVICE)  # (N,)
    padded = torch.nn.functional.pad(images.float() / 64 - 2, (2,) * 4, mode="reflect")  # (N, 3, H + 4, W + 4)
    seconds, size = [], max(x.shape[1], 32)
    for _ in range(epochs):
        synchronize()
        began = time.perf_counter()
        for rows in torch.randperm(len(images), device=DEVICE).split(batch):
            down, across = torch.randint(0, 5, (2, len(rows)), device=DEVICE)
            places = torch.arange(x.shape[1], device=DEVICE)
            i, j = (down[:, None] + places)[:, None, :, None], (across[:, None] + places)[:, None, None, :]
            cut = padded[rows[:, None, None, None], torch.arange(3, device=DEVICE)[:, None, None], i, j]  # (B, 3, H, W)
            flip = (torch.rand(len(rows), device=DEVICE) < 0.5)[:, None, None, None]
            side.x = torch.where(flip, cut.flip(3), cut).contiguous(memory_format=torch.channels_last)
            if size != x.shape[1]:
                side.x = torch.nn.functional.interpolate(side.x, size)
            side.labels = classes[rows]
            side.passes()
            optimizer.step()
        synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds
