"""Arrays out of a Caffe2-era `.pkl` file, without running anything the file says.

Detectron, detectron2 and MSRA publish weights as pickles of NumPy arrays. A pickle may name any
function to call; this reader knows the few names an array needs, answers each with a class of its
own, and refuses the rest. It does not even use NumPy.
"""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
}


class _Dtype:
    """Stands in for numpy.dtype: remembers its name and byte order."""

    def __init__(self, name: str, *_: Any):
        self.name = str(name).lstrip("<|=")
        self.order = "|"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def tensor(self, content: bytes | str) -> Tensor:
        """Little-endian bytes -> flat tensor; Python 2 pickles hold them as latin-1 text."""
        if self.name not in DTYPES or self.order == ">":
            raise pickle.UnpicklingError(f"arrays of {self.order}{self.name} are not supported")
        if isinstance(content, str):
            content = content.encode("latin1")
        if not content:
            return torch.zeros(0, dtype=DTYPES[self.name])
        return torch.frombuffer(bytearray(content), dtype=DTYPES[self.name])


class _Array:
    """Stands in for numpy.ndarray: becomes a tensor once its content is read."""

    def __init__(self, *_: Any):
        self.tensor = torch.zeros(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        flat = dtype.tensor(content)
        if fortran:
            self.tensor = flat.reshape(*shape[::-1]).permute(*reversed(range(len(shape))))
        else:
            self.tensor = flat.reshape(shape)


def _from_buffer(content: bytes, dtype: _Dtype, shape: tuple, order: str) -> _Array:
    """`numpy.core.numeric._frombuffer`, by which protocol 5 keeps arrays."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


def _scalar(dtype: _Dtype, content: bytes | str) -> float:
    return dtype.tensor(content).item()


def _bytes(text: str, encoding: str) -> bytes:
    """`_codecs.encode`, by which Python 3 writes bytes into old pickles."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding!r} is not part of an array")
    return text.encode("latin1")


def _empty() -> bytes:
    """`bytes()`, by which Python 3 writes an array without elements into old pickles."""
    return b""


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _bytes,
    ("__builtin__", "bytes"): _empty,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _Array
    ALLOWED[f"{_core}.multiarray", "scalar"] = _scalar
    ALLOWED[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ALLOWED[module, name]


def read(path: str | Path) -> Any:
    """Content of a `.pkl` file, arrays as tensors; ValueError if it holds anything else."""
    try:
        with Path(path).open("rb") as file:
            return _tensors(_Reader(file, encoding="latin1").load())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise ValueError(
            f"{path} was refused, it is not a plain pickle of arrays: {error}. Nothing of it was "
            "run; use the file as its authors publish it."
        ) from error


def _tensors(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.tensor
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tensors(item) for item in value]
    return value
