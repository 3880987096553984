"""Top-1 error of a model, each image counted once, and the course of the errors over a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from common import dist, draw
from common.metrics import Accuracy, Average
from large_minibatch import data, recipe
from large_minibatch.config import Config
from large_minibatch.norm import buffers

SHOWN = 32  # images of predictions
FRAME = 4  # pixels around each


@torch.no_grad()
def evaluate(model: nn.Module, cfg: Config, dataset: Any) -> dict[str, float]:
    """`val_error` (top 1), `val_error5` in percent and `val_loss`, the same on every process.

    Single centre crop, Sec. 5.1. The class columns that `data.evaluated` leaves out are masked.
    """
    device = dist.device()
    columns = data.evaluation_columns(dataset, cfg.data)  # (K,) or None
    classes = len(dataset.classes) if columns is None else int(columns.sum())
    accuracy, loss = Accuracy((1, min(5, classes))), Average()
    training = model.training
    model.eval()
    batches = data.validation_batches(dataset, cfg, cfg.per_forward)
    for batch in tqdm(batches, "evaluate", leave=False, disable=None if dist.is_main() else True):
        batch = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
            logits = model(data.normalise(batch.images, cfg.data)).float()  # (N, K)
        logits = among(logits, columns)
        accuracy.add(logits, batch.labels)
        loss.add(F.cross_entropy(logits, batch.labels), len(batch.labels))
    model.train(training)
    top1, top5 = accuracy.compute().values()
    return {"val_error": 100 - top1, "val_error5": 100 - top5, "val_loss": loss.compute()}


def due(epoch: float, cfg: Config) -> bool:
    """Whether to evaluate after `epoch`: now and then, and in the last epochs, for the median."""
    return epoch % cfg.evaluate_every == 0 or epoch > cfg.epochs - cfg.median_of


def among(logits: Tensor, columns: Tensor | None) -> Tensor:
    """`logits` (N, K), -inf where `columns`, bool (K,), is false; None: as they are."""
    if columns is None:
        return logits
    return logits.masked_fill(~columns.to(logits.device), float("-inf"))


def settle_buffers(model: nn.Module, cfg: Config, plan: recipe.Plan, dataset: Any) -> None:
    """Give all processes of `model` the BN statistics that the evaluation uses, Sec. 2.3.

    rank0: those of the first worker, as DDP would broadcast them; mean: the average of all workers;
    precise: of the weights as they stand, over `norm.precise_batches` steps of `dataset`.
    """
    match cfg.norm.evaluate:
        case "rank0":
            buffers.broadcast_first(model)
        case "mean":
            buffers.average(model)
        case "precise":
            stop = min(cfg.norm.precise_batches, plan.steps_per_epoch)
            steps = data.training_batches(dataset, cfg, plan, 0, stop)
            device = dist.device()
            images = (
                data.normalise(piece.to(device).images, cfg.data)
                for pieces in steps
                for piece in pieces
            )
            buffers.precise(model, images)


@torch.no_grad()
def contact_sheet(model: nn.Module, cfg: Config, dataset: Any) -> None:
    """Write `predictions.png`: validation images, spread over the set, with answer and truth.

    The frame is green where the answer is right and red where it is wrong.
    """
    if not dist.is_main() or not len(dataset):
        return
    batch = data.some(dataset, torch.linspace(0, len(dataset) - 1, SHOWN).long().unique().tolist())
    training = model.training
    logits = model.eval()(data.normalise(batch.images.to(dist.device()), cfg.data))
    logits = among(logits, data.evaluation_columns(dataset, cfg.data))
    model.train(training)
    names, titles, images = dataset.classes, [], []
    scale = max(1, round(128 / max(batch.images.shape[-2:])))
    found, labels = logits.argmax(1).tolist(), batch.labels.tolist()
    for image, answer, label in zip(batch.images, found, labels, strict=True):
        right = answer == label
        titles.append(names[answer] + (": right" if right else f": is {names[label]}"))
        large = F.interpolate(image[None], scale_factor=scale)[0]
        images.append(frame(large, draw.PALETTE[2 if right else 0]))
    draw.save_png(
        draw.grid(images, columns=8, titles=titles), Path(cfg.output_dir, "predictions.png")
    )


def frame(image: Tensor, color: tuple[int, int, int]) -> Tensor:
    """The image, uint8 (3, H, W), with a border of `FRAME` pixels around it."""
    channels = zip(image, color, strict=True)
    return torch.stack([F.pad(channel, [FRAME] * 4, value=value) for channel, value in channels])


class History:
    """Errors of a run by epoch; a part of the checkpoint, so that a resumed run knows them.

    The training error is that of the batches as they were trained on, Fig. 2.
    """

    def __init__(self) -> None:
        self.wrong, self.seen = 0, 0  # since the last epoch, over all processes
        self.epochs: list[dict[str, float]] = []

    def count(self, wrong: Tensor, seen: int) -> None:
        """Count a step: this process's number of wrong ones, and the images of all processes."""
        self.wrong += int(dist.total(wrong))
        self.seen += seen

    def close(self, epoch: float, **measured: float) -> dict[str, float]:
        """End an epoch: its training error in percent, with what was `measured`."""
        error = 100 * self.wrong / self.seen if self.seen else float("nan")  # only evaluated
        self.epochs.append({"epoch": epoch, "train_error": error, **measured})
        self.wrong = self.seen = 0
        return self.epochs[-1]

    def final(self, last: int) -> dict[str, float]:
        """The last epoch, and `error`: the median of the `last` validation errors, Sec. 5.1."""
        errors = [epoch["val_error"] for epoch in self.epochs if "val_error" in epoch]
        return self.epochs[-1] | {"error": recipe.median_of_last(errors, last)}

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint keeps."""
        return {"wrong": self.wrong, "seen": self.seen, "epochs": list(self.epochs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.wrong, self.seen = state["wrong"], state["seen"]
        self.epochs = list(state["epochs"])
