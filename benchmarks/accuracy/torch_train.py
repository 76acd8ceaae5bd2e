"""Training of a `logpose train` recipe in PyTorch: accuracy and time.

    python -m benchmarks.accuracy.torch_train DATASET.zarr RECIPE [--set a.b=v] [--threads N]

RECIPE is a run's config.toml, or a recipe's name. Uses the same order of images, augmentation draws, initial weights,
optimizer, schedule, lookahead, loss, epochs and test-time augmentation; forward, backward and update are PyTorch's, in
channels-last memory, the faster layout. Prints one line per epoch. The last line is one JSON object.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.training.torch_peer import load_ours, parameter_groups, to_torch
from cnn.backends import pick_backend
from cnn.inference.tta import VIEWS
from cnn.inputs.augment import Maps, alternate_flips
from cnn.inputs.mixup import Mix
from cnn.losses import SoftmaxCrossEntropy
from cnn.network import Network
from cnn.rng import key_of
from cnn.training.averaging import EMA
from cnn.training.optimizers import SGD, AdamW
from cnn.training.recipe import Recipe
from cnn.training.trainer import Trainer
from jobs.options import RecipeOptions
from jobs.recipes import recipe_names
from jobs.recipes.config import resolve
from jobs.training.setup import measure
from pipeline.dataset.store import Dataset
from pipeline.loader.stream import Batch, BatchStream


def resample(images: np.ndarray, maps: Maps, mean: Tensor, std: Tensor) -> Tensor:
    """Crop, flip and normalise uint8 images (N, H, W, 3) as `Backend.resample` does: (N, 3, H, W), channels last."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()  # (N, 3, H, W); channels last in memory
    height, width = images.shape[1:3]
    y = torch.from_numpy(maps.ys)[:, :, None].expand(-1, -1, width) * (2 / (height - 1)) - 1  # (N, H, W)
    across = torch.from_numpy(maps.xs)[:, None].expand(-1, height, -1) * (2 / (width - 1)) - 1  # (N, H, W)
    x = functional.grid_sample(x, torch.stack([across, y], dim=3), mode="bilinear", align_corners=True)
    x = (x - mean) / std
    if maps.holes is not None:
        for image, (top, bottom, left, right) in zip(x, maps.holes, strict=True):
            image[:, top:bottom, left:right] = 0
    return x.contiguous(memory_format=torch.channels_last)


