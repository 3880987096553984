"""The test of a run: its answerer as it stands, and fresh ones on everything that was bought."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from common import dist
from common.clevr.dataset import Questions
from common.data import seed_everything, seed_of
from learning_by_asking.agent import FIRST_LOSSES, Agent
from learning_by_asking.asking.export import export_asked, export_training
from learning_by_asking.asking.history import read_history
from learning_by_asking.asking.learn import accuracy, train_answerer
from learning_by_asking.build import new_answerer
from learning_by_asking.config import Config, Learn
from learning_by_asking.data import World
from learning_by_asking.figures.curriculum import format_times, write_curriculum
from learning_by_asking.figures.curves import compare, draw_curves
from learning_by_asking.figures.proposals import draw_run
from learning_by_asking.net.attention import QTypeMode
from learning_by_asking.oracle.ledger import Ledger

FINETUNED = "finetuned"


def columns(cfg: Config) -> tuple[str, ...]:
    """What a run's table shows."""
    return ("online", "offline", "validity") if cfg.models else ("online", "validity")


def test_online(agent: Agent, cfg: Config, world: World) -> dict[str, float]:
    """Right answers in percent of the answerer as it stands, on the main test."""
    main = next(iter(world.tests.values()))
    found = accuracy(agent.answerer, main, form=cfg.question_form)
    return {"online": found["accuracy"], "online_macro": found["macro"]}


test_online.__test__ = False  # type: ignore[attr-defined]  # it is no test of pytest's


def evaluate(agent: Agent, cfg: Config, world: World, ledger: Ledger) -> dict[str, float]:
    """online, offline and validity in percent, and more: by type, model, budget and split.

    offline: the first of `models`, fresh, after `offline.steps` steps on what was given and bought,
    the mean of `offline_learners`; offline_B: on the first B replies; MODEL_offline: another model;
    finetuned: `offline` after it went on to learn from `data.finetune`; qtype: the most frequent
    answer of each type there; SPLIT_accuracy: `offline` on further splits.
    """
    metrics = test_online(agent, cfg, world)
    metrics["validity"] = 100 * ledger.valid / max(1, ledger.calls)
    metrics["bought"], metrics["valid"] = float(ledger.spent), float(ledger.valid)
    main, *further = world.tests
    for name in cfg.models:
        prefix = "" if name == cfg.models[0] else f"{name}_"
        for budget in sorted({*cfg.offline_at, cfg.budget}):
            whole = budget == cfg.budget
            found = test_offline(
                agent, cfg, world, name, budget, list(world.tests) if whole else [main]
            )
            if not whole:
                metrics[f"{prefix}offline_{budget}"] = found[main]["accuracy"]
                continue
            if FINETUNED in found:
                metrics[f"{prefix}{FINETUNED}"] = found[FINETUNED]["accuracy"]
            metrics[f"{prefix}offline"] = found[main].pop("accuracy")
            metrics |= {f"{prefix}offline_{kind}": value for kind, value in found[main].items()}
            metrics |= {f"{prefix}{split}_accuracy": found[split]["accuracy"] for split in further}
    metrics["qtype"] = guess_by_type(agent, world)
    if dist.is_main():
        metrics |= report(agent, cfg, world)
    return dist.gather(metrics)[0]


def report(agent: Agent, cfg: Config, world: World) -> dict[str, float]:
    """Write what was asked, and when: curriculum.csv and .png, questions.png, the questions.

    Without a valid reply there is nothing of these; export=true then has the beginning alone.
    """
    folder = Path(cfg.output_dir)
    assert world.init.features is not None
    if cfg.export:
        known = agent.memory.dataset(world.words, world.init.features)
        export_training(folder / "data", known, world.tests)
    if not agent.memory.bought or not any(line.valid for line in read_history(folder)):
        return {}
    losses = read_losses(folder)
    name = f"{cfg.source}, {cfg.policy.score}"
    found = write_curriculum(folder, losses=losses, name=name, rate=cfg.policy.rate)
    draw_run(folder, cfg, world.init.features)
    export_asked(folder, world.words, images=f"CLEVR_{cfg.data.train}_{{:06d}}.png")
    return {name: value for name, value in found.items() if name != "validity"}


