"""Which question to ask: the expected improvement of the answerer, and the choice by it.

    s_t(a)   = (H_t(a) - H_{t-D}(a)) / H_t(a)     how fast accuracy on answer a improves
    score(q) = sum_a v(a | I, q) s_t(a)           what an answer to q may improve
    ask argmax score(q), and with probability epsilon any proposal

v is the answerer, whose softmax over the answers is known before an answer is bought. H_t(a) is its
running accuracy on questions whose true answer was a, measured on the answers just bought, before
it learns from them. Mastered and hopeless answers have s near 0, so that questions are asked where
accuracy is moving: first easy ones, then harder ones. Nobody programs this curriculum.

# Unstated: everything but the form of the score: we could not read the paper's numbers. Slow
refreshes (a tenth of the budget) are worse than asking at random.

I images of a round, P proposals of an image, A = 28 answers, K = 13 types of question (the function
at a program's root). Answers are numbered 0..27, in the vocabulary 4..31. Types are -1 where a row
of proposals has a gap.

This file needs PyTorch alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ANSWERS = 28
TYPES = 13
PRIOR = 1 / ANSWERS  # H before the first answer: that of a guess
SCORES = (
    "lba",
    "abs_progress",
    "entropy",
    "variation_ratio",
    "least_confident_type",
    "random",
    "round_robin_type",
    "oracle_loss",
)
FACTORS = ("answer", "type_answer")
SHARE = 0.02  # Unstated: of the budget, between refreshes; 1 to 2.5 % work in simulation


@dataclass
class Policy:
    """How a question is chosen: the group `policy`."""

    score: str = "lba"  # one of SCORES
    epsilon: float = 0.1  # Unstated: probability of any proposal instead of the best
    rate: float = 0.02  # Unstated: of the running accuracy, for each answer
    refresh: int = 0  # Unstated: D in answers; 0: 2 % of the budget
    clip_negative: bool = False  # s at least 0 instead of -1
    optimism: float = 1.0  # Unstated: s of an answer that was not seen by the last refresh
    factor: str = "answer"  # answer | type_answer: H per answer, or per type and answer
    soft: bool = False  # H averages the probability of the right answer instead of 0 or 1
    global_pick: int = 0  # questions chosen among all images of a round; 0: one of each image

    def __post_init__(self) -> None:
        for name, choices in (("score", SCORES), ("factor", FACTORS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"policy.{name} is {getattr(self, name)!r}: choose {', '.join(choices)}"
                )
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"policy.epsilon is {self.epsilon}: give a probability, 0 to 1")
        if not 0 < self.rate < 1:
            raise ValueError(f"policy.rate is {self.rate}: give more than 0 and less than 1")
        if not -1 <= self.optimism <= 1:
            raise ValueError(f"policy.optimism is {self.optimism}: s is between -1 and 1")
        for name in ("refresh", "global_pick"):
            if getattr(self, name) < 0:
                raise ValueError(f"policy.{name} is {getattr(self, name)}: give 0 or more")


# Progress


class Progress:
    """Running accuracy H of the answerer, and how it moved between the last two refreshes.

    budget: answers to be bought; 2 % of it is D where `policy.refresh` is 0. possible: (13, 28)
    bool, for `factor=type_answer`, the answers that a type can have; None: all. The others improve
    by 0: they would stay unseen, and hoped for, for ever.
    """

    def __init__(self, policy: Policy, *, budget: int, possible: Tensor | None = None) -> None:
        self.policy = policy
        self.refresh = policy.refresh or max(1, round(SHARE * budget))
        self.by_type = policy.factor == "type_answer"
        cells = TYPES * ANSWERS if self.by_type else ANSWERS
        self.accuracy = torch.full((cells,), PRIOR, dtype=torch.float64)  # H_t
        self.count = torch.zeros(cells, dtype=torch.int64)  # answers seen
        self.after = self.accuracy.clone()  # H at the last refresh
        self.before = self.accuracy.clone()  # and at the one before
        self.known = torch.zeros(cells, dtype=torch.bool)  # seen by the last refresh
        self.possible = torch.ones(cells, dtype=torch.bool)
        if possible is not None and self.by_type:
            self.possible = possible.flatten()

    def update(self, answers: Tensor, correct: Tensor, types: Tensor) -> None:
        """Count valid replies in their order, before the answerer learns from them.

        answers: (n,) int64 0..27, the true ones. correct: (n,) bool or 0..1, see `correctness`.
        types: (n,) int64 0..12. A refresh falls between two answers, also within a round.
        """
        _require_range("answers", answers, ANSWERS)
        _require_range("types", types, TYPES)
        if not ((correct >= 0) & (correct <= 1)).all():
            raise ValueError("progress takes whether answers were correct as 0 to 1, never NaN")
        cells = types * ANSWERS + answers if self.by_type else answers
        total = int(self.count.sum())
        for cell, value in zip(cells.tolist(), correct.double().tolist(), strict=True):
            self.accuracy[cell] += self.policy.rate * (value - self.accuracy[cell])
            self.count[cell] += 1
            total += 1
            if total % self.refresh == 0:
                self.before, self.after = self.after, self.accuracy.clone()
                self.known = self.count > 0

    def improvement(self, *, relative: bool = True) -> Tensor:
        """Relative improvement s (28,) or (13, 28) float64, or with relative=False |H_t - H_{t-D}|.

        Within -1..1; `policy.optimism` for what was not seen by the last refresh.
        """
        gain = self.after - self.before
        # H of an answer that is never given falls towards 0, where 0 / 0 would be NaN.
        s = gain / self.after.clamp(min=1e-9) if relative else gain.abs()
        s = s.clamp(0.0 if self.policy.clip_negative else -1.0, 1.0)
        s = torch.where(self.known, s, self.policy.optimism) * self.possible
        return s.view(TYPES, ANSWERS) if self.by_type else s

    def state_dict(self) -> dict[str, Tensor]:
        """All that changes, as tensors."""
        names = ("accuracy", "count", "after", "before", "known")
        return {name: getattr(self, name).clone() for name in names}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state_dict()`; ValueError for one of another `policy.factor`."""
        for name, value in state.items():
            if value.shape != self.accuracy.shape:
                raise ValueError(
                    f"the progress stored has {name} {tuple(value.shape)}, this run "
                    f"{tuple(self.accuracy.shape)}: give policy.factor as before"
                )
            setattr(self, name, value.clone())


