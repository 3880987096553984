"""Views, their inverses and whole labels; card, section 7, numbers 1 to 3."""

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torchvision.models.detection import (
    FCOS,
    KeypointRCNN,
    RetinaNet,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.models.detection.transform import (
    GeneralizedRCNNTransform,
    resize_boxes,
    resize_keypoints,
)
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from data_distillation.distill import (
    Merge,
    Transforms,
    View,
    candidates,
    distill,
    distill_boxes,
    distill_keypoints,
    flip_boxes,
    make_views,
    mask_maps,
    mirrored_joints,
    passes,
)
from data_distillation.labels.transforms import equal_sizes
from data_distillation.net.inference import labelling, own_size, resized
from tests.data_distillation.labelling import SIZE, detector, flip_keypoints

SWAP = (0, 2, 1)
ONE = Transforms([], flip=False)
MANY = Transforms([40], flip=True, max_size=96)  # padded as at 48 pixels: few kernels to compile


def image(seed: int = 0, height: int = SIZE, width: int = 64) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def trunk(channels: int) -> nn.Module:
    made = nn.Sequential(nn.Conv2d(3, channels, 5, 4, 2), nn.ReLU())
    made.out_channels = channels
    return made


SIZES = {"min_size": SIZE, "max_size": 2 * SIZE}
ANCHORS = AnchorGenerator(((16,),), ((1.0,),))


class Pyramid(nn.Module):
    """Three levels of a narrow FPN, of strides 4, 8 and 16."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.second, self.third = (nn.Conv2d(c, 8, 3, s, 1) for c, s in STRIDES)
        self.fpn = FeaturePyramidNetwork([8, 8, 8], 8)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        first = self.stem(images).relu()
        second = self.second(first).relu()
        return self.fpn(OrderedDict(a=first, b=second, c=self.third(second).relu()))


STRIDES = ((3, 4), (8, 2), (8, 2))


def fpn() -> KeypointRCNN:
    """MultiScaleRoIAlign over levels and torchvision's own heads, all narrow."""
    return KeypointRCNN(
        Pyramid(),
        rpn_anchor_generator=AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3),
        rpn_post_nms_top_n_test=20,
        box_roi_pool=MultiScaleRoIAlign(["a", "b", "c"], 3, 2),
        box_head=TwoMLPHead(8 * 9, 8),
        box_predictor=FastRCNNPredictor(8, 3),
        keypoint_roi_pool=MultiScaleRoIAlign(["a", "b", "c"], 14, 2),
        keypoint_head=KeypointRCNNHeads(8, (8,)),
        keypoint_predictor=KeypointRCNNPredictor(8, 3),
        **SIZES,
    )


def ssd(*, lite: bool = False) -> SSD:
    anchors = DefaultBoxGenerator([[2]], scales=[0.3, 0.5])
    backbone = trunk(8)
    backbone.out_channels = [8]
    head = SSDLiteHead([8], anchors.num_anchors_per_location(), 3, nn.BatchNorm2d)
    size = (SIZE, SIZE)
    return SSD(backbone, anchors, size, 3, head=head if lite else None, topk_candidates=20)


DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "Faster R-CNN": detector,
    "Mask R-CNN": lambda: detector("masks"),
    "Keypoint R-CNN": lambda: detector("keypoints"),
    "Keypoint R-CNN with FPN": fpn,
    "RetinaNet": lambda: RetinaNet(trunk(8), 4, anchor_generator=ANCHORS, score_thresh=0, **SIZES),
    "FCOS": lambda: FCOS(trunk(32), 3, anchor_generator=ANCHORS, score_thresh=0, **SIZES),
    "SSD": ssd,
    "SSDlite": lambda: ssd(lite=True),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_of_torchvision_is_taken_as_it_is(name):
    torch.manual_seed(0)
    model = DETECTORS[name]().eval()
    images = [image(), image(1, 64, 60)]
    with torch.no_grad():
        expected = model(images)
    for theirs, ours in zip(expected, distill(model, images, ONE, Merge(), SWAP), strict=True):
        for field in ("boxes", "scores", "labels"):
            assert torch.equal(ours[field], theirs[field])
        assert len(ours["boxes"])
        if "keypoints" in theirs:
            assert torch.equal(ours["keypoints"][..., :2], theirs["keypoints"][..., :2])
        if "masks" in theirs:
            assert torch.equal(ours["masks"], theirs["masks"][:, 0] > 0.5)
    merge = Merge(score=0.001, limit=7)
    many = distill(model, images[:1], MANY, merge, SWAP)
    for theirs, ours, own in zip(expected, many, images, strict=False):
        count, (height, width) = len(ours["boxes"]), own.shape[1:]
        assert count
        assert set(ours) == set(theirs) - {"keypoints_scores"}
        assert (ours["boxes"][:, 2:] > ours["boxes"][:, :2]).all()
        assert (ours["boxes"][:, :2] >= 0).all()
        assert (ours["boxes"][:, 2:] <= torch.tensor([width, height])).all()
        assert (ours["scores"].diff() <= 0).all()
        if "keypoints" in ours:
            assert torch.equal(ours["scores"], theirs["scores"]) or name.endswith("FPN")
            assert ours["keypoints"].shape == (count, 3, 3)
        else:
            assert count <= 7 or ours["scores"][6] == ours["scores"][-1]
        if "masks" in ours:
            assert ours["masks"].shape == (count, height, width)
            assert ours["masks"].dtype == torch.bool


