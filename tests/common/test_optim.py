"""Learning-rate schedules; warm-up, drops and parameter groups: test_config.py."""

import pytest
import torch

from common.optim import one_cycle


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_one_cycle_is_torchs(steps):
    rates = []
    for ours in (False, True):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.5)
        schedule = (
            one_cycle(optimizer, steps)
            if ours
            else torch.optim.lr_scheduler.OneCycleLR(
                optimizer, 0.5, total_steps=steps, cycle_momentum=False
            )
        )
        for done in range(steps):
            rates += schedule.get_last_lr()
            optimizer.step()
            if done < steps - 1:
                schedule.step()
    assert rates[steps:] == pytest.approx(rates[:steps], abs=1e-12)
