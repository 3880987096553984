"""Weight files of others in our names.

Known are the official Caffe2 pickles (facebookresearch/video-nonlocal-net, and SlowFast's older
files), SlowFast, mmaction2, GluonCV's torch models and torchvision's ResNets. A file is told by its
names; what they do not tell is in the notes of what `convert` returns.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import torch

from common.weights.formats import State

EPS = 1e-5  # of batch norm
FAIR = {"network.mean": (114.75,) * 3, "network.std": (57.375,) * 3}
IMAGENET = {"network.mean": (123.675, 116.28, 103.53), "network.std": (58.395, 57.12, 57.375)}
LICENCE = "The official weights are under CC-BY-NC 4.0: not for commercial use."
DEPTHS = {6: "resnet50", 23: "resnet101"}  # by the blocks of res4
NORMS = ("bn1", "bn2", "bn3", "downsample.1", "nl.bn")
# Counters, optimizers' state, what is there twice (GluonCV), pixels (mmaction2)
DROPPED = re.compile(
    r".*num_batches_tracked|.*_momentum|lr|model_iter|head\.1\..*|.*\.(W_bn|sub_phi|sub_g)\..*"
    r"|data_preprocessor\..*"
)
TORCH = {word: f".{word}" for word in ("weight", "bias", "running_mean", "running_var")}


@dataclass(frozen=True)
class Family:
    """Names of a family, as pairs of ours and theirs without the last word such as `weight`.

    stem: what is there once. block: what residual block {i} of a stage has, whose number is {s}
    from 1, {k} from 2, {t} from 0. convolution, norm: the last words.
    """

    name: str
    stem: dict[str, str]
    block: list[tuple[str, str]]
    convolution: dict[str, str] = field(default_factory=lambda: TORCH)
    norm: dict[str, str] = field(default_factory=lambda: TORCH)

    def names(self) -> dict[str, str]:
        """Our names by theirs, of all networks up to ResNet-101 with blocks anywhere."""
        parts = [*self.stem.items()]
        for stage, count in enumerate((3, 4, 23, 3), 1):
            for number in range(count):
                at = {"s": stage, "k": stage + 1, "t": stage - 1, "i": number}
                parts += [
                    (f"layer{stage}.{number}.{ours}", theirs.format(**at))
                    for ours, theirs in self.block
                ]
        return {
            theirs + last: ours if ours.endswith(".w_f") else f"{ours}.{word}"
            for ours, theirs in parts
            for word, last in (self.norm if ours.endswith(NORMS) else self.convolution).items()
        }


def block_names(
    convolution: str, norm: str, shortcut: tuple[str, str], blocks: dict[str, str]
) -> list[tuple[str, str]]:
    """Pairs of `Family.block`; {j} of the three convolutions is 1, 2, 3, {a} is a, b, c."""
    pairs = [("downsample.0", shortcut[0]), ("downsample.1", shortcut[1])]
    for number, letter in enumerate("abc", 1):
        for ours, theirs in (("conv", convolution), ("bn", norm)):
            filled = theirs.replace("{j}", str(number)).replace("{a}", letter)
            pairs.append((f"{ours}{number}", filled))
    return [*pairs, *((f"nl.{ours.split()[0]}", theirs) for ours, theirs in blocks.items())]


CAFFE2 = Family(
    "Caffe2",
    {"conv1": "conv1", "bn1": "res_conv1_bn", "fc": "pred"},
    block_names(
        "res{k}_{i}_branch2{a}",
        "res{k}_{i}_branch2{a}_bn",
        ("res{k}_{i}_branch1", "res{k}_{i}_branch1_bn"),
        {ours: f"nonlocal_conv{{k}}_{{i}}_{ours}" for ours in ("theta", "phi", "g", "out", "bn")},
    ),
    {"weight": "_w", "bias": "_b"},
    {"weight": "_s", "bias": "_b", "running_mean": "_rm", "running_var": "_riv"},  # the variance
)
S, N = "s{k}.pathway0_res{i}.", "s{k}.pathway0_nonlocal{i}."
SLOWFAST = Family(
    "SlowFast",
    {"conv1": "s1.pathway0_stem.conv", "bn1": "s1.pathway0_stem.bn", "fc": "head.projection"},
    block_names(
        S + "branch2.{a}",
        S + "branch2.{a}_bn",
        (S + "branch1", S + "branch1_bn"),
        {ours: f"{N}conv_{ours}" for ours in ("theta", "phi", "g", "out")}
        | {"bn": N + "bn", "bn of older ones": N + "norm"},
    ),
)
M, N = "backbone.layer{s}.{i}.", "backbone.layer{s}.{i}.non_local_block."
MMACTION2 = Family(
    "mmaction2",
    {"conv1": "backbone.conv1.conv", "bn1": "backbone.conv1.bn", "fc": "cls_head.fc_cls"},
    block_names(
        M + "conv{j}.conv",
        M + "conv{j}.bn",
        (M + "downsample.conv", M + "downsample.bn"),
        {
            "theta": N + "theta.conv",
            "phi": N + "phi.0.conv",  # before its pool
            "phi without a pool": N + "phi.conv",
            "g": N + "g.0.conv",
            "g without a pool": N + "g.conv",
            "w_f": N + "concat_project.conv",
            "out": N + "conv_out.conv",
            "bn": N + "conv_out.bn",
        },
    ),
)
G, N = "res_layers.{t}.{i}.", "res_layers.{t}.{i}.nonlocal_block."
GLUONCV = Family(
    "GluonCV",
    {"conv1": "first_stage.0", "bn1": "first_stage.1", "fc": "fc"},
    block_names(
        G + "conv{j}",
        G + "bn{j}",
        (G + "downsample.0", G + "downsample.1"),
        {ours: N + ours for ours in ("theta", "phi", "g", "bn")} | {"out": N + "W"},
    ),
)
FAMILIES = (CAFFE2, SLOWFAST, MMACTION2, GLUONCV)


@dataclass
class Converted:
    """Tensors by our names, and what they want of the network.

    wants: values that an option may have, by its dotted name. partial: the file need not have a
    classifier. notes: sentences for whoever loads it. unused: names that have no place.
    """

    tensors: State
    source: str
    wants: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    partial: bool = False
    notes: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def convert(state: State, source: str) -> Converted:
    """Recognise a family by its names; ValueError where none fits."""
    state = {name: value for name, value in state.items() if not DROPPED.fullmatch(name)}
    family = find_family(state, source)
    if family is None:
        found = Converted(state, source)
    else:
        names = family.names()
        tensors = {names[name]: value for name, value in state.items() if name in names}
        unused = [name for name in state if name not in names]
        found = Converted(tensors, f"{source} ({family.name})", unused=unused)
        complete_norms(found)
        want_habits(found, family, pooled=not any(".phi.conv" in name for name in state))
    if found.tensors["conv1.weight"].ndim == 4 and family is not MMACTION2:
        # An image network, whose classes are others
        tensors = without(found.tensors, "fc.")
        found = Converted(tensors, found.source, {}, True, [n for n in found.notes if n == LICENCE])
    found.wants |= structure(found.tensors)
    return found


def find_family(state: State, source: str) -> Family | None:
    """The family of a file, None for our and torchvision's names; ValueError where none fits."""
    if {"conv1.weight", "layer1.0.conv1.weight"} <= set(state):
        return None
    if any("pathway1" in name or name.startswith("t_res") for name in state):
        raise ValueError(f"{source} is a SlowFast of two pathways: give a C2D or an I3D.")
    for family in FAMILIES:
        if family.stem["conv1"] + family.convolution["weight"] in state:
            return family
    raise ValueError(
        f"{source} is in no known format (it holds {', '.join(list(state)[:3])}): known are "
        "checkpoints of this folder, video-nonlocal-net, SlowFast, mmaction2, GluonCV and "
        "torchvision's ResNets."
    )


