"""The commands of lowshot_hallucination as a user types them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowshot_hallucination.features.formats import read_folder
from tests.commands import Commands
from tests.train_scripts import TrainScript, lines, weights

PROJECT = "lowshot_hallucination"
# The images and the trunk of experiment=smoke, whose features are in the cache then
SMALL = [
    "steps=2",
    "trunk.channels=8",
    "backbone.epochs=1",
    "data.builtin={train: 6, support: 6, queries: 2}",
    "episodes={shots: [1, 2], queries: 1}",
    "test={shots: [1, 2], draws: 2, base_support: 4}",
]
NAMES = {"PN": "PN", "PN with G": "PN_with_G", "PN shrunk": "PN_shrunk",
         "centred cosine": "centred_cosine"}  # fmt: skip


class TestLowshotHallucination(TrainScript):
    project = PROJECT
    part = "learner"
    figure = "features.png"
    metrics = ("novel_1", "novel_2", "all_1", "prior_1", "base_1", "balanced_1", "shift_cosine")
    typos = (
        ("hallucination.naug=3", "hallucination.n_aug"),
        ("lerner.method=mn", "learner.method"),
    )
    missing = ("data=omniglot",)
    batch = ("logistic.batch_size", 32, 64)

    def test_the_test_leaves_its_draws_its_choices_and_the_curves_of_the_prior(self, smoke):
        folder = smoke(self.project)
        rows = (folder / "draws.csv").read_text().splitlines()
        assert len(rows) == 1 + 2 * 2 * 2  # phases, n, draws
        assert set(json.loads((folder / "chosen.json").read_text())) == {"1", "2"}
        assert (folder / "prior.png").exists()
        rates = [line["lr"] for line in lines(folder) if "lr" in line]
        assert rates == sorted(rates, reverse=True)

    def test_evaluating_without_weights_is_one_sentence(self, commands, tmp_path):
        done = self.run(commands, tmp_path, "stage=test")
        assert done.returncode == 2
        assert "stage=test needs init=RUN" in done.stderr
        assert "Traceback" not in done.stderr


def do(commands: Commands, *words: str, script: str = "train.py") -> str:
    """What a command prints that must succeed."""
    done = commands.run(PROJECT, *words, script=script, forking=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def result_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "result.json").read_text())["metrics"]


def test_the_demo_compares_g_with_none_and_two_controls(smoke, commands, tmp_path):
    smoke(PROJECT)  # writes the features
    said = do(commands, *SMALL, f"hydra.run.dir={tmp_path}")
    table = (tmp_path / "versus.md").read_text()
    assert [f"| {name} " in table for name in NAMES] == [True] * 4
    assert "novel_1" in table
    gains = (tmp_path / "gains.md").read_text()
    assert "PN with G over the best control" in gains
    assert gains.splitlines()[0] in said
    for name in ("versus.png", "gains.png", "features.png"):
        assert (tmp_path / name).exists()
    steps = {name: json.loads((tmp_path / folder / "result.json").read_text())["steps"]
             for name, folder in NAMES.items()}  # fmt: skip
    assert steps == {"PN": 2, "PN with G": 2, "PN shrunk": 2, "centred cosine": 0}


def test_a_class_is_added_to_a_finished_run_by_images(smoke, commands, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 32, 3), np.uint8)
    (tmp_path / "mugs").mkdir()
    for number in range(2):
        Image.fromarray(pixels).save(tmp_path / "mugs" / f"{number}.png")
    words = [f"run={smoke(PROJECT)}", f"add=[mug:{tmp_path}/mugs/0.png]"]
    words += [f"images={tmp_path}/mugs", f"out={tmp_path}/found.json"]
    do(commands, *words, script="predict.py")
    found = json.loads((tmp_path / "found.json").read_text())["predictions"]
    assert [each["top"][0]["class"] for each in found] == ["mug", "mug"]


def test_the_tables_are_listed(commands):
    said = do(commands, script="tables.py")
    for name in ("table1_r10", "table1_r50", "hg", "mini", "ablation"):
        assert f"{name:12} " in said


@pytest.mark.slow
def test_a_table_runs_its_rows_prints_them_and_compares(smoke, commands, tmp_path):
    smoke(PROJECT)
    words = ["mini", "scale=mini", "rows=PN", *SMALL]
    script = Path(__file__).resolve().parents[2] / PROJECT / "tables.py"
    done = commands.run(tmp_path, *words, script=str(script), forking=True)
    assert done.returncode == 0, done.stderr
    assert "| PN with G" in done.stdout
    assert "PN with G over the best control" in done.stdout
    assert "1 seeds x 2 draws" in done.stdout


@pytest.mark.slow
def test_stages_one_after_the_other_equal_the_run_on_images(smoke, commands, tmp_path):
    """A trunk, its features, the learner, its test: all in folders of their own."""
    plain = ["experiment=smoke"]
    do(commands, *plain, "stage=backbone", f"hydra.run.dir={tmp_path}/trunk")
    assert set(result_of(tmp_path / "trunk")) == {"base_top1", "base_top5"}
    words = ["stage=features", f"trunk.weights={tmp_path}/trunk"]
    said = do(commands, *plain, *words, f"hydra.run.dir={tmp_path}/made")
    features = tmp_path / "made" / "features"
    assert f"python train.py features={features}" in said
    train, test, content = read_folder(features)
    assert (len(train), len(test)) == (120 * 6, 120 * 2)
    assert content["trunk"]["folder"] == str(tmp_path / "trunk")
    do(commands, *plain, f"features={features}", f"hydra.run.dir={tmp_path}/meta")
    assert result_of(tmp_path / "meta") == result_of(smoke(PROJECT))
    words = ["stage=test", f"features={features}", f"init={tmp_path}/meta"]
    do(commands, *plain, *words, f"hydra.run.dir={tmp_path}/test")
    assert result_of(tmp_path / "test") == result_of(tmp_path / "meta")


@pytest.mark.slow
def test_two_runs_that_start_together_make_the_features_once(commands, tmp_path):
    cache = {"FAIR_VISION_CACHE": str(tmp_path / "cache")}
    words = ["experiment=smoke", "data.builtin={train: 6, support: 6, queries: 2, seed: 1}"]
    runs = [
        commands.start(PROJECT, *words, f"seed={k}", f"hydra.run.dir={tmp_path}/{k}", **cache)
        for k in range(2)
    ]
    assert [run.wait() for run in runs] == [0, 0], runs[0].text + runs[1].text
    assert sum("are made once" in run.text for run in runs) == 1
    made = tmp_path / "cache" / "lowshot_hallucination"
    assert len([path for path in made.glob("features-*") if not path.suffix]) == 1
    assert all(result_of(tmp_path / name)["novel_1"] > 0 for name in "01")


@pytest.mark.slow
def test_torchrun_makes_features_and_trains_on_them_as_one_process_does(commands, tmp_path):
    cache = {"FAIR_VISION_CACHE": str(tmp_path / "cache")}
    words = ["experiment=smoke", "episodes.per_step=2"]
    words += ["data.builtin={train: 6, support: 6, queries: 2}"]
    runs = commands.start_ranks(PROJECT, *words, f"hydra.run.dir={tmp_path}/two", **cache)
    assert [run.wait() for run in runs] == [0, 0], runs[0].text
    assert ["are made once" in run.text for run in runs] == [True, False]
    alone = commands.start(PROJECT, *words, f"hydra.run.dir={tmp_path}/one", **cache)
    assert alone.wait() == 0, alone.text
    assert "are made once" not in alone.text
    one, two = (weights(tmp_path / name, 6, "learner") for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5)
    assert result_of(tmp_path / "two") == pytest.approx(result_of(tmp_path / "one"), abs=0.5)


@pytest.mark.slow
def test_omniglot_is_learned_from_in_one_command(shared_data, commands, tmp_path):
    words = ["experiment=smoke", "data=omniglot", f"data.root={shared_data / 'omniglot'}"]
    words += ["steps=60", "episodes={classes: 20, shots: [1, 2, 5], queries: 2}"]
    words += ["test={shots: [1, 5], draws: 2, base_support: 10}", f"hydra.run.dir={tmp_path}"]
    said = do(commands, *words)
    assert "15 drawings of each character are for support, the others are queries" in said
    metrics = result_of(tmp_path)
    assert metrics["novel_5"] > metrics["novel_1"] > 15  # chance: 5 of about 75 classes


@pytest.mark.slow
def test_photos_of_cifar_10_are_learned_from_in_one_command(shared_data, commands, tmp_path):
    words = ["experiment=smoke", "data=cifar10", f"data.root={shared_data / 'cifar10_jpeg'}"]
    words += ["steps=60", "test={shots: [1, 5], draws: 2, base_support: 10}"]
    do(commands, *words, f"hydra.run.dir={tmp_path}")
    metrics = result_of(tmp_path)
    assert metrics["novel_top1_5"] > 40  # chance: a third, of three classes
    assert metrics["base_1"] == 100  # top-5 of two or three classes
