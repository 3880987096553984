"""The reader of foreign weight files: right values, and hostile files end in one sentence."""

import argparse
import codecs
import os
import pickle
import random
import re
import resource
import struct
import sys
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest
import torch
from torch import Tensor

from common.weights import formats, unpickler
from common.weights.pickles import Refused, read

MEGABYTE = 2**20
NAMESPACE = argparse.Namespace(rate=0.5, names=["a"])
VALUES = {
    "view": torch.arange(24.0).view(4, 6)[1:3, ::2],
    "turned": torch.arange(6).view(2, 3).t(),
    "half": torch.ones(3).half(),
    "brain": torch.randn(3, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "none": torch.zeros(0, 3),
    "scalar": torch.tensor(2.5),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "flag": torch.tensor([True, False]),
    "array": np.arange(6.0).reshape(2, 3),
}
PLAIN = {
    "epoch": 3,
    "big": [2**70, -(2**40), -1],
    "text": "é\n'",
    "bytes": b"\x00\xff",
    "nothing": [None, True, 1e-3, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}],
}


def save(path: Path, content: object, form: str) -> Path:
    """Write `content` as "zip" or "stream", torch's forms, or as a pickle of a protocol."""
    if form in ("zip", "stream"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(pickle.dumps(content, protocol=int(form)))
    return path


def tensor(value: Tensor | np.ndarray) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.from_numpy(value.copy())


# Right values


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_torchs_files_are_read_exactly(tmp_path, form):
    first = VALUES["view"]
    content = VALUES | PLAIN | {"same": first, "state": OrderedDict(a=first), "args": NAMESPACE}
    content |= {"score": np.float64(0.9), "steps": Counter([1, 1]), "size": torch.Size([2, 3])}
    content["set"] = {1, 2}
    content["state"]._metadata = OrderedDict(version=1)
    found = read(save(tmp_path / "a.pt", content, form))
    for name, value in VALUES.items():
        assert torch.equal(found[name], tensor(value)), name
        assert found[name].dtype == tensor(value).dtype
    assert {name: found[name] for name in PLAIN} == PLAIN
    assert found["same"].data_ptr() == found["view"].data_ptr() == found["state"]["a"].data_ptr()
    assert found["set"] == [1, 2]
    assert found["args"] == {"rate": 0.5, "names": ["a"]}
    assert (found["score"], found["steps"], found["size"]) == (0.9, {1: 2}, (2, 3))


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_plain_values_of_every_protocol_are_read_exactly(tmp_path, protocol):
    content = dict(PLAIN)
    for dtype in ("f4", "f8", "i8", "i4", "i2", "i1", "u1", "?", "f2"):
        array = (np.arange(24).reshape(2, 3, 4) % 7).astype(dtype)
        cut = {"cut": array[:, ::2], "empty": array[:0], "point": np.array(array[0, 0, 1])}
        content |= {f"{dtype} {k}": v for k, v in cut.items()}
        content |= {f"{dtype} C": array, f"{dtype} F": np.asfortranarray(array)}
    content["scalar"] = np.int64(7)
    found = read(save(tmp_path / "a.pkl", content, str(protocol)))
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            assert torch.equal(found[name], torch.from_numpy(value.copy("C"))), name
            assert found[name].shape == value.shape
        else:
            assert found[name] == value
    assert type(found["scalar"]) is int


@pytest.mark.parametrize("protocol", [0, 2])
def test_arrays_and_dictionaries_of_python_2_are_read(tmp_path, protocol):
    values = np.array([[1.5, -2.0], [200.25, 1e30]], "<f4")
    raw, text = values.tobytes(), repr(values.tobytes())[1:].encode()
    texts = {
        0: b"S" + text + b"\n",
        2: b"T" + struct.pack("<i", len(raw)) + raw,
    }
    stream = (
        b"ccollections\nOrderedDict\n((lp0\n(lp1\nS'conv1_w'\nacnumpy.core.multiarray\n"
        b"_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\nI2\ntcnumpy\ndtype\n"
        b"(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n" + texts[protocol] + b"tbaatR."
    )
    (tmp_path / "old.pkl").write_bytes(stream)
    found = read(tmp_path / "old.pkl")
    assert list(found) == ["conv1_w"]
    assert torch.equal(found["conv1_w"], torch.from_numpy(values))


def test_files_of_cuda_tensors_are_read_on_the_cpu(tmp_path):
    path = save(tmp_path / "a.pt", {"a": torch.arange(3.0)}, "stream")
    content = path.read_bytes().replace(b"ctorch\nFloatStorage", b"ctorch.cuda\nFloatStorage")
    path.write_bytes(content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    assert torch.equal(read(path)["a"], torch.arange(3.0))


# Hostile files


class Calls:
    """Asks for a call when it is read."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("form", ["zip", "stream", "0", "2", "4", "5"])
@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (os.system, "touch exploded"),
        (eval, "open('exploded', 'w')"),
        (exec, "open('exploded', 'w')"),
        (os.mkdir, "exploded"),
        (getattr, "exploded"),
        (torch.load, "exploded"),
        (np.load, "exploded"),
        (bytearray, "exploded"),
    ],
)
def test_a_file_that_would_run_something_is_refused_and_runs_nothing(
    tmp_path, monkeypatch, form, function, argument
):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "a.pt", {"model": {"a": Calls(function, argument)}}, form)
    name = f"{function.__name__}. Nothing of it was run"
    with pytest.raises(Refused, match=rf"a\.pt was refused.*it asks for .*{name}"):
        read(path)
    assert not (tmp_path / "exploded").exists()


def pickled(*pieces: bytes) -> bytes:
    return b"\x80\x04" + b"".join(pieces) + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<i", len(value)) + value.encode()


def glob(name: str) -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


DTYPE = glob("numpy dtype") + text("f4") + b"\x85R"
ARRAY = glob("numpy.core.multiarray _reconstruct") + b")R"
ZEROS = b"B" + struct.pack("<i", MEGABYTE) + bytes(MEGABYTE)
PAIRS = b"](" + b"K\x01K\x02\x86" * 10_000 + b"e"


def levels(box: bytes) -> bytes:
    """Sixty containers, each a pair of the one before: 2^60 entries if written out."""
    boxes = [box.replace(b"?", bytes([i])) + b"\x94" for i in range(60)]
    return b"(]\x94" + b"".join(boxes) + b"l"


HOSTILE = {
    "nothing": b"",
    "no pickle": b"not a pickle",
    "no operation": pickled(b"\xff"),
    "no value": pickled(),
    "an operation too many": pickled(b"K\x01\x87"),
    "a mark that is missing": pickled(b"K\x01t"),
    "a memo that is missing": pickled(b"h\x07"),
    "a text without quotes": b"Sabc\n.",
    "rot13": pickled(glob("_codecs encode"), text("x"), text("rot13"), b"\x86R"),
    "a function's attributes": pickled(glob("_codecs encode"), b"}", text("a"), b"K\x01s", b"b"),
    "a function's code": pickled(glob("_codecs encode"), b"N}", text("__code__"), b"K\x01s\x86b"),
    "a class's attributes": pickled(glob("numpy dtype"), b"}", text("torch"), b"K\x01sb"),
    "an item of a function": pickled(glob("_codecs encode"), text("a"), b"K\x01s"),
    "an item of a list": pickled(b"]K\x00K\x01s"),
    "appending to a dict": pickled(b"}K\x01a"),
    "a call of a number": pickled(b"K\x01)R"),
    "a call of what it made": pickled(DTYPE, b")R"),
    "arguments that are a list": pickled(glob("collections OrderedDict"), b"]R"),
    "a name that is a number": pickled(b"K\x01K\x02\x93"),
    "a name with dots": pickled(text("torch"), text("Size.__class__"), b"\x93"),
    "an instance": b"(ios\nsystem\n.",
    "a registered extension": pickled(b"\x82\x01"),
    "a reference outside": pickled(text("x"), b"Q"),
    "bytes that are not there": pickled(b"\x8e" + struct.pack("<Q", 2**40)),
    "a buffer that is not there": pickled(b"\x96" + struct.pack("<Q", 2**40)),
    "more bytes than there can be": pickled(b"\x8e" + struct.pack("<Q", 2**63)),
    "digits without end": b"I" + b"9" * 10_000 + b"\n.",
    "a deep tuple for a key": pickled(b"}" + b")" + b"\x85" * 100_000 + b"K\x01s"),
    "a wide tuple for a key": pickled(levels(b"h?h?\x86"), b"}", b"h\x3cK\x01s"),
    "keys that collide": pickled(b"}\x8a\x09" + (2**61 - 1).to_bytes(9, "little") + b"K\x01s"),
    "an array of lists": pickled(ARRAY, b"(K\x01K\x01\x85", DTYPE, b"\x89]tb"),
    "an array of objects": pickled(
        ARRAY, b"(K\x01)", glob("numpy dtype"), text("O8"), b"\x85R", b"\x89C\x00tb"
    ),
    "a big-endian array": pickled(DTYPE, b"(K\x03", text(">"), b"tb"),
    "an array with too few bytes": pickled(ARRAY, b"(K\x01K\x09\x85", DTYPE, b"\x89C\x04abcdtb"),
    "an array of 2^120 numbers": pickled(
        ARRAY, b"(K\x01(", b"\x8a\x05\x00\x00\x00\x00\x10" * 3, b"t", DTYPE, b"\x89C\x04abcdtb"
    ),
    "an array of many dimensions": pickled(
        ARRAY, b"(K\x01(", b"K\x01" * 100_000, b"t", DTYPE, b"\x89C\x04abcdtb"
    ),
    "one text for a thousand arrays": pickled(
        ZEROS, b"\x94]", (ARRAY + b"(K\x01J\x00\x00\x04\x00\x85" + DTYPE + b"\x89h\x00tba") * 1000
    ),
    "one list for a thousand dicts": pickled(
        PAIRS, b"\x94]", (glob("collections OrderedDict") + b"h\x00\x85Ra") * 1000
    ),
    "a size that is text": pickled(glob("torch Size"), text("abc"), b"\x85R"),
    "arguments without end": pickled(glob("torch device"), b"(", b"K\x01" * 100_000, b"tR"),
}


def usage() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_in_a_sentence_and_in_little_memory(tmp_path, name):
    path = tmp_path / "a.pkl"
    path.write_bytes(HOSTILE[name])
    before = usage()
    with pytest.raises(Refused, match=r"a\.pkl was refused.*Nothing of it was run") as found:
        read(path)
    assert len(str(found.value)) < 500 + len(str(path))
    assert "\n" not in str(found.value)
    assert usage() - before < 500 * MEGABYTE


def test_operations_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(unpickler, "OPERATIONS", 1000)
    save(tmp_path / "a.pkl", [[] for _ in range(1000)], "2")
    with pytest.raises(Refused, match="takes more than 1,000 operations"):
        read(tmp_path / "a.pkl")


def test_the_readers_own_functions_are_out_of_reach(tmp_path):
    functions = {
        name: (value.__code__, value.__defaults__, dict(value.__dict__))
        for name, value in vars(unpickler.Unpickler).items()
        if isinstance(value, FunctionType)
    }
    calls = dict(unpickler.CALLS)
    for name in (*unpickler.CALLS, *unpickler.STORAGES):
        for state in (b"}" + text("__code__") + b"Ns", b"N}" + text("__code__") + b"Ns\x86"):
            path = tmp_path / "a.pkl"
            path.write_bytes(pickled(glob(" ".join(name.rsplit(".", 1))), state, b"b"))
            with pytest.raises(Refused, match="it changes a Name"):
                read(path)
    assert dict(unpickler.CALLS) == calls
    for name, (code, defaults, attributes) in functions.items():
        function = vars(unpickler.Unpickler)[name]
        assert (function.__code__, function.__defaults__) == (code, defaults)
        assert function.__dict__ == attributes
    with pytest.raises(TypeError):
        unpickler.CALLS["numpy dtype"] = print


@pytest.mark.parametrize("box", [b"](h?h?e", b"}(K\x00h?K\x01h?u", b"h?h?\x86"])
def test_shared_containers_stay_shared(tmp_path, box):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickled(levels(box)))
    found = read(path)[-1]
    first, second = found.values() if isinstance(found, dict) else found
    assert first is second
    assert formats.tensors_by_name({"model": found, "state_dict": found}) == {}


def test_a_container_in_itself_and_deep_nesting_are_read(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickled(b"}\x94", text("model"), b"h\x00s"))
    found = read(path)
    assert found["model"] is found
    with pytest.raises(ValueError, match="holds no tensors by name, only model"):
        formats.read(path)
    path.write_bytes(pickled(b"]" * 100_000 + b"a" * 99_999))
    assert len(read(path)) == 1


# Hostile archives


def archive(path: Path, **changes: bytes) -> Path:
    """A file of one tensor, arange(4), with other members; a value's length is not checked."""
    save(path, {"a": torch.arange(4.0).as_strided((2, 2), (2, 1))}, "zip")
    with zipfile.ZipFile(path) as whole:
        files = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(path, "w") as whole:
        for name, data in files.items():
            whole.writestr(name, changes.get(Path(name).name.replace(".", "_"), data))
    return path


def storage(kind: str = "torch FloatStorage", key: bytes = text("0"), count: int = 4) -> bytes:
    numbers = b"\x8a\x09" + count.to_bytes(9, "little", signed=True)
    return b"(" + text("storage") + glob(kind) + key + text("cpu") + numbers + b"tQ"


def view(size: tuple, stride: tuple, offset: int = 0, **of: object) -> bytes:
    numbers = [b"\x8a\x09" + n.to_bytes(9, "little", signed=True) for n in (*size, *stride, offset)]
    sizes, strides = numbers[: len(size)], numbers[len(size) : -1]
    pieces = (numbers[-1], b"(", *sizes, b"t(", *strides, b"t", b"\x89}tR")
    return glob("torch._utils _rebuild_tensor_v2") + b"(" + storage(**of) + b"".join(pieces)


def test_the_tensors_that_the_next_test_breaks_are_right(tmp_path):
    path = archive(tmp_path / "a.pt", data_pkl=pickled(view((2, 1), (1, 9), 2)))
    assert torch.equal(read(path), torch.tensor([[2.0], [3.0]]))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (view((2, 9), (2, 1)), "leaves its storage"),
        (view((2,), (1,), 3), "leaves its storage"),
        (view((10**9, 4), (0, 1)), "leaves its storage"),
        (view((2**59, 2**59), (0, 0)), "leaves its storage"),
        (view((2,), (1,), -1), "negative"),
        (view((2,), (-1,), 3), "negative"),
        (view((-2,), (1,)), "negative"),
        (view((2**64,), (0,)), "too large"),
        (view((2, 2), (1,)), "shorter"),
        (view((4,), (1,), count=2**40), "makes more than 4 times"),
        (view((4,), (1,), count=8), "has 16 bytes, not 32"),
        (view((4,), (1,), count=2), "has 16 bytes, not 8"),
        (view((4,), (1,), count=-4), "negative"),
        (view((4,), (1,), key=text("1")), "no item named"),
        (view((4,), (1,), key=text("../version")), "no item named"),
        (view((4,), (1,), key=b"K\x00"), "unknown kind"),
        (view((4,), (1,), kind="torch Size"), "unknown kind"),
        (b"K\x00Q", "something other than a storage"),
        (text("storage") + b"\x85Q", "something other than a storage"),
        (glob("torch._utils _rebuild_tensor_v2") + b"(K\x01K\x00))\x89}tR", "has no storage"),
        (storage() + storage("torch DoubleStorage", count=1) + b"\x86", "has 16 bytes, not 8"),
    ],
)
def test_a_tensor_that_is_not_in_the_file_is_refused(tmp_path, what, message):
    path = archive(tmp_path / "a.pt", data_pkl=pickled(what))
    before = usage()
    with pytest.raises(Refused, match=message):
        read(path)
    assert usage() - before < 100 * MEGABYTE


