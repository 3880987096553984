"""Mask weights predicted from box weights: the paper in one file.

Legend: K classes with the background as class 0, N regions, D numbers that describe a class, C
channels of the mask features, M the side of a mask (28 in the paper). A are the classes with masks,
B those with boxes only.

    predictor = MaskPredictor(256, 256, transfer=WeightTransfer(5 * 1024, 256))
    model.roi_heads = MaskXHeads.of(model.roi_heads, predictor, classes_with_masks=A)

turns a stock `torchvision` Mask R-CNN into Mask^X R-CNN. The function T (Sec. 3.2) maps what the
box head has learned about a class to the weights that segment it. It is learned on A and applied to
every class that the box head knows.
"""

import math
from collections.abc import Collection, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops import box_iou, roi_align

INPUTS = ("cls", "box", "cls+box", "embedding")
LAYERS = (1, 2, 3)  # of T and of the MLP
ACTIVATIONS, INITS = ("leaky_relu", "relu"), ("fan_out", "fan_in")  # of T
TRAIN_BOXES, MATCHES = ("proposals", "gt"), ("assigned", "overlap")  # of the mask branch
SLOPE = 0.1  # of LeakyReLU; official code

Targets = list[dict[str, Tensor]]


def detection_weights(box_predictor: nn.Module, inputs: str = "cls+box") -> Tensor:
    """What the box head knows of each class, (K, D) float32; its biases are not used, Sec. 3.2.

    box_predictor: has `cls_score` (K outputs) and `bbox_pred` (4 K outputs), as torchvision's.
    inputs: "cls": a row of `cls_score`; "box": the 4 rows of `bbox_pred`, one after the other;
    "cls+box": both.
    """
    scores = cast(Tensor, box_predictor.cls_score.weight)  # type: ignore[union-attr]
    boxes = cast(Tensor, box_predictor.bbox_pred.weight)  # type: ignore[union-attr]
    if len(boxes) != 4 * len(scores):
        raise ValueError(
            f"the box head has {len(boxes)} box outputs for {len(scores)} classes: T needs 4 a "
            "class, as of a head that is not class-agnostic."
        )
    parts = {"cls": [scores], "box": [boxes.reshape(len(scores), -1)]}
    parts["cls+box"] = [*parts["cls"], *parts["box"]]
    return torch.cat(parts[inputs], 1).float()


class WeightTransfer(nn.Sequential):
    """T: w_det (K, D) -> w_seg (K, C), the same function for all classes, Sec. 3.2.

    layers: 1, 2 or 3 fully connected ones. hidden: width between them; 0: C, as in the paper.
    activation: "leaky_relu" | "relu".
    init: "fan_out": Gaussian of variance 2 / C, as of Caffe2's MSRAFill today; "fan_in": uniform
    within sqrt(2 / D), as of the older one. scale: multiplies that start; the paper's is 1.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int = 256,
        *,
        layers: int = 2,
        hidden: int = 0,
        activation: str = "leaky_relu",
        init: str = "fan_out",
        scale: float = 1.0,
    ) -> None:
        require_choice("layers", layers, LAYERS)
        require_choice("activation", activation, ACTIVATIONS)
        require_choice("init", init, INITS)
        between = nn.ReLU() if activation == "relu" else nn.LeakyReLU(SLOPE)
        sizes = [inputs, *[hidden or outputs] * (layers - 1), outputs]
        parts: list[nn.Module] = []
        for before, after in pairwise(sizes):
            parts += [between, nn.Linear(before, after)]
        super().__init__(*parts[1:])
        self.inputs = inputs
        for layer in self:
            if isinstance(layer, nn.Linear):
                fill(layer, init)
                with torch.no_grad():
                    layer.weight *= scale

    def forward(self, weights: Tensor) -> Tensor:
        """(K, D) -> (K, C), in float32 under autocast too."""
        with torch.autocast(weights.device.type, enabled=False):
            return super().forward(weights.float())


def fill(layer: nn.Linear, init: str) -> None:
    """Start a fully connected layer as Caffe2's MSRAFill does; biases at 0."""
    nn.init.zeros_(layer.bias)
    if init == "fan_out":
        nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.out_features))
    else:
        bound = math.sqrt(2 / layer.in_features)
        nn.init.uniform_(layer.weight, -bound, bound)


