"""Start from the classification weights of others, and hand ours on, in torchvision's names.

    report = initialise(net, "R50_IN1K.pyth")     # or "imagenet": torchvision's, downloaded once
    print(report)                                 # what came from where, what pixels it wants
    save_backbone(net, "resnet50.pt")             # torchvision.models.resnet50() loads it strictly

`formats.py` knows the names.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_model_weights

from common.run.sealed import write
from common.weights.formats import Report, State, converting, misfits, read

from ..model import Bottleneck
from .formats import MEAN, STD, Converted, convert

DOWNLOADS = {"imagenet": "IMAGENET1K_V1", "imagenet-v2": "IMAGENET1K_V2"}


def initialise(
    model: nn.Module,
    source: str | Path,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Report:
    """Load weights into a network of `resnet`, whatever their format, and report.

    source: a file (.pt, .pth, .pyth, .pkl), or "imagenet" or "imagenet-v2": torchvision's first or
        second weights of this network.
    mean, std: of the data's pixels, red, green, blue in 0..1. ValueError with those to set where
        the weights are known to be trained on others.

    A last layer for other classes stays as initialised. Weights with stride 2 in the 1x1
    convolutions move the model's strides there. ValueError where the weights are of another
    network; then nothing is changed.
    """
    if str(source) in DOWNLOADS:
        if getattr(model, "name", "mini") == "mini":
            raise ValueError(f'the "mini" network has no weights {source}: leave init empty.')
        weights = get_model_weights(str(model.name))
        state = weights[DOWNLOADS[str(source)]].get_state_dict(check_hash=True)
    else:
        state = read(source)
    with converting(source):
        converted = convert(state, str(source))
    notes = [_require_pixels(converted, mean, std)]
    tensors, own = converted.tensors, model.state_dict()
    if "fc.weight" not in tensors or tensors["fc.weight"].shape != own["fc.weight"].shape:
        theirs = tensors["fc.weight"].shape[:1].numel() if "fc.weight" in tensors else "no"
        notes.append(
            f"The file has {theirs} classes, the model {len(own['fc.weight'])}: its last layer "
            "stays as initialised."
        )
        tensors = {name: t for name, t in tensors.items() if not name.startswith("fc.")}
    _require(own, tensors, converted.source)
    if converted.stride_in_1x1:
        _stride_in_1x1(model)
        notes.append("Stride 2 of the blocks is moved to their first convolution, as trained.")
    if converted.affine:
        notes.append(
            "The file has no statistics of activations: its norms are affine maps, which evaluate "
            "correctly but cannot go on training with batch statistics."
        )
    model.load_state_dict(tensors, strict=False)
    return Report(converted.source, len(tensors), unused=converted.unused, notes=notes)


def _require_pixels(converted: Converted, mean: Sequence[float], std: Sequence[float]) -> str:
    """What the weights want of the pixels; ValueError where the data is known to give others."""
    shown = [f"[{','.join(map(str, values))}]" for values in (converted.mean, converted.std)]
    pairs = zip((*converted.mean, *converted.std), (*mean, *std), strict=False)
    if converted.told and not all(math.isclose(a, b, rel_tol=1e-4) for a, b in pairs):
        raise ValueError(
            f"{converted.source} wants other pixels than the data gives: set data.mean={shown[0]} "
            f"data.std={shown[1]}"
        )
    if not converted.told:
        return f"torchvision's weights want pixels of data.mean={shown[0]} data.std={shown[1]}."
    return f"They want pixels of data.mean={shown[0]} data.std={shown[1]}, as the data gives."


def _require(own: State, tensors: State, source: str) -> None:
    """Stop where names or shapes are of another network."""
    wanted = {n: value for n, value in own.items() if n in tensors or not n.startswith("fc.")}
    if found := misfits(wanted, tensors):
        raise ValueError(
            f"{source} does not fit the model: {found}. Name the file's network as model.name."
        )


def _stride_in_1x1(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Bottleneck) and module.stride == 2:
            module.conv1.stride, module.conv2.stride = (2, 2), (1, 1)


def save_backbone(
    model: nn.Module, path: str | Path, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> None:
    """Write {"state_dict", "meta"}: torchvision's names, and what else a reader must know.

    The file appears whole or not at all. "meta" tells the channels' order, mean and std of the
    pixels, and that stride 2 of a bottleneck is in its 3x3 convolution. ValueError for a model
    whose strides `initialise` moved: torchvision's would compute something else.
    """
    blocks = [module for module in model.modules() if isinstance(module, Bottleneck)]
    if any(block.conv1.stride != (1, 1) for block in blocks):
        raise ValueError("stride 2 is in the 1x1 convolutions: torchvision has no such network.")
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    meta = {
        "name": getattr(model, "name", ""),
        "channels": "RGB",
        "range": [0.0, 1.0],
        "mean": list(mean),
        "std": list(std),
        "stride_in_3x3": True,
    }
    write(Path(path), lambda file: torch.save({"state_dict": state, "meta": meta}, file))
