"""Weight files of others in our names, which are torchvision's.

Known are torchvision's Faster, Mask and Keypoint R-CNN and ResNet, detectron2's R-CNN-FPN, and the
pickles of Detectron, in which the paper's networks were trained. Rows of classes are ours in the
end: the background first, with a box and a mask of its own that nothing uses.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from common.weights.formats import State

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
D1_MEAN = (122.7717, 115.9465, 102.9801)  # red, green, blue in 0..255
D2_MEAN = (123.675, 116.28, 103.53)
STEM = "backbone.body.conv1.weight"
BOX, MASK = "roi_heads.box_predictor.", "roi_heads.mask_predictor."
KEYPOINT = "roi_heads.keypoint_predictor.kps_score_lowres."
COCO_IDS = [n for n in range(91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # 0: none
EPS = 1e-5  # what torchvision's frozen norms add to the variance

Rules = list[tuple[str, str]]  # a pattern of their name, ours; {} is a group, {-1} one less


@dataclass
class Converted:
    """Tensors by our names; what the weights want of the network; names that have no place."""

    tensors: State
    source: str
    mean: tuple[float, ...] | None = None  # of red, green, blue in 0..1; None: unknown
    std: tuple[float, ...] | None = None
    stride_in_1x1: bool | None = None
    unused: list[str] = field(default_factory=list)


def convert(state: State, source: str) -> Converted:
    """Recognise a format by its names; ValueError where none fits."""
    if "conv1_w" in state or "cls_score_w" in state:
        return from_detectron(state, f"{source} (Caffe2)")
    if any(name.startswith("backbone.bottom_up.") for name in state):
        return from_detectron2(state, f"{source} (detectron2)")
    if any(name.startswith(("backbone.body.", "backbone.stem.")) for name in state):
        return from_torchvision(state, source)
    if "layer1.0.conv1.weight" in state:
        body = {f"backbone.body.{k}": v for k, v in state.items() if not k.startswith("fc.")}
        return Converted(body, f"{source} (ResNet)", *IMAGENET, stride_in_1x1=False)
    raise ValueError(
        f"{source} is in no known format (it holds {', '.join(list(state)[:3])}): known are "
        "checkpoints of this folder, torchvision, detectron2 and Detectron."
    )


def from_torchvision(state: State, source: str) -> Converted:
    """Ours already, but for the pyramid's and heads' names before torchvision 0.13."""
    old = [
        (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)", "{}.0.{}"),
        (r"rpn\.head\.conv\.(weight|bias)", "rpn.head.conv.0.0.{}"),
        (r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)", "roi_heads.mask_head.{-1}.0.{}"),
        (r"(.*)", "{}"),
    ]
    return Converted(rename(state, old)[0], source)


def take_coco_rows(tensors: State) -> State:
    """Of torchvision's rows, one for each id up to 90, those of the background and 80 classes."""
    taken = dict(tensors)
    for name, value in tensors.items():
        if name.startswith((BOX, f"{MASK}mask_fcn_logits.")) and len(value) % 91 == 0:
            taken[name] = value.unflatten(0, (91, -1))[COCO_IDS].flatten(0, 1)
    return taken


