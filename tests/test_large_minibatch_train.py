"""Training in large_minibatch: processes, resuming, accumulation, norms, what evaluation counts."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common import checkpoint
from common.tables import compose_rows
from large_minibatch.config import Config, Data, Model, Norm, Rate
from large_minibatch.config import Scenes as ScenesConfig
from large_minibatch.evaluate import History
from large_minibatch.mixup import mix
from large_minibatch.tables import TABLES
from large_minibatch.train import due, planned, train

PROJECT = Path(__file__).resolve().parent.parent / "large_minibatch"
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
    model=Model(name="mini", width=4),
)


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python train.py experiment=smoke` with the words, into the folder."""
    return subprocess.run(
        [sys.executable, "train.py", "experiment=smoke", *words, f"hydra.run.dir={folder}"],
        cwd=PROJECT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "FAIR_VISION_TIMEOUT": "60"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def weights(folder: Path, step: int = 6) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / f"checkpoint-{step:08d}.pt")["parts"]["model"]


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "result.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of one process, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    done = command(folder)
    assert done.returncode == 0, done.stderr
    return folder


def require_close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)


def test_two_processes_train_as_one_and_count_each_picture_once(whole, tmp_path):
    done = command(tmp_path, "processes=2")
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    require_close(weights(whole), weights(tmp_path))
    assert metrics(whole)["val_error"] == metrics(tmp_path)["val_error"]
    assert metrics(whole)["train_error"] == metrics(tmp_path)["train_error"]


def test_our_own_allreduce_trains_as_ddp(whole, tmp_path):
    done = command(tmp_path, "processes=2", "allreduce=halving_doubling", "overlap=false")
    assert done.returncode == 0, done.stderr
    require_close(weights(whole), weights(tmp_path))


def test_another_number_of_processes_resumes_the_same_stream(whole, tmp_path):
    name = "checkpoint-00000003.pt"
    (tmp_path / name).write_bytes((whole / name).read_bytes())
    done = command(tmp_path, "processes=2")
    assert done.returncode == 0, done.stderr
    require_close(weights(whole), weights(tmp_path))


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


def test_a_class_that_evaluation_leaves_out_is_never_answered(tmp_path):
    names = [f"{color} {shape}" for shape in ("cube", "sphere") for color in ("red", "blue")]
    scenes = replace(SMALL.data.scenes, shapes=["cube", "sphere"], colors=["red", "blue"])
    (tmp_path / "two.txt").write_text("\n".join(names[:2]) + "\n")
    data = replace(SMALL.data, scenes=scenes, evaluated=str(tmp_path / "two.txt"))
    masked = train(replace(SMALL, data=data, epochs=1.0, output_dir=str(tmp_path / "run")))
    assert 0 <= masked["val_error"] <= 100


def test_a_diverging_run_says_so_and_keeps_its_last_checkpoint(tmp_path):
    done = command(tmp_path, "rate.base=1e12", "rate.start=1e12", "save_every=1", "epochs=10")
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
    mixed, targets = mix(images, labels, 1.0, 4)
    torch.testing.assert_close(mixed.flatten(1), targets)  # one-hot pictures: their own targets
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    assert not torch.equal(mixed, images)
    assert mix(images, labels, 0.0, 4) == (images, labels)


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
    plan, schedule = planned(cfg, 1_281_167)
    assert plan.steps_per_epoch == steps_per_epoch
    assert schedule.peak == pytest.approx(peak)
    assert plan.accumulation * plan.per_forward == batch_size
    assert schedule.steps == 90 * steps_per_epoch


def test_every_row_of_every_table_composes():
    rows = list(compose_rows(TABLES))
    assert len(rows) > 50
