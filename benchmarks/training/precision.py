"""Float32 rounding error of our layers and PyTorch's, both against PyTorch in float64.

    python -m benchmarks.training.precision [--only NAME ...] [--threads N]

Tests every distinct convolution, dense, batch norm and pooling layer of the benchmark's networks, at its shapes there,
and every activation once, with standard normal inputs and output gradients and our initial weights. The error of an
array is the RMS of its difference from float64 over the RMS of the float64 array. For each layer and array (`y` in
training, `infer` in inference, `dx`, and the parameter gradients), prints both errors and the ratio of ours to
PyTorch's. The last line is one JSON object with the largest ratio.
"""

import argparse
import copy
import json
import math
from dataclasses import replace

import numpy as np
import torch

from benchmarks.training.networks import CASES, leaves
from benchmarks.training.torch_peer import load_ours, our_gradients, to_nchw, to_torch
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
NEGLIGIBLE = 1e-8  # errors below a tenth of float32's resolution do not count
# ReLU's gradient is discontinuous at 0, where rounding decides: exclude inputs this close.
NEAR_ZERO = 1e-5
LARGE = 1 << 17  # elements of an image, above which the batch has 4 images instead of 8

Arrays = dict[str, np.ndarray]


def distinct_layers(names: list[str]) -> list[tuple[str, Layer, Shape]]:
    """(network, layer, input shape) of every distinct layer, at its first occurrence."""
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
    return to_nchw(x) if x.ndim == 4 else torch.from_numpy(x)


def to_our_layout(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def error(found: np.ndarray, truth: np.ndarray) -> float:
    scale = math.sqrt(float(np.square(truth).mean()))
    return math.sqrt(float(np.square(found - truth).mean())) / scale if scale else float(np.abs(found).max())


def compare(layer: Layer, shape: Shape, backend: Backend) -> dict[str, tuple[float, float]]:
    """(our error, PyTorch's error) of every array, by name."""
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
    """The input of the batch norm's activation, in float64."""
    bare = to_torch(chain(layer=replace(layer, activation="")), x.shape[1:])
    bare.load_state_dict(module.state_dict())
    with torch.no_grad():
        return to_our_layout(bare.double()(to_their_layout(x).double()).numpy())


def ratio_of(our_error: float, their_error: float) -> float:
    if max(our_error, their_error) < NEGLIGIBLE:
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
