"""Networks that give what the merge needs: instances and a semantic map, of the same image.

    network = build(Options("panoptic_fpn"), thing_classes=80, stuff_classes=53)  # two heads
    network = build(Options("separate"), thing_classes=80, stuff_classes=53)  # the paper's pair
    loss = sum(network(images, targets).values())
    predictions = network.eval()(images, sizes=[(480, 640), ...])             # -> merge.py

Legend: N images of H x W pixels, M instances in one, T thing and S stuff classes. Labels of
instances are 0..T-1. The semantic classes of `PanopticFPN` are 0 for any thing and 1..S for stuff,
those of `Separate` all T + S: `network.semantic_labels` names the kind. 255 is void.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from .net import padding
from .net.instance import MaskRCNN, Sizes
from .net.padding import Prediction, Result, Size, Targets, Wanted
from .net.pspnet import PSPNet
from .net.semantic_fpn import SemanticFPN

NETWORKS = ("panoptic_fpn", "separate")
PARTS = ("semantic", "instance", "both")


@dataclass
class Options:
    """What a network is like; D2 is detectron2's COCO recipe, PSP is arXiv 1612.01105."""

    name: str = "panoptic_fpn"  # panoptic_fpn: one network | separate: the paper's pair, Sec. 7
    backbone: str = "resnet50"  # resnet18..152, resnext..., mini
    norm: str = "frozen"  # of Mask R-CNN's backbone: frozen (D2) | bn | gn
    freeze_at: int = 2  # D2: the stem and the first stage stay as they were pre-trained
    stride_in_1x1: bool = False  # True for D2's weights, False for torchvision's
    aligned: bool = True  # geometry of regions: True as in D2, False as in torchvision
    semantic_weight: float = 0.5  # of panoptic_fpn's semantic loss, D2
    semantic_norm: str = "bn"  # of PSPNet: frozen | bn | gn
    dropout: float = 0.1  # of PSPNet
    auxiliary_weight: float = 0.4  # of PSPNet's auxiliary loss, PSP 3.3
    part: str = "both"  # of separate: semantic | instance | both

    def __post_init__(self) -> None:
        if self.name not in NETWORKS:
            raise ValueError(f"name = {self.name!r} is not one of {', '.join(NETWORKS)}.")
        if self.part not in PARTS:
            raise ValueError(f"part = {self.part!r} is not one of {', '.join(PARTS)}.")
        if self.part != "both" and self.name != "separate":
            raise ValueError(
                f'part = {self.part!r} is for name "separate": Panoptic FPN is one network.'
            )


def build(
    options: Options, *, thing_classes: int, stuff_classes: int, sizes: Sizes | None = None
) -> "PanopticFPN | Separate":
    """The network that the options name; sizes: as `MaskRCNN` takes them.

    Raises ValueError for options that do not suit the backbone.
    """
    network = PanopticFPN if options.name == "panoptic_fpn" else Separate
    return network(options, thing_classes=thing_classes, stuff_classes=stuff_classes, sizes=sizes)


def _mask_rcnn(options: Options, thing_classes: int, sizes: Sizes | None) -> MaskRCNN:
    return MaskRCNN(
        thing_classes=thing_classes,
        backbone=options.backbone,
        norm=options.norm,
        freeze_at=options.freeze_at,
        stride_in_1x1=options.stride_in_1x1,
        aligned=options.aligned,
        sizes=sizes,
    )


