"""REINFORCE for the program generator: learning from answers alone (Sec. 3.4 of the paper).

The engine is run on a sampled program z ~ pi(q), and the reward r is 1 if its answer is right, 0 if
not. The gradient of the expected reward is estimated by

    grad E[r] = E[(r - b) sum_t grad log p(z_t | z_{<t}, q)]                     Williams (1992)

for any baseline b that does not depend on z; `policy_loss` is the scalar whose gradient is minus
the batch mean of this. `Baseline` holds the b of the public code, a moving average of the rewards,
and two alternatives.

Shapes: B questions, T steps.
"""

import torch
import torch.distributed
from torch import Tensor, nn

BASELINES = ("batch_ema", "per_type_ema", "self_critical", "none")


class Baseline(nn.Module):
    """What is subtracted from the rewards; it is part of a checkpoint through its state dict.

    * "batch_ema": b <- decay b + (1 - decay) mean(r), from 0, *updated before it is used*, as in
      the public code. The sample's own reward is thus in b with weight (1 - decay) / B, which
      shrinks the gradient by just that share.
    * "per_type_ema": one such average per question type, moved by the questions of its type only.
    * "self_critical": b is the reward of the greedy program for the same question (Rennie et al.,
      2017); nothing is averaged.
    * "none": b = 0.

    The averages are over all processes where torch.distributed is running: every process calls.

    Args:
        kind: one of the four above.
        decay: weight of the old average, 0 or more and less than 1; 0.9 is the public code's.
        types: number of question types, 13 in CLEVR; a question of type -1 (unknown) has an
            average of its own.

    """

    value: Tensor  # (1,), or (types + 1,) where it is per type: the averages

    def __init__(self, kind: str = "batch_ema", *, decay: float = 0.9, types: int = 13) -> None:
        super().__init__()
        if kind not in BASELINES:
            raise ValueError(f"the baseline is {kind!r}; choose one of {', '.join(BASELINES)}.")
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; choose 0 or more and less than 1.")
        if types < 1:
            raise ValueError(f"types is {types}; choose 1 or more.")
        self.kind = kind
        self.decay = decay
        self.types = types
        slots = types + 1 if kind == "per_type_ema" else 1
        self.register_buffer("value", torch.zeros(slots, dtype=torch.float64))

    @torch.no_grad()
    def forward(
        self, rewards: Tensor, *, types: Tensor | None = None, greedy: Tensor | None = None
    ) -> Tensor:
        """Take in `rewards` (B,) and return what to subtract from each (B,).

        Args:
            rewards: (B,), of the sampled programs.
            types: (B,) integer, -1 or a type; needed by "per_type_ema".
            greedy: (B,), rewards of the greedy programs; needed by "self_critical".

        Raises:
            ValueError: what the kind of baseline needs is missing or does not fit `rewards`.

        """
        rewards = rewards.float()
        if self.kind == "none":
            return torch.zeros_like(rewards)
        if self.kind == "self_critical":
            return _require_each(greedy, rewards, "greedy", self.kind).float()
        if self.kind == "batch_ema":
            slots = torch.zeros_like(rewards, dtype=torch.long)
        else:
            slots = _require_each(types, rewards, "types", self.kind).long()
            if ((slots < -1) | (slots >= self.types)).any():
                raise ValueError(
                    f"question types are {int(slots.min())}..{int(slots.max())}, but the baseline "
                    f"holds {self.types}: give 0..{self.types - 1}, or -1 where unknown."
                )
            slots = torch.where(slots < 0, self.types, slots)
        self._move(rewards, slots)
        return self.value[slots].to(rewards.dtype)

    def _move(self, rewards: Tensor, slots: Tensor) -> None:
        """Move the average of every slot that got a reward."""
        sums = torch.zeros(2, len(self.value), dtype=self.value.dtype, device=self.value.device)
        sums[0].index_add_(0, slots, rewards.to(sums))
        sums[1].index_add_(0, slots, torch.ones_like(rewards).to(sums))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        total, count = sums
        moved = self.decay * self.value + (1 - self.decay) * total / count.clamp(min=1)
        self.value.copy_(torch.where(count > 0, moved, self.value))


def policy_loss(
    log_probs: Tensor,
    mask: Tensor,
    rewards: Tensor,
    baseline: Tensor | float,
    *,
    official: bool = False,
    entropy: Tensor | None = None,
    entropy_weight: float = 0.0,
) -> Tensor:
    """The scalar to minimise; its gradient is minus the estimate of the gradient of E[r].

    Args:
        log_probs: (B, T), log p of every sampled token, as `sample.sample` returns it.
        mask: (B, T), 1 up to and including END.
        rewards: (B,); no gradient flows into them.
        baseline: (B,) or one number, what to subtract from the rewards.
        official: the public code's loss, a *sum* over the batch that also counts the steps after
            END (sample with `keep_sampling=True` to have them). Their expected gradient is zero,
            so they add nothing but noise.
        entropy: (B, T), entropy of every step, as `sample.sample` returns it.
        entropy_weight: the loss is less this weight times the mean entropy of a program, so that
            sampling does not collapse. # Unstated: the paper has no such term; 0 leaves it out.

    Raises:
        ValueError: shapes that do not belong together, or a weight without entropies.

    """
    advantage = (rewards.to(log_probs) - baseline).detach()  # (B,)
    if mask.shape != log_probs.shape or advantage.shape != log_probs.shape[:1]:
        raise ValueError(
            f"log_probs {tuple(log_probs.shape)}, mask {tuple(mask.shape)}, rewards and baseline "
            f"{tuple(advantage.shape)} do not fit; give (B, T), (B, T) and (B,)."
        )
    steps = log_probs if official else log_probs * mask
    losses = -advantage * steps.sum(1)  # (B,)
    if entropy_weight != 0:
        if entropy is None or entropy.shape != mask.shape:
            raise ValueError(
                f"entropy_weight is {entropy_weight}, so give the entropy (B, T) of every step."
            )
        losses = losses - entropy_weight * (entropy * mask).sum(1)
    return losses.sum() if official else losses.mean()


def _require_each(values: Tensor | None, rewards: Tensor, name: str, kind: str) -> Tensor:
    """`values`; ValueError unless there is one for each reward."""
    if values is None or values.shape != rewards.shape:
        found = "None" if values is None else f"of shape {tuple(values.shape)}"
        raise ValueError(
            f"the {kind} baseline needs `{name}`, one per reward {tuple(rewards.shape)}; it is "
            f"{found}."
        )
    return values
