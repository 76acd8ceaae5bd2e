"""An inference engine's side of `benchmarks.inference.inference_peers`: ONNX Runtime or OpenVINO.

    python -m benchmarks.inference.side_engine ENGINE NETWORK THREADS

ENGINE is `onnxruntime`, `onnxruntime-int8`, `openvino`, `openvino-bf16` or `openvino-int8`. Each gets the same network
with our initial weights as an ONNX graph, exported by PyTorch; `int8` the graph that ONNX Runtime's static quantisation
makes of it (per channel, calibrated on the batch itself). Images are in the engine's layout (N, C, H, W).
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.training.networks import CASES, Case
from benchmarks.training.side_torch import speed_up
from benchmarks.training.torch_peer import load_ours, to_nchw, to_torch
from benchmarks.worker import median_ms, serve
from cnn.backends import pick_backend
from cnn.network import Network

INPUT = "images"
ENGINES = ("onnxruntime", "onnxruntime-int8", "openvino", "openvino-bf16", "openvino-int8")

Infer = Callable[[np.ndarray], np.ndarray]  # (N, C, H, W) -> (N, classes)


class _OneBatch:
    """The calibration data of a quantisation: `x` (N, C, H, W), image by image."""

    def __init__(self, x: np.ndarray) -> None:
        self._images: Iterator[np.ndarray] = iter(x[:, None])

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._images, None)
        return None if image is None else {INPUT: image}


def export(case: Case, x: np.ndarray, path: Path) -> None:
    """Write the case's network, with our initial weights, as an ONNX graph for any number of images like x."""
    module = to_torch(case.layer, case.in_shape)
    load_ours(module, Network(case.layer, case.in_shape, pick_backend("reference")).tensors())
    speed_up(module, "channels_last")  # with our order of flattened features
    warnings.simplefilter("ignore", DeprecationWarning)  # the newer exporter needs another package
    torch.onnx.export(
        module.eval(), (torch.from_numpy(x),), str(path), input_names=[INPUT], output_names=["logits"],
        dynamic_axes={INPUT: {0: "batch"}}, dynamo=False,
    )  # fmt: skip


def quantise(source: Path, x: np.ndarray, path: Path) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = source.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared))
    quantization.quantize_static(str(prepared), str(path), _OneBatch(x), per_channel=True, reduce_range=False)


def onnxruntime_infer(path: Path, threads: int) -> Infer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {INPUT: x})[0]


def openvino_infer(path: Path, threads: int, shape: tuple[int, ...], precision: str) -> Infer:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape(list(shape))  # what a user does who knows the batch: faster than a dynamic one
    settings = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision,
    }  # fmt: skip
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def infer(x: np.ndarray) -> np.ndarray:
        request.infer({0: x}, share_inputs=True, share_outputs=True)
        return request.get_output_tensor(0).data

    return infer


class EngineSide:
    """A case's network in an engine, and its batch."""

    def __init__(self, engine: str, name: str, threads: int) -> None:
        case = CASES[name]
        self.x = to_nchw(case.batch_of_noise()[0]).numpy()  # (N, C, H, W)
        library, _, kind = engine.partition("-")
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / "network.onnx"
            export(case, self.x, graph)
            if kind == "int8":
                quantise(graph, self.x, graph := Path(folder) / "int8.onnx")
            if library == "onnxruntime":
                self.run = onnxruntime_infer(graph, threads)
            else:
                self.run = openvino_infer(graph, threads, self.x.shape, "bf16" if kind == "bf16" else "f32")

    def logits(self) -> list[list[float]]:
        return self.run(self.x).tolist()

    def infer(self, seconds: float, min_runs: int = 2) -> float:
        return median_ms(lambda: self.run(self.x), seconds, min_runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("network", choices=CASES)
    parser.add_argument("threads", type=int)
    arguments = parser.parse_args()
    side = EngineSide(arguments.engine, arguments.network, arguments.threads)
    serve({"logits": side.logits, "infer": side.infer})


if __name__ == "__main__":
    main()
