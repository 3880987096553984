"""The test of a learner with imagined examples, Sec. 5: choices on cv classes, then the test."""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import dist, files
from common.data import seed_everything, seed_of
from common.tables.runs import read_result
from lowshot_hallucination.baselines.logistic import fit_logistic
from lowshot_hallucination.config import FITTED, Config
from lowshot_hallucination.features.problem import LowShot
from lowshot_hallucination.figures.features import draw_features, measure_shift, shift_cosine
from lowshot_hallucination.figures.gains import DRAWS, gains
from lowshot_hallucination.figures.prior import Curve, draw_prior
from lowshot_hallucination.hallucinate import Generate, Support, augment_support
from lowshot_hallucination.protocol.draws import Draws, Problem, generate_views
from lowshot_hallucination.protocol.metrics import score
from lowshot_hallucination.protocol.prior import curve

CHOSEN = "chosen.json"
SHOWN = 6  # classes of the picture
TOPS = ("novel5", "base5", "all5", "prior5", "balanced5")  # of which there is a top-1 as well
SCORES = ("novel5", "base5", "all5", "prior5", "balanced5", "novel1", "all1", "prior1")


@dataclass(frozen=True)
class Choice:
    """What is chosen on the cv classes for each n."""

    n_aug: int  # examples of a class; 0: none is imagined
    shrink: float = 1.0  # prototypes M + shrink (p - M)
    mu: float | None = None  # prior of the novel classes


@dataclass
class Outcome:
    """One draw."""

    n: int
    draw: int
    choice: Choice
    scores: dict[str, float]  # percent
    curve: dict[str, list[float]] = field(default_factory=dict)  # of novel, base, all over mu


def columns(cfg: Config) -> tuple[str, ...]:
    """What a run's table shows: top-5 (test.top) of novel classes by themselves, and of all."""
    return tuple(f"{kind}_{n}" for kind in ("novel", "all") for n in cfg.test.shots)


def evaluate(
    learner: nn.Module, generate: nn.Module, cfg: Config, lowshot: LowShot
) -> dict[str, float]:
    """novel_n, all_n, prior_n, base_n and more, in percent: means over the draws, for each n.

    n_aug, the shrinkage and the prior mu are chosen on the cv classes alone. The main process
    writes draws.csv, chosen.json, prior.png and features.png into the run's folder.
    """
    learner.eval()
    generate.eval()
    grid = candidates(learner, cfg)
    tested = Tester(learner, generate, cfg, lowshot, "cv")
    found = tested.run(dict.fromkeys(cfg.test.shots, grid))
    chosen = {n: choose([each for each in found if each.n == n], cfg) for n in cfg.test.shots}
    tested = Tester(learner, generate, cfg, lowshot, "test")
    outcomes = tested.run({n: [choice] for n, choice in chosen.items()})
    metrics = summarise(outcomes, cfg.test.top)
    n = min(cfg.test.shots)
    if cfg.learner.method not in FITTED and chosen[n].n_aug > n:
        metrics |= tested.measure_shift(n, chosen[n])
    if dist.is_main():
        folder = Path(cfg.output_dir)
        write_draws(folder / DRAWS, {"cv": found, "test": outcomes})
        record = {str(n): vars(choice) for n, choice in chosen.items()}
        files.write_text(folder / CHOSEN, json.dumps(record, indent=1) + "\n")
        curves = {n: average_curve(outcomes, n, cfg.test.priors) for n in cfg.test.shots}
        mus = {n: choice.mu for n, choice in chosen.items() if choice.mu is not None}
        draw_prior(folder / "prior.png", curves, mus)
        if cfg.learner.method not in FITTED and chosen[n].n_aug > n:
            tested.draw_features(folder / "features.png", n, chosen[n])
    return metrics


def candidates(learner: nn.Module, cfg: Config) -> list[Choice]:
    """What is tried on the cv classes."""
    n_augs = cfg.test.n_augs if cfg.hallucination.fill_to else []
    shrinks = cfg.test.shrinks if cfg.learner.shrink == "cv" else [cfg.learner.weight]
    return [Choice(*pair) for pair in product(n_augs or [cfg.hallucination.fill_to], shrinks)]


