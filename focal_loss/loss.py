"""The focal loss and the losses it is compared with: Sec. 3 and Appendices A, B of the paper.

A detector asks one yes-or-no question per anchor and class. A question has a logit x, an answer
y in {0, 1}, and p = sigmoid(x). With x_t = x if y = 1 and -x otherwise, p_t = sigmoid(x_t) is the
probability of the right answer (Eq. 2), and alpha_t is alpha if y = 1 and 1 - alpha otherwise.

    cross entropy   CE  = -log p_t                                          Eq. 1
    balanced        CE  = -alpha_t log p_t                                  Eq. 3
    focal           FL  = -alpha_t (1 - p_t)^gamma log p_t                  Eq. 4, 5
    focal*          FL* = -alpha_t log(sigmoid(gamma x_t + beta)) / gamma   Eq. 10, 11

Shapes: N images, A anchors, K classes, ... any dimensions. The equations take `logits` (...) and
`targets` (...), 1 for yes and 0 for no, and return the loss of every question. The functions over
anchors take logits (..., K) and `labels` (...) integer, one per anchor: a class 0..K-1,
`BACKGROUND`, or `IGNORED`, which costs nothing. No one-hot target is ever built. Below the
equations stands `focal_loss`, all of it in one pass, here so that this file is copied alone.

`alpha = -1` or None means no weights; alpha = 0.5 is *not* that, it halves the loss. Half-precision
logits are computed in float32 whatever autocast says: at |x| = 6 an easy loss is already 0 in
bfloat16.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BACKGROUND = -1
IGNORED = -2


def cross_entropy(logits: Tensor, targets: Tensor | float) -> Tensor:
    """Eq. 1."""
    return -F.logsigmoid(_x_t(logits, targets))


def balanced_cross_entropy(
    logits: Tensor, targets: Tensor | float, *, alpha: float | None = 0.75
) -> Tensor:
    """Eq. 3; 0.75 is the best alpha of Table 1a."""
    return _alpha_t(targets, alpha) * cross_entropy(logits, targets)


def focal(
    logits: Tensor, targets: Tensor | float, *, alpha: float | None = 0.25, gamma: float = 2.0
) -> Tensor:
    """Eq. 5; Eq. 4 with `alpha` = -1.

    1 - p_t is sigmoid(-x_t), so its power is taken as exp(gamma logsigmoid(-x_t)): the gradient of
    (1 - p_t)^gamma itself is NaN for 0 < gamma < 1 as soon as p_t rounds to 1 (|x| > 17).
    """
    x_t = _x_t(logits, targets)
    log_p_t = F.logsigmoid(x_t)
    modulation = torch.exp(gamma * F.logsigmoid(-x_t))  # (1 - p_t)^gamma
    return -_alpha_t(targets, alpha) * modulation * log_p_t


def focal_star(
    logits: Tensor,
    targets: Tensor | float,
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    beta: float = 1.0,
) -> Tensor:
    """FL* of Appendix A, Eq. 10 and 11; `gamma` > 0."""
    x_t = _x_t(logits, targets)
    return -_alpha_t(targets, alpha) * F.logsigmoid(gamma * x_t + beta) / gamma


def hinge(
    logits: Tensor, targets: Tensor | float, *, alpha: float | None = 0.25, margin: float = 0.5
) -> Tensor:
    """Hinge loss on p_t: none where p_t reaches `margin`. The paper found it unstable (Sec. 5.1).

    # Unstated: the margin and whether alpha is used; 0.5 is where the decision is right.
    """
    return _alpha_t(targets, alpha) * F.relu(margin - torch.sigmoid(_x_t(logits, targets)))


def softmax_focal(
    logits: Tensor, labels: Tensor, *, alpha: float | None = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss of a softmax, one value per anchor (...): Detectron's option.

    `logits` (..., K + 1): channel 0 is the background, channel k + 1 is class k; `labels` (...).
    """
    logits = _wide(logits)
    _require_labels(labels, logits.shape[-1] - 1)
    own = (labels.long().clamp(min=BACKGROUND) + 1).unsqueeze(-1)  # (..., 1), the right channel
    total = logits.logsumexp(-1)
    log_p_t = logits.gather(-1, own).squeeze(-1) - total
    log_rest = logits.scatter(-1, own, -torch.inf).logsumexp(-1) - total  # log(1 - p_t)
    loss = -_alpha_t((labels >= 0).to(logits), alpha) * torch.exp(gamma * log_rest) * log_p_t
    return loss.masked_fill(labels == IGNORED, 0.0)


