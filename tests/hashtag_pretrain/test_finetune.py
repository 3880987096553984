"""Fine-tuning: what is trained and how fast, the grid, an interrupted search."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.data import BadExample
from common.run import checkpoint
from common.sampling import SampleStream
from hashtag_pretrain.model import Network, build_model
from hashtag_pretrain.targets.finetune import (
    FineTune,
    Setting,
    finetune,
    fit_finetune,
    make_schedule,
    parameter_sets,
    replace_head,
    require_enough,
    score_finetune,
    train_one,
)
from hashtag_pretrain.targets.holdout import split

from .small_target import READING, guard, small_target

SMALL = FineTune(
    lrs=[0.05],
    decays=[1e-3],
    head_lrs=[1, 10],
    epochs=3,
    batch_size=9,
    size=16,
    resize=16,
    augment="none",
    held_out=0.34,
)
SETTING = Setting(lr=0.5, decay=1e-3, head_lr=4.0)


def small_model(width=8):
    torch.manual_seed(0)
    return build_model(Network("small", width=width), classes=5)


def test_three_steps_equal_a_plain_loop(tmp_path):
    target = small_target(tmp_path)
    options = replace(SMALL, epochs=2, warmup=0.5)  # 4 steps
    ours = small_model()
    train_one(ours, target.train, 3, SETTING, options, 0, READING)

    torch.manual_seed(0)
    model = build_model(Network("small", width=8), classes=5)
    torch.manual_seed(0)
    replace_head(model, 3)
    body = [p for name, p in model.named_parameters() if "fc" not in name and p.ndim > 1]
    norms = [p for name, p in model.named_parameters() if "fc" not in name and p.ndim == 1]
    lr = 0.5 * 9 / 256
    groups = [
        {"params": body, "lr": lr, "weight_decay": 1e-3},
        {"params": norms, "lr": lr, "weight_decay": 0.0},
        {"params": list(model.fc.parameters()), "lr": 4 * lr, "weight_decay": 1e-3},
    ]
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, nesterov=True)
    stream = SampleStream(18, 9, seed=0)
    factors = [0.1, 0.55 * 0.1, 0.01, 0.001]  # warm-up of 2 steps; drops at 1, 2, 3 of 4
    for step in range(4):
        keys = stream.batch(step)
        images = torch.stack([load(target.train[i][0]) for _, i in keys])
        labels = target.train.labels[[i for _, i in keys]]
        for group, first in zip(optimizer.param_groups, (lr, lr, 4 * lr), strict=True):
            group["lr"] = first * factors[step]
        optimizer.zero_grad()
        F.cross_entropy(model(READING.normalise(images)), labels).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.allclose(value, ours.state_dict()[name], atol=1e-6), name


def load(path):
    from common.images import read_image

    return read_image(path)


def test_the_last_layer_alone_has_the_faster_rate():
    model = small_model()
    groups = parameter_sets(model, SETTING, 0.1, "all")
    head = {id(p) for p in model.fc.parameters()}
    for group in groups:
        assert group["lr"] == (0.4 if id(group["params"][0]) in head else 0.1)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_the_classifier_and_the_norms_alone_learn_as_fixres_does(tmp_path):
    target, model = small_target(tmp_path), small_model()
    options = replace(SMALL, learn="classifier", size=24, resize=24, epochs=1)
    before = copy.deepcopy(model.state_dict())
    train_one(model, target.train, 3, SETTING, options, 0, READING)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert torch.equal(module.weight, before[f"{name}.weight"])
        if isinstance(module, nn.BatchNorm2d):
            assert not torch.equal(module.running_mean, before[f"{name}.running_mean"])


def test_the_rate_drops_three_times_to_a_tenth():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    schedule = make_schedule(optimizer, replace(SMALL, warmup=0), 40)
    factors = [schedule.lr_lambdas[0](step) for step in range(40)]
    expected = [1.0] * 10 + [0.1] * 10 + [0.01] * 10 + [0.001] * 10
    assert factors == pytest.approx(expected)


def test_the_model_that_is_given_stays_as_it_was(tmp_path):
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    metrics = finetune(model, small_target(tmp_path), SMALL, seed=0, reading=READING)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert set(metrics) == {"finetune", "finetune5"}
    assert metrics["finetune"] >= 100 / 3


def test_the_test_images_are_not_opened_before_the_network_is_found(tmp_path):
    target = guard(small_target(tmp_path))
    found = fit_finetune(small_model(), target.train, 3, SMALL, seed=0, reading=READING)
    assert len(found.scores) == 2
    with pytest.raises(RuntimeError, match="a test image was opened"):
        score_finetune(found.model, target.test, SMALL, READING)


def test_a_search_that_is_started_again_goes_on_and_ends_equal(tmp_path):
    target = small_target(tmp_path / "images")
    first = fit_finetune(
        small_model(), target.train, 3, SMALL, seed=0, reading=READING, folder=tmp_path
    )
    where = tmp_path / "finetune"
    assert sorted(path.name for path in where.iterdir() if path.name[0] != ".") == [
        "all",
        "scores.json",
    ]
    last = sorted((where / "all").glob("checkpoint-*.pt"))[-1]
    last.unlink()  # as if killed in the last epoch of the last fit
    second = fit_finetune(
        small_model(), target.train, 3, SMALL, seed=0, reading=READING, folder=tmp_path
    )
    assert (first.scores, first.setting) == (second.scores, second.setting)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])
    checkpoint.unlock(where / "all")
    checkpoint.unlock(where)


def test_a_folder_of_other_weights_images_or_pixels_is_not_gone_on_with(tmp_path):
    target = small_target(tmp_path / "images")
    options = replace(SMALL, epochs=1)
    fit_finetune(small_model(), target.train, 3, options, seed=0, reading=READING, folder=tmp_path)
    other = small_model()
    with torch.no_grad():
        other.get_parameter("conv1.weight").mul_(1.01)
    fewer = target.train.only(torch.arange(1, len(target.train)))
    darker = replace(READING, mean=(0.4, 0.4, 0.4))
    for model, train, reading in (
        (other, target.train, READING),
        (small_model(), fewer, READING),
        (small_model(), target.train, darker),
    ):
        with pytest.raises(ValueError, match=r"began with .*digest of weights, images and pixels="):
            fit_finetune(model, train, 3, options, seed=0, reading=reading, folder=tmp_path)
    for where in (tmp_path / "finetune" / "all", tmp_path / "finetune"):
        checkpoint.unlock(where)


def test_a_damaged_training_image_is_skipped_where_asked_and_a_test_image_never(tmp_path):
    target = small_target(tmp_path)
    held_out = split(target.train.labels, SMALL.held_out, 0)[1]
    target.train[int(held_out[0])][0].write_bytes(b"no image")
    for policy in ("raise", "skip"):
        reading = replace(READING, bad_images=policy)
        options = replace(SMALL, epochs=1)
        expected = (
            pytest.warns(UserWarning, match="image 1 skipped")
            if policy == "skip"
            else pytest.raises(BadExample, match="cannot be read")
        )
        with expected:
            fit_finetune(small_model(), target.train, 3, options, seed=0, reading=reading)
    target.test[0][0].write_bytes(b"no image")
    with pytest.raises(BadExample, match=r"replace the file$"):  # there is no other choice
        score_finetune(small_model(), target.test, SMALL, replace(READING, bad_images="skip"))


@pytest.mark.parametrize(("head_lrs", "most"), [([1], 18), ([1, 10], 12)])
def test_a_batch_of_more_images_than_there_are_stops_with_the_most(tmp_path, head_lrs, most):
    options = replace(SMALL, batch_size=most + 1, head_lrs=head_lrs)
    train = small_target(tmp_path).train
    with pytest.raises(ValueError, match=rf"finetune\.batch_size={most + 1} .* at most {most}\."):
        fit_finetune(small_model(), train, 3, options, seed=0, reading=READING)
    require_enough(train, replace(options, batch_size=most))


def test_a_rate_that_diverges_loses_the_search(tmp_path):
    options = replace(SMALL, lrs=[1e30, 0.05], head_lrs=[1])
    found = fit_finetune(
        small_model(), small_target(tmp_path).train, 3, options, seed=0, reading=READING
    )
    assert found.setting.lr == 0.05
    assert found.scores[0] < found.scores[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": "cosine"}, "finetune.schedule"),
        ({"learn": "head"}, "finetune.learn"),
        ({"lrs": []}, "finetune.lrs"),
        ({"decays": [-1.0]}, "finetune.decays"),
        ({"augment": "mixup"}, "finetune.augment"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        FineTune(**options)
