"""The video networks of the paper: C2D and I3D, ResNet-50 and -101, with non-local blocks.

    network = build_network(Network(inflate="3x1x1", at=["5-block"]), Block(), classes=400)
    logits = network(clips)  # uint8 (B, 3, T, H, W), or normalised floats

"Official" is facebookresearch/video-nonlocal-net, whose models have two forms: `org`, for 32 frames
and more, and `fast`, for 8x8 and 32x4.
"""

from dataclasses import dataclass, field, replace

from .block import Block
from .net.insert import expand, insert, stage_sizes
from .net.norm import freeze_norm
from .net.resnet import BLOCKS, Sizes, VideoNetwork

CHOICES = {
    "depth": tuple(BLOCKS),
    "inflate": ("none", "3x1x1", "3x3x3"),
    "variant": ("org", "fast", "mmaction2"),
    "norm": ("batch", "frozen"),
}


@dataclass
class Network:
    """The network around the blocks; the defaults are the official C2D, Table 1."""

    depth: str = "resnet50"  # resnet50 | resnet101 | small: 0.02 M parameters, for small clips
    inflate: str = "none"  # none: C2D | 3x1x1, 3x3x3: I3D, Table 2e
    # org: the paper's, for 32 frames and more | fast: conv1 and pool1 keep all frames, as in the
    # official 8x8 and 32x4 models and SlowFast | mmaction2: org, but pool1 drops every second frame
    # instead of the greater of two, as in mmaction2's I3D and GluonCV
    variant: str = "org"
    pool1_pad: int = 0  # in space; 0: official models | 1: SlowFast, GluonCV, mmaction2's I3D
    # Where blocks are: behind residual block N, from 0, of a stage, as res4.4; or 1-block, 5-block,
    # 10-block of the paper, Table 2c
    at: list[str] = field(default_factory=list)
    res3_group: int = 0  # block.group of the blocks in res3; 4: official 128x1 and 32x4 models
    dropout: float = 0.5
    norm: str = "batch"  # batch | frozen: fixed, without gradient, as for long clips
    flat_2d: bool = True  # 1xkxk convolutions run as 2-D ones: the same numbers, sooner
    width: int = 8  # of `small`: channels of its stem, at least 8
    mean: list[float] = field(default_factory=lambda: [114.75] * 3)  # levels 0..255 of RGB
    std: list[float] = field(default_factory=lambda: [57.375] * 3)

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"network.{name} is {getattr(self, name)!r}: choose {', '.join(choices)}."
                )
        if self.pool1_pad not in (0, 1):
            raise ValueError(f"network.pool1_pad={self.pool1_pad}: choose 0 or 1.")
        if self.width < 8 or self.width % 2:
            raise ValueError(f"network.width={self.width}: give an even number of at least 8.")
        if self.depth == "small" and (self.variant != "org" or self.pool1_pad):
            raise ValueError(
                f"network.variant={self.variant} and network.pool1_pad={self.pool1_pad} have no "
                "effect with network.depth=small, which has no pool1: give org and 0."
            )
        if self.depth != "small" and self.width != 8:
            raise ValueError(
                f"network.width={self.width} has no effect with network.depth={self.depth}: it is "
                "of network.depth=small; leave it out."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"network.dropout={self.dropout}: give a share from 0 to below 1.")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(
                    f"network.{name}={getattr(self, name)}: give three levels, of red, green, blue."
                )


def build_network(network: Network, block: Block, classes: int) -> VideoNetwork:
    """The network that the options describe, new, with `block` at each place of network.at."""
    made = VideoNetwork(
        sizes_of(network),
        classes,
        inflate=network.inflate,
        dropout=network.dropout,
        flat=network.flat_2d,
        mean=network.mean,
        std=network.std,
    )
    if network.norm == "frozen":
        freeze_norm(made)
    places = expand(network.at, stage_sizes(made))
    if not network.res3_group:
        return insert(made, places, block)
    res3 = [place for place in places if place.startswith("res3.")]
    insert(made, res3, replace(block, group=network.res3_group))
    return insert(made, [place for place in places if place not in res3], block)


def sizes_of(network: Network) -> Sizes:
    """Kernels, strides and widths, Table 1; `small` has three stages and no pool1."""
    blocks = BLOCKS[network.depth]
    if network.depth == "small":
        widths = tuple(network.width // 2 * 2**stage for stage in range(3))
        return Sizes(blocks, widths, (network.width, 5, 5), 1, None, 0)
    stride = 1 if network.variant == "fast" else 2
    # Differs: Table 1 pools 3 frames; the official code, whose counts and weights these are, 2.
    pool1 = {"org": (2, 2), "fast": (1, 1), "mmaction2": (1, 2)}[network.variant]
    return Sizes(blocks, (64, 128, 256, 512), (64, 7, 5), stride, pool1, network.pool1_pad)
