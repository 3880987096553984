"""The doctor on training steps: each pitfall planted is found, alone, and a clean step has none."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor, nn

from large_minibatch.doctor import Finding, Subject, examine

Batch = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for one another cost more than such small tensors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Block(nn.Module):
    """A residual block."""

    def __init__(self, norm: Callable[[int], nn.Module], gamma: float) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), norm(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), norm(4)
        nn.init.constant_(self.bn2.weight, gamma)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(y)))


class Grouped(nn.BatchNorm2d):
    """Statistics of each 32 consecutive images."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(Grouped, self).forward(part) for part in x.split(32)])


class Shared(nn.BatchNorm2d):
    """Statistics of the images of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((0, 2, 3), keepdim=True)
        total = mean.detach().clone()
        distributed.all_reduce(total)
        mean = mean + (total / distributed.get_world_size() - mean).detach()
        normal = (x - mean) / x.std()
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


class Inside(torch.optim.Optimizer):
    """Momentum SGD with the rate inside the buffer: v <- m v + lr g, w <- w - v."""

    def __init__(self, params, *, correction: bool) -> None:
        super().__init__(params, {"lr": 0.1, "weight_decay": 1e-4})
        self.correction, self.last = correction, None

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                v = self.state[p].setdefault("v", torch.zeros_like(p))
                ratio = group["lr"] / self.last if self.correction and self.last else 1.0
                v.mul_(0.9 * ratio).add_(group["lr"] * (p.grad + group["weight_decay"] * p))
                p.sub_(v)
        self.last = group["lr"]


def network(norm: Callable[[int], nn.Module] = nn.BatchNorm2d, gamma: float = 0.0) -> nn.Module:
    stem = [nn.Conv2d(3, 4, 3, stride=2), norm(4), nn.ReLU()]
    head = nn.Linear(4, 10)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*stem, Block(norm, gamma), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def sgd(model: nn.Module, **options: float) -> torch.optim.Optimizer:
    """The paper's solver, options replaced; `norm_decay` is that of one-dimensional parameters."""
    norm_decay = options.pop("norm_decay", 0.0)
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1]}]
    rest = [p for p in model.parameters() if p.dim() == 1]
    groups += [{"params": rest, "weight_decay": norm_decay}]  # type: ignore[dict-item]
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}
    return torch.optim.SGD(groups, **(settings | options))


def loop(
    *,
    net: Callable[[], nn.Module] = network,
    solver: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
    scale: Callable[[int], float] = lambda count: 1 / count,
    clears: bool = True,
    **parts,
) -> Callable[[], Subject]:
    """`build` of a loop; `scale` is the factor on the loss of each of several batches."""

    def build() -> Subject:
        model = net()
        optimizer = solver(model)

        def accumulate(batches: list[Batch]) -> None:
            optimizer.zero_grad()
            for images, labels in batches:
                if not clears:
                    optimizer.zero_grad()
                (F.cross_entropy(model(images), labels) * scale(len(batches))).backward()
            optimizer.step()

        subject = Subject(
            model=model,
            optimizer=optimizer,
            step=lambda batch: accumulate([batch]),
            accumulate=accumulate,
            workers=accumulate,
            per_forward=32,
            shape=(3, 8, 8),
        )
        return replace(subject, **parts)

    return build


def processes(exchange: Callable[[Tensor], None], **settings) -> Callable[[], Subject]:
    """`build` of a loop that calls `exchange` on each gradient between backward and update."""

    def build() -> Subject:
        subject = loop(**settings)()
        model, optimizer = subject.model, subject.optimizer
        assert model is not None
        assert optimizer is not None

        def step(batch: Batch) -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            if distributed.is_initialized():
                for p in model.parameters():
                    exchange(p.grad)
            optimizer.step()

        return replace(subject, step=step, distributed=True)

    return build


