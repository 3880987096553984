"""Networks that give what the merge needs: instances and a semantic map, of the same picture.

    network = build("panoptic_fpn", thing_classes=80, stuff_classes=53)   # one network, two heads
    network = build("separate", thing_classes=80, stuff_classes=53)       # the paper's two (Sec. 7)
    loss = sum(network(images, targets).values())
    predictions = network.eval()(images, sizes=[(480, 640), ...])         # -> merge.py

Legend: N pictures of H x W pixels, M instances in one, T thing and S stuff classes. Labels of
instances are 0..T-1. The semantic classes of `PanopticFPN` are 0 for any thing and 1..S for stuff,
those of `Separate` all T + S: `network.semantic_labels` names the kind. 255 is void.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .net.instance import MaskRCNN, Sizes
from .net.padding import (
    Prediction,
    Size,
    Target,
    asked,
    batched,
    checked,
    labelled,
    resized,
    same_size,
    semantic_loss,
)
from .net.pspnet import PSPNet
from .net.semantic_fpn import SemanticFPN

NETWORKS = ("panoptic_fpn", "separate")
PARTS = ("semantic", "instance", "both")


class PanopticFPN(nn.Module):
    """Mask R-CNN with a semantic branch on its pyramid, as detectron2 has it (arXiv 1901.02446).

    The paper has no network of its own; this is the smallest that gives both outputs.

    stuff_classes: S. semantic_weight: of the semantic loss, 0.5 in detectron2's COCO recipe.
    The rest: see `MaskRCNN`, which is the part `instance`, also by its parameters' names.
    """

    semantic_labels = "stuff"  # `targets.Labels.semantic`: class 0 is any thing

    def __init__(
        self,
        *,
        thing_classes: int = 80,
        stuff_classes: int = 53,
        backbone: str = "resnet50",
        norm: str = "frozen",
        freeze_at: int = 2,
        stride_in_1x1: bool = False,
        aligned: bool = True,
        semantic_weight: float = 0.5,
        sizes: Sizes | None = None,
    ):
        super().__init__()
        if not 0 <= stuff_classes <= 254:
            raise ValueError(f"stuff_classes is {stuff_classes}: choose 0 to 254; 255 is void.")
        self.thing_classes, self.stuff_classes = thing_classes, stuff_classes
        self.semantic_classes, self.semantic_weight = stuff_classes + 1, semantic_weight
        self.instance = MaskRCNN(
            thing_classes=thing_classes,
            backbone=backbone,
            norm=norm,
            freeze_at=freeze_at,
            stride_in_1x1=stride_in_1x1,
            aligned=aligned,
            sizes=sizes,
        )
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
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        *,
        sizes: Sequence[Size] | None = None,
    ) -> dict[str, Tensor] | list[Prediction]:
        """`MaskRCNN.forward`, and with it the semantic branch.

        targets: besides the instances `semantic` (H, W): 0 any thing, 1..S stuff, 255 void.
        Losses: one more, `semantic`, with its weight in it. Predictions: one more, `semantic`
        logits (1 + S, *size).
        """
        network = self.instance
        if self.training:
            truth = checked(
                images,
                targets,
                network.device,
                things=self.thing_classes,
                classes=self.semantic_classes,
            )
            batch = batched(images, network.divisible, network.device)
            self.labelled = labelled(truth)
            features = network.backbone(batch.tensors)
            semantic = semantic_loss(self.semantic_logits(features), truth)
            losses = network.instance_losses(batch, features, truth)
            return losses | {"semantic": self.semantic_weight * semantic}
        out: list[Prediction] = [{}] * len(images)
        wanted = asked(images, sizes)
        for group in same_size(images):
            batch = batched([images[i] for i in group], network.divisible, network.device)
            features = network.backbone(batch.tensors)
            found = network.detect(batch, features, [wanted[i] for i in group])
            logits = self.semantic_logits(features)
            for i, one, semantic, own in zip(group, found, logits, batch.image_sizes, strict=True):
                out[i] = one | {"semantic": resized(semantic, own, wanted[i])}
        return out

    @property
    def counts(self) -> dict[str, Tensor]:
        """What each loss of the last batch is the mean over."""
        return self.instance.counts | {"semantic": self.labelled}

    def semantic_logits(self, features: dict[str, Tensor]) -> Tensor:
        """The pyramid's maps -> (N, 1 + S, H', W'), of the padded pictures."""
        return self.sem_seg_head([features[str(i)] for i in range(len(self.sem_seg_head.levels))])


