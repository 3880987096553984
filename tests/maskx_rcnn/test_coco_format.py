"""COCO-format files of which some objects have no mask, and what breaks on them elsewhere."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.run import checkpoint
from maskx_rcnn import data, train
from maskx_rcnn.config import Config, Data, may_change
from maskx_rcnn.data import PartialMasks
from tests.maskx_rcnn.small import settings

pytestmark = pytest.mark.filterwarnings("ignore:.*with a box only")

W, H = 48, 40
SQUARE = [[6, 6, 30, 6, 30, 30, 6, 30]]
EMPTY_RLE = {"size": [H, W], "counts": [H * W]}
FULL_RLE = {"size": [H, W], "counts": [0, H * W]}
CLASSES = ["person", "zebra", "dog"]  # ids 1, 4, 7; the first and the last are A
OUTSIDE = [[50, 3, 60, 3, 60, 9]]
NO_MASK: dict[str, dict[str, Any]] = {
    "no key": {},
    "null": {"segmentation": None},
    "empty list": {"segmentation": []},
    "two points": {"segmentation": [[1, 2, 3, 4]]},
    "empty run lengths": {"segmentation": EMPTY_RLE},
    "outside the image": {"segmentation": OUTSIDE},
}


def thing(category: int, box: tuple = (6, 6, 24, 24), **fields: Any) -> dict[str, Any]:
    return {"category_id": category, "bbox": list(box), "iscrowd": 0, "area": 576} | fields


def write(
    root: Path, split: str, images: list[list[dict]], *, names=CLASSES, mode: str = "RGB"
) -> Path:
    """A split of images with these annotations."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    content: dict[str, list] = {"images": [], "annotations": []}
    content["categories"] = [{"id": 3 * k + 1, "name": name} for k, name in enumerate(names)]
    for number, things in enumerate(images, 1):
        file = f"{number}.png"
        pixels = random.integers(0, 255, (H, W, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(root / split / file)
        content["images"].append({"id": number, "file_name": file, "width": W, "height": H})
        for each in things:
            own = {"id": len(content["annotations"]) + 1, "image_id": number}
            content["annotations"].append(own | each)
    path = root / "annotations" / f"{split}.json"
    path.write_text(json.dumps(content))
    return path


def options_of(root: Path, **options: Any) -> Data:
    plain = {"masks": "even", "flip": 0.0, "workers": 0, "aspect_groups": False}
    return Data(name="coco_format", root=str(root), **plain | options)


def read(root: Path, **options: Any) -> PartialMasks:
    return PartialMasks(options_of(root, **options), True)


def run_on(root: Path, folder: Path, **options: Any) -> Config:
    cfg = settings(folder)
    cfg.data = options_of(root, **options)
    cfg.optimizer, cfg.lr, cfg.steps, cfg.batch_size, cfg.images_per_gpu = "adamw", 1e-3, 2, 2, 1
    cfg.log_every, cfg.test.images = 1, 0
    return cfg


def run(cfg: Config) -> dict[str, float]:
    try:
        return train.train(cfg)
    finally:
        checkpoint.unlock(cfg.output_dir)


def losses(cfg: Config) -> list[dict]:
    lines = (Path(cfg.output_dir) / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss_mask" in row]


@pytest.mark.parametrize("kind", list(NO_MASK))
def test_an_object_without_a_mask_has_its_box_alone(kind, tmp_path):
    with_mask = thing(1, segmentation=SQUARE)
    write(tmp_path, "train", [[thing(7, (2, 3, 20, 30), **NO_MASK[kind]), with_mask]])
    dataset = read(tmp_path)
    _, target = dataset[0]
    assert target["labels"].tolist() == [2, 0]
    assert target["boxes"][0].tolist() == [2, 3, 22, 33]
    assert target["has_mask"].tolist() == [False, True]
    assert target["masks"].shape == (1, H, W)
    assert target["masks"].sum() == 24 * 24
    assert dataset.count_masks().tolist() == [[1, 0], [0, 0], [0, 1]]


def test_masks_of_b_are_not_seen_and_crowds_are_left_out(tmp_path):
    things = [thing(4, segmentation=SQUARE), thing(1, iscrowd=1, segmentation=FULL_RLE)]
    write(tmp_path, "train", [[*things, thing(7, (1, 1, 9, 9), segmentation=FULL_RLE)]])
    target = read(tmp_path)[0][1]
    assert target["labels"].tolist() == [1, 2]
    assert target["has_mask"].tolist() == [False, True]
    assert target["masks"].all()  # the dog's, which fills the image
    assert read(tmp_path, all_masks=True)[0][1]["has_mask"].all()


def test_boxes_without_area_are_dropped_with_one_warning_or_stop_a_strict_run(tmp_path):
    flat = thing(1, (0, 0, 0, 0), segmentation=SQUARE)
    write(tmp_path, "train", [[flat], [flat, thing(1, segmentation=SQUARE)]])
    with pytest.warns(UserWarning, match="2 with a box of no area"):
        dataset = read(tmp_path, skip_empty=False)
    assert dataset[0][1]["boxes"].shape == (0, 4)
    assert dataset[0][1]["masks"].shape == (0, H, W)
    assert len(dataset[1][1]["labels"]) == 1
    with pytest.raises(ValueError, match="a box of no area"):
        read(tmp_path, strict=True)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_images_with_and_without_objects_train_and_are_scored(mode, tmp_path):
    bare, whole = thing(1), thing(1, segmentation=SQUARE)
    zebra, crowd = thing(4, (2, 2, 30, 30)), thing(7, iscrowd=1, segmentation=FULL_RLE)
    write(
        tmp_path, "train", [[whole, bare | {"bbox": [1, 1, 40, 30]}], [], [zebra, crowd]], mode=mode
    )
    striped = zebra | {"segmentation": SQUARE}
    write(tmp_path, "val", [[whole, zebra | {"bbox": [3, 3, 20, 20]}], [striped, crowd]], mode=mode)
    cfg = run_on(tmp_path, tmp_path / "run", skip_empty=False)
    scores = run(cfg)
    assert {"mask_AP_A", "mask_AP_B", "box_AP_A", "box_AP_B"} <= scores.keys()
    assert all(np.isfinite(list(row.values())).all() for row in losses(cfg))


def test_the_mask_loss_comes_from_the_objects_that_have_one(tmp_path):
    other = thing(1, (2, 2, 36, 36))
    write(tmp_path / "one", "train", [[thing(1, segmentation=SQUARE)]])
    write(tmp_path / "two", "train", [[thing(1, segmentation=SQUARE), other]])
    cfg = settings(tmp_path, train_boxes="gt", match="assigned")
    training = [read(tmp_path / name) for name in ("one", "two")]
    torch.manual_seed(0)
    model = train.build(cfg, training[0]).train()
    values = []
    for dataset in training:
        torch.manual_seed(1)
        inputs = data.to_device(data.collate([dataset[0]]), torch.device("cpu"))
        values.append(model(*inputs)["loss_mask"].item())
    assert values[0] > 0
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_a_set_of_boxes_trains_a_detector_and_nothing_more(tmp_path):
    for split in ("train", "val"):
        write(tmp_path, split, [[thing(1)], [thing(4), thing(7, (1, 1, 20, 20))]])
    cfg = run_on(tmp_path, tmp_path / "run")
    with (
        pytest.warns(UserWarning, match="a box only"),
        pytest.raises(ValueError, match=r"data.train=train has no masks for A \(2 classes"),
    ):
        run(cfg)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    with pytest.warns(UserWarning, match="a box only"):
        scores = run(replace(cfg, stage="detector"))
    assert {"box_AP", "box_AP_A", "box_AP_B"} <= scores.keys()


def test_masks_are_counted_before_the_first_step(tmp_path, capsys):
    for split in ("train", "val"):
        write(tmp_path, split, [[thing(1, segmentation=SQUARE), thing(4)]])
    run(run_on(tmp_path, tmp_path / "run"))
    before = capsys.readouterr().out.partition("step 1/")[0]
    assert "1 of 2 objects have a mask, 1 a box only:" in before
    assert ["zebra", "0", "masks", "1", "boxes", "only"] in map(str.split, before.splitlines())


def test_what_another_data_set_reads_may_change_when_a_run_goes_on(tmp_path):
    for split in ("train", "val"):
        write(tmp_path, split, [[thing(1, segmentation=SQUARE)]])
    cfg = run_on(tmp_path, tmp_path / "run")
    run(cfg)
    painted = replace(cfg.data.paintings, stretch=0.7, seed=4)
    run(replace(cfg, steps=3, data=replace(cfg.data, paintings=painted)))
    assert [row["step"] for row in losses(cfg)] == [1, 2, 3]
    with pytest.raises(checkpoint.CheckpointError, match=r"data\.flip=0\.0, this run has"):
        run(replace(cfg, steps=4, data=replace(cfg.data, flip=0.5)))
    assert "data.paintings" not in may_change(settings(tmp_path))
    assert "data.train" in may_change(settings(tmp_path))


def test_a_set_without_any_object_stops_before_the_first_step(tmp_path):
    for split in ("train", "val"):
        write(tmp_path, split, [[], []])
    for skip_empty in (True, False):
        with pytest.raises(ValueError, match="=train has no objects"):
            run(run_on(tmp_path, tmp_path / "run", skip_empty=skip_empty))


def test_boxes_of_further_sets_join_those_with_masks(tmp_path):
    write(tmp_path, "train", [[thing(1, segmentation=SQUARE)], [thing(4, segmentation=SQUARE)]])
    names = ["cell", "dog", "person"]  # 1, 4, 7
    more = write(
        tmp_path / "more",
        "all",
        [[thing(1), thing(7, (1, 1, 9, 9), segmentation=SQUARE)], [], [thing(4)]],
        names=names,
    )
    pair = f"{more}:{tmp_path / 'more' / 'all'}"
    dataset = read(tmp_path, boxes_only=[pair])
    assert dataset.names == [*CLASSES, "cell"]
    assert dataset.category_ids == [1, 4, 7, 8]
    assert [len(dataset), len(read(tmp_path))] == [4, 2]  # the empty image is left out
    found = [dataset[index][1] for index in range(4)]
    assert [each["labels"].tolist() for each in found] == [[0], [1], [3, 0], [2]]
    assert [each["has_mask"].tolist() for each in found] == [
        [True],
        [False],
        [False, False],
        [False],
    ]
    assert found[2]["masks"].shape == (0, H, W)
    assert found[2]["file"] == str(tmp_path / "more" / "all" / "1.png")
    assert torch.equal(dataset.count_masks(), torch.tensor([[1, 1], [0, 1], [0, 1], [0, 1]]))
    assert len(dataset.groups(1) or [0] * 4) == 4
    write(tmp_path, "val", [[thing(1, segmentation=SQUARE)]])
    validation = PartialMasks(options_of(tmp_path, boxes_only=[pair]), False, dataset)
    assert (validation.names, len(validation)) == (dataset.names, 1)
    for masks, chosen in (("odd", [1]), ("all", [0, 1, 2]), ("random2_1", None)):
        whole = read(tmp_path, boxes_only=[pair], masks=masks)
        assert 3 in whole.boxes_only  # the cell
        assert whole.with_masks == chosen or chosen is None
        assert whole.with_masks == read(tmp_path, masks=masks).with_masks
        like = PartialMasks(options_of(tmp_path, masks=masks), False, whole)
        assert like.split() == whole.split()
    with pytest.raises(ValueError, match="give pairs like"):
        read(tmp_path, boxes_only=["more.json"])
    for wrong in (f"{more}s:{tmp_path}", f"{more}:{tmp_path}/none"):
        with pytest.raises(ValueError, match=r"data.boxes_only: .*, which is no f.*: give pairs"):
            read(tmp_path, boxes_only=[wrong])


def cut(shared: Path, root: Path, images: int) -> Path:
    """The first images of both splits of coco_mini."""
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).symlink_to(shared / "coco_mini" / split)
        name = f"annotations/instances_{split}.json"
        content = json.loads((shared / "coco_mini" / name).read_bytes())
        content["images"] = content["images"][:images]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        (root / name).write_text(json.dumps(content))
    return root


@pytest.mark.filterwarnings("ignore:.*instances_train.json")  # bccd has a box without area
def test_real_images_with_masks_of_voc_classes_and_cells_with_boxes_only(shared_data, tmp_path):
    cells = next((shared_data / "bccd" / "annotations").glob("*train*.json"))
    pair = f"{cells}:{shared_data / 'bccd' / 'images'}"
    root = cut(shared_data, tmp_path / "data", 6)
    cfg = run_on(root, tmp_path / "run", masks="voc", boxes_only=[pair], flip=0.5)
    cfg.network.short_side, cfg.network.long_side = 64, 96
    cfg.data.name = "coco"
    scores = run(cfg)
    assert {"mask_AP_A", "mask_AP_B", "box_AP_B"} <= scores.keys()
    assert len(losses(cfg)) == 2