def found(build: Callable[[], Subject], *only: str) -> dict[str, str]:
    """Sentences of the findings and the advice, by check."""
    findings = examine(build, only=only)
    return {f.check: f.text for f in findings if f.status in ("found", "advice")}


def one(build: Callable[[], Subject], check: str) -> Finding:
    """What became of a check."""
    return examine(build, only=[check])[0]


def test_a_clean_step_has_no_pitfall_and_all_its_checks_are_made():
    findings = examine(loop())
    status = {f.check: f.status for f in findings}
    assert set(status.values()) == {"ok", "not examined"}, findings
    assert [name for name, value in status.items() if value == "ok"] == [
        "rate, not loss, is scaled",
        "momentum correction",
        "mean over micro-batches",
        "mean over workers",
        "BN over n images",
        "no decay of gamma, beta",
        "last gamma 0",
        "last layer N(0, 0.01)",
    ]


@pytest.mark.parametrize("factor", [32.0, 0.25])
def test_a_scaled_loss_is_found_with_its_factor(factor):
    texts = found(loop(scale=lambda count: factor / count))
    assert list(texts) == ["rate, not loss, is scaled"]
    assert f"the gradient is {factor:.3g} times" in texts["rate, not loss, is scaled"]
    assert "0.0001 expected" in texts["rate, not loss, is scaled"]


def test_a_loss_summed_over_the_batch_is_found():
    def build():
        subject = loop()()

        def step(batch):
            subject.optimizer.zero_grad()
            F.cross_entropy(subject.model(batch[0]), batch[1], reduction="sum").backward()
            subject.optimizer.step()

        return replace(subject, step=step, accumulate=None, workers=None)

    assert "the gradient is 32 times" in one(build, "rate, not loss, is scaled").text


def test_decay_within_the_loss_is_right_where_the_rate_is_scaled():
    def build():
        subject = loop(solver=lambda net: sgd(net, weight_decay=0.0))()

        def step(batch):
            subject.optimizer.zero_grad()
            squares = sum(p.square().sum() for p in subject.model.parameters() if p.dim() > 1)
            loss = F.cross_entropy(subject.model(batch[0]), batch[1]) + 0.5e-3 * squares
            loss.backward()
            subject.optimizer.step()

        return replace(subject, step=step, accumulate=None, workers=None, weight_decay=1e-3)

    assert one(build, "rate, not loss, is scaled").status == "ok"


@pytest.mark.parametrize(
    "options", [{"nesterov": False}, {"dampening": 0.9, "nesterov": False}, {"momentum": 0.5}]
)
def test_every_setting_of_torchs_sgd_is_clean(options):
    checks = ["rate, not loss, is scaled", "momentum correction", "no decay of gamma, beta"]
    findings = examine(loop(solver=lambda net: sgd(net, **options)), only=checks)
    assert [f.status for f in findings] == ["ok"] * 3


def test_momentum_with_the_rate_inside_is_found_without_correction_only():
    def solver(correction):
        return lambda net: Inside(
            [p for p in net.parameters() if p.dim() > 1], correction=correction
        )

    texts = found(loop(solver=solver(False)))
    assert list(texts) == ["momentum correction"]
    assert "grows 1 times, 10 expected" in texts["momentum correction"]
    assert one(loop(solver=solver(True)), "momentum correction").status == "ok"


def test_a_correction_in_the_function_that_sets_the_rate_is_seen():
    def build():
        subject = loop(solver=lambda net: Inside(net.parameters(), correction=False))()
        optimizer = subject.optimizer

        def set_lr(rate):
            group = optimizer.param_groups[0]
            for state in optimizer.state.values():
                state["v"].mul_(rate / group["lr"])
            group["lr"] = rate

        return replace(subject, set_lr=set_lr)

    assert one(build, "momentum correction").status == "ok"


def test_without_momentum_there_is_nothing_to_correct():
    build = loop(solver=lambda net: sgd(net, momentum=0.0, nesterov=False))
    assert one(build, "momentum correction").status == "not examined"