def per_anchor(loss: Callable[..., Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    """Loss (...) of every anchor, summed over its classes, by one of the equations above.

    All K questions of an anchor are first answered by "no"; then the one of its own class is put
    right. `logits` (..., K), `labels` (...).
    """
    _require_labels(labels, logits.shape[-1])
    background = loss(logits, 0.0).sum(-1)
    own = logits.gather(-1, labels.long().clamp(min=0).unsqueeze(-1)).squeeze(-1)
    correction = torch.where(labels >= 0, loss(own, 1.0) - loss(own, 0.0), 0.0)
    return (background + correction).masked_fill(labels == IGNORED, 0.0)


def focal_loss(
    logits: Tensor | Sequence[Tensor],
    labels: Tensor,
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    beta: float | None = None,
    normalizer: Tensor | float = 1.0,
) -> Tensor:
    """Focal loss summed over all anchors and classes and divided by `normalizer`; a scalar.

    Loss and gradient are computed in one pass that needs little more memory than the gradient. For
    a gradient of the gradient use `focal` with `per_anchor`, which this equals.

    Args:
        logits: (..., K), any float type; or one (N, A_l, K) per pyramid level.
        labels: (...) integer, see the top of this file; for levels (N, sum of A_l).
        alpha: weight of the yes-questions, 0..1; -1 or None: no weights.
        gamma: focusing strength, 0 or more; 0 is (balanced) cross entropy.
        beta: None for the focal loss; a number for FL* with this beta.
        normalizer: a number, a scalar, or one value (N,) per entry of the first dimension.

    """
    alpha = -1 if alpha is None else alpha
    if alpha != -1 and not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; choose a weight in 0..1, or -1 for no weights.")
    if gamma < 0 or (beta is not None and gamma == 0):
        raise ValueError(f"gamma is {gamma}; choose 0 or more for FL, and more than 0 for FL*.")
    levels, labels = _per_level(logits, labels)
    _require_labels(labels, levels[0].shape[-1])
    dtype = torch.promote_types(levels[0].dtype, torch.float32)
    ones = torch.ones(len(labels), dtype=dtype, device=labels.device)
    scale = (ones / normalizer).to(dtype)  # (N,)
    if scale.dim() != 1:
        raise ValueError(
            f"normalizer has shape {tuple(scale.shape)}; give a scalar or ({len(labels)},)."
        )
    keep = torch.is_grad_enabled() and any(level.requires_grad for level in levels)
    return _Fused.apply(labels, scale, alpha, gamma, beta, keep, *levels)


def _per_level(logits: Tensor | Sequence[Tensor], labels: Tensor) -> tuple[list[Tensor], Tensor]:
    """Logits as levels (N, A_l, K) and labels as (N, A); stop where they do not fit."""
    levels = [logits] if isinstance(logits, Tensor) else list(logits)
    if labels.is_floating_point():
        raise ValueError(
            "labels must be integers, one per anchor; for one-hot targets see `focal`."
        )
    if isinstance(logits, Tensor) and logits.shape[:-1] == labels.shape:
        shape = labels.shape if labels.dim() > 1 else torch.Size([1, labels.numel()])
        N, A = shape[0], shape[1:].numel()  # not -1, which says nothing where N is 0
        return [logits.reshape(N, A, logits.shape[-1])], labels.reshape(N, A)
    anchors = sum(level.shape[1] for level in levels if level.dim() == 3)
    if any(level.shape[:1] != labels.shape[:1] for level in levels) or (
        labels.shape[1:] != (anchors,)
    ):
        shapes = ", ".join(str(tuple(level.shape)) for level in levels)
        raise ValueError(
            f"labels {tuple(labels.shape)} do not fit logits {shapes}: give one label per anchor, "
            "(N, A) for logits (N, A, K)."
        )
    return levels, labels


def _require_labels(labels: Tensor, classes: int) -> None:
    """Stop where a label is no class, `BACKGROUND` or `IGNORED`, such as torch's -100."""
    if not labels.numel():
        return
    low, high = torch.stack(labels.aminmax()).tolist()
    if low < IGNORED or high >= classes:
        raise ValueError(
            f"labels hold {low if low < IGNORED else high}: give a class in 0..{classes - 1}, "
            f"{BACKGROUND} for background or {IGNORED} for anchors to ignore."
        )


class _Fused(torch.autograd.Function):
    """Loss and gradient of all levels in one pass; only the gradient is kept for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        labels: Tensor,
        scale: Tensor,
        alpha: float,
        gamma: float,
        beta: float | None,
        keep: bool,
        *levels: Tensor,
    ) -> Tensor:
        losses, gradients = [], []
        parts = labels.split([level.shape[1] for level in levels], dim=1)
        with torch.autocast(labels.device.type, enabled=False):
            for level, part in zip(levels, parts, strict=True):
                loss, gradient = _one_pass(level, part, scale, alpha, gamma, beta, keep)
                losses.append(loss)
                gradients.append(gradient)
        if keep:
            ctx.save_for_backward(*gradients)
            ctx.dtype = levels[0].dtype
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # Stricter than once_differentiable, which lets a constant loss weight pass in silence.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "focal_loss keeps its gradient as a constant and has no second derivative: where "
                "create_graph=True is needed, use per_anchor(focal, logits, labels)."
            )
        gradients = ctx.saved_tensors
        if grad_output.device.type != "cpu" or grad_output.item() != 1:  # reading it is free there
            gradients = tuple(each * grad_output for each in gradients)
        return None, None, None, None, None, None, *(each.to(ctx.dtype) for each in gradients)


def _one_pass(
    logits: Tensor,
    labels: Tensor,
    scale: Tensor,
    alpha: float,
    gamma: float,
    beta: float | None,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """Loss of logits (N, A, K), a scalar, and its gradient (N, A, K) if `keep`.

    All answers are taken to be "no" first; the few questions whose answer is "yes" follow.
    """
    K, dtype = logits.shape[-1], scale.dtype
    yes, no = (1.0, 1.0) if alpha == -1 else (alpha, 1 - alpha)
    # float16 would lose the small gradients before a loss scale can save them.
    kept = torch.float32 if logits.dtype == torch.float16 else logits.dtype
    gradient = torch.empty(logits.shape, dtype=kept, device=logits.device) if keep else None
    row_scale = (no * scale[:, None] * (labels != IGNORED)).unsqueeze(-1)  # (N, A, 1)
    total = torch.zeros((), dtype=dtype, device=logits.device)
    size = min(max(_block_size(logits), K), logits.numel())
    work = torch.empty(5, size, dtype=dtype, device=logits.device)
    for block in _blocks(logits):
        x = logits[block]
        buffers = [each[: x.numel()].view(x.shape) for each in work.unbind()]
        if x.dtype != dtype:
            x = buffers[4].copy_(x)
        slope = None if gradient is None else gradient[block]
        total += _wrong(x, row_scale[block], gamma, beta, buffers, slope).sum()

    image, anchor = torch.nonzero(labels >= 0, as_tuple=True)
    own = labels[image, anchor].long()
    x = logits[image, anchor, own].to(dtype)
    buffers, slope = [torch.empty_like(x) for _ in range(5)], torch.empty_like(x)
    total -= _wrong(x, no * scale[image], gamma, beta, buffers, None).sum()
    total += _wrong(-x, yes * scale[image], gamma, beta, buffers, slope).sum()
    if gradient is not None:
        gradient[image, anchor, own] = -slope.to(kept)
    return total, gradient


def _wrong(
    x: Tensor,
    scale: Tensor,
    gamma: float,
    beta: float | None,
    buffers: list[Tensor],
    slope: Tensor | None,
) -> Tensor:
    """Loss of questions whose *wrong* answer has the logit x = -x_t; its d/dx goes to `slope`.

    With p = sigmoid(x) = 1 - p_t and CE = softplus(x) = -log p_t,

        FL  = p^gamma CE,                      dFL/dx  = p^gamma (p + gamma (1 - p) CE)
        FL* = softplus(gamma x - beta) / gamma, dFL*/dx = sigmoid(gamma x - beta)

    each times `scale` (broadcast). The result lies in one of the `buffers`, which have x's shape.
    """
    p, q, ce, weight, shifted = buffers
    if beta is not None:
        x = torch.mul(x, gamma, out=shifted).sub_(beta)
    torch.sigmoid(x, out=p)
    torch.neg(x, out=q).sigmoid_().clamp_(min=torch.finfo(q.dtype).tiny)
    # CE = -log q loses a small p to the rounding of q = 1 - p; p + (q - 1) gives it back. At large
    # x, where q underflows, CE is x. (softplus is the same, up to four times slower on some CPUs.)
    torch.log(q, out=ce)
    torch.sub(q, 1.0, out=weight).sub_(ce)
    torch.add(weight, p, out=ce)
    torch.maximum(ce, x, out=ce)
    if beta is not None or gamma == 0:
        if slope is not None:
            torch.mul(p, scale, out=slope)
        return ce.mul_(scale).mul_(1.0 if beta is None else 1 / gamma)
    if gamma == 1:
        torch.mul(p, scale, out=weight)
    elif gamma == 2:
        torch.mul(p, p, out=weight).mul_(scale)
    else:
        torch.sub(x, ce, out=weight).mul_(gamma).exp_().mul_(scale)  # x - CE = log p
    if slope is not None:
        torch.addcmul(p, q, ce, value=gamma, out=p)
        torch.mul(p, weight, out=slope)
    return ce.mul_(weight)


def _blocks(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Images and anchors (N, A) in blocks of about `_block_size` logits."""
    N, A, K = logits.shape
    size = _block_size(logits)
    images, anchors = max(1, size // max(1, A * K)), max(1, size // K)
    for image in range(0, N, images):
        for anchor in range(0, A, anchors):
            yield slice(image, image + images), slice(anchor, anchor + anchors)


def _block_size(logits: Tensor) -> int:
    """Logits in a block: its buffers fit a core's cache; on a GPU, few launches matter instead."""
    if logits.device.type == "cpu":
        return 2**17 * min(8, torch.get_num_threads())
    return 2**22


def _wide(logits: Tensor) -> Tensor:
    """At least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _x_t(logits: Tensor, targets: Tensor | float) -> Tensor:
    """Logit of the right answer: x for yes, -x for no."""
    return (2 * targets - 1) * _wide(logits)


def _alpha_t(targets: Tensor | float, alpha: float | None) -> Tensor | float:
    """`alpha` for yes, 1 - `alpha` for no, 1 for `alpha` = -1 or None; Eq. 3."""
    if alpha is None or alpha == -1:
        return 1.0
    return alpha * targets + (1 - alpha) * (1 - targets)
