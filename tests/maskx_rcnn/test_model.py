"""The network around the mask branch: torchvision's names and shapes, and what options change."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms.v2.functional import resize

from maskx_rcnn.model import MaskBranch, Network, mask_rcnn, segment
from maskx_rcnn.transfer import MaskXHeads

PREDICTOR = "roi_heads.mask_predictor."


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")  # frozen norms count none
    }


def small(**branch) -> MaskRCNN:
    torch.manual_seed(0)
    network = Network(
        backbone="small",
        channels=8,
        hidden=12,
        mask_convs=1,
        mask_size=8,
        anchors=[12, 24],
        short_side=48,
        long_side=96,
        cls_std=0.3,
        score=0.0,
        detections=6,
    )
    return mask_rcnn(5, network, MaskBranch(**branch)).eval()


@pytest.fixture(scope="module")
def theirs() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes(maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=81))


def test_the_oracle_has_all_names_and_shapes_of_torchvisions(theirs):
    with torch.device("meta"):
        assert shapes(mask_rcnn(80, Network(), MaskBranch(kind="specific"))) == theirs


def test_transfer_has_them_but_for_the_predictor(theirs):
    with torch.device("meta"):
        ours = shapes(mask_rcnn(80, Network(), MaskBranch(mlp=1)))
    kept = {name: shape for name, shape in theirs.items() if "mask_fcn_logits" not in name}
    assert kept.items() <= ours.items()
    own = {name.removeprefix(PREDICTOR): shape for name, shape in ours.items() if name not in kept}
    assert own == {
        "transfer.0.weight": (256, 5120),
        "transfer.0.bias": (256,),
        "transfer.2.weight": (256, 256),
        "transfer.2.bias": (256,),
        "mlp.0.weight": (784, 200_704),
        "mlp.0.bias": (784,),
    }


def test_norms_are_frozen_and_so_are_the_first_stages():
    with torch.device("meta"):
        bodies = [
            mask_rcnn(3, Network(backbone="resnet18", freeze_at=stages), MaskBranch()).backbone.body
            for stages in (0, 2)
        ]
    assert all(p.requires_grad for p in bodies[0].parameters())
    frozen = {n.split(".")[0] for n, p in bodies[1].named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    assert isinstance(bodies[0].bn1, FrozenBatchNorm2d)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in bodies[0].modules())


@pytest.mark.parametrize("moved", [False, True])
def test_strides_lie_in_the_first_or_the_second_convolution_of_a_stage(moved):
    with torch.device("meta"):
        network = Network(backbone="resnet50", stride_in_1x1=moved)
        body = mask_rcnn(3, network, MaskBranch()).backbone.body
        maps = body(torch.zeros(1, 3, 64, 64))
    for stage in ("layer2", "layer3", "layer4"):
        first, *rest = body[stage]
        assert first.conv1.stride == ((2, 2) if moved else (1, 1))
        assert first.conv2.stride == ((1, 1) if moved else (2, 2))
        assert first.downsample[0].stride == (2, 2)
        assert {block.conv1.stride for block in rest} == {(1, 1)}
    assert body["layer1"][0].conv1.stride == (1, 1)
    assert [tuple(each.shape[-2:]) for each in maps.values()] == [(s, s) for s in (16, 8, 4, 2)]


def test_options_reach_the_network():
    network = Network(
        backbone="resnet18",
        channels=16,
        hidden=10,
        mask_convs=3,
        mask_size=12,
        anchors=[8, 16, 32, 64, 128],
        ratios=[0.3, 3.0],
        short_side=100,
        long_side=200,
        mean=[0.1, 0.2, 0.3],
        std=[0.4, 0.5, 0.6],
        proposals=[70, 60],
        proposal_nms=0.61,
        rois=33,
        positive=0.4,
        score=0.07,
        nms=0.45,
        detections=11,
    )
    branch = MaskBranch(train_boxes="gt", match="overlap", source="box", layers=3, hidden=7)
    model = mask_rcnn(4, network, branch, classes_with_masks=[1, 3])
    heads, rpn, transform = model.roi_heads, model.rpn, model.transform
    assert model.backbone.out_channels == 16
    assert (heads.box_head.fc7.out_features, len(heads.mask_head)) == (10, 3)
    assert heads.mask_roi_pool.output_size == (6, 6)
    assert rpn.anchor_generator.sizes == ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))
    assert rpn.anchor_generator.aspect_ratios == ((0.3, 3.0),) * 5
    assert (transform.min_size, transform.max_size) == ((100,), 200)
    assert (transform.image_mean, transform.image_std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert rpn._post_nms_top_n == {"training": 70, "testing": 60}
    assert rpn._pre_nms_top_n == {"training": 2000, "testing": 1000}
    assert rpn.nms_thresh == 0.61
    sampler = heads.fg_bg_sampler
    assert (sampler.batch_size_per_image, sampler.positive_fraction) == (33, 0.4)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.07, 0.45, 11)
    assert isinstance(heads, MaskXHeads)
    assert (heads.train_boxes, heads.match) == ("gt", "overlap")
    assert heads.classes_with_masks == {1, 3}
    layers = [each for each in heads.mask_predictor.transfer if isinstance(each, nn.Linear)]
    assert [(each.in_features, each.out_features) for each in layers] == [(40, 7), (7, 7), (7, 16)]


def test_options_reach_the_start_of_the_heads():
    network = Network(backbone="small", hidden=300, anchors=[12, 24], cls_std=0.05, box_std=0.02)
    starts = [
        mask_rcnn(50, network, MaskBranch(init=init, init_scale=scale)).roi_heads
        for init, scale in (("fan_out", 1.0), ("fan_out", 0.1), ("fan_in", 1.0))
    ]
    boxes = starts[0].box_predictor
    assert boxes.cls_score.weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert boxes.bbox_pred.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not boxes.cls_score.bias.any()
    assert not boxes.bbox_pred.bias.any()
    stds = [heads.mask_predictor.transfer[0].weight.std().item() for heads in starts]
    uniform = (2 / 1500 / 3) ** 0.5  # within +- sqrt(2 / fan_in)
    assert stds == pytest.approx([(2 / 256) ** 0.5, 0.1 * (2 / 256) ** 0.5, uniform], rel=0.05)


@pytest.mark.parametrize("kind", ["agnostic", "specific"])
def test_baselines_have_no_transfer(kind):
    predictor = small(kind=kind, standardise=True, mlp=1).roi_heads.mask_predictor
    assert predictor.transfer is None
    assert predictor.standardise is None
    assert predictor.mask_fcn_logits.out_channels == (1 if kind == "agnostic" else 6)
    assert predictor.mlp is not None


@torch.no_grad()
def found(model: MaskRCNN, images: list[Tensor]) -> list[dict[str, Tensor]]:
    return model([image.clone() for image in images])


def test_masks_of_boxes_that_a_user_gives_are_those_of_the_results():
    model = small(mlp=1)
    images = [torch.rand(3, 48, 48), torch.rand(3, 48, 80)]
    results = found(model, images)
    boxes, labels = ([each[name] for each in results] for name in ("boxes", "labels"))
    assert [len(each) for each in boxes] == [6, 6]
    masks = segment(model, images, boxes, labels)
    for mask, result, image in zip(masks, results, images, strict=True):
        assert mask.shape == (6, *image.shape[1:])
        assert mask.any()
        assert torch.equal(mask, result["masks"][:, 0] >= 0.5)


def test_boxes_and_masks_are_in_pixels_of_an_image_that_the_network_resizes():
    model = small(kind="agnostic")
    nn.init.ones_(model.roi_heads.mask_predictor.mask_fcn_logits.bias)  # masks fill their boxes
    box = torch.tensor([[10.0, 20, 70, 60]])
    (mask,) = segment(model, [torch.rand(3, 96, 120)], [box], [torch.tensor([1])])
    assert mask.shape == (1, 96, 120)
    rows, columns = mask[0].nonzero().T
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert torch.stack(edges).tolist() == pytest.approx(box[0].tolist(), abs=2)


def paste(map_: Tensor, box: list[float], height: int, width: int) -> Tensor:
    """Detectron's: a rim of a pixel, the box grown with it and cut to whole pixels, bilinear."""
    size = len(map_) + 2
    padded = torch.zeros(size, size)
    padded[1:-1, 1:-1] = map_
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    across, down = (side * size / (size - 2) / 2 for side in (box[2] - box[0], box[3] - box[1]))
    left, top, right, low = (int(e) for e in (x - across, y - down, x + across, y + down))
    sides = [max(1, low - top + 1), max(1, right - left + 1)]
    drawn = resize(padded[None], sides, antialias=False)[0] > 0.5
    whole = torch.zeros(height + 200, width + 200, dtype=torch.bool)
    whole[100 + top :, 100 + left :][: sides[0], : sides[1]] = drawn
    return whole[100:-100, 100:-100]


