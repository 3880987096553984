"""`train.py` passes every option on: three of its steps are those of a loop written out by hand."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common import checkpoint, dist
from common.data import seed_everything
from focal_loss import data, train
from focal_loss.config import Config, Data, Loss, Model, Scenes
from focal_loss.criterion import DetectionLoss
from focal_loss.model import RetinaNet

State = dict[str, Tensor]
FACTORS = (0.25, 0.625, 0.1)  # of the rate: two steps of warm-up, then a drop
CFG = Config(
    seed=3,
    steps=3,
    batch_size=8,
    accumulate=4,
    lr=0.2,
    momentum=0.8,
    weight_decay=0.01,
    bias_lr=3.0,
    bias_decay=False,
    warmup=2,
    warmup_start=0.25,
    milestones=[0.7],
    clip=0.5,
    ema=0.6,
    evaluate_every=2,
    data=Data(
        name="scenes",
        root="",
        resize=False,
        pad_multiple=32,
        skip_empty=False,
        aspect_groups=False,
        workers=0,
        scenes=Scenes(train_images=24, val_images=4, objects=[0, 3]),
    ),
    model=Model(
        backbone="mini",
        width=8,
        levels=[2, 3],
        channels=8,
        convs=1,
        anchor_size=2.0,
        backbone_norm="gn",
        head_norm="gn",
        freeze_at=0,
        tower_init="he",
    ),
    loss=Loss(
        alpha=0.4,
        gamma=1.5,
        normalizer="ema",
        box="giou",
        box_weight=0.7,
        positive_iou=0.45,
        negative_iou=0.3,
        low_quality="any",
    ),
)


def states_by_hand() -> tuple[State, list[State]]:
    """Weights after three steps, and the averaged ones after each."""
    seed_everything(3)
    model = RetinaNet(num_classes=3, **asdict(CFG.model))
    criterion = DetectionLoss(
        alpha=0.4,
        gamma=1.5,
        normalizer="ema",
        box="giou",
        box_weight=0.7,
        positive_iou=0.45,
        negative_iou=0.3,
        low_quality="any",
    )
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    of_norms = {parameter for module in norms for parameter in module.parameters()}
    velocity: dict[str, Tensor | float] = {name: 0.0 for name, _ in model.named_parameters()}
    averages: list[State] = []
    batches = data.training_batches(data.build(CFG.data, "train"), CFG, 0, 3)
    for batch, factor in zip(batches, FACTORS, strict=True):
        model.zero_grad()
        logits, offsets = model(batch.images)  # all at once
        losses = criterion(logits, offsets, model.anchors(96, 96), batch.targets)
        (losses["classification"] + losses["box"]).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
        assert norm > 0.5  # clipping is at work
        for name, parameter in model.named_parameters():
            bias = name.endswith("bias") and parameter not in of_norms
            decay = 0.0 if bias or parameter in of_norms else 0.01
            slope = 0.5 / norm * gradients[name] + decay * parameter.detach()
            velocity[name] = 0.8 * velocity[name] + slope
            parameter.data -= 0.2 * (3 if bias else 1) * factor * velocity[name]
        now = {name: value.clone() for name, value in model.state_dict().items()}
        before = averages[-1] if averages else now
        averages.append({name: 0.6 * before[name] + 0.4 * now[name] for name in now})
    assert averages[-1].keys() == dict(model.named_parameters()).keys()  # no other state
    return now, averages


def assert_close(found: State, expected: State) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_three_steps_with_every_option_are_those_of_a_loop_by_hand(tmp_path, monkeypatch):
    scored: list[State] = []

    def evaluate(model: RetinaNet, *_: object, **__: object) -> dict[str, float]:
        scored.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"AP": 1.0, "AP50": 2.0, "AP75": 3.0}

    monkeypatch.setattr(train, "evaluate", evaluate)
    train.train(replace(CFG, output_dir=str(tmp_path)))
    parts = checkpoint.load(tmp_path / "checkpoint-00000003.pt")["parts"]
    weights, averages = states_by_hand()
    assert_close(parts["model"], weights)
    averaged = {f"module.{name}": value for name, value in averages[-1].items()}
    assert_close({k: v for k, v in parts["average"].items() if k != "n_averaged"}, averaged)
    for found, expected in zip(scored, averages[1:], strict=True):  # after steps 2 and 3
        assert_close(found, expected)
    lines = [json.loads(line) for line in Path(tmp_path, "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines if "lr" in line] == pytest.approx([0.05, 0.02])


def test_a_batch_that_gives_no_equal_pieces_stops_before_the_first_step(monkeypatch):
    dataset = data.build(CFG.data, "train")
    monkeypatch.setattr(dist, "world_size", lambda: 8)
    with pytest.raises(
        ValueError,
        match="batch_size=16 cannot be shared by processes=8 with accumulate=4 equal pieces each: "
        "choose a multiple of 32",
    ):
        data.training_batches(dataset, replace(CFG, batch_size=16), 0, 1)
