"""What a user copies away works there: the project beside `common`, or its library files alone."""

import importlib
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.copied import python

REPOSITORY = Path(__file__).resolve().parents[2]

# A file that imports these by their absolute names is a script of the repository, not a library.
SCRIPT = re.compile(r"^\s*(?:from|import) (?:common|focal_loss|hydra|omegaconf)\b", re.MULTILINE)

NESTED = """
import importlib
import sys

HIDDEN = {"common", "focal_loss", "hydra", "omegaconf", "pycocotools"}

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)

sys.meta_path.insert(0, Hide())
sys.path.insert(0, sys.argv[1])
for module in sys.argv[2:]:
    importlib.import_module(f"mypkg.vision.focal_loss.{module}")

import torch
from mypkg.vision.focal_loss.criterion import DetectionLoss
from mypkg.vision.focal_loss.detect import Detector
from mypkg.vision.focal_loss.model import Architecture, RetinaNet

torch.manual_seed(0)
model = RetinaNet(Architecture(
    num_classes=3, backbone="mini", width=8, levels=(2, 4), channels=8, convs=1, anchor_size=2.0,
    backbone_norm="gn", freeze_at=0, tower_init="he",
))
criterion = DetectionLoss()
optimizer = torch.optim.SGD(model.parameters(), 0.005)
images = torch.randn(2, 3, 64, 64)
boxes = torch.tensor([[4.0, 6.0, 24.0, 30.0], [30.0, 20.0, 60.0, 50.0]])
targets = [{"boxes": boxes[i:], "labels": torch.tensor([2, 0])[i:]} for i in range(2)]
for _ in range(3):
    logits, offsets = model(images)
    loss = sum(criterion(logits, offsets, model.anchors(64, 64), targets).values())
    print(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
found = Detector(score=0.0, detections=5)(model.eval(), images)
print([tuple(image["boxes"].shape) for image in found])
print(sorted(HIDDEN & set(sys.modules)))
"""


def test_the_project_and_common_copied_elsewhere_train_with_their_own_code(tmp_path):
    for name in ("focal_loss", "common"):
        away = shutil.ignore_patterns("__pycache__", "outputs")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=away)
    project = tmp_path / "focal_loss"
    where = "import common, focal_loss; print(common.__file__, focal_loss.__file__)"
    files = python("-c", where, cwd=project, PYTHONPATH=str(tmp_path)).split()
    assert files == [str(tmp_path / name / "__init__.py") for name in ("common", "focal_loss")]
    words = ("experiment=smoke", "steps=2", f"hydra.run.dir={tmp_path}/run")
    # The command refuses a `common` of another folder than its own.
    python("train.py", *words, cwd=project, PYTHONPATH=str(tmp_path))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 2
    assert "AP" in result["metrics"]


def rows_of_files() -> list[list[str]]:
    """The files and wings of each row of the README's table of what works alone."""
    text = (REPOSITORY / "focal_loss" / "README.md").read_text()
    table = text.split("| for | copy |")[1].split("\n\n")[0]
    rows = [re.findall(r"`([\w/]+(?:\.py|/))`", line) for line in table.splitlines()]
    return [row for row in rows if row]


@pytest.mark.parametrize("names", rows_of_files(), ids=lambda names: names[-1].strip("/"))
def test_what_the_readme_names_works_without_the_rest(names, tmp_path, monkeypatch):
    away = tmp_path / f"only_{re.sub(r'[^a-z]', '_', '_'.join(names))}"
    for name in names:
        source = REPOSITORY / "focal_loss" / name
        (away / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, away / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, away / name)
    monkeypatch.syspath_prepend(tmp_path)
    for path in away.rglob("*.py"):
        name = ".".join(path.relative_to(tmp_path).with_suffix("").parts)
        module = importlib.import_module(name.removesuffix(".__init__"))
        for imported in vars(module).values():
            assert not getattr(imported, "__module__", "").startswith(("focal_loss", "common"))


def test_the_library_files_train_inside_another_package_with_nothing_but_torch(tmp_path):
    away = tmp_path / "mypkg" / "vision" / "focal_loss"
    away.mkdir(parents=True)
    for folder in (away.parent, away.parent.parent):
        (folder / "__init__.py").touch()
    modules = []
    for path in (REPOSITORY / "focal_loss").rglob("*.py"):
        if not SCRIPT.search(path.read_text()):
            place = path.relative_to(REPOSITORY / "focal_loss")
            (away / place).parent.mkdir(exist_ok=True)
            shutil.copy(path, away / place)
            if path.stem != "__init__":
                modules.append(".".join(place.with_suffix("").parts))
    assert {"model", "criterion", "detect", "loss", "net.fpn", "targets.assign"} <= set(modules)
    assert "weights.formats" in modules
    script = tmp_path / "nested.py"
    script.write_text(NESTED)
    printed = python("-I", str(script), str(tmp_path), *modules, cwd=tmp_path).splitlines()
    losses = [float(line) for line in printed[:3]]
    assert losses[0] > losses[1] > losses[2]
    assert printed[3:] == ["[(5, 4), (5, 4)]", "[]"]
