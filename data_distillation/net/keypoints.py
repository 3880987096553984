"""The regions that train the keypoint head, as Detectron draws them."""

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, keypointrcnn_loss

Targets = list[dict[str, Tensor]]


class KeypointHeads(RoIHeads):
    """RoI heads of a Keypoint R-CNN that train as Detectron's do.

    torchvision's keypoint head learns from the positive regions of the box head. Detectron draws
    regions of its own, as many at most, among all positive ones with a visible joint inside.

    least_keypoints: of a batch with at most as many visible joints in its regions, that loss is 0.
    """

    least_keypoints = 0

    @classmethod
    def of(cls, heads: RoIHeads, least_keypoints: int = 0) -> "KeypointHeads":
        """The same heads; their modules are shared."""
        made = cls(
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
            keypoint_roi_pool=heads.keypoint_roi_pool,
            keypoint_head=heads.keypoint_head,
            keypoint_predictor=heads.keypoint_predictor,
        )
        made.least_keypoints = least_keypoints
        return made

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's: results in evaluation, losses in training."""
        if not self.training or targets is None:
            return super().forward(features, proposals, image_shapes, targets)
        rois, _, labels, deltas = self.select_training_samples(list(proposals), targets)
        pooled = self.box_roi_pool(features, rois, image_shapes)
        scores, boxes = self.box_predictor(self.box_head(pooled))
        classifier, regression = fastrcnn_loss(scores, boxes, labels, deltas)

        rois, matched = self.draw_keypoint_rois(proposals, targets)
        pooled = self.keypoint_roi_pool(features, rois, image_shapes)
        maps = self.keypoint_predictor(self.keypoint_head(pooled))
        losses = {
            "loss_classifier": classifier,
            "loss_box_reg": regression,
            "loss_keypoint": self.keypoint_loss(maps, rois, targets, matched),
        }
        return [], losses

    def draw_keypoint_rois(
        self, proposals: list[Tensor], targets: Targets
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Regions (n, 4) of each image, and the number (n,) of the object of each."""
        sampler = self.fg_bg_sampler
        limit = int(sampler.batch_size_per_image * sampler.positive_fraction)
        boxes = [
            target["boxes"].to(each.dtype) for each, target in zip(proposals, targets, strict=True)
        ]
        rois = self.add_gt_proposals(proposals, boxes)
        matched, labels = self.assign_targets_to_proposals(
            rois, boxes, [t["labels"] for t in targets]
        )
        for i, target in enumerate(targets):
            positive = torch.where(labels[i] > 0)[0]
            points = target["keypoints"][matched[i][positive]]
            inside = find_visible(points, rois[i][positive]).any(1)
            positive = positive[inside]
            drawn = positive[torch.randperm(len(positive), device=positive.device)[:limit]]
            rois[i], matched[i] = rois[i][drawn], matched[i][drawn]
        return rois, matched

    def keypoint_loss(
        self, maps: Tensor, rois: list[Tensor], targets: Targets, matched: list[Tensor]
    ) -> Tensor:
        """Mean cross entropy over the visible joints; maps: (N, J, m, m) of all images' regions."""
        points = [target["keypoints"] for target in targets]
        if self.least_keypoints:
            own = [each[index] for each, index in zip(points, matched, strict=True)]
            seen = find_visible(torch.cat(own), torch.cat(rois)).sum()
            # Differs: Detectron draws other images, and counts all losses of those.
            if seen <= self.least_keypoints:
                return maps.sum() * 0
        return keypointrcnn_loss(maps, rois, points, matched)


def find_visible(points: Tensor, boxes: Tensor) -> Tensor:
    """Which joints (N, J, 3) are visible and in the box of their object (N, 4), edges included."""
    xy, low, high = points[..., :2], boxes[:, None, :2], boxes[:, None, 2:]
    return (points[..., 2] > 0) & (xy >= low).all(2) & (xy <= high).all(2)
