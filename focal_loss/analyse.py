"""Figure 4: how the loss spreads over the anchors of a trained model, for several gamma.

    python analyse.py run=outputs/demo/20260101-120000/focal_loss

writes `cdf.png` and `cdf.csv` into the run's folder and prints the shares. The paper trains with
gamma = 2 and then *recomputes* the loss of the same probabilities for each gamma, normalises it to
sum 1 and cumulates it (Sec. 5.1, "Analysis of the Focal Loss").

M samples of one kind (positive or negative logits).
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import csv
import io
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from omegaconf import MISSING
from torch import Tensor
from tqdm import tqdm

from common import dist, files
from common.coco.fields import Categories
from common.config import read_options
from common.config import run as run_command
from common.draw import save_figure
from common.tables.markdown import markdown
from focal_loss import data
from focal_loss.config import Config
from focal_loss.evaluate import load_run
from focal_loss.model import RetinaNet
from focal_loss.targets.assign import assign

GAMMAS = (0.0, 0.5, 1.0, 2.0)  # Fig. 4
POSITIVES, NEGATIVES = 100_000, 10_000_000  # samples of the paper's figure


def sample_losses(signed_logits: Tensor, gamma: float) -> Tensor:
    """Focal loss of each sample without alpha, which cancels in the normalisation; (M,) float64.

    `signed_logits` (M,) are x_t: the logit for a positive, minus the logit for a negative.
    """
    x_t = signed_logits.double()
    return torch.exp(gamma * F.logsigmoid(-x_t)) * -F.logsigmoid(x_t)  # Eq. 4


def cumulative(signed_logits: Tensor, gamma: float) -> Tensor:
    """Share of the total loss held by the easiest 1, 2, ..., M samples; (M,), ends at 1."""
    losses = sample_losses(signed_logits, gamma).sort().values
    return losses.cumsum(0) / losses.sum()


def share_of_hardest(signed_logits: Tensor, gamma: float, fraction: float) -> float:
    """Share (0..1) of the total loss that the hardest `fraction` (0..1) of the samples hold."""
    losses = sample_losses(signed_logits, gamma)
    count = max(1, round(fraction * len(losses)))
    return (losses.topk(count).values.sum() / losses.sum()).item()


def split_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """x_t of the positive and of the negative logits.

    `logits` (..., K); `labels` (...) int64: class of the anchor, -1 background, -2 ignored.
    Each positive anchor gives one positive and K - 1 negatives, each background anchor K negatives.
    """
    kept = labels > -2
    logits, labels = logits[kept], labels[kept]  # (A, K), (A,)
    positive = F.one_hot(labels.clamp(min=0), logits.shape[-1]).bool() & (labels >= 0)[:, None]
    return logits[positive], -logits[~positive]


def thin(values: Tensor, most: int, seed: int = 0) -> Tensor:
    """At most `most` of the values, drawn without replacement."""
    if len(values) <= most:
        return values
    generator = torch.Generator().manual_seed(seed)
    return values[torch.randperm(len(values), generator=generator)[:most].to(values.device)]


def shares(positives: Tensor, negatives: Tensor) -> list[dict[str, float]]:
    """One row per gamma: the shares of the loss that the hardest samples hold, in percent."""
    return [
        {
            "gamma": gamma,
            "top 20 % positives": 100 * share_of_hardest(positives, gamma, 0.2),
            "top 1 % negatives": 100 * share_of_hardest(negatives, gamma, 0.01),
            "top 0.1 % negatives": 100 * share_of_hardest(negatives, gamma, 0.001),
        }
        for gamma in GAMMAS
    ]


def write(folder: Path, positives: Tensor, negatives: Tensor) -> list[dict[str, float]]:
    """Write Fig. 4 as `cdf.png` and its shares as `cdf.csv` into `folder`; return the shares."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, kind, values in zip(
        figure.subplots(1, 2, sharey=True),
        ("positive", "negative"),
        (positives, negatives),
        strict=True,
    ):
        share = torch.linspace(0, 1, 1001, dtype=torch.float64)
        for gamma in GAMMAS:
            curve = cumulative(values, gamma).cpu()
            at = (share * (len(curve) - 1)).round().long()
            axes.plot(share, curve[at], label=f"γ = {gamma:g}")
        axes.set(xlabel=f"fraction of {kind} samples", title=f"{len(values):,} {kind} samples")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set_ylabel("cumulative normalised loss")
    save_figure(figure, folder / "cdf.png", dpi=120)
    rows = shares(positives, negatives)
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(folder / "cdf.csv", table.getvalue())
    return rows


@torch.no_grad()
def anchor_logits(model: RetinaNet, cfg: Config, categories: Categories) -> tuple[Tensor, Tensor]:
    """x_t of positive and of negative logits on the validation images, as many as in Fig. 4."""
    dataset = data.build(cfg.data, "val", categories)
    positives, negatives = [], []
    device = dist.device()
    share = NEGATIVES / max(1, len(dataset))  # of each image, so that all images count
    for batch in tqdm(data.validation_batches(dataset, cfg), "anchors", leave=False, disable=None):
        batch = batch.to(device)
        logits, _ = model(batch.images)
        labels, _ = assign(
            model.anchors(*batch.images.shape[-2:]),
            [target["boxes"] for target in batch.targets],
            [target["labels"] for target in batch.targets],
            low_quality=cfg.loss.low_quality,
            positive=cfg.loss.positive_iou,
            negative=cfg.loss.negative_iou,
        )
        for one_logits, one_labels in zip(logits, labels, strict=True):
            positive, negative = split_logits(one_logits.float(), one_labels)
            positives.append(positive.cpu())
            negatives.append(thin(negative, max(1, int(share))).cpu())
    return thin(torch.cat(positives), POSITIVES), thin(torch.cat(negatives), NEGATIVES)


def report(folder: Path) -> None:
    """Write Fig. 4 of a run and print its shares as a Markdown table."""
    model, cfg, categories = load_run(folder)
    positives, negatives = anchor_logits(model, cfg, categories)
    rows = write(folder, positives, negatives)
    print(f"\nShare of the loss; {len(positives):,} positives, {len(negatives):,} negatives")
    print(markdown(list(rows[0]), [[f"{x:.4g}" for x in row.values()] for row in rows], left=0))
    print(f"\n{folder / 'cdf.png'}")


@dataclass
class Options:
    """Words of the command line."""

    run: str = MISSING  # a folder that train.py wrote


def main() -> None:
    """Read `run=FOLDER` from the command line."""
    report(Path(read_options(Options, usage=__doc__).run))


if __name__ == "__main__":
    run_command(main)
