"""`train.py` passes every option on: three of its steps are those of a loop written out by hand.

Run as a script, this file is one of two processes that train, see `trained_by_two`.
"""

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common import dist
from common.data import seed_everything
from common.errors import sentence
from common.run.log import Diverged
from hashtag_pretrain import config, data, train
from hashtag_pretrain.config import Config, Loss, Sampling
from hashtag_pretrain.evaluate import columns
from hashtag_pretrain.model import build_model
from tests.hashtag_pretrain.runs import NAMES, lines, run, saved, settings, shards, write_root

CPU = torch.device("cpu")
WAYS = ("ddp", "zero1", "fsdp")
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = write_root(tmp_path_factory.mktemp("root"))
    (folder / "exclude.txt").write_text("000003\n000012\n")
    return folder


def unscored(_: nn.Module, cfg: Config, __: data.Hashtags) -> dict[str, float]:
    """In the place of an evaluation."""
    return dict.fromkeys(columns(cfg), 1.0)


@pytest.fixture
def _not_evaluated(monkeypatch):
    monkeypatch.setattr(train, "evaluate", unscored)


def options(root: Path, folder: Path, **changed: Any) -> Config:
    """Every option that the loop by hand reads, away from its default."""
    plain = {
        "momentum": 0.8,
        "weight_decay": 0.01,
        "warmup_images": 16,
        "warmup_most": 0.7,
        "drops": 2,
        "gamma": 0.1,
        "data": shards(root, share=0.9, noise=0.3, noise_seed=2, exclude="exclude.txt"),
        "sampling": Sampling("uniform", length=1.5, most=20.0),
    }
    return settings(root, folder, **plain | changed)


def loss_by_hand(logits: Tensor, tags: Tensor, loss: Loss) -> Tensor:
    rows = [row[row >= 0] for row in tags]
    if loss.kind == "softmax":
        losses = [-z.log_softmax(0)[own].mean() for z, own in zip(logits, rows, strict=True)]
        return torch.stack(losses).mean()
    truth = torch.zeros_like(logits)
    for row, own in zip(truth, rows, strict=True):
        row[own] = 1
    found = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (found.sum(1) if loss.over == "sum" else found.mean(1)).mean()


@dataclass
class ByHand:
    """What the loop ends with: weights, their average over time, losses, rates."""

    model: State
    average: State
    losses: list[float]
    rates: list[float]


def starts(cfg: Config, found: data.Hashtags, ranks: int) -> list[nn.Module]:
    models = []
    for _ in range(ranks):
        seed_everything(cfg.seed)
        models.append(build_model(cfg.network, len(NAMES)).train())
        if cfg.loss.prior_bias:
            f = torch.from_numpy(found.tagged.counts / found.tagged.images).float()
            models[-1].fc.bias.data = (f / (1 - f)).log()
    return models


def mean_buffers(states: list[State]) -> State:
    """Weights, which are the same, and the mean of the running statistics of all ranks."""
    names = [name for name in states[0] if not name.endswith("num_batches_tracked")]
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in names}


