"""What train.py promises: exactly the planned pieces of a step, and every option in its place."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from large_minibatch import data
from large_minibatch.augment import Augment
from large_minibatch.config import Config, Data, Norm
from large_minibatch.memory import InMemory

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

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, str]:
        return self.held.pixels[index], int(self.held.labels[index]), self.files[index]


def gradient(images: torch.Tensor, labels: torch.Tensor, divisor: int = 1) -> torch.Tensor:
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
    planned = 0
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
        planned += 1
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
    assert planned > 20


def test_a_plan_of_other_processes_is_refused(monkeypatch):
    cfg, dataset = Config(batch_size=32, data=Data(root="", workers=0)), numbered(64)
    plan = data.plan_of(cfg, len(dataset))
    with pytest.raises(ValueError, match=r"1 processes and 2 steps .* there are 1 and 3: make it"):
        data.training_batches(numbered(96), cfg, plan, 0, 1)
    monkeypatch.setattr(data.dist, "world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"for 1 processes .* but there are 2 and 2"):
        data.training_batches(dataset, cfg, plan, 0, 1)
