"""Sec. 3.4, 4.1 and Table 1d: the divisors of both losses, hard example mining, and the whole."""

import os
import sys
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou, nms

from focal_loss.criterion import CHOICES, DetectionLoss
from focal_loss.loss import BACKGROUND, IGNORED, cross_entropy, focal_loss, per_anchor
from focal_loss.targets.assign import assign
from focal_loss.targets.boxes import KINDS as BOX_LOSSES
from focal_loss.targets.boxes import box_loss
from focal_loss.targets.mining import hardest, ohem

A, K = 300, 4


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_boxes(count: int, seed: int) -> Tensor:
    low = torch.rand(count, 2, generator=draw(seed)) * 60
    return torch.cat((low, low + 8 + torch.rand(count, 2, generator=draw(seed + 50)) * 40), dim=1)


def batch(*objects: int) -> tuple[Tensor, Tensor, Tensor, list[dict[str, Tensor]]]:
    """Predictions, anchors and targets of images with so many objects."""
    N = len(objects)
    targets = [
        {"boxes": some_boxes(M, seed=10 + i), "labels": torch.arange(M) % K}
        for i, M in enumerate(objects)
    ]
    logits = torch.randn(N, A, K, generator=draw(1)).sub_(2).requires_grad_()
    offsets = torch.randn(N, A, 4, generator=draw(2)).mul_(0.3).requires_grad_()
    return logits, offsets, some_boxes(A, seed=0), targets


def sums(
    logits: Tensor, offsets: Tensor, anchors: Tensor, targets: list[dict[str, Tensor]]
) -> tuple[list[int], Tensor, Tensor]:
    """Positives of each image, and its two losses undivided, (N,) and (N,)."""
    labels, match = assign(anchors, [t["boxes"] for t in targets], [t["labels"] for t in targets])
    classification = torch.stack(
        [focal_loss(x, own) for x, own in zip(logits, labels, strict=True)]
    )
    box = []
    for i, target in enumerate(targets):
        own = labels[i] >= 0
        box.append(box_loss(offsets[i, own], anchors[own], target["boxes"][match[i, own]]).sum())
    return (labels >= 0).sum(1).tolist(), classification, torch.stack(box)


def check(losses: dict[str, Tensor], classification: Tensor, box: Tensor) -> None:
    torch.testing.assert_close(losses["classification"], classification)
    torch.testing.assert_close(losses["box"], box)


def test_image_divides_each_image_by_its_positives_and_averages():
    inputs = batch(2, 0, 5)
    npos, classes, boxes = sums(*inputs)
    assert npos[1] == 0
    counts = torch.tensor(npos).clamp(min=1)
    check(DetectionLoss()(*inputs), (classes / counts).mean(), (boxes / counts).mean())


def test_gpu_divides_by_the_positives_and_one_more_per_image():
    inputs = batch(2, 0, 5)
    npos, classes, boxes = sums(*inputs)
    total = sum(npos) + 3
    check(DetectionLoss(normalizer="gpu")(*inputs), classes.sum() / total, boxes.sum() / total)


def test_gpu_plus_n_divides_classes_by_positives_and_images_and_boxes_by_coordinates():
    inputs = batch(2, 0, 5)
    npos, classes, boxes = sums(*inputs)
    losses = DetectionLoss(normalizer="gpu_plus_n")(*inputs)
    check(losses, classes.sum() / (sum(npos) + 3), boxes.sum() / (4 * sum(npos)))


def test_world_in_one_process_divides_by_all_positives():
    inputs = batch(2, 0, 5)
    npos, classes, boxes = sums(*inputs)
    losses = DetectionLoss(normalizer="world")(*inputs)
    check(losses, classes.sum() / sum(npos), boxes.sum() / sum(npos))