def complete_norms(found: Converted) -> None:
    """Give the statistics to norms that are affine maps alone, as long clips start from.

    The classifier is absent in files that were made for that.
    """
    norms = {name.removesuffix("weight") for name in found.tensors if name.endswith("weight")}
    affine = [
        norm
        for norm in norms
        if norm.removesuffix(".").endswith(NORMS) and f"{norm}running_mean" not in found.tensors
    ]
    for norm in affine:
        weight = found.tensors[f"{norm}weight"]
        found.tensors[f"{norm}running_mean"] = torch.zeros_like(weight)
        found.tensors[f"{norm}running_var"] = torch.ones_like(weight) - EPS
    if "bn1." in affine:
        found.partial = True
        found.wants["network.norm"] = ("frozen",)


def want_habits(found: Converted, family: Family, *, pooled: bool) -> None:
    """What a family's networks have in common; `pooled`: mmaction2's blocks pool their keys."""
    wants: dict[str, Any] = FAIR if family in (CAFFE2, SLOWFAST) else IMAGENET
    blocks = {"block.scale": "sqrt", "block.pool": True, "block.pool_first": True}
    if family is CAFFE2:
        found.notes += [
            LICENCE,
            "Its names do not tell: network.variant=fast is for the official 8x8 and 32x4 models, "
            "org for 32x2 and 128x1; network.res3_group=4 for blocks of 128x1 and 32x4; "
            "network.pool1_pad=1 for files of SlowFast.",
        ]
    elif family is SLOWFAST:
        wants = wants | {"network.variant": "fast", "network.pool1_pad": 1}
        found.notes.append(
            "Its names do not tell C2D_NOPOOL, which has no pool2 as here, from C2D."
        )
    elif family is GLUONCV:
        wants = wants | {"network.variant": "mmaction2", "network.pool1_pad": 1}
        blocks["block.pool"] = False
    elif found.tensors["conv1.weight"].ndim == 4:
        wants = wants | {"network.variant": "fast", "network.pool1_pad": 0}
        found.notes.append("Its names do not tell C2D from TSN and TSM, which are other networks.")
    else:
        wants = wants | {"network.variant": "mmaction2", "network.pool1_pad": 1}
        blocks |= {"block.scale": "none", "block.pool": pooled, "block.pool_first": False}
    found.wants |= {name: (value,) for name, value in wants.items()}
    if any(".nl." in name for name in found.tensors):
        found.wants |= {name: (value,) for name, value in blocks.items()}


