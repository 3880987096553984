"""Sec. 3 and 5.1: the forms of momentum, the correction, weight decay, LARS."""

import copy
import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.optim import SGD
from torchvision.ops._utils import split_normalization_params

from large_minibatch.recipe import set_lr
from large_minibatch.sgd import LARS, MomentumSGD, decay_split

SHAPES = [(7, 3, 3, 3), (33,), (17, 9), (), (1, 5, 1, 1)]


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensors(seed: int, shapes: Sequence[tuple[int, ...]] = SHAPES, **kind: Any) -> list[Tensor]:
    generator = draw(seed)
    return [torch.randn(shape, generator=generator).to(**kind) for shape in shapes]


def parameters(seed: int = 0, **kind: Any) -> list[nn.Parameter]:
    return [nn.Parameter(each) for each in tensors(seed, **kind)]


def walk(
    optimizer: torch.optim.Optimizer, rates: Sequence[float], *, seed: int = 100
) -> list[Tensor]:
    """Parameters after a step at each of the `rates` along random gradients."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step, lr in enumerate(rates):
        set_lr(optimizer, lr)
        for i, p in enumerate(params):
            g = torch.randn(p.shape, generator=draw(seed + 50 * step + i))
            p.grad = g.to(p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in params]


def one_weight(rates: Sequence[float], **options: Any) -> list[float]:
    """Weight, from 0, after each step with gradient 1."""
    w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = MomentumSGD([w], rates[0], **({"weight_decay": 0.0, "nesterov": False} | options))
    path = []
    for lr in rates:
        set_lr(optimizer, lr)
        w.grad = torch.ones_like(w)
        optimizer.step()
        path.append(w.item())
    return path


def equal(ours: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


def random_rates(count: int, seed: int = 3) -> list[float]:
    return (10 ** (torch.rand(count, generator=draw(seed)) * 3 - 3)).tolist()


@pytest.mark.parametrize(
    ("after", "reference", "uncorrected"), [(0.01, -0.119, -0.2), (3.2, -6.18, -3.39)]
)
def test_a_changed_rate_needs_the_momentum_correction(after, reference, uncorrected):
    rates = [0.1, after]
    assert one_weight(rates)[-1] == pytest.approx(reference, rel=1e-12)
    assert one_weight(rates, form="v")[-1] == pytest.approx(reference, rel=1e-12)
    wrong = one_weight(rates, form="v", correction=False)[-1]
    assert wrong == pytest.approx(uncorrected, rel=1e-12)


@pytest.mark.parametrize("form", ["u", "v"])
def test_nesterov_steps_are_those_computed_by_hand(form):
    path = one_weight([0.1] * 3, form=form, nesterov=True)
    assert path == pytest.approx([-0.19, -0.461, -0.8049], rel=1e-12)


@pytest.mark.parametrize("torchs", [{"fused": True}, {}, {"foreach": False}])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_form_u_is_torchs_sgd_bit_for_bit(dtype, nesterov, torchs):
    rates = random_rates(12)
    options: dict[str, Any] = {"momentum": 0.9, "weight_decay": 1e-2, "nesterov": nesterov}
    fused = "fused" in torchs
    ours = walk(MomentumSGD(parameters(dtype=dtype), 0.1, fused=fused, **options), rates)
    theirs = walk(SGD(parameters(dtype=dtype), 0.1, **torchs, **options), rates)
    assert equal(ours, theirs)


@pytest.mark.parametrize("fused", [True, False])
def test_without_momentum_form_u_is_torchs_sgd_too(fused):
    rates = random_rates(4)
    options: dict[str, Any] = {"momentum": 0.0, "weight_decay": 1e-2, "fused": fused}
    ours = MomentumSGD(parameters(), 0.1, nesterov=False, **options)
    assert equal(walk(ours, rates), walk(SGD(parameters(), 0.1, **options), rates))
    assert not any(ours.state.values())


@pytest.mark.parametrize("nesterov", [True, False])
def test_corrected_form_v_is_form_u_along_any_rates(nesterov):
    rates = random_rates(40)
    paths = [
        walk(MomentumSGD(parameters(dtype=torch.float64), 0.1, form=form, nesterov=nesterov), rates)
        for form in ("u", "v")
    ]
    for u, v in zip(*paths, strict=True):
        torch.testing.assert_close(u, v, rtol=0, atol=1e-9)
    paths = [
        walk(MomentumSGD(parameters(), 0.1, form=form, nesterov=nesterov), rates)
        for form in ("u", "v")
    ]
    for u, v in zip(*paths, strict=True):
        torch.testing.assert_close(u, v, rtol=1e-6, atol=2e-6)


def test_at_a_constant_rate_all_forms_agree():
    forms = [("u", True), ("v", True), ("v", False)]
    paths = [
        walk(MomentumSGD(parameters(), 0.1, form=form, correction=correction), [0.1] * 10)
        for form, correction in forms
    ]
    assert equal(paths[1], paths[2])
    for u, v in zip(*paths[:2], strict=True):
        torch.testing.assert_close(u, v, rtol=1e-6, atol=1e-6)


def test_after_a_rate_of_zero_nothing_is_corrected():
    path = one_weight([0.1, 0.0, 0.1, 0.1], form="v")
    assert path == pytest.approx([-0.1, -0.1, -0.2, -0.39], rel=1e-12)
    assert one_weight([0.0, 0.1], form="v") == pytest.approx([0.0, -0.1], rel=1e-12)


@pytest.mark.parametrize("form", ["u", "v"])
def test_every_group_has_its_own_rate_and_correction(form):
    together, alone = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    groups = [{"params": together[:2], "lr_scale": 1.0}, {"params": together[2:], "lr_scale": 0.1}]
    rates = random_rates(6)
    ours = walk(MomentumSGD(groups, 0.1, form=form), rates)
    both = [
        SGD(part, 0.1, 0.9, weight_decay=1e-4, nesterov=True) for part in (alone[:2], alone[2:])
    ]
    theirs = walk(both[0], rates) + walk(both[1], [0.1 * lr for lr in rates], seed=102)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", ["u", "v"])
def test_a_parameter_without_gradient_rests_and_joins_later(form):
    ours, theirs = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    first = MomentumSGD(ours, 0.1, form=form)
    second = SGD(theirs, 0.1, 0.9, weight_decay=1e-4, nesterov=True)
    for step, lr in enumerate((0.1, 0.4, 0.2, 0.3)):
        for params, optimizer in ((ours, first), (theirs, second)):
            set_lr(optimizer, lr)
            for i, p in enumerate(params):
                absent = (i == 0 and step < 2) or (i == 1 and step == 1)
                p.grad = None if absent else torch.full_like(p, 1.0 + step)
            optimizer.step()
        for mine, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("form", "optimizer"), [("u", MomentumSGD), ("v", MomentumSGD), ("u", LARS)]
)
def test_a_run_resumed_while_the_rate_changes_is_bit_equal(form, optimizer):
    def make(params: list[nn.Parameter]) -> MomentumSGD:
        return LARS(params, 0.1) if optimizer is LARS else MomentumSGD(params, 0.1, form=form)

    rates = [0.1, 0.2, 0.35, 1.7, 0.01, 0.02]
    straight = walk(make(parameters()), rates)
    params = parameters()
    first = make(params)
    walk(first, rates[:3])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = [nn.Parameter(p.detach().clone()) for p in params]
    second = make(resumed)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert equal(walk(second, rates[3:], seed=100 + 150), straight)


def test_a_state_of_torchs_sgd_is_carried_on():
    rates = random_rates(6)
    options: dict[str, Any] = {"momentum": 0.9, "weight_decay": 1e-2, "nesterov": True}
    options["fused"] = True
    whole = walk(SGD(parameters(), 0.1, **options), rates)
    params = parameters()
    first = SGD(params, 0.1, **options)
    walk(first, rates[:3])
    second = MomentumSGD(params, 0.1)
    second.load_state_dict(first.state_dict())
    assert equal(walk(second, rates[3:], seed=250), whole)
    assert second.param_groups[0]["fused"] is True


def test_a_copy_of_the_optimizer_goes_on_alike():
    model = nn.Linear(3, 2)
    optimizer = LARS(model.parameters(), 0.1, trust=0.02)
    walk(optimizer, [0.1, 0.2])
    twin = copy.deepcopy(optimizer)
    assert equal(walk(optimizer, [0.3], seed=7), walk(twin, [0.3], seed=7))


def test_memory_formats_may_differ_between_weights_gradients_and_files():
    last = torch.channels_last
    reference = walk(SGD(parameters(), 0.1, 0.9, weight_decay=1e-2, nesterov=True), [0.1, 0.2, 0.3])
    params = parameters()
    saved = MomentumSGD(params, 0.1, weight_decay=1e-2)
    walk(saved, [0.1, 0.2])  # contiguous everywhere
    for p in params:
        if p.dim() == 4:
            p.data = p.data.to(memory_format=last)
    resumed = MomentumSGD(params, 0.1, weight_decay=1e-2)
    resumed.load_state_dict(saved.state_dict())
    buffer = resumed.state[params[0]]["momentum_buffer"]
    assert buffer.is_contiguous(memory_format=last)
    ours = walk(resumed, [0.3], seed=200)  # gradients are still contiguous
    for mine, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)


def test_scaling_the_loss_is_not_scaling_the_rate():
    def weight(eta: float, scale: float) -> float:
        w = nn.Parameter(torch.ones((), dtype=torch.float64))
        optimizer = MomentumSGD([w], eta, momentum=0.0, nesterov=False, weight_decay=0.01)
        (scale * 2 * w).backward()
        optimizer.step()
        return w.item()

    assert weight(1.0, 1.0) == pytest.approx(-1.010, rel=1e-12)
    assert weight(0.1, 10.0) == pytest.approx(-1.001, rel=1e-12)


@pytest.mark.parametrize("k", [2, 8, 32])
def test_k_steps_equal_one_at_k_times_the_rate_where_the_gradient_is_constant(k):
    options: dict[str, Any] = {"momentum": 0.0, "nesterov": False}
    assert one_weight([0.125] * k, **options)[-1] == one_weight([0.125 * k], **options)[-1]


def test_on_a_quadratic_the_scaling_rule_errs_by_the_square_of_the_rate():
    def gap(eta: float, k: int = 4) -> float:
        ends = []
        for rate, steps in ((eta, k), (k * eta, 1)):
            w = nn.Parameter(torch.ones((), dtype=torch.float64))
            optimizer = MomentumSGD([w], rate, momentum=0.0, nesterov=False, weight_decay=0.0)
            for _ in range(steps):
                optimizer.zero_grad()
                (w**2 / 2).backward()
                optimizer.step()
            ends.append(w.item())
        return abs(ends[0] - ends[1])

    assert gap(1e-3) / gap(5e-4) == pytest.approx(4, rel=0.01)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return torchvision.models.resnet50()


def test_of_resnet50_106_tensors_with_53120_numbers_are_not_decayed(resnet):
    decayed, plain = decay_split(resnet, 1e-4)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (1e-4, 0.0)
    assert (len(decayed["params"]), len(plain["params"])) == (55, 106)
    assert sum(p.numel() for p in decayed["params"]) == 25_503_912
    assert sum(p.numel() for p in plain["params"]) == 53_120


def test_the_split_is_torchvisions(resnet):
    norms, others = split_normalization_params(resnet)
    decayed, plain = decay_split(resnet, 1e-4)
    assert {id(p) for p in plain["params"]} == {id(p) for p in norms}
    assert {id(p) for p in decayed["params"]} == {id(p) for p in others}


def test_the_split_heeds_its_switches():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    count = {
        (bn, bias): [
            len(g["params"]) for g in decay_split(model, 0.1, decay_bn=bn, decay_bias=bias)
        ]
        for bn in (False, True)
        for bias in (False, True)
    }
    assert count == {
        (False, True): [3, 2],
        (False, False): [1, 4],
        (True, True): [5],
        (True, False): [3, 2],
    }


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_step_without_gradient_shrinks_weights_and_leaves_batch_norm(nesterov):
    eta, decay = 0.1, 0.01
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
    nn.init.normal_(model[1].weight)
    before = copy.deepcopy(model.state_dict())
    optimizer = MomentumSGD(decay_split(model, decay), eta, nesterov=nesterov)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    shrunk = 1 - eta * decay * (1.9 if nesterov else 1)  # Nesterov steps along (1 + m) g at first
    torch.testing.assert_close(model[0].weight, before["0.weight"] * shrunk, rtol=1e-14, atol=0)
    assert torch.equal(model[1].weight, before["1.weight"])
    assert torch.equal(model[1].bias, before["1.bias"])


def test_the_trust_ratio_of_lars_is_the_one_by_hand():
    w = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))  # |w| = 5
    b = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = LARS([w, b], 2.0, momentum=0.9, weight_decay=0.1, trust=0.01)
    for p in (w, b):
        p.grad = torch.tensor([0.6, 0.8], dtype=torch.float64).view_as(p)  # |g| = 1
    optimizer.step()
    ratio = 0.01 * 5 / (1 + 0.1 * 5)  # 1 / 30
    step = torch.tensor([0.6 + 0.3, 0.8 + 0.4], dtype=torch.float64)
    start = torch.tensor([3.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(w.detach()[0], start - 2 * ratio * step)
    torch.testing.assert_close(b.detach(), start - 2 * step)  # one dimension: the global rate


@pytest.mark.parametrize(("weight", "gradient"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_lars_is_sgd_where_a_norm_is_zero(weight, gradient):
    w = nn.Parameter(torch.full((2, 2), weight))
    w.grad = torch.full((2, 2), gradient)
    LARS([w], 0.5, weight_decay=0.1).step()
    torch.testing.assert_close(
        w.detach(), torch.full((2, 2), weight - 0.5 * (gradient + 0.1 * weight))
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr=-0.1: give 0 or more"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"momentum": 1.5}, "momentum=1.5: choose from 0 to 1"),
        ({"momentum": 0.0}, "nesterov=True needs a momentum above 0: set nesterov=False"),
        ({"form": "w"}, 'form="w" is unknown: choose u or v'),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        MomentumSGD(parameters(), **({"lr": 0.1} | options))
    with pytest.raises(ValueError, match=message):
        MomentumSGD([{"params": parameters()} | options], 0.1)


def test_wrong_use_is_refused_in_a_sentence():
    params = parameters()
    with pytest.raises(
        ValueError, match=r"saved momentum is of form u and this optimizer of form v"
    ):
        MomentumSGD(params, 0.1, form="v").load_state_dict(MomentumSGD(params, 0.1).state_dict())
    with pytest.raises(ValueError, match="used dampening or maximize"):
        MomentumSGD(params, 0.1).load_state_dict(SGD(params, 0.1, maximize=True).state_dict())
    with pytest.raises(ValueError, match=r"trust=0.*give a number above 0"):
        LARS(params, 0.1, trust=0)
    with pytest.raises(ValueError, match="weight_decay=-1"):
        decay_split(nn.Linear(2, 2), -1)
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="gradient is sparse"):
        MomentumSGD(table.parameters(), 0.1).step()


def test_a_closure_is_called_once_and_its_loss_returned():
    w = nn.Parameter(torch.ones(1))
    optimizer = MomentumSGD([w], 0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 1.0
    assert w.item() < 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fused", [True, False])
def test_on_a_gpu_form_u_is_torchs_sgd_and_corrected_form_v_agrees(fused):
    rates = random_rates(8)

    def path(optimizer: type[torch.optim.Optimizer], **options: Any) -> list[Tensor]:
        params = [nn.Parameter(p.cuda()) for p in tensors(0)]
        made = optimizer(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4, **options)
        for step, lr in enumerate(rates):
            set_lr(made, lr)
            for p, g in zip(params, tensors(100 + step), strict=True):
                p.grad = g.cuda()
            made.step()
        return [p.detach() for p in params]

    theirs = path(SGD, fused=fused)
    assert equal(path(MomentumSGD, fused=fused), theirs)
    for v, reference in zip(path(MomentumSGD, fused=fused, form="v"), theirs, strict=True):
        torch.testing.assert_close(v, reference, rtol=1e-5, atol=2e-6)
