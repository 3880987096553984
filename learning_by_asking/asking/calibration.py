"""From logits to probabilities, and from these to a threshold.

M held-out pairs of one type, see pairs.py; labels are 1 where the pair is relevant, else 0.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PULL = 10  # weight of the scale of all types in that of one type, in pairs
MARGIN = 1e-6  # a threshold lies this far below a probability: another device rounds otherwise


def fit_platt(logits: Tensor, labels: Tensor, towards: float | None = None) -> tuple[float, float]:
    """Scale >= 0 and shift that make probabilities of logits; both double (M,), labels 0 or 1.

    Platt (1999): maximum likelihood of sigmoid(scale x logit + shift), the labels being drawn a
    little towards the middle, (n+ + 1) / (n+ + 2) and 1 / (n- + 2). Where larger logits go with
    irrelevant pairs the scale is 0, as the logits then tell nothing.

    towards: the scale of all types together, from which few pairs of one should not stray far;
    PULL / 2 (scale / towards - 1)^2 is added to the loss.
    """
    positives = float(labels.sum())
    high, low = (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2)
    targets = torch.where(labels > 0, high, low).double()
    if towards == 0:
        return 0.0, float(targets.mean().logit())
    values = torch.tensor([towards or 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [values], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(
            values[0] * logits + values[1], targets, reduction="sum"
        )
        if towards is not None:
            value = value + PULL / 2 * (values[0] / towards - 1) ** 2
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[arg-type]  # torch asks for a float, and takes a tensor
    scale, shift = values.detach().tolist()
    return (scale, shift) if scale > 0 else (0.0, float(targets.mean().logit()))


def choose_threshold(
    chances: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    rule: str,
    validity: float,
    least: float,
) -> float:
    """The threshold of one type; chances, labels, weights: (M,), weights above 0.

    rule: "validity" takes the lowest of the chances from which on the weighted share of relevant
    pairs reaches `validity`, "f1" the one with the highest weighted F1 score. In any case a share
    of `least` of the pairs passes, so that no type dies out.
    """
    order = chances.argsort(descending=True)
    ordered, weights, labels = chances[order], weights[order], labels[order]
    relevant, kept = (weights * labels).cumsum(0), weights.cumsum(0)  # at threshold ordered[i]
    last = torch.cat([ordered[1:] < ordered[:-1], torch.ones(1, dtype=torch.bool)])  # of equal ones
    if rule == "f1":
        score = 2 * relevant / (kept + relevant[-1])
        place = int(score.where(last, -1).argmax())
    else:
        good = (last & (relevant >= validity * kept)).nonzero()
        place = int(good[-1]) if len(good) else 0
    place = max(place, math.ceil(least * len(chances)) - 1)
    return float(ordered[place]) - MARGIN
