"""Detection transfer: torchvision's Mask R-CNN on our trunk."""

import pytest
import torch
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

from hashtag_pretrain.model import Network, build_model
from hashtag_pretrain.targets.detection import Detection, Instances, build_detector, to_device


def test_the_detector_of_a_resnet50_has_the_tensors_of_torchvisions():
    with torch.device("meta"):  # shapes need no values
        trunk = build_model(Network("resnet50"), classes=1)
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
        ours = build_detector(Network("resnet50"), trunk, 90, Detection()).state_dict()
    shapes = {n: v.shape for n, v in theirs.items() if not n.endswith("num_batches_tracked")}
    assert {name: value.shape for name, value in ours.items()} == shapes


def test_the_body_has_the_trunks_weights_and_its_first_layers_do_not_learn():
    network = Network("resnext50_32x4d")
    trunk = build_model(network, classes=1)
    model = build_detector(network, trunk, 3, Detection(channels=16))
    body = model.backbone.body
    for name, value in trunk.state_dict().items():
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked"):
            assert torch.equal(body.state_dict()[name], value)
    learning = {n.split(".")[0] for n, p in body.named_parameters() if p.requires_grad}
    assert learning == {"layer2", "layer3", "layer4"}
    assert any(isinstance(module, FrozenBatchNorm2d) for module in body.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in body.modules())


@pytest.mark.parametrize(("trainable", "count"), [(5, 5), (4, 4), (0, 0)])
def test_as_many_of_the_last_layers_learn_as_are_asked_for(trainable, count):
    network = Network("resnet50")
    with torch.device("meta"):  # which layers learn does not depend on their values
        trunk = build_model(network, classes=1)
        model = build_detector(network, trunk, 3, Detection(channels=16, trainable=trainable))
    body = model.backbone.body
    learning = {n.split(".")[0] for n, p in body.named_parameters() if p.requires_grad}
    assert len(learning - {"bn1"}) == count


def test_a_trunk_without_four_stages_is_refused():
    network = Network("small", width=8)
    with pytest.raises(ValueError, match=r"network\.name=small"):
        build_detector(network, build_model(network, 1), 3, Detection())


def test_labels_of_the_network_start_at_one():
    target = {
        "boxes": torch.tensor([[0.0, 0, 4, 4]]),
        "masks": torch.ones(1, 8, 8, dtype=torch.bool),
        "labels": torch.tensor([0]),
        "file": "a.jpg",
    }
    images, targets = to_device([torch.full((3, 8, 8), 255, dtype=torch.uint8)], [target])
    assert images[0].max() == 1
    assert targets[0]["labels"].tolist() == [1]
    assert set(targets[0]) == {"boxes", "masks", "labels"}


def test_coco_is_read_without_crowds(shared_data):
    options = Detection(root=str(shared_data / "coco_mini"), limit=3)
    training = Instances(options, True)
    validation = Instances(options, False, training.source.categories)
    assert len(training) == 3
    image, target = training[0]
    assert image.dtype == torch.uint8
    assert len(target["boxes"]) == len(target["masks"]) == len(target["labels"]) > 0
    assert validation.category_ids == training.category_ids


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trainable": 6}, "detection.trainable"),
        ({"short_side": 2000}, "detection.short_side"),
        ({"steps": 0}, "detection.steps"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Detection(**options)
