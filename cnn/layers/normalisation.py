"""Batch normalisation."""

import math
from dataclasses import dataclass

from cnn.arena import Shape, Spec, Tree
from cnn.backends.base import HALVING, Array
from cnn.initialise import ones, zeros
from cnn.layers.activations import check_activation
from cnn.layers.base import Cache, Run, Specs
from cnn.layers.pooling import MaxPool


@dataclass(frozen=True)
class BatchNorm:
    """Normalise each channel to mean 0 and variance 1 over the batch, then scale and shift (Ioffe and Szegedy, 2015).

    momentum: how far the running statistics, which inference uses, move towards those of each training batch. Where
        `run.sets_statistics`, the state is set to this pass's mean and biased variance instead, for the trainer to
        merge with those of the batch's other micro-batches.
    activation: the name of an activation that is applied in the same pass over memory; empty: none.
    scaled: whether the scale is trained; else it stays 1.
    shift_lr_factor: multiplies the shift's learning rate.
    shift_decay: whether weight decay applies to the shift.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    activation: str = ""
    scaled: bool = True
    shift_lr_factor: float = 1.0
    shift_decay: bool = False

    def __post_init__(self) -> None:
        check_activation(self.activation)

    def specs(self, in_shape: Shape) -> Specs:
        shape, pixels = (in_shape[-1],), math.prod(in_shape[:-1])
        parameters = (
            Spec("scale", shape, ones, trained_until=float(self.scaled)),
            Spec("shift", shape, zeros, self.shift_decay, self.shift_lr_factor),
        )
        state = (
            Spec("mean", shape, zeros, momentum=self.momentum, pixels=pixels),
            Spec("variance", shape, ones, momentum=self.momentum, pixels=pixels),
        )
        return Specs(in_shape, parameters, state)

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]:
        if not run.training:
            return run.backend.batch_norm_infer(
                x, p["scale"], p["shift"], s["mean"], s["variance"], self.epsilon, self.activation
            ), None
        momentum = None if run.sets_statistics else self.momentum
        y, mean, variance = run.backend.batch_norm_train(
            x, p["scale"], p["shift"], s["mean"], s["variance"], momentum, self.epsilon, self.activation
        )
        return y, (x, mean, variance)

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        x, mean, variance = cache
        return run.backend.batch_norm_backward(
            dy, x, p["scale"], p["shift"], mean, variance, self.epsilon, self.activation, g["scale"], g["shift"]
        )  # shape of x


@dataclass(frozen=True)
class PooledBatchNorm:
    """A batch norm and the max pool of 2x2 pixels after it, which a backend may compute in one pass over memory.

    `Sequential` puts it in the place of the two in training.
    """

    norm: BatchNorm = BatchNorm()

    def specs(self, in_shape: Shape) -> Specs:
        out_shape = MaxPool(2).specs(in_shape).out_shape
        return Specs(out_shape, *self.norm.specs(in_shape)[1:])

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]:
        if not run.training:
            return run.backend.max_pool_infer(self.norm.forward(run, p, s, x)[0], HALVING), None
        momentum = None if run.sets_statistics else self.norm.momentum
        y, winners, mean, variance = run.backend.batch_norm_pool_train(
            x, p["scale"], p["shift"], s["mean"], s["variance"], momentum, self.norm.epsilon, self.norm.activation
        )
        return y, (winners, x, mean, variance)

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        winners, x, mean, variance = cache
        return run.backend.batch_norm_pool_backward(
            dy, winners, x, p["scale"], p["shift"], mean, variance, self.norm.epsilon, self.norm.activation,
            g["scale"], g["shift"],
        )  # (N, H, W, C)