def test_ema_divides_by_a_running_mean_that_moves_in_training_only_and_is_saved():
    inputs = batch(2, 0, 5)
    npos, classes, boxes = sums(*inputs)
    criterion = DetectionLoss(normalizer="ema")
    first = 0.9 * 100 + 0.1 * sum(npos)
    check(criterion(*inputs), classes.sum() / first, boxes.sum() / first)
    second = 0.9 * first + 0.1 * sum(npos)
    check(criterion(*inputs), classes.sum() / second, boxes.sum() / second)
    resumed = DetectionLoss(normalizer="ema").eval()
    resumed.load_state_dict(criterion.state_dict())
    for _ in range(2):
        check(resumed(*inputs), classes.sum() / second, boxes.sum() / second)


@pytest.mark.parametrize("normalizer", ["image", "gpu", "gpu_plus_n", "ema", "world"])
def test_a_batch_without_objects_trains_the_classes_and_costs_no_box(normalizer):
    logits, offsets, anchors, targets = batch(0, 0)
    losses = DetectionLoss(normalizer=normalizer)(logits, offsets, anchors, targets)
    if normalizer in ("image", "world"):  # divided by 1 for each image, and for the batch
        expected = focal_loss(logits, torch.full((2, A), BACKGROUND))
        expected = expected / 2 if normalizer == "image" else expected
        torch.testing.assert_close(losses["classification"], expected)
    assert losses["box"] == 0
    slope, none = torch.autograd.grad(torch.stack(list(losses.values())).sum(), (logits, offsets))
    assert slope.isfinite().all()
    assert slope.count_nonzero() == logits.numel()
    assert none.count_nonzero() == 0  # zeros, not a missing gradient, which DDP would wait for


def slopes(images: list[int], pieces: int = 1) -> Tensor:
    """Gradient, by the `world` loss of some of four images, of two factors."""
    logits, offsets, anchors, targets = batch(2, 7, 0, 4)
    factors = torch.ones(2, requires_grad=True)
    criterion = DetectionLoss(normalizer="world")
    assigned = criterion.assignment(anchors, [targets[i] for i in images])
    shares = torch.tensor(images).chunk(pieces)
    for share, piece in zip(shares, assigned.split(pieces), strict=True):
        predicted = factors[0] * logits.detach()[share], factors[1] * offsets.detach()[share]
        sum(criterion(*predicted, anchors, piece).values()).backward()
    assert factors.grad is not None
    return factors.grad


def _process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    gradient = slopes([[0, 1], [2, 3]][rank], pieces=2)
    torch.distributed.all_reduce(gradient)
    torch.save(gradient / 2, f"{folder}/{rank}.pt")  # the mean, as DDP takes it
    torch.distributed.destroy_process_group()


def test_world_in_two_processes_of_two_pieces_has_the_gradient_of_the_whole_batch(
    commands, tmp_path
):
    for rank in commands.start_ranks(tmp_path, str(tmp_path), script=__file__):
        assert rank.wait() == 0, rank.text
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), slopes([0, 1, 2, 3]))


def test_losses_equal_torchvisions_retinanet():
    logits, offsets, anchors, targets = batch(2, 0, 5)
    head = RetinaNetHead(8, 9, K)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    matched = [
        matcher(box_iou(t["boxes"], anchors)) if len(t["boxes"]) else torch.full((A,), -1)
        for t in targets
    ]
    outputs = {"cls_logits": logits, "bbox_regression": offsets}
    theirs = head.compute_loss(targets, outputs, [anchors] * 3, matched)
    ours = DetectionLoss(low_quality="any", box="l1")(logits, offsets, anchors, targets)
    check(ours, theirs["classification"], theirs["bbox_regression"])


@pytest.mark.parametrize("box", BOX_LOSSES)
def test_every_box_loss_pulls_the_box_of_a_positive_anchor_to_its_object(box):
    anchors = torch.tensor([[10.0, 10, 40, 40]])
    target = {"boxes": torch.tensor([[12.0, 8, 44, 40]]), "labels": torch.tensor([1])}
    offsets = torch.zeros(1, 1, 4, requires_grad=True)
    criterion = DetectionLoss(box=box, box_weight=2.0)
    for _ in range(300):
        loss = criterion(torch.zeros(1, 1, K), offsets, anchors, [target])["box"]
        (slope,) = torch.autograd.grad(loss, offsets)
        offsets = (offsets - 0.003 * slope).detach().requires_grad_()
    before = criterion(torch.zeros(1, 1, K), torch.zeros(1, 1, 4), anchors, [target])["box"]
    assert loss < 0.3 * before


