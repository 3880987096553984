"""The files that the README says can be copied without the rest of the folder."""

import importlib
import shutil
from pathlib import Path

import pytest

import program_execution

FOLDER = Path(program_execution.__file__).parent
NEEDS = {
    "engine": ("schedule", "executors", "batched"),
    "decode": ("beam", "steps", "seq2seq", "recurrence"),
    "baselines": (),
    "reinforce": (),
    "draw": (),
}


@pytest.mark.parametrize("name", NEEDS)
def test_a_file_works_with_those_beside_it_that_the_readme_names(name, tmp_path, monkeypatch):
    section = (FOLDER / "README.md").read_text().partition("## In your own code")[2]
    package = tmp_path / f"copied_{name}"
    package.mkdir()
    for file in (name, *NEEDS[name]):
        assert f"`{file}.py`" in section
        shutil.copy(FOLDER / f"{file}.py", package)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(f"{package.name}.{name}")
    assert Path(module.__file__).parent == package
