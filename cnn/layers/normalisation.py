"""Batch normalisation."""

from dataclasses import dataclass

from cnn.arena import Shape, Spec, Tree
from cnn.backends.base import Array
from cnn.initialise import ones, zeros
from cnn.layers.activations import check_activation
from cnn.layers.base import Cache, Run, Specs


@dataclass(frozen=True)
class BatchNorm:
    """Each channel to mean 0 and variance 1 over the batch, then scaled and shifted (Ioffe and Szegedy, 2015).

    `activation` names what is applied after that, if anything: in the same pass over memory, it costs next to
    nothing. Running statistics move by `momentum` towards each training batch's, and are used when not training.
    With `scaled` off the scale stays 1. The shift learns `shift_lr_factor` times as fast as other parameters;
    `shift_decay` says whether weight decay applies to it.
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
        shape = (in_shape[-1],)
        parameters = (
            Spec("scale", shape, ones, trained=float(self.scaled)),
            Spec("shift", shape, zeros, self.shift_decay, self.shift_lr_factor),
        )
        return Specs(in_shape, parameters, (Spec("mean", shape, zeros), Spec("variance", shape, ones)))

    def forward(self, run: Run, p: Tree, s: Tree, x: Array) -> tuple[Array, Cache]:
        if not run.training:
            return run.backend.batch_norm_infer(
                x, p["scale"], p["shift"], s["mean"], s["variance"], self.epsilon, self.activation
            ), None
        y, mean, variance = run.backend.batch_norm_train(x, p["scale"], p["shift"], self.epsilon, self.activation)
        count = x.size // x.shape[-1]
        s["mean"] += self.momentum * (mean - s["mean"])  # (C,)
        # The running variance is the unbiased one, as it stands for images not in the batch.
        s["variance"] += self.momentum * (variance * (count / max(count - 1, 1)) - s["variance"])  # (C,)
        return y, (x, mean, variance)

    def backward(self, run: Run, p: Tree, s: Tree, g: Tree, cache: Cache, dy: Array) -> Array | None:
        x, mean, variance = cache
        return run.backend.batch_norm_backward(
            dy, x, p["scale"], p["shift"], mean, variance, self.epsilon, self.activation, g["scale"], g["shift"]
        )  # shape of x
