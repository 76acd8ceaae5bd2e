"""Train what a run of `logpose train` trained, in PyTorch, and say how far and how fast it got.

    python -m tests.bench.torch_train DATASET.zarr RUN_DIR [--threads N]

The same pictures in the same order, the same augmentation draws, the same first weights, the same optimizer,
schedule, loss and epochs as RUN_DIR/config.toml says; forward, backward and update are PyTorch's, in the faster of
its two memory layouts (channels last), on as many threads. Prints a line an epoch and a JSON object at the end.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cnn.augment import Maps
from cnn.backend import pick_backend
from cnn.losses import SoftmaxCrossEntropy
from cnn.network import Network
from cnn.optim import SGD, AdamW
from cnn.rng import key_of
from cnn.train import Recipe
from jobs.config import Wishes, resolve
from pipeline.store import Dataset
from pipeline.stream import BatchStream
from tests.bench.torch_peer import load_ours, parameter_groups, to_torch


def resample(images: np.ndarray, maps: Maps | None, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (N, H, W, 3), cropped, flipped and normalised as `Backend.resample` does: (N, 3, H, W), channels last."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()  # (N, 3, H, W); channels last in memory
    if maps is not None:
        height, width = images.shape[1:3]
        y = torch.from_numpy(maps.ys)[:, :, None].expand(-1, -1, width) * (2 / (height - 1)) - 1  # (N, H, W)
        across = torch.from_numpy(maps.xs)[:, None].expand(-1, height, -1) * (2 / (width - 1)) - 1  # (N, H, W)
        x = functional.grid_sample(x, torch.stack([across, y], dim=3), mode="bilinear", align_corners=True)
    x = (x - mean) / std
    if maps is not None and maps.holes is not None:
        for picture, (top, bottom, left, right) in zip(x, maps.holes, strict=True):
            picture[:, top:bottom, left:right] = 0
    return x.contiguous(memory_format=torch.channels_last)


def optimizer_of(recipe: Recipe, module: torch.nn.Module) -> torch.optim.Optimizer:
    match recipe.optimizer:
        case SGD() as ours:
            groups = parameter_groups(module, ours.weight_decay)
            return torch.optim.SGD(groups, ours.lr, ours.momentum, nesterov=ours.nesterov)
        case AdamW() as ours:
            groups = parameter_groups(module, ours.weight_decay)
            return torch.optim.AdamW(groups, ours.lr, (ours.beta1, ours.beta2), ours.epsilon)
    raise ValueError(f"no PyTorch counterpart for {recipe.optimizer}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", type=Path)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    data = Dataset.open(arguments.dataset)
    recipe = resolve(Wishes(file=arguments.run_dir / "config.toml"))
    loss = recipe.loss
    assert isinstance(loss, SoftmaxCrossEntropy) and not loss.class_weights and not recipe.clip
    shape = (*data.size, 3)
    layer = recipe.model.layers(shape, len(data.class_names))
    module = to_torch(layer, shape)
    load_ours(module, Network(layer, shape, pick_backend("reference"), recipe.seed).tensors())
    module = module.to(memory_format=torch.channels_last)
    optimizer = optimizer_of(recipe, module)
    mean, std = (torch.tensor(values).float().reshape(1, 3, 1, 1) for values in (data.mean, data.std))
    train = BatchStream(data.train, recipe.batch_size, seed=recipe.seed)
    val = BatchStream(data.val, recipe.batch_size, seed=recipe.seed, shuffle=False)
    total, step, accuracies, seconds = recipe.epochs * train.steps, 0, [], []
    for epoch in range(1, recipe.epochs + 1):
        began = time.perf_counter()
        module.train()
        loss_sum = 0.0
        for batch in train.epoch(epoch):
            for group in optimizer.param_groups:
                group["lr"] = recipe.optimizer.lr * recipe.schedule.factor(step, total)
            maps = recipe.augment.maps(key_of(recipe.seed, "augment", step), batch.rows, *data.size)
            optimizer.zero_grad()
            value = functional.cross_entropy(
                module(resample(batch.images, maps, mean, std)),
                torch.from_numpy(batch.labels),
                label_smoothing=loss.label_smoothing,
            )
            value.backward()
            optimizer.step()
            loss_sum += value.item() * len(batch.labels)
            step += 1
        module.eval()
        with torch.no_grad():
            right = sum(
                int((module(resample(b.images, None, mean, std)).argmax(1) == torch.from_numpy(b.labels)).sum())
                for b in val.epoch(0)
            )
        accuracies.append(right / data.val.rows)
        seconds.append(time.perf_counter() - began)
        print(
            f"epoch {epoch}/{recipe.epochs}  train loss {loss_sum / data.train.rows:.3f}  "
            f"val accuracy {accuracies[-1]:.1%}  {seconds[-1]:.1f} s",
            flush=True,
        )
    print(
        json.dumps(
            {"torch": torch.__version__, "threads": arguments.threads, "best": max(accuracies), "last": accuracies[-1],
             "median_epoch_s": float(np.median(seconds)), "total_s": sum(seconds)}
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
