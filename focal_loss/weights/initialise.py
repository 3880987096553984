"""Start from the weights of others: torchvision, detectron2, Detectron, MSRA.

    report = initialise(model, "model_final.pkl")    # or "imagenet", or a checkpoint of this folder
    print(report)                                    # what came from where, what pixels it wants

`formats.py` knows the names; here the tensors find their places: channels in the model's order of
anchors and classes, norms in the model's eps. Nothing is changed before everything fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_model_weights
from torchvision.ops import FrozenBatchNorm2d

from common.weights import formats
from common.weights.formats import COCO_IDS, converting, misfits, read

from ..model import RetinaNet
from ..net.anchors import Anchors
from .formats import Converted, State, Wants, convert, permute_channels, rgb


@dataclass
class Report(formats.Report):
    """And the pixels that the weights want."""

    wants: Wants = field(kw_only=True)


def initialise(
    model: RetinaNet,
    source: str | Path,
    category_ids: Sequence[int] | None = None,
    *,
    to_rgb: bool = False,
) -> Report:
    """Load weights into the model, whatever their format, and report.

    source: a file (.pkl, .pth, .pt), or "imagenet": torchvision's backbone, downloaded once.
    category_ids: the data set's category id of each label; COCO's 80 let torchvision's 91
        classifier channels find theirs.
    to_rgb: reverse the first convolution's input channels, so that weights made for blue, green,
        red take red, green, blue.

    Weights of a backbone leave the rest as it is, those of torchvision's Faster, Mask and Keypoint
    R-CNN give backbone and pyramid; weights for other classes or anchors leave the predicting
    convolutions as they are. The report says so. ValueError names the option to change where the
    weights need another network.
    """
    state = _imagenet(model) if str(source) == "imagenet" else read(source)
    with converting(source):
        converted = convert(state, str(source))
        report = Report(converted.wants.source, unused=converted.unused, wants=converted.wants)
        _require(model, converted)
        if to_rgb and converted.wants.bgr:
            _turn(converted, report)
        _order_predictions(model, converted, report, category_ids)
        _fold(model, converted, report)
    _load(model, converted, report)
    wants = report.wants
    if wants.mean is not None:
        order, top = ("blue, green, red", 255) if wants.bgr else ("red, green, blue", 1)
        pixels = f"{order} in 0..{top}, mean {wants.mean}, std {wants.std}."
        report.notes.insert(0, f"They want pixels {pixels}")
    return report


def _imagenet(model: RetinaNet) -> State:
    if model.backbone.name == "mini":
        raise ValueError('backbone "mini" has no ImageNet weights: leave init empty.')
    return get_model_weights(model.backbone.name)["IMAGENET1K_V1"].get_state_dict(check_hash=True)


def _require(model: RetinaNet, converted: Converted) -> None:
    """Stop where the weights belong to another network."""
    wants = converted.wants
    if wants.stride_in_1x1 is None and wants.p6 is None:
        return  # our own checkpoint: names and shapes decide
    for option, wanted, value in (
        ("stride_in_1x1", wants.stride_in_1x1, model.backbone.stride_in_1x1),
        ("p6", wants.p6, model.fpn.p6_from),
        ("head_norm", wants.head_norm, model.head_norm),
    ):
        if wanted is not None and wanted != value:
            raise ValueError(
                f"{wants.source} was trained with {option}={wanted}, the model has "
                f"{option}={value}: set model.{option}={wanted}."
            )
    norm = model.backbone.norm
    if norm == "gn" or (wants.affine and norm != "frozen"):
        raise ValueError(
            f"{wants.source} does not fit backbone_norm={norm}: set model.backbone_norm=frozen."
        )


def _turn(converted: Converted, report: Report) -> None:
    """Make the first convolution read red, green, blue."""
    name = "backbone.conv1.weight"
    converted.tensors[name] = converted.tensors[name].flip(1)
    mean, std = converted.wants.mean, converted.wants.std
    assert mean is not None, converted.wants
    assert std is not None, converted.wants
    mean, std = rgb(mean[::-1]), rgb(std[::-1])
    report.wants = replace(converted.wants, bgr=False, mean=mean, std=std)


def _order_predictions(
    model: RetinaNet, converted: Converted, report: Report, category_ids: Sequence[int] | None
) -> None:
    """Put the last convolutions' channels into the model's order, or leave them out."""
    wants, tensors = converted.wants, converted.tensors
    if wants.anchors is None:
        return
    grid = model.anchor_grid
    theirs = Anchors(scales=grid.scales, ratios=wants.ratios, mode=wants.anchors).order
    boxes = tensors["regression.predict.bias"].numel()
    outputs = tensors["classification.predict.bias"].numel() // grid.per_cell
    if set(theirs) != set(grid.order) or boxes // grid.per_cell != model.regression.outputs:
        report.notes.append("The anchors are others: both predicting convolutions start anew.")
        _drop(converted, report, ("classification.predict", "regression.predict"))
        return
    classes = None
    coco = category_ids is not None and list(category_ids) == COCO_IDS
    if outputs == 91 and model.num_classes == 80 and coco and wants.anchors == "torchvision":
        classes = COCO_IDS
    elif outputs != model.classification.outputs:
        report.notes.append(
            f"The file has {outputs} classes, the model {model.classification.outputs}: the "
            "classifier's last convolution starts anew."
        )
        _drop(converted, report, ("classification.predict",))
    order = [theirs.index(anchor) for anchor in grid.order]
    for head, chosen in (("classification", classes), ("regression", None)):
        for kind in ("weight", "bias"):
            name = f"{head}.predict.{kind}"
            if name in tensors:
                tensors[name] = permute_channels(tensors[name], order, chosen)
    if grid.mode != wants.anchors:
        report.notes.append(
            f"They were trained on {wants.anchors} anchors, the model has {grid.mode}: boxes shift "
            f"by up to a pixel; set model.anchors={wants.anchors} for theirs."
        )


def _drop(converted: Converted, report: Report, layers: Sequence[str]) -> None:
    for name in [n for n in converted.tensors if n.rpartition(".")[0] in layers]:
        del converted.tensors[name]
        report.unused.append(name)


def _fold(model: RetinaNet, converted: Converted, report: Report) -> None:
    """Rewrite frozen norms made with another eps as the affine maps they are."""
    eps, tensors = converted.wants.norm_eps, converted.tensors
    names = [name for name in tensors if name.startswith("backbone.")]
    for name in [n.removesuffix("running_var") for n in names if n.endswith("running_var")]:
        module: nn.Module | None = dict(model.named_modules()).get(name.rstrip("."))
        if eps is None or not isinstance(module, FrozenBatchNorm2d) or module.eps == eps:
            continue
        mean, var = tensors[f"{name}running_mean"], tensors[f"{name}running_var"]
        scale = tensors[f"{name}weight"] * (var + eps).rsqrt()
        tensors[f"{name}bias"] = tensors[f"{name}bias"] - mean * scale
        tensors[f"{name}weight"] = scale
        tensors[f"{name}running_mean"] = torch.zeros_like(mean)
        tensors[f"{name}running_var"] = torch.full_like(var, 1 - module.eps)


def _load(model: RetinaNet, converted: Converted, report: Report) -> None:
    """Copy what fits; stop where a shape or the backbone's blocks differ."""
    own, tensors = model.state_dict(), converted.tensors
    blocks = tuple({".".join(n.split(".")[:2]) + "." for n in own if n.startswith("backbone.")})
    counters = "num_batches_tracked"
    given = {
        name: value
        for name, value in tensors.items()
        if name in own or (name.startswith(blocks) and not name.endswith(counters))
    }
    needed = {n: v for n, v in own.items() if n in given or n.startswith("backbone.")}
    if found := misfits(needed, given):
        raise ValueError(
            f"{converted.wants.source} does not fit the model, of backbone {model.backbone.name}: "
            f"{found}. Give it the network of that file, such as model.backbone=resnet101."
        )
    report.kept = [n for n in own if n not in tensors and not n.endswith(counters)]
    surplus = [name for name in tensors if name not in own]
    report.unused += [n for n in surplus if not n.endswith(counters)]
    report.loaded = len(tensors) - len(surplus)
    model.load_state_dict({n: v for n, v in tensors.items() if n in own}, strict=False)