def test_with_a_box_per_class_only_the_one_of_the_object_learns():
    logits, offsets, anchors, targets = batch(2, 3)
    expected = DetectionLoss()(logits, offsets, anchors, targets)["box"]
    many = offsets.detach().unsqueeze(2).repeat(1, 1, K, 1).flatten(2).requires_grad_()
    loss = DetectionLoss()(logits, many, anchors, targets)["box"]
    torch.testing.assert_close(loss, expected)
    slope = torch.autograd.grad(loss, many)[0].unflatten(-1, (K, 4)).abs().sum((0, 1, 3))
    assert slope[3] == 0  # classes 0, 1 and 2 are there
    assert (slope[:3] > 0).all()


def test_pyramid_levels_need_not_be_joined():
    logits, offsets, anchors, targets = batch(2, 3)
    levels = list(logits.split([200, 80, 20], dim=1))
    for kind in ("focal", "hinge"):
        criterion = DetectionLoss(kind=kind)
        whole = criterion(logits, offsets, anchors, targets)
        parts = criterion(levels, offsets, anchors, targets)
        torch.testing.assert_close(parts["classification"], whole["classification"])


def test_anchors_on_a_crowd_have_no_gradient_if_asked():
    logits, offsets, anchors, targets = batch(1)
    targets[0]["ignore"] = torch.tensor([[0.0, 0, 110, 50]])
    for ignore in (False, True):
        criterion = DetectionLoss(ignore_crowds=ignore)
        loss = criterion(logits, offsets, anchors, targets)["classification"]
        slope = torch.autograd.grad(loss, logits)[0].abs().sum(-1)[0]
        below = anchors[:, 1] > 50
        assert (slope[below] > 0).any()
        covered = (50 - anchors[:, 1]).clamp(min=0) / (anchors[:, 3] - anchors[:, 1]) > 0.5
        silent = slope[covered] == 0
        assert silent.float().mean() > 0.9 if ignore else silent.float().mean() < 0.1


@pytest.mark.parametrize("kind", CHOICES["kind"])
def test_every_kind_is_finite_and_has_gradients_in_bfloat16(kind):
    logits, offsets, anchors, targets = batch(2, 0, 3)
    channels = K + (kind == "softmax_focal")
    logits = torch.randn(3, A, channels, generator=draw(3)).bfloat16().requires_grad_()
    losses = DetectionLoss(kind=kind)(logits, offsets.bfloat16(), anchors, targets)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    (slope,) = torch.autograd.grad(losses["classification"], logits)
    assert slope.isfinite().all()
    assert slope.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "focus"}, "kind is 'focus'; choose one of focal, focal_star, softmax_focal"),
        ({"normalizer": "mean"}, "normalizer is 'mean'; choose one of image, gpu, gpu_plus_n"),
        ({"box": "iou"}, "box is 'iou'; choose one of smooth_l1, l1, giou, diou, ciou"),
        ({"low_quality": "all"}, "low_quality is 'all'; choose one of none, d1, any"),
        ({"mining_boxes": "x"}, "mining_boxes is 'x'; choose one of predicted, anchors"),
        ({"alpha": 2.0}, "alpha is 2.0; choose 0..1, or -1"),
        ({"gamma": -1.0}, "gamma is -1.0; choose 0 or more"),
        ({"gamma": 0.0, "kind": "focal_star"}, "gamma is 0.0; choose more than 0 for focal_star"),
        ({"negative_iou": 0.6}, "negative_iou is 0.6; choose more than 0 and at most positive"),
        ({"mining_batch": 3, "mining_ratio": 3}, "mining_batch is 3; choose more than"),
    ],
)
def test_a_wrong_option_is_named_with_the_valid_ones(options, message):
    with pytest.raises(ValueError, match=message):
        DetectionLoss(**options)


