"""Weights of others in their own names: detectron2's Panoptic FPN and torchvision's Mask R-CNN.

Names are torchvision's inside this folder; `detectron2_names` maps them one to one. What differs
besides the names: detectron2 reads blue, green, red in 0..255, strides in the 1x1 convolutions,
and keeps the background last, with neither box nor mask.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import FrozenBatchNorm2d

from common.weights.formats import COCO_IDS, Report, State, few

from ..model import PanopticFPN
from ..net.instance import MaskRCNN
from ..net.padding import MEAN, STD

BOX, MASK = "roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits."
STEM = "backbone.body.conv1.weight"


BLOCK = r"backbone\.body\.layer(\d)\.(\d+)\."
RULES = [  # our name, detectron2's; {+1}: the number found there plus one
    (r"backbone\.body\.conv1\.", "backbone.bottom_up.stem.conv1."),
    (r"backbone\.body\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
    (BLOCK + r"conv(\d)\.", "backbone.bottom_up.res{+1}.{}.conv{}."),
    (BLOCK + r"bn(\d)\.", "backbone.bottom_up.res{+1}.{}.conv{}.norm."),
    (BLOCK + r"downsample\.0\.", "backbone.bottom_up.res{+1}.{}.shortcut."),
    (BLOCK + r"downsample\.1\.", "backbone.bottom_up.res{+1}.{}.shortcut.norm."),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.0\.", "backbone.fpn_lateral{+2}."),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.0\.", "backbone.fpn_output{+2}."),
    (r"rpn\.head\.conv\.0\.0\.", "proposal_generator.rpn_head.conv."),
    (r"rpn\.head\.cls_logits\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"rpn\.head\.bbox_pred\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"roi_heads\.box_head\.fc6\.", "roi_heads.box_head.fc1."),
    (r"roi_heads\.box_head\.fc7\.", "roi_heads.box_head.fc2."),
    (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.", "roi_heads.box_predictor.{}."),
    (r"roi_heads\.mask_head\.(\d)\.0\.", "roi_heads.mask_head.mask_fcn{+1}."),
    (r"roi_heads\.mask_predictor\.conv5_mask\.", "roi_heads.mask_head.deconv."),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", "roi_heads.mask_head.predictor."),
    (r"sem_seg_head\.(.*)\.", "sem_seg_head.{}."),
]


def detectron2_names(model: MaskRCNN | PanopticFPN) -> dict[str, str]:
    """Our name of every tensor -> detectron2's; no two are alike. Ours are without `instance.`."""
    detector = model.instance if isinstance(model, PanopticFPN) else model
    if detector.backbone.body.name == "mini":
        raise ValueError('detectron2 has no backbone "mini": take a ResNet for its names.')
    names = {}
    for name in map(bare, model.state_dict()):
        if name.endswith("num_batches_tracked"):
            continue
        found = [(m, theirs) for ours, theirs in RULES if (m := re.match(ours, name))]
        assert len(found) == 1, (name, found)
        (match, theirs), rest = found[0], name[found[0][0].end() :]
        plus = re.findall(r"\{(\+\d)?\}", theirs)
        for group, more in zip(match.groups(), plus, strict=True):
            number = str(int(group) + int(more)) if more else group
            theirs = re.sub(r"\{(\+\d)?\}", number, theirs, count=1)
        names[name] = theirs + rest
    assert len(set(names.values())) == len(names), "two names became one"
    return names


def _pixel_scale(std: Sequence[float]) -> Tensor:
    """(1, 3, 1, 1): their pixel over ours, red, green, blue. Both subtract the same mean."""
    return torch.tensor([255 * s / t for s, t in zip(STD, std, strict=True)]).view(1, 3, 1, 1)