class Standardise(nn.Module):
    """w_det with mean 0 and deviation 1 over the classes, `cls` and `box` apart; not in the paper.

    The statistics are those of the last training step, so that rows that are appended later change
    no other row.

    sizes: numbers of each part, such as (1024, 4096).
    """

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.register_buffer("mean", torch.zeros(sum(sizes)))
        self.register_buffer("std", torch.ones(len(self.sizes)))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, weights: Tensor) -> None:
        """Take the statistics of w_det (K, D), its background row aside."""
        own = weights.detach()[1:]
        self.mean.copy_(own.mean(0))
        parts = (own - self.mean).split(self.sizes, 1)
        self.std.copy_(torch.stack([part.square().mean().sqrt() for part in parts]))
        self.fitted.fill_(True)

    def forward(self, weights: Tensor) -> Tensor:
        """(K, D) -> (K, D)."""
        if self.training or not self.fitted:
            self.fit(weights)
        each = torch.tensor(self.sizes, device=weights.device)
        return (weights - self.mean) / self.std.clamp(min=1e-12).repeat_interleave(each)


class MaskPredictor(nn.Module):
    """Mask features -> the mask of each region's class.

    Weights are those of T with `transfer`, without a bias; learned for each of K classes with
    `num_classes`, as of Mask R-CNN; of one mask for all classes with neither. `kind` says which.

    mlp: the class-agnostic branch that is added to the logits, Sec. 3.4.
    stop_gradient: the mask loss does not reach the box head through T, Sec. 3.3.
    embeddings: (K, D) fixed numbers of each class, a word vector say, instead of w_det.

    Names of parameters are torchvision's (`conv5_mask`, `mask_fcn_logits`), `transfer` and `mlp`.
    """

    embeddings: Tensor | None
    transfer: WeightTransfer | None

    def __init__(
        self,
        inputs: int,
        channels: int,
        *,
        transfer: WeightTransfer | None = None,
        num_classes: int = 0,
        source: str = "cls+box",
        standardise: Standardise | None = None,
        embeddings: Tensor | None = None,
        stop_gradient: bool = True,
        mlp: nn.Module | None = None,
    ) -> None:
        super().__init__()
        require_choice("source", source, INPUTS)
        if transfer is not None and num_classes:
            raise ValueError("T predicts the weights that num_classes would learn: give either.")
        if (source == "embedding") != (embeddings is not None):
            raise ValueError("source=embedding and the embeddings belong together: give both.")
        learned = "specific" if num_classes else "agnostic"
        self.kind = learned if transfer is None else "transfer"
        self.source, self.stop_gradient = source, stop_gradient
        self.conv5_mask = nn.ConvTranspose2d(inputs, channels, 2, 2)
        nn.init.kaiming_normal_(self.conv5_mask.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.conv5_mask.bias)  # type: ignore[arg-type]
        self.transfer, self.standardise, self.mlp = transfer, standardise, mlp
        self.register_buffer("embeddings", embeddings)
        if transfer is None:
            self.mask_fcn_logits = nn.Conv2d(channels, num_classes or 1, 1)
            nn.init.normal_(self.mask_fcn_logits.weight, std=0.001)  # fan-based ones diverge
            nn.init.zeros_(self.mask_fcn_logits.bias)  # type: ignore[arg-type]
        self._kept: tuple[Tensor, list[Tensor], list[tuple]] | None = None  # of `w_seg`

    def forward(self, features: Tensor, labels: Tensor, box_predictor: nn.Module) -> Tensor:
        """Logits (N, M, M) of the regions' own classes.

        features: (N, inputs, M / 2, M / 2); labels: (N,), 1..K-1. Only the weights of these labels
        are applied: a tensor of all classes' masks is never built.
        """
        z = F.relu(self.conv5_mask(features))  # (N, C, M, M)
        if self.kind == "agnostic":
            logits = self.mask_fcn_logits(z)[:, 0]
        elif self.kind == "specific":
            bias = cast(Tensor, self.mask_fcn_logits.bias)
            logits = dot(z, self.mask_fcn_logits.weight[labels, :, 0, 0])
            logits = logits + bias[labels, None, None]
        else:
            logits = dot(z, self.w_seg(box_predictor)[labels])
        return logits if self.mlp is None else logits + self.mlp(z)

    def w_seg(self, box_predictor: nn.Module) -> Tensor:
        """T of each class, (K, C); in evaluation computed once for the same weights."""
        assert self.transfer is not None
        sources = [*box_predictor.parameters(), *self.transfer.parameters(), *self.buffers()]
        uncounted = any(each.is_inference() for each in sources)  # writes to such have no version
        if self.training or torch.is_grad_enabled() or uncounted:
            self._kept = None
            return self.transfer(self.w_det(box_predictor))
        if self._kept is None or self._kept[2] != versions(sources):
            w_seg = self.transfer(self.w_det(box_predictor))
            # An alias of each source keeps its memory, so that no other tensor gets its address.
            self._kept = (w_seg, [each.detach() for each in sources], versions(sources))
        return self._kept[0]

    def w_det(self, box_predictor: nn.Module) -> Tensor:
        """What T reads of each class, (K, D)."""
        weights = self.class_numbers(box_predictor)
        return weights if self.standardise is None else self.standardise(weights)

    def class_numbers(self, box_predictor: nn.Module) -> Tensor:
        """The embeddings, or w_det before it is standardised, (K, D)."""
        if self.embeddings is not None:
            return self.embeddings
        weights = detection_weights(box_predictor, self.source)
        return weights.detach() if self.stop_gradient else weights

    def check(self, box_predictor: nn.Module) -> None:
        """Raise ValueError unless what T reads has the K classes of this box head and T's width."""
        if self.transfer is None:
            return
        classes = box_predictor.cls_score.out_features  # type: ignore[union-attr]
        rows, width = self.class_numbers(box_predictor).shape
        read = self.transfer.inputs
        if self.standardise is not None and sum(self.standardise.sizes) != width:
            read = sum(self.standardise.sizes)
        if (rows, width) != (classes, read):
            raise ValueError(
                f"T or Standardise reads ({classes}, {read}) numbers, a row for each class of the "
                f"box head, but {self.source} has ({rows}, {width}): build them for these."
            )

    def train(self, mode: bool = True) -> "MaskPredictor":
        """Forgets what evaluation kept: writes to a parameter's `.data` leave no other trace."""
        self._kept = None
        return super().train(mode)


