"""The detectors: torchvision's names, shapes and outputs, what options change, and the losses."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import KeypointRCNN
from torchvision.models.detection.roi_heads import RoIHeads, keypoints_to_heatmap
from torchvision.ops import FrozenBatchNorm2d, box_iou

from data_distillation.model import Network, build_detector
from data_distillation.net.keypoints import KeypointHeads, find_visible

CONSTRUCTORS = {
    "boxes": detection.fasterrcnn_resnet50_fpn,
    "masks": detection.maskrcnn_resnet50_fpn,
    "keypoints": detection.keypointrcnn_resnet50_fpn,
}


def small(**options) -> Network:
    plain = {
        "backbone": "small",
        "channels": 8,
        "hidden": 12,
        "pool": 3,
        "keypoint_convs": 1,
        "keypoint_channels": 8,
        "map_size": 16,
        "mask_convs": 1,
        "mask_size": 8,
        "anchors": [12, 24],
        "short_sides": [32],
        "long_side": 64,
        "pre_nms": [100, 50],
        "proposals": [30, 20],
        "rois": 8,
        "least_keypoints": 0,
        "score": 0.0,
        "detections": 4,
        "cls_std": 0.3,
    }
    return Network(**plain | options)


def example(joints: int = 3, **changes: Tensor) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images, an object each."""
    torch.manual_seed(1)
    target = {
        "boxes": torch.tensor([[4.0, 6, 24, 30]]),
        "labels": torch.tensor([1]),
        "keypoints": torch.tensor([[[8.0, 9, 2], [15, 20, 1], [22, 28, 2]]])[:, :joints],
        "masks": torch.ones(1, 32, 32, dtype=torch.uint8),
    }
    return [torch.rand(3, 32, 32) for _ in range(2)], [target | changes for _ in range(2)]


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")  # frozen norms count none
    }


@pytest.mark.parametrize("kind", CONSTRUCTORS)
def test_names_and_shapes_are_torchvisions(kind):
    classes = 1 if kind == "keypoints" else 90
    with torch.device("meta"):
        theirs = CONSTRUCTORS[kind](weights=None, weights_backbone=None, num_classes=classes + 1)
        assert shapes(build_detector(kind, classes, 17, Network())) == shapes(theirs)


@pytest.mark.parametrize(
    ("kind", "classes", "count"),
    [("keypoints", 1, 59_137_258), ("boxes", 90, 41_755_286), ("masks", 90, 44_401_393)],
)
def test_the_number_of_parameters_is_torchvisions(kind, classes, count):
    with torch.device("meta"):
        model = build_detector(kind, classes, 17, Network())
    assert sum(value.numel() for value in model.parameters()) == count
    weights = detection.__dict__[
        {"keypoints": "Keypoint", "boxes": "Faster", "masks": "Mask"}[kind]
        + "RCNN_ResNet50_FPN_Weights"
    ]
    assert weights.COCO_V1.meta["num_params"] == count


