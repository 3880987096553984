"""Inference of focal_loss: candidates, suppression, augmentation, export."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from focal_loss.detect import (
    Detector,
    best_pairs,
    mirror,
    mirror_boxes,
    resize,
    soft_nms,
)
from focal_loss.model import Architecture, RetinaNet
from focal_loss.targets.boxes import encode

MINI = {
    "num_classes": 3,
    "backbone": "mini",
    "backbone_norm": "bn",
    "freeze_at": 0,
    "levels": (2, 4),
    "channels": 16,
    "convs": 1,
    "anchor_size": 2.0,
    "tower_init": "he",
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def confident(**options: object) -> RetinaNet:
    """A random network that finds something everywhere."""
    model = RetinaNet(Architecture(**{**MINI, "prior": 0.1, **options})).eval()
    torch.nn.init.normal_(model.classification.predict.weight, std=0.05)
    torch.nn.init.normal_(model.regression.predict.weight, std=0.05)
    return model


class Fixed(torch.nn.Module):
    """Stands where a network stands, with outputs that put given boxes on given anchors."""

    def __init__(self, rows: list[int], boxes: Tensor, labels: list[int], scores: list[float]):
        super().__init__()
        net = RetinaNet(Architecture(**MINI))
        self.anchors, self.anchor_grid = net.anchors, net.anchor_grid
        self.num_classes, self.softmax, self.class_specific_box = 3, False, False
        self.rows, self.boxes, self.labels, self.scores = rows, boxes, labels, scores

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        anchors = self.anchors(*images.shape[-2:])
        logits = torch.full((len(images), len(anchors), 3), -20.0)
        offsets = torch.zeros(len(images), len(anchors), 4)
        for row, box, label, score in zip(
            self.rows, self.boxes, self.labels, self.scores, strict=True
        ):
            logits[:, row, label] = math.log(score / (1 - score))
            offsets[:, row] = encode(box, anchors[row])
        return logits, offsets


BOXES = torch.tensor([[10.0, 10, 30, 30], [11, 10, 31, 30], [50, 40, 90, 60], [20, 20, 200, 90]])


def test_boxes_are_decoded_clipped_and_scaled_to_the_original_size():
    model = Fixed([0, 100, 5000, 6000], BOXES, [0, 1, 2, 1], [0.9, 0.8, 0.7, 0.6])
    found = Detector()(model, torch.zeros(1, 3, 96, 96), [(80, 90)], [(160, 270)])[0]
    assert found["labels"].tolist() == [0, 1, 2, 1]
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.8, 0.7, 0.6]))
    clipped = torch.stack([BOXES[:, 0::2].clamp(max=90), BOXES[:, 1::2].clamp(max=80)], 2)
    expected = clipped.flatten(1) * torch.tensor([3.0, 2, 3, 2])
    torch.testing.assert_close(found["boxes"], expected, atol=1e-3, rtol=0)


def test_suppression_is_by_class_unless_class_agnostic():
    model = Fixed([0, 100, 5000], BOXES[:3], [0, 1, 2], [0.9, 0.8, 0.7])
    images = torch.zeros(1, 3, 96, 96)
    assert len(Detector()(model, images)[0]["boxes"]) == 3
    assert Detector(class_agnostic=True)(model, images)[0]["labels"].tolist() == [0, 2]
    model.labels = [0, 0, 2]
    assert Detector()(model, images)[0]["labels"].tolist() == [0, 2]
    assert len(Detector(nms=0.95)(model, images)[0]["boxes"]) == 3


def test_scores_at_or_below_the_threshold_are_dropped():
    model = Fixed([0, 100, 5000], BOXES[:3], [0, 1, 2], [0.9, 0.0501, 0.0499])
    images = torch.zeros(1, 3, 96, 96)
    assert len(Detector()(model, images)[0]["boxes"]) == 2
    assert len(Detector(score=0.5)(model, images)[0]["boxes"]) == 1


def test_the_coarsest_level_can_ignore_the_threshold_so_that_no_image_stays_empty():
    model = Fixed([], BOXES[:0], [], [])
    images = torch.zeros(2, 3, 96, 96)
    for found in Detector()(model, images):
        assert found["boxes"].shape == (0, 4)
        assert found["labels"].dtype == torch.int64
        assert found["scores"].shape == (0,)
    assert all(len(f["boxes"]) for f in Detector(keep_coarsest=True)(model, images))


@pytest.mark.parametrize("kind", ["soft_linear", "soft_gaussian"])
def test_soft_suppression_of_nothing_is_nothing(kind):
    found = Detector(nms_kind=kind)(Fixed([], BOXES[:0], [], []), torch.zeros(1, 3, 96, 96))[0]
    assert found["boxes"].shape == (0, 4)


def test_topk_counts_per_level_and_detections_per_image():
    model, images = confident(), torch.randn(1, 3, 64, 64)
    found = Detector(score=0.0, topk=7).candidates(model, images)[0]
    assert len(found["scores"]) == 3 * 7
    assert len(Detector(score=0.0, nms=1.0, detections=13)(model, images)[0]["scores"]) == 13


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3])
def test_best_pairs_equal_sorting_every_probability(softmax, threshold):
    logits = torch.randn(50, 5) * 2
    p = logits.softmax(-1)[:, 1:] if softmax else logits.sigmoid()
    expected, order = p.flatten().sort(descending=True)
    keep = expected > threshold
    scores, places = best_pairs(logits, threshold, 30, softmax=softmax)
    torch.testing.assert_close(scores, expected[keep][:30])
    assert torch.equal(places, order[keep][:30])


def test_class_specific_boxes_use_the_numbers_of_their_class():
    model = confident(class_specific_box=True)
    images = torch.randn(1, 3, 64, 64)
    found = Detector(topk=20).candidates(model, images, [(9999, 9999)])[0]
    logits, offsets = model(images)
    offsets = offsets[0].view(-1, 3, 4)
    anchors = model.anchors(64, 64)
    codes = encode(found["boxes"][:, None], anchors[None])  # boxes may be clipped at 0
    inside = (found["boxes"][:, :2] > 0).all(1)
    assert inside.any()
    for i in inside.nonzero()[:5, 0]:
        label = found["labels"][i]
        anchor = (logits[0, :, label].sigmoid() - found["scores"][i]).abs().argmin()
        torch.testing.assert_close(codes[i, anchor], offsets[anchor, label], atol=1e-3, rtol=1e-3)


def test_hard_suppression_equals_torchvisions():
    model, images = confident(), torch.randn(1, 3, 64, 64)
    detector = Detector(topk=300, detections=1000)
    candidates = detector.candidates(model, images)[0]
    keep = batched_nms(candidates["boxes"], candidates["scores"], candidates["labels"], 0.5)
    assert torch.equal(detector.select(candidates)["boxes"], candidates["boxes"][keep])


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_soft_nms_equals_a_slow_loop_over_classes(sigma):
    corners = torch.rand(60, 2) * 50
    boxes = torch.cat([corners, corners + 5 + torch.rand(60, 2) * 40], 1)
    scores, groups = torch.rand(60), torch.randint(3, (60,))
    expected = []
    for group in range(3):
        remaining = {int(i): float(scores[i]) for i in (groups == group).nonzero()}
        while remaining:
            best = max(remaining, key=remaining.__getitem__)
            score = remaining.pop(best)
            if score > 0.001:
                expected.append((score, best))
            for i in remaining:
                iou = float(box_iou(boxes[best][None], boxes[i][None]))
                if sigma is not None:
                    remaining[i] *= math.exp(-(iou**2) / sigma)
                elif iou > 0.3:
                    remaining[i] *= 1 - iou
    expected.sort(reverse=True)
    kept, weakened = soft_nms(boxes, scores, groups, threshold=0.3, sigma=sigma, most=40)
    assert kept.tolist() == [i for _, i in expected[:40]]
    torch.testing.assert_close(weakened, torch.tensor([s for s, _ in expected[:40]]))


def test_soft_nms_keeps_what_hard_nms_removes_with_a_lower_score():
    model = Fixed([0, 100, 5000], BOXES[:3], [0, 0, 2], [0.9, 0.8, 0.7])
    images = torch.zeros(1, 3, 96, 96)
    found = Detector(nms_kind="soft_linear")(model, images)[0]
    iou = 19 / 21
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.7, 0.8 * (1 - iou)]))
    gaussian = Detector(nms_kind="soft_gaussian")(model, images)[0]["scores"][-1]
    assert gaussian.item() == pytest.approx(0.8 * math.exp(-(iou**2) / 0.5), abs=1e-4)


def test_mirroring_twice_changes_nothing_and_leaves_the_padding():
    images = torch.randn(2, 3, 8, 10)
    sizes = [(8, 10), (5, 7)]
    images[1, :, 5:], images[1, :, :, 7:] = 0, 0
    once = mirror(images, sizes)
    assert torch.equal(mirror(once, sizes), images)
    assert not once[1, :, 5:].any()
    assert not once[1, :, :, 7:].any()
    assert torch.equal(once[1, :, 2, 0], images[1, :, 2, 6])
    assert torch.equal(mirror_boxes(mirror_boxes(BOXES, 90), 90), BOXES)


def test_a_mirrored_view_finds_the_mirrored_objects_where_they_are():
    class Bright(Fixed):
        """Puts its box around the bright pixels."""

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            self.boxes = torch.stack([_bright(image) for image in images])
            logits, offsets = super().forward(images)
            for i, box in enumerate(self.boxes):
                offsets[i, self.rows[0]] = encode(
                    box, self.anchors(*images.shape[-2:])[self.rows[0]]
                )
            return logits, offsets

    def _bright(image: Tensor) -> Tensor:
        y, x = (image[0] > 0.5).nonzero().T
        return torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()

    images = torch.zeros(1, 3, 96, 96)
    images[0, :, 20:40, 10:26] = 1
    model = Bright([3000], BOXES[:1], [1], [0.9])
    detector = Detector()
    plain = detector(model, images, [(90, 84)])[0]
    flipped = detector.select(detector.candidates(model, images, [(90, 84)], flip=True)[0])
    torch.testing.assert_close(plain["boxes"], torch.tensor([[10.0, 20, 26, 40]]))
    torch.testing.assert_close(flipped["boxes"], plain["boxes"], atol=1e-4, rtol=0)
    merged = detector.detect_augmented(
        model, images, [(90, 84)], [(180, 168)], short_sides=(84, 168)
    )[0]
    overlap = box_iou(merged["boxes"], 2 * plain["boxes"])
    assert overlap.min() > 0.85


def test_resizing_keeps_the_aspect_and_caps_the_long_side():
    images = torch.randn(2, 3, 64, 128)
    views, sizes = resize(images, [(48, 64), (30, 120)], 96)
    assert sizes == [(96, 128), (40, 160)]  # 160 = 5/3 of 96
    assert views.shape == (2, 3, 96, 160)
    assert not views[1, :, 40:].any()


def test_augmentation_by_nothing_is_plain_detection():
    model, images = confident(), torch.randn(2, 3, 64, 64)
    detector = Detector()
    for a, b in zip(
        detector.detect_augmented(model, images, flip=False), detector(model, images), strict=True
    ):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_every_augmented_view_adds_candidates():
    model, images = confident(), torch.randn(1, 3, 64, 64)
    detector = Detector(nms=1.0, topk=10, score=0.0, detections=1000)
    assert len(detector.detect_augmented(model, images, flip=False)[0]["boxes"]) == 30
    assert len(detector.detect_augmented(model, images, short_sides=(64, 96))[0]["boxes"]) == 120


def test_detectrons_last_pixel_becomes_our_edge():
    model = confident(anchors="detectron", ratios=(1.0, 2.0, 0.5))
    with torch.no_grad():
        model.regression.predict.weight.zero_()
    found = Detector(score=0.0, topk=2000).candidates(model, torch.randn(1, 3, 64, 64))[0]["boxes"]
    widths = (found[:, 2] - found[:, 0])[(found[:, 0] > 0) & (found[:, 2] < 64)]
    # stride 4, ratio 1: 4 * 2 pixels, corners 8 - 1 apart in Detectron's count
    assert (widths - 8).abs().min() < 1e-4
    assert found.max() <= 64


def test_half_precision_outputs_are_decoded_in_float32():
    model, images = confident(), torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = Detector()(model, images)[0]
    assert found["scores"].dtype == found["boxes"].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"score": 1.5}, "score = 1.5"),
        ({"nms_kind": "none"}, "hard, soft_linear, soft_gaussian"),
        ({"topk": 0}, "must be 1 or more"),
        ({"sigma": 0.0}, "positive"),
    ],
)
def test_wrong_options_are_answered_with_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Detector(**options)


def test_sizes_of_another_batch_are_refused():
    with pytest.raises(ValueError, match="2 images came with 1 sizes"):
        Detector()(confident(), torch.randn(2, 3, 64, 64), [(64, 64)])


# Export


def test_the_exported_network_gives_the_same_outputs_for_any_number_of_images(tmp_path):
    shapes = {"images": {0: torch.export.Dim("N")}}
    for options in (MINI, {"num_classes": 2, "backbone": "resnet18", "channels": 8, "convs": 1}):
        model = RetinaNet(Architecture(**options)).eval()
        program = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes=shapes)
        torch.export.save(program, tmp_path / "net.pt2")
        network = torch.export.load(tmp_path / "net.pt2").module()
        for count in (1, 3):
            images = torch.randn(count, 3, 64, 96)
            for exported, eager in zip(network(images), model(images), strict=True):
                torch.testing.assert_close(exported, eager, atol=1e-5, rtol=0)


def test_the_onnx_network_gives_the_same_outputs(tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="ONNX export needs the extra `export`")
    runtime = pytest.importorskip("onnxruntime", reason="running ONNX needs the extra `export`")
    model = RetinaNet(Architecture(**MINI)).eval()
    images = torch.randn(1, 3, 64, 96)
    torch.onnx.export(model, (images,), tmp_path / "net.onnx", dynamo=True)
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    for exported, eager in zip(outputs, model(images), strict=True):
        torch.testing.assert_close(torch.from_numpy(exported), eager, atol=1e-5, rtol=0)
