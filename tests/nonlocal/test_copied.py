"""What a user copies away works there: the project beside `common`, or its library files alone."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.copied import HIDE, python

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = REPOSITORY / "nonlocal"

HIDDEN = ["common", "nonlocal_", "hydra", "omegaconf", "pycocotools", "scipy", "matplotlib"]

# What a user does with the files of each row, the first of which names it.
USES = {
    "block.py": """
import torch
from mypkg.block import Block, NonLocalBlock
for mode in ("gaussian", "embedded_gaussian", "dot_product", "concatenation"):
    for positions in (1, 2, 3):
        block = NonLocalBlock(8, Block(mode=mode), positions=positions)
        x = torch.rand(2, 8, *(4, 8, 6)[3 - positions:], requires_grad=True)
        assert torch.equal(block(x), x)
        block(x).sum().backward()
print(torch.isfinite(x.grad).all().item())
""",
    "net/insert.py": """
import torch
from torchvision.models import resnet18
from mypkg.block import Block
from mypkg.net.insert import insert
torch.manual_seed(0)
model = resnet18(num_classes=3).eval()
x = torch.rand(1, 3, 64, 64)
before = model(x)
assert torch.equal(insert(model, ["1-block"], Block())(x), before)
print(sum(".nl." in name for name in model.state_dict()))
""",
    "model.py": """
import torch
from mypkg.block import Block
from mypkg.model import Network, build_network
torch.manual_seed(0)
network = Network(depth="small", inflate="3x1x1", at=["res3.0"], dropout=0.0)
model = build_network(network, Block(), 2)
optimizer = torch.optim.AdamW(model.parameters(), 0.003)
clips, labels = torch.randint(256, (4, 3, 4, 32, 32), dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
losses = []
for _ in range(8):
    loss = torch.nn.functional.cross_entropy(model(clips), labels)
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(losses[-1] < 0.8 * losses[0])
""",
    "clips/": """
import numpy as np
from pathlib import Path
from mypkg.clips.lists import read_list
from mypkg.clips.readers import open_video
from mypkg.clips.sampling import evaluation_indices
folder = Path(sys.argv[1])
np.save(folder / "x.npy", np.arange(20, dtype=np.uint8)[:, None, None, None].repeat(3, 3))
(folder / "list.txt").write_text("x.npy 0\\n")
(record,) = read_list(folder / "list.txt")
video = open_video(record.path)
print(video.read(evaluation_indices(video.count, 2, 3)[9].tolist())[:, 0, 0, 0].tolist())
""",
}
PRINTED = {"block.py": "True", "net/insert.py": "13", "model.py": "True", "clips/": "[18, 1]"}


def rows_of_files() -> dict[str, list[str]]:
    """The files and wings of each row of the README's table of what works alone, by use."""
    text = (PROJECT / "README.md").read_text()
    table = text.split("| for | copy |")[1].split("\n\n")[0]
    rows = [re.findall(r"`([\w/]+(?:\.py|/))`", line) for line in table.splitlines()]
    named = {}
    for row in filter(None, rows):
        (use,) = [name for name in row if name in USES and (len(row) == 1 or name != "block.py")]
        named[use] = row
    return named


def test_the_readme_names_what_works_alone():
    assert set(rows_of_files()) == set(USES)


@pytest.mark.parametrize("use", USES)
def test_what_the_readme_names_works_alone_under_another_name(use, commands, tmp_path):
    names, away = rows_of_files()[use], tmp_path / "mypkg"
    away.mkdir()
    (away / "__init__.py").touch()
    modules = []
    for name in names:
        if (PROJECT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(PROJECT / name, away / name, ignore=ignored)
        else:
            (away / name).parent.mkdir(exist_ok=True)
            shutil.copy(PROJECT / name, away / name)
    for path in sorted(away.rglob("*.py")):
        if path.stem != "__init__":
            modules.append(".".join(path.relative_to(away).with_suffix("").parts))
    (tmp_path / "user.py").write_text(HIDE + USES[use])
    hidden = [*HIDDEN, "torchvision"] if use == "block.py" else HIDDEN
    words = (str(tmp_path), ",".join(hidden), ",".join(modules))
    done = commands.run(tmp_path, *words, script="user.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == PRINTED[use]


@pytest.mark.slow
def test_the_project_and_common_copied_elsewhere_train_with_their_own_code(tmp_path):
    for name, other in (("nonlocal", "nonlocal_"), ("common", "common")):
        away = shutil.ignore_patterns("__pycache__", "outputs")
        shutil.copytree(REPOSITORY / name, tmp_path / other, ignore=away)
    project = tmp_path / "nonlocal_"
    where = "import common, nonlocal_ as n; print(common.__file__, n.__file__)"
    files = python("-c", where, cwd=project, PYTHONPATH=str(tmp_path)).split()
    assert files == [str(tmp_path / name / "__init__.py") for name in ("common", "nonlocal_")]
    words = ("experiment=smoke", "steps=2", "test.images=0", f"hydra.run.dir={tmp_path}/run")
    # The command refuses a `common` of another folder than its own.
    python("train.py", *words, cwd=project, PYTHONPATH=str(tmp_path))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2
