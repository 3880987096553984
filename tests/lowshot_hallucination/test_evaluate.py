"""The test of a learner: what is chosen on which classes, which draws, what is written of it."""

import csv
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from common.data import seed_of
from lowshot_hallucination import data
from lowshot_hallucination.config import Config
from lowshot_hallucination.evaluate import (
    SCORES,
    Choice,
    Outcome,
    Tester,
    choose,
    columns,
    evaluate,
    summarise,
)
from lowshot_hallucination.features.formats import Features
from lowshot_hallucination.features.problem import LowShot
from lowshot_hallucination.hallucinate import Hallucination, build_generator
from lowshot_hallucination.model import Learner, build_learner
from lowshot_hallucination.protocol.draws import Test
from lowshot_hallucination.protocol.metrics import accuracy
from lowshot_hallucination.protocol.prior import with_prior

from .small import OF_TEST, WIDTH, settings, write_root

TEST = Test(
    shots=[1, 3],
    draws=3,
    base_support=6,
    n_augs=[2, 5],
    shrinks=[1.0, 0.5, 0.1],
    priors=[0.0, 0.2, 0.5, 0.8],
)
NEAREST = Learner("nearest", shrink="cv")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_root(tmp_path_factory.mktemp("root") / "features")


def options(root: Path, folder: Path, **changed: Any) -> Config:
    plain = {"learner": NEAREST, "hallucination": Hallucination("dropout", rate=0.3), "test": TEST}
    return settings(root, folder, **plain | changed)


def build(cfg: Config) -> tuple[nn.Module, nn.Module, LowShot]:
    """A learner at random weights, which knows the mean of base features, and a generator."""
    lowshot = data.build(cfg)
    torch.manual_seed(0)
    learner = nn.Identity()
    if cfg.learner.method != "logistic":
        learner = build_learner(cfg.learner, WIDTH)
        rows = lowshot.train.rows_of(lowshot.split.base)
        learner.set_centre(torch.from_numpy(np.array(lowshot.train.values[rows])))
    return learner, build_generator(cfg.hallucination, WIDTH).eval(), lowshot


