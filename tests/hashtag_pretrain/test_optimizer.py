"""The learning rate at each step, in closed form, and which parameters are decayed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from common.optim import follow
from hashtag_pretrain.config import Config
from hashtag_pretrain.hashtags import images_processed
from hashtag_pretrain.optimizer import build_optimizer, build_schedule, steps_of

STEPS, BATCH = 11_000, 8064  # 11 plateaus of 1000 steps, 88.7 million images


def factor(cfg: Config, steps: int):
    """The factor on the rate by the steps done."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], cfg.peak_lr())
    (found,) = build_schedule(optimizer, cfg, steps).lr_lambdas
    return found


def test_the_rate_starts_at_a_tenth_rises_to_3_15_and_halves_ten_times():
    """6.4 million images of warm-up are more than the 5 % of this run, which are 550 steps."""
    cfg = Config()
    assert cfg.peak_lr() == pytest.approx(0.1 / 256 * 8064) == pytest.approx(3.15)
    found = factor(cfg, STEPS)
    rates = [3.15 * found(done) for done in (0, 275, 550, 999)]
    assert rates == pytest.approx([0.1, (0.1 + 3.15) / 2, 3.15, 3.15])
    plateaus = [3.15 * found(done) for k in range(1, 11) for done in (1000 * k, 1000 * k + 999)]
    halved = [3.15 / 2**k for k in range(1, 11) for _ in range(2)]
    assert plateaus == pytest.approx(halved)
    assert plateaus[:3] == pytest.approx([1.575, 1.575, 0.7875])
    assert plateaus[-1] == pytest.approx(0.00307617, rel=1e-5)


def test_a_long_run_warms_up_over_6_4_million_images():
    steps = steps_of(7_000_000_000, BATCH)
    assert steps == 868_056
    found = factor(Config(), steps)
    warmup = 6_400_000 // BATCH  # 793 steps
    assert found(warmup) == 1 > found(warmup - 1)
    assert 3.15 * found(warmup / 2) == pytest.approx(1.625)


@pytest.mark.parametrize(("steps", "drops", "gamma"), [(468, 5, 0.5), (97, 10, 0.5), (400, 3, 0.1)])
def test_the_schedule_is_the_closed_form_at_every_step_and_after_a_resume(steps, drops, gamma):
    cfg = Config(batch_size=512, lr=0.2, warmup_lr=0.05, warmup_most=0.1, drops=drops, gamma=gamma)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], cfg.peak_lr())
    schedule = build_schedule(optimizer, cfg, steps)
    warmup = int(0.1 * steps)
    for done in range(steps):
        if done == steps // 2:  # as a new process finds it in its checkpoint
            state = schedule.state_dict()
            optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], cfg.peak_lr())
            schedule = build_schedule(optimizer, cfg, steps)
            schedule.load_state_dict(state)
            follow(schedule)
        rise = min(1, done / warmup)
        plateau = sum(done >= round(k * steps / (drops + 1)) for k in range(1, drops + 1))
        wanted = (0.05 + (0.4 - 0.05) * rise) * gamma**plateau
        assert optimizer.param_groups[0]["lr"] == pytest.approx(wanted)
        assert schedule.get_last_lr() == pytest.approx([wanted])
        optimizer.step()
        schedule.step()


def test_steps_see_all_images_and_minus_one_is_none():
    counts = {steps_of(images, 8) for images in (17, 20, 24)}
    assert counts == {3}
    assert steps_of(-1, 8064) == 0
    for images, steps in ((1_280_000, 15_873), (940_000_000, 244_517), (3_500_000_000, 868_056)):
        assert steps_of(images_processed(images), BATCH) - steps in (0, 1)  # a begun one counts


def test_a_run_of_fewer_steps_than_drops_and_a_rate_of_0_have_a_schedule():
    cfg = Config()
    found = factor(cfg, 4)
    values = [found(done) for done in range(4)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1
    assert factor(Config(lr=0.0, warmup_lr=0.0), 4)(0) == 1


def test_momentum_is_nesterovs_and_norms_are_decayed_only_where_asked():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    for decay_norm in (False, True):
        cfg = Config(weight_decay=0.01, decay_norm=decay_norm)
        optimizer, _ = build_optimizer(model, cfg, 10)
        found = [(g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]
        assert found == [(0.01, 1), (0.01, 1), (0.01 * decay_norm, 2)]
        assert {(g["momentum"], g["nesterov"]) for g in optimizer.param_groups} == {(0.9, True)}
    plain, _ = build_optimizer(model, replace(Config(), momentum=0.0), 10)
    assert not plain.param_groups[0]["nesterov"]  # torch has none without momentum
