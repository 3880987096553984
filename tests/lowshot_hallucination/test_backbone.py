"""The trunk's training is plain SGD on base classes, resumes to the bit and is shared out.

Run as a script, this file is one of two processes that train and write features.
"""

import json
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from common import dist
from common.data import seed_everything
from common.run import checkpoint
from common.run.checkpoint import CheckpointError
from common.run.log import Diverged
from common.sampling import SampleStream
from lowshot_hallucination.backbone.extract import extract, make_array
from lowshot_hallucination.backbone.loop import Backbone, train_backbone
from lowshot_hallucination.backbone.losses import sgm
from lowshot_hallucination.features.formats import read_folder
from lowshot_hallucination.features.images import Images
from lowshot_hallucination.features.pool import Pool, Source, as_names
from lowshot_hallucination.features.splits import ClassSplit
from lowshot_hallucination.features.transforms import View
from lowshot_hallucination.net.trunks import Network, Trunk, build_trunk
from lowshot_hallucination.weights.initialise import initialise, reopen, restore

SPLIT = ClassSplit(list("abcdef"), [0], [2, 5], [1], [4])  # class 3 is in neither part
BASE = [0, 2, 5]
TRUNK = Trunk("small", channels=8, mean=[0.5] * 3, std=[0.25] * 3)
# Six steps: the second epoch at a tenth of the rate
RECIPE = Backbone(epochs=3, batch_size=8, per_gpu=4, lr=0.05, drop_every=2, warmup_epochs=1)