def test_many_views_of_one_storage_share_its_memory(tmp_path):
    path, count = tmp_path / "a.pt", 2**18
    one = view((count,), (1,), count=count)
    archive(path, data_pkl=pickled(b"](" + one * 1000 + b"e"), **{"0": bytes(4 * count)})
    before = usage()
    found = read(path)
    assert len({each.data_ptr() for each in found}) == 1
    assert len(found) == 1000
    assert usage() - before < 100 * MEGABYTE


def test_views_without_end_are_refused(tmp_path):
    """Five bytes a view, of arguments that stand in the file once."""
    call, given = view((4,), (1,))[:-1].split(b"(", 1)
    views = b"](" + call + b"\x94(" + given + b"\x94" + b"h\x00h\x01R" * 100_000 + b"e"
    with pytest.raises(Refused, match="makes more than 4 times its"):
        read(archive(tmp_path / "a.pt", data_pkl=pickled(views)))


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_weights_that_share_memory_are_read(tmp_path, form):
    shared = torch.nn.Linear(700, 700)
    content = torch.nn.ModuleList([shared] * 12).state_dict()
    content |= {f"turned{i}.w": content["0.weight"].view(350, 1400) for i in range(12)}
    found = formats.read(save(tmp_path / "a.pt", content, form))
    assert found.keys() == content.keys()
    assert len({value.data_ptr() for value in found.values()}) == 2
    for name, value in content.items():
        assert torch.equal(found[name], value), name


