"""Sec. 3 and Appendix A: the losses of `focal_loss/loss.py`."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import ops

from focal_loss.loss import (
    BACKGROUND,
    IGNORED,
    balanced_cross_entropy,
    cross_entropy,
    focal,
    focal_loss,
    focal_star,
    hinge,
    per_anchor,
    softmax_focal,
)

GAMMAS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
FORMS: list[tuple[float, float, float | None]]  # alpha, gamma, beta
FORMS = [(-1, 0, None), (0.75, 0, None), (0.25, 0.5, None), (0.25, 1, None), (0.25, 2, None)]
FORMS += [(0.5, 5, None), (0.25, 2, 1.0), (-1, 4, 0.0)]


def some_logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(6).to(dtype)


def some_labels(*shape: int, classes: int, seed: int = 1) -> Tensor:
    """A tenth of the anchors positive, a tenth ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, shape, generator=generator)
    kind = torch.rand(shape, generator=generator)
    labels[kind < 0.9] = BACKGROUND
    labels[kind < 0.1] = IGNORED
    return labels


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return (labels.unsqueeze(-1) == torch.arange(classes)).double()


def plain(
    logits: Tensor, labels: Tensor, alpha: float | None, gamma: float, beta: float | None
) -> Tensor:
    """Loss of every anchor by the elementwise equations."""

    def loss(x: Tensor, y: Tensor | float) -> Tensor:
        if beta is None:
            return focal(x, y, alpha=alpha, gamma=gamma)
        return focal_star(x, y, alpha=alpha, gamma=gamma, beta=beta)

    return per_anchor(loss, logits, labels)


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal_loss_and_its_gradient_equal_torchvision(gamma):
    x = some_logits(10_000).requires_grad_()
    y = (torch.rand(10_000, generator=torch.Generator().manual_seed(2)) < 0.3).double()
    ours = focal(x, y, alpha=0.25, gamma=gamma)
    theirs = ops.sigmoid_focal_loss(x, y, alpha=0.25, gamma=gamma)
    assert (ours - theirs).abs().max() < 1e-12
    assert (gradient(ours.sum(), x) - gradient(theirs.sum(), x)).abs().max() < 1e-11


@pytest.mark.parametrize("gamma", GAMMAS)
def test_fused_loss_and_its_gradient_equal_torchvision_with_one_hot_targets(gamma):
    x = some_logits(2, 60, 80).requires_grad_()
    labels = some_labels(2, 60, classes=80).clamp(min=BACKGROUND)
    y = one_hot(labels, 80)
    ours = focal_loss(x, labels, alpha=0.25, gamma=gamma)
    theirs = ops.sigmoid_focal_loss(x, y, alpha=0.25, gamma=gamma, reduction="sum")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    assert (gradient(ours, x) - gradient(theirs, x)).abs().max() < 1e-11


def test_focal_star_without_beta_equals_fvcore():
    fvcore = pytest.importorskip("fvcore.nn.focal_loss")
    x, y = some_logits(1000).float(), (torch.arange(1000) % 2).float()
    for gamma in (1.0, 2.0, 4.0):
        theirs = fvcore.sigmoid_focal_loss_star(x, y, alpha=0.25, gamma=gamma)
        ours = focal_star(x, y, alpha=0.25, gamma=gamma, beta=0.0)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_gamma_zero_without_alpha_is_cross_entropy():
    x, labels = some_logits(2, 50, 7), some_labels(2, 50, classes=7).clamp(min=BACKGROUND)
    y = one_hot(labels, 7)
    expected = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    torch.testing.assert_close(focal(x, y, alpha=-1, gamma=0), expected)
    torch.testing.assert_close(cross_entropy(x, y), expected)
    torch.testing.assert_close(focal_loss(x, labels, alpha=-1, gamma=0), expected.sum())


def test_alpha_one_half_and_gamma_zero_is_half_of_cross_entropy():
    x, labels = some_logits(2, 50, 7), some_labels(2, 50, classes=7)
    half = focal_loss(x, labels, alpha=0.5, gamma=0)
    torch.testing.assert_close(half, focal_loss(x, labels, alpha=-1, gamma=0) / 2)
    y = one_hot(labels, 7)
    torch.testing.assert_close(balanced_cross_entropy(x, y, alpha=0.5), cross_entropy(x, y) / 2)


