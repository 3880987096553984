"""Labels from one detector's predictions on many transforms of an image: the paper in one file.

    labels = distill(model, images, Transforms(), Merge(), mirrored_joints(names))

takes any detector of torchvision as it is: Faster, Mask and Keypoint R-CNN, RetinaNet, FCOS, SSD.
It runs on an image at several scales, with and without a flip, and the predictions are merged into
one set of hard labels, Sec. 3. `count_to_keep` and `kth_largest` then choose how many of them to
trust.

Legend: M detections, N candidates, R regions, J joints, K classes with the background as class 0, m
the side of a map. Boxes are float32 x1, y1, x2, y2 in pixels of the original image and joints x, y;
both are continuous (a pixel's centre is at + 0.5), so that a flip is W - x. Labels are 1..K - 1.

Under autocast the network's layers run in half precision, but boxes, scores and maps are float32
from the heads' outputs on: in bfloat16 a box at x = 1000 would be a multiple of 4 pixels.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, remove_small_boxes

from .net.decode import decode_keypoints, paste_masks
from .net.inference import classify, has_head, labelling, own_size, require_sound, resized

Size = tuple[int, int]  # height, width in pixels
Swap = Sequence[int] | None  # the joint that each becomes in a mirror; None: they stay
LARGEST, LONGEST = 4000, 10_000  # pixels of an image's sides that a network may be shown
SCORINGS = ("id", "temp_avg", "avg", "iou_avg", "generalized_avg", "quasi_sum")


@dataclass
class Transforms:
    """Geometric transforms of an image, Sec. 3; with flips 18 passes."""

    scales: list[int] = field(default_factory=lambda: list(range(400, 1300, 100)))  # shorter sides
    flip: bool = True
    max_size: int = 2000  # pixels of the longer side, but at the network's own size.  # Unstated
    size_dependent: bool = False  # drop up-scaled passes for large boxes, down-scaled for small
    area: float = 22500.0  # square pixels from which a box is large; Detectron

    def __post_init__(self) -> None:
        if any(not 1 <= scale <= LARGEST for scale in self.scales):
            raise ValueError(f"transforms.scales={list(self.scales)}: give 1 to {LARGEST} pixels.")
        if self.max_size > LONGEST:
            raise ValueError(f"transforms.max_size={self.max_size}: give {LONGEST} pixels at most.")
        if self.max_size < max(self.scales, default=1):
            raise ValueError(
                f"transforms.max_size={self.max_size} is below the scales {list(self.scales)}, "
                "which are of the shorter side: give more pixels."
            )


@dataclass
class Merge:
    """How passes become one set of labels, Sec. 3.

    `score` to `limit` concern boxes of several passes; boxes of one pass, as for keypoints, are
    those that the model itself puts out.
    """

    score: float = 0.05  # candidates are above it
    nms: float = 0.5
    vote: float = 0.9  # IoU from which a candidate votes; 0: no voting.  # Unstated
    scoring: str = "id"  # of SCORINGS: a voted box's score; Detectron.  # Unstated
    beta: float = 1.0  # of temp_avg, generalized_avg and quasi_sum
    limit: int = 100  # detections an image; ties at the limit stay
    heatmaps: str = "prob"  # prob | logit: what is averaged; Detectron's is logit

    def __post_init__(self) -> None:
        for name in ("score", "nms", "vote"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"merge.{name}={getattr(self, name)}: give 0 to 1.")
        if self.limit < 1:
            raise ValueError(f"merge.limit={self.limit}: give 1 detection or more.")
        if self.scoring not in SCORINGS:
            raise ValueError(f"merge.scoring={self.scoring}: give one of {', '.join(SCORINGS)}.")
        if self.heatmaps not in ("prob", "logit"):
            raise ValueError(f"merge.heatmaps={self.heatmaps}: give prob or logit.")


@dataclass(frozen=True)
class View:
    """A transform. short: its shorter side in pixels; 0: the size at which the network works."""

    short: int
    flip: bool


class Detections(NamedTuple):
    """Boxes (N, 4), their scores (N,) and labels (N,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> "Detections":
        """Those of an index or a mask."""
        return Detections(self.boxes[index], self.scores[index], self.labels[index])


class Pass(NamedTuple):
    """Views of one size as one batch: the network's inputs and its backbone's features."""

    views: Sequence[View]
    size: Size  # H, W of the original image
    inputs: ImageList
    features: dict[str, Tensor]

    def regions(self, boxes: Tensor) -> list[Tensor]:
        """Boxes (R, 4) of the original image in each input."""
        mirrored = flip_boxes(boxes, self.size[1])
        return [
            resize_boxes(mirrored if view.flip else boxes, self.size, own)
            for view, own in zip(self.views, self.inputs.image_sizes, strict=True)
        ]


def make_views(transforms: Transforms, own: int) -> list[View]:
    """The identity, then all others; views of one size are neighbours.

    own: shorter side at which the network works; among the scales it is the identity.
    """
    shorts = dict.fromkeys([0, *(0 if scale == own else scale for scale in transforms.scales)])
    flips = (False, True) if transforms.flip else (False,)
    return [View(short, flip) for short in shorts for flip in flips]


def flip_boxes(boxes: Tensor, width: float) -> Tensor:
    """(..., 4) in the mirrored image."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((width - x2, y1, width - x1, y2), -1)


def flip_maps(maps: Tensor, swap: Swap) -> Tensor:
    """(R, J, m, m) in the mirrored image; with None the channels stay where they are."""
    if swap is None:
        return maps.flip(-1)
    if len(swap) != maps.shape[1]:
        raise ValueError(f"mirrored has {len(swap)} joints, the model {maps.shape[1]}.")
    return maps[:, list(swap)].flip(-1)


def mirrored_joints(names: Sequence[str]) -> tuple[int, ...] | None:
    """The joint that each becomes in a mirror, by left and right in their names.

    None where no name has either, or one lacks its partner.
    """
    other = {"left": "right", "right": "left"}
    lower = [name.lower() for name in names]
    swapped = [re.sub("left|right", lambda found: other[found[0]], name) for name in lower]
    if swapped == lower or not set(swapped) <= set(lower):
        return None
    return tuple(lower.index(name) for name in swapped)


def passes(model: Any, image: Tensor, views: Sequence[View], max_size: int) -> Iterator[Pass]:
    """The backbone of an R-CNN on an image (3, H, W) at each size, with its mirror image."""
    for group in by_size(views):
        with resized(model, group[0].short, max_size):
            inputs, _ = model.transform(show(image, group))
        features = model.backbone(inputs.tensors)
        features = features if isinstance(features, dict) else {"0": features}
        yield Pass(group, (image.shape[-2], image.shape[-1]), inputs, features)


def by_size(views: Sequence[View]) -> list[list[View]]:
    """The views of each size."""
    return [list(group) for _, group in groupby(views, lambda view: view.short)]


def show(image: Tensor, views: Sequence[View]) -> list[Tensor]:
    """The image as views have it before it is resized."""
    return [image.flip(-1) if view.flip else image for view in views]


def raw_boxes(model: Any, one: Pass, score: float) -> list[Detections]:
    """Each view's boxes of all proposals and classes above `score`, before NMS."""
    logits, offsets, proposals = classify(model, one.inputs, one.features)
    counts = [len(each) for each in proposals]
    decoded = model.roi_heads.box_coder.decode(offsets, proposals).split(counts)  # (N_i, K, 4)
    scores = logits.softmax(-1).split(counts)
    found = []
    for boxes, p, own in zip(decoded, scores, one.inputs.image_sizes, strict=True):
        region, label = torch.where(p[:, 1:] > score)
        label = label + 1
        chosen = clip_boxes_to_image(boxes[region, label], own)
        keep = remove_small_boxes(chosen, 1e-2)  # pixels, as torchvision
        chosen = resize_boxes(chosen, own, one.size)
        found.append(Detections(chosen, p[region, label], label).take(keep))
    return found


def candidates(
    model: nn.Module, image: Tensor, views: Sequence[View], max_size: int, score: float
) -> Detections:
    """Boxes of all views that score above `score`, in the original image.

    R-CNNs give every proposal's box of every class, as in Detectron; other detectors hide these and
    give what they put out, after their own NMS.
    """
    each: list[Detections] = []
    if isinstance(model, GeneralizedRCNN):
        for one in passes(model, image, views, max_size):
            each += raw_boxes(model, one, score)
    else:
        for group in by_size(views):
            with resized(model, group[0].short, max_size):
                outputs = model(show(image, group))
            each += [Detections(out["boxes"], out["scores"], out["labels"]) for out in outputs]
    boxes = [
        flip_boxes(found.boxes, image.shape[-1]) if view.flip else found.boxes
        for view, found in zip(views, each, strict=True)
    ]
    scores = torch.cat([found.scores for found in each])
    labels = torch.cat([found.labels for found in each])
    return Detections(torch.cat(boxes), scores, labels).take(scores > score)


def vote(kept: Detections, voters: Detections, merge: Merge, *, legacy: bool = False) -> Detections:
    """Box voting (Gidaris and Komodakis, 2015): kept boxes become weighted means of the voters.

    A candidate of the same class votes with its score if its IoU is merge.vote or more; a box for
    which nobody votes stays. legacy: Detectron's widths, which are 1 pixel larger.
    """
    pixel = kept.boxes.new_tensor([0, 0, 1, 1]) * legacy
    iou = box_iou(kept.boxes + pixel, voters.boxes + pixel)  # (M, N)
    chosen = (iou >= merge.vote) & (kept.labels[:, None] == voters.labels)
    p, n, beta = voters.scores, chosen.sum(1).clamp(min=1), merge.beta
    total = (chosen * p).sum(1)
    share = chosen * p / total[:, None]  # 1 for a box that votes alone, which so stays bit by bit
    # A sum, not a product of matrices: that is half precision under autocast, or TF32.
    boxes = (share[:, None] * voters.boxes.T).sum(2)  # (M, 4)
    match merge.scoring:
        case "id":
            scores = kept.scores
        case "temp_avg":
            scores = (chosen * (torch.logit(p) / beta).sigmoid()).sum(1) / n
        case "avg":
            scores = total / n
        case "iou_avg":
            scores = (chosen * iou * p).sum(1) / (chosen * iou).sum(1)
        case "generalized_avg":
            scores = ((chosen * p**beta).sum(1) / n) ** (1 / beta)
        case _:  # quasi_sum, which exceeds 1 for beta < 1
            scores = (total / n**beta).clamp(max=1)
    voted = total > 0
    boxes = torch.where(voted[:, None], boxes, kept.boxes)
    return Detections(boxes, torch.where(voted, scores, kept.scores), kept.labels)


def merge_boxes(found: Detections, merge: Merge, size: Size) -> Detections:
    """Detections, best first, of an image from the candidates of all its views.

    NMS class by class, then voting by all candidates, suppressed ones too.
    """
    found = found.take(found.scores > merge.score)
    kept = found.take(batched_nms(found.boxes, found.scores, found.labels, merge.nms))
    if merge.scoring == "id":  # voting leaves scores alone, so the others need none
        kept = kept.take(kept.scores >= kth_largest(kept.scores, merge.limit))
    if merge.vote:
        kept = vote(kept, found, merge)
    boxes = clip_boxes_to_image(kept.boxes, size)
    kept = Detections(boxes, kept.scores, kept.labels).take((boxes[:, 2:] > boxes[:, :2]).all(1))
    kept = kept.take(kept.scores.argsort(descending=True, stable=True))
    return kept.take(kept.scores >= kth_largest(kept.scores, merge.limit))


def keypoint_maps(model: Any, one: Pass, boxes: Tensor, heatmaps: str = "prob") -> Tensor:
    """Maps (views, R, J, m, m) float32 of boxes (R, 4), as each view has them.

    heatmaps: "prob": a softmax over the positions; "logit": what comes before it.
    """
    heads = model.roi_heads
    pooled = heads.keypoint_roi_pool(one.features, one.regions(boxes), one.inputs.image_sizes)
    maps = to_heatmaps(heads.keypoint_predictor(heads.keypoint_head(pooled)), heatmaps)
    return maps.unflatten(0, (len(one.views), len(boxes)))


def to_heatmaps(logits: Tensor, heatmaps: str) -> Tensor:
    """(R, J, m, m) in float32, as probabilities of the positions or as they are."""
    logits = logits.float()
    return logits.flatten(2).softmax(-1).view_as(logits) if heatmaps == "prob" else logits


def mask_maps(model: Any, one: Pass, boxes: Tensor, labels: Tensor) -> Tensor:
    """Soft masks (views, R, 1, m, m) float32 of the boxes' own labels, as each view has them."""
    heads = model.roi_heads
    pooled = heads.mask_roi_pool(one.features, one.regions(boxes), one.inputs.image_sizes)
    maps = heads.mask_predictor(heads.mask_head(pooled)).float().sigmoid()
    maps = maps.unflatten(0, (len(one.views), len(boxes)))  # (views, R, K, m, m)
    return maps[:, torch.arange(len(boxes), device=labels.device), labels, None]


def average_maps(
    maps: Iterable[tuple[View, Tensor]], boxes: Tensor, own: int, transforms: Transforms, swap: Swap
) -> Tensor:
    """Mean (R, J, m, m) of the views' maps, the identity's first, which is overwritten.

    own: shorter side of the identity, beside which a view is up-scaled or down-scaled.
    """
    large = (boxes[:, 2:] - boxes[:, :2]).prod(1) >= transforms.area
    total, count = None, torch.zeros_like(boxes[:, 0])
    for view, each in maps:
        used = torch.ones_like(count)
        if transforms.size_dependent and view.short:
            used = (~large if view.short > own else large).to(count.dtype)
        each = flip_maps(each, swap) if view.flip else each
        total = each if total is None else total.addcmul_(each, used[:, None, None, None])
        count += used
    assert total is not None, "no view"
    return total.div_(count[:, None, None, None])


def single(model: Any, images: list[Tensor], merge: Merge) -> list[dict[str, Tensor]]:
    """Labels of one untransformed pass: what `model(images)` puts out."""
    maps: list[Tensor] = []
    with ExitStack() as hooks:
        if has_head(model, "keypoint"):
            predictor: nn.Module = model.roi_heads.keypoint_predictor
            hook = predictor.register_forward_hook(lambda module, inputs, out: maps.append(out))
            hooks.enter_context(hook)
        outputs = model(images)
    labels = [{name: out[name] for name in Detections._fields} for out in outputs]
    if maps:
        peaks = to_heatmaps(maps[0], merge.heatmaps).flatten(2).amax(-1)
        counts = [len(out["boxes"]) for out in outputs]
        for label, out, own in zip(labels, outputs, peaks.split(counts), strict=True):
            label["keypoints"] = torch.cat((out["keypoints"][..., :2], own[..., None]), -1)
    elif has_head(model, "mask"):
        for label, out in zip(labels, outputs, strict=True):
            label["masks"] = out["masks"][:, 0] > 0.5
    return labels


def distill_keypoints(
    model: Any,
    image: Tensor,
    views: Sequence[View],
    transforms: Transforms,
    merge: Merge,
    mirrored: Swap,
) -> dict[str, Tensor]:
    """Labels of an image: boxes of the identity, joints of the average over the views, Sec. 4."""
    rest = passes(model, image, views, transforms.max_size)
    first = next(rest)  # the identity and its mirror image; boxes are those of the former
    inputs = ImageList(first.inputs.tensors[:1], first.inputs.image_sizes[:1])
    features = {name: each[:1] for name, each in first.features.items()}
    logits, offsets, proposals = classify(model, inputs, features)
    found = model.roi_heads.postprocess_detections(logits, offsets, proposals, inputs.image_sizes)
    boxes, scores, labels = (each[0] for each in found)
    boxes = resize_boxes(boxes, inputs.image_sizes[0], first.size)
    maps = (
        pair
        for one in chain([first], rest if len(boxes) else [])
        for pair in zip(one.views, keypoint_maps(model, one, boxes, merge.heatmaps), strict=True)
    )
    mean = average_maps(maps, boxes, own_size(model)[0], transforms, mirrored)
    points, peaks = decode_keypoints(mean, boxes)
    keypoints = torch.cat((points, peaks[..., None]), -1)
    return {"boxes": boxes, "scores": scores, "labels": labels, "keypoints": keypoints}


def distill_boxes(
    model: nn.Module, image: Tensor, views: Sequence[View], transforms: Transforms, merge: Merge
) -> dict[str, Tensor]:
    """Labels of an image: merged boxes of all views, and the average of their masks."""
    found = candidates(model, image, views, transforms.max_size, merge.score)
    found = merge_boxes(found, merge, (image.shape[-2], image.shape[-1]))
    boxes, labels = found.boxes, found.labels
    if not has_head(model, "mask"):
        return found._asdict()
    maps = (
        pair
        for one in passes(model, image, views if len(boxes) else views[:1], transforms.max_size)
        for pair in zip(one.views, mask_maps(model, one, boxes, labels), strict=True)
    )
    mean = average_maps(maps, boxes, own_size(model)[0], transforms, None)
    masks = paste_masks(mean, boxes, (image.shape[-2], image.shape[-1]))
    return {**found._asdict(), "masks": masks}


def distill(
    model: nn.Module,
    images: Sequence[Tensor],
    transforms: Transforms,
    merge: Merge,
    mirrored: Swap = None,
) -> list[dict[str, Tensor]]:
    """Labels of images (3, H, W), float 0..1, on the CPU.

    boxes (M, 4), scores (M,), labels (M,) 1..K - 1 and, by the model's heads, keypoints (M, J, 3:
    x, y, confidence) or masks (M, H, W) bool. A joint's confidence is the maximum of its averaged
    map before that is up-sampled, so that it does not depend on the box's size.

    Joints: the boxes are those of the untransformed image; its maps are averaged, Sec. 4. Boxes and
    masks: boxes of all views are merged, then the masks of these averaged. Every image is a batch
    of its own, so that its labels depend on no other. With one view, what comes out is
    `model(images)` as it is.

    mirrored: as of `mirrored_joints`; without it a keypoint model sees no flips. ValueError where
    the model is no such detector, or images or `mirrored` are not what is said here.
    """
    if isinstance(model, DistributedDataParallel | DataParallel):
        model = model.module
    require_sound(model, images, mirrored)
    views = make_views(transforms, own_size(model)[0])
    joints = has_head(model, "keypoint")
    if joints and mirrored is None and transforms.flip:
        warnings.warn("no joint is left or right by its name: flips are left out.", stacklevel=2)
        views = [view for view in views if not view.flip]
    labels = []
    with labelling(model):
        device = next(chain(model.parameters(), images)).device
        images = [image.to(device) for image in images]
        if len(views) == 1 and images:
            labels = single(model, images, merge)
        for image in images[len(labels) :]:
            if joints:
                label = distill_keypoints(model, image, views, transforms, merge, mirrored)
            else:
                label = distill_boxes(model, image, views, transforms, merge)
            labels.append(label)
    return [{name: each.cpu() for name, each in label.items()} for label in labels]


def count_to_keep(instances: int, labelled_images: int, images: int) -> int:
    """As many instances among `images` as give each what a labelled image has; halves go up."""
    if labelled_images < 1:
        raise ValueError("the labelled set has no image: the number of instances is of its images.")
    return (2 * instances * images + labelled_images) // (2 * labelled_images)


def kth_largest(scores: Tensor, k: int) -> float:
    """Threshold from which k scores (N,) are kept, and those that tie with the last of them.

    inf for k = 0; -inf for fewer than k scores.
    """
    if k < 1:
        return float("inf")
    if len(scores) < k:
        return float("-inf")
    return scores.kthvalue(len(scores) - k + 1).values.item()
