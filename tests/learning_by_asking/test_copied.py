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
PROJECT = REPOSITORY / "learning_by_asking"

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
HIDDEN = ["common", "learning_by_asking", "hydra", "omegaconf", "matplotlib", "scipy", "tqdm"]
# What a user does with the files of each row of the README, the first of which names it.
USES = {
    "ask.py": """
import torch
from mypkg.ask import Policy, Progress, choose, score_proposals
policy = Policy(epsilon=0.0, rate=0.5, refresh=4)
progress = Progress(policy, budget=8)
for right in (0.0, 1.0):  # answer 3 improves, answer 5 is mastered no further
    progress.update(torch.tensor([3, 5, 3, 5]), torch.tensor([right, 1, right, 1]), torch.zeros(4))
chances = torch.full((1, 2, 28), 0.01)
chances[0, 0, 5], chances[0, 1, 3] = 0.7, 0.7
types, dice = torch.zeros(1, 2, dtype=torch.int64), torch.Generator().manual_seed(0)
scores = score_proposals(chances, types, policy, progress, generator=dice)
picks, explored = choose(scores, torch.ones(1, 2, dtype=torch.bool), policy.epsilon, dice)
print(picks.tolist(), explored.tolist())
""",
    "model.py": """
import torch
from mypkg.model import ANSWERERS, Answerer, build_answerer, build_relevance
from mypkg.net.generator import ProgramLSTM
torch.manual_seed(0)
questions, maps = torch.randint(4, 9, (5, 6)), torch.rand(2, 8, 3, 3)
questions[:, 0], image_of = 1, torch.tensor([0, 0, 1, 1, 1])
sizes = dict(tokens=9, feature_size=(8, 3, 3))
arity = [-1] * 4 + [0, 1, 1, 1, 2]
options = lambda name: Answerer(name, 8, 8, 1, 8, fc=[8], cnn_width=8, film_blocks=1, film_width=8)
for name in ANSWERERS:
    answerer = build_answerer(options(name), arity=arity, **sizes)
    chances = answerer(questions, maps, image_of).softmax(1)
    assert chances.shape == (5, 32) and (chances[:, :4] == 0).all(), name
relevant = build_relevance(options("sa"), **sizes)(questions, maps, image_of)
generator = ProgramLSTM(tokens=9, types=13, channels=8, embed=8, hidden=8)
types = torch.tensor([0, 1, 2, 3, 4])
log_p = generator.log_likelihood(questions, types, maps, image_of)
print(tuple(relevant.shape), tuple(log_p.shape))
""",
}
PRINTED = {"ask.py": "[1] [False]", "model.py": "(5,) (5,)"}


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
    hidden = [*HIDDEN, "torchvision", "numpy"]
    words = (str(tmp_path), ",".join(hidden), ",".join(modules))
    done = commands.run(tmp_path, *words, script="user.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == PRINTED[use]


@pytest.mark.slow
def test_the_project_and_common_copied_elsewhere_train_with_their_own_code(tmp_path):
    for name in ("learning_by_asking", "common"):
        away = shutil.ignore_patterns("__pycache__", "outputs")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=away)
    project = tmp_path / "learning_by_asking"
    where = "import common, learning_by_asking as a; print(common.__file__, a.__file__)"
    files = python("-c", where, cwd=project, PYTHONPATH=str(tmp_path)).split()
    names = ("common", "learning_by_asking")
    assert files == [str(tmp_path / name / "__init__.py") for name in names]
    words = ("experiment=smoke", "budget=20", "offline_at=[]", f"hydra.run.dir={tmp_path}/run")
    # The command refuses a `common` of another folder than its own.
    python("train.py", *words, cwd=project, PYTHONPATH=str(tmp_path))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2
