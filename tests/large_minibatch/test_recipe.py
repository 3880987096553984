"""Sec. 2.1, 2.2, 5.1: learning rates, the shares of a minibatch, the error of a run."""

import math
import re
import statistics
from itertools import pairwise

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, LinearLR, MultiStepLR, SequentialLR

from large_minibatch.recipe import (
    Plan,
    Schedule,
    mean_std,
    median_of_last,
    plan,
    reference_lr,
    set_lr,
)

IMAGENET = 1_281_167
# kn, eta_ref, steps per epoch rounded down
SIZES = [
    *((64, 0.025, 20018), (128, 0.05, 10009), (256, 0.1, 5004), (512, 0.2, 2502)),
    *((1024, 0.4, 1251), (2048, 0.8, 625), (4096, 1.6, 312), (8192, 3.2, 156)),
    *((16384, 6.4, 78), (32768, 12.8, 39), (65536, 25.6, 19)),
]
LARGE = Schedule(peak=3.2, steps_per_epoch=156)


def an_optimizer(lr: float) -> SGD:
    return SGD([torch.zeros(1, requires_grad=True)], lr=lr)


@pytest.mark.parametrize(("batch_size", "eta", "steps"), SIZES)
def test_rates_and_steps_per_epoch_are_those_of_imagenet(batch_size, eta, steps):
    assert reference_lr(batch_size) == pytest.approx(eta, rel=1e-15)
    assert plan(examples=IMAGENET, batch_size=batch_size).steps_per_epoch == steps


@pytest.mark.parametrize(
    ("base", "rule", "eta"),
    [
        *((0.05, "linear", 1.6), (0.1, "linear", 3.2), (0.2, "linear", 6.4)),
        *((0.1, "fixed", 0.1), (0.1, "sqrt", 0.5656854249)),
    ],
)
def test_rules_give_the_rates_of_table_2a(base, rule, eta):
    assert reference_lr(8192, base=base, rule=rule) == pytest.approx(eta, rel=1e-9)
    assert reference_lr(256, base=base, rule=rule) == base


def test_a_base_batch_gives_the_rates_of_table_3b():
    rates = [reference_lr(2 * gpus, base=0.0025, base_batch=2) for gpus in (1, 2, 4, 8)]
    assert rates == [0.0025, 0.005, 0.01, 0.02]


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        *((0, 0.1), (1, 0.1039743590), (390, 1.65), (779, 3.1960256), (780, 3.2)),
        *((30 * 156 - 1, 3.2), (30 * 156, 0.32), (60 * 156, 0.032), (80 * 156, 0.0032)),
        (90 * 156 - 1, 0.0032),
    ],
)
def test_the_large_minibatch_has_the_papers_rate_at_every_turn(step, lr):
    assert LARGE.lr(step) == pytest.approx(lr, rel=1e-7)


def test_the_large_run_has_14040_steps_and_780_of_warmup():
    assert (LARGE.steps, LARGE.warmup_steps) == (14040, 780)


def test_the_warmup_rises_by_the_same_amount_at_every_step():
    rates = [LARGE.lr(step) for step in range(781)]
    rises = [after - before for before, after in pairwise(rates)]
    assert rises == pytest.approx([3.1 / 780] * 780, rel=1e-9)


def test_the_constant_warmup_jumps_after_five_epochs():
    schedule = Schedule(peak=3.2, steps_per_epoch=156, warmup="constant")
    assert [schedule.lr(step) for step in (0, 779, 780)] == [0.1, 0.1, 3.2]


def test_without_warmup_the_first_step_has_the_full_rate():
    assert Schedule(peak=3.2, steps_per_epoch=156, warmup="none").lr(0) == 3.2


@pytest.mark.parametrize("batch_size", [64, 128, 256])
@pytest.mark.parametrize("warmup", ["gradual", "constant"])
def test_small_minibatches_have_no_warmup(batch_size, warmup):
    schedule = Schedule(peak=reference_lr(batch_size), steps_per_epoch=50, warmup=warmup)
    assert schedule.warmup_steps == 0
    assert {schedule.lr(step) for step in range(30 * 50)} == {reference_lr(batch_size)}