def pool(name: str, each: int, seed: int) -> Pool:
    """`each` images of 16 pixels of each class, of a colour of its own."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(6), each)
    colours = 40 * labels[:, None, None, None] + np.array([20, 0, 40])[:, None, None]
    pixels = (colours + rng.integers(0, 60, (len(labels), 3, 16, 16))).astype(np.uint8)
    names = as_names([f"{name}/{i}.png" for i in range(len(labels))])
    return Pool(names, labels, pixels=pixels)


def problem() -> Images:
    view = View(size=16, resize=16, crop="none", flip=False)
    return Images("toy", Source(SPLIT, pool("train", 6, 0), pool("test", 5, 1), ("A note.",)), view)


def run(folder: Path, recipe: Backbone = RECIPE, **options: Any) -> dict[str, float]:
    try:
        plain = {"seed": 3, "folder": folder, "log_every": 1, "save_every": 4}
        return train_backbone(problem(), TRUNK, recipe, **plain | options)
    finally:
        checkpoint.unlock(folder)


def saved(folder: Path, step: int = 6) -> dict[str, Any]:
    return checkpoint.load(folder / f"checkpoint-{step:08d}.pt")["parts"]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """The folder of six steps, and what came out."""
    folder = tmp_path_factory.mktemp("backbone") / "run"
    return folder, run(folder)


def by_hand(recipe: Backbone, rates: list[float], weight: float) -> tuple[Network, list[float]]:
    """Plain SGD over the pieces of each batch; the sum of both losses at every step."""
    seed_everything(3)
    network = build_trunk(TRUNK, 6)
    source = problem().source.train.only(BASE)
    stream = SampleStream(len(source), recipe.batch_size, seed=3)
    optimizer = SGD(
        network.parameters(),
        1.0,
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )
    losses = []
    for step, rate in enumerate(rates):
        rows = torch.tensor([index for _, index in stream.batch(step)])
        total = torch.zeros(())
        for piece in rows.split(recipe.per_gpu):
            x = (torch.from_numpy(source.pixels)[piece] / 255 - 0.5) / 0.25
            labels = torch.from_numpy(source.labels)[piece]
            features = network.body(x)
            logits = network.head(features)
            loss = F.cross_entropy(logits, labels) + weight * sgm(logits, labels, features)
            total = total + loss / 2
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return network, losses


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_run_takes_the_steps_of_the_loop_by_hand(nesterov, tmp_path):
    changed = {"aux": "sgm", "weight_decay": 0.01, "nesterov": nesterov}
    recipe = Backbone(**vars(RECIPE) | changed)
    metrics = run(tmp_path, recipe)
    network, losses = by_hand(recipe, [0.01] * 2 + [0.05] * 2 + [0.005] * 2, 0.02)
    torch.testing.assert_close(saved(tmp_path)["model"], dict(network.state_dict()))
    logged = [line["classification"] + line["sgm"] for line in lines(tmp_path) if "lr" in line]
    assert logged == pytest.approx(losses, rel=1e-5)
    tested = problem().source.test.only(BASE)
    logits = network.eval()(torch.from_numpy(tested.pixels))
    right = (logits.argmax(1).numpy() == tested.labels).mean()
    assert metrics["base_top1"] == pytest.approx(100 * right)


def test_a_cosine_head_learns_its_scale_with_one_cycle(tmp_path):
    recipe = Backbone(epochs=2, batch_size=6, schedule="one_cycle", lr=0.2)
    cosine = Trunk(**vars(TRUNK) | {"head": "cosine"})
    train_backbone(problem(), cosine, recipe, seed=0, folder=tmp_path, log_every=1)
    checkpoint.unlock(tmp_path)
    assert saved(tmp_path)["model"]["head.scale"].item() != 10
    rates = [line["lr"] for line in lines(tmp_path) if "lr" in line]
    assert max(rates) == pytest.approx(0.2, rel=0.2)
    assert rates[-1] < 0.2 / 1000


def test_colours_are_learnt_and_only_base_classes_are_seen(tmp_path):
    recipe = Backbone(epochs=12, batch_size=6, schedule="one_cycle", lr=0.1)
    assert run(tmp_path, recipe)["base_top1"] == 100
    assert lines(tmp_path)[0]["classification"] > 1
    weight = saved(tmp_path, 36)["model"]["head.weight"]
    seen = problem().load("train", BASE)
    assert sorted(set(seen.labels.tolist())) == BASE
    assert weight.shape == (6, 32)


def test_a_run_that_goes_on_ends_as_one_that_was_never_stopped(trained, tmp_path):
    folder, _ = trained
    shutil.copy(folder / "checkpoint-00000004.pt", tmp_path)
    run(tmp_path)
    for part in ("model", "optimizer", "schedule"):
        one, other = saved(folder)[part], saved(tmp_path)[part]
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_finished_run_is_scored_again_and_not_trained(trained, tmp_path):
    folder, metrics = trained
    shutil.copytree(folder, tmp_path / "again")
    assert run(tmp_path / "again") == metrics


@pytest.mark.parametrize("aux", ["none", "sgm"])
def test_the_header_says_which_auxiliary_loss_there_is(tmp_path, capsys, aux):
    run(tmp_path / "run", Backbone(**vars(RECIPE) | {"aux": aux, "epochs": 1}))
    assert f"auxiliary loss: {aux}" in capsys.readouterr().out


def test_another_trunk_does_not_go_on(trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder, tmp_path / "again")
    other = Trunk(**vars(TRUNK) | {"mean": [0.4] * 3})
    with pytest.raises(CheckpointError, match=r"was written with trunk="):
        train_backbone(problem(), other, RECIPE, seed=3, folder=tmp_path / "again")
    checkpoint.unlock(tmp_path / "again")


def test_a_loss_that_is_not_finite_names_its_images(tmp_path):
    with pytest.raises(Diverged, match=r"classification loss .* step 2 .*train/\d+\.png"):
        run(tmp_path, Backbone(epochs=9, batch_size=8, lr=1e30, weight_decay=0))


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"aux": "entropy"}, "backbone.aux"),
        ({"schedule": "poly"}, "backbone.schedule"),
        ({"lr": 0.0}, "backbone.lr"),
        ({"momentum": 1.0}, "backbone.momentum"),
        ({"momentum": 0.0, "nesterov": True}, "backbone.nesterov"),
    ],
)
def test_options_without_a_meaning_are_refused(recipe, said):
    with pytest.raises(ValueError, match=said):
        Backbone(**recipe)


def test_a_batch_that_cannot_be_cut_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match=r"batch_size=8 is no multiple of backbone\.per_gpu=3"):
        run(tmp_path, Backbone(batch_size=8, per_gpu=3))


def test_gradient_losses_are_of_a_linear_head(tmp_path):
    cosine = Trunk(**vars(TRUNK) | {"head": "cosine"})
    with pytest.raises(ValueError, match=r"backbone\.aux=sgm is of a linear head"):
        train_backbone(problem(), cosine, Backbone(aux="sgm"), seed=0, folder=tmp_path)


# Weights and features of a run


def test_a_runs_folder_gives_its_trunk_and_fits_another_head(trained):
    folder, _ = trained
    network = restore(folder)
    assert not network.training
    assert network.options == TRUNK
    torch.testing.assert_close(dict(network.state_dict()), saved(folder)["model"])
    other = build_trunk(TRUNK, 9)
    assert initialise(other, str(folder)).kept == ["head.weight"]
    torch.testing.assert_close(other.body.state_dict(), network.body.state_dict())


def test_a_runs_weights_want_its_pixels(trained):
    other = build_trunk(Trunk("small", channels=8), 6)
    with pytest.raises(ValueError, match=r"trunk\.mean=\[0\.5, 0\.5, 0\.5\]"):
        initialise(other, str(trained[0]))


def features_of(network: nn.Module, pixels: np.ndarray) -> Tensor:
    with torch.no_grad():
        return network.features(torch.from_numpy(pixels))


def test_a_feature_folder_has_a_row_for_each_base_and_novel_image(trained, tmp_path):
    network = restore(trained[0])
    extract(network, problem(), tmp_path / "features", run=trained[0], batch_size=7)
    train, test, content = read_folder(tmp_path / "features")
    chosen = [0, 1, 2, 4, 5]
    for found, there in ((train, problem().source.train), (test, problem().source.test)):
        assert (found.labels == there.only(chosen).labels).all()
        wanted = features_of(network, there.only(chosen).pixels)
        torch.testing.assert_close(torch.from_numpy(np.array(found.values)), wanted)
    assert content["notes"] == ["A note."]
    assert content["novel_2"] == [4]
    assert View(**content["trunk"]["view"]) == problem().view
    assert content["trunk"]["source"] == "toy"
    assert train.views is None
    again = reopen(content["trunk"])
    torch.testing.assert_close(again.state_dict(), network.state_dict())


def test_features_of_random_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"random weights: set trunk\.weights="):
        extract(build_trunk(TRUNK, 6), problem(), tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_features_that_are_not_finite_name_their_image_and_leave_no_folder(trained, tmp_path):
    network = restore(trained[0])
    network.options.mean = [float("nan")] * 3
    with pytest.raises(ValueError, match=r"features of train/0\.png are not finite"):
        extract(network, problem(), tmp_path / "features", run=trained[0])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_stops_before_any_feature_is_made(trained, tmp_path):
    path = tmp_path / "sparse.npy"
    make_array(path, "f4", (2000, 64))
    assert os.stat(path).st_blocks * 512 >= 2000 * 64 * 4  # no hole to be filled later
    path.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"written \(File too large\): free space"):
            extract(restore(trained[0]), problem(), tmp_path / "features", run=trained[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_negative_features_are_told(trained, tmp_path):
    network = restore(trained[0])
    network.options = Trunk(**vars(TRUNK) | {"head": "cosine", "relu": False})
    extract(network, problem(), tmp_path / "features", run=trained[0])
    content = read_folder(tmp_path / "features")[2]
    assert "its last layer is a ReLU" in content["notes"][-1]
    assert not reopen(content["trunk"]).options.relu


# Two processes


def work(folder: str) -> None:
    """What each of two processes does."""
    metrics = run(Path(folder) / "two")
    extract(restore(Path(folder) / "one"), problem(), Path(folder) / "features", run="x", views=3)
    if dist.is_main():
        (Path(folder) / "metrics.json").write_text(json.dumps(metrics))


def test_two_processes_train_and_write_what_one_does(trained, commands, tmp_path):
    shutil.copytree(trained[0], tmp_path / "one")
    done = commands.run("", str(tmp_path), script=str(Path(__file__)), forking=True)
    assert done.returncode == 0, done.stderr
    one, two = saved(trained[0])["model"], saved(tmp_path / "two")["model"]
    assert len(one) == len(two)
    for name, value in one.items():  # each process has running statistics of its own
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6)
    network = restore(trained[0])
    train, test, _ = read_folder(tmp_path / "features")
    for found, there in ((train, problem().source.train), (test, problem().source.test)):
        own = there.only([0, 1, 2, 4, 5])
        assert (found.labels == own.labels).all()
        wanted = features_of(network, own.pixels)
        torch.testing.assert_close(torch.from_numpy(np.array(found.values)), wanted)
    extract(network, problem(), tmp_path / "alone", run="x", views=3, batch_size=7)
    alone = read_folder(tmp_path / "alone")[0].views
    np.testing.assert_allclose(train.views, alone, rtol=1e-5, atol=1e-6)
    assert set(json.loads((tmp_path / "metrics.json").read_text())) == {"base_top1", "base_top5"}


if __name__ == "__main__":
    dist.launch(work, sys.argv[1], 2)
