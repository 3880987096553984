"""Old PyTorch checkpoints, read without running anything they say.

`torch.load(weights_only=True)` reads most files and knows no more than plain values and tensors.
The checkpoints of 2017 may hold a little beside: NumPy scalars in the histories, an
`argparse.Namespace` of options. A pickle may name any function to call; this reader answers the few
names such a file needs with functions of its own, and refuses the rest.

    magic number, protocol, sizes of integers, the object, keys of storages, storages    (up to 1.5)
    a zip archive of data.pkl and a file for each storage                                (since 1.6)
"""

import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file in the old form
DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
SCALARS = {"f8": "d", "f4": "f", "i8": "q", "i4": "i", "u1": "B", "b1": "?"}


class _Storage:
    """A storage by its key; filled once its content is read."""

    def __init__(self, dtype: torch.dtype, size: int) -> None:
        self.dtype, self.size = dtype, size
        self.content: Tensor | None = None

    def fill(self, content: bytes) -> None:
        wanted = self.size * self.dtype.itemsize
        if len(content) != wanted:
            raise pickle.UnpicklingError(f"a storage has {len(content)} bytes, not {wanted}")
        empty = torch.zeros(0, dtype=self.dtype)
        self.content = torch.frombuffer(bytearray(content), dtype=self.dtype) if wanted else empty


class _Tensor:
    """A view of a storage, or a parameter; becomes a tensor at the end."""

    def __init__(self, storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> None:
        self.storage, self.offset = storage, offset
        self.size, self.stride = tuple(size), tuple(stride)

    def tensor(self) -> Tensor:
        content = self.storage.content
        if content is None:
            raise pickle.UnpicklingError("a tensor has no content")
        reach = self.offset + sum(
            (n - 1) * step for n, step in zip(self.size, self.stride, strict=True)
        )
        negative = min((self.offset, *self.size, *self.stride)) < 0
        if negative or (0 not in self.size and reach >= len(content)):
            raise pickle.UnpicklingError(f"a tensor of {self.size} leaves its storage")
        return content.as_strided(self.size, self.stride, self.offset).clone()


class _Namespace(dict):
    """Stands in for argparse.Namespace: its entries."""

    def __setstate__(self, state: dict) -> None:
        self.update(state)


class _Dtype:
    """Stands in for numpy.dtype."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name = str(name).lstrip("<|=")

    def __setstate__(self, state: tuple) -> None:
        if state[1] == ">":
            raise pickle.UnpicklingError("big-endian numbers are not supported")


def _scalar(dtype: _Dtype, content: bytes | str) -> Any:
    if dtype.name not in SCALARS:
        raise pickle.UnpicklingError(f"numbers of type {dtype.name} are not supported")
    data = content.encode("latin1") if isinstance(content, str) else content
    return struct.unpack("<" + SCALARS[dtype.name], data)[0]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding!r} is not part of a number")
    return text.encode("latin1")


def _parameter(data: _Tensor, *_: Any) -> _Tensor:
    return data


def _size(values: Any) -> tuple:
    return tuple(values)


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("argparse", "Namespace"): _Namespace,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("torch._utils", "_rebuild_tensor"): _Tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): _size,
}
for _name, _dtype in DTYPES.items():
    ALLOWED["torch", f"{_name}Storage"] = _dtype
    ALLOWED["torch.cuda", f"{_name}Storage"] = _dtype


class _Reader(pickle.Unpickler):
    def __init__(self, file: BinaryIO, storages: dict[str, _Storage]) -> None:
        super().__init__(file, encoding="latin1")  # Python 2 wrote some
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ALLOWED[module, name]

    def persistent_load(self, saved: Any) -> _Storage:
        if not isinstance(saved, tuple) or len(saved) < 5 or saved[0] != "storage":
            raise pickle.UnpicklingError("it refers to something other than a storage")
        _, dtype, key, _, size, *view = saved
        if not isinstance(dtype, torch.dtype) or (view and view[0] is not None):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        return self.storages.setdefault(str(key), _Storage(dtype, int(size)))


def read(path: str | Path) -> Any:
    """Content of a checkpoint, tensors on the CPU; ValueError if it holds anything it should not.

    First by `torch.load(weights_only=True)`, then by this file's list.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give a checkpoint.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # refused or damaged, which the list tells apart
        return _by_list(path)


def _by_list(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            load = _archive if zipfile.is_zipfile(path) else _stream
            return _tensors(load(file))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise ValueError(
            f"{path} was refused, it is damaged or more than a plain checkpoint: {error}. Nothing "
            "of it was run; use the file as its authors publish it."
        ) from error


def _stream(file: BinaryIO) -> Any:
    """The form up to PyTorch 1.5: pickles in a row, then each storage's length and content."""
    storages: dict[str, _Storage] = {}
    magic = _Reader(file, storages).load()
    if magic != MAGIC:
        raise pickle.UnpicklingError("it does not start as a checkpoint does")
    for _ in range(2):  # protocol, and the writing machine's sizes of integers
        _Reader(file, storages).load()
    content = _Reader(file, storages).load()
    for key in _Reader(file, storages).load():
        storage = storages[str(key)]
        (size,) = struct.unpack("<q", file.read(8))
        if size != storage.size:
            raise pickle.UnpicklingError(f"storage {key} has {size} elements, not {storage.size}")
        storage.fill(file.read(size * storage.dtype.itemsize))
    return content


def _archive(file: BinaryIO) -> Any:
    """The form since PyTorch 1.6: a zip archive."""
    storages: dict[str, _Storage] = {}
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise pickle.UnpicklingError("the archive has no data.pkl")
        root = names[0].removesuffix("data.pkl")
        with archive.open(names[0]) as pickled:
            content = _Reader(pickled, storages).load()  # type: ignore[arg-type]
        for key, storage in storages.items():
            storage.fill(archive.read(f"{root}data/{key}"))
    return content


def _tensors(value: Any) -> Any:
    """The same with tensors in place of their descriptions, containers as plain ones."""
    if isinstance(value, _Tensor):
        return value.tensor()
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_tensors(item) for item in value)
    return [_tensors(item) for item in value] if isinstance(value, list) else value