def from_detectron2(network: MaskRCNN | PanopticFPN, state: State, report: Report) -> State:
    """Our tensors of a detectron2 file, their names without `instance.`."""
    model = network.instance if isinstance(network, PanopticFPN) else network
    mean, std = (
        [round(float(v), 3) for v in state[key].flatten()] if key in state else default
        for key, default in (("pixel_mean", [103.53, 116.28, 123.675]), ("pixel_std", [1.0] * 3))
    )
    bgr = mean[0] < mean[-1]
    ours = [round(255 * m, 3) for m in MEAN]
    if sorted(mean) != sorted(ours):
        raise ValueError(
            f"{report.source} subtracts {mean} from its pixels, this folder {ours}: the borders "
            "of every image would differ; train it with detectron2's own mean."
        )
    msra = set(std) == {1.0}  # the usual backbone; with another std it is torchvision's
    if model.stride_in_1x1 != msra:
        raise ValueError(
            f"{report.source} was trained with stride_in_1x1={msra}, the model has "
            f"{model.stride_in_1x1}: set model.stride_in_1x1={msra}."
        )
    if not isinstance(model.backbone.body.bn1, FrozenBatchNorm2d):
        raise ValueError(
            f"{report.source} has frozen norms, without statistics: set model.norm=frozen."
        )
    if not model.aligned:
        report.notes.append(
            "They were trained on aligned regions: set model.aligned=True, or AP drops a little."
        )
    ours_of = {theirs: name for name, theirs in detectron2_names(network).items()}
    tensors = {}
    for name, value in state.items():
        if name in ours_of:
            tensors[ours_of[name]] = value
        elif not name.startswith(("pixel_", "proposal_generator.anchor_generator.")):
            report.unused.append(name)
    heads = [n for n in report.unused if not n.startswith("sem_seg_head.")]
    if heads:
        raise ValueError(
            f"{report.source} holds {few(heads)}, for which Panoptic FPN with model.backbone="
            f"{model.backbone.body.name} has no place: name its backbone, or give other weights."
        )
    if STEM in tensors:
        stem = tensors[STEM].flip(1) if bgr else tensors[STEM]
        tensors[STEM] = stem * _pixel_scale(std[::-1] if bgr else std)
    return _background_first(tensors)


def _background_first(tensors: State) -> State:
    """Class rows with detectron2's background, last or absent, moved to torchvision's place 0."""
    for name, value in tensors.items():
        if name.startswith(f"{BOX}cls_score."):
            tensors[name] = value.roll(1, 0)
        elif name.startswith((f"{BOX}bbox_pred.", MASK)):
            rows = 4 if "bbox_pred" in name else 1  # the background has neither box nor mask
            tensors[name] = torch.cat([value.new_zeros(rows, *value.shape[1:]), value])
    return tensors


def from_torchvision(
    model: MaskRCNN, state: State, report: Report, category_ids: Sequence[int] | None
) -> State:
    """Our tensors of a torchvision Mask R-CNN, old names or new."""
    if any(re.match(r"backbone\.fpn\.\w+\.\d\.1\.|roi_heads\.box_head\.\d", n) for n in state):
        raise ValueError(
            f"{report.source} is maskrcnn_resnet50_fpn_v2, whose heads have norms and more layers: "
            "give the weights of maskrcnn_resnet50_fpn."
        )
    if model.stride_in_1x1:
        raise ValueError(
            f"{report.source} was trained with stride_in_1x1=False, the model has True: set "
            "model.stride_in_1x1=False."
        )
    if model.aligned:
        report.notes.append(
            "They were trained on regions that are not aligned: set model.aligned=False to get "
            "torchvision's results; with True they are half a pixel off until trained further."
        )
    old = [(r"^(backbone\.fpn\.\w+_blocks\.\d)\.(weight|bias)$", r"\1.0.\2")]
    old += [(r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2")]
    renamed = {}
    for name, value in state.items():
        for pattern, new in old:
            name = re.sub(pattern, new, name)
        name = re.sub(r"mask_fcn(\d)\.", lambda found: f"{int(found[1]) - 1}.0.", name)
        renamed[name] = value
    if set(renamed) != set(state):  # made when torchvision's frozen norm had eps = 0
        _fold(model, renamed, report)
    rows = renamed.get(f"{BOX}cls_score.bias")
    if rows is not None and len(rows) == 91 and list(category_ids or []) == COCO_IDS:
        chosen = torch.tensor([0, *COCO_IDS])
        for name, value in renamed.items():
            if name.startswith(f"{BOX}bbox_pred."):
                renamed[name] = value.unflatten(0, (91, 4))[chosen].flatten(0, 1)
            elif name.startswith((BOX, MASK)):
                renamed[name] = value[chosen]
    return renamed


def _fold(model: MaskRCNN, tensors: State, report: Report) -> None:
    """Rewrite norms made with eps = 0 as the affine maps they are, in the network's eps."""
    norm = model.backbone.body.bn1
    if not isinstance(norm, FrozenBatchNorm2d):
        raise ValueError(
            f"{report.source} was trained on frozen norms with eps = 0: set model.norm=frozen."
        )
    for name in [n.removesuffix("running_var") for n in tensors if n.endswith("running_var")]:
        mean, var = tensors[f"{name}running_mean"], tensors[f"{name}running_var"]
        scale = tensors[f"{name}weight"] * var.rsqrt()
        tensors[f"{name}bias"] = tensors[f"{name}bias"] - mean * scale
        tensors[f"{name}weight"] = scale
        tensors[f"{name}running_mean"] = torch.zeros_like(mean)
        tensors[f"{name}running_var"] = torch.full_like(var, 1 - norm.eps)


def bare(name: str) -> str:
    """A parameter's name without the part that it belongs to."""
    return name.removeprefix("instance.")