def rows_of(folder: Path, phase: str) -> list[dict[str, str]]:
    with (folder / "draws.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["phase"] == phase]


@pytest.fixture(scope="module")
def tested(root, tmp_path_factory) -> tuple[Config, dict[str, float]]:
    folder = tmp_path_factory.mktemp("tested")
    cfg = options(root, folder)
    return cfg, evaluate(*build(cfg)[:2], cfg, build(cfg)[2])


def change(features: Features, classes: np.ndarray) -> Features:
    """Other values in all rows of these classes."""
    values = np.array(features.values)
    mine = np.isin(features.labels, np.flatnonzero(classes))
    values[mine] = np.random.default_rng(5).exponential(2, (mine.sum(), WIDTH))
    return replace(features, values=values)


def test_what_is_chosen_never_looks_at_the_classes_of_the_test(tested, tmp_path):
    cfg, metrics = tested
    learner, generate, lowshot = build(cfg)
    other = replace(
        lowshot, train=change(lowshot.train, OF_TEST), test=change(lowshot.test, OF_TEST)
    )
    again = replace(cfg, output_dir=str(tmp_path))
    found = evaluate(learner, generate, again, other)
    chosen = [Path(c.output_dir, "chosen.json").read_text() for c in (cfg, again)]
    assert chosen[0] == chosen[1]
    assert rows_of(Path(cfg.output_dir), "cv") == rows_of(tmp_path, "cv")
    assert found["novel_1"] != metrics["novel_1"]
    # While other rows of the cross-validation's classes are looked at
    other = replace(lowshot, test=change(lowshot.test, ~OF_TEST))
    evaluate(learner, generate, again, other)
    assert rows_of(Path(cfg.output_dir), "cv") != rows_of(tmp_path, "cv")


def test_the_highest_novel_top_5_on_cv_is_chosen_of_every_pair(tested):
    cfg, _ = tested
    chosen = json.loads(Path(cfg.output_dir, "chosen.json").read_text())
    assert set(chosen) == {"1", "3"}
    for n, choice in chosen.items():
        means: dict[tuple[int, float], list[float]] = {}
        for row in rows_of(Path(cfg.output_dir), "cv"):
            if row["n"] == n:
                key = (int(row["n_aug"]), float(row["shrink"]))
                means.setdefault(key, []).append(float(row["novel5"]))
        assert set(means) == {(a, s) for a in (2, 5) for s in (1.0, 0.5, 0.1)}
        assert all(len(each) == 3 for each in means.values())
        best = max(statistics.fmean(each) for each in means.values())
        picked = means[choice["n_aug"], choice["shrink"]]
        assert statistics.fmean(picked) == pytest.approx(best, abs=1e-3)


def test_the_prior_is_the_best_of_the_cv_classes_by_brute_force(tested):
    cfg, _ = tested
    learner, generate, lowshot = build(cfg)
    tester = Tester(learner, generate, cfg, lowshot, "cv")
    chosen = json.loads(Path(cfg.output_dir, "chosen.json").read_text())
    for n in (1, 3):
        choice = Choice(**chosen[str(n)])
        means = []
        for mu in TEST.priors:
            found = []
            for draw in range(3):
                problem = tester.draws.problem(n, draw)
                p = with_prior(tester.logits(problem, n, draw, choice), problem.novel, mu)
                found.append(accuracy(p, problem.labels)[1])
            means.append(statistics.fmean(found))
        assert choice.mu == TEST.priors[int(np.argmax(means))]  # the first, smallest, of equal ones


def test_top_1_chooses_and_is_reported_where_test_top_is_1(root, tmp_path):
    cfg = options(root, tmp_path, test=replace(TEST, top=1))
    scores = {name: float(k) for k, name in enumerate(SCORES)} | {"base1": 20.0, "balanced1": 30.0}
    few, many = Choice(2), Choice(5)
    curve = {"all": [0.0, 2.0, 1.0, 0.0]}
    first = Outcome(1, 0, few, scores | {"novel5": 90.0, "novel1": 10.0}, curve)
    second = Outcome(1, 0, many, scores | {"novel5": 80.0, "novel1": 40.0}, curve)
    assert choose([first, second], cfg) == replace(many, mu=0.2)
    assert choose([first, second], replace(cfg, test=TEST)) == replace(few, mu=0.2)
    found = summarise([second], top=1)
    for name in ("novel", "all", "prior"):
        assert found[f"{name}_1"] == found[f"{name}_top1_1"]
    assert (found["novel_1"], found["base_1"], found["balanced_1"]) == (40, 20, 30)


def test_metrics_are_the_means_of_the_lines_in_draws_csv(tested):
    cfg, metrics = tested
    rows = rows_of(Path(cfg.output_dir), "test")
    chosen = json.loads(Path(cfg.output_dir, "chosen.json").read_text())
    assert [(row["n"], row["draw"]) for row in rows] == [(n, d) for n in "13" for d in "012"]
    names = {"novel5": "novel", "all5": "all", "prior5": "prior", "balanced5": "balanced"}
    names |= {"base5": "base", "novel1": "novel_top1", "all1": "all_top1", "prior1": "prior_top1"}
    for n in "13":
        mine = [row for row in rows if row["n"] == n]
        assert {float(row["mu"]) for row in mine} == {chosen[n]["mu"]}
        for column, name in names.items():
            mean = statistics.fmean(float(row[column]) for row in mine)
            assert metrics[f"{name}_{n}"] == pytest.approx(mean, abs=1e-3)
    assert set(columns(cfg)) == {"novel_1", "novel_3", "all_1", "all_3"}
    assert {f"{name}_{n}" for name in names.values() for n in "13"} | {"shift_cosine"} == {*metrics}


def test_an_evaluation_leaves_its_figures_and_repeats_to_the_last_digit(tested, tmp_path):
    cfg, metrics = tested
    assert {path.name for path in Path(cfg.output_dir).iterdir()} >= {
        "chosen.json", "draws.csv", "features.png", "prior.png"
    }  # fmt: skip
    torch.manual_seed(99)  # the state of the random numbers has no part in it
    learner, generate, lowshot = build(cfg)
    torch.rand(7)
    assert evaluate(learner, generate, replace(cfg, output_dir=str(tmp_path)), lowshot) == metrics


def test_nearest_means_by_hand(root, tmp_path):
    """Novel top-1 and all top-5 of each draw, in NumPy."""
    test = replace(TEST, shots=[3], n_augs=[])
    plain = {"learner": Learner("nearest"), "hallucination": Hallucination("none")}
    cfg = options(root, tmp_path, test=test, **plain)
    learner, generate, lowshot = build(cfg)
    metrics = evaluate(learner, generate, cfg, lowshot)
    tester = Tester(learner, generate, cfg, lowshot, "test")
    novel1, all5 = [], []
    ids = np.flatnonzero(OF_TEST)
    queries = lowshot.test.values[np.isin(lowshot.test.labels, ids)]
    labels = lowshot.test.labels[np.isin(lowshot.test.labels, ids)]
    for draw in range(3):
        rows = tester.draws.problem(3, draw).rows.numpy()
        assert [(row >= 0).sum() for row in rows] == [6, 3] * 6
        means = np.stack([lowshot.train.values[row[row >= 0]].mean(0) for row in rows])
        distances = ((queries[:, None] - means) ** 2).sum(2)
        ranked = ids[np.argsort(distances, 1)]
        all5.append((ranked[:, :5] == labels[:, None]).any(1).mean())
        of_novel = labels % 4 == 3
        nearest = ids[1::2][np.argmin(distances[of_novel][:, 1::2], 1)]
        novel1.append((nearest == labels[of_novel]).mean())
    assert metrics["novel_top1_3"] == pytest.approx(100 * np.mean(novel1))
    assert metrics["all_3"] == pytest.approx(100 * np.mean(all5))


def test_every_method_and_seed_is_tested_on_the_same_draws(root, tmp_path):
    cfgs = [
        options(root, tmp_path),
        options(root, tmp_path, seed=8, learner=Learner("logistic")),
        options(root, tmp_path, learner=Learner(), hallucination=Hallucination()),
    ]
    found = []
    for cfg in cfgs:
        draws = Tester(*build(cfg)[:2], cfg, build(cfg)[2], "test").draws
        found.append([draws.problem(n, draw).rows for n in (1, 3) for draw in range(3)])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))
    moved = replace(cfgs[0], problem=replace(cfgs[0].problem, seed=1))
    draws = Tester(*build(moved)[:2], moved, build(moved)[2], "test").draws
    assert not torch.equal(draws.problem(1, 0).rows, found[0][0])


