"""The questions of a JSON file one at a time: all of CLEVR's at once take gigabytes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from ..coco.files import json_faults, read_bytes

_SPACES = (" ", "\t", "\r", "\n")


class _Reader:
    """A walk through a JSON file; ValueError names the file and the place of a fault."""

    def __init__(self, path: Path) -> None:
        data = read_bytes(path)
        with json_faults(path):
            self.text = data.decode(json.detect_encoding(data))
        self.path, self.at = path, 0
        self.decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while self.text[self.at : self.at + 1] in _SPACES:
            self.at += 1
        return self.text[self.at : self.at + 1]

    def sign(self, *expected: str) -> str:
        """The next character, which must be one of these."""
        found = self.peek()
        if found not in expected:
            wanted = " or ".join(map(repr, expected))
            self.refuse(f"Expecting {wanted}")
        self.at += 1
        return found

    def refuse(self, fault: str) -> NoReturn:
        """Raise ValueError that names the place."""
        with json_faults(self.path):
            raise json.JSONDecodeError(fault, self.text, self.at)

    def value(self) -> Any:
        """The next value."""
        self.peek()
        with json_faults(self.path):
            value, self.at = self.decode(self.text, self.at)
        return value

    def items(self, close: str) -> Iterator[None]:
        """Stops before each item of a list or object up to its closing sign."""
        if self.peek() == close:
            self.at += 1
            return
        yield
        while self.sign(",", close) != close:
            yield


def read_entries(path: Path) -> Iterator[Any]:
    """The entries of the list `questions` of a file; ValueError where the file is not sound."""
    reader = _Reader(path)
    found = False
    if reader.peek() == "{":
        reader.sign("{")
        for _ in reader.items("}"):
            name = reader.value()
            reader.sign(":")
            if name == "questions" and reader.peek() == "[":
                found = True
                reader.sign("[")
                for _ in reader.items("]"):
                    yield reader.value()
            else:
                reader.value()
        if reader.peek():
            reader.refuse("Extra data")
    if not found:
        raise ValueError(f"{path} is not a questions file: expected an object with `questions`")
