"""`train.py` passes every option on: three of its steps are those of a loop written out by hand.

Run as a script, this file is one of two processes that train, see `trained_by_two`.
"""

import json
import math
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common import dist
from common.data import seed_everything, seed_of
from common.errors import UserError
from common.run.log import Diverged
from lowshot_hallucination import data, train
from lowshot_hallucination.config import Config
from lowshot_hallucination.evaluate import columns
from lowshot_hallucination.features.episodes import Episodes, Sampler
from lowshot_hallucination.hallucinate import Hallucination, build_generator
from lowshot_hallucination.model import Learner, build_learner
from tests.lowshot_hallucination.small import WIDTH, lines, run, saved, settings, write_root

State = dict[str, Tensor]
SCORED = ("two", "logistic")  # of the jobs of two processes
LIMIT = 0.5  # some gradients are larger, others are not


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_root(tmp_path_factory.mktemp("root") / "features")


def unscored(_: Any, __: Any, cfg: Config, ___: Any) -> dict[str, float]:
    """In the place of an evaluation."""
    return dict.fromkeys(columns(cfg), 1.0)


@pytest.fixture
def _not_evaluated(monkeypatch):
    monkeypatch.setattr(train, "evaluate", unscored)


def options(root: Path | str, folder: Path | str, **changed: Any) -> Config:
    """Every option that the loop by hand reads, away from its default."""
    plain = {
        "weight_decay": 0.1,
        "clip_norm": LIMIT,
        "episodes": Episodes(classes=7, shots=[1, 2, 5], queries=2, per_step=2),
        "hallucination": Hallucination(n_aug=4, layers=2, noise=3, init="identity_noise"),
        "learner": Learner(embed_hidden=6, final_relu=True, scale=3.0, shrink="0.7"),
    }
    return settings(root, folder, **plain | changed)


def by_name(learner: torch.nn.Module, generate: torch.nn.Module) -> State:
    """Parameters of both, copied, by dotted name."""
    both = {"learner": learner, "generator": generate}
    return {
        f"{part}.{name}": value.detach().clone().requires_grad_()
        for part, module in both.items()
        for name, value in module.named_parameters()
    }


def linear(w: State, name: str, x: Tensor) -> Tensor:
    return (x @ w[f"{name}.weight"].T + w[f"{name}.bias"]).clamp(min=0)


def fill(w: State, features: Tensor, counts: list[int], n_aug: int) -> list[Tensor]:
    """The examples of each class, real and imagined; random numbers in the order that is said."""
    missing = [max(0, n_aug - n) for n in counts]
    picks = torch.rand(sum(missing), dtype=torch.float64).split(missing)
    noise = torch.randn(sum(missing), 3).split(missing)
    filled = []
    for rows, n, u, z in zip(features, counts, picks, noise, strict=True):
        x = torch.cat([rows[(u * n).long()], z], 1)
        imagined = linear(
            w, "generator.network.layers.1", linear(w, "generator.network.layers.0", x)
        )
        filled.append(torch.cat([rows[:n], imagined]))
    return filled


def episode_loss(w: State, sampler: Sampler, seed: int) -> Tensor:
    """A prototypical network with prototypes seven tenths as far from their mean."""
    support, queries, labels = sampler.draw(seed)
    seed_everything(seed)
    filled = fill(w, support.features, support.counts.tolist(), 4)

    def embed(x: Tensor) -> Tensor:
        return linear(w, "learner.embed.layers.2", linear(w, "learner.embed.layers.0", x))

    means = torch.stack([embed(rows).mean(0) for rows in filled])
    means = means.mean(0) + 0.7 * (means - means.mean(0))
    distances = (embed(queries)[:, None] - means).square().sum(2)
    log_p = (-w["learner.scale"] * distances).log_softmax(1)
    return -log_p.gather(1, labels[:, None]).mean()


