"""Training and evaluation on small real data sets, where they are at hand."""

import json

import pytest

SMALL = ["experiment=scratch", "steps=4", "warmup=1", "save_every=4", "model.width=8"]
SMALL += ["model.channels=8", "data.short_side=[96]", "data.test_short_side=96"]
SMALL += ["data.long_side=160", "data.workers=0", "test.pictures=4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "split", "classes"), [("coco_mini", "val", 80), ("bccd", "test", 3)]
)
def test_real_images_train_and_evaluate(commands, shared_data, tmp_path, name, split, classes):
    words = [*SMALL, "data=coco_format", f"data.root={shared_data / name}", f"data.val={split}"]
    done = commands.run("focal_loss", *words, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert 0 <= metrics["AP"] <= 100
    found = json.loads((tmp_path / "detections.json").read_text())
    assert all(isinstance(d["category_id"], int) for d in found)
    if name == "bccd":
        assert "1 " in done.stderr  # the box without area is reported
        assert "area" in done.stderr
