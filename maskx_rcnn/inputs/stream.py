"""JSON lists of gigabytes, read entry by entry."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from common.coco.fields import excerpt
from common.coco.files import json_faults

BLOCK = 1 << 20  # characters that are read at once
LARGEST = 1 << 26  # characters of one entry; no image has as many objects

GAP = re.compile(r"[\s,]*")


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list one by one, with a progress bar; the file is never held whole."""
    decoder, size = json.JSONDecoder(), path.stat().st_size
    bar = tqdm(None, path.name, size, unit="B", unit_scale=True, leave=False, disable=None)
    with path.open(encoding="utf-8-sig") as file, bar:
        text = read_block(file, path)
        while text.isspace():
            text = read_block(file, path)
        if not text.lstrip().startswith("["):
            raise ValueError(f"{path} is no JSON list, but starts with {excerpt(text[:20])}")
        place = text.index("[") + 1
        while True:
            place += len(GAP.match(text, place)[0])  # type: ignore[index]
            if text.startswith("]", place):
                return
            try:
                entry, place = decoder.raw_decode(text, place)
            except json.JSONDecodeError as error:  # the entry goes on in the next block
                block = read_block(file, path)
                if not block or len(text) - place > LARGEST:
                    raise ValueError(f"{path} is not JSON, or was cut off: {error.msg}") from None
                bar.update(len(block))
                text, place = text[place:] + block, 0
                continue
            if not isinstance(entry, dict):
                raise ValueError(f"{path}: {excerpt(entry)} in its list is no object {{...}}")
            yield entry


def read_block(file: IO[str], path: Path) -> str:
    """The next characters; ValueError where they are no UTF-8."""
    with json_faults(path):
        return file.read(BLOCK)
