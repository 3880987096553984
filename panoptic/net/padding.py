"""Images and targets of any size on their way into a network, and its logits on their way out.

Legend: N images of H x W pixels, M instances in one of them, T thing classes, C semantic ones.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

VOID = 255  # of semantic targets: no loss there
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # red, green, blue in 0..1, ImageNet's

Size = tuple[int, int]  # height, width
Targets = Sequence[Mapping[str, Any]] | None  # None in evaluation
Wanted = Sequence[Size] | None  # sizes of predictions; None: as large as their images
Prediction = dict[str, Tensor]
Result = dict[str, Tensor] | list[Prediction]  # losses by name, or a prediction of each image


def pad(images: Sequence[Tensor], divisible: int, device: torch.device) -> ImageList:
    """Normalised images in one tensor (N, 3, H', W'), zeros right and below; their own sizes.

    images: (3, H, W) red, green, blue, uint8 or float in 0..1. H' and W' are multiples of
    `divisible`. Raises ValueError for anything else, naming the image's place in the batch.
    """
    if not images:
        raise ValueError("the batch is empty: give at least one image")
    for number, image in enumerate(images):
        if image.ndim != 3 or len(image) != 3 or not image.numel():
            raise ValueError(f"image {number} is {tuple(image.shape)}: give (3, height, width)")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise ValueError(f"image {number} is {image.dtype}: give uint8, or floats in 0..1")
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = (-(-max(side) // divisible) * divisible for side in zip(*sizes, strict=True))
    mean, std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (MEAN, STD))
    batch = torch.zeros(len(images), 3, height, width, device=device)
    for place, image, (h, w) in zip(batch, images, sizes, strict=True):
        image = image.to(device, non_blocking=True)
        image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        place[:, :h, :w] = (image - mean) / std
    return ImageList(batch, sizes)


def check_targets(
    images: Sequence[Tensor],
    targets: Targets,
    device: torch.device,
    *,
    things: int | None = None,
    classes: int | None = None,
) -> list[dict[str, Tensor]]:
    """What a loss needs of each target, on the device: `boxes`, `labels`, `masks`; `semantic`.

    things: T, to ask for instances; classes: C, to ask for a semantic map. The labels that come
    out are shifted by one, as torchvision's heads count: 0 is their background.
    Raises ValueError naming the image where something is missing or does not fit it.
    """
    if targets is None or len(targets) != len(images):
        given = "none" if targets is None else f"{len(targets)}"
        raise ValueError(f"{len(images)} images and {given} targets: training needs one for each")
    out: list[dict[str, Tensor]] = []
    faults: list[tuple[Tensor, str]] = []  # whether it is there, and what is wrong
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        place = f"image {number} of the batch"
        name = str(target.get("file", target.get("image_id", place)))
        height, width = image.shape[1:]
        wanted: dict[str, tuple[int, ...]] = {}
        if things is not None:
            count = len(target["labels"]) if "labels" in target else 0
            wanted = {"boxes": (count, 4), "labels": (count,), "masks": (count, height, width)}
        if classes is not None:
            wanted["semantic"] = (height, width)
        for key, shape in wanted.items():
            if key not in target:
                raise ValueError(f"the target of {name} has no {key!r}: add it")
            if tuple(target[key].shape) != shape:
                raise ValueError(
                    f"{key!r} of {name} is {tuple(target[key].shape)} where {shape} fits its image "
                    "and labels"
                )
        one = {key: target[key].to(device, non_blocking=True) for key in wanted}
        if things is not None:
            boxes, labels = one["boxes"].float(), one["labels"].long()
            sound = torch.isfinite(boxes).all() & (boxes[:, 2:] > boxes[:, :2]).all()
            faults.append((~sound, f"{name} has a box that is not finite or has no area"))
            beyond = ((labels < 0) | (labels >= things)).any()
            faults.append((beyond, f"{name} has a label outside 0..{things - 1}"))
            one |= {"boxes": boxes, "labels": labels + 1}
        if classes is not None:
            semantic = one["semantic"]
            beyond = ((semantic < 0) | ((semantic >= classes) & (semantic != VOID))).any()
            known = f"0..{classes - 1} nor {VOID}"
            faults.append((beyond, f"{name} has a semantic class that is neither in {known}"))
        out.append(one)
    flags = torch.stack([flag for flag, _ in faults]).tolist() if faults else []  # one wait
    if True in flags:
        raise ValueError(f"{faults[flags.index(True)][1]}: correct its target")
    return out


def predict_by_size(
    images: Sequence[Tensor],
    sizes: Wanted,
    predict: Callable[[ImageList, list[Size]], list[Prediction]],
    divisible: int,
    device: torch.device,
) -> list[Prediction]:
    """What `predict` says of each image; those of one size go together, so none is padded to more.

    sizes: of the predictions; None: the images' own. divisible, device: as `pad` takes them.
    """
    own = [(image.shape[1], image.shape[2]) for image in images]
    if sizes is not None and len(sizes) != len(images):
        raise ValueError(f"{len(images)} images and {len(sizes)} sizes: give one for each")
    wanted = own if sizes is None else [(int(height), int(width)) for height, width in sizes]
    out: list[Prediction] = [{}] * len(images)
    for size in dict.fromkeys(own):
        group = [i for i in range(len(images)) if own[i] == size]
        batch = pad([images[i] for i in group], divisible, device)
        found = predict(batch, [wanted[i] for i in group])
        for i, prediction in zip(group, found, strict=True):
            out[i] = prediction
    return out


def crop_and_resize(logits: Tensor, image: Size, size: Size) -> Tensor:
    """(C, H', W') logits of a padded image -> (C, *size): its own part, bilinearly resized."""
    logits = logits[:, : image[0], : image[1]]
    if image == size:
        return logits
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def count_labelled(targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """How many pixels `semantic_loss` is the mean over: those that are not void."""
    return torch.stack([(target["semantic"] != VOID).sum() for target in targets]).sum()


def semantic_loss(logits: Tensor, targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Mean cross entropy of (N, C, H', W') logits over all pixels that are not void.

    The targets' `semantic` maps are smaller by the padding, which is void. Without any pixel the
    loss is 0, where a mean would be nan.
    """
    truth = torch.full(
        (len(logits), *logits.shape[2:]), VOID, dtype=torch.int64, device=logits.device
    )
    for place, target in zip(truth, targets, strict=True):
        height, width = target["semantic"].shape
        place[:height, :width] = target["semantic"]
    total = F.cross_entropy(logits.float(), truth, ignore_index=VOID, reduction="sum")
    return total / (truth != VOID).sum().clamp(min=1)