NAN = float("nan")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"labels": [0, K]}, "Target 1 has the label 4: labels must lie in 0..3"),
        ({"labels": [-100, 1]}, "Target 1 has the label -100: labels must lie in 0..3"),
        ({"labels": [0]}, r"Target 1 has boxes \(2, 4\) for 1 labels"),
        (
            {"boxes": [[1, 2, 9, 9], [30, 30, 12, 40]]},
            r"\[30.0, 30.0, 12.0, 40.0\]: .*x1 <=",
        ),
        ({"boxes": [[1, 2, 9, 9], [30, 40, 50, 12]]}, r"Target 1 has the box .*width, height"),
        ({"boxes": [[1, 2, 9, NAN], [1, 2, 9, 9]]}, r"box \[1.0, 2.0, 9.0, nan\]: give finite"),
        ({"boxes": [[1, 2, 9, 9], [1, 2, 9, float("inf")]]}, "give finite"),
    ],
)
def test_targets_that_do_not_fit_are_named(target, message):
    logits, offsets, anchors, targets = batch(2, 2)
    targets[1] |= {key: torch.tensor(value) for key, value in target.items()}
    with pytest.raises(ValueError, match=message):
        DetectionLoss()(logits, offsets, anchors, targets)


def test_a_target_for_each_image_is_asked_for():
    logits, offsets, anchors, targets = batch(2, 2)
    with pytest.raises(ValueError, match="2 images come with 1 targets"):
        DetectionLoss()(logits, offsets, anchors, targets[:1])
    with pytest.raises(ValueError, match=r"give one per image, with boxes \(0, 4\) for none"):
        DetectionLoss()(logits[:0], offsets[:0], anchors, [])


@pytest.mark.parametrize("kind", ["focal", "hinge", "ohem"])
@pytest.mark.parametrize("normalizer", CHOICES["normalizer"])
def test_accumulated_gradients_are_those_of_the_whole_batch(kind, normalizer):
    logits, offsets, anchors, targets = batch(0, 0, 9, 30, 0, 1, 0, 0)  # uneven over the pieces
    options: dict[str, Any] = {"kind": kind, "normalizer": normalizer, "mining_batch": 16}
    whole, pieced = DetectionLoss(**options), DetectionLoss(**options)
    expected = whole(logits, offsets, anchors, targets)
    slopes = torch.autograd.grad(sum(expected.values()), (logits, offsets))
    totals = dict.fromkeys(expected, torch.zeros(()))
    for i, piece in enumerate(pieced.assignment(anchors, targets).split(4)):
        part = slice(2 * i, 2 * i + 2)
        losses = pieced(logits[part], offsets[part], anchors, piece)
        totals = {name: totals[name] + loss for name, loss in losses.items()}
    check(totals, **expected)
    found = torch.autograd.grad(sum(totals.values()), (logits, offsets))
    torch.testing.assert_close(found, slopes, rtol=1e-6, atol=1e-8)
    assert whole.state_dict() == pieced.state_dict()  # one step of the running mean


def test_a_batch_that_cannot_be_split_equally_is_refused():
    _, _, anchors, targets = batch(2, 0, 5)
    with pytest.raises(ValueError, match="3 images cannot be cut into 2 equal pieces"):
        DetectionLoss().assignment(anchors, targets).split(2)


