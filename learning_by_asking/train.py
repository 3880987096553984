"""An agent that chooses its questions: `python train.py`, or see conf/experiment.

The demo buys the same number of answers to questions that the agent composed and chose by expected
improvement, at random or by entropy, and to those of the data set.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from torch.optim import Adam

from common import config, dist
from common.data import seed_everything
from common.run import checkpoint, result, versus
from common.run.log import Log, require_finite
from common.run.options import Options
from learning_by_asking import data
from learning_by_asking.agent import rounds_of
from learning_by_asking.build import build_agent, new_answerer
from learning_by_asking.config import MAY_CHANGE, Config
from learning_by_asking.evaluate import columns, draw_versus, evaluate, test_online
from learning_by_asking.oracle.oracles import open_ledger

MOST = 4  # times as many rounds as the budget has, where images are left without a question


def train(cfg: Config) -> dict[str, float]:
    """Spend the budget in rounds, resuming from `cfg.output_dir`; the final metrics in percent."""
    started = time.time()
    seed_everything(cfg.seed)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = dist.device()
    world = data.build(cfg.data, cfg.seed, text=cfg.question_form == "text")
    assert world.init.features is not None
    for name in cfg.models:  # one that cannot be built stops here, before anything is bought
        new_answerer(replace(cfg.answerer, name=name), world, cfg.question_form)
    checkpoint.lock(cfg.output_dir)  # before the ledger mends the log that a kill cut off
    ledger = open_ledger(
        cfg.oracle,
        cfg.budget,
        cfg.output_dir,
        vocabulary=world.words,
        features=world.init.features,
        find_scenes=lambda: data.scenes_for(cfg.data, world),
    )
    agent = build_agent(
        cfg,
        world,
        device,
        peek=ledger.peek,
        generated=lambda: data.generate_questions(cfg, world),
    )
    optimizer = Adam(agent.answerer.parameters(), cfg.rounds.lr)
    rounds = rounds_of(cfg)
    parts: dict[str, Any] = agent.parts() | {
        "optimizer": optimizer,
        "ledger": ledger,
        "vocabulary": world.words.digest,
        "options": Options(cfg, MAY_CHANGE, processes=dist.world_size()),
    }
    begun = any(Path(cfg.output_dir).glob("checkpoint-*[0-9].pt"))
    start = checkpoint.resume(cfg.output_dir, steps=MOST * rounds, **parts)
    agent.restore()
    log = Log(cfg.output_dir, max(1, rounds), every=cfg.log_every, start=start)
    if not begun:
        agent.begin()  # g, r and v learn from the questions to begin with
        checkpoint.save(cfg.output_dir, 0, **parts)
    if start == 0 and cfg.evaluate_every:
        log(1, force=True, asked=0, **test_online(agent, cfg, world))

    network = dist.wrap(agent.answerer)
    # A round without a question is one whose images have no new one; after all images, no other is.
    step, idle, turn = start, 0, math.ceil(len(world.images) / cfg.rounds.images)
    while ledger.left and step < MOST * rounds and idle <= turn:
        step += 1
        images = agent.draw_images(step, ledger.left)  # (I,)
        proposals = agent.propose(step, images)
        probabilities = agent.answer(proposals)  # (I, P, 28)
        scores = agent.score(step, proposals, probabilities)  # (I, P)
        choice = agent.choose(step, scores, proposals, ledger.left)
        entries = agent.describe(proposals, probabilities, scores, choice, ledger.left)
        replies = ledger.buy(step, entries)
        agent.take(step, entries, replies)  # H from v's predictions, before it learns; memory
        loss = torch.zeros((), device=device)
        network.train()
        idle = 0 if entries else idle + 1
        for update in range(cfg.rounds.updates if entries else 0):
            optimizer.zero_grad(set_to_none=True)
            loss = agent.loss(network, step, update)
            require_finite({"loss": loss}, step, [])
            loss.backward()
            optimizer.step()
        log.steps = max(log.steps, step)  # images without a new question make a run longer
        log(step, force=step == 1, loss=loss, asked=ledger.spent, **agent.round)
        stopping = dist.stop_requested()
        if stopping or step % cfg.save_every == 0 or not ledger.left:
            checkpoint.save(cfg.output_dir, step, **parts)
        if stopping:
            log.close()
            dist.exit_preempted(step)
        if cfg.evaluate_every and step % cfg.evaluate_every == 0 and ledger.left:
            log(step, force=True, asked=ledger.spent, **test_online(agent, cfg, world))

    if ledger.left and step > start:
        checkpoint.save(cfg.output_dir, step, **parts)
    if ledger.left and dist.is_main():
        why = "no image has a new question" if idle else f"{step} rounds were not enough"
        print(f"{ledger.left} of {cfg.budget} replies were not bought: {why}.")
    metrics = evaluate(agent, cfg, world, ledger)
    log(max(1, step), force=True, asked=ledger.spent, **metrics)
    log.close()
    seconds = time.time() - started
    result.write(cfg.output_dir, metrics, steps=step, seconds=seconds, columns=columns(cfg))
    return metrics


def run(cfg: Config) -> dict[str, float]:
    """`train`, leaving a result also where the loss diverges."""
    return result.record(train, cfg, columns=columns(cfg))


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one setting, or with `versus` several side by side."""
    settings: Config = config.to_dataclass(cfg)
    if settings.versus:
        data.build_ahead(settings.data)  # once, instead of in every process
        names = columns(settings)
        folders = versus.run_all(
            run, cfg, columns=names, curve="online", along="asked", label="right answers in %"
        )
        draw_versus(settings, folders)
    else:
        dist.launch(run, settings, settings.processes)


if __name__ == "__main__":
    config.run(main)