def test_the_closed_form_is_torchs_sequence_of_linear_and_multistep():
    optimizer = an_optimizer(3.2)
    after = [epoch * 156 - 780 for epoch in (30, 60, 80)]  # counted from the switch
    reference = SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, start_factor=1 / 32, total_iters=780),
            MultiStepLR(optimizer, after, gamma=0.1),
        ],
        milestones=[780],
    )
    for step in range(LARGE.steps):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(LARGE.lr(step), rel=1e-9)
        optimizer.step()
        reference.step()


def test_the_schedule_drives_lambda_lr_and_groups_with_a_scale():
    optimizer = an_optimizer(3.2)
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr_scale": 2.0})
    scheduler = LambdaLR(an_optimizer(3.2), lambda step: LARGE.lr(step) / LARGE.peak)
    for step in range(800):
        set_lr(optimizer, LARGE.lr(step))
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert first == LARGE.lr(step)
        assert second == 2 * first
        assert scheduler.get_last_lr()[0] == pytest.approx(first, rel=1e-12)
        scheduler.optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_smooth_schedules_fall_from_the_peak_to_zero(kind):
    schedule = Schedule(peak=3.2, steps_per_epoch=156, kind=kind)
    middle = (780 + schedule.steps) // 2
    assert schedule.lr(0) == 0.1
    assert schedule.lr(780) == 3.2
    assert schedule.lr(middle) == pytest.approx(1.6)
    assert schedule.lr(schedule.steps) == pytest.approx(0)
    assert schedule.lr(schedule.steps + 1000) == pytest.approx(0)
    rates = [schedule.lr(step) for step in range(780, schedule.steps)]
    assert all(after < before for before, after in pairwise(rates))


def test_epochs_may_be_fractions():
    schedule = Schedule(
        peak=0.8, steps_per_epoch=10, epochs=1.5, warmup_epochs=0.5, milestones=[0.7, 1.2]
    )
    assert (schedule.steps, schedule.warmup_steps) == (15, 5)
    assert [step for step in range(1, 15) if schedule.lr(step) < schedule.lr(step - 1)] == [7, 12]


def test_milestones_behind_the_end_are_never_reached():
    schedule = Schedule(peak=0.1, steps_per_epoch=4, epochs=2)
    assert {schedule.lr(step) for step in range(schedule.steps)} == {0.1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": "slow"}, 'warmup="slow" is unknown: choose gradual, constant, none'),
        ({"kind": "steps"}, 'kind="steps" is unknown'),
        ({"peak": 0.0}, "peak=0.0, start=0.1: give a peak above 0"),
        ({"steps_per_epoch": 0}, "take a smaller batch or more data"),
        ({"epochs": -1}, "epochs=-1"),
        ({"milestones": [60, 30]}, "must be ascending epochs"),
        ({"milestones": [3]}, "drops at epoch 3, within the warm-up of 5 epochs"),
    ],
)
def test_wrong_schedules_are_refused_in_a_sentence(options, message):
    with pytest.raises(ValueError, match="(?s)" + message.replace("[", r"\[")):
        Schedule(**({"peak": 3.2, "steps_per_epoch": 156} | options))


def test_wrong_rates_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match='rule="root" is unknown: choose linear, sqrt or fixed'):
        reference_lr(256, rule="root")
    with pytest.raises(ValueError, match="batch_size=0"):
        reference_lr(0)
    with pytest.raises(ValueError, match="base=0"):
        reference_lr(256, base=0)
    with pytest.raises(ValueError, match="steps count from 0"):
        LARGE.lr(-1)


