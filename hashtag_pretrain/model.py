"""The paper's networks, Sec. 2, their options, and the memory format that is the faster.

model = build_model(Network("resnext101_32x16d"), classes=1500)
logits = model(normalise(images, network.mean, network.std))      # uint8 (N, 3, H, W) -> (N, V)
features = model.features(...)                                    # (N, D), D = 2048
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed, nn

from .net.resnext import ResNeXt
from .net.small import Small
from .net.swag import SWAG, RegNet, Transformer, build_swag

# Blocks of the four stages, groups, width of a group
RESNEXTS: dict[str, tuple[tuple[int, int, int, int], int, int]] = {
    "resnext101_32x4d": ((3, 4, 23, 3), 32, 4),
    "resnext101_32x8d": ((3, 4, 23, 3), 32, 8),
    "resnext101_32x16d": ((3, 4, 23, 3), 32, 16),
    "resnext101_32x32d": ((3, 4, 23, 3), 32, 32),
    "resnext101_32x48d": ((3, 4, 23, 3), 32, 48),
    "resnext50_32x4d": ((3, 4, 6, 3), 32, 4),
    "resnet50": ((3, 4, 6, 3), 1, 64),
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
WARMUP, TIMED = 3, 20  # steps of `choose_format`


@dataclass
class Network:
    """What is trained, Sec. 2."""

    name: str = "resnext101_32x16d"  # a key of RESNEXTS, a value of SWAG, or small
    width: int = 16  # of small: channels of its stem
    side: int = 224  # of vit_*: pixels of its images, 384 or more in SWAG's E2E
    zero_gamma: bool = True  # gamma of the last norm of each block starts at 0
    fc_std: float = 0.01  # of the last layer's initial weights
    checkpoint: bool = False  # recompute the blocks in the backward pass: a third of time more
    memory_format: str = "auto"  # auto: the faster one of 20 steps | contiguous | channels_last
    compile: bool = False
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # of RGB, 0..1
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])

    def __post_init__(self) -> None:
        """ValueError where an option has no such value."""
        choices = {
            "name": (*RESNEXTS, "small", *SWAG.values()),
            "memory_format": ("auto", *FORMATS),
        }
        for option, allowed in choices.items():
            value = getattr(self, option)
            if value not in allowed:
                raise ValueError(f"network.{option}={value}: choose from {', '.join(allowed)}.")
        if self.checkpoint and self.name in SWAG.values():
            raise ValueError(f"network.checkpoint is not for network.name={self.name}.")
        for option, least in (("width", 1), ("side", 16)):
            if getattr(self, option) < least:
                value = getattr(self, option)
                raise ValueError(f"network.{option}={value}: give {least} or more.")
        if self.fc_std < 0:
            raise ValueError(f"network.fc_std={self.fc_std}: give 0 or more.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"network.mean={self.mean}, network.std={self.std}: give three numbers each, for "
                "red, green and blue, and a std above 0."
            )


def build_model(network: Network, classes: int) -> nn.Module:
    """The network with a last layer `fc` of `classes` outputs, initialised as in Sec. 2.

    `.features` gives the (N, D) that `fc` reads; D is `fc.in_features`. Names are torchvision's.
    """
    model: ResNeXt | Small | RegNet | Transformer
    if network.name in SWAG.values():
        model = build_swag(network.name, network.side, classes)
    elif network.name == "small":
        model = Small(
            network.width,
            classes=classes,
            zero_gamma=network.zero_gamma,
            recompute=network.checkpoint,
        )
    else:
        depths, groups, group_width = RESNEXTS[network.name]
        model = ResNeXt(
            depths,
            groups,
            group_width,
            classes=classes,
            zero_gamma=network.zero_gamma,
            recompute=network.checkpoint,
        )
    nn.init.normal_(model.fc.weight, std=network.fc_std)
    nn.init.zeros_(model.fc.bias)
    return model


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (N, 3, H, W) -> float32, (x / 255 - mean) / std of red, green and blue."""
    shift = torch.tensor(mean, device=images.device).view(3, 1, 1) * 255
    scale = torch.tensor(std, device=images.device).view(3, 1, 1) * 255
    return (images.float() - shift) / scale


def choose_format(
    model: nn.Module, network: Network, shape: Sequence[int], *, amp: bool = False
) -> torch.memory_format:
    """The memory format for `model.to(memory_format=...)` and its images.

    shape: (N, 3, H, W) of a step of one process. amp: bfloat16, as in training. "auto" times
    forward and backward passes of a copy, on all ranks together: wide groups are two to three
    times slower in channels_last on some GPUs, narrow ones faster. Call it before `parallelise`.
    """
    device = next(model.parameters()).device
    # The backward pass of oneDNN's 1x1 convolution of stride 2 in channels_last writes beyond the
    # gradient of 2 to 7 input channels (torch 2.14, CPUs without AVX512).
    refused = device.type == "cpu" and narrowest(model) < 8
    if refused and network.memory_format == "channels_last":
        raise ValueError(
            "network.memory_format=channels_last: on a CPU it wants convolutions of 8 channels a "
            "group or more: give auto or contiguous."
        )
    if refused:
        return torch.contiguous_format
    if network.memory_format != "auto":
        return FORMATS[network.memory_format]
    own = torch.Generator(device)  # the global one belongs to the training
    images = torch.rand(list(shape), device=device, generator=own)
    seconds = torch.tensor(
        [time_steps(model, images.to(memory_format=each), amp=amp) for each in FORMATS.values()],
        device=device,
    )
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(seconds)  # so that all ranks take the same
    return list(FORMATS.values())[int(seconds.argmin())]


def narrowest(model: nn.Module) -> int:
    """The fewest channels that a convolution reads in a group; the stem's images do not count."""
    convolutions = [each for each in model.modules() if isinstance(each, nn.Conv2d)]
    return min((each.in_channels // each.groups for each in convolutions[1:]), default=8)


def time_steps(model: nn.Module, images: Tensor, *, amp: bool = False) -> float:
    """Seconds of TIMED training steps of a copy of the model, in the images' memory format."""
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    # A copy and its gradients are what momentum and gradients take later
    trial = copy.deepcopy(model).to(memory_format=layout).train()
    start = 0.0
    for step in range(WARMUP + TIMED):
        if step == WARMUP:
            wait(images)
            start = time.perf_counter()
        trial.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
            logits = trial(images)
        logits.float().logsumexp(1).mean().backward()
    wait(images)
    return time.perf_counter() - start


def wait(images: Tensor) -> None:
    """Until the images' device has done what it was given."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
