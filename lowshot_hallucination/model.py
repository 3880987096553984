"""The meta-learners h(support, queries), Sec. 3: the networks that use imagined examples.

    learner = build_learner(Learner(method="pmn"), width=512)
    logits = learner(support, queries)              # Support (m, N, d), (Q, d) -> (Q, m)

    PN    p(k | x) = softmax_k -||phi(x) - mu_k||^2, mu_k the mean of the phi of class k
    MN    p(k | x) = sum over the examples i of class k of softmax_i cos(f(x), g_i)
    PMN   p(k | x) = softmax_k cos(f(x), g_k), where g reads the m class means and not all examples

Logits are log-probabilities up to a constant of each query. Legend: m classes, N slots of a class,
T examples of all classes, d width of a feature, Q queries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .hallucinate import Support
from .net.embed import Embedding
from .net.episode import permute
from .net.matching import SCORES, Attention, Context, average, class_orders, match, tile
from .net.prototypes import DISTANCES, masked_mean, score, shrink

CHOICES = {
    "method": ("pn", "mn", "pmn", "nearest", "logistic"),
    "embed": ("", "mlp", "none"),
    "distance": ("", *DISTANCES),
    "mn_score": ("cosine", "hg"),
}
ROWS = 65536  # features of which the centre is computed at a time


@dataclass
class Learner:
    """Which learner, and its parts."""

    # | mn | pmn | nearest (class means of plain features, nothing is learned)
    # | logistic (fitted to each test by baselines/)
    method: str = "pn"
    embed: str = ""  # phi: mlp | none; empty: mlp of pn, none of the others
    embed_layers: int = 2  # 5 has the parameters of G as well: a control
    embed_hidden: int = 0  # width between layers; 0: that of a feature
    final_relu: bool = False  # Unstated: a ReLU after the last layer of phi
    # euclidean | cosine | centred_cosine (about the mean of base features);
    # empty: euclidean of pn and nearest, cosine of pmn
    distance: str = ""
    scale: float = 0.0  # of logits, at the start; 0: 1 of euclidean distances, 10 of cosines
    learn_scale: bool = True
    # Prototypes M + a (p - M), M the mean of base features: a, or cv (chosen on the cv classes)
    shrink: str = "1"
    hops: int = 5  # of mn and pmn: reads of the support set by a query
    mn_score: str = "cosine"  # of mn | hg (the benchmark authors' form: no scale, one norm)
    mn_tile: bool = True  # of mn: in the test, repeat examples until classes have equally many
    order_ensemble: int = 1  # of mn and pmn: orders of classes that the test averages over

    def __post_init__(self) -> None:
        for option, choices in CHOICES.items():
            value = getattr(self, option)
            if value not in choices:
                named = ", ".join(filter(None, choices))
                raise ValueError(f"learner.{option}={value}: choose from {named}.")
        least = {"embed_layers": 1, "embed_hidden": 0, "scale": 0, "hops": 1, "order_ensemble": 1}
        for option, lowest in least.items():
            value = getattr(self, option)
            if value < lowest:
                raise ValueError(f"learner.{option}={value}: give {lowest} or more.")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"learner.shrink={self.shrink}: give a number from 0 to 1, or cv.")
        self._refuse_options_without_effect()

    def _refuse_options_without_effect(self) -> None:
        method = self.method
        reads = method in ("mn", "pmn")
        without = {
            "embed": method == "nearest" and self.embed == "mlp",
            "final_relu": self.final_relu and not self.has_embedding,
            "distance": bool(self.distance) and method not in ("pn", "pmn", "nearest"),
            "shrink": self.shrinks and method not in ("pn", "pmn", "nearest"),
            "order_ensemble": self.order_ensemble > 1 and not reads,
            "mn_score": self.mn_score == "hg" and method != "mn",
        }
        for option, refused in without.items():
            if refused:
                value = getattr(self, option)
                raise ValueError(
                    f"learner.{option}={value} has no effect with learner.method={method}: "
                    "leave it out."
                )
        if self.mn_score == "hg" and self.scale:
            raise ValueError("learner.scale has no effect with learner.mn_score=hg: leave it out.")
        if method == "pmn" and self.distance == "centred_cosine":
            raise ValueError(
                "learner.distance=centred_cosine is for learner.method=pn or nearest: pmn compares "
                "what its LSTMs give, which has another mean. Give euclidean or cosine."
            )

    @property
    def weight(self) -> float:
        """The weight a of shrinkage; 1 until cv has chosen one, NaN where it is no number."""
        if self.shrink == "cv":
            return 1.0
        try:
            return float(self.shrink)
        except ValueError:
            return float("nan")

    @property
    def shrinks(self) -> bool:
        return self.weight != 1 or self.shrink == "cv"

    @property
    def has_embedding(self) -> bool:
        return self.embed == "mlp" or (self.embed == "" and self.method == "pn")

    @property
    def metric(self) -> str:
        """The distance of prototype learners."""
        return self.distance or ("cosine" if self.method == "pmn" else "euclidean")


def build_learner(options: Learner, width: int) -> "PrototypeLearner | MatchingNetwork":
    """The learner for features of `width`; see PrototypeLearner and MatchingNetwork."""
    if options.method == "logistic":
        raise ValueError(
            f"learner.method={options.method} has no learner that is trained on episodes: "
            "baselines/logistic.py fits it to each test."
        )
    if options.method == "mn":
        return MatchingNetwork(options, width)
    return PrototypeLearner(options, width)


def build_embedding(options: Learner, width: int) -> Embedding:
    """Phi: (..., d) -> (..., d)."""
    return Embedding(
        width,
        layers=options.embed_layers if options.has_embedding else 0,
        hidden=options.embed_hidden,
        final_relu=options.final_relu,
    )


def set_scale(module: nn.Module, start: float, *, learned: bool) -> None:
    """Give the module a `scale` (): a parameter if it is learned, a buffer if not."""
    if learned:
        module.scale = nn.Parameter(torch.tensor(start))
    else:
        module.register_buffer("scale", torch.tensor(start))


class PrototypeLearner(nn.Module):
    """PN, nearest mean and PMN: queries are compared with one prototype of each class.

    Attribute `shrink`: the weight a of M + a (p - M), 1 for plain class means. Shrinkage and
    centred cosine need M: `set_centre` before the test, once training has ended.
    """

    scale: Tensor
    centre: Tensor
    centre_rows: Tensor

    def __init__(self, options: Learner, width: int) -> None:
        super().__init__()
        self.embed = build_embedding(options, width)
        self.distance = options.metric
        self.shrink = options.weight
        self.ensemble = options.order_ensemble
        contextual = options.method == "pmn"
        self.context = Context(width) if contextual else None
        self.attention = Attention(width, hops=options.hops) if contextual else None
        start = options.scale or (1.0 if self.distance == "euclidean" else 10.0)
        set_scale(self, start, learned=options.learn_scale and options.method != "nearest")
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("centre_rows", torch.tensor(0))  # features that it is the mean of

    def forward(self, support: Support, queries: Tensor) -> Tensor:
        """Support (m, N, d), (Q, d) -> logits (Q, m)."""
        prototypes = self.prototypes(support)
        queries = self.embed(queries)
        if self.context is None or self.attention is None:
            centred = self.distance == "centred_cosine"
            centre = self.middle(prototypes) if centred else None
            return self.scale * score(queries, prototypes, self.distance, centre)
        logits = []
        # Unstated: in which order the LSTMs read the classes.
        for order in class_orders(
            len(prototypes),
            training=self.training,
            ensemble=self.ensemble,
            device=prototypes.device,
        ):
            g = self.context(prototypes[order])
            scores = score(self.attention(queries, g), g, self.distance)
            logits.append(self.scale * scores[:, order.argsort()])
        return average(logits)

    def prototypes(self, support: Support) -> Tensor:
        """mu_k, the mean of the embedded examples of class k, shrunk towards M; (m, d)."""
        rows = self.embed(support.features[support.mask])  # (T, d), without the padding
        means = masked_mean(rows, support.mask)
        return means if self.shrink == 1 else shrink(means, self.middle(means), self.shrink)

    def middle(self, prototypes: Tensor) -> Tensor:
        """M (d,): the mean of embedded base features.

        While an embedding learns, that changes with every step: M is the mean of the prototypes.
        """
        if self.training and self.embed.learns:
            return prototypes.mean(0)
        if int(self.centre_rows) == 0:
            raise ValueError(
                "Shrinkage and centred cosine need the mean of base features: call "
                "learner.set_centre(features) first."
            )
        return self.centre

    @torch.no_grad()
    def set_centre(self, features: Tensor) -> None:
        """Set M to the mean of the embedded base features (R, d); again after each training."""
        total = torch.zeros_like(self.centre, dtype=torch.float64)
        for rows in features.split(ROWS):
            total += self.embed(rows.to(self.centre)).double().sum(0)
        self.centre.copy_(total / len(features))
        self.centre_rows.fill_(len(features))


class MatchingNetwork(nn.Module):
    """MN: queries are compared with every example, which have seen each other."""

    scale: Tensor

    def __init__(self, options: Learner, width: int) -> None:
        super().__init__()
        self.embed = build_embedding(options, width)
        self.context = Context(width)
        self.attention = Attention(width, hops=options.hops)
        self.kind, self.tile = options.mn_score, options.mn_tile
        self.ensemble = options.order_ensemble
        hg = self.kind == "hg"
        start = 1.0 if hg else options.scale or 10.0
        set_scale(self, start, learned=options.learn_scale and not hg)

    def forward(self, support: Support, queries: Tensor) -> Tensor:
        """Support (m, N, d), (Q, d) -> logits (Q, m).

        The context is computed once a call: give all queries of a test at once.
        """
        if self.tile and not self.training:
            support = tile(support)
        queries = self.embed(queries)
        logits = []
        for order in class_orders(
            len(support.counts),
            training=self.training,
            ensemble=self.ensemble,
            device=queries.device,
        ):
            ordered = permute(support, order)
            mask = ordered.mask
            # Differs: examples stand in blocks of a class; the authors tile all novel ones at once.
            g = self.context(self.embed(ordered.features[mask]))  # (T, d)
            parts = [
                match(self.attention(part, g), g, mask, scale=self.scale, kind=self.kind)
                for part in queries.split(max(1, SCORES // len(g)))
            ]
            logits.append(torch.cat(parts)[:, order.argsort()])
        return average(logits)
