"""Figure 4: how the loss spreads over the anchors of a trained model, for several gamma.

M samples of one kind (positive or negative logits), sorted from the easiest to the hardest.
The paper trains with gamma = 2 and then *recomputes* the loss of the same probabilities for each
gamma, normalises it to sum 1 and cumulates it (Sec. 5.1, "Analysis of the Focal Loss").

`python analyse.py run=outputs/...` draws it for a trained model.
"""

import csv
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

GAMMAS = (0.0, 0.5, 1.0, 2.0)  # Fig. 4


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
    from matplotlib.figure import Figure

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
    partial = folder / "cdf.png.tmp"
    figure.savefig(partial, format="png", dpi=120)
    partial.rename(folder / "cdf.png")
    rows = shares(positives, negatives)
    partial = folder / "cdf.csv.tmp"
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    partial.rename(folder / "cdf.csv")
    return rows
