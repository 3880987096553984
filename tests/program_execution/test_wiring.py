"""Three steps of train.py with every option on, beside a loop written by hand in plain torch."""

import json
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.clevr.grammar import Grammar
from common.run import checkpoint
from common.sampling import SampleStream
from program_execution import data, evaluate
from program_execution.config import BuiltIn, Config, Data, Evaluate, Model, Reinforce, Stage, Tune
from program_execution.decoding import sample
from program_execution.stages import build
from program_execution.train import train

STEPS, LR, GENERATOR_LR, BETA2, CLIP, DECAY = 3, 8e-3, 2e-3, 0.9, 0.005, 0.7
TEMPERATURE, ENTROPY, WEIGHT = 0.8, 0.02, 1.5
WORLD = BuiltIn(train_images=16, val_images=12, per_image=6, objects=[3, 4], families=["zero_hop"])


def settings(stage: str, folder: Path) -> Config:
    """A run of `stage` in which no option has the value that it has by default."""
    every = {"steps": STEPS, "lr": LR, "batch_size": 12, "evaluate_every": 1, "schedule": "cosine"}
    tune = Tune(**every, train="trainB", val="valB", questions=60, update="pg")
    sizes = {"embedding": 8, "hidden": 16, "module_dim": 8, "classifier_proj": 8, "stem_layers": 1}
    network = Model(
        name="cnn_lstm" if stage == "baseline" else "iep",
        **sizes,
        layers=2,
        dropout=0.2,
        classifier_fc=[16],
        cnn_dim=8,
        attention_dim=8,
        initialisation="he",
    )
    return Config(
        seed=5,
        stage=stage,
        ee_programs="ground_truth",
        **{name: Stage(**every) for name in ("pg", "ee", "joint", "baseline")},
        tune=tune,
        beta2=BETA2,
        clip=CLIP,
        log_every=1,
        save_every=2,
        output_dir=str(folder),
        data=Data(
            name="builtin",
            root="",
            also=["valB"],
            workers=0,
            builtin=WORLD,
            programs=70,
            subset="random",
        ),
        model=network,
        reinforce=Reinforce(
            "per_type_ema", DECAY, TEMPERATURE, ENTROPY, WEIGHT, GENERATOR_LR, grammar=True
        ),
        evaluate=Evaluate(
            batch_size=50,
            programs="ground_truth" if stage == "ee" else "predicted",
            grammar=True,
            questions=50,
            pictures=0,
        ),
    )


def policy(network, cfg, words, batch, step, average):
    """The sampled programs' answers, and REINFORCE for the generator, written out (Sec. 3.4)."""
    seed = (cfg.seed * 1_000_003 + step * 4099) % 2**32
    sampled = sample.sample(
        network.generator,
        batch.questions,
        temperature=TEMPERATURE,
        generator=torch.Generator().manual_seed(seed),
        grammar=Grammar(words.tokens),
    )
    logits = network.engine(batch.features, sampled.programs, image_of=batch.image_of)
    rewards = (logits.argmax(1) == batch.answers).float()
    for kind in batch.types.unique().tolist():
        mean = rewards[batch.types == kind].mean().item()
        average[kind] = DECAY * average[kind] + (1 - DECAY) * mean
    expected = torch.tensor([average[kind] for kind in batch.types.tolist()])
    log_p = (sampled.log_probs * sampled.mask).sum(1)
    spread = (sampled.entropy * sampled.mask).sum(1)
    loss = -((rewards - expected) * log_p).mean() - ENTROPY * spread.mean()
    return logits, WEIGHT * loss


