"""The paintings, and which objects of a data set have a mask."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, masks_to_boxes

from common import dist
from maskx_rcnn import data
from maskx_rcnn.config import Config, Data
from maskx_rcnn.config import Paintings as Count
from maskx_rcnn.data import PartialMasks, check_masks
from maskx_rcnn.inputs.embeddings import read_embeddings
from maskx_rcnn.inputs.paint import MIN_VISIBLE, Paintings, World
from maskx_rcnn.model import MaskBranch, Network

CFG = Data(
    name="paintings",
    root="",
    masks="even",
    flip=0.0,
    workers=0,
    aspect_groups=False,
    paintings=Count(train_images=12, val_images=4),
)


def targets(paintings: Paintings) -> list[dict]:
    return [paintings[index][1] for index in range(len(paintings))]


# The paintings


def test_the_same_seed_paints_the_same_images_whatever_their_number():
    few, many = Paintings(World(), 3, seed=4), Paintings(World(), 30, seed=4)
    for index in range(3):
        (image, target), (again, same) = few[index], many[index]
        assert torch.equal(image, again)
        assert torch.equal(target["masks"], same["masks"])
        assert torch.equal(target["labels"], same["labels"])
    assert not torch.equal(few[0][0], Paintings(World(), 1, seed=5)[0][0])
    training, validation = PartialMasks(CFG, True), PartialMasks(CFG, False)
    assert not set(training.files) & set(validation.files)


def test_boxes_enclose_what_is_visible_and_no_pixel_has_two_objects():
    for target in targets(Paintings(World(), 40)):
        masks = target["masks"]
        assert masks.sum(0).max() <= 1
        assert masks.sum((1, 2)).min() >= MIN_VISIBLE
        assert torch.equal(target["area"], masks.sum((1, 2)).float())
        tight = masks_to_boxes(masks) + torch.tensor([0.0, 0, 1, 1])
        assert torch.equal(target["boxes"], tight)
        for (left, top, right, bottom), mask in zip(target["boxes"].int(), masks, strict=True):
            assert mask[top:bottom, left:right].sum() == mask.sum()


def test_the_foreground_of_most_boxes_is_ambiguous_without_the_class():
    shares = []
    for target in targets(Paintings(World(), 200)):
        overlap = box_iou(target["boxes"], target["boxes"]).fill_diagonal_(0)
        shares += (overlap.max(1).values > 0.5).tolist()
    assert 0.5 < np.mean(shares) < 0.7  # both of each pair, and not the third object


def test_a_class_is_a_hue():
    for index in range(20):
        image, target = Paintings(World(noise=0.0), 20)[index]
        for label, mask in zip(target["labels"].tolist(), target["masks"], strict=True):
            r, g, b = (image[:, mask].float().mean(1) / 255).tolist()
            hue = np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b) / (2 * np.pi) * 16
            assert abs((hue - label + 8) % 16 - 8) < 0.5


@pytest.mark.parametrize("stretch", [0.0, 0.8])
def test_boxes_follow_the_hue_where_they_are_to(stretch):
    found = targets(Paintings(World(classes=4, stretch=stretch), 250))
    labels = torch.cat([target["labels"] for target in found])
    sides = torch.cat([target["boxes"][:, 2:] - target["boxes"][:, :2] for target in found]).log()
    right, top, left, bottom = (sides[labels == label].mean(0) for label in range(4))
    assert (right - left).tolist() == pytest.approx([stretch, 0], abs=0.15)
    assert (top - bottom).tolist() == pytest.approx([0, stretch], abs=0.15)


def test_the_truth_in_cocos_format_is_that_of_the_targets():
    paintings = Paintings(World(), 3)
    truth = paintings.coco()
    boxes = torch.cat([target["boxes"] for target in targets(paintings)])
    xywh = torch.tensor([a["bbox"] for a in truth["annotations"]])
    assert torch.equal(xywh[:, 2:], boxes[:, 2:] - boxes[:, :2])
    assert [a["id"] for a in truth["annotations"]] == list(range(1, len(boxes) + 1))
    assert {a["image_id"] for a in truth["annotations"]} == {i["id"] for i in truth["images"]}


# Objects without a mask


class Source:
    """One image of five objects: of A; of B; of A without a mask; a crowd; of A."""

    def __init__(self) -> None:
        masks = torch.zeros(4, 8, 10, dtype=torch.bool)
        for number, mask in enumerate(masks):
            mask[number, : number + 2] = True
        self.image = torch.arange(240, dtype=torch.uint8).view(3, 8, 10)
        self.whole = {
            "boxes": torch.tensor([[i, i, i + 3.0, i + 2] for i in range(5)]),
            "labels": torch.tensor([0, 1, 2, 0, 2]),
            "iscrowd": torch.tensor([False, False, False, True, False]),
            "has_mask": torch.tensor([True, True, False, True, True]),
            "masks": masks,
            "image_id": 7,
            "file": "seven.jpg",
            "size": (8, 10),
        }

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict]:
        return self.image, dict(self.whole)

    def target(self, index: int, *, decode: bool) -> dict:
        return {name: value for name, value in self.whole.items() if decode or name != "masks"}


def partial(cfg: Data = CFG, training: bool = True) -> PartialMasks:
    dataset = PartialMasks(cfg, training)
    dataset.source = Source()
    dataset.count = 1
    return dataset


def test_of_three_kinds_without_a_mask_two_are_boxes_and_crowds_are_left_out():
    target = partial()[0][1]
    assert target["labels"].tolist() == [0, 1, 2, 2]
    assert target["has_mask"].tolist() == [True, False, False, True]
    source = Source().whole
    assert torch.equal(target["boxes"], source["boxes"][[0, 1, 2, 4]])
    assert torch.equal(target["masks"], source["masks"][[0, 3]])


def test_masks_and_has_mask_go_with_their_boxes_through_a_flip():
    plain = partial()[0][1]
    image, target = partial(replace(CFG, flip=1.0))[0]
    assert torch.equal(image, Source().image.flip(-1))
    assert torch.equal(target["has_mask"], plain["has_mask"])
    assert torch.equal(target["masks"], plain["masks"].flip(-1))
    left, top, right, bottom = plain["boxes"].unbind(1)
    assert torch.equal(target["boxes"], torch.stack([10 - right, top, 10 - left, bottom], 1))


def test_the_oracle_sees_the_masks_of_b_and_validation_all():
    for dataset in (partial(replace(CFG, all_masks=True)), partial(training=False)):
        target = dataset[0][1]
        assert target["has_mask"].tolist() == [True, True, False, True]
        assert torch.equal(target["masks"], Source().whole["masks"][[0, 1, 3]])
    assert partial(replace(CFG, mask_share=0.0), training=False)[0][1]["has_mask"].any()


def test_mask_share_keeps_the_same_masks_every_time():
    cfg = replace(CFG, mask_share=0.3, paintings=Count(train_images=150))
    one, two = PartialMasks(cfg, True), PartialMasks(cfg, True)
    whole, kept = 0, 0
    for index in range(len(one)):
        target = one[index][1]
        assert torch.equal(target["has_mask"], two[index][1]["has_mask"])
        assert len(target["masks"]) == int(target["has_mask"].sum())
        assert not target["has_mask"][target["labels"] % 2 == 1].any()
        whole, kept = whole + int((target["labels"] % 2 == 0).sum()), kept + len(target["masks"])
    assert kept / whole == pytest.approx(0.3, abs=0.07)
    assert not any(
        len(PartialMasks(replace(cfg, mask_share=0.0), True)[k][1]["masks"]) for k in range(9)
    )


def test_counts_are_those_of_the_targets_and_of_as_many_images_as_are_used():
    cfg = replace(CFG, mask_share=0.5, limit=7)
    dataset = PartialMasks(cfg, True)
    assert len(dataset) == 7
    counts = torch.zeros(16, 2, dtype=torch.int64)
    for index in range(7):
        target = dataset[index][1]
        for label, has_mask in zip(target["labels"], target["has_mask"], strict=True):
            counts[label, 0 if has_mask else 1] += 1
    assert torch.equal(dataset.count_masks(), counts)
    assert partial().count_masks()[:3].tolist() == [[1, 0], [0, 1], [1, 1]]
    assert len(PartialMasks(cfg, False)) == 4  # validation is whole


def test_counts_are_printed_and_a_set_without_masks_stops(capsys):
    cfg = Config(data=CFG)
    training = PartialMasks(CFG, True)
    check_masks(training, cfg)
    masks, boxes = training.count_masks().sum(0).tolist()
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"{masks} of {masks + boxes} objects have a mask, {boxes} a box only:"
    assert [row.split()[:2] for row in rest] == [name.split() for name in training.names]
    first_class = training.count_masks()[0].tolist()
    assert rest[0].split()[2:] == [
        str(first_class[0]),
        "masks",
        str(first_class[1]),
        "boxes",
        "only",
    ]
    bare = PartialMasks(replace(CFG, mask_share=0.0), True)
    with pytest.raises(
        ValueError, match=r"data.train=train has no masks for A \(8 classes by data.masks=even\)"
    ):
        check_masks(bare, cfg)
    check_masks(bare, replace(cfg, stage="detector", init=""))  # boxes are all that it needs
    check_masks(bare, replace(cfg, only_evaluate=True))


def test_a_batch_that_gives_no_equal_pieces_stops_before_the_first_step(monkeypatch):
    dataset = PartialMasks(CFG, True)
    cfg = Config(batch_size=6, images_per_gpu=2, data=CFG)
    (pieces,) = dataset.batches(cfg, 0, 1)
    assert [len(piece.images) for piece in pieces] == [2, 2, 2]
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="batch_size=6 is no multiple of 4, images_per_gpu times"):
        dataset.batches(cfg, 0, 1)


def test_the_network_gets_labels_from_1_and_images_from_0_to_1():
    dataset = partial()
    images, wanted = data.to_device(data.collate([dataset[0]]), torch.device("cpu"))
    assert torch.equal(images[0], Source().image / 255)
    assert wanted[0]["labels"].tolist() == [1, 2, 3, 3]
    assert wanted[0]["masks"].dtype == torch.uint8
    assert wanted[0].keys() == {"boxes", "labels", "has_mask", "masks"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"branch": MaskBranch(source="bx")}, "branch.source=bx.*branch.source=box"),
        ({"branch": MaskBranch(layers=4)}, "branch.layers=4.* 3"),
        ({"branch": MaskBranch(source="embedding")}, r"FILE\.npy"),
        ({"branch": MaskBranch(mlp_pool=0)}, "branch.mlp_pool=0 is out of range"),
        ({"network": Network(anchors=[0, 1])}, "network.anchors=0 is out of range"),
        ({"network": Network(ratios=[-1.0])}, "network.ratios=-1.0 is out of range"),
        ({"lr": math.inf}, "lr=inf is out of range"),
        ({"stage": "mask"}, "stage=mask.*stage=masks"),
        ({"stage": "masks"}, "name its run by init=FOLDER"),
    ],
)
def test_an_option_out_of_place_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        Config(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Count(side=1), "data.paintings.side=1 is out of range"),
        (lambda: Count(jitter=math.nan), "data.paintings.jitter=nan is out of range"),
        (lambda: Count(radius=[9.0, 1.0]), r"data.paintings.radius=\[9.0, 1.0\]: give the least"),
        (lambda: replace(CFG, masks=["cat", "dog"]), r"and give data.masks=FILE\.json"),
    ],
)
def test_data_that_cannot_be_made_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_the_narrowest_paintings_can_be_painted():
    world = Count(side=24, radius=[5.0, 5.0], stretch=1.0, jitter=16.0, shift=5.0, noise=1.0)
    assert len(targets(Paintings(world, 5))) == 5


# Embeddings


NAMES = ["dog", "traffic light"]


def test_embeddings_of_a_file_are_rows_of_the_classes(tmp_path):
    values = np.array([[1.0, 2, 3], [4, 5, 6]])
    np.save(tmp_path / "two.npy", values)
    assert read_embeddings("", NAMES) is None
    found = read_embeddings(str(tmp_path / "two.npy"), NAMES)
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.from_numpy(values).float())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.zeros((3, 4)), "2 rows"),
        (np.zeros(2), "2 rows"),
        (np.full((2, 4), np.nan), "finite"),
        (np.array([[1], [None]], dtype=object), "cannot be read"),
        (np.array(3.0), "2 rows"),
        (np.array([["a"], ["b"]]), "numbers"),
    ],
)
def test_faulty_embeddings_stop_with_a_sentence(values, sentence, tmp_path):
    np.save(tmp_path / "bad.npy", values, allow_pickle=True)
    with pytest.raises(ValueError, match=sentence) as error:
        read_embeddings(str(tmp_path / "bad.npy"), NAMES)
    assert "bad.npy" in str(error.value)


def test_an_archive_in_place_of_embeddings_stops_with_a_sentence(tmp_path):
    with (tmp_path / "two.npy").open("wb") as file:
        np.savez(file, np.zeros((2, 4)))
    with pytest.raises(ValueError, match="is an archive: give 2 rows"):
        read_embeddings(str(tmp_path / "two.npy"), NAMES)


def test_a_missing_or_damaged_file_of_embeddings_is_named(tmp_path):
    (tmp_path / "text.npy").write_text("hello")
    for name in ("none.npy", "text.npy"):
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            read_embeddings(str(tmp_path / name), NAMES)
