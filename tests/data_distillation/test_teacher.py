"""Teachers: a run, a file or torchvision's, and what their outputs mean in the labelled file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import detection, get_model

from common.coco.fields import Categories
from common.run import checkpoint
from common.run.options import Options
from data_distillation.config import Config, Data, may_change
from data_distillation.model import build_detector
from data_distillation.weights.teacher import (
    NO_CLASS,
    Detector,
    coco_names,
    digest_weights,
    find_misfit,
    is_official,
    load_teacher,
    match_classes,
    remove_eps,
)
from tests.data_distillation.test_model import small

MOBILE = "fasterrcnn_mobilenet_v3_large_320_fpn"
BOXES_V2 = "fasterrcnn_resnet50_fpn_v2"
MOBILE_FILE = f"{MOBILE}-907ea3f9.pth"
JOINTS = ["nose", "left hand", "right hand"]
VOC = {"airplane": "aeroplane", "couch": "sofa", "tv": "tvmonitor"}


def labelled(*names: str, ids=None, joints=()) -> dict:
    ids = ids or range(1, len(names) + 1)
    return {
        "categories": [
            {"id": n, "name": name} | ({"keypoints": list(joints)} if joints else {})
            for n, name in zip(ids, names, strict=True)
        ]
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that trained keypoints of two classes, and its network."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    torch.manual_seed(0)
    cfg = Config(output_dir=str(folder), data=Data(root=""), network=small(short_sides=[40]))
    model = build_detector("keypoints", 2, 3, cfg.network)
    categories = Categories([3, 7], ["cat", "dog"])
    checkpoint.lock(folder)
    for step in (5, 10):
        checkpoint.save(
            folder,
            step,
            model=model,
            category_ids=[3, 7],
            categories=categories,
            joints=JOINTS,
            options=Options(cfg, may_change(cfg)),
        )
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight)
    checkpoint.unlock(folder)
    return folder


@pytest.fixture(scope="module")
def mobile(tmp_path_factory):
    """Torch hub's cache, with a file of 91 outputs in place of a detector's published weights."""
    torch.manual_seed(0)
    model = get_model(MOBILE, weights=None, weights_backbone=None)
    folder = tmp_path_factory.mktemp("hub")
    (folder / "checkpoints").mkdir()
    file = folder / "checkpoints" / MOBILE_FILE
    torch.save({"model": model.state_dict(), "epoch": 3}, folder / "mine.pth")
    torch.save(model.state_dict(), file)
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(folder))
    yield folder / "mine.pth", model.eval()
    torch.hub.set_dir(before)


def test_a_run_is_its_newest_checkpoint_with_its_own_network(run):
    teacher = load_teacher(str(run), labelled("cat", "dog", ids=[3, 7], joints=JOINTS))
    assert (teacher.kind, teacher.category_ids, teacher.dropped) == ("keypoints", [3, 7], [])
    assert teacher.mirrored == (0, 2, 1)
    assert teacher.where == str(run / "checkpoint-00000010.pt")
    assert teacher.model.transform.min_size == (40,)
    stored = checkpoint.load(run / "checkpoint-00000010.pt")["parts"]["model"]
    for name, value in teacher.model.state_dict().items():
        assert torch.equal(value, stored[name]), name
    assert not teacher.model.training
    assert not any(value.requires_grad for value in teacher.model.parameters())


def test_the_file_of_a_run_is_the_run(run):
    content = labelled("cat", "dog", joints=JOINTS)
    first, last = (
        load_teacher(str(run / f"checkpoint-000000{n}.pt"), content) for n in ("05", "10")
    )
    assert first.digest != last.digest  # round 2 has another teacher
    assert last.digest == load_teacher(str(run), content).digest


def test_ids_are_those_of_the_labelled_file_whatever_its_order(run):
    content = labelled("dog", "cat", ids=[9, 2], joints=JOINTS)
    assert load_teacher(str(run), content).category_ids == [2, 9]


def test_a_class_that_the_labelled_file_lacks_is_dropped_and_named(run):
    teacher = load_teacher(str(run), labelled("dog", ids=[4], joints=JOINTS))
    assert (teacher.category_ids, teacher.dropped) == ([NO_CLASS, 4], ["cat"])


def test_other_names_stop_with_both_lists_and_a_map_resolves_them(run, tmp_path):
    content = labelled("cat", "hound", joints=JOINTS)
    with pytest.raises(ValueError, match="has no class hound") as error:
        load_teacher(str(run), content)
    assert "\nteacher: cat, dog\nlabelled file: cat, hound\n" in str(error.value)
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"dog": "hound"}))
    teacher = load_teacher(str(run), content, categories=str(file))
    assert teacher.category_ids == [1, 2]
    file.write_text(json.dumps({"dog": "hund", "bird": None}))
    with pytest.raises(ValueError, match=r"names.json names bird, hund.\nteacher: cat, dog"):
        load_teacher(str(run), content, categories=str(file))
    file.write_text(json.dumps({"dog": None}))
    teacher = load_teacher(str(run), labelled("cat", joints=JOINTS), categories=str(file))
    assert teacher.category_ids == [1, NO_CLASS]


@pytest.mark.parametrize(
    ("joints", "message"),
    [
        (["nose", "right hand", "left hand"], "labelled file: nose, right hand, left hand"),
        ([], "labelled file: none"),
    ],
)
def test_other_joints_stop_with_both_lists(run, joints, message):
    with pytest.raises(ValueError, match=f"teacher: nose, left hand, right hand\n{message}"):
        load_teacher(str(run), labelled("cat", "dog", joints=joints))


def test_a_category_id_0_is_a_class_as_any_other(run):
    teacher = load_teacher(str(run), labelled("dog", ids=[0], joints=JOINTS))
    assert (teacher.category_ids, teacher.dropped) == ([NO_CLASS, 0], ["cat"])


def test_a_checkpoint_of_another_project_stops(tmp_path):
    checkpoint.lock(tmp_path)
    checkpoint.save(tmp_path, 1, model=nn.Linear(1, 1))
    checkpoint.unlock(tmp_path)
    with pytest.raises(ValueError, match=r"is no checkpoint of data_distillation/train\.py"):
        load_teacher(str(tmp_path), labelled("cat"))


# Files without names


def test_a_file_has_the_labelled_categories_by_rising_id(mobile):
    file, model = mobile
    names, ids = [f"class {n}" for n in range(90)], [1000 - n for n in range(90)]
    teacher = load_teacher(str(file), labelled(*names, ids=ids), MOBILE)
    assert (teacher.kind, teacher.mirrored, teacher.dropped) == ("boxes", None, [])
    assert teacher.category_ids == sorted(ids)
    assert teacher.where == f"{file} ({MOBILE})"
    assert teacher.digest == digest_weights(model)
    assert not teacher.model.training


def test_a_file_with_another_number_of_classes_stops_and_says_which(run, tmp_path):
    model = build_detector("keypoints", 2, 3, small())
    file = tmp_path / "small.pth"
    torch.save(model.state_dict(), file)
    with pytest.raises(
        ValueError, match=f"does not fit {MOBILE} with 3 classes and the background"
    ):
        load_teacher(str(file), labelled("a", "b", "c"), MOBILE)
    with pytest.raises(ValueError, match=r"small.pth needs architecture=NAME: '' is none of"):
        load_teacher(str(file), labelled("a", "b"))


def shapes_of(architecture: str, **options) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        model = get_model(architecture, weights=None, weights_backbone=None, **options)
    names = model.state_dict().items()
    return {n: v for n, v in names if not n.endswith("num_batches_tracked")}


def test_a_student_fits_torchvisions_constructor():
    cfg = Config(data=Data(root=""))
    with torch.device("meta"):
        state = build_detector("keypoints", 1, 17, cfg.network).state_dict()
    assert find_misfit("keypointrcnn_resnet50_fpn", 2, 17, state) == ""
    assert "kps_score_lowres" in find_misfit("keypointrcnn_resnet50_fpn", 2, 16, state)
    assert "cls_score" in find_misfit("keypointrcnn_resnet50_fpn", 3, 17, state)
    assert "missing" in find_misfit("maskrcnn_resnet50_fpn", 2, 0, state)
    boxes = replace(cfg.network, backbone="resnet101")
    with torch.device("meta"):
        state = build_detector("boxes", 90, 0, boxes).state_dict()
    assert "unknown" in find_misfit("fasterrcnn_resnet50_fpn", 91, 0, state)


def test_names_of_older_torchvisions_fit():
    state = shapes_of("fasterrcnn_resnet50_fpn", num_classes=91)
    old = {
        name.replace("rpn.head.conv.0.0", "rpn.head.conv")
        .replace("_blocks.0.0.", "_blocks.0.")
        .replace("_blocks.1.0.", "_blocks.1."): value
        for name, value in state.items()
    }
    assert old.keys() != state.keys()
    assert find_misfit("fasterrcnn_resnet50_fpn", 91, 0, old) == ""


def test_norms_of_the_published_weights_have_no_eps():
    name = "keypointrcnn_resnet50_fpn"
    assert is_official(Path("/x/keypointrcnn_resnet50_fpn_coco-fc266e95.pth"), name)
    assert not is_official(Path("/x/keypointrcnn_resnet50_fpn_coco-9f466800.pth"), name)  # legacy
    assert not is_official(Path("fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"), BOXES_V2)
    model = nn.Sequential(nn.BatchNorm2d(2)).eval()
    model[0].running_var.fill_(1e-5)
    remove_eps(model)
    found = model(torch.full((1, 2, 1, 1), 1e-5))
    torch.testing.assert_close(found, torch.full((1, 2, 1, 1), 1e-5**0.5))


# torchvision's own


def coco(**changes: str) -> dict:
    """COCO's 80 categories, some spelled otherwise."""
    named = {n: name for n, name in enumerate(coco_names(), 1) if name != "N/A"}
    assert len(named) == 80
    return labelled(*(changes.get(name, name) for name in named.values()), ids=list(named))


