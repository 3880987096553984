"""The real commands in subprocesses: they run, learn, resume, compare, and refuse typos."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECTS = ["focal_loss", "large_minibatch", "panoptic", "program_execution"]
PICTURES = {
    "focal_loss": "detections.png",
    "large_minibatch": "predictions.png",
    "panoptic": "predictions.png",
    "program_execution": "programs.png",
}
METRICS = {
    "focal_loss": {"AP", "AP50", "AP75"},
    "large_minibatch": {"error", "val_error", "train_error"},
    "panoptic": {"PQ", "SQ_th", "RQ_st", "separate_PQ_th", "components_PQ"},
    "program_execution": {"accuracy", "exist", "count", "query_color", "compare_attribute"},
}
TYPOS = {  # on the command line, and what the sentence has to name
    "focal_loss": [
        ("los.gamma=1", "loss.gamma"),
        ("loss.gama=1", "loss.gamma"),
        ("experiment=smok", "smoke"),
        ("lr=abc", "a number"),
        ("loss.kind=focul", "focal"),
        ("lr=-1", "range"),
        ("data.root_=x", "data.root"),
    ],
    "large_minibatch": [
        ("rates.base=1", "rate.base"),
        ("rate.warmups=none", "rate.warmup"),
        ("rate.rule=linaer", "linear"),
        ("batch_size=many", "a whole number"),
        ("batch_size=36", "nearest that works is 32 or 40"),
        ("norm.group=7", "group=7"),
    ],
    "panoptic": [
        ("merg.overlap=1", "merge.overlap"),
        ("predict.sourse=merged", "predict.source"),
        ("predict.source=merge", "merged"),
        ("model.part=semantic", "predict.source=separate"),
        ("merge.confidence=2", "merge.confidence"),
        ("data.scenes.together=9", "together"),
    ],
    "program_execution": [
        ("model.hiden=1", "model.hidden"),
        ("stage=jiont", "joint"),
        ("data.subset=frist", "first"),
        ("data.train=train:shrot", "train:short"),
        ("model.name=lstm", "stage=baseline"),
    ],
}
MISSING = {  # data sets that want a root
    "focal_loss": ["data=coco"],
    "large_minibatch": ["data=imagenet"],
    "panoptic": ["data=coco"],
    "program_execution": ["data=clevr"],
}


def run(project: str, *words: str, script: str = "train.py", timeout: float = 300, **env: str):
    """The command as a user types it, in the project's folder."""
    return subprocess.run(
        [sys.executable, script, *words],
        cwd=REPOSITORY / project,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / f"checkpoint-{step:08d}.pt")["parts"]["model"]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("project", PROJECTS)
def test_smoke_trains_evaluates_and_leaves_a_full_folder(project, tmp_path):
    done = run(project, "experiment=smoke", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "run").iterdir()}
    wanted = {".hydra", "metrics.jsonl", "run.json", "result.json", "curves.png"}
    assert wanted | {PICTURES[project], "checkpoint-00000006.pt"} <= names
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 6
    assert result["diverged"] is None
    assert METRICS[project] <= result["metrics"].keys()
    assert sorted({line["step"] for line in lines(tmp_path / "run")}) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("project", PROJECTS)
def test_resuming_gives_the_same_weights_as_never_stopping(project, tmp_path):
    whole = run(project, "experiment=smoke", f"hydra.run.dir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    copied = tmp_path / "cut"
    copied.mkdir()
    name = "checkpoint-00000003.pt"
    (copied / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    resumed = run(project, "experiment=smoke", f"hydra.run.dir={copied}")
    assert resumed.returncode == 0, resumed.stderr
    a, b = weights(tmp_path / "whole", 6), weights(copied, 6)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert sorted({line["step"] for line in lines(copied)}) == [4, 5, 6]


@pytest.mark.parametrize("project", PROJECTS)
def test_a_finished_run_started_again_only_evaluates(project, tmp_path):
    first = run(project, "experiment=smoke", f"hydra.run.dir={tmp_path}")
    before = weights(tmp_path, 6)
    again = run(project, "experiment=smoke", f"hydra.run.dir={tmp_path}")
    assert first.returncode == again.returncode == 0, again.stderr
    assert all(torch.equal(before[key], value) for key, value in weights(tmp_path, 6).items())
    assert "step 1/6" not in again.stdout + again.stderr


@pytest.mark.parametrize(
    ("project", "word", "hint"),
    [(project, *slip) for project, slips in TYPOS.items() for slip in slips],
)
def test_a_typo_is_one_sentence_and_exit_code_2(project, word, hint, tmp_path):
    done = run(project, "experiment=smoke", word, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 2
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("project", PROJECTS)
def test_a_missing_root_is_one_sentence(project, tmp_path):
    for words in (MISSING[project], [*MISSING[project], "data.root=/no/such/folder"]):
        done = run(project, "experiment=paper", *words, f"hydra.run.dir={tmp_path}")
        assert done.returncode == 2
        assert "data.root" in done.stderr or "/no/such/folder" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("project", PROJECTS)
def test_evaluating_without_weights_is_one_sentence(project, tmp_path):
    done = run(project, "experiment=smoke", "only_evaluate=true", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 2
    assert "holds no checkpoint" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_batch_size_does_not_resume(tmp_path):
    run("focal_loss", "experiment=smoke", f"hydra.run.dir={tmp_path}", "steps=3")
    done = run("focal_loss", "experiment=smoke", f"hydra.run.dir={tmp_path}", "batch_size=8")
    assert done.returncode == 2
    assert "batch_size" in done.stderr
    assert "4" in done.stderr
    assert "8" in done.stderr


def test_two_processes_train_as_one(tmp_path):
    words = ("experiment=smoke", "loss.normalizer=world")
    one = run("focal_loss", *words, f"hydra.run.dir={tmp_path}/one")
    words = (*words, "processes=2")
    two = run("focal_loss", *words, f"hydra.run.dir={tmp_path}/two", FAIR_VISION_TIMEOUT="60")
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    a, b = weights(tmp_path / "one", 6), weights(tmp_path / "two", 6)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)
    one_, two_ = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")
    )
    assert one_["metrics"].keys() == two_["metrics"].keys()


def test_a_diverging_run_says_so_and_keeps_its_last_checkpoint(tmp_path):
    words = ("experiment=smoke", "steps=40", "lr=1e9", "save_every=1", "warmup=0")
    done = run("focal_loss", *words, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 1
    assert "not finite" in done.stderr
    assert "scenes/0/" in done.stderr  # the batch's pictures
    result = json.loads((tmp_path / "result.json").read_text())
    step = result["diverged"]["step"]
    checkpoint.load(tmp_path / f"checkpoint-{step - 1:08d}.pt")


def test_versus_compares_settings_side_by_side(tmp_path):
    other = "['loss.gamma=0', 'lr=1e9', 'warmup=0', 'steps=40']"
    words = ("experiment=smoke", "+versus.a=[]", f"+versus.b={other}")
    done = run("focal_loss", *words, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "versus.md").read_text()
    assert "| a |" in table
    assert "diverged at step" in table
    assert table.strip() in done.stdout