def test_archives_that_are_larger_than_they_look_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", method) as whole:
            whole.writestr("a/data.pkl", pickled(view((4,), (1,), count=2**20)))
            whole.writestr("a/data/0", bytes(2**22))
        with pytest.raises(Refused, match="a compressed archive"):
            read(path)
    archive(path)
    whole = bytearray(path.read_bytes())
    entry = whole.index(b"PK\1\2")
    whole[entry + 24 : entry + 28] = struct.pack("<I", 2**31)  # bytes of the first member
    path.write_bytes(whole)
    with pytest.raises(Refused, match="claim more bytes than the file has"):
        read(path)


def test_archives_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as whole:
        whole.writestr("a/b", b"")
    with pytest.raises(Refused, match=r"has no data\.pkl"):
        read(path)
    with pytest.raises(Refused, match="big-endian"):
        read(archive(path, byteorder=b"big"))
    path = save(path, {"a": torch.ones(2)}, "stream")
    path.write_bytes(re.sub(rb"(little_endianq.)\x88", b"\\1\x89", path.read_bytes()))
    with pytest.raises(Refused, match="big-endian"):
        read(path)


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name in ("absent.pt", "fifo", "."):
        with pytest.raises(Refused, match="is not a file: give a file of weights"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (struct.pack("<Q", 61) + b'{"w":{"dtype":"F32","shape":[1]', r"safetensors.*load_file\("),
        (b"\n<!DOCTYPE html>\n<html>", "is a web page: download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-LFS pointer: download the real"),
    ],
)
def test_formats_that_are_often_taken_for_ours_are_named(tmp_path, start, message):
    (tmp_path / "a.bin").write_bytes(start + bytes(100))
    with pytest.raises(Refused, match=rf"a\.bin is a .*{message}|a\.bin {message}"):
        read(tmp_path / "a.bin")