class Separate(nn.Module):
    """The paper's pair (Sec. 7): a PSPNet for all classes and a Mask R-CNN, sharing nothing.

    part: "semantic" or "instance" builds, trains and asks one of the two alone; "both" both. The
        parameters' names start with `semantic.` and `instance.`, so that the checkpoints of two
        runs together are the pair's.
    norm, freeze_at, stride_in_1x1, aligned: of Mask R-CNN. semantic_norm: of PSPNet.
    """

    semantic_labels = "all"  # `targets.Labels.semantic`: every category is a semantic class

    def __init__(
        self,
        *,
        thing_classes: int = 80,
        stuff_classes: int = 53,
        backbone: str = "resnet50",
        norm: str = "frozen",
        freeze_at: int = 2,
        stride_in_1x1: bool = False,
        aligned: bool = True,
        semantic_norm: str = "bn",
        dropout: float = 0.1,
        auxiliary_weight: float = 0.4,
        part: str = "both",
        sizes: Sizes | None = None,
    ):
        super().__init__()
        if part not in PARTS:
            raise ValueError(f"part = {part!r} is not one of {', '.join(PARTS)}.")
        self.part = part
        self.thing_classes, self.stuff_classes = thing_classes, stuff_classes
        self.semantic_classes = thing_classes + stuff_classes
        self.semantic: PSPNet | None = None
        self.instance: MaskRCNN | None = None
        if part != "instance":
            self.semantic = PSPNet(
                self.semantic_classes,
                backbone=backbone,
                norm=semantic_norm,
                dropout=dropout,
                auxiliary_weight=auxiliary_weight,
            )
        if part != "semantic":
            self.instance = MaskRCNN(
                thing_classes=thing_classes,
                backbone=backbone,
                norm=norm,
                freeze_at=freeze_at,
                stride_in_1x1=stride_in_1x1,
                aligned=aligned,
                sizes=sizes,
            )

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        *,
        sizes: Sequence[Size] | None = None,
    ) -> dict[str, Tensor] | list[Prediction]:
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


def build(
    name: str = "panoptic_fpn",
    *,
    thing_classes: int = 80,
    stuff_classes: int = 53,
    backbone: str = "resnet50",
    norm: str = "frozen",
    freeze_at: int = 2,
    stride_in_1x1: bool = False,
    aligned: bool = True,
    semantic_weight: float = 0.5,
    semantic_norm: str = "bn",
    dropout: float = 0.1,
    auxiliary_weight: float = 0.4,
    part: str = "both",
) -> PanopticFPN | Separate:
    """The network called `name`: "panoptic_fpn" or "separate"; backbone "mini" makes it small.

    semantic_weight concerns the first alone; semantic_norm, dropout, auxiliary_weight and part the
    second. Raises ValueError for a name that is neither, or options that do not suit the backbone.
    """
    if name not in NETWORKS:
        raise ValueError(f"name = {name!r} is not one of {', '.join(NETWORKS)}.")
    if name == "separate":
        return Separate(
            thing_classes=thing_classes,
            stuff_classes=stuff_classes,
            backbone=backbone,
            norm=norm,
            freeze_at=freeze_at,
            stride_in_1x1=stride_in_1x1,
            aligned=aligned,
            semantic_norm=semantic_norm,
            dropout=dropout,
            auxiliary_weight=auxiliary_weight,
            part=part,
        )
    if part != "both":
        raise ValueError(f'part = {part!r} is for name "separate": Panoptic FPN is one network.')
    return PanopticFPN(
        thing_classes=thing_classes,
        stuff_classes=stuff_classes,
        backbone=backbone,
        norm=norm,
        freeze_at=freeze_at,
        stride_in_1x1=stride_in_1x1,
        aligned=aligned,
        semantic_weight=semantic_weight,
    )