def train_by_hand(cfg: Config) -> tuple[State, list[float], list[bool]]:
    """Three steps of Adam in plain torch: weights, losses, and which gradients were clipped."""
    lowshot = data.build(cfg)
    seed_everything(cfg.seed)
    learner = build_learner(cfg.learner, WIDTH)
    w = by_name(learner, build_generator(cfg.hallucination, WIDTH))
    sampler = Sampler(
        lowshot.train.values, lowshot.train.labels, lowshot.split.base, cfg.episodes, "cpu"
    )
    first = {name: torch.zeros_like(value) for name, value in w.items()}
    second = {name: torch.zeros_like(value) for name, value in w.items()}
    losses, clipped = [], []
    for step, rate in enumerate((0.02, 0.015, 0.005), 1):
        loss = sum(episode_loss(w, sampler, seed_of(3, step, k)) / 2 for k in range(2))
        losses.append(loss.item())
        found = dict(zip(w, torch.autograd.grad(loss, list(w.values())), strict=True))
        norm = float(sum(g.square().sum() for g in found.values()) ** 0.5)
        clipped.append(norm > LIMIT)
        for name, gradient in found.items():
            slope = gradient * min(1.0, LIMIT / (norm + 1e-6))
            slope = slope + (0.1 if w[name].ndim else 0.0) * w[name].detach()
            first[name] = 0.9 * first[name] + 0.1 * slope
            second[name] = 0.999 * second[name] + 0.001 * slope**2
            down = (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
            w[name].data -= rate * first[name] / (1 - 0.9**step) / down
    return w, losses, clipped


def trained(cfg: Config) -> State:
    """The parameters that a run has ended with."""
    parts = saved(cfg)
    names = ("learner", "generator")
    return {f"{part}.{name}": value for part in names for name, value in parts[part].items()}


@pytest.mark.usefixtures("_not_evaluated")
def test_three_steps_with_every_option_are_those_of_a_loop_by_hand(root, tmp_path):
    cfg = options(root, tmp_path)
    hand, losses, clipped = train_by_hand(cfg)
    assert set(clipped) == {False, True}
    run(cfg)
    found = trained(cfg)
    assert set(found) == {*hand, "learner.centre", "learner.centre_rows"}
    for name, value in hand.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-4, atol=1e-5)
    logged = [row for row in lines(tmp_path) if "lr" in row]
    assert [row["lr"] for row in logged] == pytest.approx([0.02, 0.015, 0.005])
    assert [row["loss"] for row in logged] == pytest.approx(losses, rel=1e-5)


@pytest.mark.usefixtures("_not_evaluated")
def test_one_number_of_shots_for_an_episode_is_passed_on(root, tmp_path):
    episodes = Episodes(classes=7, shots=[1, 2, 5], queries=2, per_step=2, mixed=False)
    cfg = options(root, tmp_path, episodes=episodes)
    _, losses, _ = train_by_hand(cfg)
    run(cfg)
    logged = [row["loss"] for row in lines(tmp_path) if "lr" in row]
    assert logged == pytest.approx(losses, rel=1e-5)


@pytest.mark.usefixtures("_not_evaluated")
def test_the_centre_is_that_of_the_base_classes_under_the_last_weights(root, tmp_path):
    cfg = options(root, tmp_path)
    run(cfg)
    w, lowshot = trained(cfg), data.build(cfg)
    rows = torch.from_numpy(lowshot.train.values[lowshot.train.rows_of(lowshot.split.base)])
    embedded = linear(w, "learner.embed.layers.2", linear(w, "learner.embed.layers.0", rows))
    torch.testing.assert_close(w["learner.centre"], embedded.mean(0))
    assert w["learner.centre_rows"] == 120


METHODS = [
    Learner(),
    Learner(method="mn", hops=2),
    Learner(method="pmn", hops=2, shrink="0.5"),
    Learner(embed="none", distance="centred_cosine"),
    Learner(embed="none", shrink="0.5"),
]


@pytest.mark.parametrize("learner", METHODS, ids=lambda each: f"{each.method} {each.distance}")
def test_each_learner_trains_together_with_g_and_is_tested(root, tmp_path, learner):
    cfg = settings(root, tmp_path, learner=learner, steps=2)
    metrics = run(cfg)
    assert set(columns(cfg)) <= metrics.keys()
    assert 0 < metrics["novel_1"] <= 100
    seed_everything(3)
    start = build_learner(learner, WIDTH)
    copies = by_name(start, build_generator(cfg.hallucination, WIDTH))
    found = trained(cfg)
    still = [name for name, value in copies.items() if torch.equal(value, found[name])]
    assert not still