@pytest.mark.parametrize(
    ("batch_size", "processes", "per_forward", "expected"),
    [
        (8192, 256, 256, (32, 32, 1, 256)),  # the paper's hour
        (256, 8, 256, (32, 32, 1, 8)),  # its baseline
        (8192, 8, 256, (1024, 256, 4, 256)),  # the same as the first, on one server
        (8192, 1, 100, (8192, 64, 128, 256)),  # 96 is less than 100 but does not divide 8192
        (96 * 5, 1, 200, (480, 160, 3, 15)),  # 5 of 15 groups
        (32 * 7, 1, 200, (224, 32, 7, 7)),  # a prime number of groups
        (16, 1, 256, (16, 16, 1, 1)),  # fewer than a group: the minibatch is the group
    ],
)
def test_a_minibatch_is_shared_by_processes_and_forwards(
    batch_size, processes, per_forward, expected
):
    shares = plan(
        examples=IMAGENET, batch_size=batch_size, processes=processes, per_forward=per_forward
    )
    found = (shares.per_process, shares.per_forward, shares.accumulation, shares.workers)
    assert found == expected
    assert shares.per_forward * shares.accumulation * processes == batch_size
    assert shares.per_forward % shares.group == 0


def test_the_number_of_processes_changes_neither_rate_nor_workers():
    plans = [plan(examples=IMAGENET, batch_size=8192, processes=p) for p in (1, 2, 8, 64, 256)]
    assert {(p.workers, p.group, p.steps_per_epoch) for p in plans} == {(256, 32, 156)}
    assert isinstance(plans[0], Plan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 100, "processes": 3}, "equally by 3 processes: the nearest that works is "),
        ({"batch_size": 100, "processes": 3}, "works is 96 or 192"),
        ({"batch_size": 80}, "group=32 does not divide the 80 images .* 64 or 96"),
        ({"batch_size": 16, "processes": 2}, "group=16 does not divide the 8 images .* is 64,"),
        ({"batch_size": 2048}, "larger than the training set of 1000: the largest .* is 992"),
        ({"batch_size": 1001, "processes": 40}, "need 1280 images .* is 992 with processes=31"),
        ({"batch_size": 999, "processes": 40}, "need 1280 images .* is 992 with processes=31"),
        ({"batch_size": 2048, "group": 1500}, "larger than .* 1000: the largest .* is 1000"),
        ({"batch_size": 90, "processes": 2, "group": 1500}, "is 1000 with processes=1"),
        ({"batch_size": 256, "per_forward": 16}, "per_forward=16 is less than a group of 32"),
        ({"batch_size": 256, "processes": 0}, "processes=0: give 1 or more"),
    ],
)
def test_uneven_shares_are_refused_with_sizes_that_work(options, message):
    with pytest.raises(ValueError, match=message):
        plan(examples=1000, **options)


@pytest.mark.parametrize("examples", [20, 100, 1000])
@pytest.mark.parametrize("processes", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("batch_size", [33, 100, 250, 999, 4096])
def test_the_sizes_advised_do_work(batch_size, processes, examples):
    said = ""
    try:
        plan(examples=examples, batch_size=batch_size, processes=processes)
    except ValueError as error:
        said = str(error)
    advised = re.search(r"works is (\d+)(?: or (\d+))?(?: with processes=(\d+))?", said)
    assert bool(advised) == bool(said), said
    for size in filter(None, advised.groups()[:2] if advised else ()):
        plan(examples=examples, batch_size=int(size), processes=int(advised[3] or processes))


def test_the_error_of_a_run_is_the_median_of_its_last_five_epochs():
    errors = [90.0, 60.0, 24.1, 23.5, 23.9, 23.6, 23.7]
    assert median_of_last(errors) == 23.7
    assert median_of_last(errors[:2]) == 75.0  # of what there is
    assert median_of_last(errors, n=1) == 23.7
    assert math.isnan(median_of_last([1.0, math.nan, 2.0]))
    assert median_of_last([math.nan, 1.0, 2.0, 3.0], n=3) == 2.0


def test_deviations_over_runs_divide_by_one_less_than_their_number():
    errors = [23.48, 23.60, 23.72, 23.55, 23.65]
    mean, std = mean_std(errors)
    assert mean == pytest.approx(23.60)
    assert std == pytest.approx(statistics.stdev(errors))
    assert std == pytest.approx(torch.tensor(errors, dtype=torch.float64).std().item())
    assert mean_std([2.0])[0] == 2.0
    assert math.isnan(mean_std([2.0])[1])


def test_statistics_of_nothing_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="No median of the last 5 of 0 values"):
        median_of_last([])
    with pytest.raises(ValueError, match="No mean of no runs"):
        mean_std([])
