"""A stand-in for CuPy on a machine without a GPU, for tests: device arrays in host memory, kernels run by the emulator.

It has only what a backend should use, and is stricter than CuPy: no device array may meet a NumPy array, no kernel a
strided view or an argument of another type than it declares; fresh and freed memory is full of NaN; streams work as
late or as early as CUDA allows; what makes the host wait is counted in `cuda.waits`.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from . import _memory, _streams, cuda
from ._kernels import RawKernel, RawModule
from ._memory import alloc_pinned_memory

__all__ = ["RawKernel", "RawModule", "alloc_pinned_memory", "cuda", "ndarray"]
__version__ = "14.2.0+emulated"
bool_, newaxis, pi, inf, nan = np.bool_, np.newaxis, np.pi, np.inf, np.nan
_TYPES = {
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "dtype",
    "integer", "floating", "finfo", "iinfo", "result_type",
}  # fmt: skip
# Functions of NumPy that CuPy has too, and methods of arrays.
_FUNCTIONS = {
    "abs", "add", "all", "any", "argmax", "argmin", "argsort", "broadcast_to", "ceil", "clip", "concatenate", "cos",
    "cumsum", "divide", "einsum", "empty_like", "equal", "exp", "expand_dims", "flip", "floor", "full_like",
    "greater", "greater_equal", "isfinite", "isnan", "less", "less_equal", "log", "log1p", "logical_and", "matmul",
    "max", "maximum", "mean", "min", "minimum", "moveaxis", "multiply", "negative", "ones_like", "pad", "power",
    "prod", "repeat", "reshape", "rint", "roll", "sign", "sin", "sqrt", "square", "stack", "std", "subtract", "sum",
    "swapaxes", "take", "tanh", "tensordot", "tile", "transpose", "var", "where", "zeros_like",
}  # fmt: skip
_METHODS = {
    "all", "any", "argmax", "argmin", "clip", "cumsum", "dot", "flatten", "max", "mean", "min", "prod", "ravel",
    "repeat", "reshape", "round", "squeeze", "std", "sum", "swapaxes", "take", "transpose", "var", "view",
}  # fmt: skip
_VIEWS = {"ravel", "reshape", "squeeze", "swapaxes", "transpose", "view"}  # methods that copy only where they must


class ndarray(NDArrayOperatorsMixin):
    """An array in device memory; `_host` is that memory as NumPy sees it."""

    __array_priority__ = 100
    __slots__ = ("_host",)

    def __init__(self, shape: Any, dtype: Any = float, memptr: Any = None, *, order: str = "C") -> None:
        self._host = _memory.empty(shape, np.dtype(dtype), order, memptr)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    T = property(lambda self: _wrap(self._host.T))
    device = property(lambda self: cuda.Device())

    @property
    def data(self) -> Any:
        """The address, as a pointer into its block."""
        if not self.size:
            return _memory.MemoryPointer(_memory.Memory(None, 0, 0), 0)
        owner: Any = self._host
        while isinstance(owner, np.ndarray):
            owner = owner.base
        owner = owner.obj if isinstance(owner, memoryview) else owner
        block = _memory.Memory(owner, ctypes.addressof(owner), len(owner))
        return _memory.MemoryPointer(block, _memory.address_of(self._host) - block.ptr)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator["ndarray"]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<cupy.ndarray {self.dtype}{self.shape}>"

    # What makes the host wait

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        return self._get("get", stream, out, blocking)

    def _get(self, what: str, stream: Any = None, out: Any = None, blocking: bool = True) -> np.ndarray:
        if out is None:
            out = np.empty(self.shape, self.dtype)
            blocking = True
        if not isinstance(out, np.ndarray):
            raise TypeError("Only numpy.ndarray can be obtained from cupy.ndarray")
        if out.dtype != self.dtype:
            raise TypeError(f"{out.dtype} array cannot be obtained from {self.dtype} array")
        if out.shape != self.shape:
            raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}")
        if not out.flags.c_contiguous or not (self.flags.c_contiguous or blocking):
            raise RuntimeError("a copy to the host needs contiguous arrays")
        _memory.copy_to_host(out, self._host, stream, what, blocking)
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        _memory.copy_from_host(self._host, arr, stream)

    def item(self) -> Any:
        return self._get("item").item()

    def tolist(self) -> Any:
        return self._get("tolist").tolist()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    __index__ = __int__

    # What is done in the order of the stream, when the schedule says so

    def __getitem__(self, key: Any) -> "ndarray":
        if _is_basic(key):
            return _wrap(_basic(self._host, key))
        return _compute("take", lambda: self._host[_key(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, np.ndarray):
            raise TypeError(f"Unsupported type {type(value)}")
        if _is_basic(key):
            _memory.assign(_basic(self._host, key), _host(value), "copy")
        else:
            _compute("scatter", lambda: self._host.__setitem__(_key(key), _host(value)))

    def fill(self, value: Any) -> None:
        _memory.assign(self._host, _host(value), "fill")

    def copy(self, order: str = "C") -> "ndarray":
        return self.astype(self.dtype)

    def astype(self, dtype: Any, *, copy: bool = True) -> "ndarray":
        if not copy and np.dtype(dtype) == self.dtype:
            return self
        result = ndarray(self.shape, dtype)
        _memory.assign(result._host, self._host, "astype")
        return result

    def reshape(self, *shape: Any, order: str = "C") -> "ndarray":
        if self.flags.c_contiguous and order == "C":  # a view: nothing is done on the stream
            return _wrap(self._host.reshape(*shape))
        return _compute("reshape", lambda: self._host.reshape(*shape, order=order))

    # NumPy's functions and operators, which compute at once

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        if out is not None:
            kwargs["out"] = tuple(map(_host, out))
        result = _compute(ufunc.__name__, lambda: getattr(ufunc, method)(*map(_host, inputs), **_hosts(kwargs)))
        return result if out is None else out[0]

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _compute(function.__name__, lambda: function(*map(_host, args), **_hosts(kwargs)))

    def __getattr__(self, name: str) -> Any:
        if name not in _METHODS:
            raise AttributeError(f"the stand-in's cupy.ndarray has no {name}")
        method = getattr(self._host, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if name in _VIEWS:
                view = method(*args, **kwargs)
                if np.may_share_memory(view, self._host):
                    return _wrap(view)  # no work for the device
            return _compute(name, lambda: method(*map(_host, args), **_hosts(kwargs)))

        return call


def _wrap(host: np.ndarray) -> ndarray:
    array = ndarray.__new__(ndarray)
    array._host = host
    return array


def _basic(host: np.ndarray, key: Any) -> np.ndarray:
    """The view, also where the key picks a single element."""
    return host[key if Ellipsis in _tuple(key) else (*_tuple(key), ...)]


def _tuple(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


def _is_basic(key: Any) -> bool:
    return all(each is None or each is Ellipsis or isinstance(each, int | np.integer | slice) for each in _tuple(key))


def _key(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(map(_key, key))
    if isinstance(key, np.ndarray | list):  # CuPy copies these to the device, and says nothing
        raise TypeError("index with a device array")
    return _host(key)


def _host(value: Any) -> Any:
    """What NumPy computes with, of an argument that CuPy takes."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, tuple | list):
        return type(value)(map(_host, value))
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _hosts(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value if key == "out" else _host(value) for key, value in kwargs.items()}