def correctness(probs: Tensor, answers: Tensor, *, soft: bool = False) -> Tensor:
    """Whether v was right, float (n,): 1 where the right answer is the likeliest, else 0.

    probs: (n, 28). answers: (n,) 0..27, the true ones. soft: the right answer's probability.
    """
    if soft:
        return probs.gather(1, answers[:, None])[:, 0]
    return (probs.argmax(1) == answers).to(probs.dtype)


def _require_range(name: str, values: Tensor, size: int) -> None:
    outside = (values < 0) | (values >= size)
    if outside.any():
        raise ValueError(
            f"progress takes {name} 0..{size - 1}, not {int(values[outside][0])}: answers are "
            "vocabulary ids less 4, types indices of the root function"
        )


# Scores


def score_proposals(
    probs: Tensor,
    types: Tensor,
    policy: Policy,
    progress: Progress,
    *,
    generator: torch.Generator,
    losses: Tensor | None = None,
) -> Tensor:
    """Scores (I, P) by `policy.score`; the highest is asked.

    probs: (I, P, 28), v's softmax. types: (I, P) int64. generator: on the CPU, of this round.
    losses: (I, P), v's loss of the true answer, NaN where there is none; for `oracle_loss` alone.
    """
    match policy.score:
        case "lba":
            return expected_improvement(probs, types, progress.improvement())
        case "abs_progress":
            return expected_improvement(probs, types, progress.improvement(relative=False))
        case "entropy":
            return entropy(probs)
        case "variation_ratio":
            return variation_ratio(probs)
        case "least_confident_type":
            return least_confident_type(probs, types)
        case "random":
            return torch.rand(types.shape, generator=generator).to(probs)
        case "round_robin_type":
            return round_robin_type(types, generator).to(probs)
    if losses is None:
        raise ValueError("policy.score=oracle_loss scores by the losses: give `losses`")
    return losses


