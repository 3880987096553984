"""Training in large_minibatch: resuming, accumulation, norms, what evaluation counts."""

import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from common import draw
from common.run import checkpoint
from common.tables.plan import compose_rows
from large_minibatch import data
from large_minibatch.config import Config, Data, Model, Norm, Rate
from large_minibatch.config import Scenes as ScenesConfig
from large_minibatch.evaluate import History, contact_sheet, due, evaluate
from large_minibatch.inputs.augment import mixup
from large_minibatch.tables import TABLES
from large_minibatch.train import build_schedule, train

SMALL = Config(
    epochs=2,
    batch_size=32,
    per_forward=32,
    log_every=1,
    threads=1,
    output_dir="",
    data=Data(
        name="scenes",
        root="",
        crop="none",
        in_memory=True,
        size=32,
        workers=0,
        scenes=ScenesConfig(train_images=96, val_images=41),
    ),
    rate=Rate(base=0.05, base_batch=32, start=0.05, milestones=[1]),
    norm=Norm(group=8),
    model=Model(name="mini", width=8),
)


def weights(folder: Path, step: int = 6) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / f"checkpoint-{step:08d}.pt")["parts"]["model"]


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "result.json").read_text())["metrics"]


@pytest.fixture
def command(commands, tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`python train.py experiment=smoke` with the words, into the test's folder."""
    words = ("large_minibatch", "experiment=smoke", f"hydra.run.dir={tmp_path}")
    return partial(commands.run, *words)


def require_close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)


def test_three_and_three_epochs_are_six(tmp_path):
    cfg = replace(SMALL, epochs=6.0)
    train(replace(cfg, output_dir=str(tmp_path / "whole")))
    (tmp_path / "cut").mkdir()
    name = "checkpoint-00000009.pt"  # three of six epochs, and in the second half the rate is less
    train(replace(cfg, epochs=3.0, output_dir=str(tmp_path / "half")))
    (tmp_path / "cut" / name).write_bytes((tmp_path / "half" / name).read_bytes())
    train(replace(cfg, output_dir=str(tmp_path / "cut")))
    a, b = weights(tmp_path / "whole", 18), weights(tmp_path / "cut", 18)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_accumulated_forwards_train_as_one(tmp_path):
    one = train(replace(SMALL, output_dir=str(tmp_path / "one")))
    cut = train(replace(SMALL, per_forward=8, output_dir=str(tmp_path / "cut")))
    require_close(weights(tmp_path / "one"), weights(tmp_path / "cut"))
    assert one["val_error"] == cut["val_error"]


@pytest.mark.parametrize("kind", ["rank0", "precise"])
def test_the_statistics_of_the_evaluation_leave_the_training_as_it_is(kind, tmp_path):
    train(replace(SMALL, output_dir=str(tmp_path / "mean")))
    norm = replace(SMALL.norm, evaluate=kind, precise_batches=3)
    train(replace(SMALL, norm=norm, output_dir=str(tmp_path / kind)))
    a, b = weights(tmp_path / "mean"), weights(tmp_path / kind)
    same = [key for key in a if "running" not in key and "num_batches" not in key]
    assert all(torch.equal(a[key], b[key]) for key in same)
    precise = any(not torch.equal(a[key], b[key]) for key in a if "running" in key)
    assert precise == (kind == "precise")


