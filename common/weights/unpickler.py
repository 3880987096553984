"""Python's own reader of pickles, with data alone on its stack.

A pickle is a program that may call any function it names. This reader knows a few names and answers
each with a `Name`, which is data: what a file can reach is never a function or a class, so there is
nothing to call or to change. What it makes is counted against the size of the file.
"""

import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pickle import UnpicklingError
from types import MappingProxyType, SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

RATIO, SLACK = 4, 2**20  # a file may make so many times its own bytes, and a little
OPERATIONS = 4_000_000  # of a file's pickles together; each makes some 100 bytes at most
LARGEST = 2**60  # greater integers can be made to collide as keys of a dict, which takes hours
FEW = 16  # dimensions of a tensor, arguments of a call
VIEW = 256  # bytes that a view of a storage is charged: its numbers are there already
ARRAYS = frozenset(("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1"))
STORAGES = MappingProxyType(
    {
        "torch.DoubleStorage": torch.float64,
        "torch.FloatStorage": torch.float32,
        "torch.HalfStorage": torch.float16,
        "torch.BFloat16Storage": torch.bfloat16,
        "torch.LongStorage": torch.int64,
        "torch.IntStorage": torch.int32,
        "torch.ShortStorage": torch.int16,
        "torch.CharStorage": torch.int8,
        "torch.ByteStorage": torch.uint8,
        "torch.BoolStorage": torch.bool,
    }
)


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class that a pickle names, such as "numpy.dtype": nothing but its name."""

    text: str


@dataclass(slots=True)
class Dtype:
    """Stands in for numpy.dtype."""

    name: str


class Namespace(dict):
    """Stands in for argparse.Namespace: its entries."""


# The one written in Python: each of its operations can be replaced
Base: Any = pickle.__dict__["_Unpickler"]


class Unpickler(Base):
    """Reads the pickles of one file, by Python's own reader with the calls taken out.

    size: bytes of the file, which bound what it may make.
    fetch: a storage's content by its key and number of bytes; None: there are no storages.
    storages: flat tensors, those read so far by their keys.
    """

    fetch: Callable[[str, int], bytearray] | None = None

    def __init__(self, file: BinaryIO, size: int) -> None:
        # No more than the file holds: it may claim a text of 2^60 bytes
        bounded = SimpleNamespace(
            read=lambda count: file.read(min(count, size)), readline=file.readline
        )
        super().__init__(bounded, encoding="latin1")  # of Python 2's text
        self.size, self.left, self.operations = size, RATIO * size + SLACK, OPERATIONS
        self.storages: dict[str, Tensor] = {}

    def load(self) -> Any:
        """The value of the pickle that starts here; the file is left behind it."""
        self.memo: dict[int, Any] = {}
        try:
            return super().load()
        except EOFError as error:
            raise UnpicklingError("it is cut off") from error

    def find_class(self, module: str, name: str) -> Name:
        """A name of `CALLS` or `STORAGES`; NumPy 2 renamed its modules."""
        text = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        text = text.replace("torch.cuda.", "torch.")
        if text not in CALLS and text not in STORAGES:
            raise UnpicklingError(f"it asks for {text}")
        return Name(text)

    def charge(self, count: int) -> None:
        """Account for so many bytes before they are made."""
        self.left -= count
        if self.left < 0:
            raise UnpicklingError(f"it makes more than {RATIO} times its {self.size:,} bytes")

    def load_reduce(self) -> None:
        """REDUCE and NEWOBJ: a name and the tuple of its arguments."""
        arguments, name = self.stack.pop(), self.stack.pop()
        known = type(name) is Name and name.text in CALLS
        if not known or type(arguments) is not tuple or len(arguments) > FEW:
            raise UnpicklingError("it calls what is no function")
        self.append(CALLS[name.text](self, *arguments))

    load_newobj = load_reduce

    def load_build(self) -> None:
        """BUILD: a value and what its `__setstate__` would get."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Namespace:
            target |= self.mapping(state)
        elif type(target) is Dtype and state[1] == ">":
            raise UnpicklingError("big-endian arrays are not supported")
        elif isinstance(target, Tensor):
            _, shape, dtype, fortran, content = state
            target.data = self.array(content, dtype, shape, "F" if fortran else "C")
        elif type(target) not in (dict, Dtype):  # whose further attributes say nothing here
            raise UnpicklingError(f"it changes a {type(target).__name__}")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _fill(self.stack[-1], [(key, value)])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _fill(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append(_fill({}, zip(items[::2], items[1::2], strict=True)))

    def refuse(self) -> None:
        """What such files do not need: more ways to a call, and sets, whose items are hashed."""
        raise UnpicklingError("it has an operation that is none of such files")

    load_obj = load_inst = load_newobj_ex = load_ext1 = load_ext2 = load_ext4 = refuse
    load_additems = load_frozenset = load_next_buffer = load_readonly_buffer = refuse
    # A bytearray would be made before it is known whether the file holds as many bytes
    load_bytearray8 = Base.load_binbytes8

    def persistent_load(self, pid: Any) -> Tensor:
        """A storage, ("storage", type, key, device, numbers), as a flat tensor."""
        if type(pid) is not tuple or len(pid) not in (5, 6) or self.fetch is None:
            raise UnpicklingError("it refers to something other than a storage")
        _, kind, key, _, count, *view = pid
        if type(kind) is not Name or kind.text not in STORAGES or type(key) is not str or any(view):
            raise UnpicklingError("it has a storage of an unknown kind")
        dtype = STORAGES[kind.text]
        wanted = _sizes((count,))[0] * dtype.itemsize
        if key not in self.storages:
            self.charge(wanted)
            content = self.fetch(key, wanted)
            if len(content) != wanted:
                raise UnpicklingError(f"storage {key} has {len(content)} bytes, not {wanted}")
            self.storages[key] = torch.from_numpy(np.frombuffer(content, np.uint8)).view(dtype)
        found = self.storages[key]
        if found.dtype != dtype or found.nbytes != wanted:
            raise UnpicklingError(f"storage {key} has {found.nbytes} bytes, not {wanted}")
        return found

    def tensor(self, storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
        """A view of a storage that has no more numbers than the storage."""
        if not isinstance(storage, Tensor):
            raise UnpicklingError("a tensor has no storage")
        size, stride, (offset,) = _sizes(size), _sizes(stride), _sizes((offset,))
        numbers = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if numbers and (last >= len(storage) or numbers > len(storage)):
            raise UnpicklingError(f"a tensor of {size} leaves its storage")
        self.charge(VIEW)
        return storage.as_strided(size, stride, offset)

    def array(self, content: Any, dtype: Dtype, shape: tuple, order: Any) -> Tensor:
        """The tensor of an array's bytes, which Python 2 keeps as text; order "C" or "F"."""
        if type(dtype) is not Dtype or not isinstance(content, str | bytes):
            raise UnpicklingError("an array has no type or no content")
        name = dtype.name.lstrip("<|=")
        if name not in ARRAYS:
            raise UnpicklingError(f"arrays of {name} are not supported")
        self.charge(len(content))
        raw = content.encode("latin1") if isinstance(content, str) else content
        flat = np.frombuffer(bytearray(raw), name)
        return torch.from_numpy(flat.reshape(_sizes(shape), order=order))

    def mapping(self, content: Any = (), *_: Any) -> dict:
        """A dict of another one's entries, or of a list of pairs."""
        self.charge(100 * len(content))
        return _fill({}, content.items() if isinstance(content, dict) else content)

    def encode(self, text: str, encoding: str) -> bytes:
        """`_codecs.encode`, by which Python 3 writes bytes into old pickles."""
        if type(text) is not str or encoding != "latin1":
            raise UnpicklingError("it encodes text that is no part of an array")
        self.charge(len(text))
        return text.encode("latin1")


def _fill(target: Any, pairs: Iterable) -> dict:
    """`target` with keys and values, of which the keys are quick to hash and to compare."""
    if not isinstance(target, dict):
        raise UnpicklingError(f"it sets an item of a {type(target).__name__}")
    for key, value in pairs:
        plain = key is None or type(key) in (str, bytes, bool, float)
        if not plain and not (type(key) is int and -LARGEST < key < LARGEST):
            raise UnpicklingError(f"a key of a dict is a {type(key).__name__}")
        target[key] = value
    return target


def _sizes(values: Any) -> tuple[int, ...]:
    """Sizes, strides or an offset of a tensor, checked."""
    if not isinstance(values, tuple | list) or len(values) > FEW:
        raise UnpicklingError(f"a size is no tuple of up to {FEW} integers")
    if not all(type(n) is int and 0 <= n < LARGEST for n in values):
        raise UnpicklingError("a size is negative, too large or no integer")
    return tuple(values)


CALLS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "collections.OrderedDict": Unpickler.mapping,
        "collections.Counter": Unpickler.mapping,
        "argparse.Namespace": lambda reader: Namespace(),
        "_codecs.encode": Unpickler.encode,
        "__builtin__.bytes": lambda reader: b"",  # by which Python 3 writes an empty array
        "__builtin__.set": lambda reader, items: items,
        "numpy.dtype": lambda reader, name, *_: Dtype(name),
        "numpy.ndarray": lambda reader, *_: torch.zeros(0),  # BUILD gives it its content
        "numpy.core.multiarray._reconstruct": lambda reader, *_: torch.zeros(0),
        "numpy.core.multiarray.scalar": lambda reader, dtype, content: reader.array(
            content, dtype, (), "C"
        ).item(),
        "numpy.core.numeric._frombuffer": Unpickler.array,
        "torch.Size": lambda reader, values: _sizes(values),
        "torch.device": lambda reader, *where: where,
        "torch._utils._rebuild_tensor": Unpickler.tensor,
        "torch._utils._rebuild_tensor_v2": Unpickler.tensor,
        "torch._utils._rebuild_parameter": lambda reader, data, *_: data,
        "torch._utils._rebuild_parameter_with_state": lambda reader, data, *_: data,
    }
)


def _count(load: Callable[[Unpickler], None]) -> Callable[[Unpickler], None]:
    """An operation that counts how often it and the others are run."""

    def step(reader: Unpickler) -> None:
        reader.operations -= 1
        if reader.operations < 0:
            raise UnpicklingError(f"it takes more than {OPERATIONS:,} operations")
        load(reader)

    return step


Unpickler.dispatch = dict.fromkeys(range(256), Unpickler.refuse) | {
    code: _count(getattr(Unpickler, load.__name__)) for code, load in Base.dispatch.items()
}