# Any damage


CONTENT = {"model": {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3).half()}, "epoch": 3}
ARRAYS = {"model": {"a": np.arange(6.0).reshape(2, 3), "n": np.float64(2)}, "cfg": "A: 1"}
FILES = {"zip": CONTENT, "stream": CONTENT, "0": ARRAYS, "2": ARRAYS, "4": ARRAYS, "5": ARRAYS}


@pytest.mark.parametrize("form", FILES)
def test_a_file_cut_anywhere_is_refused(tmp_path, form):
    path = save(tmp_path / "a.pt", FILES[form], form)
    whole = path.read_bytes()
    for length in {*range(0, len(whole) - 1, 17), *range(40), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(Refused):
            read(path)


def plain(value: object) -> bool:
    """Whether a value is data alone."""
    if isinstance(value, dict):
        return all(plain(each) for pair in value.items() for each in pair)
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    kinds = (Tensor, str, bytes, bytearray, int, float, bool, type(None))
    return isinstance(value, (*kinds, unpickler.Name, unpickler.Dtype))


RUNS = ("os.", "subprocess.", "exec", "compile", "import", "ctypes.", "pickle.", "shutil.")
EVENTS: list[str] | None = None


def watch(event: str, _: tuple) -> None:
    """An audit hook, which Python cannot take away again: what runs while EVENTS is a list."""
    if EVENTS is not None and event.startswith(RUNS):
        EVENTS.append(event)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # pickletools, of changed names
@pytest.mark.parametrize("form", FILES)
def test_a_file_with_changed_bytes_is_refused_or_gives_plain_values(tmp_path, monkeypatch, form):
    path = save(tmp_path / "a.pt", FILES[form], form)
    whole, generator, read_all = path.read_bytes(), random.Random(0), 0
    read(path)
    for encoding in ("cp437", "raw_unicode_escape"):  # Python imports each on its first use
        codecs.lookup(encoding)
    sys.addaudithook(watch)
    before, events = usage(), []
    monkeypatch.setattr(sys.modules[__name__], "EVENTS", events)
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(generator.choice((1, 1, 2, 8))):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        path.write_bytes(changed)
        try:
            found = read(path)
        except Refused:
            continue
        assert plain(found)
        read_all += 1
    monkeypatch.undo()
    assert 5 < read_all < 295
    assert not events
    assert usage() - before < 100 * MEGABYTE