def test_masks_are_pasted_as_detectron_does():
    torch.manual_seed(0)
    model = small()
    corners = torch.rand(30, 2) * 60
    boxes = torch.cat([corners, corners + 20 + 70 * torch.rand(30, 2)], 1)
    maps = resize(torch.rand(30, 5, 5), [28, 28])
    result = [{"boxes": boxes, "masks": maps[:, None], "labels": torch.ones(30)}]
    (found,) = model.transform.postprocess(result, [(96, 120)], [(96, 120)])
    for mask, map_, box in zip(found["masks"][:, 0] > 0.5, maps, boxes.tolist(), strict=True):
        wanted = paste(map_, box, 96, 120)
        assert wanted.any()
        assert torch.equal(mask, wanted)


def test_an_image_without_boxes_has_no_masks():
    model = small()
    image = torch.rand(3, 48, 48)
    empty, no_label = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    one = torch.tensor([[5.0, 5, 30, 30]])
    first, second = segment(model, [image, image], [empty, one], [no_label, torch.tensor([2])])
    assert first.shape == (0, 48, 48)
    assert second.shape == (1, 48, 48)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backbone": "vgg16"}, "network.backbone=vgg16 is unknown: choose resnet101, "),
        ({"backbone": "resnet1"}, "network.backbone=resnet1 is unknown: .* or small"),
        ({"anchors": []}, r"network.anchors=\[\]: give 5 sizes, one for each map"),
        ({"backbone": "small"}, "give 2 sizes, one for each map of network.backbone=small"),
    ],
)
def test_a_backbone_that_cannot_be_built_is_refused_in_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        mask_rcnn(3, Network(**options), MaskBranch())
