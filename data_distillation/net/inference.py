"""How a detector of torchvision runs while it labels: at which size, mode and precision."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

PREDICTORS = ("box_predictor", "keypoint_predictor", "mask_predictor")
OUTPUTS = {"backbone", "head", "rpn.head", *(f"roi_heads.{name}" for name in PREDICTORS)}


def require_sound(
    model: nn.Module, images: Sequence[Tensor], mirrored: Sequence[int] | None
) -> None:
    """Raise ValueError for a model, images or `mirrored` that `distill` does not take."""
    if not isinstance(getattr(model, "transform", None), GeneralizedRCNNTransform):
        raise ValueError(
            f"{type(model).__name__} is no detector of torchvision: give a Faster, Mask or "
            "Keypoint R-CNN, RetinaNet, FCOS or SSD."
        )
    for image in images:
        if not image.is_floating_point() or image.ndim != 3 or len(image) != 3:
            raise ValueError(
                f"an image is {image.dtype} of shape {tuple(image.shape)}: give float (3, H, W)."
            )
        low, high = (float(each) for each in image.aminmax())
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"an image has values from {low:g} to {high:g}: give 0 to 1, as by dividing bytes "
                "by 255."
            )
    if mirrored is not None:
        joints = list(range(len(mirrored)))
        if sorted(mirrored) != joints or [mirrored[each] for each in mirrored] != joints:
            raise ValueError(
                f"mirrored={tuple(mirrored)} does not swap joints in pairs: give for each joint "
                "the number of its partner, or its own, as `mirrored_joints` does."
            )


def has_head(model: nn.Module, kind: str) -> bool:
    """Whether it is an R-CNN with a head of this kind: "keypoint" or "mask"."""
    heads: Any = getattr(model, "roi_heads", None)
    return heads is not None and getattr(heads, f"{kind}_roi_pool", None) is not None


def own_size(model: nn.Module) -> tuple[int, int]:
    """Shorter side and cap of the longer one, pixels, at which a detector of torchvision works."""
    transform: Any = model.transform
    if transform.fixed_size:
        return min(transform.fixed_size), max(transform.fixed_size)
    return transform.min_size[-1], transform.max_size


@contextmanager
def resized(model: nn.Module, short: int, max_size: int) -> Iterator[None]:
    """The model resizes images to a shorter side in pixels; SSD, which knows one shape, to that.

    0: it works at its own size.
    """
    transform: Any = model.transform
    before = transform.min_size, transform.max_size, transform.fixed_size
    if short and transform.fixed_size:
        ratio = short / min(transform.fixed_size)
        transform.fixed_size = tuple(round(side * ratio) for side in transform.fixed_size)
    elif short:
        transform.min_size, transform.max_size = (short,), max_size
    try:
        yield
    finally:
        transform.min_size, transform.max_size, transform.fixed_size = before


def to_float(output: Any) -> Any:
    """Tensors of a module's output as float32, in dictionaries and lists too."""
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return {name: to_float(each) for name, each in output.items()}
    return [to_float(each) for each in output]


@contextmanager
def labelling(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, with float32 outputs; the model is as before after it.

    The features are float32 too, since torchvision gives anchors their precision.
    """
    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as hooks, torch.no_grad():  # inference_mode would spoil anchors for training
        for name, module in model.named_modules():
            if name in OUTPUTS:
                hook = module.register_forward_hook(lambda module, inputs, out: to_float(out))
                hooks.enter_context(hook)
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def classify(
    model: Any, inputs: ImageList, features: dict[str, Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Logits (N, K) and offsets (N, 4 K) of the proposals, and these, (N_i, 4) of each input."""
    heads, sizes = model.roi_heads, inputs.image_sizes
    proposals, _ = model.rpn(inputs, features)
    pooled = heads.box_roi_pool(features, proposals, sizes)
    logits, offsets = heads.box_predictor(heads.box_head(pooled))
    return logits, offsets, proposals