def mining_case(seed: int, positives: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and boxes of 2,000 anchors, a twentieth ignored."""
    labels = torch.full((2000,), BACKGROUND)
    order = torch.randperm(2000, generator=draw(seed))
    labels[order[:positives]] = 1
    labels[order[-100:]] = IGNORED
    return torch.rand(2000, generator=draw(seed + 1)), labels, some_boxes(2000, seed + 2)


def mine_slowly(
    scores: Tensor, labels: Tensor, boxes: Tensor, *, batch: int, iou: float, ratio: int
) -> list[int]:
    """Hard example mining, one anchor at a time."""
    overlaps = box_iou(boxes, boxes).tolist()
    kept: list[int] = []
    for a in sorted(range(len(scores)), key=lambda a: -scores[a].item()):
        if labels[a] != IGNORED and all(overlaps[a][b] <= iou for b in kept):
            kept.append(a)
    if ratio == 0:
        return kept[:batch]
    positives = [a for a in kept if labels[a] >= 0][: batch // (1 + ratio)]
    return positives + [a for a in kept if labels[a] < 0][: ratio * len(positives)]


@pytest.mark.parametrize("ratio", [0, 3])
@pytest.mark.parametrize(("size", "iou"), [(32, 0.5), (64, 0.7), (256, 0.5)])
def test_mining_equals_a_slow_reference(size, iou, ratio):
    for seed, positives in ((0, 60), (1, 5), (2, 0)):
        case = mining_case(seed, positives)
        expected = mine_slowly(*case, batch=size, iou=iou, ratio=ratio)
        assert hardest(*case, batch=size, iou=iou, ratio=ratio).tolist() == expected


def test_mining_keeps_the_batch_size_without_duplicates_or_ignored_anchors():
    scores, labels, boxes = mining_case(3)
    for size in (16, 128):
        kept = hardest(scores, labels, boxes, batch=size, iou=0.7)
        assert len(kept) == size
        assert (labels[kept] != IGNORED).all()
        assert len(nms(boxes[kept], scores[kept], 0.7)) == size


def test_one_to_three_keeps_exactly_three_negatives_to_each_positive():
    scores, labels, boxes = mining_case(4, positives=300)
    for size in (32, 64):
        kept = hardest(scores, labels, boxes, batch=size, iou=0.7, ratio=3)
        assert len(kept) == size
        assert (labels[kept] >= 0).sum() == size // 4
    scores, labels, boxes = mining_case(5, positives=3)
    kept = hardest(scores, labels, boxes, batch=64, iou=1.0, ratio=3)
    assert (labels[kept] >= 0).tolist() == [True] * 3 + [False] * 9


def test_only_mined_anchors_learn_and_their_loss_is_divided_by_the_batch_size():
    logits = torch.randn(2000, K, generator=draw(9)).requires_grad_()
    _, labels, boxes = mining_case(6)
    scores = per_anchor(cross_entropy, logits.detach(), labels)
    kept = hardest(scores, labels, boxes, batch=32, iou=0.7)
    loss = ohem(logits, labels, boxes, batch=32, iou=0.7)
    torch.testing.assert_close(loss, scores[kept].sum() / 32)
    learning = torch.autograd.grad(loss, logits)[0].abs().sum(-1) > 0
    assert learning.nonzero().squeeze(1).tolist() == sorted(kept.tolist())


def test_the_criterion_mines_each_image_among_its_predicted_boxes_or_its_anchors():
    logits, offsets, anchors, targets = batch(2, 3)
    labels, _ = assign(anchors, [t["boxes"] for t in targets], [t["labels"] for t in targets])
    options: dict[str, Any] = {"kind": "ohem", "mining_batch": 16, "mining_nms": 0.5}
    loss = DetectionLoss(mining_boxes="anchors", **options)(logits, offsets, anchors, targets)
    expected = sum(ohem(logits[i], labels[i], anchors, batch=16, iou=0.5) for i in range(2)) / 2
    torch.testing.assert_close(loss["classification"], expected)
    predicted = DetectionLoss(**options)(logits, offsets, anchors, targets)
    assert predicted["classification"] != loss["classification"]
    per_class = offsets.unsqueeze(2).expand(-1, -1, K, -1).flatten(2)
    same = DetectionLoss(**options)(logits, per_class, anchors, targets)
    torch.testing.assert_close(same["classification"], predicted["classification"])


if __name__ == "__main__":
    _process(int(os.environ["RANK"]), sys.argv[1])