@pytest.mark.parametrize(
    ("settings", "measured"),
    [
        ({"scale": lambda count: 1.0}, "counts 1 of what it counts alone, 0.25 expected: a sum"),
        ({"scale": lambda count: count**-2}, "0.0625 of what it counts alone, 0.25 expected: div"),
        ({"clears": False}, "counts 0.00, 0.00, 0.00, 0.25 of what"),
    ],
)
def test_a_wrong_sum_over_micro_batches_is_found(settings, measured):
    texts = found(loop(**settings, workers=None))
    assert list(texts) == ["mean over micro-batches"]
    assert measured in texts["mean over micro-batches"]


def pieces(per_forward: int, count: Callable[[int], float], drops: bool = False):
    """`build` of a loop that cuts 80 images into pieces and divides their losses by `count`."""

    def build() -> Subject:
        subject = loop()()
        model, optimizer = subject.model, subject.optimizer

        def share(batch: Batch) -> None:
            optimizer.zero_grad()
            for images, labels in zip(*(part.split(per_forward) for part in batch), strict=True):
                if drops and len(images) < per_forward:
                    continue
                (F.cross_entropy(model(images), labels) / count(len(images))).backward()
            optimizer.step()

        return replace(subject, share=share, per_process=80)

    return build


@pytest.mark.parametrize(
    ("build", "measured"),
    [
        (pieces(20, lambda size: 4), ""),
        (pieces(80, lambda size: 1), ""),
        (pieces(32, lambda size: 80 / size), ""),
        (pieces(20, lambda size: 3), "in 4 pieces, and the loss of one of 20 is divided by 3, 4"),
        (pieces(16, lambda size: 4), "in 5 pieces, and the loss of one of 16 is divided by 4, 5"),
        (pieces(32, lambda size: 3), "in 3 pieces, and the loss of one of 16 is divided by 3, 5"),
        (pieces(32, lambda size: 2, drops=True), "Of the 80 images of a process 64 are computed"),
    ],
)
def test_losses_divided_by_another_number_than_there_are_pieces_are_found(build, measured):
    finding = one(build, "divided by number of pieces")
    assert finding.status == ("found" if measured else "ok")
    assert measured in finding.text


def test_a_wrong_sum_over_workers_of_one_process_is_found():
    texts = found(loop(scale=lambda count: 1.0, accumulate=None))
    assert list(texts) == ["mean over workers"]
    assert "counts 1 of what it counts alone, 0.5 expected" in texts["mean over workers"]


def average(gradient: Tensor) -> None:
    distributed.all_reduce(gradient)
    gradient /= distributed.get_world_size()


def test_a_mean_over_processes_is_clean():
    findings = examine(processes(average), only=["mean over workers", "BN within a worker"])
    assert [f.status for f in findings] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("exchange", "measured"),
    [
        (distributed.all_reduce, "counts 1 of what it counts alone, 0.5 expected: a sum"),
        (lambda g: average(g.div_(2)), "counts 0.25 of what it counts alone, 0.5 expected: div"),
        (lambda gradient: None, "their gradients are not exchanged"),
    ],
)
def test_a_wrong_sum_over_processes_is_found(exchange, measured):
    texts = found(processes(exchange), "mean over workers", "BN within a worker")
    assert list(texts) == ["mean over workers"]
    assert measured in texts["mean over workers"]


def test_statistics_shared_over_processes_are_found():
    build = processes(average, net=lambda: network(local_or_shared))
    finding = one(build, "BN within a worker")
    assert finding.status == "found"
    assert "0 expected" in finding.text


def local_or_shared(width: int) -> nn.Module:
    return Shared(width) if distributed.is_initialized() else nn.BatchNorm2d(width)