def read_losses(folder: Path) -> dict[str, float]:
    """The answerer's loss on each type before it asked; empty where a run has none."""
    path = folder / FIRST_LOSSES
    return json.loads(path.read_text()) if path.is_file() else {}


def test_offline(
    agent: Agent, cfg: Config, world: World, name: str, budget: int, splits: Sequence[str]
) -> dict[str, dict[str, float]]:
    """By split, the mean figures of the answerers that learned from the first `budget` replies.

    `finetuned`, of the whole budget: the first split again, after they learned from data.finetune.
    """
    found: dict[str, list[dict[str, float]]] = {split: [] for split in splits}
    for number in range(cfg.offline_learners):
        learned = learn_offline(agent, cfg, world, name, budget, number)
        for split in splits:
            figures = accuracy(learned, world.tests[split], form=cfg.question_form)
            found[split].append(figures)
        if world.finetune is not None and budget == cfg.budget:
            seed = seed_of(cfg.seed, 2, number)
            learn(learned, world.finetune, cfg.finetune, cfg, seed=seed)
            figures = accuracy(learned, world.tests[splits[0]], form=cfg.question_form)
            found.setdefault(FINETUNED, []).append(figures)
    return {
        split: {kind: float(np.mean([each[kind] for each in figures])) for kind in figures[0]}
        for split, figures in found.items()
    }


test_offline.__test__ = False  # type: ignore[attr-defined]


def learn_offline(
    agent: Agent, cfg: Config, world: World, name: str, budget: int, number: int = 0
) -> torch.nn.Module:
    """Fresh answerer `number` of that name, trained on D_init and the first `budget` replies."""
    assert world.init.features is not None
    known = agent.memory.dataset(world.words, world.init.features, budget)
    seed_everything(seed_of(cfg.seed, 1, 50 + 2 * number))
    model = new_answerer(replace(cfg.answerer, name=name), world, cfg.question_form)
    seed = seed_of(cfg.seed, 1, 51 + 2 * number)
    learn(model.to(agent.device), known, cfg.offline, cfg, seed=seed)
    return model


def learn(
    model: torch.nn.Module, questions: Questions, options: Learn, cfg: Config, *, seed: int
) -> None:
    """Train an answerer on questions as `options` say."""
    train_answerer(
        model,
        questions,
        steps=options.steps,
        lr=options.lr,
        batch_size=options.batch_size,
        weight_decay=options.weight_decay,
        seed=seed,
        form=cfg.question_form,
        workers=cfg.data.workers,
    )


def guess_by_type(agent: Agent, world: World) -> float:
    """Percent right of the most frequent answer of each type, counted in what was learned from."""
    rows = agent.memory.rows()
    test = next(iter(world.tests.values())).rows
    assert rows.types is not None
    assert rows.answers is not None
    assert test.answers is not None
    # People's questions have no programs, hence no types: the most frequent answer of all.
    asked = test.types if test.types is not None else np.full(len(test), -1)
    typed = rows.types >= 0
    mode = QTypeMode(torch.from_numpy(rows.types[typed]), torch.from_numpy(rows.answers[typed]))
    right = mode(torch.tensor(asked)).numpy() == test.answers
    return 100 * float(right.mean())


def draw_versus(cfg: Config, folders: Mapping[str, Path]) -> None:
    """Print and draw the settings beside each other; the pictures are those of the first."""
    runs = {name: {cfg.seed: folder} for name, folder in folders.items()}
    text = compare(runs, next(iter(runs)))
    print(f"\n{text}")
    draw_curves(Path(cfg.output_dir, "curves.png"), runs)
    first = next(iter(folders.values()))
    random = next((folder for name, folder in folders.items() if "random" in name), None)
    if random is not None and (losses := read_losses(first)):
        write_curriculum(
            first,
            losses=losses,
            beside={"random": random},
            name="by the score",
            rate=cfg.policy.rate,
        )
        histories = {"by the score": read_history(first), "random": read_history(random)}
        print(f"\n{format_times(histories)}")
    for name in ("questions.png", "curriculum.png"):
        if (first / name).is_file():
            shutil.copyfile(first / name, Path(cfg.output_dir, name))
