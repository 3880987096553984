"""What a user copies away works there: the project beside `common`, or its library files alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

# A file that imports one of these is a part of the repository, not a library.
OTHERS = r"common|panoptic|hydra|omegaconf|\.+config|\.+files\.detection"
SCRIPT = re.compile(rf"^\s*(?:from|import) (?:{OTHERS})\b", re.MULTILINE)

NESTED = """
import importlib
import sys
import tempfile

HIDDEN = {"common", "panoptic", "hydra", "omegaconf"}

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)

sys.meta_path.insert(0, Hide())
sys.path.insert(0, sys.argv[1])
for module in sys.argv[2:]:
    importlib.import_module(f"mypkg.vision.panoptic.{module}")

import numpy as np
import torch
from mypkg.vision.panoptic.annotators.simulate import CATEGORIES, annotate, scene
from mypkg.vision.panoptic.files.categories import kinds
from mypkg.vision.panoptic.files.coco import PanopticFiles, write_panoptic
from mypkg.vision.panoptic.inputs.targets import Labels, training_target
from mypkg.vision.panoptic.merge import merge
from mypkg.vision.panoptic.model import Options, build
from mypkg.vision.panoptic.quality import PanopticQuality

generator = np.random.default_rng(0)
truth, segments = scene(generator, height=64, width=96)
drawn, found = annotate(truth, segments, generator, categories=kinds(CATEGORIES))
metric = PanopticQuality(kinds(CATEGORIES))
metric.update(drawn, found, truth, segments)
print(metric.compute().all.pq)

with tempfile.TemporaryDirectory() as folder:
    images = [{"id": 1, "file_name": "1.jpg", "height": 64, "width": 96}]
    path = f"{folder}/truth.json"
    write_panoptic(path, None, categories=CATEGORIES, images=images,
                   results=[(1, truth, segments)])
    files = PanopticFiles(path)
    print(bool((files.ids(1) == truth).all()), len(files.segments(1)) == len(segments))

torch.manual_seed(0)
labels = Labels.of(CATEGORIES, "stuff")
model = build(Options(backbone="mini", norm="gn", freeze_at=0), thing_classes=6, stuff_classes=4)
image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
target = training_target(torch.from_numpy(truth), segments, labels)
optimizer = torch.optim.SGD(model.parameters(), 0.01)
for _ in range(3):
    torch.manual_seed(1)
    loss = sum(model([image], [target]).values())
    print(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
out = model.eval()([image], sizes=[(64, 96)])[0]
classes = [labels.things[label] for label in out["labels"].tolist()]
ids, merged = merge(out["masks"], out["scores"], classes,
                    labels.to_categories(out["semantic"].argmax(0)), confidence=0, stuff_area=0)
print(tuple(ids.shape))
print(sorted(HIDDEN & {name.partition(".")[0] for name in sys.modules}))
"""


def python(*words: str, cwd: Path, **extra: str) -> str:
    """What a new interpreter prints."""
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | extra
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_project_and_common_copied_elsewhere_train_with_their_own_code(tmp_path):
    for name in ("panoptic", "common"):
        away = shutil.ignore_patterns("__pycache__", "outputs")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=away)
    project = tmp_path / "panoptic"
    where = "import common, panoptic; print(common.__file__, panoptic.__file__)"
    files = python("-c", where, cwd=project, PYTHONPATH=str(tmp_path)).split()
    assert files == [str(tmp_path / name / "__init__.py") for name in ("common", "panoptic")]
    words = ("experiment=smoke", "steps=1", f"hydra.run.dir={tmp_path}/run")
    # The command refuses a `common` of another folder than its own.
    python("train.py", *words, cwd=project, PYTHONPATH=str(tmp_path))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 1
    assert "PQ" in result["metrics"]


def test_the_library_files_score_merge_and_train_inside_another_package(tmp_path):
    away = tmp_path / "mypkg" / "vision" / "panoptic"
    away.mkdir(parents=True)
    for folder in (away.parent, away.parent.parent):
        (folder / "__init__.py").touch()
    modules = []
    for path in (REPOSITORY / "panoptic").rglob("*.py"):
        if not SCRIPT.search(path.read_text()):
            own = path.relative_to(REPOSITORY / "panoptic")
            (away / own).parent.mkdir(exist_ok=True)
            shutil.copy(path, away / own)
            modules.append(".".join(own.with_suffix("").parts).removesuffix(".__init__"))
    assert {"quality", "merge", "files.coco", "model", "merging.sources"} <= set(modules)
    modules.remove("__init__")
    script = tmp_path / "nested.py"
    script.write_text(NESTED)
    printed = python("-I", str(script), str(tmp_path), *modules, cwd=tmp_path).splitlines()
    assert 0.3 < float(printed[0]) < 1
    assert printed[1] == "True True"
    losses = [float(line) for line in printed[2:5]]
    assert losses[0] > losses[2]
    assert printed[5:] == ["(64, 96)", "[]"]
