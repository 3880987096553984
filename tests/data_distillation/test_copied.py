"""What a user copies away works there: the project beside `common`, or its library files alone."""

import importlib
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.copied import python

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = REPOSITORY / "data_distillation"

# A file that imports these by their absolute names is a script of the repository, not a library.
SCRIPT = re.compile(
    r"^\s*(?:from|import) (?:common|data_distillation|hydra|omegaconf)\b", re.MULTILINE
)
# The wings that are put together with `common`, whole.
WITH_COMMON = ("inputs", "labels", "weights", "figures")

HIDE = """
import importlib
import sys

HIDDEN = {"common", "data_distillation", "hydra", "omegaconf", "pycocotools"}

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)

sys.meta_path.insert(0, Hide())
sys.path.insert(0, sys.argv[1])
"""

NESTED = f"""{HIDE}
for module in sys.argv[2:]:
    importlib.import_module(f"mypkg.vision.data_distillation.{{module}}")

import torch
from mypkg.vision.data_distillation.distill import Merge, Transforms, distill
from mypkg.vision.data_distillation.model import Network, build_detector

torch.manual_seed(0)
network = Network(
    backbone="small", channels=8, hidden=16, keypoint_convs=1, keypoint_channels=8, map_size=16,
    anchors=[12, 24], short_sides=[48], long_side=96, proposals=[20, 20], cls_std=0.05,
    least_keypoints=0, score=0.0,
)
model = build_detector("keypoints", 1, 3, network)
optimizer = torch.optim.AdamW(model.parameters(), 0.003)
image = torch.rand(3, 48, 48)
points = torch.tensor([[[8.0, 9, 2], [15, 20, 1], [22, 28, 2]]])
targets = [{{"boxes": torch.tensor([[4.0, 6, 24, 30]]), "labels": torch.tensor([1]),
            "keypoints": points}}]
for _ in range(12):
    torch.manual_seed(0)  # of the sampled regions
    loss = sum(model([image], targets).values())
    print(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
(found,) = distill(model, [image], Transforms(scales=[32]), Merge(), (0, 2, 1))
print(tuple(found["keypoints"].shape[1:]), sorted(HIDDEN & set(sys.modules)))
"""


@pytest.mark.slow
def test_the_project_and_common_copied_elsewhere_train_with_their_own_code(tmp_path):
    for name in ("data_distillation", "common"):
        away = shutil.ignore_patterns("__pycache__", "outputs")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=away)
    project = tmp_path / "data_distillation"
    where = "import common, data_distillation as d; print(common.__file__, d.__file__)"
    files = python("-c", where, cwd=project, PYTHONPATH=str(tmp_path)).split()
    assert files == [
        str(tmp_path / name / "__init__.py") for name in ("common", "data_distillation")
    ]
    words = ("experiment=smoke", "steps=2", "test.images=0", f"hydra.run.dir={tmp_path}/run")
    # The command refuses a `common` of another folder than its own.
    python("train.py", *words, cwd=project, PYTHONPATH=str(tmp_path))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 2
    assert {"keypoint_AP", "label_AP"} <= set(result["metrics"])
    assert len(list((project / "outputs" / "teachers").glob("*-seed0"))) == 1


def rows_of_files() -> list[list[str]]:
    """The files and wings of each row of the README's table of what works alone."""
    text = (PROJECT / "README.md").read_text()
    table = text.split("| for | copy |")[1].split("\n\n")[0]
    rows = [re.findall(r"`([\w/]+(?:\.py|/))`", line) for line in table.splitlines()]
    return [row for row in rows if row]


def test_the_readme_names_what_works_alone():
    assert ["distill.py", "net/"] in rows_of_files()


@pytest.mark.parametrize("names", rows_of_files(), ids=lambda names: names[0])
def test_what_the_readme_names_works_without_the_rest(names, tmp_path, monkeypatch):
    # A name of its own: other projects' tests import packages called only_... in the same process.
    away = tmp_path / f"distillation_{re.sub(r'[^a-z]', '_', '_'.join(names))}"
    away.mkdir()
    for name in names:
        if (PROJECT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(PROJECT / name, away / name, ignore=ignored)
        else:
            shutil.copy(PROJECT / name, away / name)
    monkeypatch.syspath_prepend(tmp_path)
    for path in away.rglob("*.py"):
        name = ".".join(path.relative_to(tmp_path).with_suffix("").parts)
        module = importlib.import_module(name.removesuffix(".__init__"))
        for imported in vars(module).values():
            origin = getattr(imported, "__module__", None) or ""
            assert not origin.startswith(("data_distillation", "common"))


@pytest.mark.slow
def test_the_readmes_code_runs_with_the_idea_alone_under_another_name(tmp_path):
    """A stock Keypoint R-CNN of torchvision labels images."""
    package = tmp_path / "mypkg"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(PROJECT / "distill.py", package / "ensemble.py")
    shutil.copytree(PROJECT / "net", package / "net")
    text = (PROJECT / "README.md").read_text()
    code = "".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert "data_distillation.distill" in code
    code = code.replace("data_distillation.distill", "mypkg.ensemble")
    few = "min_size=64, rpn_post_nms_top_n_test=20, box_detections_per_img=5, box_score_thresh=0"
    assert "min_size=64" in code
    code = code.replace("min_size=64", few)  # seconds less, and an untrained network finds some
    shown = """
print(len(found), found[0]["keypoints"].shape[1:], found[0]["scores"].numel() > 0)
print(k, float(threshold) <= float(scores.max()))
print(sorted(HIDDEN & set(sys.modules)))
"""
    script = tmp_path / "user.py"
    script.write_text(f"{HIDE}\n{code}\n{shown}")
    printed = python("-I", str(script), str(tmp_path), cwd=tmp_path).splitlines()
    assert printed[-3:] == ["2 torch.Size([3, 3]) True", "3 True", "[]"]


@pytest.mark.slow
def test_the_library_files_train_inside_another_package_with_nothing_but_torch(tmp_path):
    away = tmp_path / "mypkg" / "vision" / "data_distillation"
    away.mkdir(parents=True)
    for folder in (away.parent, away.parent.parent):
        (folder / "__init__.py").touch()
    modules = []
    for path in PROJECT.rglob("*.py"):
        place = path.relative_to(PROJECT)
        if {"outputs", *WITH_COMMON} & set(place.parts) or SCRIPT.search(path.read_text()):
            continue
        (away / place).parent.mkdir(exist_ok=True)
        shutil.copy(path, away / place)
        if path.stem != "__init__":
            modules.append(".".join(place.with_suffix("").parts))
    assert {"model", "distill", "net.narrow", "net.ignore"} <= set(modules)
    script = tmp_path / "nested.py"
    script.write_text(NESTED)
    printed = python("-I", str(script), str(tmp_path), *modules, cwd=tmp_path).splitlines()
    losses = [float(line) for line in printed[:-1]]
    assert losses[-1] < 0.8 * losses[0]
    assert printed[-1:] == ["(3, 3) []"]
