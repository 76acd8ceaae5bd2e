"""Write the golden files with PyTorch: `make golden`. The tests read them without PyTorch.

A file holds the images and class indices of ten batches, the initial weights, and PyTorch's results in float32: the
ten losses, the gradients of the first step, and the logits of the first batch after the last step.
"""

from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.training.torch_peer import load_ours, our_gradients, parameter_groups, to_nchw, to_torch
from cnn.backends import pick_backend
from cnn.losses import SoftmaxCrossEntropy
from cnn.network import Network
from cnn.training.optimizers import SGD
from tests.golden.trajectory import CLASSES, MEAN, STD, STEPS, TRAJECTORIES, Trajectory


def make(trajectory: Trajectory) -> None:
    shape, recipe = (trajectory.size, trajectory.size, 3), trajectory.recipe
    optimizer, loss = recipe.optimizer, recipe.loss
    assert isinstance(optimizer, SGD) and isinstance(loss, SoftmaxCrossEntropy)
    layer = trajectory.model.layers(shape, CLASSES)
    first = Network(layer, shape, pick_backend("reference"), seed=0).tensors()
    module = to_torch(layer, shape)
    load_ours(module, first)
    specs = layer.specs(shape).parameters
    groups: list[dict[str, Any]] = parameter_groups(module, specs, optimizer.weight_decay)
    for group in groups:
        group["lr"] = optimizer.lr * group["lr_factor"]
    sgd = torch.optim.SGD(groups, optimizer.lr, optimizer.momentum, nesterov=optimizer.nesterov)
    images, labels = trajectory.batches()
    inputs = [to_nchw(((batch - MEAN) / STD).astype(np.float32)) for batch in images]
    losses, gradients = [], {}
    names = [spec.name for spec in specs if spec.trained_until > 0.0]
    for step, (x, targets) in enumerate(zip(inputs, torch.from_numpy(labels), strict=True)):
        sgd.zero_grad()
        value = cross_entropy(module(x), targets, label_smoothing=loss.label_smoothing)
        value.backward()
        gradients = gradients or our_gradients(module, names)
        for group in groups:
            if step / STEPS >= group["trained"] < 1.0:  # frozen: parameters without a gradient stay as they are
                for parameter in group["params"]:
                    parameter.grad = None
        sgd.step()
        losses.append(value.item())
    with torch.no_grad():
        logits = module.eval()(inputs[0]).numpy()
    np.savez_compressed(
        trajectory.path,
        images=images, labels=labels, losses=np.array(losses, np.float32), logits=logits,
        **{f"first.{name}": tensor for name, tensor in first.items()},
        **{f"gradient.{name}": tensor for name, tensor in gradients.items()},
    )  # fmt: skip
    print(f"{trajectory.path.name}: {trajectory.path.stat().st_size / 1000:.0f} kB, losses {np.round(losses, 4)}")


if __name__ == "__main__":
    for each in TRAJECTORIES:
        make(each)
