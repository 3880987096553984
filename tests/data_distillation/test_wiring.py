"""`train.py` passes every option on: three of its steps are those of a loop written out by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import resnet18
from torchvision.models.detection.rpn import RegionProposalNetwork

from common.data import seed_everything, seed_of
from common.run import checkpoint
from data_distillation import data, train
from data_distillation.config import Config
from data_distillation.evaluate import columns
from data_distillation.model import build_detector
from data_distillation.net.ignore import IgnoreRPN
from tests.data_distillation.small import (
    lines,
    of_files,
    run,
    saved,
    settings,
    thing,
    write_hidden,
    write_split,
)

State = dict[str, Tensor]
LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_keypoint")
# 1: manual. Ratio 3:2 over the images of all steps; of each of two GPUs two images.
CLIP = 2.1  # some gradients are larger
PATTERN = [[[1, 1], [0, 1]], [[0, 1], [1, 0]], [[1, 0], [1, 1]]]


@pytest.fixture(autouse=True)
def _not_evaluated(monkeypatch):
    monkeypatch.setattr(
        train, "evaluate", lambda model, cfg, *_, **__: dict.fromkeys(columns(cfg), 1.0)
    )


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    return write_hidden(tmp_path_factory.mktemp("labels") / "auto.json")


def options(folder: Path, labels: Path) -> Config:
    cfg = settings(folder, automatic=str(labels), automatic_share=0.75, flip=0.5)
    cfg.network.rois = 4  # fewer than there are, so that chance decides
    return replace(
        cfg,
        seed=3,
        steps=3,
        optimizer="sgd",
        lr=0.05,
        momentum=0.8,
        weight_decay=0.01,
        bias_lr=3.0,
        bias_decay=False,
        warmup=2,
        warmup_start=0.25,
        milestones=[0.7],
        clip=CLIP,
        automatic_weight=0.3,
        evaluate_every=2,
    )


def pieces_of(cfg: Config) -> list[list[data.Piece]]:
    """Each step's pieces, sources together, with the pattern checked."""
    whole = replace(cfg, automatic_weight=1.0)
    steps = list(data.build_training(cfg.data, cfg.task).batches(whole, 0, 3))
    found = [[[int(not t["automatic"]) for t in p.targets] for p in step] for step in steps]
    assert found == PATTERN
    return steps


def network(cfg: Config) -> torch.nn.Module:
    seed_everything(3)
    return build_detector("keypoints", 1, 9, cfg.network).train()


def total_loss(
    model: torch.nn.Module, pieces: list[data.Piece], step: int, weight: float
) -> Tensor:
    """The losses of a step: the mean over its GPUs, on which automatic images count `weight`."""
    total = torch.zeros(())
    for gpu, piece in enumerate(pieces):
        images, targets = piece.to(torch.device("cpu"))
        automatic = [target["automatic"] for target in piece.targets]
        groups = [(1.0, [0, 1])]
        if weight != 1:
            groups = [
                (1.0, [i for i in range(2) if not automatic[i]]),
                (weight, [i for i in range(2) if automatic[i]]),
            ]
        for source, (factor, chosen) in enumerate(groups):
            if chosen:
                seed_everything(seed_of(3, step, 2 * gpu + source))
                losses = model([images[i] for i in chosen], [targets[i] for i in chosen])
                share = factor * len(chosen) / 2 / len(pieces)
                total = total + share * sum(losses[name] for name in LOSSES)
    return total


def norms_of(model: torch.nn.Module) -> set[str]:
    return {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.GroupNorm)
        for part in ("weight", "bias")
    }


def test_three_steps_with_every_option_are_those_of_a_loop_by_hand(tmp_path, labels):
    cfg = options(tmp_path, labels)
    model = network(cfg)
    normal, velocity, clipped = norms_of(model), {}, []
    trained = dict(model.named_parameters())
    for step, (pieces, rate) in enumerate(zip(pieces_of(cfg), (0.25, 0.625, 0.1), strict=True), 1):
        loss = total_loss(model, pieces, step, 0.3)
        found = torch.autograd.grad(loss, list(trained.values()))
        norm = float(torch.stack([g.square().sum() for g in found]).sum().sqrt())
        clipped.append(norm > CLIP)
        for (name, parameter), gradient in zip(trained.items(), found, strict=True):
            bias = name.endswith("bias") and name not in normal
            slope = min(1.0, CLIP / (norm + 1e-6)) * gradient
            slope = slope + (0.0 if bias or name in normal else 0.01) * parameter.detach()
            velocity[name] = 0.8 * velocity.get(name, torch.zeros(())) + slope
            parameter.data -= 0.05 * (3 if bias else 1) * rate * velocity[name]
    assert set(clipped) == {False, True}
    run(cfg)
    torch.testing.assert_close(saved(cfg)["model"], model.state_dict(), rtol=0, atol=1e-6)
    rows = [row for row in lines(tmp_path) if "lr" in row]
    assert {row["step"]: row["lr"] for row in rows} == pytest.approx(
        {1: 0.0125, 2: 0.03125, 3: 0.005}
    )
    assert set(LOSSES) <= rows[0].keys()
    assert [row["step"] for row in lines(tmp_path) if "keypoint_AP" in row] == [2, 3]