@pytest.mark.parametrize("source", ["file", "torchvision"])
def test_the_91_outputs_of_torchvision_are_cocos_ids(mobile, source):
    file, model = mobile
    name = str(file) if source == "file" else f"torchvision:{MOBILE}"
    teacher = load_teacher(name, coco(), MOBILE if source == "file" else "")
    assert teacher.digest == digest_weights(model)
    assert len(teacher.category_ids) == 90
    others = [n for n, found in enumerate(teacher.category_ids, 1) if found != n]
    assert others == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert set(teacher.dropped) == {"N/A"}


def test_voc_spellings_stop_with_both_lists_and_a_map_resolves_them(tmp_path):
    teacher = Detector(nn.Identity(), coco_names(), [], "torchvision:x")
    with pytest.raises(ValueError, match=r"has no class aeroplane, sofa, tvmonitor\.") as error:
        match_classes(teacher, coco(**VOC), "")
    text = str(error.value)
    assert "teacher: person, bicycle, car, motorcycle, airplane" in text
    assert "labelled file: person, bicycle, car, motorcycle, aeroplane" in text
    file = tmp_path / "names.json"
    file.write_text(json.dumps(VOC))
    assert match_classes(teacher, coco(**VOC), str(file)) == match_classes(teacher, coco(), "")


def test_other_ids_than_cocos_are_matched_by_name():
    teacher = Detector(nn.Identity(), coco_names(), [], "torchvision:x")
    found = match_classes(teacher, labelled("dog", "person", ids=[1, 2]), "")
    assert (found[0], found[17]) == (2, 1)
    assert sum(number > 0 for number in found) == 2


def test_a_detector_without_its_prefix_is_told_with_it():
    name = "keypointrcnn_resnet50_fpn"
    with pytest.raises(ValueError, match=f"teacher={name} is no file: give .*=torchvision:{name}"):
        load_teacher(name, labelled("a"))


def test_an_unknown_detector_lists_those_that_there_are():
    with pytest.raises(ValueError, match="is none of torchvision's: choose among fasterrcnn_mobi"):
        load_teacher("torchvision:yolo", labelled("a"))


def test_keypoint_weights_have_no_person_and_person():
    meta = detection.KeypointRCNN_ResNet50_FPN_Weights.COCO_V1.meta
    assert meta["categories"] == ["no person", "person"]
    assert meta["keypoint_names"][1:3] == ["left_eye", "right_eye"]