def expected_improvement(probs: Tensor, types: Tensor, s: Tensor) -> Tensor:
    """sum_a v(a | I, q) s(a), (I, P); s is (28,), or (13, 28) by type."""
    s = s.to(probs)
    # As v sums to 1, a constant may be taken out of s; then an s that is constant gives exact ties.
    top = s.max()
    if s.dim() == 1:
        return top + probs @ (s - top)
    by_type = top + (probs * (s - top)[types.clamp(min=0)]).sum(-1)
    return torch.where(types < 0, by_type * 0, by_type)  # no type, no hope; NaN stays


def entropy(probs: Tensor) -> Tensor:
    """H[v(. | I, q)] in nats, (I, P): what v is least sure of, be it learnable or not."""
    return -torch.special.xlogy(probs, probs).sum(-1)


def variation_ratio(probs: Tensor) -> Tensor:
    """1 - max_a v(a | I, q), (I, P)."""
    return 1 - probs.max(-1).values


def least_confident_type(probs: Tensor, types: Tensor) -> Tensor:
    """1 - max_a v, its mean over all proposals of the same type in the round, (I, P)."""
    doubt = variation_ratio(probs)
    member = (types[..., None] == torch.arange(TYPES, device=types.device)) & ~doubt[
        ..., None
    ].isnan()
    mean = torch.where(member, doubt[..., None], 0).sum((0, 1)) / member.sum((0, 1)).clamp(min=1)
    mean = torch.where(types < 0, doubt, mean[types.clamp(min=0)])  # what has no type is alone
    return mean.masked_fill(doubt.isnan(), torch.nan)


def round_robin_type(types: Tensor, generator: torch.Generator) -> Tensor:
    """0 for the type whose turn it is, -1 for the next, ... (I, P).

    The images of a round take the 13 types in turn, from a random one.
    """
    first = int(torch.randint(TYPES, (), generator=generator))
    turn = torch.arange(first, first + len(types), device=types.device)
    late = (types - turn[:, None]) % TYPES
    return -torch.where(types < 0, TYPES, late)  # what has no type comes last


# The choice


def choose(
    scores: Tensor, allowed: Tensor, epsilon: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A proposal of each image: the best, or with probability `epsilon` any; epsilon-greedy.

    scores: (I, P). allowed: (I, P) bool. A NaN score counts as not allowed; the lowest index wins a
    tie. Returns picks (I,) int64, -1 where nothing is allowed, and explored (I,) bool, whether the
    proposal was drawn whatever its score. Which numbers are drawn depends on the shape alone.
    """
    open_ = allowed & ~scores.isnan()
    explored = torch.rand(len(scores), generator=generator).to(scores.device) < epsilon
    keys = torch.rand(scores.shape, generator=generator).to(scores)
    explored &= open_.any(1)
    return _best(torch.where(explored[:, None], keys, scores), open_), explored


def choose_most(
    scores: Tensor, allowed: Tensor, epsilon: float, generator: torch.Generator, *, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The `most` best proposals of all images of the round, fewer where fewer are allowed.

    Each is with probability `epsilon` a random one of the rest instead. Inputs and ties as in
    `choose`. Returns images (m,), picks (m,) int64 and explored (m,) bool, the best ones first.
    """
    open_ = (allowed & ~scores.isnan()).flatten()
    coins = torch.rand(most, generator=generator) < epsilon
    keys = torch.rand(open_.shape, generator=generator).to(scores)
    m = min(most, int(open_.sum()))
    best = m - int(coins[:m].sum())
    order = scores.flatten().argsort(descending=True, stable=True)
    greedy = order[open_[order]][:best]
    open_[greedy] = False
    drawn = keys.masked_fill(~open_, -1.0).argsort(descending=True, stable=True)[: m - best]
    chosen = torch.cat([greedy, drawn])
    explored = torch.arange(m, device=scores.device) >= best
    return chosen // scores.shape[1], chosen % scores.shape[1], explored


def _best(scores: Tensor, open_: Tensor) -> Tensor:
    """Lowest index (I,) of the highest score (I, P) that is open; -1 where none is."""
    most = scores.masked_fill(~open_, -torch.inf).max(1, keepdim=True).values
    index = torch.arange(scores.shape[1], device=scores.device)
    first = torch.where(open_ & (scores == most), index, scores.shape[1]).min(1).values
    return first.where(open_.any(1), -1)
