"""The backend protocol: the memory and kernels of a device.

Layers, losses and optimizers reach the device only through this protocol. `backends/reference/` implements it in
plain NumPy, and the other backends are tested against that.

Images and feature maps are channels last throughout: (N, H, W, C). Methods named `*_backward` with an argument such as
`d_weight` *set* it, and do not add to it: a parameter is used only once in a forward pass.

A backend may keep feature maps in a shorter type than the parameters, such as bfloat16. Vectors, (N, C), always have
the parameters' type: `flatten` and the global pools convert. So layers do no arithmetic on feature maps themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

# A device array: numpy.ndarray or cupy.ndarray. Neither NumPy's nor CuPy's type covers both.
Array: TypeAlias = Any

# The outcome of a training step, a float64 vector (4,) on the device, so that no step waits for the host: whether all
# losses and gradients so far are finite (1 or 0), the factor that clips the gradient, the loss, and the number of
# correct predictions.
OK, SCALE, LOSS, CORRECT = range(4)


# Is given how many kernels are compiled, and of how many: (0, n) at first, and never where there is nothing to compile.
KernelProgress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Window:
    """The windows of a convolution or pool: size and stride as (height, width), and the padding on each side."""

    size: tuple[int, int]
    stride: tuple[int, int]
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """The output's height and width; less than 1 where the window does not fit."""
        return (
            (height + self.top + self.bottom - self.size[0]) // self.stride[0] + 1,
            (width + self.left + self.right - self.size[1]) // self.stride[1] + 1,
        )


HALVING = Window((2, 2), (2, 2))  # the most common pool


@dataclass(frozen=True)
class AugmentNumbers:
    """What the augmentation of a batch depends on, besides images, labels and row numbers: see `cnn/inputs/`.

    key           of the draws of crop, shift, cutout and, without alternate flips, the flip
    crop_scale    smallest fraction of the area; 1 is no crop
    shift         largest shift in pixels, down and across
    hole          height and width of the cutout in pixels; 0 is off
    flips         whether images are mirrored: those whose draw by `flip_key` is below 1/2 if `flips_low`, else the
                  others
    jitter        largest distances from 1 of brightness, contrast and saturation, drawn by `colour_key`
    mix, alpha    how this batch is blended: 'none', 'mixup' or 'cutmix', with weights drawn by `mix_key`
    classes       number of classes, for soft labels
    """

    key: int
    crop_scale: float
    crop_stretch: float
    shift: tuple[int, int]
    hole: tuple[int, int]
    flips: bool
    flip_key: int
    flips_low: bool
    colour_key: int
    jitter: tuple[float, float, float]
    mix: str
    mix_key: int
    alpha: float
    classes: int


class MicroSums(NamedTuple):
    """What one micro-batch, or several, add to a training step, on the device."""

    gradient: Array  # (size,)
    loss: Array  # (): of the loss of the whole batch
    correct: Array  # (): number of correct predictions
    statistics: Array | None  # (state size,): batch norm's means and biased variances; None: the state was moved
    rows: int


class StatisticsLayout(NamedTuple):
    """Where the statistics of all batch norms, S channels together, lie in a network's state."""

    places: Array  # int32 (2, S): of means, and of variances, in the flat vector
    momentum: Array  # (S,): how far a step moves the running statistics
    pixels: Array  # int32 (S,): values per image