def test_an_answer_with_probability_09_costs_100_times_less_and_0968_1000_times():
    for p, factor in ((0.9, 100.0), (0.968, 976.5625)):
        x = torch.tensor(p, dtype=torch.float64).logit()
        ratio = cross_entropy(x, 1.0) / focal(x, 1.0, alpha=-1, gamma=2)
        assert ratio.item() == pytest.approx(factor)


def test_values_and_slopes_of_a_few_answers():
    x = torch.tensor([-5.0, -1, 0, 1, 5], dtype=torch.float64, requires_grad=True)
    loss = focal(x, 1.0, alpha=0.25, gamma=2)
    expected = [1.2349803054, 0.1754670759, 0.0433216988, 0.0056645144, 7.5202e-8]
    slopes = [-0.2615449607, -0.1920586808, -0.0745716988, -0.0131452825, -2.2435e-7]
    assert loss.tolist() == pytest.approx(expected, abs=1e-10)
    assert gradient(loss.sum(), x).tolist() == pytest.approx(slopes, abs=1e-10)
    x = torch.tensor([0.0, 100], dtype=torch.float64, requires_grad=True)
    loss = focal(x, 0.0, alpha=0.25, gamma=2)
    assert loss.tolist() == pytest.approx([0.1299650964, 75], abs=1e-10)
    assert gradient(loss.sum(), x).tolist() == pytest.approx([0.2237150964, 0.75], abs=1e-10)


@pytest.mark.parametrize(
    ("x_t", "gamma", "beta", "expected"),
    [
        (0, 2, 1, 0.1566308438),
        (0, 4, 0, 0.1732867951),
        (2, 2, 1, 0.0033576742),
        (2, 4, 0, 8.38516e-5),
        (-2, 2, 1, 1.5242936758),
        (-2, 4, 0, 2.0000838516),
    ],
)
def test_focal_star_of_a_few_answers(x_t, gamma, beta, expected):
    for y in (0.0, 1.0):  # the same loss for both answers
        x = torch.tensor(x_t if y else -x_t, dtype=torch.float64)
        loss = focal_star(x, y, alpha=-1, gamma=gamma, beta=beta)
        assert loss.item() == pytest.approx(expected, abs=1e-10)


def test_a_background_image_costs_01216_at_the_first_step():
    x = torch.full((2016, 80), -4.59512)  # p = 0.01; 201,600 anchors divided by 100 positives
    loss = focal_loss(x, torch.full((2016,), BACKGROUND), alpha=0.25, gamma=2)
    assert loss.item() == pytest.approx(0.1216, abs=5e-5)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_huge_logits_have_finite_losses_and_gradients_in_float32(gamma):
    values = torch.tensor([17.0, 40, 200])
    x = torch.cat((values, -values)).repeat(2, 1).requires_grad_()  # (2, 6)
    labels = torch.tensor([3, BACKGROUND])
    losses = [focal_loss(x, labels, alpha=0.25, gamma=gamma), focal(x, 1.0, gamma=gamma).sum()]
    losses.append(softmax_focal(x, torch.tensor([2, BACKGROUND]), gamma=gamma).sum())
    if gamma:
        losses.append(focal_loss(x, labels, alpha=0.25, gamma=gamma, beta=1.0))
    for loss in losses:
        assert loss.isfinite()
        assert gradient(loss, x).isfinite().all()


@pytest.mark.parametrize(("alpha", "gamma", "beta"), FORMS)
def test_fused_gradient_is_the_derivative(alpha, gamma, beta):
    x = some_logits(2, 9, 5).div(2).requires_grad_()
    labels, normalizer = some_labels(2, 9, classes=5), torch.tensor([3.0, 7.0])
    labels[0, :3] = torch.tensor([4, IGNORED, 0])

    def loss(x: Tensor) -> Tensor:
        return focal_loss(
            x, labels, alpha=alpha, gamma=gamma, beta=beta, normalizer=normalizer.double()
        )

    assert torch.autograd.gradcheck(loss, x)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_alpha_none_means_no_weights_as_minus_one_does(gamma):
    x, labels = some_logits(2, 9, 5).div(2).requires_grad_(), some_labels(2, 9, classes=5)
    y = one_hot(labels, 5)
    loss = focal_loss(x, labels, alpha=None, gamma=gamma)
    p_t = torch.where(y > 0, x.sigmoid(), 1 - x.sigmoid())
    expected = (-((1 - p_t) ** gamma) * p_t.log())[labels != IGNORED].sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(plain(x, labels, None, gamma, None).sum(), expected)
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, labels, alpha=None, gamma=gamma), x)


