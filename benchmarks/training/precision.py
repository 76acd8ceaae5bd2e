"""Our float32 error beside PyTorch's, layer by layer, both against PyTorch in float64.

    python -m benchmarks.training.precision [--only NAME ...] [--threads N]

Every distinct convolution, dense, batch-norm and pool layer of the benchmark's networks, at the shapes it has there,
and every activation once: standard normal inputs and output derivatives, our initial weights, a few images. The
error of an array is the root mean square of its difference from the float64 one over that one's own. For each layer
and each array (`y` in training, `infer` outside, `dx`, and the parameters' derivatives) the table has both errors
and ours over PyTorch's. The last line is one JSON object with the worst ratio.
"""

import argparse
import copy
import json
import math
from dataclasses import replace

import numpy as np
import torch

from benchmarks.training.networks import CASES, leaves
from benchmarks.training.torch_peer import images, load_ours, our_gradients, to_torch
from cnn.arena import Shape
from cnn.backends import pick_backend
from cnn.backends.base import Backend
from cnn.layers import Layer, Run, chain
from cnn.layers.activations import ACTIVATIONS
from cnn.layers.convolution import Conv2D
from cnn.layers.dense import Dense
from cnn.layers.normalisation import BatchNorm
from cnn.layers.pooling import AveragePool, GlobalAveragePool, GlobalMaxPool, MaxPool
from cnn.network import Network

WITH_SHAPES = (AveragePool, BatchNorm, Conv2D, Dense, GlobalAveragePool, GlobalMaxPool, MaxPool)
BELOW_NOTICE = 1e-8  # an error under a tenth of float32's resolution is no error
# A ReLU's derivative jumps at 0, where the last digit decides between two values: no derivative comes from there.
NEAR_ZERO = 1e-5
LARGE = 1 << 17  # numbers in an image, above which there are 4 in the batch instead of 8

Arrays = dict[str, np.ndarray]


def distinct_layers(names: list[str]) -> list[tuple[str, Layer, Shape]]:
    """(network, layer, input shape) for every layer to look at, each the first time that it occurs."""
    seen: dict[object, tuple[str, Layer, Shape]] = {}
    for name in names:
        for layer, shape in leaves(CASES[name].layer, CASES[name].in_shape):
            if isinstance(layer, WITH_SHAPES):
                seen.setdefault((layer, shape), (name, layer, shape))
            elif isinstance(layer, tuple(ACTIVATIONS.values())):
                seen.setdefault(layer, (name, layer, shape))
    return list(seen.values())


def ours(network: Network, x: np.ndarray, dy: np.ndarray) -> Arrays:
    run = Run(network.backend, training=True)
    infer = network.infer(x).copy()
    y, cache = network.forward(run, x)
    y = y.copy()
    dx = network.backward(run, cache, dy.copy())
    return {"y": y, "infer": infer, "dx": dx} | network.gradients.to_host()


def theirs(module: torch.nn.Module, names: list[str], x: np.ndarray, dy: np.ndarray, dtype: torch.dtype) -> Arrays:
    module = copy.deepcopy(module).to(dtype)
    inputs = to_their_layout(x).to(dtype).requires_grad_()
    with torch.no_grad():
        infer = module.eval()(inputs)
    y = module.train()(inputs)
    y.backward(to_their_layout(dy).to(dtype))
    assert inputs.grad is not None
    arrays = {"y": y.detach(), "infer": infer, "dx": inputs.grad}
    return {name: to_our_layout(array.numpy()) for name, array in arrays.items()} | our_gradients(module, names)


def to_their_layout(x: np.ndarray) -> torch.Tensor:
    return images(x) if x.ndim == 4 else torch.from_numpy(x)


def to_our_layout(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def error(found: np.ndarray, truth: np.ndarray) -> float:
    scale = math.sqrt(float(np.square(truth).mean()))
    return math.sqrt(float(np.square(found - truth).mean())) / scale if scale else float(np.abs(found).max())


def compare(layer: Layer, shape: Shape, backend: Backend) -> dict[str, tuple[float, float]]:
    """Our error and PyTorch's for every array, by its name."""
    network = Network(chain(layer=layer), shape, backend)
    module = to_torch(chain(layer=layer), shape)
    load_ours(module, network.tensors())
    rng, count = np.random.default_rng(0), 4 if math.prod(shape) > LARGE else 8
    x, dy = (rng.standard_normal((count, *s), np.float32) for s in (shape, network.out_shape))
    if isinstance(layer, BatchNorm):
        dy[np.abs(before_activation(layer, module, x)) < NEAR_ZERO] = 0
    names = list(network.gradients.views)
    truth = theirs(module, names, x, dy, torch.float64)
    mine, peer = ours(network, x, dy), theirs(module, names, x, dy, torch.float32)
    return {name: (error(mine[name], truth[name]), error(peer[name], truth[name])) for name in truth}


def before_activation(layer: BatchNorm, module: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    """What the batch norm gives to its activation, in float64."""
    bare = to_torch(chain(layer=replace(layer, activation="")), x.shape[1:])
    bare.load_state_dict(module.state_dict())
    with torch.no_grad():
        return to_our_layout(bare.double()(to_their_layout(x).double()).numpy())


def ratio_of(our_error: float, their_error: float) -> float:
    if max(our_error, their_error) < BELOW_NOTICE:
        return 1.0
    return our_error / their_error if their_error else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    backend = pick_backend("cpu", arguments.threads)

    worst, where = 0.0, ""
    print(f"{'layer':60} {'input':16} {'array':8} {'ours':>8} {'torch':>8} {'ratio':>6}")
    for network, layer, shape in distinct_layers(arguments.only):
        for name, errors in compare(layer, shape, backend).items():
            array, ratio = name.removeprefix("layer."), ratio_of(*errors)
            what, size = describe(layer), "x".join(map(str, shape))
            print(f"{what:60} {size:16} {array:8} {errors[0]:8.1e} {errors[1]:8.1e} {ratio:6.2f}", flush=True)
            if ratio > worst:
                worst, where = ratio, f"{network}: {what}, input {size}, {array}"
    print(json.dumps({"worst_ratio": round(worst, 3), "where": where}))


def describe(layer: Layer) -> str:
    return str(layer).replace("kernel=", "").replace("filters=", "").replace("stride=1, ", "")


if __name__ == "__main__":
    main()
