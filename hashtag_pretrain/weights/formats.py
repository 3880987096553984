"""Names and families of weight files: which network a file is of, and our trunk in others' names.

WSL, SWSL, SSL, FixRes and timm all have torchvision's names, and so have SWAG's files there; FixRes
puts `module.` before them.
"""

import re

from common.weights.formats import State, few

from ..model import RESNEXTS
from ..net.swag import SWAG

FORMS = ("torchvision", "detection", "detectron2")  # of `rename_trunk`
COUNTER = "num_batches_tracked"  # of batch norms: no weight
LICENCE = "These weights are under CC-BY-NC 4.0: not for commercial use."
NONCOMMERCIAL = re.compile(
    r"ig_resnext101|semi_(weakly_)?supervised_|fb_(wsl|swsl|ssl)_|resnext_?101_32x48d(_v2)?\.pth|_swag-",
    re.IGNORECASE,
)
REGNET = "trunk_output.block4.block4-0.proj.0.weight"  # as wide as its features
KNOWN = (  # of ResNets, RegNets, vision transformers
    {"conv1.weight", "layer1.0.conv1.weight"},
    {REGNET},
    {"class_token", "conv_proj.weight", "encoder.pos_embedding"},
)

WSL = "https://download.pytorch.org/models/ig_resnext101_"
SEMI = "https://dl.fbaipublicfiles.com/semiweaksupervision/model_files/semi_"
# By the word of `init` and the network; each name ends in the start of the file's SHA-256
URLS = {
    "wsl": {
        "resnext101_32x8d": f"{WSL}32x8-c38310e5.pth",
        "resnext101_32x16d": f"{WSL}32x16-c6f796b0.pth",
        "resnext101_32x32d": f"{WSL}32x32-e4b90b00.pth",
        "resnext101_32x48d": f"{WSL}32x48-3e41cc8a.pth",
    },
    "swsl": {
        "resnet50": f"{SEMI}weakly_supervised_resnet50-16a12f1b.pth",
        "resnext50_32x4d": f"{SEMI}weakly_supervised_resnext50_32x4-72679e44.pth",
        "resnext101_32x4d": f"{SEMI}weakly_supervised_resnext101_32x4-3f87e46b.pth",
        "resnext101_32x8d": f"{SEMI}weakly_supervised_resnext101_32x8-b4712904.pth",
        "resnext101_32x16d": f"{SEMI}weakly_supervised_resnext101_32x16-f3559a9c.pth",
    },
    "ssl": {
        "resnet50": f"{SEMI}supervised_resnet50-08389792.pth",
        "resnext50_32x4d": f"{SEMI}supervised_resnext50_32x4-ddb3e555.pth",
        "resnext101_32x4d": f"{SEMI}supervised_resnext101_32x4-dc43570a.pth",
        "resnext101_32x8d": f"{SEMI}supervised_resnext101_32x8-2cfe2f8b.pth",
        "resnext101_32x16d": f"{SEMI}supervised_resnext101_32x16-15fffa57.pth",
    },
}


def name_head(tensors: State) -> State:
    """The tensors with `fc` for the last layer of torchvision's transformers."""
    return {name.replace("heads.head.", "fc."): value for name, value in tensors.items()}


def require_known(tensors: State, source: str) -> None:
    """Raise ValueError where a file has not the names of torchvision's networks."""
    if not any(names <= set(tensors) for names in KNOWN):
        raise ValueError(
            f"{source} is in no known format (it holds {few(tensors, 3)}): known are checkpoints "
            "of this folder and files with torchvision's names, as of WSL, SWSL, SSL, FixRes, timm "
            "and torchvision's files of SWAG."
        )


def find_network(tensors: State) -> str:
    """The options that make the network of these tensors; empty where none do."""
    if REGNET in tensors:
        name = SWAG.get(len(tensors[REGNET]))
        return f"network.name={name}" if name else ""
    if "class_token" in tensors:
        patch, places = tensors["conv_proj.weight"].shape[-1], tensors["encoder.pos_embedding"]
        name = SWAG.get(places.shape[2], "")
        side = round((places.shape[1] - 1) ** 0.5) * patch
        return f"network.name={name} network.side={side}" if name.endswith(f"_{patch}") else ""
    stages = [
        len({name.split(".")[1] for name in tensors if name.startswith(f"layer{stage}.")})
        for stage in (1, 2, 3, 4)
    ]
    stem, kernel = tensors["conv1.weight"], tensors.get("layer1.0.conv2.weight")
    if stages == [1, 1, 0, 0] and stem.shape[2:] == (5, 5):
        return f"network.name=small network.width={len(stem)}"
    for name, (depths, groups, width) in RESNEXTS.items():
        fits = kernel is not None and kernel.shape[:2] == (groups * width, width)
        if fits and stages == list(depths) and "layer1.0.conv3.weight" in tensors:
            return f"network.name={name}"
    return ""


def rename_trunk(state: State, form: str) -> State:
    """Our tensors without the last layer, named for `form`.

    torchvision: a ResNet's names. detection: of torchvision's detectors, whose frozen norms count
    no batches. detectron2: of its ResNets, before `backbone.bottom_up.`.
    """
    if form not in FORMS:
        raise ValueError(f"form={form}: choose from {', '.join(FORMS)}.")
    if form != "torchvision" and "conv1.weight" not in state:
        raise ValueError(f"form={form} is for ResNets: give form=torchvision.")
    trunk = {name: value for name, value in state.items() if not name.startswith("fc.")}
    if form == "torchvision":
        return trunk
    trunk = {name: value for name, value in trunk.items() if not name.endswith(COUNTER)}
    if form == "detection":
        return {f"backbone.body.{name}": value for name, value in trunk.items()}
    return {detectron2_name(name): value for name, value in trunk.items()}


def detectron2_name(name: str) -> str:
    """layer1.0.bn2.weight -> res2.0.conv2.norm.weight."""
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    return name if name.startswith("res") else f"stem.{name}"