def by_hand(cfg: Config):
    """Weights and figures after each step, the moving averages, the figures of the best weights."""
    stage, options = cfg.stage, cfg.of_stage()
    learn, choose, asked = "train", "val", 0
    if stage == "tune":
        learn, choose, asked = "trainB", "valB", 60
    words = data.vocabulary_of(cfg.data, "train", learn)
    training = data.build(replace(cfg.data, questions=asked), learn, words, training=True)
    if stage == "pg":
        training = data.select_known(training, 70, "random", cfg.seed)
    sets = {split: data.build(cfg.data, split, words) for split in ("val", "valB")}
    chosen = sets[choose].subset(np.arange(50))
    torch.manual_seed(cfg.seed)
    network = build(cfg, training)
    engine = [] if network.engine is None else list(network.engine.parameters())
    writer = [] if network.generator is None else list(network.generator.parameters())
    groups = {
        "pg": [(writer, LR)],
        "ee": [(engine, LR)],
        "joint": [(engine, LR), (writer, GENERATOR_LR)],
        "tune": [(writer, GENERATOR_LR)],
        "baseline": [(list(network.parameters()), LR)],
    }[stage]
    for parameter in network.parameters():
        parameter.requires_grad_(any(parameter is p for group, _ in groups for p in group))
    optimizer = torch.optim.Adam(
        [{"params": group, "lr": lr} for group, lr in groups], betas=(0.9, BETA2)
    )
    stream = SampleStream(len(training), options.batch_size, seed=cfg.seed)
    average: dict[int, float] = defaultdict(float)
    after, judged, norms = [], [], []
    for step in range(1, STEPS + 1):
        network.train()
        for group, (_, lr) in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = lr * (1 + math.cos(math.pi * (step - 1) / STEPS)) / 2
        batch = training[np.array([place for _, place in stream.share(step - 1, 0, 1)])]
        loss = torch.zeros(())
        if stage == "pg":
            logits = network.generator(batch.questions, batch.programs)
            targets = batch.programs[:, 1:]
            loss = F.cross_entropy(logits[targets != 0], targets[targets != 0])
        else:
            if stage == "baseline":
                logits = network.baseline(batch.questions, batch.features, batch.image_of)
            elif stage == "ee":
                logits = network.engine(batch.features, batch.programs, image_of=batch.image_of)
            else:
                logits, loss = policy(network, cfg, words, batch, step, average)
            if stage != "tune":
                loss = loss + F.cross_entropy(logits, batch.answers)
        optimizer.zero_grad()
        loss.backward()
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        norms.append(torch.nn.utils.clip_grad_norm_(trained, CLIP).item())
        optimizer.step()
        after.append({name: value.clone() for name, value in network.state_dict().items()})
        judged.append(evaluate.evaluate(network, cfg, chosen))
    assert min(norms) > CLIP
    scores = [figures[evaluate.columns(cfg)[0]] for figures in judged]
    network.load_state_dict(after[scores.index(max(scores))])
    return after, judged, average, evaluate.evaluate_sets(network, cfg, sets)


@pytest.mark.parametrize("stage", ["pg", "ee", "joint", "tune", "baseline"])
def test_three_steps_with_every_option_equal_a_loop_written_by_hand(stage, tmp_path):
    cfg = settings(stage, tmp_path)
    column = evaluate.columns(cfg)[0]
    after, judged, average, expected = by_hand(cfg)
    scores = [figures[column] for figures in judged]
    metrics = train(cfg)
    checkpoint.unlock(tmp_path)
    saved = checkpoint.load(tmp_path / f"checkpoint-{STEPS:08d}.pt")["parts"]
    torch.testing.assert_close(saved["model"], after[-1], rtol=1e-6, atol=1e-6)
    best = checkpoint.load(tmp_path / "best.pt")["parts"]["model"]
    torch.testing.assert_close(best, after[scores.index(max(scores))], rtol=1e-6, atol=1e-6)
    assert metrics == pytest.approx(expected, nan_ok=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if "lr" in line]
    assert rates == pytest.approx([LR, LR * 3 / 4, LR / 4], rel=1e-3)
    seen = [line for line in lines if f"val_{column}" in line]
    for line, figures in zip(seen, judged, strict=True):
        known = {k: v for k, v in evaluate.brief(figures).items() if not math.isnan(v)}
        assert {k: line[k] for k in known} == pytest.approx(known)
    moved = {k: v for k, v in enumerate(saved["average"]["value"].tolist()) if v}
    assert moved == pytest.approx({k: v for k, v in average.items() if v})
    if stage in ("joint", "tune"):
        assert moved
    if stage == "ee":
        assert scores.index(max(scores)) < STEPS - 1  # so that the last weights would not do
