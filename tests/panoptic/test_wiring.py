"""What `train.py` does in a step equals a loop of plain torch, with every option on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from common.run import checkpoint
from panoptic import data, model, train
from panoptic.config import Config, Data, Merge, Model, Predict, Scenes
from panoptic.net.instance import MINI

STEPS = 3
PAIR = Model(
    name="separate", backbone="mini", norm="gn", freeze_at=0, semantic_norm="gn", dropout=0
)
ONE = replace(PAIR, name="panoptic_fpn")


@pytest.fixture(autouse=True)
def _nothing_drawn(monkeypatch):
    """So many samples that every anchor and region is taken: no step depends on chance."""
    every = replace(MINI, anchor_samples=20_000, regions=20_000, proposals=(20, 20))
    monkeypatch.setattr("panoptic.net.instance.MINI", every)


def settings(folder: Path, **options) -> Config:
    scenes = Scenes(train_images=8, val_images=1, objects=[1, 4])
    small = Data(
        name="scenes", root="", resize=False, aspect_groups=False, workers=0, scenes=scenes
    )
    common = {
        "steps": STEPS,
        "batch_size": 4,
        "save_every": STEPS,
        "log_every": 1,
        "data": small,
        "model": PAIR,
        "merge": Merge(confidence=0.0),
        "predict": Predict(batch_size=1, pictures=0),
    }
    return Config(**common | options, output_dir=str(folder))


def network(cfg: Config) -> nn.Module:
    """The network that a run begins with."""
    torch.manual_seed(5)
    names = ("name", "backbone", "norm", "freeze_at", "semantic_norm", "dropout")
    options = model.Options(**{name: getattr(cfg.model, name) for name in names})
    return model.build(options, thing_classes=6, stuff_classes=4)


def trained(cfg: Config) -> dict[str, torch.Tensor]:
    """Weights after `train.py`, which starts from the file that `init` names."""
    start = Path(cfg.output_dir) / "start.pt"
    start.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network(cfg).state_dict(), start)
    try:
        train.train(replace(cfg, init=str(start)))
    finally:
        checkpoint.unlock(cfg.output_dir)
    saved = Path(cfg.output_dir) / f"checkpoint-{cfg.steps:08d}.pt"
    return checkpoint.load(saved)["parts"]["model"]


def batches(cfg: Config) -> list[data.Batch]:
    kind = "all" if cfg.model.name == "separate" else "stuff"
    return list(data.training_batches(data.build(cfg.data, "train", semantic=kind), cfg, 0, STEPS))


def by_hand(cfg: Config, rates: list[float]) -> dict[str, torch.Tensor]:
    """Weights after whole batches, the rate of each step given as a factor."""
    net = network(cfg).train()
    momenta: dict[str, torch.Tensor] = {}
    normal = {
        f"{name}.{kind}"
        for name, module in net.named_modules()
        for kind in ("weight", "bias")
        if isinstance(module, nn.GroupNorm)
    }
    for batch, factor in zip(batches(cfg), rates, strict=True):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=cfg.amp):
            losses = net(batch.images, batch.targets)
        sum(losses.values()).backward()
        gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
        norm = torch.stack([g.norm() for g in gradients.values()]).norm()
        if cfg.clip:
            assert norm > cfg.clip  # else clipping would not be seen
        scale = cfg.clip / (norm + 1e-6) if cfg.clip else 1.0
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                decay = 0.0 if name in normal and not cfg.norm_decay else cfg.weight_decay
                gradient = gradients[name] * scale + decay * parameter
                momenta[name] = cfg.momentum * momenta.get(name, 0) + gradient
                lr = cfg.semantic_lr if name.startswith("semantic.") else cfg.lr
                parameter -= lr * factor * momenta[name]
    return net.state_dict()


def assert_equal(cfg: Config, rates: list[float]) -> None:
    torch.testing.assert_close(trained(cfg), by_hand(cfg, rates), rtol=0, atol=1e-6)


def test_three_steps_with_every_option_equal_plain_torch(tmp_path):
    options = {"lr": 0.01, "semantic_lr": 0.03, "momentum": 0.8, "weight_decay": 0.1}
    options |= {"warmup": 2, "warmup_start": 0.5, "milestones": [2 / 3], "clip": 0.5}
    assert_equal(settings(tmp_path, **options, accumulate=2), [0.5, 0.75, 0.1])


@pytest.mark.parametrize(("amp", "accumulate"), [(True, 1), (False, 4)])
def test_one_network_with_the_poly_schedule_equals_plain_torch(amp, accumulate, tmp_path):
    options = {"schedule": "poly", "norm_decay": True, "weight_decay": 0.1, "lr": 0.01}
    cfg = settings(tmp_path, **options, model=ONE, amp=amp, accumulate=accumulate)
    assert_equal(cfg, [(1 - step / STEPS) ** 0.9 for step in range(STEPS)])


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 3), (8, 4), (16, 2)])
def test_a_batch_that_cannot_be_cut_into_equal_pieces_stops_before_the_first_step(
    processes, accumulate, tmp_path, monkeypatch
):
    monkeypatch.setattr("common.dist.world_size", lambda: processes)
    cfg = replace(settings(tmp_path, batch_size=16), accumulate=1)
    cfg.accumulate = accumulate  # 3 alone is refused by Config already
    reason = f"batch_size=16 .* processes={processes} .* accumulate={accumulate} "
    with pytest.raises(ValueError, match=reason):
        data.training_batches(data.build(cfg.data, "train"), cfg, 0, 1)
    with pytest.raises(ValueError, match="3 images cannot be cut into 2 equal pieces"):
        data.Batch([torch.zeros(1)] * 3, [{}] * 3).split(2)


def test_counting_the_pieces_leaves_running_statistics_alone(tmp_path):
    cfg = settings(tmp_path, model=replace(PAIR, semantic_norm="bn"))
    net = network(cfg).train()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    counts = train.batch_counts(net, batches(cfg)[0].split(2), cfg)
    assert counts.tolist()[0] > 0
    torch.testing.assert_close(dict(net.named_buffers()), before, rtol=0, atol=0)
