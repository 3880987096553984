"""Weight files of others by their names: `convert` gives torchvision's.

Known are torchvision, its R-CNNs and our own checkpoints, SlowFast's 2-D ImageNet models, the
Caffe2 trainer of the paper's time, and Detectron's or MSRA's backbones. Whatever the order of a
file's pixels, the converted network reads red, green, blue in 0..1.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass, field

import torch

from common.weights.formats import State, few

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
D1_MEAN = (102.9801, 115.9465, 122.7717)  # blue, green, red in 0..255
# Caffe2 kept the variance where the name says inverse variance.
BLOBS = {"w": "weight", "s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
NORM = r"_(s|b|rm|riv)"


@dataclass
class Converted:
    """Tensors under torchvision's names, and what they expect of the network and the pixels.

    mean, std: of red, green, blue in 0..1. told: the file is of a trainer with that mean and std;
        else it may be of any.
    """

    tensors: State
    source: str
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    told: bool = True
    stride_in_1x1: bool = False
    affine: bool = False  # norms are affine maps, the statistics of activations are folded in
    unused: list[str] = field(default_factory=list)


def convert(state: State, source: str = "the file") -> Converted:
    """Recognise a format by its names and give torchvision's; ValueError where none fits."""
    if "layer1.0.conv1.weight" in state:
        return Converted(dict(state), f"{source} (torchvision's names)", told=False)
    if "backbone.body.conv1.weight" in state:
        return _rcnn(state, f"{source} (torchvision detector)")
    if "s1.pathway0_stem.conv.weight" in state:
        return _slowfast(state, f"{source} (SlowFast)")
    if "comp_0_conv_1_w" in state:
        return _caffe2_trainer(state, f"{source} (Caffe2 trainer)")
    if "res2_0_branch2a_w" in state:
        return _detectron(state, f"{source} (Detectron)")
    raise ValueError(
        f"{source} is in no known format (it holds {few(state, 3)}): "
        "known are torchvision, SlowFast, the Caffe2 trainer, Detectron and this folder's own."
    )


def _rcnn(state: State, source: str) -> Converted:
    """The backbone. Norms of files with the old names were frozen with eps = 0."""
    converted = _rename(state, source, [(r"backbone\.body\.(.*)", lambda m: m[1])])
    if "backbone.fpn.inner_blocks.0.weight" in state:
        for name in [n for n in converted.tensors if n.endswith("running_var")]:
            weight, var = name.replace("running_var", "weight"), converted.tensors[name]
            converted.tensors[weight] = converted.tensors[weight] * (1 + 1e-5 / var).sqrt()
    return converted


def _slowfast(state: State, source: str) -> Converted:
    """Kernels are 3-D with one frame; a, b and c are the convolutions of a block."""
    patterns = [
        (r"s1\.pathway0_stem\.(conv|bn)\.(\w+)", lambda m: f"{m[1]}1.{m[2]}"),
        (
            r"s(\d)\.pathway0_res(\d+)\.branch1(_bn)?\.(\w+)",
            lambda m: f"layer{int(m[1]) - 1}.{m[2]}.downsample.{int(bool(m[3]))}.{m[4]}",
        ),
        (
            r"s(\d)\.pathway0_res(\d+)\.branch2\.([abc])(_bn)?\.(\w+)",
            lambda m: (
                f"layer{int(m[1]) - 1}.{m[2]}.{'bn' if m[4] else 'conv'}"
                f"{'abc'.index(m[3]) + 1}.{m[5]}"
            ),
        ),
        (r"head\.projection\.(\w+)", lambda m: f"fc.{m[1]}"),
    ]
    converted = _rename(state, source, patterns)
    for name, value in converted.tensors.items():
        if value.dim() == 5:
            if value.shape[2] != 1:
                raise ValueError(f"{source}: {name} spans {value.shape[2]} frames, not one image.")
            converted.tensors[name] = value.squeeze(2)
    return converted


