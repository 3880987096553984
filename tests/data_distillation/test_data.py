"""Which images are trained on, what their targets are, and what stops before the first step."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common import dist
from common.coco.evaluate import evaluate
from data_distillation import data
from data_distillation.config import Config
from data_distillation.config import Data as Options
from data_distillation.distill import Transforms
from data_distillation.inputs.builtin import Builtin, write_builtin
from data_distillation.labels.transforms import joint_shift
from tests.data_distillation.small import (
    BUILTIN,
    of_files,
    settings,
    thing,
    write_hidden,
    write_split,
)

CPU = torch.device("cpu")
UNSEEN = (8, 9, 0, 20, 20, 0, 0, 0, 0)
CROWD = {"segmentation": {"size": [40, 48], "counts": [0, 1920]}, "iscrowd": 1}
AUTO = {"score": 0.5, "source": "auto"}


def manual(cfg: Config) -> data.Labelled:
    return data.build_manual(cfg.data, cfg.task)


def joints_of(cfg: Config) -> torch.Tensor:
    return manual(cfg)[0][1]["keypoints"][0]


# Targets


@pytest.mark.parametrize("offset", [0.5, 0.0])
def test_joints_are_continuous_or_with_offset_0_the_pixels_of_the_file(offset, tmp_path):
    write_split(tmp_path, "train", [[thing((8, 9, 2, 20.25, 21, 1, 0, 0, 0))]])
    found = joints_of(of_files(tmp_path, tmp_path, joint_offset=offset))
    expected = torch.tensor([[8, 9, 2], [20.25, 21, 1], [0, 0, 0]])
    expected[:2, :2] += offset
    assert torch.equal(found, expected)
    found = joints_of(of_files(tmp_path, tmp_path, joint_offset=offset, flip=1.0))
    mirror = {0.5: 48, 0.0: 47}[offset]  # W - x of continuous joints, W - 1 - x of pixels
    assert found.tolist() == [
        [mirror - (8 + offset), 9 + offset, 2],
        [0, 0, 0],
        [mirror - (20.25 + offset), 21 + offset, 1],
    ]


def test_joints_of_a_network_of_pixels_are_half_a_pixel_off_unless_passes_are_mirrored():
    one, mirrored = Transforms(flip=False), Transforms()
    assert joint_shift(0.0, one) == 0.5
    assert joint_shift(0.0, mirrored) == 0
    assert joint_shift(0.5, one) == 0


def test_boxes_joints_and_images_are_mirrored_together(tmp_path):
    cfg = settings(tmp_path, flip=1.0)
    image, target = manual(cfg)[0]
    cfg.data.flip = 0.0
    plain_image, plain = manual(cfg)[0]
    assert torch.equal(image, plain_image.flip(-1))
    left, top, right, bottom = plain["boxes"].unbind(1)
    assert torch.equal(target["boxes"], torch.stack([64 - right, top, 64 - left, bottom], 1))
    swapped = plain["keypoints"][:, list(manual(cfg).flip.mirrored)]
    seen = swapped[..., 2] > 0
    assert torch.equal(target["keypoints"][..., 0][seen], 64 - swapped[..., 0][seen])
    assert torch.equal(target["keypoints"][..., 1:], swapped[..., 1:])


def test_crowds_are_ignored_regions_and_no_objects(tmp_path):
    crowd = thing(bbox=[1, 2, 9, 9], **CROWD)
    write_split(tmp_path, "train", [[thing(), crowd], [crowd]])
    dataset = manual(of_files(tmp_path, tmp_path))
    target = dataset[0][1]
    assert target["boxes"].tolist() == [[6, 6, 30, 30]]
    assert target["ignore"].tolist() == [[1, 2, 10, 11]]
    assert target["keypoints"].shape == (1, 3, 3)
    assert len(dataset) == 1  # a crowd alone is nothing to learn from


def test_the_network_gets_labels_from_1_and_images_from_0_to_1(tmp_path):
    cfg = settings(tmp_path)
    for task, kind in (("keypoints", torch.float32), ("masks", torch.uint8)):
        cfg.task = task
        image, target = manual(cfg)[0]
        images, wanted = data.to_device(data.collate([(image, target)]), CPU)
        assert torch.equal(images[0], image / 255)
        assert torch.equal(wanted[0]["labels"], target["labels"] + 1)
        assert wanted[0].keys() == {"boxes", "labels", "ignore", task}
        assert wanted[0][task].dtype == kind


def test_the_truth_in_cocos_format_is_that_of_the_targets(tmp_path):
    cfg = settings(tmp_path)
    dataset = data.build_validation(cfg.data, "keypoints")
    boxes = torch.cat([dataset[index][1]["boxes"] for index in range(len(dataset))])
    xywh = torch.tensor([a["bbox"] for a in dataset.ground_truth()["annotations"]])
    torch.testing.assert_close(boxes, torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1))


# Which images


def test_images_without_a_visible_joint_are_left_out_unless_asked_for(tmp_path):
    images = [[thing()], [], [thing(UNSEEN)], [thing(UNSEEN), thing()]]
    write_split(tmp_path, "train", images)
    cfg = of_files(tmp_path, tmp_path)
    assert manual(cfg).source.ids[manual(cfg).kept].tolist() == [1, 4]
    cfg.data.skip_empty = False
    assert len(manual(cfg)) == 4
    boxes = of_files(tmp_path, tmp_path)
    boxes.task = "boxes"
    assert manual(boxes).source.ids[manual(boxes).kept].tolist() == [1, 3, 4]
    write_split(tmp_path, "val", images)
    assert len(data.build_validation(cfg.data, "keypoints")) == 4  # tested on all


def test_a_limit_takes_the_first_images_and_their_truth_alone(tmp_path):
    cfg = settings(tmp_path, limit=5)
    few, cfg.data.limit = manual(cfg), 0
    whole = manual(cfg)
    assert few.files.tolist() == whole.files[:5].tolist()
    assert (len(whole), whole.digest != few.digest) == (12, True)
    truth = few.whole_truth()
    assert [entry["id"] for entry in truth["images"]] == few.source.ids[:5].tolist()
    assert {a["image_id"] for a in truth["annotations"]} == set(few.source.ids[:5].tolist())
    assert len(whole.whole_truth()["images"]) == 12
    cfg.data.limit = 5
    assert len(data.build_validation(cfg.data, "keypoints")) == 6  # of training alone


def test_the_labelled_images_have_one_hash_that_follows_from_their_ids(tmp_path):
    write_split(tmp_path, "train", [[thing()], [thing()]])
    cfg = of_files(tmp_path, tmp_path)
    before = manual(cfg).digest
    write_split(tmp_path, "train", [[thing()], [thing(), thing(bbox=[9, 9, 20, 20])]])
    assert manual(cfg).digest == before
    write_split(tmp_path, "train", [[thing()], [thing()], [thing()]])
    assert manual(cfg).digest != before
    cfg.data.limit = 2
    assert manual(cfg).digest == before


def test_splits_joined_by_a_plus_are_one_set(tmp_path):
    cfg = settings(tmp_path, train="train+hidden")
    assert len(manual(cfg)) == 20


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    return write_hidden(tmp_path_factory.mktemp("labels") / "auto.json")


def test_a_smaller_share_of_the_automatic_images_is_in_all_larger_ones(labels, tmp_path):
    found = []
    for share in (0.25, 0.5, 1.0):
        cfg = settings(tmp_path, automatic=str(labels), automatic_share=share)
        training = data.build_training(cfg.data, cfg.task)
        assert len(training) == 12 + 8 * share
        found.append(set(training.files[12:].tolist()))
    assert found[0] < found[1] < found[2]
    cfg.data.automatic_share = 0.01
    assert len(data.build_training(cfg.data, cfg.task)) == 13  # one at least
    cfg.data.limit = 5  # of labelled ones
    cfg.data.automatic_share = 1.0
    assert len(data.build_training(cfg.data, cfg.task)) == 5 + 8


def test_automatic_images_come_after_the_manual_ones_and_say_so(labels, tmp_path):
    cfg = settings(tmp_path, automatic=str(labels), automatic_share=0.5, flip=0.0)
    training = data.build_training(cfg.data, cfg.task)
    targets = [training[index][1] for index in range(16)]
    assert [target["automatic"] for target in targets] == [False] * 12 + [True] * 4
    assert [target["file"] for target in targets] == training.files.tolist()
    annotations = json.loads(labels.read_text())["annotations"]
    for target in targets[12:]:
        own = [a["bbox"] for a in annotations if a["image_id"] == target["image_id"]]
        xywh = torch.tensor(own)
        xyxy = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
        torch.testing.assert_close(target["boxes"], xyxy)


def test_two_processes_get_the_pieces_of_one(labels, tmp_path, monkeypatch):
    cfg = settings(tmp_path, automatic=str(labels))

    def pieces() -> list[list[data.Piece]]:
        return list(data.build_training(cfg.data, cfg.task).batches(cfg, 1, 4))

    def shown(steps: list[list[data.Piece]]) -> list:
        return [[(piece.number, piece.files) for piece in step] for step in steps]

    one = shown(pieces())
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    halves, digests = [], {manual(cfg).digest}
    for rank in range(2):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        halves.append(shown(pieces()))
        digests.add(manual(cfg).digest)
    assert len(digests) == 1  # one list of labelled images
    assert one == [[*a, *b] for a, b in zip(*halves, strict=True)]
    with pytest.raises(ValueError, match="batch_size=6 is no multiple of 4, images_per_gpu times"):
        data.build_training(cfg.data, cfg.task).batches(replace(cfg, batch_size=6), 0, 1)


def test_sources_that_count_differently_are_pieces_of_their_own():
    targets = [{"automatic": flag} for flag in (False, True, False, False, True, True)]
    images = [torch.tensor(float(number)) for number in range(6)]
    cfg = Config(images_per_gpu=2, automatic_weight=0.5)

    def shown(cfg: Config) -> list:
        pieces = data.cut((images, targets), cfg, 3)
        return [(p.number, [int(i) for i in p.images], round(p.share, 4)) for p in pieces]

    assert shown(cfg) == [
        (0, [0], 0.1667),
        (1, [1], 0.0833),
        (2, [2, 3], 0.3333),
        (5, [4, 5], 0.1667),
    ]
    whole = shown(replace(cfg, automatic_weight=1.0))
    assert whole == [(0, [0, 1], 0.3333), (2, [2, 3], 0.3333), (4, [4, 5], 0.3333)]
    none = shown(replace(cfg, automatic_weight=0.0))
    assert [share for *_, share in none] == [0.1667, 0, 0.3333, 0]


# What stops


def check(cfg: Config) -> None:
    data.check_labels(data.build_training(cfg.data, cfg.task), cfg)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(
    ("images", "task", "missing"),
    [
        ([[thing(UNSEEN)], [thing(UNSEEN)]], "keypoints", "a visible joint"),
        ([[], []], "keypoints", "a visible joint"),
        ([[], [thing(**CROWD)]], "boxes", "an object"),
    ],
)
def test_nothing_to_learn_from_stops(images, task, missing, skip, tmp_path):
    write_split(tmp_path, "train", images)
    cfg = replace(of_files(tmp_path, tmp_path, skip_empty=skip), task=task)
    with pytest.raises(ValueError, match=f"data.train=train has no image with {missing}: give"):
        check(cfg)


def test_joints_without_a_left_and_a_right_stop_unless_nothing_is_mirrored(tmp_path):
    for joints in (["nose", "hand", "foot"], []):
        file = write_split(tmp_path, "train", [[thing()]], joints=joints)
        cfg = of_files(tmp_path, tmp_path, flip=0.5)
        with pytest.raises(ValueError, match="names no joints with a left and a right") as error:
            check(cfg)
        assert str(file) in str(error.value)
        assert "data.flip=0" in str(error.value)
        cfg.data.flip = 0.0
        check(cfg)
        check(replace(of_files(tmp_path, tmp_path, flip=0.5), task="boxes"))


def automatic(root: Path, images: list, **changes) -> Config:
    """Settings whose automatic labels are those of the split `auto`."""
    write_split(root, "train", [[thing()]])
    info = {"folder": str(root / "auto")}
    file = write_split(root, "auto", images, **({"info": info} | changes))
    return of_files(root, root / "run", automatic=str(file))


def test_automatic_labels_are_counted(tmp_path, capsys):
    check(automatic(tmp_path, [[thing(**AUTO)], [thing(UNSEEN, **AUTO)]]))
    printed = capsys.readouterr().out
    assert printed.startswith("1 labelled image (")
    assert printed.endswith("), 2 with automatic labels\n")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"name": "dog"}, "category 1 is 'dog' in .*auto.json, but 'person' in .*train.json"),
        ({"joints": ["nose", "right_hand", "left_hand"]}, "are not those .*: nose, right_hand"),
        ({"info": {}}, "auto.json is no file of annotate.py: its `info` names no folder"),
        ({"info": {"folder": "/moved"}}, "its images were in .moved, which is no folder.*root=DIR"),
    ],
)
def test_automatic_labels_of_something_else_stop(changes, fault, tmp_path):
    with pytest.raises(ValueError, match=fault) as error:
        check(automatic(tmp_path, [[thing(**AUTO)]], **changes))
    assert "\n" not in str(error.value)


def test_automatic_labels_whose_images_are_missing_stop(tmp_path):
    cfg = automatic(tmp_path, [[thing(**AUTO)], [thing(**AUTO)]])
    (tmp_path / "auto" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"auto/2\.png"):
        check(cfg)
    for word in ("no.json", "Teacher"):
        with pytest.raises(ValueError, match=f"automatic={word} does not exist: give teacher, or"):
            check(of_files(tmp_path, tmp_path, automatic=word))


def test_a_root_that_is_no_folder_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"data.root=/nope is no folder: give .*") as error:
        check(of_files(Path("/nope"), tmp_path))
    assert "\n" not in str(error.value)


def test_a_file_without_any_label_stops(tmp_path):
    for images in ([], [[], []]):
        with pytest.raises(ValueError, match=r"auto.json has no label: .*labels.factor"):
            check(automatic(tmp_path, images))


def test_a_category_that_only_automatic_labels_have_stops(tmp_path):
    with pytest.raises(ValueError, match="category 2"):
        check(automatic(tmp_path, [[thing(**AUTO, category_id=2)]]))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"ratio": [3]}, "two whole numbers"),
        ({"ratio": [0, 1]}, "two whole numbers"),
        ({"automatic": "x", "automatic_share": 0.0}, "leaves no image"),
        ({"name": "cooc"}, "data.name=cooc.*coco"),
        ({"joint_offset": 2.0}, "data.joint_offset=2"),
    ],
)
def test_an_option_out_of_place_is_one_sentence(changes, fault):
    with pytest.raises(ValueError, match=fault) as error:
        Options(root="", **changes)
    assert "\n" not in str(error.value)


def test_the_hidden_truth_is_that_of_the_unlabelled_images(labels):
    root = write_builtin(Builtin(**vars(BUILTIN)))
    truth = json.loads((root / "annotations" / "hidden.json").read_text())
    listed = json.loads((root / "annotations" / "unlabelled.json").read_text())
    assert truth["images"] == listed["images"]
    found = json.loads(labels.read_text())["annotations"]
    assert evaluate(truth, found, kind="bbox")["AP"] == pytest.approx(100)