def versions(tensors: Sequence[Tensor]) -> list[tuple]:
    """What tells that tensors were written to or replaced, as long as their memory is kept."""
    return [(t.data_ptr(), t._version, t.shape, t.dtype, t.device) for t in tensors]


def require_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value} is unknown: choose {', '.join(map(str, choices))}.")


def require_labels(name: str, labels: Collection[int], classes: int) -> None:
    """Raise ValueError unless there are labels and all are of `classes`, the background aside."""
    strange = [n for n in labels if not isinstance(n, Integral) or not 0 < n < classes]
    if strange or not len(labels):
        fault = f"has {strange[0]!r}" if strange else "is empty"
        raise ValueError(
            f"{name} {fault}: give labels from 1 to {classes - 1}, as 0 is the background."
        )


def dot(z: Tensor, weights: Tensor) -> Tensor:
    """<w_n, z_n(x, y)>: features (N, C, M, M), weights (N, C) -> (N, M, M)."""
    return torch.einsum("nchw,nc->nhw", z, weights.to(z.dtype))


class MLP(nn.Sequential):
    """The class-agnostic branch: flattened features -> one map for all classes, Sec. 3.4.

    layers: 1, 2 or 3; hidden ones have 1024 outputs and a ReLU. pool: the features are averaged
    over squares of that side first; 1 as in the paper, whose single layer has 157 million weights.
    """

    def __init__(self, channels: int, size: int, *, layers: int = 1, pool: int = 1) -> None:
        require_choice("layers", layers, LAYERS)
        inputs, hidden = channels * (size // pool) ** 2, 1024
        parts: list[nn.Module] = [nn.Linear(inputs if layers == 1 else hidden, size**2)]
        for number in reversed(range(layers - 1)):
            parts = [nn.Linear(hidden if number else inputs, hidden), nn.ReLU(), *parts]
        super().__init__(*parts)
        self.size, self.pool = size, pool
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.001)
                nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor) -> Tensor:
        """(N, C, M, M) -> (N, M, M)."""
        if self.pool > 1:
            z = F.avg_pool2d(z, self.pool)
        return super().forward(z.flatten(1)).unflatten(1, (self.size, self.size))