def _caffe2_trainer(state: State, source: str) -> Converted:
    """Blocks are counted through the network; one with a projection starts a stage."""
    found = (re.fullmatch(r"shortcut_projection_(\d+)_w", name) for name in state)
    starts = sorted({0, *(int(m[1]) for m in found if m)})

    def block(number: str) -> str:
        stage = bisect_right(starts, int(number))
        return f"layer{stage}.{int(number) - starts[stage - 1]}"

    patterns = [
        (r"conv1_([wb])", lambda m: f"conv1.{BLOBS[m[1]]}"),
        (rf"conv1_spatbn_relu{NORM}", lambda m: f"bn1.{BLOBS[m[1]]}"),
        (r"comp_(\d+)_conv_(\d)_([wb])", lambda m: f"{block(m[1])}.conv{m[2]}.{BLOBS[m[3]]}"),
        (
            rf"comp_(\d+)_spatbn_(\d){NORM}",
            lambda m: f"{block(m[1])}.bn{m[2]}.{BLOBS[m[3]]}",
        ),
        (
            r"shortcut_projection_(\d+)_([wb])",
            lambda m: f"{block(m[1])}.downsample.0.{BLOBS[m[2]]}",
        ),
        (
            rf"shortcut_projection_(\d+)_spatbn{NORM}",
            lambda m: f"{block(m[1])}.downsample.1.{BLOBS[m[2]]}",
        ),
        (r"last_out_L\d+_([wb])", lambda m: f"fc.{BLOBS[m[1]]}"),
    ]
    converted = _rename(state, source, patterns)
    _turn(converted, mean=(128.0,) * 3, std=(128.0,) * 3)
    _fold_biases(converted)
    return converted


def _detectron(state: State, source: str) -> Converted:
    """Norms are affine maps; ResNeXt, told by its groups, strides in the 3x3, ResNet in the 1x1."""
    patterns = [
        (r"conv1_([wb])", lambda m: f"conv1.{BLOBS[m[1]]}"),
        (r"res_conv1_bn_([sb])", lambda m: f"bn1.{BLOBS[m[1]]}"),
        (
            r"res(\d)_(\d+)_branch1(_bn)?_([wsb])",
            lambda m: f"layer{int(m[1]) - 1}.{m[2]}.downsample.{int(bool(m[3]))}.{BLOBS[m[4]]}",
        ),
        (
            r"res(\d)_(\d+)_branch2([abc])(_bn)?_([wsb])",
            lambda m: (
                f"layer{int(m[1]) - 1}.{m[2]}.{'bn' if m[4] else 'conv'}"
                f"{'abc'.index(m[3]) + 1}.{BLOBS[m[5]]}"
            ),
        ),
        (r"(?:fc1000|pred)_([wb])", lambda m: f"fc.{BLOBS[m[1]]}"),
    ]
    converted = _rename(state, source, patterns)
    middle = converted.tensors.get("layer1.0.conv2.weight")
    converted.stride_in_1x1 = middle is None or middle.shape[0] == middle.shape[1]
    _turn(converted, mean=D1_MEAN, std=(1.0,) * 3)
    converted.affine = True
    for name in [n for n in converted.tensors if re.search(r"(bn\d|downsample\.1)\.weight$", n)]:
        scale, prefix = converted.tensors[name], name.removesuffix("weight")
        converted.tensors[f"{prefix}running_mean"] = torch.zeros_like(scale)
        converted.tensors[f"{prefix}running_var"] = torch.full_like(scale, 1 - 1e-5)  # + eps = 1
    _fold_biases(converted)
    return converted


def _rename(state: State, source: str, patterns: list) -> Converted:
    """Names that match a pattern (regular expression, new name of the match); others are unused."""
    converted = Converted({}, source)
    for name, value in state.items():
        matches = ((re.fullmatch(pattern, name), rename) for pattern, rename in patterns)
        found = next(((match, rename) for match, rename in matches if match), None)
        if found is None:
            converted.unused.append(name)
        else:
            converted.tensors[found[1](found[0])] = value
    return converted


def _turn(converted: Converted, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """From blue, green, red in 0..255 to the pixels that this folder reads."""
    if "conv1.weight" in converted.tensors:
        converted.tensors["conv1.weight"] = converted.tensors["conv1.weight"].flip(1)
    converted.mean, converted.std = (
        tuple(round(value / 255, 8) for value in values[::-1]) for values in (mean, std)
    )


def _fold_biases(converted: Converted) -> None:
    """A convolution's bias before a norm only shifts the mean that the norm subtracts."""
    tensors = converted.tensors
    for name in [n for n in tensors if re.search(r"(conv\d|downsample\.0)\.bias$", n)]:
        norm = name.replace("conv", "bn").replace("downsample.0", "downsample.1")
        mean = norm.removesuffix("bias") + "running_mean"
        if mean in tensors:
            tensors[mean] = tensors[mean] - tensors.pop(name)
