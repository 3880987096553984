"""Mask and Keypoint R-CNN with blocks, and COCO's photos for them; card, section 7, number 15."""

import contextlib
import copy
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18
from torchvision.models.detection import keypointrcnn_resnet50_fpn, maskrcnn_resnet50_fpn

from nonlocal_.block import Block
from nonlocal_.config import Config, Data
from nonlocal_.inputs.photos import Photos, evaluate_detector
from nonlocal_.net.detectors import X152, Detector, build_detector, imagenet_weights, load_weights
from nonlocal_.net.insert import insert

pytestmark = pytest.mark.filterwarnings("ignore:A non-local block sees a map")

KINDS = ["masks", "keypoints"]
HEAD = ["head.2", "head.4", "head.6", "head.8"]
AT = {"masks": ["1-block"], "keypoints": ["1-block", *HEAD]}  # Tables 5 and 6
CONV = Block(norm="none", zero_init="conv")


def narrow(kind: str, **options: Any) -> Detector:
    """A detector that runs in a tenth of a second."""
    small: dict[str, Any] = {
        "backbone": "resnet18",
        "channels": 16,
        "hidden": 32,
        "keypoint_channels": 16,
        "anchors": [16, 32, 64, 96, 128],
        "short_sides": [64],
        "long_side": 96,
        "proposals": [40, 20],
        "rois": 8,
        "score": 0.0,  # an untrained network is sure of nothing
        "detections": 5,
    }
    return Detector(kind=kind, **small | options)


