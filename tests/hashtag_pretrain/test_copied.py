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
PROJECT = REPOSITORY / "hashtag_pretrain"

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
HIDDEN = ["common", "hashtag_pretrain", "hydra", "omegaconf", "pycocotools", "matplotlib", "scipy"]
# What a user does with the files of each row of the README, the first of which names it.
USES = {
    "hashtags.py": """
import torch
from mypkg.hashtags import hashtag_loss, image_factors, tag_factors
logits = torch.tensor([[1.0, 2, 3, 0], [0.5, -1, 2, 0]], requires_grad=True)
loss = hashtag_loss(logits, torch.tensor([[0, 2], [3, -1]]))
loss.backward()
factors = tag_factors([0.5, 0.1, 0.01, 0.001], 0.1, "square_root")
import numpy as np
ids, offsets = np.array([0, 3, 1]), np.array([0, 2, 3])
print(round(loss.item(), 5), image_factors(factors, (ids, offsets)).round(4).tolist())
""",
    "shards/": """
import io, numpy as np
from PIL import Image
from mypkg.shards.archive import Shards
from mypkg.shards.order import ReplicationStream
from mypkg.shards.writer import Sample, write_shards
from mypkg.words.vocabulary import build
file = io.BytesIO()
Image.new("RGB", (8, 8)).save(file, "PNG")
tags = [["#Cat"], ["cat"], ["dog", "Cat"], ["C-A-T"], ["cat"], ["cat"], ["cat"], ["cat"]]
samples = [Sample(f"{i:03d}", file.getvalue(), "png", t) for i, t in enumerate(tags)]
write_shards(samples, f"{folder}/tars", per_shard=4)
counts = Shards(f"{folder}/tars").count_tags()
vocabulary, _ = build(counts, None, rule="none")
shards = Shards(f"{folder}/tars", vocabulary)
r = np.array([1.0, 8**0.5])
factors = lambda s: np.maximum.reduceat(r[shards.tags(s).ids], shards.tags(s).offsets[:-1])
totals = np.array([factors(s).sum() for s in range(2)])
stream = ReplicationStream(shards.counts, totals, factors, 1, seed=0, window=2)
drawn = [stream.share(step, 0, 1)[0][1] for step in range(stream.steps_per_epoch)]
print(vocabulary.names, len(drawn), drawn.count(2), shards.read(3)[1:4])
""",
    "words/": """
from mypkg.words.tags import normalise
from mypkg.words.vocabulary import Vocabulary, build
vocabulary, report = build({"#Brown_Bear": 3, "brownbear": 2, "cat": 4}, None, rule="none")
vocabulary.write(f"{folder}/vocabulary.json")
again = Vocabulary.read(f"{folder}/vocabulary.json")
print(again == vocabulary, again.look_up(["BROWN-bear", "what"]), normalise("#A_b c"))
""",
    "duplicates/": """
import torch
from mypkg.duplicates.report import find_duplicates, lower_bound
from mypkg.duplicates.rmac import regions, rmac
train = rmac(torch.randn(20, 16, 8, 8, generator=torch.Generator().manual_seed(0)))
pairs = find_duplicates(train, train[[4, 7]], 0.05)
print(len(regions(8, 8)), sorted(pairs.test.tolist()), sorted(pairs.train.tolist()),
      lower_bound(torch.tensor([True, True]), [0]))
""",
    "model.py": """
import torch
from mypkg.model import Network, build_model, normalise
torch.manual_seed(0)
network = Network("small", width=8)
model = build_model(network, 3)
images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
labels = torch.tensor([0, 1, 2, 0, 1, 2])
optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9, nesterov=True)
losses = []
for _ in range(10):
    logits = model(normalise(images, network.mean, network.std))
    loss = torch.nn.functional.cross_entropy(logits, labels)
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(losses[-1] < 0.5 * losses[0])
""",
}
PRINTED = {
    "hashtags.py": "1.89127 [10.0, 1.0]",
    "shards/": "['cat', 'dog'] 9 3 b'PNG'",
    "words/": "True [0] abc",
    "duplicates/": "14 [0, 1] [4, 7] 50.0",
    "model.py": "True",
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
    hidden = HIDDEN if use == "model.py" else [*HIDDEN, "torchvision"]
    words = (str(tmp_path), ",".join(hidden), ",".join(modules))
    done = commands.run(tmp_path, *words, script="user.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == PRINTED[use]


@pytest.mark.slow
def test_the_project_and_common_copied_elsewhere_train_with_their_own_code(tmp_path):
    for name in ("hashtag_pretrain", "common"):
        away = shutil.ignore_patterns("__pycache__", "outputs")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=away)
    project = tmp_path / "hashtag_pretrain"
    where = "import common, hashtag_pretrain as h; print(common.__file__, h.__file__)"
    files = python("-c", where, cwd=project, PYTHONPATH=str(tmp_path)).split()
    names = ("common", "hashtag_pretrain")
    assert files == [str(tmp_path / name / "__init__.py") for name in names]
    words = ("experiment=smoke", "images=32", f"hydra.run.dir={tmp_path}/run")
    # The command refuses a `common` of another folder than its own.
    python("train.py", *words, cwd=project, PYTHONPATH=str(tmp_path))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2
