"""Images: augmentation, normalisation and blending on the GPU.

Outputs are views of the first 3 channels of arrays that are padded with zeros to 8 (bfloat16) or 4 channels, so that a
pixel is one or two vectors of 16 bytes.
"""

from typing import Any

import numpy as np

from cnn.backends.base import Array, AugmentNumbers
from cnn.backends.gpu.kernels import TYPES, kernel

_THREADS = 256
_BLOCK_PIXELS = 512  # of `augment`: few enough to fill the card with a small batch
# One image's random numbers: `struct Plan` in cuda/preprocess.cu.
PLAN = np.dtype(
    [
        ("start", "f8", 2), ("scale", "f8", 2), ("shift", "i4", 2), ("mirrored", "i4"), ("own_label", "f4"),
        ("hole", "i4", 4), ("box", "i4", 4), ("own", "f4"), ("colours", "f4", 12), ("padding", "i4"),
    ]
)  # fmt: skip
_MIXING = {"none": 0, "mixup": 1, "cutmix": 2}


def resample(
    images: Array, ys: Array, xs: Array, holes: Array | None, mean: Array, std: Array, colours: Array | None, dtype: Any
) -> Array:
    """See `ReferenceBackend.resample`; the output has `dtype`."""
    count, height, width = images.shape[:3]
    out_h, out_w = ys.shape[1], xs.shape[1]
    out = _padded(count, out_h, out_w, dtype)  # (N, OH, OW, P)
    if out.size:
        arrays = [_contiguous(array) for array in (images, ys, xs, holes, mean, std, colours)]
        grid = (count * -(-out_h * out_w // _THREADS),)
        _kernel("resample", dtype)(grid, (_THREADS,), (*arrays, out, height, width, out_h, out_w))
    return out[..., :3]  # (N, OH, OW, 3)


def blend(x: Array, partners: Array, weights: Array, boxes: Array) -> Array:
    """See `ReferenceBackend.blend`."""
    count, height, width = x.shape[:3]
    out = _padded(count, height, width, x.dtype)  # (N, H, W, P)
    if out.size:
        arrays = [_contiguous(array) for array in (x, partners, weights, boxes)]
        grid = (count * -(-height * width // _THREADS),)
        _kernel("blend", x.dtype)(grid, (_THREADS,), (*arrays, out, height, width))
    return out[..., :3]  # (N, H, W, 3)


def augment(
    images: Array, rows: Array, labels: Array, numbers: AugmentNumbers, mean: Array, std: Array, dtype: Any,
    whole: bool = False,
) -> tuple[Array, Array]:
    """Inputs (B, H, W, 3) of `dtype`, and targets: `labels` (B,), or soft labels float32 (B, classes) of blends.

    `images` are uint8, (B, H, W, 3) or, if `whole`, the whole dataset (N, H, W, 3), of which image `rows[n]` is used.
    `rows` and `labels` are int64 (B,).
    """
    import cupy

    count, (height, width) = len(rows), images.shape[1:3]
    out = _padded(count, height, width, dtype)  # (B, H, W, P)
    mixes = numbers.mix != "none"
    targets = cupy.empty((count, numbers.classes), np.float32) if mixes else None  # (B, classes)
    if out.size:
        plans = plan(rows, numbers, height, width, mean, std, dtype)
        depth = max(1, min(height, _BLOCK_PIXELS // width))  # rows of a block
        grid = (count * -(-height // depth),)
        shared = 4 * (width + depth) * (2 if mixes else 1)
        run = _kernel("augment", dtype, mixes)
        if shared > 47 << 10:  # up to 48 KiB are allowed, with the kernel's own variables
            run.max_dynamic_shared_size_bytes = shared
        arguments = (images, rows if whole else None, plans, mean, std, labels, out, targets)
        run(grid, (_THREADS,), (*arguments, count, height, width, depth, numbers.classes), shared_mem=shared)
    return out[..., :3], labels if targets is None else targets  # (B, H, W, 3), (B,) or (B, classes)


def plan(
    rows: Array, numbers: AugmentNumbers, height: int, width: int, mean: Array, std: Array, dtype: Any
) -> Array:
    """The random numbers of images with row numbers `rows` (B,), to be made of `dtype`: uint8 (B, PLAN.itemsize)."""
    import cupy

    plans = cupy.empty((len(rows), PLAN.itemsize), np.uint8)  # (B, bytes)
    grid = (-(-len(rows) // 64),)
    scalars = (
        len(rows), height, width, np.uint64(numbers.key), np.float64(numbers.crop_scale),
        np.float64(np.log(numbers.crop_stretch)), *numbers.shift, *numbers.hole, int(numbers.flips),
        np.uint64(numbers.flip_key), int(numbers.flips_low), np.uint64(numbers.colour_key),
        *map(np.float64, numbers.jitter), _MIXING[numbers.mix], np.uint64(numbers.mix_key), np.float64(numbers.alpha),
    )  # fmt: skip
    _kernel("plan_augmentation", dtype)(grid, (64,), (rows, plans, mean, std, *scalars))
    return plans


def _padded(count: int, height: int, width: int, dtype: Any) -> Array:
    import cupy

    return cupy.empty((count, height, width, 8 if dtype == np.uint16 else 4), dtype)  # (N, H, W, P)


def _contiguous(array: Array | None) -> Array | None:
    import cupy

    return None if array is None else cupy.ascontiguousarray(array)


def _kernel(name: str, dtype: Any, *options: bool) -> Any:
    """The kernel `name` for outputs of `dtype`, compiled together with the others for them."""
    own = TYPES[str(np.dtype(dtype))]
    wide = "double" if own == "double" else "float"  # of statistics
    names = [f"resample<{own}>", f"blend<{own}>", f"augment<{own}, false>", f"augment<{own}, true>"]
    names.append(f"plan_augmentation<{wide}>")
    arguments = ", ".join([wide if name == "plan_augmentation" else own, *(str(option).lower() for option in options)])
    return kernel("preprocess.cu", f"{name}<{arguments}>", tuple(names))
