"""Training throughput of the seed project's algorithm against ours: SciPy correlations in a Python loop, per image.

    python -m benchmarks.training.seed_way [--rounds N] [--threads N] [--dtype float32|float64]

Both train the `seed` network at 256x256 with plain SGD: forward, backward, update. The seed's algorithm calls
`scipy.signal.correlate2d` for each pair of channels (`convolve2d` for the gradient w.r.t. a layer's input) and NumPy
otherwise, one image per step; ours uses batches of 32. The sides are interleaved, each in its own process. First
compares the gradients of both on one image. The last line is one JSON object.
"""

import argparse
import json
import sys

import numpy as np
from scipy.signal import convolve2d, correlate2d

from benchmarks.training.networks import CASES, LOSS
from benchmarks.worker import BackgroundLoad, Worker, available_cpus, median_ms, serve
from cnn.backends import pick_backend
from cnn.layers import Run
from cnn.network import Network

CASE = CASES["seed"]
CONVOLUTIONS, DENSE = ("conv1", "conv2", "conv3"), ("dense1", "dense2", "dense3", "head")
LR = 1e-7  # does not affect the time


class SeedWay:
    """The seed network, written out. Images are (C, H, W), kernels (K, C, 3, 3), matrices (inputs, outputs)."""

    def __init__(self, tensors: dict[str, np.ndarray], dtype: str) -> None:
        self.weights, self.biases = {}, {}
        for name in (*CONVOLUTIONS, *DENSE):
            weight = tensors[f"{name}.weight"].astype(dtype)
            self.weights[name] = np.ascontiguousarray(weight.transpose(3, 2, 0, 1)) if weight.ndim == 4 else weight
            self.biases[name] = tensors[f"{name}.bias"].astype(dtype)

    def gradients(self, image: np.ndarray, label: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The gradients w.r.t. the weights and the biases, from one image (3, H, W)."""
        inputs, x = {}, image
        for name in CONVOLUTIONS:
            inputs[name] = x
            x = sigmoid(self._convolve(name, x))  # (5, OH, OW)
        maps, x = x, x.transpose(1, 2, 0).reshape(-1)  # channels last, as ours flattens
        for name in DENSE:
            inputs[name] = x
            x = x @ self.weights[name] + self.biases[name]  # (outputs,)
            x = x if name == "head" else sigmoid(x)
        target = np.full(x.shape, LOSS.label_smoothing / x.size, x.dtype)
        target[label] += 1 - LOSS.label_smoothing
        exponential = np.exp(x - x.max())
        dy = exponential / exponential.sum() - target

        d_weights, d_biases = {}, {}
        for name in reversed(DENSE):
            d_weights[name], d_biases[name] = np.outer(inputs[name], dy), dy
            dy = (self.weights[name] @ dy) * inputs[name] * (1 - inputs[name])
        dy = dy.reshape(*maps.shape[1:], len(maps)).transpose(2, 0, 1)  # (5, OH, OW)
        for name in reversed(CONVOLUTIONS):
            d_weights[name], d_biases[name] = self._weight_gradient(inputs[name], dy), dy.sum(axis=(1, 2))
            if name != "conv1":
                dy = self._input_gradient(name, dy) * inputs[name] * (1 - inputs[name])
        return d_weights, d_biases

    def _convolve(self, name: str, x: np.ndarray) -> np.ndarray:
        kernels = self.weights[name]
        maps = [
            sum(correlate2d(plane, kernel, "valid") for plane, kernel in zip(x, kernels[k], strict=True)) + bias
            for k, bias in enumerate(self.biases[name])
        ]
        return np.stack(maps)  # (K, OH, OW)

    def _weight_gradient(self, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
        return np.array([[correlate2d(plane, d, "valid") for plane in x] for d in dy])  # (K, C, 3, 3)

    def _input_gradient(self, name: str, dy: np.ndarray) -> np.ndarray:
        kernels = self.weights[name]
        planes = [
            sum(convolve2d(d, kernels[k, c], "full") for k, d in enumerate(dy)) for c in range(kernels.shape[1])
        ]
        return np.stack(planes)  # (C, H, W)

    def step(self, image: np.ndarray, label: int) -> None:
        for values, gradients in zip((self.weights, self.biases), self.gradients(image, label), strict=True):
            for name, gradient in gradients.items():
                values[name] -= LR * gradient


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def first_image(dtype: str) -> tuple[np.ndarray, int]:
    x, labels = CASE.batch_of_noise()
    return np.ascontiguousarray(x[0].transpose(2, 0, 1), dtype), int(labels[0])


def max_difference() -> float:
    """The maximal relative difference between the loop's gradients and ours, on one image."""
    network = Network(CASE.layer, CASE.in_shape, pick_backend("cpu"))
    x, labels = CASE.batch_of_noise()
    run = Run(network.backend, training=True, need_dx=False)
    outputs, cache = network.forward(run, x[:1])
    network.backward(run, cache, LOSS.forward(network.backend, outputs, labels[:1], 1)[1])
    d_weights, d_biases = SeedWay(network.tensors(), "float64").gradients(*first_image("float64"))
    worst = 0.0
    for name, gradient in network.gradients.to_host().items():
        layer, kind = name.split(".")
        theirs = d_weights[layer] if kind == "weight" else d_biases[layer]
        theirs = theirs.transpose(2, 3, 1, 0) if theirs.ndim == 4 else theirs
        worst = max(worst, float(np.abs(theirs - gradient).max() / np.abs(theirs).max()))
    return worst


def serve_seed_way(dtype: str) -> None:
    way = SeedWay(Network(CASE.layer, CASE.in_shape, pick_backend("reference")).tensors(), dtype)
    image, label = first_image(dtype)
    serve({"train": lambda seconds, min_runs: median_ms(lambda: way.step(image, label), seconds, min_runs)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64", help="of the seed's arithmetic")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve_seed_way(arguments.dtype)
        return

    difference = max_difference()
    print(f"the loop's gradients differ from ours by at most {difference:.1e}, relative to each array's maximum")
    if not difference < 1e-3:
        sys.exit("expected the same gradients within 1e-3: the two sides do not compute the same")
    background, loop, ours = BackgroundLoad(), [], []
    with (
        Worker("benchmarks.training.seed_way", "--worker", "--dtype", arguments.dtype) as loop_side,
        Worker("benchmarks.training.side_ours", CASE.name, str(arguments.threads), "cpu", "sgd") as our_side,
    ):
        for number in range(-1, arguments.rounds):
            rates = [
                1e3 / loop_side.ask("train", seconds=1.0, min_runs=2),
                1e3 * CASE.batch / our_side.ask("train", seconds=1.0, min_runs=2),
            ]
            if number >= 0:  # the first round is a warm-up
                loop.append(rates[0])
                ours.append(rates[1])
    ratio = float(np.median(np.array(ours) / np.array(loop)))
    print(f"the seed's algorithm: {np.median(loop):.2f} images/s ({1 / np.median(loop):.2f} s each, {arguments.dtype})")
    print(f"ours: {np.median(ours):.1f} images/s (batches of {CASE.batch}, {arguments.threads} threads)")
    closing = {
        "ratio": ratio, "ours_per_s": float(np.median(ours)), "seed_way_per_s": float(np.median(loop)),
        "other_cores": background.cores(),
    }  # fmt: skip
    print(json.dumps({name: round(value, 3) for name, value in closing.items()}))


if __name__ == "__main__":
    main()
