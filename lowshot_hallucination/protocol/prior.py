"""The prior of the novel classes, Sec. 5: together they are as likely as mu says.

Q queries, C classes, novel (C,) bool. p'_k(x) = p(k | group of k, x) pi(group of k), where p inside
a group is the softmax over that group alone, pi(novel) = mu and pi(base) = 1 - mu.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def with_prior(logits: Tensor, novel: Tensor, mu: float) -> Tensor:
    """Probabilities (Q, C) of logits (Q, C) that give the novel classes the mass mu, 0..1."""
    return log_with_prior(logits, novel, mu).exp()


def log_with_prior(logits: Tensor, novel: Tensor, mu: float) -> Tensor:
    """Logarithms of `with_prior`, which still rank where the probabilities are all 0."""
    if not 0 <= mu <= 1:
        raise ValueError(f"the prior of the novel classes is {mu}: choose 0 to 1.")
    log_pi = torch.tensor([1 - mu, mu], device=logits.device).log()
    return log_within_groups(logits, novel) + log_pi[novel.long()]


def log_within_groups(logits: Tensor, novel: Tensor) -> Tensor:
    """Logarithms of p(k | group of k, x), float32 (Q, C)."""
    log_p = logits.float().clone()
    for group in (novel, ~novel):
        if group.any():
            log_p[:, group] = log_p[:, group].log_softmax(1)  # subtracts the group's maximum
    return log_p


def curve(
    logits: Tensor, labels: Tensor, novel: Tensor, priors: Sequence[float], k: int = 5
) -> dict[str, list[float]]:
    """Top-k accuracy in percent over all C classes at each prior: of novel, base and all queries.

    logits: (Q, C); labels: (Q,). It equals the accuracy of `log_with_prior` at each prior, in one
    pass over the logits: a prior leaves the order within a group as it is, so a query's rank is
    that in its own group plus those of the other group's k best that are now ahead.
    """
    log_p = log_within_groups(logits, novel)
    group = novel[labels].long()  # (Q,)
    same = novel == novel[labels][:, None]  # (Q, C)
    own = log_p.gather(1, labels[:, None])  # (Q, 1)
    rank = ((log_p >= own) & same).sum(1) - 1
    others = log_p.masked_fill(same, -math.inf).topk(min(k, log_p.shape[1])).values  # (Q, k)
    mu = torch.tensor(list(priors), device=logits.device)
    log_pi = torch.stack([1 - mu, mu]).log()  # (2, M)
    own = own + log_pi[group]  # (Q, M)
    others = others[:, :, None] + log_pi[1 - group][:, None]  # (Q, k, M)
    ahead = (others >= own[:, None]).sum(1)  # an equal score counts against the label
    hits = (rank[:, None] + ahead < k) | (k >= log_p.shape[1])
    parts = {"novel": hits[group == 1], "base": hits[group == 0], "all": hits}
    return {name: (100 * part.double().mean(0)).tolist() for name, part in parts.items()}


def choose_prior(
    outcomes: Sequence[tuple[Tensor, Tensor, Tensor]], priors: Sequence[float]
) -> float:
    """The prior of the highest mean top-5 over all queries; of equal ones the smallest.

    outcomes: (logits, labels, novel) of each draw of the cross-validation classes, never of the
    test classes.
    """
    grid = sorted(priors)
    means = [curve(logits, labels, novel, grid)["all"] for logits, labels, novel in outcomes]
    best = torch.tensor(means, dtype=torch.float64).mean(0)
    return grid[int((best == best.max()).nonzero()[0])]