def choose(found: Sequence[Outcome], cfg: Config) -> Choice:
    """The choice of the highest novel accuracy on cv, the first of equal ones; then its prior."""
    by_choice: dict[Choice, list[Outcome]] = {}
    for outcome in found:
        by_choice.setdefault(outcome.choice, []).append(outcome)
    means = {
        choice: statistics.fmean(each.scores[f"novel{cfg.test.top}"] for each in outcomes)
        for choice, outcomes in by_choice.items()
    }
    best = max(means, key=lambda choice: means[choice])
    priors = sorted(cfg.test.priors)
    curves = (each.curve["all"] for each in by_choice[best])
    sums = [sum(values) for values in zip(*curves, strict=True)]
    return Choice(best.n_aug, best.shrink, priors[sums.index(max(sums))])


class Tester:
    """All draws of one phase, shared out over the processes."""

    __test__ = False  # not a class of tests

    def __init__(
        self, learner: nn.Module, generate: Generate, cfg: Config, lowshot: LowShot, phase: str
    ) -> None:
        self.learner, self.generate, self.cfg, self.phase = learner, generate, cfg, phase
        self.names, self.views = lowshot.split.names, lowshot.train.views
        self.draws = Draws(lowshot, phase, cfg.test, seed=cfg.problem.seed, device=dist.device())

    def run(self, choices: Mapping[int, Sequence[Choice]]) -> list[Outcome]:
        """The outcome of every choice for each n at every draw, on every process."""
        jobs = [*product(choices, range(self.cfg.test.draws))]
        mine = jobs[dist.rank() :: dist.world_size()]
        done: list[Outcome] = []
        quiet = None if dist.is_main() else True
        for n, draw in tqdm(mine, desc=self.phase, disable=quiet, leave=False):
            problem = self.draws.problem(n, draw)
            for choice in choices[n]:
                done.append(self.test(problem, n, draw, choice))
        found = [outcome for part in dist.gather(done) for outcome in part]
        return sorted(found, key=lambda outcome: (outcome.n, outcome.draw))

    @torch.no_grad()
    def test(self, problem: Problem, n: int, draw: int, choice: Choice) -> Outcome:
        """One draw."""
        logits = self.logits(problem, n, draw, choice)
        priors, protocol = sorted(self.cfg.test.priors), self.cfg.test.protocol
        labels, novel = problem.labels, problem.novel
        if logits.shape[1] != len(novel):  # all classes of the data set compete
            labels = problem.class_ids[labels]
            everything = torch.zeros(logits.shape[1], dtype=torch.bool, device=novel.device)
            everything[problem.class_ids[novel]] = True
            novel = everything
        scores = score(logits, labels, novel, prior=choice.mu, protocol=protocol)
        return Outcome(
            n, draw, choice, scores, curve(logits, labels, novel, priors, self.cfg.test.top)
        )

    @torch.no_grad()
    def logits(self, problem: Problem, n: int, draw: int, choice: Choice) -> Tensor:
        """Those of all queries (Q, C), averaged as log-probabilities over draws of the noise."""
        total: Tensor | float = 0.0
        for number in range(self.cfg.test.z_seeds):
            seed = seed_of(self.cfg.seed, 1000 * draw + n, number)
            seed_everything(seed)
            support = self.augment(problem.support, problem.rows, choice.n_aug)
            logits = self.classify(support, problem, choice, seed)
            total = total + (logits.log_softmax(1) if self.cfg.test.z_seeds > 1 else logits)
        assert isinstance(total, Tensor)
        return total / self.cfg.test.z_seeds

    def augment(self, real: Support, rows: Tensor, n_aug: int) -> Support:
        """The support, whose examples are `rows` (m, N), with imagined ones or views beside it."""
        generate = self.generate
        if self.cfg.hallucination.kind == "views":
            assert self.views is not None  # `data.build` has looked
            generate = generate_views(rows, self.views)
        return augment_support(real, n_aug, generate)

    def classify(self, support: Support, problem: Problem, choice: Choice, seed: int) -> Tensor:
        """Logits (Q, C) of the learner, or of a classifier fitted to this support."""
        if self.cfg.learner.method in FITTED:
            wide = self.cfg.test.protocol == "hg"
            with torch.enable_grad():
                classifier = fit_logistic(
                    support,
                    problem.novel,
                    self.cfg.logistic,
                    seed=seed,
                    class_ids=problem.class_ids if wide else None,
                    outputs=len(self.names) if wide else 0,
                )
            return classifier(problem.queries)
        if self.cfg.learner.shrink == "cv":
            self.learner.shrink = choice.shrink  # type: ignore[assignment]
        return self.learner(support, problem.queries).float()

    def imagine(self, n: int, draw: int, choice: Choice) -> tuple[Support, Support, Problem]:
        """The support of a draw's novel classes, as it is and with imagined examples."""
        problem = self.draws.problem(n, draw)
        real = Support(*(each[problem.novel] for each in problem.support))
        real = Support(real.features[:, : int(real.counts.max())], real.counts)
        seed_everything(seed_of(self.cfg.seed, 1000 * draw + n, 0))
        rows = problem.rows[problem.novel.cpu()]
        return real, self.augment(real, rows, choice.n_aug), problem

    @torch.no_grad()
    def measure_shift(self, n: int, choice: Choice) -> dict[str, float]:
        """Cosine between the way that imagined examples move a class's mean and the right way."""
        cosines = []
        for draw in range(self.cfg.test.draws):
            real, augmented, problem = self.imagine(n, draw, choice)
            ids = problem.novel.nonzero()[:, 0]
            means = [problem.queries[problem.labels == k].mean(0) for k in ids.tolist()]
            cosines.append(float(shift_cosine(real, augmented, torch.stack(means)).mean()))
        return {"shift_cosine": statistics.fmean(cosines)}

    def draw_features(self, path: Path, n: int, choice: Choice) -> None:
        """The picture of the first novel classes at the first draw."""
        real, augmented, problem = self.imagine(n, 0, choice)
        ids = problem.novel.nonzero()[:SHOWN, 0]
        real, augmented = (Support(*(x[: len(ids)] for x in each)) for each in (real, augmented))
        mine = torch.isin(problem.labels, ids)
        labels = torch.searchsorted(ids, problem.labels[mine])
        embed = getattr(self.learner, "embed", None)
        shift = measure_shift(real, augmented, problem.queries[mine], labels, embed)
        draw_features(path, shift, [self.names[k] for k in problem.class_ids[ids].tolist()])