@pytest.mark.parametrize("shape", [(0, 7), (2, 0), (0,), (0, 3, 2)])
def test_an_empty_batch_costs_nothing_and_has_a_gradient_of_its_shape(shape):
    x, labels = torch.zeros(*shape, 4, requires_grad=True), torch.zeros(shape).long()
    for loss in (focal_loss(x, labels), per_anchor(focal, x, labels).sum()):
        assert loss == 0
        assert gradient(loss, x).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("alpha", "gamma", "beta"), FORMS)
def test_fused_loss_equals_the_equations_over_many_blocks(alpha, gamma, beta, dtype):
    x = some_logits(3, 2500, 80, dtype=dtype).requires_grad_()  # 600,000 logits
    labels, normalizer = some_labels(3, 2500, classes=80), torch.tensor([1.0, 5.0, 20.0])
    ours = focal_loss(x, labels, alpha=alpha, gamma=gamma, beta=beta, normalizer=normalizer)
    expected = (plain(x, labels, alpha, gamma, beta).sum(1) / normalizer).sum()
    rtol, atol = (1e-12, 1e-12) if dtype == torch.float64 else (1e-6, 1e-5)
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(gradient(ours, x), gradient(expected, x), rtol=rtol, atol=atol)


def test_small_probabilities_keep_their_digits_in_float32():
    x = torch.linspace(-30, 5, 5000)
    labels = torch.full((5000,), BACKGROUND)
    for gamma in (0.0, 1.0):
        for part in (x[:1000], x[1000:2000], x):
            ours = focal_loss(part[:, None], labels[: len(part)], alpha=-1, gamma=gamma)
            expected = focal(part.double(), 0.0, alpha=-1, gamma=gamma).sum()
            assert ours.item() == pytest.approx(expected.item(), rel=2e-6)


def test_pyramid_levels_and_strided_logits_give_the_loss_of_their_concatenation():
    levels = [some_logits(2, 5, size, seed=size).transpose(1, 2) for size in (40, 12, 1)]
    labels = some_labels(2, 53, classes=5)
    leaves = [level.requires_grad_() for level in levels]
    whole = torch.cat([leaf.detach() for leaf in leaves], dim=1).requires_grad_()
    ours = focal_loss(leaves, labels, normalizer=3.0)
    expected = focal_loss(whole, labels, normalizer=3.0)
    torch.testing.assert_close(ours, expected)
    parts = torch.cat(torch.autograd.grad(ours, leaves), dim=1)
    torch.testing.assert_close(parts, gradient(expected, whole))


def test_labels_and_one_hot_targets_are_the_same_for_every_equation():
    x, labels = some_logits(3, 40, 6), some_labels(3, 40, classes=6).clamp(min=BACKGROUND)
    for equation in (cross_entropy, balanced_cross_entropy, focal, focal_star, hinge):
        expected = equation(x, one_hot(labels, 6)).sum(-1)
        torch.testing.assert_close(per_anchor(equation, x, labels), expected)


def test_ignored_anchors_have_no_loss_and_exactly_no_gradient():
    x, labels = some_logits(2, 300, 8, dtype=torch.float32), some_labels(2, 300, classes=8)
    kept = labels != IGNORED
    for alpha, gamma, beta in FORMS:
        leaf = x.clone().requires_grad_()
        loss = focal_loss(leaf, labels, alpha=alpha, gamma=gamma, beta=beta)
        expected = focal_loss(x[kept], labels[kept], alpha=alpha, gamma=gamma, beta=beta)
        torch.testing.assert_close(loss, expected)
        assert gradient(loss, leaf)[~kept].count_nonzero() == 0
    leaf = x.clone().requires_grad_()
    loss = focal_loss(leaf, torch.full_like(labels, IGNORED))
    assert loss == 0
    assert gradient(loss, leaf).count_nonzero() == 0