def test_with_one_view_boxes_and_joints_are_the_networks_own_for_an_odd_size_too():
    model = detector("keypoints")
    odd = image(2, 100, 37)
    with torch.no_grad():
        expected = model([odd])[0]
    found = distill(model, [odd], Transforms([SIZE], flip=False), Merge())[0]
    assert torch.equal(found["boxes"], expected["boxes"])
    assert torch.equal(found["keypoints"][..., :2], expected["keypoints"][..., :2])


@pytest.mark.parametrize("kind", ["boxes", "masks", "keypoints"])
def test_the_merge_of_the_identity_alone_is_the_networks_own_output(kind):
    """Without the short cut for one view: union, NMS, limit and decoding are torchvision's."""
    model, picture, views = detector(kind), image(), [View(0, False)]
    heads = model.roi_heads
    merge = Merge(heads.score_thresh, heads.nms_thresh, vote=0, limit=heads.detections_per_img)
    merge.heatmaps = "logit"
    with labelling(model):
        (expected,) = model([picture])
        if kind == "keypoints":
            found = distill_keypoints(model, picture, views, ONE, merge, SWAP)
        else:
            found = distill_boxes(model, picture, views, ONE, merge)
    assert len(expected["boxes"]) > 5
    for name in ("boxes", "scores", "labels"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-4)
    if kind == "keypoints":
        theirs = expected["keypoints"][..., :2]
        torch.testing.assert_close(found["keypoints"][..., :2], theirs, rtol=0, atol=1e-3)
    if kind == "masks":
        sure = (expected["masks"][:, 0] - 0.5).abs() > 1e-5
        assert torch.equal(found["masks"][sure], (expected["masks"][:, 0] > 0.5)[sure])


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_labels_of_a_mirrored_image_are_the_mirrored_labels(kind):
    model = detector(kind)
    merge = Merge(scoring="avg", vote=0.7, limit=20)
    plain = distill(model, [image()], MANY, merge)[0]
    other = distill(model, [image().flip(-1)], MANY, merge)[0]
    assert len(plain["boxes"]) > 5
    torch.testing.assert_close(flip_boxes(other["boxes"], 64), plain["boxes"], rtol=0, atol=1e-3)
    torch.testing.assert_close(other["scores"], plain["scores"])
    assert torch.equal(other["labels"], plain["labels"])


