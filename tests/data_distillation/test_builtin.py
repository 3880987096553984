"""The folder of built-in images: in COCO's format, true to the scenes, and written once."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO

from common.coco.dataset import CocoDataset
from common.coco.evaluate import evaluate
from common.coco.files import find_split
from common.scenes import Scenes
from common.scenes.annotate import KEYPOINT_FLIP, KEYPOINTS
from data_distillation.inputs.builtin import (
    APART,
    SIGMAS,
    Builtin,
    make_worlds,
    write_builtin,
)

SPLITS = ("train", "val", "hidden", "hidden_shifted")


def tiny(**changed: object) -> Builtin:
    few = {"labelled": 4, "unlabelled": 6, "test": 5, "side": 32, "min_visible": 20}
    return Builtin(**(few | changed))  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAIR_VISION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / "annotations" / f"{name}.json").read_text())


def open_split(folder: Path, split: str, kind: str) -> CocoDataset:
    return CocoDataset(*find_split(folder, split, kind=kind), kind=kind, strict=True)


@pytest.mark.parametrize("split", ["train", "hidden_shifted"])
@pytest.mark.parametrize("kind", ["boxes", "keypoints", "masks"])
def test_what_is_read_from_the_folder_are_the_rendered_scenes(split: str, kind: str) -> None:
    options = tiny(hidden_joints=True)
    written = open_split(write_builtin(options), split, kind)
    number, count = {"train": (0, 4), "hidden_shifted": (3, 6)}[split]
    world = make_worlds(options)[number == 3]
    scenes = Scenes(world, count=count, start=1 + APART * number, masks=True, keypoints=True)
    assert len(written) == count
    for index in range(count):
        (image, target), (pixels, truth) = written[index], scenes[index]
        assert torch.equal(image, pixels)
        assert torch.equal(target["boxes"], truth["boxes"])
        assert torch.equal(target["area"], truth["area"])
        if kind == "keypoints":
            torch.testing.assert_close(target["keypoints"], truth["keypoints"])
        if kind == "masks":
            assert torch.equal(target["masks"], truth["masks"])


def test_pycocotools_reads_every_split_and_finds_no_id_twice() -> None:
    folder = write_builtin(tiny())
    sets = [COCO(folder / "annotations" / f"{split}.json") for split in SPLITS]
    assert [len(each.imgs) for each in sets] == [4, 5, 6, 6]
    for ids in ([set(each.imgs) for each in sets], [set(each.anns) for each in sets]):
        assert len(set.union(*ids)) == sum(map(len, ids))
    both = CocoDataset(
        [folder / "images"] * 2,
        [folder / "annotations" / f"{split}.json" for split in ("train", "hidden")],
        kind="keypoints",
    )
    assert len(both) == 10


@pytest.mark.parametrize(
    ("split", "truth"), [("unlabelled", "hidden"), ("shifted", "hidden_shifted")]
)
def test_unlabelled_images_are_listed_without_categories_as_cocos_are(
    split: str, truth: str
) -> None:
    folder = write_builtin(tiny())
    content, hidden = read(folder, split), read(folder, truth)
    assert set(content) == {"info", "images"}
    assert content["images"] == hidden["images"]
    assert all((folder / "images" / each["file_name"]).is_file() for each in content["images"])


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_the_truth_has_ap_100_against_itself(kind: str) -> None:
    truth = read(write_builtin(tiny()), "val")
    found = [each | {"score": 1.0} for each in truth["annotations"]]
    result = evaluate(truth, found, kind=kind, sigmas=SIGMAS if kind == "keypoints" else None)
    assert result["AP"] == pytest.approx(100)


def test_the_fall_off_of_the_joints_is_the_mean_of_cocos() -> None:
    coco = (26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89)
    assert len(SIGMAS) == len(KEYPOINTS) == 9
    assert set(SIGMAS) == {round(sum(coco) / 17) / 1000}


def test_joints_behind_a_solid_are_labelled_on_demand_only() -> None:
    plain = read(write_builtin(tiny()), "train")["annotations"]
    every = read(write_builtin(tiny(hidden_joints=True)), "train")["annotations"]
    hidden = 0
    for one, other in zip(plain, every, strict=True):
        few, all_ = (torch.tensor(each["keypoints"]).view(-1, 3) for each in (one, other))
        dropped = all_[:, 2] == 1
        hidden += int(dropped.sum())
        assert torch.equal(few, all_ * ~dropped[:, None])
        assert one["num_keypoints"] == (few[:, 2] > 0).sum()
        assert other["num_keypoints"] == (all_[:, 2] > 0).sum()
    assert hidden


def test_a_class_is_the_shape_on_demand() -> None:
    solid, shape = (read(write_builtin(tiny(classes=each)), "train") for each in ("solid", "shape"))
    assert [each["name"] for each in solid["categories"]] == ["solid"]
    assert [each["name"] for each in shape["categories"]] == tiny().shapes
    assert len({each["category_id"] for each in shape["annotations"]}) > 1
    for one, other in zip(solid["annotations"], shape["annotations"], strict=True):
        assert one == other | {"category_id": 1}


def test_names_of_joints_tell_left_from_right() -> None:
    category = read(write_builtin(tiny()), "val")["categories"][0]
    names = category["keypoints"]
    swap = {"left": "right", "right": "left"}
    other = [" ".join(swap.get(word, word) for word in name.split()) for name in names]
    assert tuple(names.index(name) for name in other) == KEYPOINT_FLIP
    assert all(1 <= end <= 9 for edge in category["skeleton"] for end in edge)


def test_more_labelled_images_leave_all_others_as_they_are() -> None:
    few, many = write_builtin(tiny()), write_builtin(tiny(labelled=7))
    assert few != many
    for split in ("train", "val", "unlabelled"):
        for file in sorted((few / "images" / split).iterdir()):
            assert file.read_bytes() == (many / "images" / split / file.name).read_bytes()
    assert read(few, "val") == read(many, "val")


def test_another_seed_gives_other_images() -> None:
    one, other = (write_builtin(tiny(seed=seed)) for seed in (0, 1))
    file = "images/val/000001.png"
    assert (one / file).read_bytes() != (other / file).read_bytes()


def test_the_folder_is_written_once_also_by_several_at_a_time() -> None:
    options = tiny(noise=5.0)
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(write_builtin, [options] * 3))
    assert len(set(folders)) == 1
    assert not list(folders[0].parent.glob(".*")), "half-written folders are removed"
    before = os.stat(folders[0] / "annotations" / "train.json").st_mtime_ns
    assert write_builtin(options) == folders[0]
    assert os.stat(folders[0] / "annotations" / "train.json").st_mtime_ns == before
    assert len(list((folders[0] / "images").rglob("*.png"))) == 4 + 5 + 6 + 6


def test_a_cache_that_cannot_be_written_stops_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data_distillation").write_text("")  # a file where the folder should be
    monkeypatch.setenv("FAIR_VISION_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="set FAIR_VISION_CACHE to a folder with room"):
        write_builtin(tiny())


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"classes": "colour"}, "classes=colour is not known: choose solid or shape"),
        ({"labelled": 0}, "labelled=0: choose 1 to"),
        ({"objects": [2]}, "objects=.2.: give the fewest and the most"),
    ],
)
def test_options_that_cannot_be_are_refused(changed: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tiny(**changed)
