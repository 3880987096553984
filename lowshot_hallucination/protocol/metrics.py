"""The accuracies of Sec. 5: novel, base, all, all with a prior; and the older protocol's.

Q queries, C classes; novel (C,) bool, and a query is novel where its class is.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from common.metrics import topk_correct

from .prior import log_with_prior

KS = (1, 5)


def score(
    logits: Tensor,
    labels: Tensor,
    novel: Tensor,
    *,
    prior: float | None = None,
    protocol: str = "new",
) -> dict[str, float]:
    """Top-1 and top-5 in percent, nan where there is no such query.

    novel1, novel5, base1, base5: queries of that group. protocol="new" ranks them among the classes
    of the group, the others' scores being -inf; "hg", the older one, among all C, which are then
    all classes that the classifier knows (1,000).
    all1, all5: all queries among all classes, each image counted once. balanced1, balanced5: the
    mean of novel and base queries among all classes. prior1, prior5: `all` with the prior, where
    given. logits: (Q, C); labels: (Q,), 0..C-1.
    """
    if protocol not in ("new", "hg"):
        raise ValueError(f"test.protocol={protocol} is unknown: choose new or hg.")
    found = {}
    joints = []  # of novel and of base queries among all classes
    for name, group in (("novel", novel), ("base", ~novel)):
        own = group[labels]
        joint = accuracy(logits[own], labels[own])
        within = accuracy(logits[own].masked_fill(~group, -math.inf), labels[own])
        found[f"{name}1"], found[f"{name}5"] = within if protocol == "new" else joint
        joints.append(joint)
    found["all1"], found["all5"] = accuracy(logits, labels)
    found["balanced1"], found["balanced5"] = (sum(pair) / 2 for pair in zip(*joints, strict=True))
    if prior is not None:
        ranked = log_with_prior(logits, novel, prior)
        found["prior1"], found["prior5"] = accuracy(ranked, labels)
    return found


def accuracy(logits: Tensor, labels: Tensor, ks: Sequence[int] = KS) -> list[float]:
    """Top-k accuracy in percent for each k, or min(k, C); nan without queries."""
    if not len(labels):
        return [math.nan] * len(ks)
    return [100 * n / len(labels) for n in topk_correct(logits, labels, ks).tolist()]