def structure(tensors: State) -> dict[str, tuple[Any, ...]]:
    """What shapes and names tell of the network: `wants` of `Converted`."""
    wants: dict[str, tuple[Any, ...]] = {}
    blocks = {name.split(".")[1] for name in tensors if name.startswith("layer3.")}
    if "layer4.0.conv1.weight" not in tensors:
        wants["network.depth"] = ("small",)
    elif len(blocks) in DEPTHS:
        wants["network.depth"] = (DEPTHS[len(blocks)],)
    for number, kind in ((1, "3x1x1"), (2, "3x3x3")):
        kernel = tensors.get(f"layer1.0.conv{number}.weight")
        if kernel is not None and kernel.ndim == 5 and kernel.shape[2] == 3:
            wants["network.inflate"] = (kind,)
    if not places(tensors):
        return wants
    ends = {name.partition(".nl.")[2] for name in tensors}
    if "w_f" in ends:
        wants["block.mode"] = ("concatenation",)
    elif "theta.weight" in ends:
        wants["block.mode"] = ("embedded_gaussian", "dot_product")
    else:
        wants["block.mode"] = ("gaussian",)
    if "bn.running_mean" in ends:
        wants["block.norm"] = ("batch", "none")  # none: it is folded into the last convolution
    else:
        wants["block.norm"] = ("group",) if "bn.weight" in ends else ("none",)
    return wants


def places(tensors: State) -> list[str]:
    """Where the file has non-local blocks, such as res4.4."""
    found = {tuple(name.split(".")[:2]) for name in tensors if ".nl." in name}
    numbers = sorted((int(stage[5:]) + 1, int(number)) for stage, number in found)
    return [f"res{stage}.{number}" for stage, number in numbers]


def without(tensors: State, start: str) -> State:
    """The tensors whose names start otherwise."""
    return {name: value for name, value in tensors.items() if not name.startswith(start)}