class MaskXHeads(RoIHeads):
    """RoI heads of which the mask branch learns from the regions that have masks alone.

    A target of an image has `boxes` (n, 4), `labels` (n,), `has_mask` (n,) bool and `masks` (m, H,
    W), 0 or 1, of the m objects whose `has_mask` is true, in their order. Without `has_mask` every
    object has a mask where there are `masks`, else none.

    classes_with_masks: A, labels; None: all. output_classes: labels that get a mask in evaluation,
    the others have boxes only (`has_mask` false in the result); None: all.
    train_boxes: "proposals" | "gt": what the mask branch is trained on.
    match: "assigned": a region's mask is that of its assigned object; "overlap": of the object with
    a mask that overlaps it most, whatever its class, as in the official code.
    """

    def __init__(
        self,
        *parts: Any,
        classes_with_masks: Collection[int] | None = None,
        output_classes: Collection[int] | None = None,
        train_boxes: str = "proposals",
        match: str = "assigned",
    ) -> None:
        super().__init__(*parts)
        require_choice("train_boxes", train_boxes, TRAIN_BOXES)
        require_choice("match", match, MATCHES)
        classes = self.box_predictor.cls_score.out_features
        if classes_with_masks is not None:
            require_labels("classes_with_masks", classes_with_masks, classes)
        require_labels("output_classes", output_classes or [1], classes)
        self.mask_predictor.check(self.box_predictor)
        self.classes_with_masks = None if classes_with_masks is None else set(classes_with_masks)
        self.output_classes = None if output_classes is None else set(output_classes)
        self.train_boxes, self.match = train_boxes, match

    @classmethod
    def of(cls, heads: RoIHeads, predictor: MaskPredictor, **options: Any) -> "MaskXHeads":
        """The same heads with another mask predictor; their modules are shared."""
        if isinstance(heads, cls):
            kept = ("classes_with_masks", "output_classes", "train_boxes", "match")
            options = {name: getattr(heads, name) for name in kept} | options
        return cls(
            heads.box_roi_pool,
            heads.box_head,
            heads.box_predictor,
            heads.proposal_matcher.high_threshold,
            heads.proposal_matcher.low_threshold,
            heads.fg_bg_sampler.batch_size_per_image,
            heads.fg_bg_sampler.positive_fraction,
            heads.box_coder.weights,
            heads.score_thresh,
            heads.nms_thresh,
            heads.detections_per_img,
            heads.mask_roi_pool,
            heads.mask_head,
            predictor,
            **options,
        )

    def check_targets(self, targets: Targets | None) -> None:
        """Raise ValueError unless each target has boxes and labels; for masks: `check_masks`."""
        for target in targets or [{}]:
            missing = {"boxes", "labels"} - set(target)
            if missing:
                raise ValueError(f"a training target has no {' and no '.join(sorted(missing))}.")

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's: results in evaluation, losses in training."""
        if not self.training:
            pooled = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
            scores, offsets = self.box_predictor(pooled)
            found = self.postprocess_detections(scores, offsets, proposals, image_shapes)
            names = ("boxes", "scores", "labels")
            results = [dict(zip(names, one, strict=True)) for one in zip(*found, strict=True)]
            return self.add_masks(features, results, image_shapes), {}
        assert targets is not None
        proposals, matched, labels, wanted = self.select_training_samples(proposals, targets)
        pooled = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        scores, offsets = self.box_predictor(pooled)
        of_classes, of_boxes = fastrcnn_loss(scores, offsets, labels, wanted)
        of_masks = self.mask_loss(features, proposals, matched, labels, image_shapes, targets)
        return [], {
            "loss_classifier": of_classes,
            "loss_box_reg": of_boxes,
            "loss_mask": of_masks,
        }

    def mask_loss(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets,
    ) -> Tensor:
        """Binary cross entropy, mean over the pixels of the regions that have a mask, Sec. 3.3.

        Without any such region it is 0 and still depends on the branch's parameters, so that
        processes with and without masks take part in the same exchange of gradients.
        """
        check_masks(targets, image_shapes)
        chosen = [
            self.regions(*of_image)
            for of_image in zip(proposals, matched, labels, targets, strict=True)
        ]
        own = torch.cat([labels for _, _, labels in chosen])
        if not len(own):
            branch = (*self.mask_head.parameters(), *self.mask_predictor.parameters())
            return sum((0 * p.sum() for p in branch if p.requires_grad), torch.zeros(()).to(own))
        boxes = [boxes for boxes, _, _ in chosen]
        logits = self.logits(features, boxes, own, image_shapes)
        wanted = [
            mask_targets(target["masks"], boxes, rows, logits.shape[-1])
            for target, (boxes, rows, _) in zip(targets, chosen, strict=True)
            if len(rows)
        ]
        return F.binary_cross_entropy_with_logits(logits.float(), torch.cat(wanted))

    def regions(
        self, proposals: Tensor, matched: Tensor, labels: Tensor, target: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of an image the boxes that are trained on, the rows of their `masks`, their labels."""
        has_mask = known_masks(target)
        if self.train_boxes == "gt":
            proposals, labels = target["boxes"], target["labels"]
            matched = torch.arange(len(labels), device=labels.device)
        keep = (labels > 0) & self.allowed(labels, self.classes_with_masks)
        if not len(has_mask) or not has_mask.any():
            keep = torch.zeros_like(keep)
        elif self.match == "assigned":
            keep &= has_mask[matched]
        boxes, matched, labels = proposals[keep], matched[keep], labels[keep]
        if self.match == "overlap" and len(boxes):
            return boxes, box_iou(boxes, target["boxes"][has_mask]).argmax(1), labels
        return boxes, (has_mask.cumsum(0) - 1)[matched], labels

    def logits(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        labels: Tensor,
        image_shapes: list[tuple[int, int]],
    ) -> Tensor:
        """Logits (N, M, M) of boxes (one tensor an image) and their labels (N,)."""
        pooled = self.mask_head(self.mask_roi_pool(features, boxes, image_shapes))
        return self.mask_predictor(pooled, labels, self.box_predictor)

    def add_masks(
        self,
        features: dict[str, Tensor],
        results: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Results with `masks` (n, 1, M, M), probabilities in their boxes, and `has_mask` (n,)."""
        for result in results:
            result["has_mask"] = self.allowed(result["labels"], self.output_classes)
        boxes = [result["boxes"][result["has_mask"]] for result in results]
        labels = torch.cat([result["labels"][result["has_mask"]] for result in results])
        logits = self.logits(features, boxes, labels, image_shapes)
        parts = logits.float().sigmoid()[:, None].split([len(each) for each in boxes])
        for result, part in zip(results, parts, strict=True):
            result["masks"] = part.new_zeros(len(result["labels"]), *part.shape[1:])
            result["masks"][result["has_mask"]] = part
        return results

    @staticmethod
    def allowed(labels: Tensor, classes: Collection[int] | None) -> Tensor:
        """Which labels are among the classes, bool of the labels' shape."""
        if classes is None:
            return torch.ones_like(labels, dtype=torch.bool)
        return torch.isin(labels, torch.tensor(sorted(classes), device=labels.device))


def known_masks(target: dict[str, Tensor]) -> Tensor:
    """Which objects of a target have a mask, (n,) bool."""
    everywhere = torch.full_like(target["labels"], "masks" in target, dtype=torch.bool)
    return target.get("has_mask", everywhere)


def check_masks(targets: Targets, shapes: Sequence[tuple[int, int]]) -> None:
    """Raise ValueError, naming the image's place, where masks do not belong to their objects.

    shapes: (H, W) of each image as the network has resized it, and the masks with it.
    """
    for place, (target, shape) in enumerate(zip(targets, shapes, strict=True)):
        fault = find_fault(target, shape)
        if fault:
            raise ValueError(f"target {place} of the batch has {fault}.")


def find_fault(target: dict[str, Tensor], shape: tuple[int, int]) -> str:
    """What a target has that does not fit its image of H x W pixels; "" if nothing."""
    labels, given = target["labels"], target.get("has_mask")
    if given is not None:
        kind = getattr(given, "dtype", type(given).__name__)
        if kind != torch.bool or given.shape != labels.shape:
            wanted = f"a tensor of bool for its {len(labels)} objects"
            return f"a has_mask of {len(given)} x {kind}: give {wanted}"
    masks, count = target.get("masks", labels[:0]), int(known_masks(target).sum())
    if not count:
        return ""
    if len(masks) != count:
        of = "objects without has_mask" if given is None else "objects with has_mask"
        return f"{len(masks)} masks for {count} {of}: give the masks of just these, in their order"
    if masks.shape[1:] != shape:
        sides = " x ".join(map(str, masks.shape[1:]))
        return (
            f"masks of {sides} pixels for an image of {shape[0]} x {shape[1]}, both as the network "
            "has resized them: give masks (m, H, W) of the size of their image"
        )
    if masks.max() > 1:  # whatever is neither 0 nor 1, once the network has made bytes of it
        return f"masks with a value of {masks.max().item()}: give 0 and 1, or bool"
    return ""


def mask_targets(masks: Tensor, boxes: Tensor, rows: Tensor, size: int) -> Tensor:
    """What the masks look like within boxes, 0 or 1, (N, size, size) float32.

    masks: (m, H, W) of 0 and 1; boxes: (N, 4) xyxy pixels; rows: (N,) of `masks`. `aligned`, unlike
    torchvision's: that is closer to a polygon that is scaled to the box and drawn.
    """
    regions = torch.cat([rows[:, None].to(boxes), boxes], 1)
    within = roi_align(masks[:, None].to(boxes), regions, size, aligned=True)
    return (within[:, 0] >= 0.5).float()


@torch.no_grad()
def append_classes(box_predictor: nn.Module, other: nn.Module, rows: Sequence[int]) -> None:
    """Give the box head the classes `rows` of another one as its last ones; T gives them masks.

    Both heads need the same features: one was cut from the other, or both were trained on one
    frozen trunk.
    """
    require_labels("rows", rows, other.cls_score.out_features)  # type: ignore[union-attr, arg-type]
    index = torch.tensor(rows)
    for name, each in (("cls_score", 1), ("bbox_pred", 4)):
        ours, theirs = getattr(box_predictor, name), getattr(other, name)
        if ours.in_features != theirs.in_features:
            raise ValueError(f"{name} reads {theirs.in_features} numbers, not {ours.in_features}.")
        grown = nn.Linear(ours.in_features, ours.out_features + each * len(rows)).to(ours.weight)
        for kind in ("weight", "bias"):
            added = getattr(theirs, kind).unflatten(0, (-1, each))[index].flatten(0, 1)
            getattr(grown, kind).copy_(torch.cat([getattr(ours, kind), added.to(ours.weight)]))
        setattr(box_predictor, name, grown)