def test_half_precision_is_autocasts(tmp_path, labels):
    cfg = replace(options(tmp_path, labels), amp=True, automatic_weight=1.0, steps=1)
    model, (first, *_) = network(cfg), pieces_of(cfg)
    with torch.autocast("cpu", torch.bfloat16):
        expected = total_loss(model, first, 1, 1.0).item()
    run(cfg)
    row = lines(tmp_path)[0]
    assert sum(row[name] for name in LOSSES) == pytest.approx(expected, rel=1e-5)
    assert total_loss(model, first, 1, 1.0).item() != pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def cycled(tmp_path_factory, labels) -> Config:
    """AdamW, one cycle, all biases decayed, nothing clipped, automatic images as manual ones."""
    cfg = options(tmp_path_factory.mktemp("cycled"), labels)
    cfg = replace(cfg, optimizer="adamw", lr=0.01, bias_lr=1.0, bias_decay=True)
    return replace(cfg, schedule="one_cycle", clip=0.0, automatic_weight=1.0, save_every=2)


@pytest.fixture(scope="module")
def cycled_weights(cycled) -> State:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate", lambda *_, **__: dict.fromkeys(columns(cycled), 1.0))
        run(cycled)
    return saved(cycled)["model"]


def test_three_steps_of_adamw_with_weight_1_are_those_of_a_loop_without_weights(
    cycled, cycled_weights
):
    model = network(cycled)
    normal = norms_of(model)
    groups = [
        {"params": [p for n, p in model.named_parameters() if n not in normal]},
        {"params": [p for n, p in model.named_parameters() if n in normal], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, 0.01, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.01, total_steps=3, cycle_momentum=False
    )
    for step, pieces in enumerate(pieces_of(cycled), 1):
        optimizer.zero_grad()
        total_loss(model, pieces, step, 1.0).backward()
        optimizer.step()
        if step < 3:
            schedule.step()
    torch.testing.assert_close(cycled_weights, model.state_dict(), rtol=0, atol=1e-6)


def test_scores_and_sources_of_labels_never_change_the_student(
    cycled, cycled_weights, labels, tmp_path
):
    content = json.loads(labels.read_text())
    for annotation in content["annotations"]:
        assert annotation.pop("score") > 0
        assert annotation.pop("source") == "auto"
    file = tmp_path / "other name.json"
    file.write_text(json.dumps(content))
    cfg = replace(cycled, output_dir=str(tmp_path), data=replace(cycled.data, automatic=str(file)))
    run(cfg)
    assert all(torch.equal(saved(cfg)["model"][k], v) for k, v in cycled_weights.items())


def test_a_run_resumed_in_the_middle_of_the_mixture_equals_never_stopping(
    cycled, cycled_weights, tmp_path
):
    file = "checkpoint-00000002.pt"  # after 8 images: the third one of a pattern of five is next
    (tmp_path / file).write_bytes((Path(cycled.output_dir) / file).read_bytes())
    cfg = replace(cycled, output_dir=str(tmp_path))
    run(cfg)
    assert [row["step"] for row in lines(tmp_path) if "lr" in row] == [3]
    assert all(torch.equal(saved(cfg)["model"][k], v) for k, v in cycled_weights.items())


@pytest.mark.slow
def test_a_longer_run_goes_on_with_the_rates_of_its_own_length(cycled, cycled_weights, tmp_path):
    file = "checkpoint-00000003.pt"
    (tmp_path / file).write_bytes((Path(cycled.output_dir) / file).read_bytes())
    run(replace(cycled, steps=5, output_dir=str(tmp_path)))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.01)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.01, total_steps=5, cycle_momentum=False
    )
    rates = []
    for _ in range(5):
        rates += theirs.get_last_lr()
        optimizer.step()
        if len(rates) < 5:
            theirs.step()
    found = [row["lr"] for row in lines(tmp_path) if "lr" in row]
    assert found == pytest.approx(rates[3:])