def summarise(outcomes: Sequence[Outcome], top: int = 5) -> dict[str, float]:
    """Means over the draws: novel_1 is the top-5 of n = 1, novel_top1_1 its top-1, in percent.

    top: 1 puts the top-1 in the place of the top-5.
    """
    metrics = {}
    for n in sorted({each.n for each in outcomes}):
        drawn = [each.scores for each in outcomes if each.n == n]
        for name in SCORES:
            word = name[:-1] + ("_top1" if name.endswith("1") else "")
            shown = name if name not in TOPS else name.replace("5", str(top))
            metrics[f"{word}_{n}"] = statistics.fmean(scores[shown] for scores in drawn)
    return metrics


def average_curve(outcomes: Sequence[Outcome], n: int, priors: Sequence[float]) -> Curve:
    """The mean over the draws of n."""
    drawn = [each.curve for each in outcomes if each.n == n]
    means = {
        name: [statistics.fmean(values) for values in zip(*(c[name] for c in drawn), strict=True)]
        for name in ("novel", "base", "all")
    }
    return Curve(sorted(priors), **means)


def write_draws(path: Path, phases: Mapping[str, Sequence[Outcome]]) -> None:
    """draws.csv: a line for each draw and choice."""
    text = io.StringIO()
    names = ["phase", "n", "draw", "n_aug", "shrink", "mu", *SCORES]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for phase, outcomes in phases.items():
        for each in outcomes:
            scores = {name: f"{each.scores[name]:.4f}" for name in SCORES if name in each.scores}
            line = {"phase": phase, "n": each.n, "draw": each.draw} | vars(each.choice)
            writer.writerow(line | scores)
    files.write_text(path, text.getvalue())


def draw_versus(cfg: Config, folders: Mapping[str, Path]) -> None:
    """Print and draw the gains of all settings over the first, G's over the best of the others."""
    first, *others = folders
    finished = {n: [f] for n, f in folders.items() if (read_result(f) or {}).get("metrics")}
    if first not in finished or len(finished) < 2:
        return
    learned = next((n for n in others if "with G" in n and n in finished), "")
    controls = [n for n in finished if n not in (first, learned)]
    picture = Path(cfg.output_dir, "gains.png")
    text = gains(finished, first, controls, learned=learned, picture=picture, top=cfg.test.top)
    files.write_text(Path(cfg.output_dir, "gains.md"), text + "\n")
    print(f"\n{text}")
    features = folders[learned] / "features.png" if learned else Path()
    if features.is_file():
        files.write(Path(cfg.output_dir, "features.png"), lambda f: f.write(features.read_bytes()))
