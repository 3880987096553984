"""What a user copies away works there: the project beside `common`, or its library files alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = REPOSITORY / "lowshot_hallucination"

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
HIDDEN = ["common", "lowshot_hallucination", "hydra", "omegaconf", "matplotlib", "scipy", "tqdm"]
# What a user does with the files of each row of the README, the first of which names it.
USES = {
    "hallucinate.py": """
import torch
from mypkg.hallucinate import Hallucination, Support, augment_support, build_generator, joint_loss
torch.manual_seed(0)
generate = build_generator(Hallucination(n_aug=4), width=6)
real = Support(torch.rand(3, 2, 6), torch.tensor([1, 2, 1]))
full = augment_support(real, 4, generate)
learner = lambda support, queries: queries @ support.features.mean(1).T
joint_loss(learner, generate, real, torch.rand(5, 6), torch.tensor([0, 1, 2, 0, 1]), 4).backward()
reached = all(p.grad is not None for p in generate.parameters())
print(tuple(full.features.shape), full.counts.tolist(), reached)
""",
    "model.py": """
import torch
from mypkg.hallucinate import Support
from mypkg.model import Learner, build_learner
torch.manual_seed(0)
features = torch.tensor([[[0.0, 0], [2, 0]], [[0, 4], [0, 2]]])
support, queries = Support(features, torch.tensor([2, 2])), torch.tensor([[1.0, 1]])
nearest = build_learner(Learner("nearest"), 2)
print([round(p, 4) for p in nearest(support, queries).softmax(1)[0].tolist()])
for method in ("pn", "mn", "pmn"):
    learner = build_learner(Learner(method), 2)
    assert learner(support, queries).shape == (1, 2)
""",
}
PRINTED = {
    "hallucinate.py": "(3, 4, 6) [4, 4, 4] True",
    "model.py": "[0.982, 0.018]",
}


def python(*words: str, cwd: Path, **extra: str) -> str:
    """What a new interpreter prints."""
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | extra
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of_files() -> dict[str, list[str]]:
    """The files and wings of each row of the README's table of what works alone, by use."""
    table = (PROJECT / "README.md").read_text().split("| for | copy |")[1].split("\n\n")[0]
    rows = [re.findall(r"`([\w/]+(?:\.py|/))`", line) for line in table.splitlines()]
    return {row[0]: row for row in rows if row}


def test_the_readme_names_what_works_alone():
    assert set(rows_of_files()) == set(USES)


@pytest.mark.parametrize("use", USES)
def test_what_the_readme_names_works_alone_under_another_name(use, commands, tmp_path):
    away = tmp_path / "mypkg"
    away.mkdir()
    (away / "__init__.py").touch()
    modules = []
    for name in rows_of_files()[use]:
        if (PROJECT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(PROJECT / name, away / name, ignore=ignored)
        else:
            shutil.copy(PROJECT / name, away / name)
    for path in sorted(away.rglob("*.py")):
        if path.stem != "__init__":
            modules.append(".".join(path.relative_to(away).with_suffix("").parts))
    (tmp_path / "user.py").write_text(HIDE + USES[use])
    hidden = HIDDEN if use == "model.py" else [*HIDDEN, "torchvision", "numpy"]
    words = (str(tmp_path), ",".join(hidden), ",".join(modules))
    done = commands.run(tmp_path, *words, script="user.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == PRINTED[use]


@pytest.mark.slow
def test_the_project_and_common_copied_elsewhere_train_with_their_own_code(tmp_path):
    for name in ("lowshot_hallucination", "common"):
        away = shutil.ignore_patterns("__pycache__", "outputs")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=away)
    project = tmp_path / "lowshot_hallucination"
    where = "import common, lowshot_hallucination as h; print(common.__file__, h.__file__)"
    files = python("-c", where, cwd=project, PYTHONPATH=str(tmp_path)).split()
    names = ("common", "lowshot_hallucination")
    assert files == [str(tmp_path / name / "__init__.py") for name in names]
    words = ("experiment=smoke", "steps=2", f"hydra.run.dir={tmp_path}/run")
    # The command refuses a `common` of another folder than its own.
    python("train.py", *words, cwd=project, PYTHONPATH=str(tmp_path))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2
