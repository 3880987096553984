"""The stack machine of pickles, with data alone on its stack.

A pickle is a program that may call any function it names, and Python's `pickle` does so. This
machine knows a few names and answers them by data: what a file can reach is never a function or a
class, so there is nothing to call or to change. What it makes is counted against the file's size.
"""

import codecs
import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pickle import UnpicklingError
from types import MappingProxyType
from typing import Any, BinaryIO

import torch
from torch import Tensor

RATIO, SLACK = 4, 2**20  # a file may make so many times its own bytes, and a little
OPERATIONS = 4_000_000  # of a file's pickles together; each makes some 100 bytes at most
LARGEST = 2**60  # greater integers can be made to collide as keys of a dict, which takes hours
FEW = 16  # dimensions of a tensor, arguments of a call
VIEW = 256  # bytes that a view of a storage is charged: its numbers are there already
STORAGES = MappingProxyType(
    {
        "torch DoubleStorage": torch.float64,
        "torch FloatStorage": torch.float32,
        "torch HalfStorage": torch.float16,
        "torch BFloat16Storage": torch.bfloat16,
        "torch LongStorage": torch.int64,
        "torch IntStorage": torch.int32,
        "torch ShortStorage": torch.int16,
        "torch CharStorage": torch.int8,
        "torch ByteStorage": torch.uint8,
        "torch BoolStorage": torch.bool,
    }
)
ARRAYS = MappingProxyType(
    {
        "f8": torch.float64,
        "f4": torch.float32,
        "f2": torch.float16,
        "i8": torch.int64,
        "i4": torch.int32,
        "i2": torch.int16,
        "i1": torch.int8,
        "u1": torch.uint8,
        "b1": torch.bool,
    }
)


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class that a pickle names, such as "numpy dtype": nothing but its name."""

    text: str


@dataclass(frozen=True, slots=True)
class Storage:
    """Numbers in a row, of which tensors are views."""

    content: bytearray
    dtype: torch.dtype

    @property
    def numbers(self) -> int:
        return len(self.content) // self.dtype.itemsize

    def tensor(self) -> Tensor:
        if not self.content:
            return torch.zeros(0, dtype=self.dtype)
        return torch.frombuffer(self.content, dtype=self.dtype)


@dataclass(slots=True)
class Dtype:
    """Stands in for numpy.dtype."""

    name: str


class Namespace(dict):
    """Stands in for argparse.Namespace: its entries."""


class Machine:
    """Runs the pickles of one file.

    size: bytes of the file, which bound what it may make.
    load: a storage's content by its key and number of bytes; None: there are no storages.
    storages: those read so far, by their keys.
    """

    load: Callable[[str, int], bytearray] | None = None

    def __init__(self, size: int) -> None:
        self.size, self.left, self.operations = size, RATIO * size + SLACK, OPERATIONS
        self.storages: dict[str, Storage] = {}
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []

    def run(self, file: BinaryIO) -> Any:
        """The value of the pickle that starts here; `file` is left behind it."""
        self.stack, self.marks = [], []
        memo: dict[int, Any] = {}
        while True:
            name, value = self.operation(file)
            if name in VALUES:
                self.stack.append(value)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name in PUTS:
                memo[len(memo) if name == "MEMOIZE" else value] = self.stack[-1]
            elif name in GETS:
                self.stack.append(memo[value])
            elif name == "GLOBAL":
                self.stack.append(named(value))
            elif name == "MARK":
                self.marks.append(self.stack)
                self.stack = []
            elif name in MADE:
                count, make = MADE[name]
                items = self.take(count)
                self.stack.append(make(self, items))
            elif name in CHANGED:
                count, change = CHANGED[name]
                items = self.take(count)
                change(self, self.stack[-1], items)
            elif name == "STOP":
                return self.stack.pop()

    def operation(self, file: BinaryIO) -> tuple[str, Any]:
        """Name and argument of the next operation."""
        self.operations -= 1
        if self.operations < 0:
            raise UnpicklingError(f"it takes more than {OPERATIONS:,} operations")
        code = file.read(1)
        if code not in KNOWN:
            raise UnpicklingError(f"{code!r} is no operation of such files" if code else "cut off")
        known = KNOWN[code]
        if known.name != "STRING":
            return known.name, known.arg.reader(file) if known.arg else None
        line = file.readline().strip()  # Python 2's text; pickletools takes it for ASCII
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:]:
            raise UnpicklingError("a text has no quotes")
        return known.name, codecs.escape_decode(line[1:-1])[0].decode("latin1")

    def take(self, count: int | None) -> list[Any]:
        """The last `count` values of the stack, or all since the last mark."""
        if count is None:
            items, self.stack = self.stack, self.marks.pop()
            return items
        start = len(self.stack) - count
        if start < 0:
            raise UnpicklingError("it takes more values than there are")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def charge(self, count: int) -> None:
        """Account for so many bytes before they are made."""
        self.left -= count
        if self.left < 0:
            raise UnpicklingError(f"it makes more than {RATIO} times its {self.size:,} bytes")

    def call(self, items: list[Any]) -> Any:
        """REDUCE and NEWOBJ: a name and the tuple of its arguments."""
        name, arguments = items
        known = type(name) is Name and name.text in CALLS
        if not known or type(arguments) is not tuple or len(arguments) > FEW:
            raise UnpicklingError("it calls what is no function")
        return CALLS[name.text](self, *arguments)

    def build(self, target: Any, items: list[Any]) -> None:
        """BUILD: a value and what its `__setstate__` would get."""
        (state,) = items
        if type(target) is Namespace:
            target |= self.mapping(state)
        elif type(target) is Dtype and state[1] == ">":
            raise UnpicklingError("big-endian arrays are not supported")
        elif isinstance(target, Tensor):
            _, shape, dtype, fortran, content = state
            target.data = self.array(content, dtype, shape, "F" if fortran else "C")
        elif type(target) not in (dict, Dtype):  # whose further attributes say nothing here
            raise UnpicklingError(f"it changes a {type(target).__name__}")

    def set(self, target: Any, items: list[Any]) -> Any:
        """Keys and values in turn, into a dict."""
        if not isinstance(target, dict):
            raise UnpicklingError(f"it sets an item of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            plain = key is None or type(key) in (str, bytes, bool, float)
            if not plain and not (type(key) is int and -LARGEST < key < LARGEST):
                raise UnpicklingError(f"a key of a dict is a {type(key).__name__}")
            target[key] = value
        return target

    def extend(self, target: Any, items: list[Any]) -> None:
        if type(target) is not list:
            raise UnpicklingError(f"it appends to a {type(target).__name__}")
        target += items

    def mapping(self, content: Any = (), *_: Any) -> dict:
        """A dict of another one's entries, or of a list of pairs."""
        self.charge(100 * len(content))
        pairs = content.items() if isinstance(content, dict) else content
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            raise UnpicklingError("an entry of a dict is no pair")
        return self.set({}, [each for pair in pairs for each in pair])

    def storage(self, items: list[Any]) -> Storage:
        """BINPERSID: ("storage", type, key, device, numbers), read where it is new."""
        if type(items[0]) is not tuple or len(items[0]) not in (5, 6) or self.load is None:
            raise UnpicklingError("it refers to something other than a storage")
        _, kind, key, _, count, *view = items[0]
        if type(kind) is not Name or kind.text not in STORAGES or type(key) is not str or any(view):
            raise UnpicklingError("it has a storage of an unknown kind")
        dtype, wanted = STORAGES[kind.text], sizes((count,))[0] * STORAGES[kind.text].itemsize
        if key not in self.storages:
            self.charge(wanted)
            self.storages[key] = Storage(self.load(key, wanted), dtype)
        found = self.storages[key]
        if found.dtype != dtype or len(found.content) != wanted:
            raise UnpicklingError(f"storage {key} has {len(found.content)} bytes, not {wanted}")
        return found

    def tensor(self, storage: Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
        """A view of a storage that has no more numbers than the storage."""
        if type(storage) is not Storage:
            raise UnpicklingError("a tensor has no storage")
        size, stride, (offset,) = sizes(size), sizes(stride), sizes((offset,))
        numbers = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if numbers and (last >= storage.numbers or numbers > storage.numbers):
            raise UnpicklingError(f"a tensor of {size} leaves its storage")
        self.charge(VIEW)
        return storage.tensor().as_strided(size, stride, offset)

    def array(self, content: Any, dtype: Dtype, shape: tuple, order: str) -> Tensor:
        """The tensor of an array's bytes, which Python 2 keeps as text; order "C" or "F"."""
        shape = sizes(shape)
        if type(dtype) is not Dtype or not isinstance(content, str | bytes | bytearray):
            raise UnpicklingError("an array has no type or no content")
        if dtype.name not in ARRAYS:
            raise UnpicklingError(f"arrays of {dtype.name} are not supported")
        if len(content) != math.prod(shape) * ARRAYS[dtype.name].itemsize:
            raise UnpicklingError(f"an array of {shape} {dtype.name} has {len(content)} bytes")
        self.charge(len(content))
        raw = content.encode("latin1") if isinstance(content, str) else content
        flat = Storage(bytearray(raw), ARRAYS[dtype.name]).tensor()
        if order == "F":
            return flat.view(shape[::-1]).permute(*reversed(range(len(shape))))
        return flat.view(shape)

    def dtype(self, name: str, *_: Any) -> Dtype:
        if type(name) is not str or len(name) > FEW or name[:1] == ">":
            raise UnpicklingError("an array's type has no name, or is big-endian")
        return Dtype(name.lstrip("<|="))

    def encode(self, text: str, encoding: str) -> bytes:
        """`_codecs.encode`, by which Python 3 writes bytes into old pickles."""
        if type(text) is not str or encoding != "latin1":
            raise UnpicklingError("it encodes text that is no part of an array")
        self.charge(len(text))
        return text.encode("latin1")


def sizes(values: Any) -> tuple[int, ...]:
    """Sizes, strides or an offset of a tensor, checked."""
    if not isinstance(values, tuple | list) or len(values) > FEW:
        raise UnpicklingError(f"a size is no tuple of up to {FEW} integers")
    if not all(type(n) is int and 0 <= n < LARGEST for n in values):
        raise UnpicklingError("a size is negative, too large or no integer")
    return tuple(values)


def named(text: str) -> Name:
    """GLOBAL: a name of `CALLS` or `STORAGES`; NumPy 2 renamed its modules."""
    text = text.replace("numpy._core.", "numpy.core.").replace("torch.cuda ", "torch ")
    if text not in CALLS and text not in STORAGES:
        raise UnpicklingError(f"it asks for {text.replace(' ', '.')}")
    return Name(text)


def joined(items: list[Any]) -> Name:
    """STACK_GLOBAL: module and name are on the stack."""
    if not all(type(item) is str for item in items):
        raise UnpicklingError("it asks for what is no name")
    return named(" ".join(items))


CALLS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "collections OrderedDict": Machine.mapping,
        "collections Counter": Machine.mapping,
        "argparse Namespace": lambda machine: Namespace(),
        "_codecs encode": Machine.encode,
        "__builtin__ bytes": lambda machine: b"",  # by which Python 3 writes an empty array
        "__builtin__ set": lambda machine, items: items,
        "numpy dtype": Machine.dtype,
        "numpy ndarray": lambda machine, *_: torch.zeros(0),  # BUILD gives it its content
        "numpy.core.multiarray _reconstruct": lambda machine, *_: torch.zeros(0),
        "numpy.core.multiarray scalar": lambda machine, dtype, content: machine.array(
            content, dtype, (), "C"
        ).item(),
        "numpy.core.numeric _frombuffer": Machine.array,
        "torch Size": lambda machine, values: sizes(values),
        "torch device": lambda machine, *where: where,
        "torch._utils _rebuild_tensor": Machine.tensor,
        "torch._utils _rebuild_tensor_v2": Machine.tensor,
        "torch._utils _rebuild_parameter": lambda machine, data, *_: data,
        "torch._utils _rebuild_parameter_with_state": lambda machine, data, *_: data,
    }
)
# The operations by their names in `pickletools`; what is not here is refused.
VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
GETS = {"GET", "BINGET", "LONG_BINGET"}
# How many values each takes, None: those since the mark, and what it makes of them
MADE: dict[str, tuple[int | None, Callable[[Machine, list], Any]]] = {
    "EMPTY_LIST": (0, lambda machine, items: items),
    "EMPTY_DICT": (0, lambda machine, items: {}),
    "LIST": (None, lambda machine, items: items),
    "DICT": (None, lambda machine, items: machine.set({}, items)),
    "TUPLE": (None, lambda machine, items: tuple(items)),
    "TUPLE1": (1, lambda machine, items: tuple(items)),
    "TUPLE2": (2, lambda machine, items: tuple(items)),
    "TUPLE3": (3, lambda machine, items: tuple(items)),
    "STACK_GLOBAL": (2, lambda machine, items: joined(items)),
    "REDUCE": (2, Machine.call),
    "NEWOBJ": (2, Machine.call),
    "BINPERSID": (1, Machine.storage),
}
# How many it takes, and what it does with them to the value below them
CHANGED: dict[str, tuple[int | None, Callable[[Machine, Any, list], None]]] = {
    "APPEND": (1, Machine.extend),
    "APPENDS": (None, Machine.extend),
    "SETITEM": (2, Machine.set),
    "SETITEMS": (None, Machine.set),
    "BUILD": (1, Machine.build),
}
KNOWN = {
    operation.code.encode("latin1"): operation
    for operation in pickletools.opcodes
    if operation.name in {*VALUES, *CONSTANTS, *PUTS, *GETS, *MADE, *CHANGED}
    or operation.name in ("GLOBAL", "MARK", "PROTO", "FRAME", "STOP")
}