def test_another_list_of_labelled_images_does_not_resume(tmp_path):
    for split in ("train", "val"):
        write_split(tmp_path, split, [[thing()], [thing()], [thing()]])
    cfg = replace(of_files(tmp_path, tmp_path / "run"), steps=1)
    run(cfg)
    before = saved(cfg)["labelled"]
    assert before == data.build_manual(cfg.data, "keypoints").digest
    write_split(tmp_path, "train", [[thing()], [], [thing()]])  # an image is left out as empty
    with pytest.raises(checkpoint.CheckpointError, match=f"labelled.*{before}"):
        run(replace(cfg, steps=2))


def test_a_network_starts_from_the_file_of_imagenet_at_random_or_from_a_run(
    cycled, cycled_weights, tmp_path
):
    cfg = settings(tmp_path)
    training = data.build_training(cfg.data, cfg.task)

    def start(cfg: Config) -> State:
        seed_everything(0)
        return train.build(cfg, training).state_dict()

    random = start(cfg)
    seed_everything(0)
    expected = build_detector("keypoints", 1, 9, cfg.network).state_dict()
    assert all(torch.equal(random[name], value) for name, value in expected.items())

    from_run = start(replace(cfg, init=cycled.output_dir))
    assert all(torch.equal(from_run[name], value) for name, value in cycled_weights.items())

    torch.manual_seed(7)
    classifier = resnet18().state_dict()
    torch.save(classifier, tmp_path / "resnet18.pth")
    cfg.network = replace(
        cfg.network, backbone="resnet18", anchors=[8, 16, 32, 64, 128], channels=16
    )
    body = start(replace(cfg, init=str(tmp_path / "resnet18.pth")))
    names = [n for n in classifier if not n.startswith("fc.") and "num_batches" not in n]
    assert len(names) == 100
    assert all(torch.equal(body[f"backbone.body.{name}"], classifier[name]) for name in names)


def test_a_run_whose_joints_are_all_invisible_stops_before_its_first_step(tmp_path):
    """Else loss_keypoint would be 0 for ever."""
    unseen = thing((8, 9, 0, 20, 20, 0, 0, 0, 0))
    write_split(tmp_path, "train", [[unseen], [unseen]])
    write_split(tmp_path, "val", [[thing()]])
    for skip_empty in (True, False):
        cfg = of_files(tmp_path, tmp_path / "run", skip_empty=skip_empty)
        with pytest.raises(ValueError, match="train=train has no image with a visible joint"):
            run(cfg)
    assert not list((tmp_path / "run").glob("*.*"))


@pytest.mark.parametrize(("crowds", "kind"), [(1, IgnoreRPN), (0, RegionProposalNetwork)])
def test_labels_with_ignored_regions_give_a_network_that_knows_them(crowds, kind, tmp_path):
    """Others have torchvision's own."""
    things = [thing(score=0.5), *[thing(iscrowd=1, bbox=[30, 6, 9, 9], score=0.4)] * crowds]
    write_split(tmp_path, "train", [[thing()]])
    file = write_split(tmp_path, "auto", [things], info={"folder": str(tmp_path / "auto")})
    cfg = of_files(tmp_path, tmp_path / "run", automatic=str(file))
    training = data.build_training(cfg.data, cfg.task)
    assert type(train.build(cfg, training).rpn) is kind


def test_a_steps_images_are_shared_out_by_their_aspect_unless_asked_otherwise(tmp_path):
    content = json.loads(write_split(tmp_path, "train", [[thing()]] * 12).read_text())
    for entry in content["images"][::2]:
        entry |= {"width": 40, "height": 48}
        Image.new("RGB", (40, 48)).save(tmp_path / "train" / entry["file_name"])
    (tmp_path / "annotations" / "train.json").write_text(json.dumps(content))
    wide = {}
    for order in (True, False):
        cfg = of_files(tmp_path, tmp_path, aspect_order=order)
        steps = data.build_training(cfg.data, cfg.task).batches(cfg, 0, 3)
        images = [[image for piece in step for image in piece.images] for step in steps]
        wide[order] = [[each.shape[2] >= each.shape[1] for each in step] for step in images]
    ordered = [sorted(step, reverse=True) for step in wide[True]]
    assert wide[True] == ordered
    assert wide[False] != ordered
    assert [sorted(step, reverse=True) for step in wide[False]] == ordered  # the same images