class PanopticFPN(nn.Module):
    """Mask R-CNN with a semantic branch on its pyramid, as detectron2 has it (arXiv 1901.02446).

    The paper has no network of its own; this is the smallest that gives both outputs. The part
    `instance`, also by its parameters' names, is `MaskRCNN`.
    """

    semantic_labels = "stuff"  # `targets.Labels.semantic`: class 0 is any thing

    def __init__(
        self,
        options: Options,
        *,
        thing_classes: int,
        stuff_classes: int,
        sizes: Sizes | None = None,
    ):
        super().__init__()
        if not 0 <= stuff_classes <= 254:
            raise ValueError(f"stuff_classes is {stuff_classes}: choose 0 to 254; 255 is void.")
        self.thing_classes, self.stuff_classes = thing_classes, stuff_classes
        self.semantic_classes, self.semantic_weight = stuff_classes + 1, options.semantic_weight
        self.instance = _mask_rcnn(options, thing_classes, sizes)
        self.labelled = torch.tensor(0)  # pixels of the last batch that are not void
        widths = self.instance.sizes
        self.sem_seg_head = SemanticFPN(
            widths.channels,
            self.semantic_classes,
            strides=self.instance.backbone.body.strides,
            channels=widths.semantic_channels,
            groups=widths.semantic_groups,
        )

    def forward(
        self, images: Sequence[Tensor], targets: Targets = None, *, sizes: Wanted = None
    ) -> Result:
        """`MaskRCNN.forward`, and with it the semantic branch.

        targets: besides the instances `semantic` (H, W): 0 any thing, 1..S stuff, 255 void.
        Losses: one more, `semantic`, with its weight in it. Predictions: one more, `semantic`
        logits (1 + S, *size).
        """
        network = self.instance
        if not self.training:
            size, device = network.divisible, network.device
            return padding.predict_by_size(images, sizes, self._predict, size, device)
        truth = padding.check_targets(
            images,
            targets,
            network.device,
            things=self.thing_classes,
            classes=self.semantic_classes,
        )
        batch = padding.pad(images, network.divisible, network.device)
        self.labelled = padding.count_labelled(truth)
        features = network.backbone(batch.tensors)
        semantic = padding.semantic_loss(self.semantic_logits(features), truth)
        losses = network.instance_losses(batch, features, truth)
        return losses | {"semantic": self.semantic_weight * semantic}

    def _predict(self, batch: ImageList, sizes: Sequence[Size]) -> list[Prediction]:
        features = self.instance.backbone(batch.tensors)
        found = self.instance.detect(batch, features, sizes)
        logits = self.semantic_logits(features)
        return [
            one | {"semantic": padding.crop_and_resize(semantic, own, size)}
            for one, semantic, own, size in zip(
                found, logits, batch.image_sizes, sizes, strict=True
            )
        ]

    @property
    def counts(self) -> dict[str, Tensor]:
        """What each loss of the last batch is the mean over."""
        return self.instance.counts | {"semantic": self.labelled}

    def semantic_logits(self, features: dict[str, Tensor]) -> Tensor:
        """The pyramid's maps -> (N, 1 + S, H', W'), of the padded images."""
        return self.sem_seg_head([features[str(i)] for i in range(len(self.sem_seg_head.levels))])


class Separate(nn.Module):
    """The paper's pair (Sec. 7): a PSPNet for all classes and a Mask R-CNN, sharing nothing.

    `options.part`: "semantic" or "instance" builds, trains and asks one of the two alone. The
    parameters' names start with `semantic.` and `instance.`, so that the checkpoints of two runs
    together are the pair's.
    """

    semantic_labels = "all"  # `targets.Labels.semantic`: every category is a semantic class

    def __init__(
        self,
        options: Options,
        *,
        thing_classes: int,
        stuff_classes: int,
        sizes: Sizes | None = None,
    ):
        super().__init__()
        self.part = options.part
        self.thing_classes, self.stuff_classes = thing_classes, stuff_classes
        self.semantic_classes = thing_classes + stuff_classes
        self.semantic: PSPNet | None = None
        self.instance: MaskRCNN | None = None
        if self.part != "instance":
            self.semantic = PSPNet(
                self.semantic_classes,
                backbone=options.backbone,
                norm=options.semantic_norm,
                dropout=options.dropout,
                auxiliary_weight=options.auxiliary_weight,
            )
        if self.part != "semantic":
            self.instance = _mask_rcnn(options, thing_classes, sizes)

    def forward(
        self, images: Sequence[Tensor], targets: Targets = None, *, sizes: Wanted = None
    ) -> Result:
        """Losses or predictions of both networks together, as `PanopticFPN` gives them.

        targets: `semantic` (H, W) tells all classes apart here, in 0..T+S-1.
        Predictions of one part alone lack what the other would say.
        """
        networks = [network for network in (self.instance, self.semantic) if network is not None]
        results = [network(images, targets, sizes=sizes) for network in networks]
        if self.training:
            return {name: loss for losses in results for name, loss in losses.items()}
        return [
            {key: value for one in predictions for key, value in one.items()}
            for predictions in zip(*results, strict=True)
        ]

    @property
    def counts(self) -> dict[str, Tensor]:
        """What each loss of the last batch is the mean over."""
        networks = [network for network in (self.instance, self.semantic) if network is not None]
        return {name: count for network in networks for name, count in network.counts.items()}
