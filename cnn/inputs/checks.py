"""Checks of the arrays that callers pass in: types, shapes and class indices, never the pixels."""

from typing import Any

from cnn.arena import Shape
from cnn.errors import InputError


def check_images(images: Any, in_shape: Shape) -> None:
    """Raise `InputError` unless `images` is uint8 (N, *in_shape), for a network's `in_shape` (H, W, C)."""
    height, width, channels = in_shape
    if not hasattr(images, "dtype"):
        remedy = "write np.asarray(images, np.uint8)"
    elif images.shape[1:] == in_shape:
        if images.dtype == "uint8":
            return
        remedy = "write images.astype(np.uint8) for pixels of 0 to 255"
        if images.dtype.kind == "f":
            remedy += ", or (255 * images).round().astype(np.uint8) for pixels of 0 to 1"
    elif images.ndim == 3 and images.shape[2] == channels:
        remedy = "pass one image as a batch: images[None]"
    elif images.ndim == 3:
        remedy = f"repeat the grey channel: np.repeat(images[..., None], {channels}, axis=3)"
    elif images.ndim == 4 and images.shape[1] == channels != images.shape[3]:
        remedy = "put the channels last: images.transpose(0, 2, 3, 1)"
    else:
        remedy = f"resize the images to {width}x{height}, the size that the network is trained on"
    expected = f"uint8 (N, {height}, {width}, {channels})"
    raise InputError(f"images: expected {expected}, found {_describe(images)}; {remedy}")


def check_labels(labels: Any, count: int, classes: int) -> None:
    """Raise `InputError` unless `labels` is integers (count,), from 0 to `classes` - 1."""
    found = _describe(labels)
    if not hasattr(labels, "dtype"):
        remedy = "write np.asarray(labels)"
    elif labels.shape == (count, classes):
        remedy = "write labels.argmax(axis=1)"
    elif labels.shape != (count,):
        remedy = "pass one label for each image"
    elif labels.dtype.kind not in "iu":
        remedy = "write labels.astype(np.int64)"
    elif count and not 0 <= labels.min() <= labels.max() < classes:
        found = f"{labels.min()} to {labels.max()}"
        remedy = "count the classes from 0, in the order of class_names"
    else:
        return
    raise InputError(f"labels: expected integers ({count},) from 0 to {classes - 1}, found {found}; {remedy}")


def _describe(value: Any) -> str:
    """An array's dtype and shape, or the type of another object."""
    if not hasattr(value, "dtype"):
        return f"an object of type {type(value).__name__}"
    return f"{value.dtype} ({', '.join(map(str, value.shape))}{',' if value.ndim == 1 else ''})"