@pytest.mark.parametrize("kind", ["none", "gaussian", "dropout", "weighted", "analogies"])
def test_each_other_generator_stays_as_it_is_while_the_learner_trains(root, tmp_path, kind):
    cfg = settings(root, tmp_path, hallucination=Hallucination(kind, n_aug=3), steps=2)
    metrics = run(cfg)
    assert ("shift_cosine" in metrics) == (kind != "none")
    generator = saved(cfg)["generator"]
    assert bool(generator) == (kind in ("gaussian", "analogies"))
    if kind == "gaussian":
        values, labels = train.base_rows(data.build(cfg), torch.device("cpu"))
        found = torch.stack([rows - rows.mean(0) for rows in values.reshape(-1, 10, WIDTH)])
        covariance = found.flatten(0, 1).T @ found.flatten(0, 1) / len(labels)
        spread = generator["spread"]
        torch.testing.assert_close(spread @ spread, covariance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "kind"), [("logistic", "analogies"), ("nearest", "gaussian"), ("nearest", "none")]
)
def test_a_classifier_or_a_mean_has_nothing_to_train_and_is_tested(root, tmp_path, method, kind):
    hallucination = Hallucination(kind, n_aug=3)
    cfg = settings(root, tmp_path, learner=Learner(method), hallucination=hallucination)
    assert run(cfg)["novel_1"] > 0
    assert not [row for row in lines(tmp_path) if "lr" in row]
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 0
    assert (tmp_path / "checkpoint-00000000.pt").exists()


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory) -> tuple[Config, dict[str, float]]:
    """Twenty steps without a stop."""
    cfg = options(root, tmp_path_factory.mktemp("whole"), steps=20, save_every=10)
    return cfg, run(cfg)


def require_equal(one: Config, other: Config) -> None:
    """All that is saved of two runs is the same to the bit."""
    before, after = saved(one), saved(other)
    for name in ("learner", "generator", "optimizer", "schedule"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)


def test_ten_steps_and_ten_more_equal_twenty(whole, tmp_path):
    cfg, metrics = whole
    shutil.copy(Path(cfg.output_dir, "checkpoint-00000010.pt"), tmp_path)
    again = replace(cfg, output_dir=str(tmp_path))
    assert run(again) == metrics
    assert [row["step"] for row in lines(tmp_path) if "lr" in row] == [*range(11, 21)]
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


def test_a_finished_run_started_again_only_evaluates(whole, tmp_path):
    cfg, metrics = whole
    folder = shutil.copytree(cfg.output_dir, tmp_path / "run")
    again = replace(cfg, output_dir=str(folder), log_every=7)
    assert run(again) == metrics
    require_equal(cfg, again)


def test_a_run_is_tested_alone_from_its_folder_or_checkpoint(whole, tmp_path):
    cfg, metrics = whole
    alone = replace(cfg, stage="test", init=cfg.output_dir, output_dir=str(tmp_path))
    assert run(alone) == metrics
    draws = [Path(folder, "draws.csv").read_text() for folder in (cfg.output_dir, tmp_path)]
    assert draws[0] == draws[1]
    named = replace(alone, init=f"{cfg.output_dir}/checkpoint-00000010.pt")
    _, generate = train.build_both(named, data.build(cfg), torch.device("cpu"))
    torch.testing.assert_close(dict(generate.state_dict()), saved(cfg, 10)["generator"])