def test_the_older_protocol_lets_all_classes_of_the_data_compete(root, tmp_path):
    test = replace(TEST, shots=[3], protocol="hg", n_augs=[])
    plain = {"learner": Learner("logistic"), "hallucination": Hallucination("none")}
    cfg = options(root, tmp_path, test=test, **plain)
    learner, generate, lowshot = build(cfg)
    tester = Tester(learner, generate, cfg, lowshot, "test")
    problem, choice = tester.draws.problem(3, 0), Choice(0, mu=0.5)
    logits = tester.logits(problem, 3, 0, choice)
    assert logits.shape == (len(problem.labels), 24)
    labels = problem.class_ids[problem.labels]
    hits = (logits.topk(5).indices == labels[:, None]).any(1)
    scores = tester.test(problem, 3, 0, choice).scores
    novel = labels % 4 == 3
    assert scores["novel5"] == pytest.approx(100 * hits[novel].double().mean().item())
    assert scores["base5"] == pytest.approx(100 * hits[~novel].double().mean().item())
    new = replace(cfg, test=replace(test, protocol="new"))
    narrow = Tester(learner, generate, new, lowshot, "test")
    assert narrow.logits(problem, 3, 0, choice).shape == (len(labels), 12)
    assert narrow.test(problem, 3, 0, choice).scores["novel5"] > scores["novel5"]


def test_several_draws_of_the_noise_average_log_probabilities(root, tmp_path):
    plain = {"learner": Learner(), "hallucination": Hallucination(n_aug=5, init="identity_noise")}
    cfg = options(root, tmp_path, test=replace(TEST, z_seeds=3), **plain)
    learner, generate, lowshot = build(cfg)
    tester = Tester(learner.eval(), generate, cfg, lowshot, "test")
    problem = tester.draws.problem(1, 2)
    parts = []
    for number in range(3):
        seed = seed_of(cfg.seed, 1000 * 2 + 1, number)
        torch.manual_seed(seed)
        filled = problem.support.features.new_zeros(12, 6, WIDTH)
        filled[:] = problem.support.features
        counts = problem.support.counts
        owner, slot = (torch.arange(5) >= counts[:, None]).nonzero(as_tuple=True)
        drawn = torch.rand(len(owner), dtype=torch.float64)
        seeds = filled[owner, (drawn * counts[owner]).long()]
        filled[owner, slot] = generate(seeds, problem.support, owner).detach()
        means = torch.stack(
            [
                learner.embed(rows[: max(5, n)]).mean(0)
                for rows, n in zip(filled, counts, strict=True)
            ]
        )
        distances = torch.cdist(learner.embed(problem.queries), means).square()
        parts.append((-distances).log_softmax(1))
    found = tester.logits(problem, 1, 2, Choice(5))
    torch.testing.assert_close(found, torch.stack(parts).mean(0).detach(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(parts[0], parts[1], atol=1e-3)
