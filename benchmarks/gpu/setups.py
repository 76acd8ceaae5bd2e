"""The networks that are timed, and a training step and inference of each: ours, and PyTorch's."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np

from benchmarks.gpu.record import STANDIN
from benchmarks.gpu.traffic import CASES
from benchmarks.training.networks import LOSS, OPTIMIZER, Case
from cnn.backends import pick_backend
from cnn.backends.base import Backend
from cnn.inference.folded import FoldedNetwork
from cnn.inputs.augment import Augment
from cnn.inputs.device_images import DeviceImages
from cnn.inputs.preprocess import preprocess
from cnn.layers import Run
from cnn.models import ResNet9
from cnn.network import Network
from cnn.training.recipe import Recipe
from cnn.training.schedules import Constant
from cnn.training.trainer import Trainer

PRECISIONS = ("bf16", "tf32", "float32")
TINY = (Case("airbench94", ResNet9(width=8), 12, 3), Case("resnet9", ResNet9(width=8), 9, 3))
SETUPS = {case.name: case for case in TINY} if STANDIN else CASES
DEVICE = "cpu" if STANDIN else "cuda"  # PyTorch's


@cache
def gpu(precision: str) -> Backend:
    """The GPU backend; one for each precision."""
    return pick_backend("cuda", precision=precision)


@cache
def torch_or_none() -> Any:
    """PyTorch where it is installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    return torch


class Ours:
    """A case's network, trainer, and batch of random images."""

    def __init__(self, case: Case, precision: str) -> None:
        self.backend = gpu(precision)
        self.network = Network(case.layer, case.in_shape, self.backend)
        recipe = Recipe(
            model=case.model, optimizer=OPTIMIZER, loss=LOSS, schedule=Constant(), batch_size=case.batch,
            augment=Augment(crop_scale=1.0, shift=1 / 16), epochs=1000,
        )  # fmt: skip
        mean, std = np.full(3, 127.5), np.full(3, 64.0)  # (3,) each
        self.trainer = Trainer(self.network, recipe, mean, std, case.batch)
        generator = np.random.default_rng(0)
        self.images = generator.integers(0, 256, (case.batch, *case.in_shape), np.uint8)  # (B, H, W, 3)
        self.labels = generator.integers(0, case.classes, case.batch)  # (B,)
        self.rows = np.arange(case.batch)  # (B,)
        self.cached = DeviceImages(self.backend, self.images.shape)
        self.cached.fill(0, self.images)
        self.x = preprocess(self.backend, self.images, None, self.trainer.mean, self.trainer.std)  # (B, H, W, 3)
        self.targets = self.backend.asarray(self.labels)  # (B,)
        self.device_rows = self.backend.asarray(self.rows)  # (B,)
        self._folded = FoldedNetwork(self.network)
        self._last: Any = None

    def passes(self) -> Any:
        """Forward, loss and backward of the normalised batch; returns the loss on the device."""
        run = Run(self.backend, training=True, key=1, rows=self.device_rows, need_dx=False)
        outputs, cached = self.network.forward(run, self.x)  # (B, classes)
        loss, gradient, *_ = LOSS.forward(self.backend, outputs, self.targets, len(self.rows))  # (), (B, classes)
        self.network.backward(run, cached, gradient)
        return loss

    def step(self) -> None:
        """One training step from uint8 images on the GPU, with augmentation; as in `logpose train`, none is awaited."""
        self._last = self.trainer.start_batch(self.cached.take(self.rows), self.labels, self.rows)

    def step_with_upload(self) -> None:
        """The same from images on the host."""
        self._last = self.trainer.start_batch(self.images, self.labels, self.rows)

    def finish(self) -> Any:
        """Wait for the last step's result."""
        return self._last.result()

    def infer(self) -> Any:
        """Outputs of the normalised batch, batch norm folded."""
        return self._folded(self.x)


class Theirs:
    """The same network in PyTorch: channels last, automatic mixed precision, a batch that is on the device already."""

    def __init__(self, case: Case, precision: str) -> None:
        import torch
        from torch.fx.experimental.optimization import fuse

        from benchmarks.training.side_torch import speed_up
        from benchmarks.training.torch_peer import to_nchw, to_torch

        self.torch, self.precision = torch, precision
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
        x, labels = case.batch_of_noise()  # (B, H, W, 3), (B,)
        self.x = to_nchw(x).to(DEVICE).contiguous(memory_format=torch.channels_last)  # (B, 3, H, W)
        self.labels = torch.from_numpy(labels).to(DEVICE)  # (B,)
        module = to_torch(case.layer, case.in_shape)
        speed_up(module, "channels_last")
        self.module = module.to(DEVICE).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), OPTIMIZER.lr, fused=not STANDIN)
        folded = fuse(copy.deepcopy(self.module).eval())
        self._infer_module, self._infer_x = folded, self.x
        if precision == "bf16":
            self._infer_module, self._infer_x = folded.to(torch.bfloat16), self.x.to(torch.bfloat16)

    def compile(self) -> None:
        """Compile the forward and backward pass, and inference, by `torch.compile`."""
        self.module = self.torch.compile(self.module)
        self._infer_module = self.torch.compile(self._infer_module)

    def _autocast(self) -> AbstractContextManager[Any]:
        return self.torch.autocast(DEVICE, self.torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def passes(self) -> Any:
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            outputs = self.module(self.x)  # (B, classes)
            loss = self.torch.nn.functional.cross_entropy(outputs, self.labels, label_smoothing=LOSS.label_smoothing)
        loss.backward()
        return loss

    def step(self) -> None:
        self.passes()
        self.optimizer.step()

    def infer(self) -> Any:
        with self.torch.inference_mode():
            return self._infer_module(self._infer_x)


def sides_of(ours: Ours, theirs: Theirs | None, work: str) -> dict[str, Callable[[], Any]]:
    """Both sides' method `work`, by name."""
    sides = {"ours": getattr(ours, work)}
    return sides | ({"torch": getattr(theirs, work)} if theirs else {})
