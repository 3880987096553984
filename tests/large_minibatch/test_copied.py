"""The files and wings that the README offers for copying work outside of this repository."""

import importlib
import shutil
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2] / "large_minibatch"
OFFERED = [  # what is copied -> what is imported
    (["recipe.py"], ["recipe"]),
    (["sgd.py"], ["sgd"]),
    (["allreduce.py"], ["allreduce"]),
    (["norm/"], ["norm.ghost", "norm.buffers"]),
    (["model.py", "norm/"], ["model"]),
    (["inputs/augment.py"], ["inputs.augment"]),
    (["analysis/noise.py"], ["analysis.noise"]),
    (["analysis/communication.py", "allreduce.py"], ["analysis.communication"]),
]


@pytest.mark.parametrize(("files", "modules"), OFFERED, ids=lambda names: names[0])
def test_what_the_readme_offers_needs_nothing_else(files, modules, tmp_path, monkeypatch):
    readme = (PROJECT / "README.md").read_text().split("## In your own code")[1]
    assert f"| {' '.join(f'`{name}`' for name in files)} |" in readme
    package = tmp_path / f"copied_{modules[0].replace('.', '_')}"
    for name in files:
        target = package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix:
            shutil.copy(PROJECT / name, target)
        else:
            shutil.copytree(PROJECT / name, target)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    for module in modules:
        importlib.import_module(f"{package.name}.{module}")
    new = {name.split(".")[0] for name in set(sys.modules) - before}
    assert not new & {"common", "large_minibatch"}


def test_every_offer_of_the_readme_is_tried():
    readme = (PROJECT / "README.md").read_text().split("## In your own code")[1]
    rows = [line for line in readme.split("```")[0].splitlines() if line.startswith("| ")]
    assert len(rows) - 1 == len(OFFERED)