class Backend(Protocol):
    """Memory and kernels of one device. See `backends/reference/` for what each kernel computes.

    `kind` is a key of cnn.layers.activations.ACTIVATIONS, or "" for no activation.
    """

    name: str
    device_name: str  # such as 'cpu', or the name of the card
    description: str  # the device, in one line for the user
    xp: Any  # the array module: numpy or cupy
    precision: str  # of products and feature maps: 'float32', 'tf32' or 'bf16'

    def for_thread(self) -> "Backend":
        """Return a backend for another thread to use; itself where that would be no faster."""
        ...

    def prepare(
        self, rehearsal: Callable[[], object], progress: KernelProgress | None = None, processes: int | None = None
    ) -> None:
        """Compile the kernels that `rehearsal` runs, in some processes, and keep them; a GPU compiles as it goes.

        `rehearsal` calls this backend's methods as the work will, but nothing is computed: the numbers in its arrays
        are arbitrary, and its errors do not matter. Returns at once if all are compiled.
        """
        ...

    # Memory
    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array: ...
    def asarray(self, values: Any) -> Array: ...
    def to_host(self, values: Array) -> np.ndarray: ...
    def read_later(self, values: Array) -> Callable[[], np.ndarray]: ...

    def upload(self, *arrays: Array | None) -> list[Array]:
        """Copy host arrays to the device without waiting for it; None and device arrays are returned as they are.

        The host arrays may be changed at once. The device arrays are valid for work that is started before this
        thread's next upload.
        """
        ...

    def captured(self, run: Callable[[Array], Array]) -> Callable[[Array], Array]:
        """Return `run`, or a function that computes the same with less work for the host.

        `run` calls only methods of this backend, always in the same way for inputs of the same shape. Other arrays that
        it uses stay where they are. Of several threads, one at a time may call the function.
        """
        ...

    def begin_pass(self, parameters: Array) -> None:
        """Prepare for a forward pass by the flat vector `parameters`, which does not change before `end_pass`."""
        ...

    def end_pass(self) -> None:
        """The pass, and in training its backward pass, is done."""
        ...

    # Convolution and dense
    def conv2d(
        self, x: Array, weight: Array, bias: Array | None, window: Window, before_norm: bool = False
    ) -> Array: ...
    def conv2d_backward(
        self, dy: Array, x: Array, weight: Array, window: Window,
        d_weight: Array, d_bias: Array | None, need_dx: bool,
    ) -> Array | None: ...
    def pack_conv2d(self, weight: Array, bias: Array, window: Window, in_shape: tuple[int, ...]) -> Any: ...
    def conv2d_packed(self, x: Array, packed: Any, kind: str) -> Array: ...
    def conv2d_packed_max_pool(self, x: Array, packed: Any, kind: str, pool: Window) -> Array: ...
    def dense(self, x: Array, weight: Array, bias: Array | None) -> Array: ...
    def dense_infer(self, x: Array, weight: Array, bias: Array | None) -> Array: ...
    def dense_backward(
        self, dy: Array, x: Array, weight: Array, d_weight: Array, d_bias: Array | None, need_dx: bool
    ) -> Array | None: ...

    # Pooling
    def max_pool(self, x: Array, window: Window) -> tuple[Array, Array]: ...
    def max_pool_infer(self, x: Array, window: Window) -> Array: ...
    def max_pool_backward(self, dy: Array, argmax: Array, in_shape: tuple[int, ...], window: Window) -> Array: ...
    def average_pool(self, x: Array, window: Window) -> Array: ...
    def average_pool_backward(self, dy: Array, in_shape: tuple[int, ...], window: Window) -> Array: ...
    def global_max_pool(self, x: Array) -> tuple[Array, Array]: ...
    def global_max_pool_backward(self, dy: Array, argmax: Array, in_shape: tuple[int, ...], dtype: Any) -> Array: ...
    def global_average_pool(self, x: Array) -> Array: ...
    def global_average_pool_backward(self, dy: Array, in_shape: tuple[int, ...], dtype: Any) -> Array: ...

    # Normalisation, and the activation after it
    def batch_norm_train(
        self, x: Array, scale: Array, shift: Array, running_mean: Array, running_variance: Array,
        momentum: float | None, epsilon: float, kind: str,
    ) -> tuple[Array, Array, Array]: ...
    def batch_norm_infer(
        self, x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float, kind: str
    ) -> Array: ...
    def batch_norm_pool_train(
        self, x: Array, scale: Array, shift: Array, running_mean: Array, running_variance: Array,
        momentum: float | None, epsilon: float, kind: str,
    ) -> tuple[Array, Array, Array, Array]: ...
    def batch_norm_pool_backward(
        self, dy: Array, winners: Array, x: Array, scale: Array, shift: Array, mean: Array, variance: Array,
        epsilon: float, kind: str, d_scale: Array, d_shift: Array,
    ) -> Array: ...
    def batch_norm_backward(
        self, dy: Array, x: Array, scale: Array, shift: Array, mean: Array, variance: Array, epsilon: float, kind: str,
        d_scale: Array, d_shift: Array,
    ) -> Array: ...

    # Elementwise
    def activate(self, kind: str, x: Array) -> Array: ...
    def activate_backward(self, kind: str, dy: Array, x: Array, y: Array) -> Array: ...
    def add(self, a: Array, b: Array, kind: str = "") -> Array: ...
    def scale(self, x: Array, factor: float) -> Array: ...
    def dropout(self, x: Array, rate: float, key: int, rows: Array | None) -> Array: ...
    def flatten(self, x: Array) -> Array: ...
    def flatten_backward(self, dy: Array, in_shape: tuple[int, ...], dtype: Any) -> Array: ...
    def softmax(self, x: Array) -> Array: ...
    def softmax_backward(self, dy: Array, y: Array) -> Array: ...

    # Losses
    def softmax_cross_entropy(
        self, logits: Array, targets: Array, smoothing: float, class_weights: Array | None, denominator: int
    ) -> tuple[Array, Array, Array]: ...
    def count_correct(self, outputs: Array, targets: Array) -> Array: ...

    # Micro-batches of a step
    def merge_sums(self, first: MicroSums, second: MicroSums, layout: StatisticsLayout) -> MicroSums: ...
    def move_statistics(
        self, state: Array, statistics: Array, layout: StatisticsLayout, rows: int, outcome: Array
    ) -> None: ...

    # Optimizers: one pass over the flat vectors, which changes nothing unless `outcome[OK]`
    def judge_step(self, outcome: Array, loss: Array, correct: Array, gradient: Array, clip: float) -> None: ...
    def sgd_step(
        self, weights: Array, gradient: Array, velocity: Array, decayed: int, outcome: Array,
        lr: float, momentum: float, nesterov: bool, weight_decay: float,
    ) -> None: ...
    def adamw_step(
        self, weights: Array, gradient: Array, first: Array, second: Array, decayed: int, outcome: Array,
        lr: float, beta1: float, beta2: float, epsilon: float, weight_decay: float, step: int,
    ) -> None: ...
    def average(self, average: Array, values: Array, rate: float, outcome: Array) -> None: ...
    def copy(self, target: Array, values: Array, outcome: Array) -> None: ...

    # Images: uint8 to normalised floating point, and blends of those
    def resample(
        self, images: Array, ys: Array, xs: Array, holes: Array | None, mean: Array, std: Array,
        colours: Array | None = None,
    ) -> Array: ...
    def blend(self, x: Array, partners: Array, weights: Array, boxes: Array) -> Array: ...


@runtime_checkable
class AugmentingBackend(Protocol):
    """A backend that makes a batch's inputs on the device in one pass, and whose memory may hold a dataset."""

    def free_bytes(self) -> int:
        """Device memory that could be allocated."""
        ...

    def augment(
        self, images: Array, rows: Array, labels: Array, numbers: AugmentNumbers, mean: Array, std: Array,
        whole: bool = False,
    ) -> tuple[Array, Array]:
        """Inputs (B, H, W, C) and targets: `labels` (B,), or soft labels (B, classes).

        `images` are uint8 (B, H, W, C), or all (N, H, W, C) of a dataset if `whole`: then those with row numbers `rows`
        (B,) are taken.
        """
        ...