DETECTRON2: Rules = [
    (r"backbone\.bottom_up\.stem\.conv1\.weight", "backbone.body.conv1.weight"),
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.(\w+)", "backbone.body.bn1.{}"),
    (
        r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.weight",
        "backbone.body.layer{-1}.{}.conv{}.weight",
    ),
    (
        r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.norm\.(\w+)",
        "backbone.body.layer{-1}.{}.bn{}.{}",
    ),
    (
        r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.weight",
        "backbone.body.layer{-1}.{}.downsample.0.weight",
    ),
    (
        r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.norm\.(\w+)",
        "backbone.body.layer{-1}.{}.downsample.1.{}",
    ),
    (r"backbone\.fpn_lateral(\d)\.(\w+)", "backbone.fpn.inner_blocks.{-2}.0.{}"),
    (r"backbone\.fpn_output(\d)\.(\w+)", "backbone.fpn.layer_blocks.{-2}.0.{}"),
    (r"proposal_generator\.rpn_head\.conv\.(\w+)", "rpn.head.conv.0.0.{}"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", "rpn.head.cls_logits.{}"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", "rpn.head.bbox_pred.{}"),
    (r"roi_heads\.box_head\.fc1\.(\w+)", "roi_heads.box_head.fc6.{}"),
    (r"roi_heads\.box_head\.fc2\.(\w+)", "roi_heads.box_head.fc7.{}"),
    (r"roi_heads\.box_predictor\.(\w+)\.(\w+)", BOX + "{}.{}"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.(\w+)", "roi_heads.mask_head.{-1}.0.{}"),
    (r"roi_heads\.mask_head\.deconv\.(\w+)", MASK + "conv5_mask.{}"),
    (r"roi_heads\.mask_head\.predictor\.(\w+)", MASK + "mask_fcn_logits.{}"),
    (r"roi_heads\.keypoint_head\.conv_fcn(\d)\.(\w+)", "roi_heads.keypoint_head.{layer}.{}"),
    (r"roi_heads\.keypoint_head\.score_lowres\.(\w+)", KEYPOINT + "{}"),
]


def from_detectron2(state: State, source: str) -> Converted:
    """detectron2: the background comes last and has no box and no mask."""
    mean, std = (
        tuple(round(float(v), 4) for v in state[name].flatten()) if name in state else default
        for name, default in (("pixel_mean", D2_MEAN[::-1]), ("pixel_std", (1.0, 1.0, 1.0)))
    )
    tensors, unused = rename(state, DETECTRON2)
    unused = [name for name in unused if name not in ("pixel_mean", "pixel_std")]
    if mean[0] < mean[2]:  # of pixels in the order blue, green, red
        mean, std = mean[::-1], std[::-1]
        if STEM in tensors:
            tensors[STEM] = tensors[STEM].flip(1)
    for name in (n for n in list(tensors) if n.startswith((BOX, MASK + "mask_fcn_logits."))):
        rows = tensors[name]
        if "cls_score" in name:
            tensors[name] = rows.roll(1, 0)
        elif len(rows) > 1:  # a class-agnostic mask has one row, as ours
            tensors[name] = torch.cat(
                [rows.new_zeros(4 if "bbox" in name else 1, *rows.shape[1:]), rows]
            )
    return Converted(
        tensors,
        source,
        tuple(value / 255 for value in mean),
        tuple(value / 255 for value in std),
        stride_in_1x1=set(std) == {1.0},  # MSRA's backbone, the usual one
        unused=unused,
    )


KINDS = {"w": "weight", "b": "bias", "s": "weight"}
DETECTRON: Rules = [
    (r"conv1_w", "backbone.body.conv1.weight"),
    (r"res_conv1_bn_([sb])", "backbone.body.bn1.{kind}"),
    (r"res(\d)_(\d+)_branch2([abc])_w", "backbone.body.layer{-1}.{}.conv{letter}.weight"),
    (r"res(\d)_(\d+)_branch2([abc])_bn_([sb])", "backbone.body.layer{-1}.{}.bn{letter}.{kind}"),
    (r"res(\d)_(\d+)_branch1_w", "backbone.body.layer{-1}.{}.downsample.0.weight"),
    (r"res(\d)_(\d+)_branch1_bn_([sb])", "backbone.body.layer{-1}.{}.downsample.1.{kind}"),
    (r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?_([wb])", "backbone.fpn.inner_blocks.{-2}.0.{kind}"),
    (r"fpn_res(\d)_\d+_sum_([wb])", "backbone.fpn.layer_blocks.{-2}.0.{kind}"),
    (r"conv_rpn_fpn2_([wb])", "rpn.head.conv.0.0.{kind}"),
    (r"rpn_cls_logits_fpn2_([wb])", "rpn.head.cls_logits.{kind}"),
    (r"rpn_bbox_pred_fpn2_([wb])", "rpn.head.bbox_pred.{kind}"),
    (r"fc([67])_([wb])", "roi_heads.box_head.fc{}.{kind}"),
    (r"(cls_score|bbox_pred)_([wb])", BOX + "{}.{kind}"),
    (r"_\[mask\]_fcn(\d)_([wb])", "roi_heads.mask_head.{-1}.0.{kind}"),
    (r"conv5_mask_([wb])", MASK + "conv5_mask.{kind}"),
    (r"mask_fcn_logits_([wb])", MASK + "mask_fcn_logits.{kind}"),
    (r"conv_fcn(\d)_([wb])", "roi_heads.keypoint_head.{layer}.{kind}"),
    (r"kps_score_lowres_([wb])", KEYPOINT + "{kind}"),
]


def from_detectron(state: State, source: str) -> Converted:
    """Detectron's blobs: norms are affine maps, pixels blue, green, red.

    The fixed weights that enlarge the joints' maps, `kps_score_w`, have no place: we interpolate.
    """
    tensors, unused = rename(
        {name: value for name, value in state.items() if not name.endswith("_momentum")}, DETECTRON
    )
    if STEM in tensors:
        tensors[STEM] = tensors[STEM].flip(1)
    for name in list(tensors):
        if re.search(r"(bn\d|downsample\.1)\.weight$", name):
            norm, weight = name.removesuffix("weight"), tensors[name]
            tensors[f"{norm}running_mean"] = torch.zeros_like(weight)
            tensors[f"{norm}running_var"] = torch.ones_like(weight) - EPS
    return Converted(
        tensors,
        source,
        tuple(value / 255 for value in D1_MEAN),
        (1 / 255,) * 3,
        stride_in_1x1=True,
        unused=unused,
    )


def rename(state: State, rules: Rules) -> tuple[State, list[str]]:
    """Tensors whose names match a rule, by our names, and the names that match none."""
    found: State = {}
    unused: list[str] = []
    for name, value in state.items():
        matches = ((re.fullmatch(theirs, name), ours) for theirs, ours in rules)
        match, ours = next(((m, ours) for m, ours in matches if m), (None, ""))
        if match is None:
            unused.append(name)
        else:
            found[fill(ours, list(match.groups()))] = value
    return found, unused


FILLS: dict[str, Callable[[str], str]] = {
    "": str,
    "-1": lambda text: str(int(text) - 1),
    "-2": lambda text: str(int(text) - 2),
    "kind": lambda text: KINDS[text],
    "letter": lambda text: str("abc".index(text) + 1),
    "layer": lambda text: str(2 * int(text) - 2),  # every second one is a ReLU
}


def fill(ours: str, groups: list[str]) -> str:
    """Our name with the groups of theirs in its braces, one after the other."""
    return re.sub(r"\{([-\w]*)\}", lambda m: FILLS[m[1]](groups.pop(0)), ours)
