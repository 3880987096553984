"""Weight files of others, read without running anything they say.

    content = read("model_final.pkl")      # tensors, numbers, text, lists, tuples, dicts

Three forms are told apart by their first bytes:

    one pickle, with NumPy's arrays inside                                    (Caffe2, Detectron)
    magic number, protocol, sizes of integers, the object, keys, storages     (PyTorch up to 1.5)
    a zip archive of data.pkl and a file for each storage                     (since 1.6)
"""

import io
import struct
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from .unpickler import Unpickler

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of PyTorch up to 1.5
POINTER = b"version https://git-lfs"
PAGES = b"<!doctype", b"<html", b"<?xml", b"<head"


class Refused(ValueError):
    """A weight file that is damaged, or more than tensors and plain values; it is named."""


def read(path: str | Path) -> Any:
    """Content of a weight file, its arrays and tensors as tensors on the CPU.

    What the file shares is shared here: a container may stand in several places, even in itself,
    and tensors of one storage have their memory in common. Raises Refused.
    """
    path = Path(path)
    if not path.is_file():
        raise Refused(f"{path} is not a file: give a file of weights.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            _refuse_other_formats(path, file.read(64), size)
            file.seek(0)
            return _content(file, size)
    except Refused:
        raise
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # a damaged or hostile file can raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise Refused(
            f"{path} was refused, it is damaged or more than tensors and plain values: {reason}. "
            "Nothing of it was run: download it again, or give a file of its tensors alone."
        ) from error


def _refuse_other_formats(path: Path, start: bytes, size: int) -> None:
    """Raise Refused, with the remedy, for what is often taken for a file of torch.save."""
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        raise Refused(
            f"{path} is a safetensors file: convert it by "
            f"torch.save(safetensors.torch.load_file({str(path)!r}), 'FILE.pt') and give that one."
        )
    if start.startswith(POINTER):
        raise Refused(f"{path} is a git-LFS pointer: download the real file, e.g. by git lfs pull.")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGES):
        raise Refused(f"{path} is a web page: download the file itself, not the page about it.")


def _content(file: BinaryIO, size: int) -> Any:
    start = file.read(4)
    file.seek(0)
    if start == b"PK\3\4":
        return _read_archive(file, size)
    reader = Unpickler(file, size)
    content = reader.load()
    if type(content) is int and content == MAGIC:
        return _read_stream(reader, file)
    return content


def _read_archive(file: BinaryIO, size: int) -> Any:
    """The form since PyTorch 1.6; uncompressed, so that its members are no larger than the file."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise UnpicklingError("it is a compressed archive, which torch.save does not write")
        if sum(member.file_size for member in members) > size:
            raise UnpicklingError("its members claim more bytes than the file has")
        names = [member.filename for member in members if member.filename.endswith("/data.pkl")]
        if len(names) != 1:
            raise UnpicklingError("the archive has no data.pkl")
        root = names[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise UnpicklingError("it was written on a big-endian machine")
        reader = Unpickler(io.BytesIO(archive.read(names[0])), size)
        reader.fetch = lambda key, _: bytearray(archive.read(f"{root}data/{key}"))
        return reader.load()


def _read_stream(reader: Unpickler, file: BinaryIO) -> Any:
    """The form up to PyTorch 1.5, behind its magic number."""
    reader.fetch = lambda key, count: bytearray(count)  # filled at the end
    reader.load()
    if not reader.load()["little_endian"]:
        raise UnpicklingError("it was written on a big-endian machine")
    content, keys = reader.load(), reader.load()
    if not all(type(key) is str for key in keys) or sorted(keys) != sorted(reader.storages):
        raise UnpicklingError("its storages are not those of its tensors")
    for key in keys:
        storage = reader.storages[key]
        (numbers,) = struct.unpack("<q", file.read(8))
        if numbers != len(storage):
            raise UnpicklingError(f"storage {key} has {numbers} numbers, not {len(storage)}")
        if file.readinto(storage.view(torch.uint8).numpy()) != storage.nbytes:  # type: ignore[attr-defined]
            raise UnpicklingError(f"storage {key} is cut off")
    return content