def train_by_hand(cfg: Config, ranks: int = 1) -> ByHand:
    """Three steps in plain torch; each rank has half of the pieces and norms of its own."""
    found = data.build(cfg)
    steps = [[p.to(CPU) for p in pieces] for pieces in data.batches(found, cfg, 0, 3)]
    models = starts(cfg, found, ranks)
    norms = [name for name, m in models[0].named_modules() if isinstance(m, _BatchNorm)]
    velocity: State = {}
    averages: list[State] = []
    losses = []
    rates = [0.05 * factor for factor in (0.2, 0.6 * 0.1, 0.01)]  # 1.6 / 256 * 8; 0.01 at first
    for pieces, rate in zip(steps, rates, strict=True):
        assert len(pieces) == 2
        gradients: State = {}
        total = []
        for number, (images, tags) in enumerate(pieces):
            model = models[number * ranks // len(pieces)]
            loss = loss_by_hand(model((images.float() / 255 - 0.5) / 0.25), tags, cfg.loss)
            total.append(loss.item())
            found_gradients = torch.autograd.grad(loss / len(pieces), list(model.parameters()))
            for (name, _), gradient in zip(model.named_parameters(), found_gradients, strict=True):
                gradients[name] = gradients.get(name, torch.zeros(())) + gradient
        losses.append(sum(total[: len(pieces) // ranks]) / (len(pieces) // ranks))  # of rank 0
        for name, gradient in gradients.items():
            norm = name.rpartition(".")[0] in norms
            value = dict(models[0].named_parameters())[name]
            slope = gradient + (0.01 if cfg.decay_norm or not norm else 0.0) * value.detach()
            velocity[name] = 0.8 * velocity.get(name, torch.zeros(())) + slope
            for model in models:
                own = dict(model.named_parameters())[name]
                own.data -= rate * (slope + 0.8 * velocity[name])  # Nesterov
        states = [{n: v.detach().clone() for n, v in m.state_dict().items()} for m in models]
        if averages:
            states = [
                {n: 0.7 * old[n] + 0.3 * v for n, v in state.items()}
                for old, state in zip(averages, states, strict=True)
            ]
        averages = states
    return ByHand(
        mean_buffers([m.state_dict() for m in models]), mean_buffers(averages), losses, rates
    )


CASES = [
    (Loss("softmax"), False),
    (Loss("sigmoid", over="sum", prior_bias=True), True),
    (Loss("sigmoid"), True),
]


def require_same(parts: dict[str, Any], hand: ByHand) -> None:
    """Weights and averages of a checkpoint are those of the loop by hand."""
    state = {n: v for n, v in parts["model"].items() if not n.endswith("num_batches_tracked")}
    torch.testing.assert_close(state, hand.model, rtol=1e-5, atol=1e-6)
    if "average" in parts:
        averages = {f"module.{name}": value for name, value in hand.average.items()}
        found = {name: parts["average"][name] for name in averages}
        torch.testing.assert_close(found, averages, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_not_evaluated")
@pytest.mark.parametrize(("loss", "decay_norm"), CASES, ids=lambda each: str(each))
def test_three_steps_with_every_option_are_those_of_a_loop_by_hand(
    root, tmp_path, loss, decay_norm
):
    cfg = options(root, tmp_path, loss=loss, decay_norm=decay_norm, ema=0.7)
    hand = train_by_hand(cfg)
    run(cfg)
    assert saved(cfg).keys() >= {"average", "schedule", "vocabulary", "data", "options"}
    require_same(saved(cfg), hand)
    logged = [row for row in lines(tmp_path) if "lr" in row]
    assert [row["lr"] for row in logged] == pytest.approx(hand.rates)
    assert [row["loss"] for row in logged] == pytest.approx(hand.losses, rel=1e-5)


@pytest.mark.usefixtures("_not_evaluated")
def test_half_precision_is_autocasts(root, tmp_path):
    cfg = replace(options(root, tmp_path), amp=True, images=8)
    found = data.build(cfg)
    (model,), (pieces,) = starts(cfg, found, 1), data.batches(found, cfg, 0, 1)
    expected = 0.0
    for images, tags in (piece.to(CPU) for piece in pieces):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model((images.float() / 255 - 0.5) / 0.25)
        assert logits.dtype == torch.bfloat16
        expected += loss_by_hand(logits.float(), tags, cfg.loss).item() / 2
    run(cfg)
    assert lines(tmp_path)[0]["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("_not_evaluated")
def test_a_network_that_recomputes_and_one_without_zero_gammas_are_the_options(root, tmp_path):
    cfg = options(root, tmp_path / "plain")
    recomputing = replace(cfg, network=replace(cfg.network, checkpoint=True))
    recomputing = replace(recomputing, output_dir=str(tmp_path / "recomputing"))
    run(cfg)
    run(recomputing)
    states = [saved(each)["model"] for each in (cfg, recomputing)]
    trained = {n: v for n, v in states[0].items() if "running" not in n and "tracked" not in n}
    again = {name: states[1][name] for name in trained}
    torch.testing.assert_close(again, trained, rtol=1e-5, atol=1e-6)
    model = train.build(
        replace(cfg, network=replace(cfg.network, zero_gamma=False)), data.build(cfg)
    )
    assert model.state_dict()["layer1.0.bn2.weight"].min() == 1


@pytest.mark.slow
@pytest.mark.usefixtures("_not_evaluated")
@pytest.mark.parametrize("way", ["amp", "compile", "checkpoint"])
def test_twenty_steps_have_the_losses_of_plain_float32(root, tmp_path, way):
    losses = {}
    for name in ("plain", way):
        cfg = settings(root, tmp_path / name, images=160, lr=0.8, amp=name == "amp")
        if name in ("compile", "checkpoint"):
            network = replace(cfg.network, compile=name == "compile")
            cfg = replace(cfg, network=replace(network, checkpoint=name == "checkpoint"))
        run(cfg)
        losses[name] = [row["loss"] for row in lines(tmp_path / name) if "lr" in row]
    assert len(losses["plain"]) == 20
    assert losses[way] == pytest.approx(losses["plain"], rel=0.03 if way == "amp" else 1e-3)
    assert way != "amp" or losses[way] != losses["plain"]


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory) -> tuple[Config, dict[str, float]]:
    """Six steps without a stop."""
    cfg = options(root, tmp_path_factory.mktemp("whole"), images=48, save_every=2, ema=0.7)
    return cfg, run(cfg)


def require_equal(one: Config, other: Config) -> None:
    """All that is saved of two runs is the same to the bit."""
    before, after = saved(one), saved(other)
    for name in ("model", "average", "optimizer", "schedule"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_resumed_in_the_middle_equals_never_stopping(whole, tmp_path, workers):
    cfg, metrics = whole
    shutil.copy(Path(cfg.output_dir, "checkpoint-00000004.pt"), tmp_path)
    again = replace(cfg, output_dir=str(tmp_path), data=replace(cfg.data, workers=workers))
    assert run(again) == metrics
    assert [row["step"] for row in lines(tmp_path) if "lr" in row] == [5, 6]
    require_equal(cfg, again)


def test_a_stop_on_request_saves_and_goes_on_as_if_never_stopped(whole, tmp_path, monkeypatch):
    cfg, metrics = whole
    again = replace(cfg, output_dir=str(tmp_path), save_every=100)
    answers: Iterator[bool] = iter([False, False, True])
    with monkeypatch.context() as patch:
        patch.setattr("common.dist.stop_requested", lambda: next(answers))
        with pytest.raises(SystemExit) as stop:
            run(again)
    assert stop.value.code == 75
    assert (tmp_path / "checkpoint-00000003.pt").is_file()
    assert run(again) == metrics
    require_equal(cfg, again)


def command(root: Path, folder: Path, **changed: Any) -> list[str]:
    """The words that give the settings of `whole`."""
    values = {
        "seed": 3,
        "images": 48,
        "batch_size": 8,
        "per_gpu": 4,
        "lr": 1.6,
        "warmup_lr": 0.01,
        "warmup_images": 16,
        "warmup_most": 0.7,
        "drops": 2,
        "gamma": 0.1,
        "momentum": 0.8,
        "weight_decay": 0.01,
        "ema": 0.7,
        "log_every": 1,
        "save_every": 2,
        "data": "shards",
        "data.root": root,
        "data.held_out": 0.2,
        "data.workers": 0,
        "data.window": 2,
        "data.share": 0.9,
        "data.noise": 0.3,
        "data.noise_seed": 2,
        "data.exclude": "exclude.txt",
        "sampling": "{rule: uniform, length: 1.5, most: 20.0}",
        "augment": "{size: 16, resize: 16, crop: shift}",
        "network": "{name: small, width: 8, memory_format: contiguous, "
        "mean: [0.5,0.5,0.5], std: [0.25,0.25,0.25]}",
        "test": "{batch_size: 4, drawn: 2}",
        "hydra.run.dir": folder,
    }
    return ["experiment=paper", *(f"{name}={value}" for name, value in (values | changed).items())]


@pytest.mark.parametrize("workers", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_a_run_killed_at_a_random_batch_ends_as_never_stopped(
    whole, root, commands, tmp_path, workers
):
    """Killed with so many workers, it is resumed without any."""
    cfg, metrics = whole
    words = command(root, tmp_path, **{"data.workers": workers, "save_every": 1})
    killed = commands.start("hashtag_pretrain", *words, forking=True)
    killed.until(random.Random(workers).randint(2, 5))
    killed.kill()
    again = replace(cfg, output_dir=str(tmp_path), save_every=1)
    assert run(again) == metrics
    require_equal(cfg, again)


@pytest.mark.slow
def test_two_processes_killed_at_a_random_batch_end_as_never_stopped(root, commands, tmp_path):
    for name in ("whole", "killed"):
        ranks = commands.start_ranks("hashtag_pretrain", *command(root, tmp_path / name))
        if name == "killed":
            ranks[0].until(random.Random(7).randint(2, 5))
            for rank in ranks:  # before one sees the end of the other
                os.kill(rank.pid, signal.SIGKILL)
            ended = [rank.wait() for rank in ranks]
            assert ended[0] == -signal.SIGKILL
            ranks = commands.start_ranks("hashtag_pretrain", *command(root, tmp_path / name))
        assert [rank.wait() for rank in ranks] == [0, 0]
    cfg = options(root, tmp_path / "whole", images=48)
    require_equal(cfg, replace(cfg, output_dir=str(tmp_path / "killed")))


# Two processes


def jobs(root: Path, folder: Path) -> dict[str, Config]:
    """What two processes train, by name."""
    # Four batches for one of them, three for the other
    test = config.Test(images=7, batch_size=1, drawn=2)
    found = {way: options(root, folder / way, parallel=way, test=test) for way in WAYS}
    found["zero1"] = replace(found["zero1"], ema=0.7)
    for name in ("six", "zero1-fsdp"):
        found[name] = options(root, folder / name, parallel="fsdp", images=48, save_every=2)
    fast = options(root, folder / "fast", parallel="fsdp", compress=True)
    found["fast"] = replace(fast, network=replace(fast.network, memory_format="channels_last"))
    found["scores"] = options(
        root, folder / "scores", only_evaluate=True, init=str(folder / "alone")
    )
    return found


def work(cfg: Config) -> None:
    """All jobs of one of the processes, one after the other."""
    root, folder = Path(cfg.data.root), Path(cfg.output_dir)
    evaluate = train.evaluate
    for name, each in jobs(root, folder).items():
        one, _, two = name.partition("-")
        # The others are not scored, for speed
        train.evaluate = evaluate if name in ("ddp", "fsdp", "scores") else unscored
        if two:  # the first four steps in one way, the others in another
            train.run(replace(each, parallel=one))
            if dist.is_main():
                (folder / name / "checkpoint-00000006.pt").unlink()
            dist.gather(None)
        train.run(each)


@pytest.fixture(scope="module")
def trained_by_two(root, commands, tmp_path_factory) -> tuple[Path, dict[str, Config]]:
    """The folder of all `jobs`, done by two processes; `alone` is of one."""
    folder = tmp_path_factory.mktemp("two")
    run(options(root, folder / "alone"))
    # From the repository, where `tests` is found.
    done = commands.run("", str(root), str(folder), script=str(Path(__file__)), forking=True)
    assert done.returncode == 0, done.stderr
    return folder, jobs(root, folder)


@pytest.mark.parametrize("name", WAYS)
def test_two_processes_take_the_steps_of_the_loop_by_hand(trained_by_two, name):
    """The mean of the gradients; norms of their own, whose running statistics are averaged.

    Beside zero1 an average of the weights over time.
    """
    cfg = trained_by_two[1][name]
    hand = train_by_hand(cfg, ranks=2)
    require_same(saved(cfg), hand)
    logged = [row["loss"] for row in lines(cfg.output_dir) if "loss" in row]
    assert logged == pytest.approx(hand.losses, rel=1e-5)


def weights_of(cfg: Config) -> State:
    return {n: v for n, v in saved(cfg)["model"].items() if "running" not in n and "num_" not in n}


def test_two_processes_have_the_weights_of_one(trained_by_two):
    folder, made = trained_by_two
    one = weights_of(replace(made["ddp"], output_dir=str(folder / "alone")))
    for way in WAYS:
        torch.testing.assert_close(weights_of(made[way]), one, rtol=1e-5, atol=1e-6)


def test_fsdp_trains_with_gradients_in_bfloat16_whatever_memory_format_is_asked_for(trained_by_two):
    _, made = trained_by_two
    one, other = weights_of(made["fsdp"]), weights_of(made["fast"])
    off = max((other[name] - value).abs().max().item() for name, value in one.items())
    assert 1e-6 < off < 2e-3


def test_a_run_goes_on_in_another_way_to_share_it_out(trained_by_two):
    """From one to the other; tests/hashtag_pretrain/test_parallel.py has all pairs."""
    _, made = trained_by_two
    steps = [row["step"] for row in lines(made["zero1-fsdp"].output_dir) if "lr" in row]
    assert steps == [1, 2, 3, 4, 5, 6]
    one, two = saved(made["six"]), saved(made["zero1-fsdp"])
    for part in ("model", "optimizer", "schedule"):
        torch.testing.assert_close(two[part], one[part], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_not_evaluated")
def test_a_run_of_two_processes_goes_on_in_one(trained_by_two, tmp_path):
    _, made = trained_by_two
    shutil.copy(Path(made["six"].output_dir, "checkpoint-00000004.pt"), tmp_path)
    again = replace(made["six"], output_dir=str(tmp_path), parallel="ddp")
    run(again)
    assert [row["step"] for row in lines(tmp_path) if "lr" in row] == [5, 6]
    torch.testing.assert_close(weights_of(again), weights_of(made["six"]), rtol=1e-5, atol=1e-6)


def metrics_of(folder: Path | str) -> dict[str, float]:
    return json.loads(Path(folder, "result.json").read_text())["metrics"]


def test_two_processes_give_the_scores_of_one(trained_by_two):
    folder, made = trained_by_two
    assert metrics_of(folder / "scores") == pytest.approx(metrics_of(folder / "alone"))
    tables = [(folder / name / "tags.csv").read_text() for name in ("alone", "scores")]
    assert tables[0] == tables[1]
    scores = [metrics_of(made[way].output_dir) for way in ("ddp", "fsdp")]
    assert scores[0] == scores[1]
    assert 0 < scores[0]["hit5"] <= 100
    assert (folder / "fsdp" / "predictions.png").exists()


@pytest.mark.usefixtures("_not_evaluated")
def test_a_loss_that_is_not_finite_stops_and_names_step_and_images(root, tmp_path):
    cfg = options(root, tmp_path, lr=1e30)
    with pytest.raises(Diverged, match=r"loss is not finite in step [23] .*\.tar: \d{6}"):
        run(cfg)
    assert '"diverged": {' in (tmp_path / "result.json").read_text()


def test_a_target_that_is_missing_is_one_sentence_before_step_1(root, tmp_path):
    target = config.TargetData("folder", "/no/such/folder")
    with pytest.raises(ValueError, match=r"target\.root=/no/such/folder is not") as error:
        run(settings(root, tmp_path / "run", target=target, protocols=["probe"]))
    assert sentence(error.value) == str(error.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_batch_that_cannot_be_shared_out_stops_before_any_data_is_read(tmp_path):
    cfg = settings(tmp_path / "none", tmp_path / "run", per_gpu=3)
    with pytest.raises(ValueError, match=r"batch_size=8 .* give per_gpu=1 or batch_size=9"):
        run(cfg)


if __name__ == "__main__":
    place = options(Path(sys.argv[1]), Path(sys.argv[2]))
    dist.launch(work, place, 2)