def _compute(name: str, function: Callable[[], Any]) -> Any:
    """Run a function of NumPy after the current stream's work so far. Its result is a view of its arguments, or new."""
    _streams.count_launch(name)
    results: list[Any] = []
    _streams.finish(_streams.add(_streams.get_current_stream(), lambda _: results.append(function())))
    result = results[0]
    if isinstance(result, tuple | list):
        return tuple(map(_device, result))
    return None if result is None else _device(result)


def _device(values: Any) -> ndarray:
    """A device array: a view where `values` lie in device memory already, else a copy."""
    values = np.asarray(values)
    if values.size and _memory.is_device(values):
        return _wrap(values)
    fortran = values.flags.f_contiguous and not values.flags.c_contiguous
    array = ndarray(values.shape, values.dtype, order="F" if fortran else "C")

    def run(_: Any) -> None:
        array._host[...] = values

    _streams.finish(_streams.add(_streams.get_current_stream(), run))
    return array


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    array = ndarray(shape, dtype, order=order)
    _memory.assign(array._host, 0, "memset")
    return array


def ones(shape: Any, dtype: Any = float) -> ndarray:
    return full(shape, 1, dtype)


def full(shape: Any, fill_value: Any, dtype: Any = None) -> ndarray:
    array = ndarray(shape, dtype or np.asarray(fill_value).dtype)
    array.fill(fill_value)
    return array


def arange(*args: Any, dtype: Any = None) -> ndarray:
    return _compute("arange", lambda: np.arange(*args, dtype=dtype))


def asarray(a: Any, dtype: Any = None, order: Any = None, *, blocking: bool = False) -> ndarray:
    if isinstance(a, ndarray):
        return a if dtype in (None, a.dtype) else a.astype(dtype)
    values = np.asarray(a, dtype)
    array = ndarray(values.shape, values.dtype)
    _memory.copy_from_host(array._host, values)
    if blocking:
        _streams.get_current_stream().synchronize()
    return array


def array(a: Any, dtype: Any = None, copy: bool = True) -> ndarray:
    return a.astype(dtype or a.dtype) if isinstance(a, ndarray) else asarray(a, dtype)


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    """As in CuPy, only of device arrays; and one of no axes becomes one of shape (1,)."""
    if not isinstance(a, ndarray):
        raise TypeError(f"Argument 'a' has incorrect type (expected cupy.ndarray, got {type(a).__name__})")
    a = a if a.ndim else _wrap(a._host.reshape(1))
    return a if a.flags.c_contiguous and dtype in (None, a.dtype) else a.astype(dtype or a.dtype)


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    return a.get(stream, order, out, blocking) if isinstance(a, ndarray) else np.asarray(a)


def copyto(to: ndarray, source: Any) -> None:
    to[...] = source


def get_array_module(*args: Any) -> Any:
    return sys.modules[__name__] if any(isinstance(each, ndarray) for each in args) else np


def get_default_memory_pool() -> Any:
    return _memory.pool


def get_default_pinned_memory_pool() -> Any:
    return _memory.PinnedMemoryPool()


def __getattr__(name: str) -> Any:
    if name in _TYPES:
        return getattr(np, name)
    if name in _FUNCTIONS:
        function = getattr(np, name)
        return lambda *args, **kwargs: _compute(name, lambda: function(*map(_host, args), **_hosts(kwargs)))
    raise AttributeError(f"the stand-in for CuPy has no {name}")