def test_the_order_of_the_images_does_not_matter():
    x, labels = some_logits(4, 30, 5), some_labels(4, 30, classes=5)
    normalizer, order = torch.tensor([1.0, 2, 3, 4]), torch.tensor([2, 0, 3, 1])
    loss = focal_loss(x, labels, normalizer=normalizer)
    shuffled = focal_loss(x[order], labels[order], normalizer=normalizer[order])
    torch.testing.assert_close(shuffled, loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32_even_under_autocast(dtype):
    x, labels = some_logits(2, 1000, 80).sub(4).to(dtype), some_labels(2, 1000, classes=80)
    exact = x.double().requires_grad_()
    expected = focal_loss(exact, labels)
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = focal_loss(leaf, labels)
        assert per_anchor(focal, x, labels).dtype == torch.float32
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours = gradient(loss, leaf)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), gradient(expected, exact), rtol=4e-3, atol=1e-7)


def test_small_float16_gradients_survive_a_loss_scale():
    x = torch.full((10, 4), -7.0, dtype=torch.float16, requires_grad=True)
    loss = focal_loss(x, torch.full((10,), BACKGROUND), normalizer=1000.0)
    assert gradient(65536.0 * loss, x).min() > 0  # 2.5e-9 each, which float16 cannot hold


def test_the_gradient_is_scaled_by_what_follows_and_may_be_asked_twice():
    x, labels = some_logits(1, 20, 3).requires_grad_(), some_labels(1, 20, classes=3)
    loss = focal_loss(x, labels)
    first = torch.autograd.grad(3 * loss, x, retain_graph=True)[0]
    second = torch.autograd.grad(loss, x)[0]
    torch.testing.assert_close(first, 3 * second)


def test_only_the_gradient_is_kept_and_none_where_none_is_asked_for():
    x, labels = some_logits(2, 100, 8, dtype=torch.bfloat16), some_labels(2, 100, classes=8)
    assert focal_loss(x, labels).grad_fn is None
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        assert focal_loss(leaf, labels).grad_fn is None
    node = focal_loss(leaf, labels).grad_fn
    (kept,) = node.saved_tensors  # type: ignore[union-attr]
    assert kept.shape == x.shape
    assert kept.dtype == torch.bfloat16


def test_a_gradient_of_the_gradient_is_refused_by_the_fused_and_given_by_the_plain_form():
    x, labels = some_logits(1, 20, 3).requires_grad_(), some_labels(1, 20, classes=3)
    with pytest.raises(RuntimeError, match="use per_anchor"):
        torch.autograd.grad(focal_loss(x, labels), x, create_graph=True)
    (slope,) = torch.autograd.grad(per_anchor(focal, x, labels).sum(), x, create_graph=True)
    assert gradient(slope.square().sum(), x).isfinite().all()


MEMORY = """
import resource
import torch
from torchvision.ops import sigmoid_focal_loss
from focal_loss.loss import focal_loss

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

torch.set_num_threads(1)
N, A, K = 2, 49_104, 80
x = torch.zeros(N, A, K).normal_().requires_grad_()
y = torch.zeros(N, A, K)
labels = torch.full((N, A), -1)
labels[:, :100] = 3
before = peak()
focal_loss(x, labels).backward()
ours = peak() - before
x.grad = None
sigmoid_focal_loss(x, y, reduction="sum").backward()
print(ours, peak() - before)
"""


def test_the_fused_loss_needs_at_most_a_third_of_torchvisions_extra_memory():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours, torchvision = map(int, done.stdout.split())  # KB
    assert ours <= torchvision / 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("alpha", "gamma", "beta"), FORMS)