class Bright(nn.Module):
    """Finds the box around the bright pixels: a detector that a mirror cannot fool."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = GeneralizedRCNNTransform(SIZE, 99, [0.0] * 3, [1.0] * 3)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        inputs, _ = self.transform(images)
        found = []
        for each, (height, width) in zip(inputs.tensors, inputs.image_sizes, strict=True):
            y, x = torch.where(each[0, :height, :width] > 0.5)
            box = torch.stack((x.min(), y.min(), x.max() + 1, y.max() + 1)).float()
            one = {"boxes": box[None], "scores": torch.tensor([0.9]), "labels": torch.tensor([1])}
            found.append(one)
        sizes = [(each.shape[1], each.shape[2]) for each in images]
        return self.transform.postprocess(found, inputs.image_sizes, sizes)


def test_flips_and_scales_change_nothing_where_the_detector_is_equivariant():
    picture = torch.zeros(3, SIZE, 96)
    picture[:, 12:36, 24:72] = 1
    for transforms in (ONE, Transforms([], flip=True), Transforms([24, 96], max_size=999)):
        found = distill(Bright(), [picture], transforms, Merge())[0]
        assert found["boxes"][0].tolist() == pytest.approx([24, 12, 72, 36], abs=1e-3)
        assert found["scores"].tolist() == pytest.approx([0.9])


def test_boxes_and_joints_return_from_every_view():
    torch.manual_seed(0)
    size, own = (427, 640), (883, 1324)
    corner = torch.rand(200, 2) * 300
    boxes = torch.cat((corner, corner + torch.rand(200, 2) * 120), 1)
    points = torch.cat((torch.rand(200, 3, 2) * 400, torch.ones(200, 3, 1)), 2)
    seen = resize_boxes(flip_boxes(boxes, size[1]), size, own)
    back = flip_boxes(resize_boxes(seen, own, size), size[1])
    torch.testing.assert_close(back, boxes, rtol=0, atol=1e-4)
    mirrored = resize_keypoints(flip_keypoints(points, size[1], SWAP), size, own)
    back = flip_keypoints(resize_keypoints(mirrored, own, size), size[1], SWAP)
    torch.testing.assert_close(back, points, rtol=0, atol=1e-4)
    assert flip_boxes(torch.tensor([[10.0, 0, 20, 5]]), 64).tolist() == [[44, 0, 54, 5]]
    joints = torch.tensor([[0.0, 1], [15, 2], [3, 3]])  # the middle of the box is that of its image
    assert flip_keypoints(joints, 64, SWAP).tolist() == [[64, 1], [61, 3], [49, 2]]


def test_regions_of_a_pass_are_the_boxes_as_its_images_have_them():
    model, boxes = detector("keypoints"), torch.tensor([[8.0, 4, 24, 40]])
    with labelling(model):
        views = [View(96, False), View(96, True)]
        one = next(passes(model, image(), views, 999))
    assert one.inputs.image_sizes == [(96, 128)] * 2
    assert [each.tolist() for each in one.regions(boxes)] == [[[16, 8, 48, 80]], [[80, 8, 112, 80]]]


@pytest.mark.parametrize("size", [(31, 77), (90, 40)])
def test_regions_of_every_pass_are_the_boxes_scaled_and_mirrored_caps_and_odd_sizes_too(size):
    torch.manual_seed(0)
    model, (height, width) = detector("keypoints"), size
    corner = torch.rand(20, 2) * torch.tensor([width, height]) * 0.6
    boxes = torch.cat((corner, corner + torch.rand(20, 2) * 8), 1)
    views = make_views(Transforms([24, 56, 96], max_size=110), SIZE)
    with labelling(model):
        found = [
            (view, own, regions)
            for one in passes(model, image(0, *size), views, 110)
            for view, own, regions in zip(
                one.views, one.inputs.image_sizes, one.regions(boxes), strict=True
            )
        ]
    assert [view for view, _, _ in found] == views
    for view, own, regions in found:
        short, cap = (view.short, 110) if view.short else own_size(model)
        ratio = min(short / min(size), cap / max(size))
        assert own == (int(height * ratio), int(width * ratio))
        x1, y1, x2, y2 = boxes.double().unbind(1)
        x1, x2 = (width - x2, width - x1) if view.flip else (x1, x2)
        wanted = torch.stack((x1, y1, x2, y2), 1)
        wanted *= torch.tensor([own[1] / width, own[0] / height] * 2, dtype=torch.float64)
        torch.testing.assert_close(regions.double(), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("area", "left"), [(0.0, 40), (1e9, 96)])
def test_dropped_passes_have_no_part_in_the_labels_of_an_image(area, left):
    """All boxes are large, and see no up-scaled pass, or small, and see no down-scaled one."""
    model = detector("keypoints")

    def points(scales: list[int], **options) -> Tensor:
        transforms = Transforms(scales, max_size=200, **options)
        return distill(model, [image()], transforms, Merge(), SWAP)[0]["keypoints"]

    found, wanted = points([40, 96], size_dependent=True, area=area), points([left])
    assert len(wanted) > 3
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)
    assert not torch.allclose(points([40, 96]), wanted, atol=1e-3)


def test_candidates_of_an_rcnn_are_its_boxes_before_nms():
    model = detector("boxes", 2)
    with labelling(model):
        found = candidates(model, image(), [View(0, False)], 99, 0.05)
    model.roi_heads.nms_thresh, model.roi_heads.detections_per_img = 1.1, 10_000
    with torch.no_grad():
        theirs = model([image()])[0]
    order = found.scores.argsort(descending=True, stable=True)
    assert len(order) > 10
    torch.testing.assert_close(found.boxes[order], theirs["boxes"])
    torch.testing.assert_close(found.scores[order], theirs["scores"])


def test_masks_are_the_mean_of_the_passes():
    model = detector("masks")
    with torch.no_grad():
        model.roi_heads.mask_predictor.weight.normal_()  # masks of all shapes
    found = distill(model, [image()], MANY, Merge(limit=5))[0]
    total = 0
    with labelling(model):
        for view in make_views(MANY, SIZE):  # four, one by one
            one = next(passes(model, image(), [view], MANY.max_size))
            maps = mask_maps(model, one, found["boxes"], found["labels"])[0]
            total = total + (maps.flip(-1) if view.flip else maps) / 4
    pasted = paste_masks_in_image(total, found["boxes"], (SIZE, 64))[:, 0]
    sure = (pasted - 0.5).abs() > 1e-5
    assert torch.equal(found["masks"][sure], (pasted > 0.5)[sure])
    assert found["masks"].any()


def test_there_are_18_views_by_default_with_the_identity_first():
    views = make_views(Transforms(), 800)
    assert len(views) == len(set(views)) == 18
    assert views[:2] == [View(0, False), View(0, True)]
    assert {view.short for view in views} == {0, 400, 500, 600, 700, 900, 1000, 1100, 1200}
    assert {View(each.short, not each.flip) for each in views} == set(views)
    assert make_views(Transforms([800], flip=False), 800) == [View(0, False)]
    assert make_views(Transforms([400, 400], flip=False), 800) == [View(0, False), View(400, False)]


def test_sizes_that_coincide_are_found():
    def same(size: tuple[int, int], cap: int) -> list[tuple[int, int]]:
        transforms = Transforms(flip=False, max_size=cap)
        pairs = equal_sizes(make_views(transforms, 800), size, 800, transforms)
        return [(one.short, other.short) for one, other in pairs]

    assert same((427, 640), 1333) == [(900, 1000), (900, 1100), (900, 1200)]
    assert same((640, 480), 1333) == [(1000, 1100), (1000, 1200)]
    assert same((427, 640), 2000) == []
    assert same((200, 640), 1333) == [(0, 500)] + [
        (0, each) for each in range(600, 1300, 100) if each != 800
    ]


def test_a_pass_has_the_size_that_equal_sizes_tells():
    model = detector("keypoints")
    transforms = Transforms([40, 56, 90, 120], flip=False, max_size=120)
    for size in ((48, 64), (30, 100)):
        views = make_views(transforms, SIZE)
        shapes = [
            tuple(one.inputs.image_sizes[0])
            for one in passes(model, image(0, *size), views, transforms.max_size)
        ]
        pairs = equal_sizes(views, size, *own_size(model)[:1], transforms, own_size(model)[1])
        assert len(pairs) == len(views) - len(set(shapes))


BYTES = (255 * image()).byte()


@pytest.mark.parametrize(
    ("model", "images", "mirrored", "fault"),
    [
        (nn.Linear(1, 1), [image()], None, "Linear is no detector of torchvision: give a Faster"),
        (detector(), [BYTES], None, r"torch.uint8 of shape \(3, 48, 64\): give float \(3, H, W\)"),
        (detector(), [image()[:1]], None, r"of shape \(1, 48, 64\): give float"),
        (detector(), [image(), image()[None]], None, r"of shape \(1, 3, 48, 64\): give float"),
        (detector(), [BYTES.float()], None, r"values from 0 to 25\d: give 0 to 1"),
        (detector(), [image() * float("nan")], None, "values from nan to nan: give 0 to 1"),
        (detector("keypoints"), [image()], (0, 0, 1), r"\(0, 0, 1\) does not swap joints in pairs"),
        (detector("keypoints"), [image()], (1, 2, 0), r"\(1, 2, 0\) does not swap joints in pairs"),
        (detector("keypoints"), [image()], (1, 0), "mirrored has 2 joints, the model 3"),
    ],
)
def test_what_is_not_taken_is_one_sentence(model, images, mirrored, fault):
    with pytest.raises(ValueError, match=fault) as error:
        distill(model, images, MANY, Merge(), mirrored)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["nose", "left_eye", "right_eye"], (0, 2, 1)),
        (["upper left", "upper back", "upper right"], (2, 1, 0)),
        (["Right Hand", "Left Hand"], (1, 0)),
        (["centre", "front"], None),
        (["left_eye", "nose"], None),
        ([], None),
    ],
)
def test_joints_swap_by_their_names(names, expected):
    assert mirrored_joints(names) == expected


def test_coco_joints_swap_as_in_detectron():
    sides = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    names = ["nose", *(f"{side}_{part}" for part in sides for side in ("left", "right"))]
    expected = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
    assert mirrored_joints(names) == expected


def test_a_model_has_its_sizes_back_even_after_an_error():
    for model in (detector(), ssd()):
        before = dict(vars(model.transform))
        with pytest.raises(KeyError), resized(model, 77, 99):  # noqa: PT012
            assert dict(vars(model.transform)) != before
            raise KeyError
        assert dict(vars(model.transform)) == before
        with resized(model, 0, 99):
            assert dict(vars(model.transform)) == before


def test_modes_and_hooks_of_a_model_are_as_before():
    model = detector("keypoints").train()
    model.backbone.eval()  # frozen, say
    modes = [module.training for module in model.modules()]
    distill(model, [image()], MANY, Merge(), SWAP)
    distill(model, [image()], ONE, Merge(), SWAP)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    targets = {
        "boxes": torch.tensor([[4.0, 4, 40, 40]]),
        "labels": torch.tensor([1]),
        "keypoints": torch.tensor([[[9.0, 9, 1], [20, 20, 1], [30, 30, 1]]]),
    }
    sum(model.train()([image()], [targets]).values()).backward()  # nothing of it is spoilt


def test_an_images_labels_depend_on_no_other_image():
    model, merge = detector("masks"), Merge(limit=5)
    together = distill(model, [image(), image(1, 80, 90)], MANY, merge)
    for number, alone in enumerate((image(), image(1, 80, 90))):
        for name, each in distill(model, [alone], MANY, merge)[0].items():
            assert torch.equal(each, together[number][name])


@pytest.mark.parametrize("kind", ["boxes", "masks", "keypoints"])
@pytest.mark.parametrize("transforms", [ONE, MANY], ids=["one", "many"])
def test_an_image_of_nothing_has_empty_labels(kind, transforms):
    model = detector(kind)
    model.roi_heads.score_thresh = 1.0
    found = distill(model, [image()], transforms, Merge(score=1.0), SWAP)[0]
    shapes = {"boxes": (0, 4), "scores": (0,), "labels": (0,)}
    shapes |= {"masks": {"masks": (0, SIZE, 64)}, "keypoints": {"keypoints": (0, 3, 3)}}.get(
        kind, {}
    )
    assert {name: tuple(each.shape) for name, each in found.items()} == shapes
    assert distill(model, [], transforms, Merge(), SWAP) == []


def test_a_model_in_ddp_or_dataparallel_is_taken_as_the_bare_one(tmp_path):
    model = detector("keypoints")
    expected = distill(model, [image()], MANY, Merge(), SWAP)[0]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        for wrap in (DistributedDataParallel, DataParallel):
            found = distill(wrap(model), [image()], MANY, Merge(), SWAP)[0]
            assert all(torch.equal(found[name], expected[name]) for name in expected)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["boxes", "keypoints"])
@pytest.mark.parametrize("transforms", [ONE, MANY], ids=["one", "many"])
def test_under_autocast_boxes_and_scores_are_as_fine_as_in_float32(kind, transforms):
    model = detector(kind)
    with torch.autocast("cpu", torch.bfloat16):
        found = distill(model, [image()], transforms, Merge(), SWAP)[0]
        with torch.no_grad():
            plain = model([image()])[0]
    assert torch.equal(plain["boxes"], plain["boxes"].bfloat16().float())  # torchvision's are not
    for name in set(found) - {"labels", "masks"}:
        assert found[name].dtype == torch.float32
        assert not torch.equal(found[name], found[name].bfloat16().float())


def test_retinanets_anchors_under_autocast_are_as_fine_as_in_float32():
    torch.manual_seed(0)
    model = DETECTORS["RetinaNet"]()
    anchors = []
    model.anchor_generator.register_forward_hook(lambda *args: anchors.append(args[2][0]))
    big = image(0, 48, 600)
    model.transform.max_size = 2000
    distill(model, [big], ONE, Merge())
    with torch.autocast("cpu", torch.bfloat16):
        distill(model, [big], ONE, Merge())
    assert torch.equal(anchors[0], anchors[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["boxes", "masks", "keypoints"])
def test_labels_of_a_gpu_are_those_of_the_cpu(kind):
    model = detector(kind)
    expected = distill(model, [image()], MANY, Merge(limit=5), SWAP)[0]
    found = distill(model.cuda(), [image()], MANY, Merge(limit=5), SWAP)[0]
    assert all(each.device.type == "cpu" for each in found.values())
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=0, atol=1e-2)
