"""The files and wings that the README says can be copied without the rest of the folder."""

import importlib
import shutil
from pathlib import Path

import pytest

import program_execution

FOLDER = Path(program_execution.__file__).parent
NEEDS = {
    "engine.py": ("execution/", "net/options.py"),
    "decoding/": ("net/",),
    "net/baselines.py": ("net/options.py",),
    "decoding/reinforce.py": (),
    "figures/draw.py": (),
    "figures/module_maps.py": ("engine.py", "execution/", "net/options.py"),
    "model.py": ("engine.py", "execution/", "decoding/", "net/"),
}


@pytest.mark.parametrize("name", NEEDS)
def test_a_file_works_with_those_beside_it_that_the_readme_names(name, tmp_path, monkeypatch):
    section = (FOLDER / "README.md").read_text().partition("## In your own code")[2]
    package = tmp_path / f"programs_{name.strip('/').replace('/', '_').removesuffix('.py')}"
    for part in (name, *NEEDS[name]):
        assert f"`{part}`" in section
        (package / part).parent.mkdir(parents=True, exist_ok=True)
        if part.endswith("/"):
            shutil.copytree(FOLDER / part, package / part)
        else:
            shutil.copy(FOLDER / part, package / part)
    monkeypatch.syspath_prepend(tmp_path)
    parts = list((package / name).rglob("*.py")) if name.endswith("/") else [package / name]
    for path in parts:
        module = importlib.import_module(".".join(path.relative_to(tmp_path).with_suffix("").parts))
        assert Path(module.__file__) == path