def test_a_gpu_gives_the_loss_and_gradient_of_the_cpu(alpha, gamma, beta):
    x, labels = some_logits(3, 30_000, 80, dtype=torch.float32), some_labels(3, 30_000, classes=80)
    results = []
    for device in ("cpu", "cuda"):
        leaf = x.to(device).requires_grad_()
        loss = focal_loss(leaf, labels.to(device), alpha=alpha, gamma=gamma, beta=beta)
        results.append((loss.cpu(), gradient(2 * loss, leaf).cpu()))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_softmax_focal_loss_with_gamma_zero_is_cross_entropy():
    x, labels = some_logits(200, 6), some_labels(200, classes=5)
    ours = softmax_focal(x, labels, alpha=-1, gamma=0)
    expected = F.cross_entropy(x, (labels + 1).clamp(min=0), reduction="none")
    torch.testing.assert_close(ours[labels != IGNORED], expected[labels != IGNORED])
    assert ours[labels == IGNORED].count_nonzero() == 0


def test_softmax_focal_loss_is_the_formula_and_its_gradient_the_derivative():
    x, labels = some_logits(20, 6).div(4).requires_grad_(), some_labels(20, classes=5)
    labels[:3] = torch.tensor([0, 4, BACKGROUND])
    p_t = x.softmax(-1).gather(-1, (labels.clamp(min=-1) + 1)[:, None]).squeeze(1)
    alpha_t = torch.where(labels >= 0, 0.25, 0.75)
    expected = (-alpha_t * (1 - p_t) ** 2 * p_t.log()).masked_fill(labels == IGNORED, 0)
    torch.testing.assert_close(softmax_focal(x, labels, alpha=0.25, gamma=2), expected)
    assert torch.autograd.gradcheck(lambda x: softmax_focal(x, labels, gamma=0.5), x)


def test_hinge_loss_is_zero_where_the_answer_is_right_enough():
    x = torch.tensor([0.9, 0.6, 0.2]).logit()
    loss = hinge(x, 1.0, alpha=-1, margin=0.5)
    torch.testing.assert_close(loss, torch.tensor([0.0, 0.0, 0.3]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.5}, "alpha is 1.5; choose a weight in 0..1, or -1"),
        ({"gamma": -1.0}, "gamma is -1.0; choose 0 or more"),
        ({"gamma": 0.0, "beta": 1.0}, "more than 0 for FL"),
    ],
)
def test_a_wrong_option_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        focal_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), **arguments)


@pytest.mark.parametrize(
    ("logits", "labels", "normalizer", "message"),
    [
        (torch.zeros(2, 9, 3), torch.zeros(2, 8).long(), 1.0, r"\(2, 8\) do not fit .*\(2, 9, 3\)"),
        ([torch.zeros(2, 9, 3)] * 2, torch.zeros(2, 9).long(), 1.0, "do not fit"),
        (torch.zeros(2, 9, 3), torch.zeros(2, 9, 3), 1.0, "labels must be integers"),
        (torch.zeros(2, 9, 3), torch.zeros(2, 9).long(), torch.ones(2, 1), r"scalar or \(2,\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(logits, labels, normalizer, message):
    with pytest.raises(ValueError, match=message):
        focal_loss(logits, labels, normalizer=normalizer)


@pytest.mark.parametrize(("label", "valid"), [(-100, "-1 for background"), (3, r"0\.\.2")])
def test_a_label_that_is_no_class_is_named_by_every_loss(label, valid):
    labels = torch.tensor([0, label, BACKGROUND])
    calls = [lambda: focal_loss(torch.zeros(3, 3), labels)]
    calls += [lambda: per_anchor(hinge, torch.zeros(3, 3), labels)]
    calls += [lambda: softmax_focal(torch.zeros(3, 4), labels)]
    for call in calls:
        with pytest.raises(ValueError, match=f"labels hold {label}: .*{valid}"):
            call()


@pytest.mark.parametrize("shape", [(), (30,), (3, 10), (3, 2, 5)])
def test_logits_may_have_any_leading_dimensions(shape):
    x, labels = some_logits(*shape, 4), some_labels(*shape, classes=4)
    expected = plain(x, labels, 0.25, 2, None).sum()
    torch.testing.assert_close(focal_loss(x, labels.int()), expected)
    torch.testing.assert_close(plain(x, labels.int(), 0.25, 2, None).sum(), expected)
