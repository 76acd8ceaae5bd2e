"""Checks of the arrays that callers pass in: dtypes, shapes and class indices, never the pixels."""

from typing import Any

from cnn.arena import Shape
from cnn.errors import InputError


def check_images(images: Any, in_shape: Shape) -> None:
    """Raise `InputError` unless `images` is uint8 (N, *in_shape), for a network's `in_shape` (H, W, C)."""
    height, width, channels = in_shape
    expected = f"images: expected uint8 (N, {height}, {width}, {channels})"
    if not hasattr(images, "dtype"):
        raise InputError(f"{expected}, found {_article(images)}; write np.asarray(images, np.uint8)")
    shape, found = images.shape, _describe(images)
    if shape[1:] != in_shape:
        if images.ndim == 3 and shape[2] == channels:
            remedy = "pass one image as a batch: images[None]"
        elif images.ndim == 3:
            remedy = f"repeat the grey channel: np.repeat(images[..., None], {channels}, axis=3)"
        elif images.ndim == 4 and shape[1] == channels != shape[3]:
            remedy = "put the channels last: images.transpose(0, 2, 3, 1)"
        else:
            remedy = f"resize the images to {width}x{height}, as those that the network is trained on"
        raise InputError(f"{expected}, found {found}; {remedy}")
    if images.dtype != "uint8":
        remedy = "write images.astype(np.uint8) for pixels of 0 to 255"
        if images.dtype.kind == "f":
            remedy += ", or (255 * images).round().astype(np.uint8) for pixels of 0 to 1"
        raise InputError(f"{expected}, found {found}; {remedy}")


def check_labels(labels: Any, count: int, classes: int) -> None:
    """Raise `InputError` unless `labels` is integers (count,), from 0 to `classes` - 1."""
    expected = f"labels: expected integers ({count},) from 0 to {classes - 1}"
    if not hasattr(labels, "dtype"):
        raise InputError(f"{expected}, found {_article(labels)}; write np.asarray(labels)")
    if labels.shape != (count,):
        remedy = "write labels.argmax(axis=1)" if labels.shape == (count, classes) else "pass one label for each image"
        raise InputError(f"{expected}, found {_describe(labels)}; {remedy}")
    if labels.dtype.kind not in "iu":
        raise InputError(f"{expected}, found {_describe(labels)}; write labels.astype(np.int64)")
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"{expected}, found {int(labels.min())} to {int(labels.max())}; count the classes from 0, in the order "
            "of class_names"
        )


def _describe(array: Any) -> str:
    return f"{array.dtype} ({', '.join(map(str, array.shape))}{',' if array.ndim == 1 else ''})"


def _article(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
