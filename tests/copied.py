"""What holds of every project that is copied away: it works beside `common`, or its library alone.

A project's `tests/<project>/test_copied.py` derives a class from `CopiedAway`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import Commands

REPOSITORY = Path(__file__).resolve().parent.parent

# In a fork of a process that has imported torch and all of `common`.
HIDE = """
import importlib
import sys

folder, hidden, modules = sys.argv[1], set(sys.argv[2].split(",")), sys.argv[3].split(",")

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)

for name in list(sys.modules):
    if name.partition(".")[0] in hidden:
        del sys.modules[name]
sys.meta_path.insert(0, Hide())
sys.path.insert(0, folder)
for module in modules:
    importlib.import_module(f"mypkg.{module}")
"""
HIDDEN = ("common", "hydra", "omegaconf", "matplotlib", "scipy", "tqdm", "pycocotools")


def python(*words: str, cwd: Path, **extra: str) -> str:
    """What a new interpreter prints."""
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | extra
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


class CopiedAway:
    project: str
    uses: dict[str, str]  # by the first file of a row of the README: what a user does with them
    printed: dict[str, str]  # the last line that this prints
    without: dict[str, tuple[str, ...]]  # further packages that are hidden from it
    short: tuple[str, ...]  # words that make the smoke run one of two steps

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "use" in metafunc.fixturenames:
            metafunc.parametrize("use", self.uses)

    def rows(self) -> dict[str, list[str]]:
        """Files and wings of each row of the README's table of what works alone, by the first."""
        text = (REPOSITORY / self.project / "README.md").read_text()
        table = text.split("| for | copy |")[1].split("\n\n")[0]
        found = [re.findall(r"`([\w/]+(?:\.py|/))`", line) for line in table.splitlines()]
        return {row[0]: row for row in found if row}

    def test_the_readme_names_what_works_alone(self):
        assert set(self.rows()) == set(self.uses) == set(self.printed)

    def test_what_the_readme_names_works_alone_under_another_name(
        self, use: str, commands: Commands, tmp_path: Path
    ):
        project, away = REPOSITORY / self.project, tmp_path / "mypkg"
        away.mkdir()
        (away / "__init__.py").touch()
        for name in self.rows()[use]:
            if (project / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(project / name, away / name, ignore=ignored)
            else:
                shutil.copy(project / name, away / name)
        paths = sorted(path for path in away.rglob("*.py") if path.stem != "__init__")
        modules = [".".join(path.relative_to(away).with_suffix("").parts) for path in paths]
        (tmp_path / "user.py").write_text(HIDE + self.uses[use])
        hidden = (*HIDDEN, self.project, *self.without.get(use, ()))
        words = (str(tmp_path), ",".join(hidden), ",".join(modules))
        done = commands.run(tmp_path, *words, script="user.py")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == self.printed[use]

    @pytest.mark.slow
    def test_the_project_and_common_copied_elsewhere_train_with_their_own_code(
        self, tmp_path: Path
    ):
        names = ("common", self.project)
        for name in names:
            ignored = shutil.ignore_patterns("__pycache__", "outputs")
            shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=ignored)
        project = tmp_path / self.project
        where = f"import common, {self.project} as own; print(common.__file__, own.__file__)"
        files = python("-c", where, cwd=project, PYTHONPATH=str(tmp_path)).split()
        assert files == [str(tmp_path / name / "__init__.py") for name in names]
        words = ("experiment=smoke", *self.short, f"hydra.run.dir={tmp_path}/run")
        # The command refuses a `common` of another folder than its own.
        python("train.py", *words, cwd=project, PYTHONPATH=str(tmp_path))
        assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2