@cache
def plain(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return build_detector(narrow(kind), None, 3, 17)


def build(kind: str, at: list[str], block: Block | None = None) -> Any:
    """A detector of three classes with these blocks, the same every time."""
    torch.manual_seed(1)
    return insert(copy.deepcopy(plain(kind)), at, block)


def example(kind: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of one object each, as the network takes them."""
    torch.manual_seed(1)
    images = [torch.rand(3, 64, 80), torch.rand(3, 72, 64)]
    targets: list[dict[str, Tensor]] = [
        {"boxes": torch.tensor([[8.0, 8, 50, 56]]), "labels": torch.tensor([k])} for k in (1, 2)
    ]
    for image, target in zip(images, targets, strict=True):
        if kind == "masks":
            target["masks"] = torch.zeros(1, *image.shape[1:], dtype=torch.uint8)
            target["masks"][:, 8:56, 8:50] = 1
        else:
            target["keypoints"] = torch.full((1, 17, 3), 2.0)
            target["keypoints"][..., :2] = 10 + 35 * torch.rand(1, 17, 2)
    return images, targets


# Detectors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [None, CONV], ids=["batch", "conv"])
def test_blocks_at_their_start_leave_detections_and_losses_bit_equal(kind, block):
    images, targets = example(kind)
    results = []
    for at in ([], AT[kind]):
        model = build(kind, at, block)
        torch.manual_seed(2)  # of the regions drawn
        losses = model(images, targets)
        with torch.no_grad():
            results.append((losses, model.eval()(images)))
    (losses, found), (others, same) = results
    assert losses.keys() == others.keys()
    assert all(torch.equal(losses[name], others[name]) for name in losses)
    assert all(len(each["boxes"]) == 5 for each in found)
    for one, other in zip(found, same, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("kind", "theirs", "classes", "joints"),
    [("masks", maskrcnn_resnet50_fpn, 90, 0), ("keypoints", keypointrcnn_resnet50_fpn, 1, 17)],
)
def test_without_blocks_names_and_shapes_are_torchvisions(kind, theirs, classes, joints):
    with torch.device("meta"):
        ours = build_detector(Detector(kind=kind), None, classes, joints)
        expected = theirs(weights=None, weights_backbone=None)
    shapes = {name: value.shape for name, value in expected.state_dict().items()}
    shapes = {k: v for k, v in shapes.items() if not k.endswith("num_batches_tracked")}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes


def test_x152_has_the_blocks_and_groups_of_its_name():
    with torch.device("meta"):
        model = build_detector(Detector(backbone=X152, at=["1-block"]), None, 80)
    body = model.backbone.body
    assert [len(body[f"layer{k}"]) for k in (1, 2, 3, 4)] == [3, 8, 36, 3]
    convs = [body[f"layer{k}"][0].conv2 for k in (1, 2, 3, 4)]
    assert [(c.out_channels, c.groups) for c in convs] == [(256 * 2**k, 32) for k in range(4)]
    assert hasattr(body.layer3[34], "nl")


def test_one_block_costs_less_than_5_percent_of_mask_rcnn():
    block = Block(algorithm="naive")  # which multiplies most
    counts = []
    for at in ([], ["1-block"]):
        with torch.device("meta"):
            model = build_detector(Detector(at=at), block, 80).eval()
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():  # shapes alone
            model.to_empty(device="cpu")
            with FlopCounterMode(display=False) as counter:
                maps = model.backbone(torch.empty(1, 3, 800, 1344))
                model.rpn.head(list(maps.values()))
                heads = model.roi_heads
                heads.box_predictor(heads.box_head(torch.empty(1000, 256, 7, 7)))
                heads.mask_predictor(heads.mask_head(torch.empty(100, 256, 14, 14)))
        counts.append(counter.get_total_flops())
    assert 1.01 < counts[1] / counts[0] < 1.05  # Sec. 5


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_finite_and_the_blocks_learn_while_frozen_parts_stay(kind):
    images, targets = example(kind)
    model = build(kind, AT[kind], CONV)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    for _ in range(2):
        losses = model(images, targets)
        head = "loss_mask" if kind == "masks" else "loss_keypoint"
        rpn = {"loss_objectness", "loss_rpn_box_reg"}
        assert set(losses) == {"loss_classifier", "loss_box_reg", head, *rpn}
        total = sum(losses.values())
        assert torch.isfinite(total)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    after = model.state_dict()
    same = {name for name in after if torch.equal(after[name], before[name])}
    body = "backbone.body."
    frozen = {name for name in after if name.startswith((f"{body}conv1", f"{body}layer1"))}
    norms = {name for name in after if name.startswith(body) and (".bn" in name or ".1." in name)}
    assert frozen <= same
    assert {name for name in norms if ".nl." not in name and "conv" not in name} <= same
    blocks = {name for name in after if ".nl." in name}
    assert len(blocks) == 8 * len(AT[kind])
    learn = {name for name in blocks if name.endswith("weight")}
    assert not learn & same


def test_a_photo_of_nobody_passes_the_blocks_of_the_head():
    model = build("keypoints", HEAD).eval()
    model.roi_heads.score_thresh = 1.0
    found = model([torch.rand(3, 64, 64)])[0]
    assert found["boxes"].shape == (0, 4)
    assert found["keypoints"].shape == (0, 17, 3)


def test_keypoint_rcnn_with_all_blocks_trains_under_ddp_as_without(tmp_path):
    images, targets = example("keypoints")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        gradients = []
        for wrap in (lambda model: model, DistributedDataParallel):
            model = build("keypoints", AT["keypoints"])
            wrapped = wrap(model)
            for number in range(2):  # DDP raises at a step if the one before left out a tensor
                torch.manual_seed(number)
                model.zero_grad()
                sum(wrapped(images, targets).values()).backward()
            gradients.append(model.roi_heads.keypoint_head[3].nl.bn.weight.grad)
    finally:
        torch.distributed.destroy_process_group()
    assert gradients[0].any()
    torch.testing.assert_close(gradients[0], gradients[1])


def test_weights_of_a_resnet_go_below_the_pyramid():
    model = build("masks", ["1-block"])
    trunk = resnet18()
    with torch.no_grad():
        for value in trunk.state_dict().values():
            value.copy_(torch.rand(value.shape))
    kept = load_weights(model, trunk.state_dict())
    body = model.backbone.body
    assert not [name for name in kept if name.startswith("backbone.body") and ".nl." not in name]
    assert torch.equal(body.layer3[1].bn2.running_var, trunk.layer3[1].bn2.running_var)
    assert torch.equal(body.conv1.weight, trunk.conv1.weight)


def test_weights_of_an_older_torchvision_and_of_other_classes_load_into_a_detector_with_blocks():
    torch.manual_seed(3)
    old = build_detector(narrow("masks"), None, 7)
    state = dict(old.state_dict())
    for number in range(4):  # the names before version 2 of the head
        for part in ("weight", "bias"):
            value = state.pop(f"roi_heads.mask_head.{number}.0.{part}")
            state[f"roi_heads.mask_head.mask_fcn{number + 1}.{part}"] = value
    model = build("masks", ["1-block"])
    kept = load_weights(model, state)
    scores = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
    assert all(name.startswith(scores) or ".nl." in name for name in kept)
    assert torch.equal(model.roi_heads.mask_head[3][0].bias, old.roi_heads.mask_head[3][0].bias)
    assert torch.equal(model.rpn.head.conv[0][0].weight, old.rpn.head.conv[0][0].weight)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="the weights have no tensor of this detector: give"):
        load_weights(build("masks", []), {"head.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"no weights of detector\.backbone=resnext152_32x8d"):
        imagenet_weights(X152)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "boxes"}, "detector.kind is 'boxes': choose masks or keypoints"),
        ({"backbone": "vgg16"}, "detector.backbone is 'vgg16': choose a ResNet"),
        ({"anchors": [32]}, "detector.anchors=.32.: give 5 whole numbers from 1 up"),
        ({"proposals": [10, 0]}, "detector.proposals=.10, 0.: give 2 whole numbers"),
        ({"short_sides": []}, "detector.short_sides is empty"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Detector(**options)


# Photos

JOINTS = ["nose", "left_hand", "right_hand"]
SIZES = [(40, 48), (48, 40), (40, 48), (40, 48)]  # height, width


def thing(image: int, **fields: Any) -> dict[str, Any]:
    square = {"segmentation": [[6, 6, 30, 6, 30, 30, 6, 30]], "bbox": [6, 6, 24, 24], "area": 576}
    points = {"keypoints": [10, 12, 2, 8, 20, 1, 0, 0, 0], "num_keypoints": 2}
    return {"image_id": image, "category_id": 4, "iscrowd": 0, **square, **points} | fields


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photo 1 has an object and a crowd, 2 and 3 an object, 4 a crowd only; 3 has no joint."""
    folder = tmp_path_factory.mktemp("coco")
    runs = {"size": [40, 48], "counts": [0, 40 * 48]}
    crowd = {"iscrowd": 1, "segmentation": runs, "bbox": [0, 0, 48, 40], "area": 40 * 48}
    crowd |= {"keypoints": [0] * 9, "num_keypoints": 0}
    things = [thing(1), thing(1, **crowd), thing(2), thing(4, **crowd)]
    things.append(thing(3, keypoints=[0] * 9, num_keypoints=0))
    content: dict[str, list] = {"categories": [{"id": 4, "name": "p", "keypoints": JOINTS}]}
    content["annotations"] = [{"id": number} | each for number, each in enumerate(things, 1)]
    random = np.random.default_rng(0)
    content["images"] = []
    (folder / "annotations").mkdir()
    for number, (height, width) in enumerate(SIZES, 1):
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        entry = {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
        content["images"].append(entry)
    for split in ("train", "val"):
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    stem = "person_keypoints_train"
    (folder / "annotations" / f"{stem}.json").write_text(json.dumps(content))
    return folder


def settings(**options: Any) -> Config:
    data = Data(name="coco", root="", workers=0)
    return Config(**{"task": "detection", "batch_size": 4, "per_gpu": 2, "data": data} | options)


def test_a_training_photo_has_its_objects_without_crowds(root):
    photos = Photos(root, "train", "masks", training=True, flip=0)
    assert [Path(file).name for file in photos.files] == ["1.png", "2.png", "3.png"]
    image, target = photos[0]
    assert image.shape == (3, 40, 48)
    assert target["boxes"].tolist() == [[6, 6, 30, 30]]
    assert target["labels"].tolist() == [0]
    expected = torch.zeros(1, 40, 48, dtype=torch.bool)
    expected[:, 6:30, 6:30] = True
    assert torch.equal(target["masks"], expected)


def test_a_mirrored_person_has_left_and_right_swapped(root):
    photos = Photos(root, "train", "keypoints", training=True, flip=1)
    assert [Path(file).name for file in photos.files] == ["1.png", "2.png"]  # 3 has no joint
    _, target = photos[0]
    assert target["boxes"].tolist() == [[18, 6, 42, 30]]
    nose, left, right = target["keypoints"][0].tolist()
    assert nose == [48 - 10.5, 12.5, 2]  # files count pixel centres from 0
    assert left == [0, 0, 0]
    assert right == [48 - 8.5, 20.5, 1]


def test_a_step_is_cut_into_pieces_as_the_network_takes_them(root):
    photos = Photos(root, "train", "masks", training=True, limit=2)
    steps = list(photos.batches(settings(), 0, 3))
    assert [[len(piece.images) for piece in pieces] for pieces in steps] == [[2, 2]] * 3
    piece = steps[0][0]
    images, targets = piece.to(torch.device("cpu"))
    assert piece.files == [target["file"] for target in piece.targets]
    assert images[0].dtype == torch.float32
    assert torch.equal(images[0] * 255, piece.images[0].float())
    assert targets[0]["labels"].tolist() == [1]
    assert set(targets[0]) == {"boxes", "labels", "masks"}
    again = next(photos.batches(settings(), 2, 3))  # as a resumed run
    assert [p.files for p in again] == [p.files for p in steps[2]]
    assert torch.equal(again[1].images[1], steps[2][1].images[1])


def test_faults_of_photos_are_named(root, tmp_path):
    photos = Photos(root, "train", "masks", training=True)
    with pytest.raises(ValueError, match="batch_size=4 is no multiple of per_gpu=3: give"):
        next(photos.batches(settings(per_gpu=3), 0, 1))
    file = tmp_path / "annotations" / "train.json"
    file.parent.mkdir()
    content = json.loads((root / "annotations" / "train.json").read_text())
    content["categories"][0]["keypoints"] = ["a", "b", "c"]
    file.write_text(json.dumps(content))
    for number in range(1, 5):
        (tmp_path / f"{number}.png").symlink_to(root / f"{number}.png")
    with pytest.raises(ValueError, match=r"names no joints with a left and a right.*clip.flip=0"):
        Photos(tmp_path, "train", "keypoints", training=True)
    crowds = [each for each in content["annotations"] if each["iscrowd"]]
    file.write_text(json.dumps(content | {"annotations": crowds}))
    with pytest.raises(ValueError, match="has nothing to train on: give another split"):
        Photos(tmp_path, "train", "masks", training=True)


class Truth(nn.Module):
    """Answers with the truth of the photos in their order."""

    def __init__(self, photos: Photos) -> None:
        super().__init__()
        self.photos, self.next = photos, 0

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert not self.training
        results = []
        for image in images:
            own, target = self.photos[self.next]
            assert torch.equal(image * 255, own.float())
            result = {"boxes": target["boxes"], "labels": target["labels"] + 1}
            result["scores"] = torch.full((len(target["labels"]),), 0.9)
            if "masks" in target:
                result["masks"] = target["masks"][:, None].float()
            else:
                result["keypoints"] = target["keypoints"]
                unlabelled = ~(target["keypoints"][..., 2] > 0).any(1)
                result["scores"][unlabelled] = 0.1  # COCO counts them as wrong
            results.append(result)
            self.next += 1
        return results


FIGURES = {"masks": ("box_AP", "mask_AP"), "keypoints": ("box_AP", "keypoint_AP")}


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_as_detections_has_an_ap_of_100(kind, coco_mini):
    photos = Photos(coco_mini, "val", kind, training=False)
    model = Truth(photos).train()
    found = evaluate_detector(model, photos, batch_size=3)
    assert {name: found[name] for name in FIGURES[kind]} == dict.fromkeys(FIGURES[kind], 100)
    assert model.training


@pytest.fixture(scope="module")
def coco_mini(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 8 photos of each split, with all people in them."""
    folder = tmp_path_factory.mktemp("mini")
    (folder / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (folder / split).symlink_to(shared_data / "coco_mini" / split)
        for stem in ("instances", "person_keypoints"):
            name = f"annotations/{stem}_{split}.json"
            content = json.loads((shared_data / "coco_mini" / name).read_bytes())
            content["images"] = content["images"][:8]
            ids = {each["id"] for each in content["images"]}
            own = [each for each in content["annotations"] if each["image_id"] in ids]
            (folder / name).write_text(json.dumps(content | {"annotations": own}))
    return folder


def test_the_photos_of_a_piece_are_all_wide_or_all_tall(coco_mini):
    photos = Photos(coco_mini, "train", "masks", training=True)
    pieces = [piece for step in photos.batches(settings(), 0, 3) for piece in step]
    tall = [{image.shape[1] > image.shape[2] for image in piece.images} for piece in pieces]
    assert all(len(each) == 1 for each in tall)
    assert set.union(*tall) == {True, False}


@pytest.mark.parametrize("kind", KINDS)
def test_on_coco_a_detector_with_blocks_trains_and_is_scored_as_pycocotools_does(
    kind, coco_mini, tmp_path
):
    photos = Photos(coco_mini, "train", kind, training=True)
    torch.manual_seed(0)
    model = build_detector(narrow(kind, at=AT[kind]), CONV, len(photos.names), photos.joint_count)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.002)
    for pieces in photos.batches(settings(), 0, 2):
        optimizer.zero_grad()
        for piece in pieces:
            losses = model(*piece.to(torch.device("cpu")))
            assert all(torch.isfinite(loss) for loss in losses.values())
            sum(losses.values()).backward()
        optimizer.step()
    val = Photos(coco_mini, "val", kind, training=False, like=photos)
    file = tmp_path / "detections.json"
    found = evaluate_detector(model, val, batch_size=2, save=file)
    columns = {f"{name}{ending}" for name in FIGURES[kind] for ending in ("", "50", "75")}
    assert columns <= set(found)
    stem = "instances" if kind == "masks" else "person_keypoints"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(coco_mini / "annotations" / f"{stem}_val2017.json")
        for name in FIGURES[kind]:
            iou = {"box_AP": "bbox", "mask_AP": "segm", "keypoint_AP": "keypoints"}[name]
            content = json.loads(file.read_text())
            if iou != "bbox":  # else areas are those of the boxes
                content = [{k: v for k, v in each.items() if k != "bbox"} for each in content]
            evaluation = COCOeval(truth, truth.loadRes(content), iou)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert found[name] == pytest.approx(100 * evaluation.stats[0])
