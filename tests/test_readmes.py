"""The Python of each project's README runs as it stands, its blocks one after the other."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECTS = ["focal_loss", "large_minibatch", "panoptic", "program_execution"]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("project", PROJECTS)
def test_the_python_of_a_readme_runs_in_an_empty_folder(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text = (REPOSITORY / project / "README.md").read_text()
    blocks = list(BLOCK.finditer(text))
    assert blocks
    names: dict[str, Any] = {"__name__": "readme"}
    for block in blocks:
        above = text.count("\n", 0, block.start(1))  # so that a traceback has the README's lines
        exec(compile("\n" * above + block[1], f"{project}/README.md", "exec"), names)
