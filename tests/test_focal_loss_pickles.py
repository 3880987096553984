"""The safe reader of old weight files gives NumPy's arrays and refuses all else."""

import pickle
import struct

import numpy as np
import pytest
import torch

from focal_loss import pickles


@pytest.mark.parametrize(
    "payload",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"ctorch\nload\n(S'x'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
        b"not a pickle",
        b"",
    ],
)
def test_a_pickle_that_calls_anything_but_arrays_is_refused(tmp_path, payload):
    path = tmp_path / "x.pkl"
    path.write_bytes(payload)
    with pytest.raises(ValueError, match="not a plain pickle of arrays"):
        pickles.read(path)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool", "float16"])
def test_arrays_of_every_protocol_are_read_exactly(tmp_path, protocol, dtype):
    array = (np.arange(24).reshape(2, 3, 4) % 7).astype(dtype)
    content = {
        "c": array,
        "f": np.asfortranarray(array),
        "cut": array[:, ::2],
        "none": array[:0],
        "scalar": array[0, 1, 1],
        "list": [array, "text"],
    }
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read = pickles.read(path)
    for key in ("c", "f", "cut", "none"):
        assert torch.equal(read[key], torch.from_numpy(np.ascontiguousarray(content[key])))
    assert read["scalar"] == content["scalar"].item()
    assert torch.equal(read["list"][0], read["c"])


def test_an_array_pickled_by_python_2_is_read(tmp_path):
    values = np.array([[1.5, -2.0], [200.25, 1e30]], "<f4")
    raw = values.tobytes()
    stream = (
        b"\x80\x02}U\x07conv1_wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"K\x00\x85U\x01b\x87R(K\x01K\x02K\x02\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + struct.pack("<i", len(raw)) + raw + b"tbs."
    )
    (tmp_path / "old.pkl").write_bytes(stream)
    assert torch.equal(pickles.read(tmp_path / "old.pkl")["conv1_w"], torch.from_numpy(values))
