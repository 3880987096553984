"""The files that the README offers for copying work outside of this repository."""

import importlib
import shutil
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2] / "large_minibatch"
ALONE = ("recipe", "sgd", "augment", "mixup", "noise", "allreduce", "curves", "allocator")
NORM = ("ghost", "groups")


@pytest.mark.parametrize(
    "names",
    [(name,) for name in ALONE]
    + [NORM, ("buffers", *NORM), ("model", *NORM), ("communication", "allreduce")],
    ids=lambda names: names[0],
)
def test_the_files_named_in_the_readme_need_no_others(names, tmp_path, monkeypatch):
    readme = (PROJECT / "README.md").read_text().split("## In your own code")[1]
    package = tmp_path / f"copied_{names[0]}"
    package.mkdir()
    for name in names:
        assert f"`{name}.py`" in readme
        shutil.copy(PROJECT / f"{name}.py", package)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    importlib.import_module(f"copied_{names[0]}.{names[0]}")
    new = {name.split(".")[0] for name in set(sys.modules) - before}
    assert not new & {"common", "large_minibatch"}