class TorchTraining:
    """`cnn.training.trainer.Trainer` in PyTorch."""

    def __init__(self, data: Dataset, recipe: Recipe) -> None:
        self.recipe, self.size = recipe, data.size
        shape = (*data.size, 3)
        layer = recipe.model.layers(shape, len(data.class_names))
        network = Network(layer, shape, pick_backend("reference"), recipe.seed)
        ours = Trainer(network, recipe, np.array(data.mean), np.array(data.std), data.train.rows)
        measure(ours, data)
        self.epoch_steps, self.total_steps, self.step = ours.epoch_steps, ours.total_steps, 0
        self.module = to_torch(layer, shape)
        load_ours(self.module, network.tensors())
        self.module = self.module.to(memory_format=torch.channels_last)
        self.optimizer = self._optimizer(layer.specs(shape).parameters)
        self.average: list[Tensor] = []
        self.mean, self.std = (
            torch.tensor(values).float().reshape(1, 3, 1, 1) for values in (data.mean, data.std)
        )  # (1, 3, 1, 1) each

    def _optimizer(self, specs: Sequence) -> torch.optim.Optimizer:
        match self.recipe.optimizer:
            case SGD() as ours:
                decay = ours.weight_decay / ours.lr if ours.decoupled else ours.weight_decay
                self.lr = ours.lr / (1 + 1 / (1 - ours.momentum)) if ours.decoupled else ours.lr
                groups = parameter_groups(self.module, specs, decay)
                return torch.optim.SGD(groups, self.lr, ours.momentum, nesterov=ours.nesterov)
            case AdamW() as ours:
                self.lr = ours.lr
                groups = parameter_groups(self.module, specs, ours.weight_decay)
                return torch.optim.AdamW(groups, ours.lr, (ours.beta1, ours.beta2), ours.epsilon)
        raise ValueError(f"no PyTorch counterpart for {self.recipe.optimizer}")

    def train_batch(self, batch: Batch) -> tuple[float, int]:
        """One update; returns the sum of the losses and the number of correct predictions."""
        recipe, step = self.recipe, self.step
        maps = recipe.augment.maps(key_of(recipe.seed, "augment", step), batch.rows, *self.size)
        if recipe.augment.flip == "alternate":
            maps = maps.mirrored(alternate_flips(key_of(recipe.seed, "flip"), batch.rows, step // self.epoch_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["lr_factor"] * recipe.schedule.factor(step, self.total_steps)
            for parameter in group["params"]:
                parameter.requires_grad = group["trained"] >= 1 or step / self.total_steps < group["trained"]
        self.optimizer.zero_grad()
        self.module.train()
        outputs, labels = self.module(self._input(batch.images, maps)), torch.from_numpy(batch.labels)
        assert isinstance(recipe.loss, SoftmaxCrossEntropy)
        value = functional.cross_entropy(outputs, labels, label_smoothing=recipe.loss.label_smoothing)
        value.backward()
        self.optimizer.step()
        self.step += 1
        self._apply_lookahead()
        return value.item() * len(labels), int((outputs.argmax(1) == labels).sum())

    @torch.no_grad()
    def _apply_lookahead(self) -> None:
        lookahead, step, total = self.recipe.lookahead, self.step, self.total_steps
        if not lookahead.every or step < lookahead.first_step(total):
            return
        now = [tensor for tensor in self.module.state_dict().values() if tensor.is_floating_point()]
        if step == lookahead.first_step(total):
            self.average = [tensor.clone() for tensor in now]
        elif step % lookahead.every == 0:
            torch._foreach_lerp_(self.average, now, 1 - lookahead.decay_at(step, total))
        elif step % self.epoch_steps:
            return
        torch._foreach_copy_(now, self.average)

    @torch.no_grad()
    def count_correct(self, batch: Batch, views: str) -> int:
        """The number of correct predictions in a batch, with test-time augmentation `views`."""
        self.module.eval()
        outputs: Tensor | float = 0.0
        for view in VIEWS[views]:
            maps = view.maps(*batch.images.shape[:3])
            outputs = outputs + view.weight * self.module(self._input(batch.images, maps))
        assert isinstance(outputs, Tensor)
        return int((outputs.argmax(1) == torch.from_numpy(batch.labels)).sum())

    def _input(self, images: np.ndarray, maps: Maps) -> Tensor:
        return resample(images, maps, self.mean, self.std)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    data = Dataset.open(arguments.dataset)
    named = arguments.recipe in recipe_names()
    options = RecipeOptions(recipe=arguments.recipe) if named else RecipeOptions(config=Path(arguments.recipe))
    recipe = resolve(replace(options, set=tuple(arguments.set)))
    assert isinstance(recipe.loss, SoftmaxCrossEntropy) and not recipe.loss.class_weights and not recipe.clip
    assert recipe.mix == Mix() and recipe.ema == EMA() and not recipe.patience, "no mix, EMA or patience here"
    assert recipe.augment == replace(recipe.augment, brightness=0.0, contrast=0.0, saturation=0.0), "no jitter here"
    training = TorchTraining(data, recipe)
    train = BatchStream(data.train, recipe.batch_size, seed=recipe.seed)
    val = BatchStream(data.val, recipe.batch_size, seed=recipe.seed, shuffle=False)

    def accuracy(views: str) -> float:
        return sum(training.count_correct(batch, views) for batch in val.epoch(0)) / data.val.rows

    accuracies, seconds = [], []
    for epoch in range(1, recipe.epochs + 1):
        began = time.perf_counter()
        loss_sum, correct_sum = 0.0, 0
        for batch in train.epoch(epoch):
            loss, correct = training.train_batch(batch)
            loss_sum, correct_sum = loss_sum + loss, correct_sum + correct
        accuracies.append(accuracy("none"))
        seconds.append(time.perf_counter() - began)
        rows = data.train.rows
        print(
            f"epoch {epoch}/{recipe.epochs}  train loss {loss_sum / rows:.3f} accuracy {correct_sum / rows:.1%}  "
            f"val accuracy {accuracies[-1]:.2%}  {seconds[-1]:.1f} s",
            flush=True,
        )
    last = {"best": max(accuracies), "last": accuracies[-1]}
    if recipe.views != "none":
        last["last_with_views"] = accuracy(recipe.views)
    times = {"median_epoch_s": float(np.median(seconds)), "total_s": sum(seconds)}
    print(json.dumps({"torch": torch.__version__, "threads": arguments.threads, **last, **times}))


if __name__ == "__main__":
    main()