def test_what_is_no_run_of_this_kind_is_refused_in_one_sentence(whole, tmp_path):
    cfg, _ = whole
    alone = replace(cfg, stage="test", init="x", output_dir=str(tmp_path / "run"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    for source, named in (("empty", "empty has no checkpoint"), ("bad.pt", r"bad\.pt")):
        with pytest.raises(ValueError, match=named):
            run(replace(alone, init=str(tmp_path / source)))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "plain.pt")
    with pytest.raises(ValueError, match=r"plain\.pt is no checkpoint of a run"):
        run(replace(alone, init=str(tmp_path / "plain.pt")))
    wide = Learner(embed_hidden=9, final_relu=True, scale=3.0, shrink="0.7")
    with pytest.raises(UserError, match=r"checkpoint-00000020\.pt, learner: these weights do not"):
        run(replace(alone, init=cfg.output_dir, learner=wide))


@pytest.mark.usefixtures("_not_evaluated")
def test_g_from_another_run_stays_frozen_to_the_bit(whole, root, tmp_path):
    cfg, _ = whole
    frozen = replace(cfg.hallucination, trained=cfg.output_dir)
    other = replace(cfg, seed=5, steps=3, hallucination=frozen, output_dir=str(tmp_path))
    run(other)
    theirs, ours = saved(cfg), saved(other)
    torch.testing.assert_close(ours["generator"], theirs["generator"], rtol=0, atol=0)
    assert not torch.equal(ours["learner"]["scale"], theirs["learner"]["scale"])
    never = replace(other, hallucination=replace(frozen, trained="never"))
    never = replace(never, output_dir=str(tmp_path / "never"))
    run(never)
    seed_everything(5)
    build_learner(cfg.learner, WIDTH)
    start = build_generator(never.hallucination, WIDTH).state_dict()
    torch.testing.assert_close(saved(never)["generator"], dict(start), rtol=0, atol=0)


@pytest.mark.usefixtures("_not_evaluated")
def test_a_loss_that_is_not_finite_stops_and_names_the_step(root, tmp_path):
    with pytest.raises(Diverged, match=r"loss is not finite in step [23]"):
        run(options(root, tmp_path, lr=1e30, clip_norm=0.0))
    assert '"diverged": {' in (tmp_path / "result.json").read_text()


def command(root: Path, folder: Path, **changed: Any) -> list[str]:
    """The words that give the settings of `whole`."""
    values = {
        "seed": 3,
        "features": root,
        "steps": 20,
        "lr": 0.02,
        "log_every": 1,
        "save_every": 10,
        "weight_decay": 0.1,
        "clip_norm": LIMIT,
        "episodes": "{classes: 7, shots: [1, 2, 5], queries: 2, per_step: 2}",
        "hallucination": "{n_aug: 4, layers: 2, noise: 3, init: identity_noise}",
        "learner": "{embed_hidden: 6, final_relu: true, scale: 3.0, shrink: '0.7'}",
        "logistic": "{iterations: 20, batch_size: 32}",
        "analogies": "{centroids: 3, iterations: 20, hidden: 8, classifier_iterations: 20}",
        "test": "{shots: [1, 2], draws: 2, base_support: 6}",
        "hydra.run.dir": folder,
    }
    return ["experiment=paper", *(f"{name}={value}" for name, value in (values | changed).items())]


@pytest.mark.slow
def test_a_run_killed_at_a_random_step_ends_as_never_stopped(whole, root, commands, tmp_path):
    cfg, metrics = whole
    words = command(root, tmp_path, save_every=1)
    killed = commands.start("lowshot_hallucination", *words)
    killed.until(random.Random(0).randint(3, 15))
    killed.kill()
    again = replace(cfg, output_dir=str(tmp_path), save_every=1)
    assert run(again) == metrics
    require_equal(cfg, again)


# Two processes


def jobs(root: Path, folder: Path) -> dict[str, Config]:
    """What two processes train, by name: the episodes of a step."""
    many = {"two": 2, "three": 3, "one": 1}
    found = {}
    for name, per_step in many.items():
        episodes = Episodes(classes=7, shots=[1, 2, 5], queries=2, per_step=per_step)
        found[name] = options(root, folder / name, episodes=episodes)
    found["logistic"] = settings(
        root, folder / "logistic", learner=Learner("logistic"), hallucination=Hallucination("none")
    )
    return found


def work(cfg: Config) -> None:
    """All jobs of one of the processes, one after the other."""
    evaluate = train.evaluate
    for name, each in jobs(Path(cfg.features), Path(cfg.output_dir)).items():
        train.evaluate = evaluate if name in SCORED else unscored
        train.run(each)


@pytest.fixture(scope="module")
def trained_by_two(root, commands, tmp_path_factory) -> dict[str, Config]:
    """All `jobs`, done by two processes."""
    folder = tmp_path_factory.mktemp("two")
    # From the repository, where `tests` is found.
    done = commands.run("", str(root), str(folder), script=str(Path(__file__)), forking=True)
    assert done.returncode == 0, done.stderr
    return jobs(root, folder)


@pytest.mark.usefixtures("_not_evaluated")
@pytest.mark.parametrize("name", ["two", "three", "one"])
def test_two_processes_take_the_steps_of_one(trained_by_two, tmp_path, name):
    """Of three episodes a process has two, of one none."""
    cfg = trained_by_two[name]
    alone = replace(cfg, output_dir=str(tmp_path))
    run(alone)
    one, two = trained(alone), trained(cfg)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-6)
    logged = [[row["loss"] for row in lines(f.output_dir) if "lr" in row] for f in (alone, cfg)]
    assert logged[1] == pytest.approx(logged[0], rel=1e-5)


@pytest.mark.parametrize("name", SCORED)
def test_two_processes_share_out_the_draws_and_score_as_one(trained_by_two, tmp_path, name):
    cfg = trained_by_two[name]
    source = {} if name == "logistic" else {"stage": "test", "init": cfg.output_dir}
    metrics = run(replace(cfg, output_dir=str(tmp_path), **source))
    found = json.loads(Path(cfg.output_dir, "result.json").read_text())["metrics"]
    assert found == pytest.approx(metrics, abs=1e-4)
    draws = [Path(folder, "draws.csv").read_text() for folder in (cfg.output_dir, tmp_path)]
    assert draws[0] == draws[1]


def test_the_rate_is_a_half_cosine():
    rates = [train.half_cosine(done, steps=4) for done in range(6)]
    expected = [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert rates == pytest.approx([*expected, 0, 0])


if __name__ == "__main__":
    place = options(Path(sys.argv[1]), Path(sys.argv[2]))
    dist.launch(work, place, 2)
