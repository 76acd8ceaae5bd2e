"""PyTorch's side of `benchmarks.training.train_step`: the same network and batch in idiomatic, fast PyTorch.

    python -m benchmarks.training.side_torch NETWORK THREADS LAYOUT

LAYOUT is `contiguous` or `channels_last`. Uses PyTorch's faster options: the fused AdamW where it is faster, in-place
ReLU, flatten without a copy, and for inference also batch norm folded into convolutions.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.training import torch_peer
from benchmarks.training.networks import CASES, LOSS, OPTIMIZER
from benchmarks.training.torch_peer import load_ours, parameter_groups, to_nchw, to_torch
from benchmarks.worker import median_ms, peak_mb, serve
from cnn.backends import pick_backend
from cnn.network import Network


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function


def speed_up(module: nn.Module, layout: str) -> None:
    """Replace layers that mirror ours by what a PyTorch user would write, in place.

    Batch norms become `nn.BatchNorm2d`, as `fuse` expects, with the same parameters; ReLU works in place, as in
    torchvision; flatten does not copy.
    """
    for child_name, child in module.named_children():
        if isinstance(child, torch_peer.BatchNorm):
            norm = nn.BatchNorm2d(child.num_features, child.eps, child.momentum)
            norm.weight, norm.bias = child.weight, child.bias
            setattr(module, child_name, nn.Sequential(norm, Apply(in_place(child.activation))))
        elif isinstance(child, torch_peer.FlattenChannelsLast) and layout == "contiguous":
            setattr(module, child_name, nn.Flatten())
        elif isinstance(child, nn.ReLU):
            child.inplace = True
        else:
            speed_up(child, layout)
    if isinstance(module, torch_peer.Residual):
        module.activation = in_place(module.activation)


def in_place(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return partial(functional.relu, inplace=True) if function is functional.relu else function


class TorchSide:
    """A case's network, optimizer and batch in PyTorch."""

    def __init__(self, name: str, layout: str) -> None:
        self.case = CASES[name]
        x, labels = self.case.batch_of_noise()
        self.x, self.labels = to_nchw(x), torch.from_numpy(labels)
        self.module = to_torch(self.case.layer, self.case.in_shape)
        specs = self.case.layer.specs(self.case.in_shape).parameters
        self.groups = parameter_groups(self.module, specs, OPTIMIZER.weight_decay)  # before `speed_up` renames
        speed_up(self.module, layout)
        if layout == "channels_last":
            self.x = self.x.contiguous(memory_format=torch.channels_last)
            self.module = self.module.to(memory_format=torch.channels_last)
        self.optimizer = self.make_optimizer(fused=True)
        self.ready: dict[str, nn.Module] = {}  # for inference

    def make_optimizer(self, fused: bool) -> torch.optim.AdamW:
        groups = [dict(group) for group in self.groups]  # an optimizer adds its defaults to them
        betas = (OPTIMIZER.beta1, OPTIMIZER.beta2)
        return torch.optim.AdamW(groups, OPTIMIZER.lr, betas, OPTIMIZER.epsilon, fused=fused)

    def loss(self) -> float:
        """The first step's loss from our initial weights, to check that both sides compute the same."""
        module = to_torch(self.case.layer, self.case.in_shape)
        load_ours(module, Network(self.case.layer, self.case.in_shape, pick_backend("reference")).tensors())
        with torch.no_grad():
            return self._loss(module).item()

    def _loss(self, module: nn.Module) -> Tensor:
        return functional.cross_entropy(module(self.x), self.labels, label_smoothing=LOSS.label_smoothing)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self._loss(self.module).backward()
        self.optimizer.step()

    def pick_optimizer(self) -> str:
        """Use the faster of PyTorch's two AdamW implementations on the CPU; returns its name."""
        timed = {}
        for fused in (True, False):
            self.optimizer = self.make_optimizer(fused)
            self.step()  # for the gradients
            timed[fused] = median_ms(self.optimizer.step, 0.1), self.optimizer
        fused = timed[True][0] <= timed[False][0]
        self.optimizer = timed[fused][1]
        return "fused" if fused else "default"

    def train(self, seconds: float, min_runs: int = 2) -> float:
        self.module.train()
        return median_ms(self.step, seconds, min_runs)

    def infer(self, seconds: float, min_runs: int = 2) -> dict[str, float]:
        """Median times without and with batch norm folded into the convolutions."""
        if not self.ready:
            from torch.fx.experimental.optimization import fuse  # a slow import that training does not need

            plain = copy.deepcopy(self.module).eval()
            folded = fuse(plain)
            before, after = (sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (plain, folded))
            if before and before == after:
                raise RuntimeError("expected `fuse` to fold the batch norms, found none folded: check their class")
            self.ready = {"": plain, "+fold": folded}
        with torch.inference_mode():
            return {
                name: median_ms(lambda m=module: m(self.x), seconds, min_runs) for name, module in self.ready.items()
            }

    def gemm(self, seconds: float, min_runs: int = 2) -> float:
        a, b = torch.randn(2, 1024, 1024)
        out = torch.empty_like(a)
        return median_ms(lambda: torch.mm(a, b, out=out), seconds, min_runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=CASES)
    parser.add_argument("threads", type=int)
    parser.add_argument("layout", choices=("contiguous", "channels_last"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    side = TorchSide(arguments.network, arguments.layout)
    serve(
        {"loss": side.loss, "optimizer": side.pick_optimizer, "train": side.train, "infer": side.infer,
         "gemm": side.gemm, "peak": peak_mb}
    )  # fmt: skip
    assert "cnn.backends.cpu" not in sys.modules


if __name__ == "__main__":
    main()