def test_outputs_are_torchvisions_with_the_same_weights():
    network = Network(
        backbone="resnet18",
        channels=16,
        hidden=16,
        keypoint_convs=2,
        keypoint_channels=16,
        short_sides=[48],
        long_side=96,
        proposals=[40, 30],
        detections=5,
        score=0.0,
    )
    torch.manual_seed(0)
    ours = build_detector("keypoints", 2, 4, network).eval()
    # torchvision's constructor with its own defaults for all that Network leaves alone
    theirs = KeypointRCNN(
        ours.backbone,
        min_size=48,
        max_size=96,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_test=30,
        box_score_thresh=0.0,
        box_detections_per_img=5,
        box_head=detection.faster_rcnn.TwoMLPHead(16 * 49, 16),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(16, 3),
        keypoint_head=detection.keypoint_rcnn.KeypointRCNNHeads(16, (16, 16)),
        keypoint_predictor=detection.keypoint_rcnn.KeypointRCNNPredictor(16, 4),
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    images = [torch.rand(3, 48, 60), torch.rand(3, 50, 40)]
    with torch.no_grad():
        for mine, wanted in zip(ours(images), theirs(images), strict=True):
            assert len(mine["boxes"]) == 5
            assert mine.keys() == wanted.keys()
            for name in wanted:
                assert torch.equal(mine[name], wanted[name]), name


def test_the_papers_32x4d_has_the_width_that_its_name_says():
    with torch.device("meta"):
        body = build_detector("boxes", 1, 0, Network(backbone="resnext101_32x4d")).backbone.body
    assert sum(len(body[f"layer{n}"]) for n in (1, 2, 3, 4)) == 33
    second = body.layer1[0].conv2
    assert (second.groups, second.in_channels) == (32, 128)
    assert body.layer4[2].conv2.in_channels == 1024


def test_norms_are_frozen_and_so_are_the_first_stages():
    with torch.device("meta"):
        body = build_detector("boxes", 1, 0, Network(norm_eps=0.0)).backbone.body
    frozen = {n.split(".")[0] for n, p in body.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    norms = [each for each in body.modules() if isinstance(each, FrozenBatchNorm2d)]
    assert len(norms) == 53
    assert all(each.eps == 0 for each in norms)
    assert not any(isinstance(each, nn.BatchNorm2d) for each in body.modules())


def test_options_reach_the_network():
    network = Network(
        backbone="resnet18",
        channels=16,
        hidden=10,
        pool=5,
        keypoint_convs=3,
        keypoint_channels=12,
        map_size=24,
        keypoint_rois="torchvision",
        anchors=[8, 16, 32, 64, 128],
        ratios=[0.3, 3.0],
        short_sides=[90, 110, 100],
        long_side=200,
        mean=[0.1, 0.2, 0.3],
        std=[0.4, 0.5, 0.6],
        pre_nms=[90, 80],
        proposals=[70, 60],
        proposal_nms=0.61,
        rois=33,
        positive=0.4,
        score=0.07,
        nms=0.45,
        detections=11,
        stride_in_1x1=True,
    )
    with torch.device("meta"):
        model = build_detector("keypoints", 4, 6, network)
        network.keypoint_rois, network.least_keypoints = "detectron", 7
        other = build_detector("keypoints", 4, 6, network)
    heads, rpn, transform = model.roi_heads, model.rpn, model.transform
    assert model.backbone.out_channels == 16
    assert (heads.box_head.fc6.in_features, heads.box_head.fc7.out_features) == (400, 10)
    assert (heads.box_roi_pool.output_size, heads.keypoint_roi_pool.output_size) == ((5, 5), (6, 6))
    convs = [each for each in heads.keypoint_head if isinstance(each, nn.Conv2d)]
    assert [each.out_channels for each in convs] == [12, 12, 12]
    assert heads.keypoint_predictor.kps_score_lowres.out_channels == 6
    assert rpn.anchor_generator.sizes == ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))
    assert rpn.anchor_generator.aspect_ratios == ((0.3, 3.0),) * 5
    assert (transform.min_size, transform.max_size) == ((90, 110, 100), 200)
    assert (transform.image_mean, transform.image_std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert rpn._post_nms_top_n == {"training": 70, "testing": 60}
    assert rpn._pre_nms_top_n == {"training": 90, "testing": 80}
    assert rpn.nms_thresh == 0.61
    for each in (heads, other.roi_heads):
        sampler = each.fg_bg_sampler
        assert (sampler.batch_size_per_image, sampler.positive_fraction) == (33, 0.4)
        assert (each.score_thresh, each.nms_thresh, each.detections_per_img) == (0.07, 0.45, 11)
    assert type(heads) is RoIHeads
    assert isinstance(other.roi_heads, KeypointHeads)
    assert other.roi_heads.least_keypoints == 7


def test_the_last_of_the_short_sides_is_the_tests():
    model = build_detector("boxes", 1, 0, small(short_sides=[40, 24])).eval()
    batch, _ = model.transform([torch.rand(3, 32, 36)])
    assert batch.image_sizes == [(24, 27)]
    assert batch.tensors.shape[-2:] == (24, 28)  # padded to the coarsest stride only


def test_class_scores_and_offsets_start_small():
    torch.manual_seed(0)
    boxes = build_detector("boxes", 50, 0, small(hidden=300, cls_std=0.05)).roi_heads.box_predictor
    assert boxes.cls_score.weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert boxes.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert not boxes.cls_score.bias.any()
    assert not boxes.bbox_pred.bias.any()


@pytest.mark.parametrize(("kind", "loss"), [("masks", "loss_mask"), ("keypoints", "loss_keypoint")])
def test_a_small_network_learns_one_batch(kind, loss):
    torch.manual_seed(0)
    model = build_detector(kind, 1, 3, small(cls_std=0.01))
    values = list(model.parameters())
    images, targets = example()
    steps = []
    for _ in range(4):
        torch.manual_seed(0)  # the same regions each time
        losses = model(images, targets)
        slopes = torch.autograd.grad(sum(losses.values()), values)  # none is unused
        with torch.no_grad():
            for value, slope in zip(values, slopes, strict=True):
                value -= 0.2 * slope
        steps.append({name: value.item() for name, value in losses.items()})
    for name in ("loss_objectness", loss):
        assert steps[-1][name] < 0.95 * steps[0][name]


def test_the_small_network_of_the_experiments_has_a_quarter_of_a_million_parameters():
    network = small(channels=32, hidden=96, pool=7, keypoint_convs=3, keypoint_channels=32)
    model = build_detector("keypoints", 1, 9, network)
    assert 200_000 < sum(value.numel() for value in model.parameters()) < 260_000


# Oracle 6: what joints are in a map, by hand


def test_targets_of_joints_are_torchvisions_cells():
    box = torch.tensor([[10.0, 20, 66, 132]])  # 56 x 112: cells of 1 x 2 pixels
    points = [
        ([10.0, 20.0, 2], 0),  # first corner
        ([66.0, 132.0, 2], 55 * 56 + 55),  # last corner: the last cell, not the one after it
        ([66.0, 131.9, 1], 55 * 56 + 55),  # visibility 1 counts as 2
        ([37.5, 77.9, 2], 28 * 56 + 27),
        ([9.9, 60.0, 2], None),  # outside
        ([40.0, 132.1, 2], None),
        ([40.0, 60.0, 0], None),  # not labelled
    ]
    cells, valid = keypoints_to_heatmap(torch.tensor([[p for p, _ in points]]), box, 56)
    assert valid[0].tolist() == [int(cell is not None) for _, cell in points]
    assert cells[0].tolist() == [cell or 0 for _, cell in points]
    seen = find_visible(torch.tensor([[p for p, _ in points]]), box)
    assert torch.equal(seen, valid.bool())


# Oracle 11


@pytest.mark.parametrize("rois", ["detectron", "torchvision"])
def test_joints_that_are_all_invisible_give_no_loss_no_gradient_and_no_nan(rois):
    torch.manual_seed(0)
    model = build_detector("keypoints", 1, 3, small(keypoint_rois=rois))
    images, targets = example()
    hidden = [t | {"keypoints": torch.zeros_like(t["keypoints"])} for t in targets]
    loss = model(images, hidden)["loss_keypoint"]
    loss.backward()
    assert loss.item() == 0
    heads = model.roi_heads
    for part in (heads.keypoint_head, heads.keypoint_predictor):
        grads = [p.grad for p in part.parameters()]
        assert all(g is not None and not g.any() for g in grads)  # zero, not NaN


def test_one_visible_joint_gives_a_loss_and_a_gradient():
    torch.manual_seed(0)
    model = build_detector("keypoints", 1, 3, small())
    images, targets = example()
    points = targets[0]["keypoints"] * torch.tensor([1.0, 0, 0])[:, None]
    loss = model(images, [t | {"keypoints": points} for t in targets])["loss_keypoint"]
    loss.backward()
    assert loss.item() > 1
    weight = model.roi_heads.keypoint_predictor.kps_score_lowres.weight.grad
    assert weight[:, 0].any()
    assert not weight[:, 1:].any()


# Regions of the keypoint head


def test_keypoint_regions_are_positive_and_hold_a_visible_joint():
    torch.manual_seed(0)
    heads = build_detector("keypoints", 1, 2, small(rois=200, positive=0.5)).roi_heads
    targets = [
        {
            "boxes": torch.tensor([[0.0, 0, 20, 20], [30, 30, 50, 50]]),
            "labels": torch.tensor([1, 1]),
            "keypoints": torch.tensor([[[2.0, 2, 2], [9, 9, 0]], [[33.0, 33, 0], [40, 40, 0]]]),
        },
        {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "keypoints": torch.zeros(0, 2, 3),
        },
    ]
    proposals = torch.tensor(
        [
            [1.0, 1, 20, 20],  # positive, with the joint
            [4.0, 4, 20, 20],  # positive, but the joint is outside
            [31.0, 31, 50, 50],  # positive for the object without visible joints
            [0.0, 0, 9, 9],  # holds the joint, IoU 0.2
        ]
    )
    rois, matched = heads.draw_keypoint_rois([proposals, proposals], targets)
    assert sorted(rois[0].tolist()) == [[0, 0, 20, 20], [1, 1, 20, 20]]  # and the object itself
    assert matched[0].tolist() == [0, 0]
    assert rois[1].shape == (0, 4)
    assert box_iou(proposals[3:], targets[0]["boxes"]).max() < 0.5
    many = proposals[:1].repeat(300, 1)
    assert len(heads.draw_keypoint_rois([many], targets[:1])[0][0]) == 100  # rois * positive


@pytest.mark.parametrize(("least", "learns"), [(5, True), (6, False)])
def test_a_batch_with_too_few_visible_joints_does_not_train_the_keypoint_head(least, learns):
    torch.manual_seed(0)
    heads = build_detector("keypoints", 1, 3, small(least_keypoints=least)).roi_heads
    _, targets = example()
    rois = [target["boxes"] for target in targets]  # 3 joints in each of 2 regions
    maps = torch.randn(2, 3, 16, 16, requires_grad=True)
    loss = heads.keypoint_loss(maps, rois, targets, [torch.tensor([0])] * 2)
    assert bool(loss) == learns


def test_box_losses_are_the_same_with_either_kind_of_keypoint_regions():
    losses = []
    for rois in ("detectron", "torchvision"):
        torch.manual_seed(0)
        model = build_detector("keypoints", 1, 3, small(keypoint_rois=rois))
        losses.append(model(*example()))
    assert losses[0].keys() == losses[1].keys()
    for name in losses[0].keys() - {"loss_keypoint"}:
        assert torch.equal(losses[0][name], losses[1][name]), name


# What stops


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vgg16"}, "network.backbone is 'vgg16': choose a ResNet of torchvision"),
        ({"backbone": "resnet51"}, "network.backbone is 'resnet51'"),
        ({"keypoint_rois": "both"}, "choose detectron or torchvision"),
        ({"anchors": [32]}, "give 5 sizes, one for each level"),
        ({"map_size": 50}, "network.map_size=50 is no multiple of 4"),
        ({"mask_size": 0}, "network.mask_size=0 is no multiple of 2"),
        ({"proposals": [10]}, "network.proposals=.10.: give two whole numbers"),
        ({"pre_nms": [10, 0]}, "network.pre_nms=.10, 0.: give two whole numbers"),
        ({"short_sides": []}, "network.short_sides is empty"),
    ],
)
def test_options_that_make_no_network_stop_with_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        Network(**options)
