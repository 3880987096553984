"""The usual way to label under many transforms: a loop over torchvision's model, for the benchmark.

M persons, J joints.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints
from torchvision.models.detection.transform import resize_boxes

from common.images import read_image

from ..distill import Swap, View, flip_boxes, flip_maps, resized

Labels = dict[str, Tensor]


@torch.no_grad()
def run_whole(model: Any, file: Path, views: Sequence[View], max_size: int, swap: Swap) -> Labels:
    """Labels of a file by `model(images)` for each view; nothing is shared between the passes.

    model: a Keypoint R-CNN in evaluation mode. All of it runs in each pass; then the boxes that it
    found give way to those of the first pass, so that its maps can be averaged. Returns boxes
    (M, 4), scores and labels (M,), keypoints (M, J, 3: x, y, confidence) on the CPU.
    """
    heads, device = model.roi_heads, next(model.parameters()).device
    find, logits, first = heads.postprocess_detections, list[Tensor](), Labels()

    def find_same(*inputs: Any) -> Any:
        found = find(*inputs)
        if not first:
            return found
        own = flip_boxes(first["boxes"], image.shape[2]) if view.flip else first["boxes"]
        boxes = resize_boxes(own, image.shape[1:], inputs[3][0])
        return [boxes], [first["scores"]], [first["labels"]]

    heads.postprocess_detections = find_same
    with heads.keypoint_predictor.register_forward_hook(lambda *call: logits.append(call[2])):
        for view in views:
            image = read_image(file).to(device) / 255
            with resized(model, view, max_size):
                (found,) = model([image.flip(2) if view.flip else image])
            first = first or found
    del heads.postprocess_detections  # the class has its own
    maps = [each.flatten(2).softmax(-1).view_as(each) for each in logits]
    pairs = zip(views, maps, strict=True)
    mean = torch.stack([flip_maps(m, swap) if view.flip else m for view, m in pairs]).mean(0)
    points = heatmaps_to_keypoints(mean, first["boxes"])[0][..., :2]
    keypoints = torch.cat((points, mean.amax((2, 3))[..., None]), -1)
    known = {name: first[name] for name in ("boxes", "scores", "labels")}
    return {name: each.cpu() for name, each in (known | {"keypoints": keypoints}).items()}
