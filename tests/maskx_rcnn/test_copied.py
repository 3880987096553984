"""What a user copies away works there: the project beside `common`, or its library files alone."""

import importlib
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.copied import python

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = REPOSITORY / "maskx_rcnn"

# A file that imports these by their absolute names is a script of the repository, not a library.
SCRIPT = re.compile(r"^\s*(?:from|import) (?:common|maskx_rcnn|hydra|omegaconf)\b", re.MULTILINE)
# The wings that are put together with `common`, whole.
WITH_COMMON = ("inputs", "weights", "figures")

HIDE = """
import importlib
import sys

HIDDEN = {"common", "maskx_rcnn", "hydra", "omegaconf", "pycocotools"}

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)

sys.meta_path.insert(0, Hide())
sys.path.insert(0, sys.argv[1])
"""

NESTED = """
for module in sys.argv[2:]:
    importlib.import_module(f"mypkg.vision.maskx_rcnn.{module}")

import torch
from mypkg.vision.maskx_rcnn.model import MaskBranch, Network, mask_rcnn, segment

torch.manual_seed(0)
network = Network(
    backbone="small", channels=8, hidden=16, mask_convs=1, mask_size=8, anchors=[12, 24],
    short_side=48, long_side=48, proposals=[20, 20], cls_std=0.05,
)
model = mask_rcnn(3, network, MaskBranch(standardise=True), classes_with_masks=[1, 2])
optimizer = torch.optim.AdamW(model.parameters(), 0.003)
image, boxes = torch.rand(3, 48, 48), torch.tensor([[4.0, 6, 24, 30], [20, 15, 44, 40]])
masks = torch.zeros(1, 48, 48, dtype=torch.uint8)
masks[0, 8:26, 6:20] = 1
targets = [{"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks,
            "has_mask": torch.tensor([True, False])}]
for _ in range(12):
    torch.manual_seed(0)  # of the sampled regions
    loss = sum(model([image], targets).values())
    print(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
(found,) = segment(model.eval(), [image], [boxes], [torch.tensor([1, 3])])
print(tuple(found.shape), sorted(HIDDEN & set(sys.modules)))
"""


def test_the_project_and_common_copied_elsewhere_train_with_their_own_code(tmp_path):
    for name in ("maskx_rcnn", "common"):
        away = shutil.ignore_patterns("__pycache__", "outputs")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=away)
    project = tmp_path / "maskx_rcnn"
    where = "import common, maskx_rcnn; print(common.__file__, maskx_rcnn.__file__)"
    files = python("-c", where, cwd=project, PYTHONPATH=str(tmp_path)).split()
    assert files == [str(tmp_path / name / "__init__.py") for name in ("common", "maskx_rcnn")]
    words = ("experiment=smoke", "steps=2", "test.images=0", f"hydra.run.dir={tmp_path}/run")
    # The command refuses a `common` of another folder than its own.
    python("train.py", *words, cwd=project, PYTHONPATH=str(tmp_path))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 2
    assert {"mask_AP_A", "mask_AP_B"} <= set(result["metrics"])


def rows_of_files() -> list[list[str]]:
    """The files and wings of each row of the README's table of what works alone."""
    text = (PROJECT / "README.md").read_text()
    table = text.split("| for | copy |")[1].split("\n\n")[0]
    rows = [re.findall(r"`([\w/]+(?:\.py|/))`", line) for line in table.splitlines()]
    return [row for row in rows if row]


@pytest.mark.parametrize("names", rows_of_files(), ids=lambda names: names[-1].strip("/"))
def test_what_the_readme_names_works_without_the_rest(names, tmp_path, monkeypatch):
    away = tmp_path / f"only_{re.sub(r'[^a-z]', '_', '_'.join(names))}"
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
            assert not origin.startswith(("maskx_rcnn", "common"))


def copy_idea(root: Path) -> str:
    """The README's code, with `transfer.py` alone under another name; it prints what it found."""
    (root / "mypkg" / "__init__.py").touch()
    shutil.copy(PROJECT / "transfer.py", root / "mypkg" / "hypernetwork.py")
    text = (PROJECT / "README.md").read_text()
    code = "".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    code = code.replace("maskx_rcnn.transfer", "mypkg.hypernetwork")
    few = "min_size=128, rpn_post_nms_top_n_train=99, rpn_post_nms_top_n_test=99"
    code = code.replace("min_size=128", f"{few}, box_detections_per_img=5")  # seconds less
    return f"""{code}
(result,) = found
print(model.roi_heads.box_predictor.cls_score.out_features, len(found), result["masks"].shape[1:])
print(model.roi_heads.mask_predictor.w_seg(model.roi_heads.box_predictor).shape)
print(loss.isfinite().item(), losses["loss_mask"].item() > 0)
print(sorted(HIDDEN & set(sys.modules)))
"""


def copy_library(root: Path) -> list[str]:
    """The library files within a package of another package; the names of their modules."""
    away = root / "mypkg" / "vision" / "maskx_rcnn"
    away.mkdir(parents=True)
    (away.parent / "__init__.py").touch()
    modules = []
    for path in PROJECT.rglob("*.py"):
        place = path.relative_to(PROJECT)
        if {"outputs", *WITH_COMMON} & set(place.parts) or SCRIPT.search(path.read_text()):
            continue
        (away / place).parent.mkdir(exist_ok=True)
        shutil.copy(path, away / place)
        if path.stem not in ("__init__", "grabcut"):  # OpenCV is an extra
            modules.append(".".join(place.with_suffix("").parts))
    return modules


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> tuple[list[str], list[str], list[str]]:
    """What an interpreter prints that knows neither this repository nor Hydra, and the modules."""
    root = tmp_path_factory.mktemp("away")
    modules = copy_library(root)
    script = root / "user.py"
    script.write_text(f"{HIDE}\n{copy_idea(root)}\nprint('library')\n{NESTED}")
    lines = python("-I", str(script), str(root), *modules, cwd=root).splitlines()
    middle = lines.index("library")
    return lines[:middle], lines[middle + 1 :], modules


def test_the_readmes_code_runs_with_the_idea_alone_under_another_name(printed):
    """A stock torchvision Mask R-CNN of four classes learns with masks of two."""
    size = "torch.Size([1, 120, 160])"
    assert printed[0][-4:] == [f"6 1 {size}", "torch.Size([6, 256])", "True True", "[]"]


def test_the_library_files_train_inside_another_package_with_nothing_but_torch(printed):
    _, lines, modules = printed
    assert {"model", "transfer", "net.small"} <= set(modules)
    losses = [float(line) for line in lines[:-1]]
    assert losses[-1] < losses[0] / 2
    assert lines[-1:] == ["(2, 48, 48) []"]
