"""What train.py promises: exactly the planned pieces of a step, and every option in its place."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from common import dist
from common.run import checkpoint
from common.sampling import SampleStream
from large_minibatch import data
from large_minibatch.config import Config, Data, Model, Norm, Rate, Scenes, Solver
from large_minibatch.inputs.augment import Augment
from large_minibatch.inputs.memory import InMemory
from large_minibatch.model import resnet
from large_minibatch.train import processes_to_keep, train

GRID = [
    (kind, batch_size, group, per_forward)
    for kind in ("ghost", "worker")
    for batch_size in (6, 8, 16, 30)
    for group in (1, 2, 4)
    for per_forward in (4, 7, 256)
] + [("worker", 480, 32, 256)]


def numbered(count: int) -> InMemory:
    """Random images of 4 x 4 pixels, each of a class of its own."""
    pixels = torch.randint(256, (count, 4, 4, 3), dtype=torch.uint8)
    augment = Augment(size=4, crop="none", resize=0, flip=0.5)
    names = [str(i) for i in range(count)]
    return InMemory(pixels, torch.arange(count), names, names, augment, training=True)


class Listed(Dataset):
    """The same images one by one, as files come."""

    def __init__(self, held: InMemory) -> None:
        self.held, self.files = held, held.files

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        return self.held.pixels[index], int(self.held.labels[index]), self.files[index]


def gradient(images: Tensor, labels: Tensor, divisor: int = 1) -> Tensor:
    """That of the mean loss of a linear classifier, / divisor."""
    weight = torch.zeros(500, 48, dtype=torch.float64, requires_grad=True)
    logits = images.flatten(1).double() / 255 @ weight.T
    (F.cross_entropy(logits, labels) / divisor).backward()
    assert weight.grad is not None
    return weight.grad


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("files", [False, True])
def test_the_planned_pieces_add_up_to_the_whole_batch(files, processes, monkeypatch):
    monkeypatch.setattr(data.dist, "world_size", lambda: processes)
    checked = 0
    for kind, batch_size, group, per_forward in GRID:
        norm = Norm(kind=kind, group=group)
        cfg = Config(
            batch_size=batch_size, per_forward=per_forward, norm=norm, data=Data(root="", workers=0)
        )
        held = numbered(batch_size + 1)
        dataset = Listed(held) if files else held
        try:
            plan = data.plan_of(cfg, len(dataset))
        except ValueError:  # before anything is read
            continue
        checked += 1
        shares, total = [], torch.zeros(500, 48, dtype=torch.float64)
        for rank in range(processes):
            monkeypatch.setattr(data.dist, "rank", lambda rank=rank: rank)
            (step,) = (list(pieces) for pieces in data.training_batches(dataset, cfg, plan, 0, 1))
            assert [len(piece.labels) for piece in step] == [plan.per_forward] * plan.accumulation
            assert plan.per_forward <= per_forward
            for piece in step:
                total += gradient(piece.images, piece.labels, plan.accumulation) / processes
            shares += step
        images, labels = (torch.cat([getattr(s, n) for s in shares]) for n in ("images", "labels"))
        assert len(labels.unique()) == batch_size
        torch.testing.assert_close(total, gradient(images, labels), rtol=1e-12, atol=1e-15)
    assert checked > 20


def test_a_run_says_over_how_many_images_plain_batch_norm_works(capsys):
    norm = Norm(kind="worker")
    plan = data.plan_of(Config(batch_size=480, norm=norm, data=Data(root="")), 1000)
    assert (plan.accumulation, plan.per_forward) == (2, 240)
    assert "norm.kind=worker: batch norm takes its statistics over 240" in capsys.readouterr().out
    data.plan_of(Config(batch_size=480, data=Data(root="")), 1000)  # groups of 32
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "batch_size", "processes", "remedy"),
    [
        ("worker", 13, 1, "set per_forward=13 or another batch_size"),
        ("worker", 4, 4, "set batch_size=8 or more"),
        ("sync", 13, 1, "set per_forward=13 or another batch_size"),
        ("sync", 4, 4, ""),  # four images, of as many processes
        ("worker", 16, 1, ""),
        ("ghost", 1, 1, ""),  # asked for
    ],
)
def test_plain_batch_norm_over_one_image_stops(kind, batch_size, processes, remedy, monkeypatch):
    monkeypatch.setattr(dist, "world_size", lambda: processes)
    cfg = Config(
        batch_size=batch_size, per_forward=7, norm=Norm(kind=kind, group=1), data=Data(root="")
    )
    if not remedy:
        data.plan_of(cfg, 1000)
        return
    named = f"batch_size={batch_size} over processes={processes} .* per_forward=7"
    with pytest.raises(ValueError, match=f"norm.kind={kind}: {named}.*: {remedy}"):
        data.plan_of(cfg, 1000)


@pytest.mark.parametrize(
    ("kind", "per_forward", "fixed"),
    [("ghost", 256, 0), ("worker", 256, 2), ("sync", 256, 0), ("sync", 64, 2)],
)
def test_statistics_of_a_process_fix_the_number_of_processes(kind, per_forward, fixed, monkeypatch):
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    cfg = Config(per_forward=per_forward, norm=Norm(kind=kind), data=Data(root=""))
    assert processes_to_keep(cfg) == fixed
    assert processes_to_keep(replace(cfg, only_evaluate=True)) == 0


def test_a_plan_of_other_processes_is_refused(monkeypatch):
    cfg, dataset = Config(batch_size=32, data=Data(root="", workers=0)), numbered(64)
    plan = data.plan_of(cfg, len(dataset))
    with pytest.raises(ValueError, match=r"1 processes and 2 steps .* there are 1 and 3: make it"):
        data.training_batches(numbered(96), cfg, plan, 0, 1)
    monkeypatch.setattr(data.dist, "world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"for 1 processes .* but there are 2 and 2"):
        data.training_batches(dataset, cfg, plan, 0, 1)


# Every option of train.py


EVERYTHING = Config(
    epochs=3.0,  # of one step each
    batch_size=32,
    per_forward=16,  # two pieces
    smoothing=0.1,
    mixup=0.5,
    ema=0.7,
    threads=1,
    log_every=1,
    output_dir="",
    data=Data(
        name="scenes",
        root="",
        crop="none",
        flip=0.0,
        size=32,
        resize=0,
        mean=[0.4, 0.5, 0.6],
        std=[0.3, 0.2, 0.25],
        scenes=Scenes(train_images=32, val_images=8),
    ),
    rate=Rate(
        base=0.1, base_batch=8, start=0.1, warmup_epochs=2.0, milestones=[2], factor=0.5
    ),  # peak 0.4, reached as it drops
    solver=Solver(form="v", momentum=0.8, weight_decay=0.05, decay_bias=False),
    norm=Norm(group=8),
    model=Model(name="mini", width=8, zero_gamma=False, fc_std=0.05),
)
RATES = [0.1, 0.25, 0.2]


def plain_loop(cfg: Config) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float], float]:
    """Three steps by hand: weights, their average, each step's loss, the last one's error."""
    torch.manual_seed(cfg.seed)
    dataset = data.build(cfg.data, "train")
    options = {"zero_gamma": False, "fc_std": 0.05}
    net = resnet("mini", num_classes=24, norm="worker", **options)  # fed group by group
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    seen: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}
    for norm in norms:
        norm.momentum = 0.0
        norm.register_forward_pre_hook(lambda norm, args: seen[norm].append(args[0].detach()))
    velocity = {p: torch.zeros_like(p) for p in net.parameters()}
    stream, average, losses = SampleStream(32, 32, seed=cfg.seed), {}, []
    for step, lr in enumerate(RATES):
        order = [index for _, index in stream.batch(step)]
        pixels, labels = dataset.pixels[order].permute(0, 3, 1, 2) / 255, dataset.labels[order]
        pixels = (pixels - Tensor(cfg.data.mean).view(3, 1, 1)) / Tensor(cfg.data.std).view(3, 1, 1)
        net.zero_grad()
        losses.append(0.0)
        wrong = 0
        for images, classes in zip(pixels.split(16), labels.split(16), strict=True):
            share = float(torch.distributions.Beta(0.5, 0.5).sample())
            other = torch.randperm(16)
            mixed = share * images + (1 - share) * images[other]
            logits = torch.cat([net(group) for group in mixed.split(8)])
            one_hot = F.one_hot(classes, 24)
            targets = 0.9 * (share * one_hot + (1 - share) * one_hot[other]) + 0.1 / 24
            loss = -(targets * logits.log_softmax(1)).sum(1).mean() / 2
            loss.backward()
            losses[-1] += loss.item()
            wrong += int((logits.argmax(1) != classes).sum())
        with torch.no_grad():
            for p, v in velocity.items():
                g = p.grad + (0.05 * p if p.dim() > 1 else 0)  # neither gamma, beta nor bias
                v.copy_(0.8 * v + g)
                p -= lr * (g + 0.8 * v)
            for norm, inputs in seen.items():
                for buffer, per_group in (
                    (norm.running_mean, [x.mean((0, 2, 3)) for x in inputs]),
                    (norm.running_var, [x.var((0, 2, 3)) for x in inputs]),
                ):
                    buffer.lerp_(torch.stack(per_group).mean(0), 0.1)
                inputs.clear()
            state = {k: v.clone() for k, v in net.state_dict().items() if v.is_floating_point()}
            average = {k: 0.7 * average.get(k, v) + 0.3 * v for k, v in state.items()}
    return state, average, losses, 100 * wrong / 32


def test_three_steps_with_every_option_are_those_of_a_plain_loop(tmp_path):
    state, average, losses, error = plain_loop(EVERYTHING)
    found = train(replace(EVERYTHING, output_dir=str(tmp_path)))
    parts = checkpoint.load(tmp_path / "checkpoint-00000003.pt")["parts"]
    for name, value in state.items():
        torch.testing.assert_close(parts["model"][name], value, rtol=0, atol=1e-6)
        mean = parts["average"][f"module.{name}"]
        torch.testing.assert_close(mean, average[name], rtol=0, atol=1e-6)
    assert {group["form"] for group in parts["optimizer"]["param_groups"]} == {"v"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["lr"] for line in steps] == pytest.approx(RATES)
    assert [line["loss"] for line in steps] == pytest.approx(losses, abs=1e-6)
    assert found["train_error"] == error
