"""Names and habits of other people's weight files, turned into ours.

`convert` knows torchvision's RetinaNet (both versions, old and new names), R-CNNs and ResNet,
detectron2, Detectron's RetinaNet and MSRA's ImageNet backbones. `export.py` goes back.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

State = dict[str, Tensor]
Rename = Callable[[str], str | None]  # our name, or None for a tensor that has no place

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
D1_MEAN = (102.9801, 115.9465, 122.7717)  # blue, green, red
D2_MEAN = (103.53, 116.28, 123.675)
ONES = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Wants:
    """What weights expect of the network and of the pixels; None: nothing, or unknown.

    anchors, p6, stride_in_1x1, norm_eps, head_norm: as in `RetinaNet`.
    ratios: in the order of the file's channels.
    bgr: channels are blue, green, red in 0..255 instead of red, green, blue in 0..1.
    mean, std: subtracted from and divided by, in the order and the range of the channels.
    affine: norms are affine maps only; the file has no statistics of activations.
    """

    source: str
    anchors: str | None = None
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    p6: str | None = None
    stride_in_1x1: bool | None = None
    norm_eps: float | None = None
    head_norm: str | None = None
    bgr: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    affine: bool = False


@dataclass
class Converted:
    """Tensors under our names (channels in the file's order), and the names that have no place."""

    tensors: State
    wants: Wants
    unused: list[str] = field(default_factory=list)


def convert(state: State, source: str) -> Converted:
    """Recognise the format of named tensors by their names; ValueError where none fits."""
    if "classification.predict.weight" in state:
        return Converted(dict(state), Wants(f"{source} (ours)"))
    if any(name.startswith("backbone.body.") for name in state):
        return torchvision(state, source)
    if any(name.startswith(("backbone.bottom_up.", "stem.conv1.")) for name in state):
        return detectron2(state, f"{source} (detectron2)")
    if "conv1_w" in state:
        return detectron(state, f"{source} (Caffe2)")
    if "layer1.0.conv1.weight" in state:
        wants = Wants(
            f"{source} (torchvision ResNet)",
            stride_in_1x1=False,
            norm_eps=1e-5,
            bgr=False,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )
        return _rename(state, wants, lambda n: None if n.startswith("fc.") else f"backbone.{n}")
    raise ValueError(
        f"{source} is in no known format (it holds {', '.join(list(state)[:3])}): "
        "known are checkpoints of this folder, torchvision, detectron2, Detectron and MSRA."
    )


def _rename(state: State, wants: Wants, rename: Rename) -> Converted:
    found, unused = {}, []
    for name, value in state.items():
        ours = rename(name)
        if ours is None:
            unused.append(name)
        else:
            found[ours] = value
    return Converted(found, wants, unused)


def torchvision(state: State, source: str) -> Converted:
    """RetinaNet of torchvision, or of its Faster, Mask or Keypoint R-CNN backbone and pyramid.

    Heads are `conv.{0,2,4,6}` in the first files, `conv.{0..3}.0` today. Files with the old names
    were made when a frozen norm had eps = 0, see `overwrite_eps` there. The pyramid of an R-CNN
    starts at C2, and in version 2 it has norms and no place here.
    """
    rcnn = any(name.startswith(("rpn.", "roi_heads.")) for name in state)
    if any(re.fullmatch(r"backbone\.fpn\.\w+\.\d\.1\.weight", name) for name in state):
        unused = [name for name in state if name.startswith("backbone.fpn.")]
        state = {name: value for name, value in state.items() if name not in unused}
    else:
        unused = []
    old = "backbone.fpn.inner_blocks.0.weight" in state
    p6 = state.get("backbone.fpn.extra_blocks.p6.weight")
    wants = Wants(
        f"{source} (torchvision {'R-CNN' if rcnn else 'RetinaNet'})",
        stride_in_1x1=False,
        norm_eps=0.0 if old else 1e-5,
        bgr=False,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    if not rcnn:
        wants = replace(
            wants,
            anchors="torchvision",
            p6="c5" if p6 is None or p6.shape[1] != p6.shape[0] else "p5",
            head_norm="gn" if any("_head.conv.0.1." in name for name in state) else "none",
        )
    converted = _rename(state, wants, lambda name: _from_torchvision(name, 1 if rcnn else 0))
    converted.unused += unused
    return converted


TORCHVISION_HEADS = (
    ("classification", "classification_head", "cls_logits"),
    ("regression", "regression_head", "bbox_reg"),
)


def _from_torchvision(name: str, c3: int) -> str | None:
    """`c3`: number of C3's convolutions in the pyramid."""
    if name.startswith("backbone.body."):
        return name.replace(".body", "", 1)
    if found := re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)(?:\.0)?\.(\w+)", name):
        part, level = "lateral" if found[1] == "inner" else "output", int(found[2]) - c3
        return f"fpn.{part}.{level}.{found[3]}" if level >= 0 else None
    if name.startswith("backbone.fpn.extra_blocks."):
        return name.replace("backbone.fpn.extra_blocks", "fpn")
    for ours, head, last in TORCHVISION_HEADS:
        if found := re.fullmatch(rf"head\.{head}\.{last}\.(\w+)", name):
            return f"{ours}.predict.{found[1]}"
        if found := re.fullmatch(rf"head\.{head}\.conv\.(\d)\.([01])\.(\w+)", name):
            return f"{ours}.tower.{found[1]}.{('conv', 'norm')[int(found[2])]}.{found[3]}"
        if found := re.fullmatch(rf"head\.{head}\.conv\.(\d)\.(\w+)", name):  # each a ReLU apart
            return f"{ours}.tower.{int(found[1]) // 2}.conv.{found[2]}"
    return None


def permute_channels(
    tensor: Tensor, anchors: list[int], classes: list[int] | None = None
) -> Tensor:
    """(a * D, ...) channels of a predicting convolution, anchors and outputs in this order."""
    tensor = tensor.unflatten(0, (len(anchors), -1))[anchors]  # (a, D, ...)
    return (tensor if classes is None else tensor[:, classes]).flatten(0, 1)


def rgb(values: tuple[float, ...]) -> tuple[float, ...]:
    """Mean or std of pixels in 0..255 as one of pixels in 0..1, as red, green, blue are here."""
    return tuple(round(value / 255, 8) for value in values)


def detectron2(state: State, source: str) -> Converted:
    """detectron2's RetinaNet, or its conversion of torchvision's ImageNet backbones.

    A detector's `pixel_std` of 1 tells the MSRA backbone (the usual one), whose blocks stride in
    the first 1x1; without it that backbone is assumed.
    """
    head = any(name.startswith("head.") for name in state)
    detector = any(name.startswith("backbone.") for name in state)
    mean, std = (
        tuple(round(float(v), 4) for v in state[name].flatten()) if name in state else default
        for name, default in (("pixel_mean", D2_MEAN), ("pixel_std", ONES))
    )
    towers = sorted(
        {
            (int(found[1]), value.dim())
            for name, value in state.items()
            if (found := re.fullmatch(r"head\.cls_subnet\.(\d+)\.weight", name))
        }
    )
    msra, bgr = detector and std == ONES, detector and mean[0] < mean[2]
    wants = Wants(
        source,
        anchors="exact" if head else None,
        p6="c5" if head else None,
        stride_in_1x1=msra,
        norm_eps=1e-5,
        head_norm=("gn" if any(dim == 1 for _, dim in towers) else "none") if head else None,
        bgr=bgr,
        mean=(mean if bgr else rgb(mean)) if detector else IMAGENET_MEAN,
        std=(std if bgr else rgb(std)) if detector else IMAGENET_STD,
    )
    convs = [index for index, dim in towers if dim == 4]
    prefix = "backbone.bottom_up." if detector else ""
    return _rename(state, wants, lambda name: _from_detectron2(name, prefix, convs))


def _from_detectron2(name: str, prefix: str, convs: list[int]) -> str | None:
    body = name.removeprefix(prefix)
    if found := re.fullmatch(r"(stem|res(\d)\.(\d+))\.(\w+)\.(norm\.)?(\w+)", body):
        block = "" if found[1] == "stem" else f"layer{int(found[2]) - 1}.{found[3]}."
        norm = found[5] is not None
        layer = f"bn{found[4][-1]}" if norm else found[4]
        if found[4] == "shortcut":
            layer = f"downsample.{int(norm)}"
        return f"backbone.{block}{layer}.{found[6]}"
    if found := re.fullmatch(r"backbone\.fpn_(lateral|output)([345])\.(\w+)", name):
        return f"fpn.{found[1]}.{int(found[2]) - 3}.{found[3]}"
    if found := re.fullmatch(r"backbone\.top_block\.(p[67])\.(\w+)", name):
        return f"fpn.{found[1]}.{found[2]}"
    for ours, part, last in (
        ("classification", "cls", "cls_score"),
        ("regression", "bbox", "bbox_pred"),
    ):
        if found := re.fullmatch(rf"head\.{last}\.(\w+)", name):
            return f"{ours}.predict.{found[1]}"
        if found := re.fullmatch(rf"head\.{part}_subnet\.(\d+)\.(\w+)", name):
            index = int(found[1])  # a norm follows its convolution
            conv = index if index in convs else index - 1
            if conv not in convs:
                return None
            layer = "conv" if index in convs else "norm"
            return f"{ours}.tower.{convs.index(conv)}.{layer}.{found[2]}"
    return None


def detectron(state: State, source: str) -> Converted:
    """Detectron's `model_final.pkl` (blobs) and MSRA's ImageNet backbones: names of Caffe2.

    Their norms are affine maps; ResNeXt weights, told by their groups, stride in the 3x3.
    """
    head = any(name.startswith("retnet_") for name in state)
    middle = state.get("res2_0_branch2b_w")
    wants = Wants(
        source,
        anchors="detectron" if head else None,
        ratios=(1.0, 2.0, 0.5),
        p6="c5" if head else None,
        stride_in_1x1=middle is None or middle.shape[0] == middle.shape[1],
        norm_eps=0.0,
        head_norm="none" if head else None,
        bgr=True,
        mean=D1_MEAN,
        std=ONES,
        affine=True,
    )
    converted = _rename(state, wants, _from_detectron)
    converted.unused = [name for name in converted.unused if not name.endswith("_momentum")]
    for name in list(converted.tensors):
        if re.search(r"(bn\d|downsample\.1)\.weight$", name):
            norm, weight = name.removesuffix("weight"), converted.tensors[name]
            converted.tensors[f"{norm}running_mean"] = torch.zeros_like(weight)
            converted.tensors[f"{norm}running_var"] = torch.ones_like(weight)
    return converted


KINDS = {"w": "weight", "b": "bias", "s": "weight"}
BRANCHES = {"2a": "1", "2b": "2", "2c": "3"}


def _from_detectron(name: str) -> str | None:
    if name == "conv1_w":
        return "backbone.conv1.weight"
    if found := re.fullmatch(r"res_conv1_bn_([sb])", name):
        return f"backbone.bn1.{KINDS[found[1]]}"
    if found := re.fullmatch(r"res(\d)_(\d+)_branch(1|2a|2b|2c)(_bn)?_([wsb])", name):
        norm = found[4] is not None
        layer = f"downsample.{int(norm)}"
        if found[3] != "1":
            layer = ("bn" if norm else "conv") + BRANCHES[found[3]]
        return f"backbone.layer{int(found[1]) - 1}.{found[2]}.{layer}.{KINDS[found[5]]}"
    if found := re.fullmatch(r"fpn_inner_res([345])_\d+_sum(?:_lateral)?_([wb])", name):
        return f"fpn.lateral.{int(found[1]) - 3}.{KINDS[found[2]]}"
    if found := re.fullmatch(r"fpn_res([345])_\d+_sum_([wb])", name):
        return f"fpn.output.{int(found[1]) - 3}.{KINDS[found[2]]}"
    if found := re.fullmatch(r"fpn_([67])_([wb])", name):
        return f"fpn.p{found[1]}.{KINDS[found[2]]}"
    if found := re.fullmatch(r"retnet_(cls|bbox)_(?:conv_n(\d)|pred)_fpn\d_([wb])", name):
        head = "classification" if found[1] == "cls" else "regression"
        layer = "predict" if found[2] is None else f"tower.{found[2]}.conv"
        return f"{head}.{layer}.{KINDS[found[3]]}"
    return None