class Answers(nn.Module):
    """Always the same logits, of which the first is the highest."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([3.0, 2.0, 1.0]).expand(len(images), 3)


def test_a_class_that_evaluation_leaves_out_is_never_answered(tmp_path):
    for split in ("train", "val"):
        for k, name in enumerate("abc"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(k + 1):  # 1, 2 and 3 images
                Image.new("RGB", (20, 20), (80 * k, 0, 0)).save(folder / f"{i}.jpg")
    (tmp_path / "two.txt").write_text("b\nc\n")
    every = Data(name="folder", root=str(tmp_path), size=16, resize=20, workers=0)
    some = replace(every, evaluated=str(tmp_path / "two.txt"))
    errors = {}
    for name, cfg in (("every", every), ("some", some)):
        cfg = replace(SMALL, data=cfg, output_dir=str(tmp_path / "run"))
        errors[name] = evaluate(Answers(), cfg, data.build(cfg.data, "val"))
    assert errors["every"]["val_error"] == pytest.approx(500 / 6)  # "a" is right once in six
    assert errors["some"]["val_error"] == pytest.approx(300 / 5)  # of b and c "b", twice in five
    assert errors["some"]["val_loss"] == pytest.approx((3 * 1 + 5 * math.log(1 + math.exp(-1))) / 5)


def test_the_sheet_shows_answer_and_truth_of_images_spread_over_the_set(tmp_path, monkeypatch):
    sheets = []
    monkeypatch.setattr(draw, "save_png", lambda image, path: None)
    monkeypatch.setattr(draw, "grid", lambda images, **options: sheets.append((images, options)))
    for k, name in enumerate("abc"):
        for i in range(20):
            (tmp_path / "val" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
            image = Image.new("RGB", (20 + i, 24), (80 * k, 0, 0))  # sizes differ
            image.save(tmp_path / "val" / name / f"{i}.jpg")
            image.save(tmp_path / "train" / name / f"{i}.jpg")
    cfg = Data(name="folder", root=str(tmp_path), size=16, resize=20, workers=0)
    for in_memory in (False, True):
        cfg = replace(cfg, in_memory=in_memory)
        dataset = data.build(cfg, "val")
        contact_sheet(Answers(), replace(SMALL, data=cfg), dataset)
    (images, options), (again, _) = sheets
    assert options["titles"] == ["a: right"] * 11 + ["a: is b"] * 11 + ["a: is c"] * 10
    assert all(torch.equal(a, b) for a, b in zip(images, again, strict=True))
    frames = [tuple(image[:, 0, 0].tolist()) for image in images]
    assert frames == [draw.PALETTE[2]] * 11 + [draw.PALETTE[0]] * 21


def test_imagenet_5k_asks_for_its_two_lists_and_scenes_refuse_them(command, tmp_path):
    for given, lacking in (("classes", "evaluated"), ("evaluated", "classes")):
        with pytest.raises(ValueError, match=rf"data\.{lacking} is not set"):
            Data(name="imagenet5k", root="x", **{given: "list.txt"})
        with pytest.raises(ValueError, match=rf"data\.{given} is for class folders"):
            Data(name="scenes", root="", **{given: "list.txt"})
    done = command("data=imagenet5k", f"data.root={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("data.classes is not set")


def test_evaluating_only_reports_the_error_of_the_weights_at_hand(tmp_path):
    first = train(replace(SMALL, output_dir=str(tmp_path)))
    assert (tmp_path / "backbone.pt").is_file()
    (tmp_path / "backbone.pt").unlink()
    again = train(replace(SMALL, only_evaluate=True, output_dir=str(tmp_path)))
    assert again["error"] == again["val_error"] == first["val_error"]
    assert "train_error" not in metrics(tmp_path)  # no image was trained on
    assert not (tmp_path / "backbone.pt").exists()


def test_the_kept_backbone_is_the_network_that_was_evaluated(tmp_path):
    train(replace(SMALL, ema=0.9, epochs=1.0, output_dir=str(tmp_path)))
    kept = torch.load(tmp_path / "backbone.pt", weights_only=True)
    average = checkpoint.load(tmp_path / "checkpoint-00000003.pt")["parts"]["average"]
    for name, value in kept["state_dict"].items():
        assert torch.equal(value, average[f"module.{name}"]), name
    assert kept["meta"]["mean"] == pytest.approx(SMALL.data.mean)


def test_a_diverging_run_says_so_and_keeps_its_last_checkpoint(command, tmp_path):
    done = command("rate.base=1e12", "rate.start=1e12", "save_every=1", "epochs=10")
    assert done.returncode == 1
    assert "not finite" in done.stderr
    assert "Traceback" not in done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    checkpoint.load(tmp_path / f"checkpoint-{result['diverged']['step'] - 1:08d}.pt")


def test_extras_train_and_are_off_by_default(tmp_path):
    assert (Config.smoothing, Config.mixup, Config.ema) == (0, 0, 0)
    extras = replace(SMALL, smoothing=0.1, mixup=0.2, ema=0.9, epochs=1.0)
    solver = replace(SMALL.solver, kind="lars")
    found = train(replace(extras, solver=solver, output_dir=str(tmp_path)))
    assert found.keys() >= {"error", "train_error", "val_error"}


def test_mixup_blends_images_and_targets_alike():
    images, labels = torch.eye(4).view(4, 1, 2, 2), torch.arange(4)
    torch.manual_seed(0)
    mixed, targets = mixup(images, labels, 1.0, 4)
    torch.testing.assert_close(mixed.flatten(1), targets)  # one-hot images: their own targets
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    assert not torch.equal(mixed, images)
    assert mixup(images, labels, 0.0, 4) == (images, labels)


def test_an_epoch_is_evaluated_now_and_then_and_at_the_end_for_the_median():
    cfg = replace(SMALL, epochs=90.0, evaluate_every=30, median_of=5)
    assert [e for e in range(1, 91) if due(e, cfg)] == [30, 60, 86, 87, 88, 89, 90]


def test_the_error_of_a_run_is_the_median_of_its_last_epochs():
    history = History()
    for epoch, error in enumerate([50.0, 9.0, 7.0, 8.0, 30.0, 6.0], 1):
        history.count(torch.tensor(3), 12)
        history.close(epoch, val_error=error)
    assert history.final(5)["error"] == 8.0
    assert history.final(5)["train_error"] == 25.0
    other = History()
    other.load_state_dict(history.state_dict())
    assert other.final(3) == history.final(3)


@pytest.mark.parametrize(
    ("batch_size", "steps_per_epoch", "peak"),
    [(256, 5004, 0.1), (8192, 156, 3.2), (65536, 19, 25.6)],
)
def test_the_paper_follows_from_the_minibatch_alone(batch_size, steps_per_epoch, peak):
    cfg = Config(batch_size=batch_size, data=replace(SMALL.data, name="imagenet"))
    plan = data.plan_of(cfg, 1_281_167)
    schedule = build_schedule(cfg, plan)
    assert plan.steps_per_epoch == steps_per_epoch
    assert schedule.peak == pytest.approx(peak)
    assert plan.accumulation * plan.per_forward == batch_size
    assert schedule.steps == 90 * steps_per_epoch


def test_every_row_of_every_table_composes():
    rows = list(compose_rows(TABLES))
    assert len(rows) > 50
