"""`train.py` passes every option on: three of its steps are those of a loop written out by hand."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from common import dist
from common.data import seed_everything
from common.run import checkpoint
from focal_loss import data, train
from focal_loss.config import Config, Data, Loss, Model, Scenes
from focal_loss.criterion import DetectionLoss
from focal_loss.evaluate import load_run
from focal_loss.model import Architecture, RetinaNet
from focal_loss.net.anchors import Anchors

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
    clip=2.4,
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
    model = RetinaNet(Architecture(num_classes=3, **asdict(CFG.model)))
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
    clipped: list[bool] = []
    batches = data.training_batches(data.build(CFG.data, "train"), CFG, 0, 3)
    for batch, factor in zip(batches, FACTORS, strict=True):
        model.zero_grad()
        logits, offsets = model(batch.images)  # all at once
        losses = criterion(logits, offsets, model.anchors(96, 96), batch.targets)
        (losses["classification"] + losses["box"]).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        norm = float(torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt())
        clipped.append(norm > 2.4)
        for name, parameter in model.named_parameters():
            bias = name.endswith("bias") and parameter not in of_norms
            decay = 0.0 if bias or parameter in of_norms else 0.01
            slope = min(1.0, 2.4 / norm) * gradients[name] + decay * parameter.detach()
            velocity[name] = 0.8 * velocity[name] + slope
            parameter.data -= 0.2 * (3 if bias else 1) * factor * velocity[name]
        now = {name: value.clone() for name, value in model.state_dict().items()}
        before = averages[-1] if averages else now
        averages.append({name: 0.6 * before[name] + 0.4 * now[name] for name in now})
    assert averages[-1].keys() == dict(model.named_parameters()).keys()  # no other state
    assert clipped == [False, True, False]
    return now, averages


def assert_close(found: State, expected: State) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def rates(folder: Path) -> dict[int, float]:
    """The learning rates that were logged, by step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["lr"] for line in lines if "lr" in line}


def test_three_steps_with_every_option_are_those_of_a_loop_by_hand(tmp_path, monkeypatch):
    scored: list[State] = []

    def evaluate(model: RetinaNet, *_: object, **__: object) -> dict[str, float]:
        scored.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"AP": 1.0, "AP50": 2.0, "AP75": 3.0}

    monkeypatch.setattr(train, "evaluate", evaluate)
    cfg = replace(CFG, output_dir=str(tmp_path))
    train.train(cfg)
    parts = checkpoint.load(tmp_path / "checkpoint-00000003.pt")["parts"]
    weights, averages = states_by_hand()
    assert_close(parts["model"], weights)
    averaged = {f"module.{name}": value for name, value in averages[-1].items()}
    assert_close({k: v for k, v in parts["average"].items() if k != "n_averaged"}, averaged)
    for found, expected in zip(scored, averages[1:], strict=True):  # after steps 2 and 3
        assert_close(found, expected)
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.structured(cfg), tmp_path / ".hydra" / "config.yaml")
    assert_close(load_run(tmp_path)[0].state_dict(), averages[-1])
    checkpoint.unlock(tmp_path)
    assert rates(tmp_path) == pytest.approx({1: 0.05, 3: 0.02})
    train.train(replace(cfg, steps=5, log_every=1))  # whose drop is after step 4, not 2
    checkpoint.unlock(tmp_path)
    assert rates(tmp_path) == pytest.approx({1: 0.05, 3: 0.02, 4: 0.2, 5: 0.02})


def test_a_batch_that_gives_no_equal_pieces_stops_before_the_first_step(monkeypatch):
    dataset = data.build(CFG.data, "train")
    monkeypatch.setattr(dist, "world_size", lambda: 8)
    with pytest.raises(
        ValueError,
        match="batch_size=16 cannot be shared by processes=8 with accumulate=4 equal pieces each: "
        "choose a multiple of 32",
    ):
        data.training_batches(dataset, replace(CFG, batch_size=16), 0, 1)


def test_the_figures_of_the_first_images_only_have_names_that_say_so(tmp_path):
    cfg = replace(CFG, output_dir=str(tmp_path), evaluate_images=3)
    validation = data.build(cfg.data, "val")
    model = RetinaNet(Architecture(num_classes=3, **asdict(cfg.model)))
    names = {"AP_first_3", "AP50_first_3", "AP75_first_3"}
    assert train.score(model, cfg, validation).keys() == names
    assert "AP" in train.score(model, replace(cfg, evaluate_images=0), validation)
    assert [train.due(step, cfg) for step in (1, 2, 3, 4)] == [False, True, False, True]
    last = replace(cfg, steps=4, evaluate_images=0)
    assert [train.due(step, last) for step in (2, 4)] == [True, False]
    assert (len(validation.first(3)), len(validation.first(9)), len(validation)) == (3, 4, 4)


class Boxes:
    """A source of two images with five boxes, one of them a crowd, times `factor`."""

    names, category_ids, categories, files = ["cell"], [1], None, ["a", "b"]
    rows = ([[30, 40, 70, 90], [4, 50, 20, 66], [9, 9, 39, 39]], [[50, 10, 90, 20], [0, 0, 96, 96]])

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __len__(self) -> int:
        return 2

    def target(self, index: int) -> dict:
        boxes = self.factor * torch.tensor(self.rows[index], dtype=torch.float32)
        crowd = torch.tensor([False, False, index == 0][: len(boxes)])
        return {"boxes": boxes, "iscrowd": crowd, "size": (96, 96)}


@pytest.mark.parametrize(
    ("factor", "words", "message"),
    [
        (1, {}, ""),
        (0.1, {}, "3 of 4 objects have no positive anchor, as none overlaps them by an IoU of 0.4"),
        (0.1, {"resize": True, "short_side": [960]}, ""),  # at the training scale
        (1 / 96, {"low_quality": "any"}, ""),
        (1 / 96, {}, "4 of 4 objects have no positive anchor, as their boxes seem to be in 0..1"),
    ],
)
def test_objects_that_no_anchor_answers_for_are_counted(factor, words, message, capsys):
    loss = Loss(low_quality=words.pop("low_quality", "d1"))
    cfg = replace(CFG.data, long_side=960, **words)
    grid = Anchors(levels=(2, 5), size=2.0)  # from 8 pixels on
    data.report_unmatched(data.Detection(Boxes(factor), cfg, training=True), grid, loss)
    printed = capsys.readouterr().out
    assert printed.startswith(message)
    assert bool(printed) == bool(message)


@pytest.mark.parametrize(
    ("option", "value", "fixed"),
    [
        *(("normalizer", "image", 0), ("normalizer", "world", 0), ("normalizer", "gpu", 2)),
        *(("normalizer", "gpu_plus_n", 2), ("normalizer", "ema", 2)),
        *(("head_norm", "bn", 2), ("head_norm", "gn", 0), ("backbone_norm", "bn", 2)),
    ],
)
def test_a_divisor_or_norm_of_a_process_fixes_their_number(option, value, fixed, monkeypatch):
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    cfg = Config(data=Data(root=""))
    setattr(cfg.loss if option == "normalizer" else cfg.model, option, value)
    assert train.processes_to_keep(cfg) == fixed
    assert train.processes_to_keep(replace(cfg, only_evaluate=True)) == 0