def test_sync_batch_norm_is_found_though_it_needs_a_gpu():
    def net():
        return nn.SyncBatchNorm.convert_sync_batchnorm(network())

    build = processes(average, net=net)
    assert one(build, "BN within a worker").status == "found"
    assert one(build, "mean over workers").status == "not examined"


def test_distributed_data_parallel_around_sync_batch_norm_loses_no_other_check():
    def build():
        subject = loop(net=lambda: nn.SyncBatchNorm.convert_sync_batchnorm(network()))()
        model = subject.model
        if distributed.is_initialized():  # refuses SyncBatchNorm on a CPU
            model = nn.parallel.DistributedDataParallel(model)
        return replace(subject, model=model, distributed=True)

    status = {f.check: f.status for f in examine(build)}
    assert status["BN within a worker"] == "found"
    assert status["mean over workers"] == "not examined"
    assert list(status.values()).count("ok") == 7


def test_an_error_in_a_process_names_its_reason_and_loses_no_other_check():
    def exchange(gradient):
        raise RuntimeError("no such link")

    checks = ["mean over workers", "BN within a worker", "mean over micro-batches"]
    findings = {f.check: f for f in examine(processes(exchange), only=checks)}
    assert [findings[name].status for name in checks] == ["not examined", "not examined", "ok"]
    assert re.search(r"In 2 processes: step\(\) .* no such link", findings[checks[0]].text)


@pytest.mark.parametrize(
    ("norm", "group", "status"),
    [(nn.BatchNorm2d, 32, "found"), (Grouped, 32, "ok"), (Grouped, 64, "found")],
)
def test_statistics_over_more_or_fewer_than_n_images_are_found(norm, group, status):
    build = loop(net=lambda: network(norm), per_forward=64, group=group)
    finding = one(build, "BN over n images")
    assert finding.status == status
    measured = 64 if norm is nn.BatchNorm2d else 32
    assert f"depends on {measured}, n = {group} expected" in finding.text


def test_frozen_normalisation_is_found():
    class Frozen(nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(False)

    finding = one(loop(net=lambda: network(Frozen)), "BN over n images")
    assert finding.status == "found"
    assert "depends on 1, n = 32 expected" in finding.text


def test_instance_normalisation_has_no_group():
    build = loop(net=lambda: network(lambda width: nn.InstanceNorm2d(width, affine=True)))
    assert one(build, "BN over n images").status == "not examined"


def test_decay_of_gamma_and_beta_is_found():
    texts = found(loop(solver=lambda net: sgd(net, norm_decay=1e-4)))
    assert list(texts) == ["no decay of gamma, beta"]
    assert "decayed by 0.0001, 0 expected" in texts["no decay of gamma, beta"]


def test_gamma_one_and_torchs_own_last_layer_are_advice_and_no_finding():
    def net():
        model = network(gamma=1.0)
        model[-1].reset_parameters()
        return model

    findings = examine(loop(net=net), only=["last gamma 0", "last layer N(0, 0.01)"])
    advice = {f.check: f.text for f in findings if f.status == "advice"}
    assert "0 in 0 of 1 residual blocks" in advice["last gamma 0"]
    assert "0.01 expected" in advice["last layer N(0, 0.01)"]
    assert len(advice) == 2


def test_a_network_without_shortcuts_is_not_told_to_start_at_gamma_zero():
    def net():
        stem = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)]
        return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

    assert one(loop(net=net), "last gamma 0").status == "not examined"


def test_steps_that_are_no_sgd_are_not_examined_rather_than_passed():
    checks = ["rate, not loss, is scaled", "mean over micro-batches", "mean over workers"]
    adam = loop(solver=lambda net: torch.optim.AdamW(net.parameters(), 0.1))
    assert [f.status for f in examine(adam, only=checks)] == ["not examined"] * 3


def test_dropout_does_not_disturb_the_comparison():
    def net():
        model = network()
        model.insert(5, nn.Dropout(0.5))
        return model

    assert one(loop(net=net), "rate, not loss, is scaled").status == "ok"
