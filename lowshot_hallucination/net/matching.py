"""Full context embeddings of matching networks, in the form of the benchmark's authors.

    g = s + LSTM_forward(s) + LSTM_backward(s)                  s: all examples as one sequence
    h = f, c = 0;  K times:  r = softmax(h g^T) g;  h, c = LSTM([f; r], (h, c));  h = h + f

Vinyals et al. 2016; Hariharan and Girshick 2017, whose attention reads g without normalisation.
Legend: m classes, N slots of a class, T examples of all classes, d width of a feature, Q queries.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..hallucinate import Support
from .prototypes import EPSILON, cosine

SCORES = 2**25  # of queries with examples at a time: 128 MB in float32


class Context(nn.Module):
    """A sequence that has seen itself in both directions; it depends on the order."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, bidirectional=True)

    def forward(self, sequence: Tensor) -> Tensor:
        """(T, d) -> (T, d)."""
        both, _ = self.lstm(sequence)
        return sequence + both.unflatten(-1, (2, -1)).sum(-2)


class Attention(nn.Module):
    """Queries that read the examples `hops` times."""

    def __init__(self, width: int, *, hops: int = 5) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(2 * width, width)
        self.hops = hops

    def forward(self, queries: Tensor, examples: Tensor) -> Tensor:
        """(Q, d), (T, d) -> (Q, d)."""
        h, c = queries, torch.zeros_like(queries)
        examples = examples[None, None]  # (1, 1, T, d), what the fast kernels take
        for _ in range(self.hops):
            read = F.scaled_dot_product_attention(h[None, None], examples, examples, scale=1.0)
            h, c = self.cell(torch.cat((queries, read[0, 0]), 1), (h, c))
            h = h + queries
        return h


def match(queries: Tensor, examples: Tensor, mask: Tensor, *, scale: Tensor, kind: str) -> Tensor:
    """Logarithm of the sum of exp(score) over the examples of each class; (Q, m).

    queries: (Q, d). examples: (T, d) in the order of the mask's True. mask: (m, N).
    kind: "cosine" of query and example times the scale, or "hg", whose query has its full length
    and which has no scale.
    """
    with torch.autocast(queries.device.type, enabled=False):
        if queries.dtype != torch.float64:
            queries, examples = queries.float(), examples.float()
        if kind == "hg":
            scores = queries @ (examples / (examples.norm(dim=1, keepdim=True) + EPSILON)).T
        else:
            scores = scale * cosine(queries, examples)
        padded = scores.new_full((len(scores), *mask.shape), -torch.inf)
        return padded.masked_scatter(mask, scores).logsumexp(2)  # (Q, m, N) -> (Q, m)


def tile(support: Support) -> Support:
    """Repeat the examples of each class until it has N, as many as the largest.

    A class's probability is a sum over its examples, so that classes of many would win.
    """
    m, N, d = support.features.shape
    slots = torch.arange(N, device=support.counts.device) % support.counts[:, None]  # (m, N)
    rows = support.features.gather(1, slots[..., None].expand(m, N, d))
    return Support(rows, torch.full_like(support.counts, N))


def class_orders(m: int, *, training: bool, ensemble: int, device: torch.device) -> list[Tensor]:
    """Orders of the classes (m,) in which the LSTMs read them.

    In training, one at random. In the test the given one, and `ensemble` - 1 fixed others.
    """
    if training:
        return [torch.randperm(m, device=device)]
    own = torch.Generator().manual_seed(0)
    others = [torch.randperm(m, generator=own) for _ in range(ensemble - 1)]
    return [order.to(device) for order in (torch.arange(m), *others)]


def average(logits: list[Tensor]) -> Tensor:
    """Mean of log-probabilities over the orders, (Q, m) each; one alone stays as it is."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([each.log_softmax(1) for each in logits]).mean(0)
