"""Panoptic FPN's and the pair's data: scenes, real files, targets, and what changes both."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from PIL import Image
from scipy import ndimage

import panoptic
from common.config import UserError, to_dataclass
from common.transforms import scaled_size
from panoptic import data
from panoptic.config import Config, Data, Scenes
from panoptic.files.categories import Category
from panoptic.files.entries import complete
from panoptic.files.ids import id_to_rgb
from panoptic.inputs.augment import augment, crop, resize, rotate
from panoptic.inputs.photos import open_photos
from panoptic.inputs.targets import VOID, Labels, training_target

FOLDER = Path(panoptic.__file__).parent
CATEGORIES = {
    7: Category(7, "cat", True),
    0: Category(0, "sky", False),
    3: Category(3, "dog", True),
    9: Category(9, "grass", False),
}


def settings(*words: str) -> Config:
    """What `python train.py WORDS` would train."""
    ConfigStore.instance().store("schema", Config)  # other tests keep theirs under this name
    with initialize_config_dir(str(FOLDER / "conf"), version_base="1.3"):
        return to_dataclass(compose("config", [*words, "output_dir=unused"]))


@pytest.fixture(scope="module")
def scenes() -> data.Panoptic:
    cfg = Data(name="scenes", root="", resize=False, scenes=Scenes(train_images=45, val_images=8))
    return data.build(cfg, "train", semantic="all")


@pytest.mark.parametrize(
    "name", sorted(p.stem for p in (FOLDER / "conf/experiment").glob("*.yaml"))
)
def test_every_experiment_composes(name):
    words = [f"experiment={name}"]
    if "cityscapes" in name:
        words += ["data=cityscapes", "data.root=x"]
    elif "paper" in name:
        words += ["data=coco", "data.root=x"]
    assert settings(*words).steps > 0


@pytest.mark.parametrize("name", ["coco", "cityscapes", "ade20k", "vistas"])
def test_every_data_set_composes_and_wants_its_layout(name, tmp_path):
    cfg = settings("experiment=paper", f"data={name}", f"data.root={tmp_path}")
    with pytest.raises(ValueError, match=r"expect"):
        data.build(cfg.data, "train")
    with pytest.raises(ValueError, match=f"not a folder: data={name} expects ROOT/"):
        open_photos(name, str(tmp_path / "nowhere"), "train")


def test_the_defaults_are_panoptic_fpn_on_coco_1x():
    cfg = settings("experiment=paper", "data=coco", "data.root=x")
    assert (cfg.steps, cfg.batch_size, cfg.lr, cfg.warmup) == (90_000, 16, 0.02, 1000)
    assert [round(share * cfg.steps) for share in cfg.milestones] == [60_000, 80_000]
    assert cfg.data.short_side == list(range(640, 801, 32))
    assert (cfg.merge.confidence, cfg.merge.overlap, cfg.merge.stuff_area) == (0.5, 0.5, 4096)
    long = settings("experiment=paper_3x", "data=coco", "data.root=x")
    assert [round(share * long.steps) for share in long.milestones] == [210_000, 250_000]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("predict.source=merge", "merged"),
        ("predict.also=[foo]", "predict.also=foo is unknown"),
        ("model.part=semantics", "semantic"),
        ("model.part=semantic", "predict.source=merged needs a part"),
        ("data.scale=[2,1]", "data.scale"),
        ("merge.overlap=2", "merge.overlap"),
        ("data.scenes.together=9", "together"),
        ("data.workers=-1", "data.workers=-1 is out of range"),
        ("momentum=2", "momentum=2.0 is out of range"),
        ("weight_decay=-1", "weight_decay=-1.0 is out of range"),
        ("warmup_start=2", "warmup_start=2.0 is out of range"),
        ("milestones=[2]", "milestones=2.0 is out of range"),
    ],
)
def test_a_wrong_option_is_one_sentence(word, hint):
    with pytest.raises(UserError, match=hint.replace(".", r"\.")):
        settings("experiment=mini", word)


def test_components_need_a_network_that_knows_the_things_classes():
    with pytest.raises(UserError, match=r"model\.name=separate"):
        settings("experiment=mini", "model.name=panoptic_fpn", "predict.source=components")


def test_the_scenes_have_six_things_and_four_kinds_of_stuff(scenes):
    kinds = [category.isthing for category in scenes.categories.values()]
    assert kinds == [True] * 6 + [False] * 4
    seen = {s["category_id"] for i in range(len(scenes)) for s in scenes[i][1]["segments"]}
    assert seen == set(scenes.categories)


def test_the_scenes_maps_and_segments_agree_and_have_void(scenes):
    void = 0
    for index in range(len(scenes)):
        _, ids, segments = scenes.source[index]
        complete(ids.numpy(), segments, where=str(index), categories=scenes.categories)
        void += int((ids == 0).sum())
    assert void > 0  # pebbles


def test_things_of_one_class_touch_in_most_scenes(scenes):
    touching = 0
    for index in range(len(scenes)):
        _, ids, segments = scenes.source[index]
        for category in range(1, 7):
            own = [s["id"] for s in segments if s["category_id"] == category]
            mask = np.isin(ids.numpy(), own)
            if own and ndimage.label(mask, np.ones((3, 3)))[1] < len(own):
                touching += 1
                break
    assert touching > len(scenes) / 2


def test_the_splits_and_the_groups_of_shapes_differ(scenes):
    cfg = scenes.cfg
    validation = data.build(cfg, "val")
    assert not set(scenes.files) & set(validation.files)
    images = [scenes.source[i][0] for i in range(16)] + [validation.source[0][0]]
    assert len({image.numpy().tobytes() for image in images}) == 17


def test_targets_hold_each_thing_with_its_box_and_its_contiguous_label():
    ids = torch.zeros(6, 8, dtype=torch.int32)
    ids[:2] = 100  # sky
    ids[2:5, 1:4] = 5  # dog
    ids[4:, 4:] = 6  # cat
    ids[5, 0] = 77  # a crowd of cats
    segments = [
        {"id": 100, "category_id": 0},
        {"id": 5, "category_id": 3},
        {"id": 6, "category_id": 7, "iscrowd": 0},
        {"id": 77, "category_id": 7, "iscrowd": 1},
        {"id": 8, "category_id": 9},  # cropped away
    ]
    labels = Labels.of(CATEGORIES, "stuff")
    assert (labels.things, labels.stuff) == ((7, 3), (0, 9))
    target = training_target(ids, segments, labels)
    assert target["labels"].tolist() == [1, 0]
    assert target["boxes"].tolist() == [[1, 2, 4, 5], [4, 4, 8, 6]]
    assert torch.equal(target["masks"].bool(), torch.stack([ids == 5, ids == 6]))
    semantic = target["semantic"]
    assert (semantic[:2] == 1).all()  # the first stuff class
    assert (semantic[(ids == 5) | (ids == 6) | (ids == 77)] == 0).all()
    assert (semantic[ids == 0] == VOID).all()
    every = training_target(ids, segments, Labels.of(CATEGORIES, "all"))["semantic"]
    assert every[0, 0] == 2  # things first: cat 0, dog 1, sky 2, grass 3
    assert (every[5, 0], every[3, 2]) == (0, 1)


@pytest.mark.parametrize("kind", ["stuff", "all"])
def test_semantic_classes_lead_back_to_category_ids(kind):
    labels = Labels.of(CATEGORIES, kind)
    classes = torch.tensor([[labels.class_of[0], labels.class_of[9], VOID, labels.class_of[7]]])
    last = 7 if kind == "all" else -1
    assert labels.to_categories(classes).tolist() == [[0, 9, -1, last]]


def test_an_image_without_things_has_empty_targets():
    target = training_target(torch.zeros(4, 5), [], Labels.of(CATEGORIES, "stuff"))
    assert [tuple(target[key].shape) for key in ("boxes", "labels", "masks")] == [
        *((0, 4), (0,), (0, 4, 5)),
    ]


def test_a_flip_moves_image_and_ids_alike():
    ids = torch.arange(12, dtype=torch.int32).view(3, 4)
    image = ids.byte().expand(3, -1, -1)
    flipped, map_ = augment(image, ids, Data(root="", resize=False, flip=1.0))
    assert torch.equal(map_, ids.flip(1))
    assert torch.equal(flipped[0].int(), map_)


def test_resizing_copies_ids_and_keeps_the_largest_exact():
    ids = torch.tensor([[2**24 - 1, 1], [2**24 - 2, 3]], dtype=torch.int32)
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    large = resize(image, ids, (4, 6))[1]
    assert torch.equal(large, ids.repeat_interleave(2, 0).repeat_interleave(3, 1))
    assert torch.equal(resize(large.expand(3, -1, -1).byte(), large, (2, 2))[1], ids)
    assert torch.equal(rotate(image, ids, 0.0)[1], ids)
    assert torch.equal(rotate(image, ids, 90.0)[1], torch.rot90(ids))


def test_sizes_follow_the_shorter_side_up_to_the_longest():
    assert scaled_size((480, 640), 800, 1333) == (800, 1067)
    assert scaled_size((400, 1000), 800, 1333) == (533, 1333)


def test_a_crop_of_a_smaller_image_is_filled_up_with_void():
    image, ids = crop(
        torch.full((3, 4, 9), 7, dtype=torch.uint8), torch.ones(4, 9, dtype=torch.int32), 6
    )
    assert image.shape == (3, 6, 6)
    assert (ids[:4] == 1).all()
    assert (ids[4:] == 0).all()


def test_the_pspnet_recipe_changes_images_and_keeps_their_ids():
    torch.manual_seed(0)
    recipe = Data(root="", resize=False, scale=[0.5, 2.0], rotate=10.0, blur=1.0, crop=48)
    ids = torch.ones(40, 60, dtype=torch.int32)
    ids[10:20, 20:40] = 2**24 - 1
    for _ in range(5):
        image, map_ = augment(torch.full((3, 40, 60), 90, dtype=torch.uint8), ids, recipe)
        assert image.shape == (3, 48, 48)
        assert {*map_.unique().tolist()} <= {0, 1, 2**24 - 1}


def coco_set(folder: Path, *, extra: int = 0) -> Path:
    """A set of one image in COCO's format; `extra`: an id that only its PNG has."""
    ids = np.full((20, 30), 1, np.int32)
    ids[5:9, 5:9] = 2 + extra
    (folder / "train").mkdir(parents=True)
    (folder / "annotations" / "panoptic_train").mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(folder / "train" / "one.png")
    Image.fromarray(id_to_rgb(ids)).save(folder / "annotations/panoptic_train/one.png")
    categories = [
        {"id": c.id, "name": c.name, "isthing": int(c.isthing)} for c in CATEGORIES.values()
    ]
    segments = [{"id": 1, "category_id": 9}, {"id": 2, "category_id": 7}]
    annotation = {"image_id": 5, "file_name": "one.png", "segments_info": segments}
    image = {"id": 5, "file_name": "one.png", "width": 30, "height": 20}
    content = {"images": [image], "annotations": [annotation], "categories": categories}
    (folder / "annotations" / "panoptic_train.json").write_text(json.dumps(content))
    return folder


def test_a_set_of_ones_own_is_read_in_cocos_format(tmp_path):
    cfg = Data(root=str(coco_set(tmp_path)), short_side=[40], long_side=80, flip=0.0)
    image, target = data.build(cfg, "train")[0]
    assert image.shape == (3, 40, 60)
    assert target["boxes"].tolist() == [[10, 10, 18, 18]]
    assert (target["image_id"], target["size"]) == (5, (20, 30))


def test_faults_of_the_files_are_named(tmp_path):
    bad = coco_set(tmp_path / "a", extra=7)
    with pytest.raises(ValueError, match=r"one\.png.*image 5.*id 9"):
        data.build(Data(root=str(bad)), "train")[0]
    small = coco_set(tmp_path / "b")
    Image.new("RGB", (31, 20)).save(small / "train" / "one.png")
    with pytest.raises(ValueError, match="31 x 20 pixels, but its panoptic map 30 x 20"):
        data.build(Data(root=str(small)), "train")[0]
    (small / "train" / "one.png").unlink()
    with pytest.raises(ValueError, match=r"one\.png does not exist"):
        data.build(Data(root=str(small)), "train")
    shutil.rmtree(small / "annotations")
    with pytest.raises(ValueError, match="no panoptic annotations of 'train'"):
        data.build(Data(root=str(small)), "train")


def test_a_validation_set_of_other_categories_is_refused(tmp_path):
    cfg = Data(root=str(coco_set(tmp_path)), val="train")
    with pytest.raises(ValueError, match="differ in their categories"):
        data.build(cfg, "val", categories={1: Category(1, "x", True)})


def test_cityscapes_is_read_raw_and_converted_alike(tmp_path):
    from panoptic import convert

    number, city = "ulm_000000_000019", tmp_path / "gtFine" / "train" / "ulm"
    photos = tmp_path / "leftImg8bit" / "train" / "ulm"
    values = np.full((16, 24), 7, np.int32)
    values[4:8, 4:8], values[8:, :4], values[0] = 26001, 24, 3  # a car, a group, ignored
    for folder in (city, photos):
        folder.mkdir(parents=True)
    Image.fromarray(values.astype(np.uint16)).save(city / f"{number}_gtFine_instanceIds.png")
    Image.new("RGB", (24, 16)).save(photos / f"{number}_leftImg8bit.png")
    raw = open_photos("cityscapes", str(tmp_path), "train")
    _, ids, segments = raw[0]
    assert {s["category_id"]: s["iscrowd"] for s in segments} == {7: 0, 26: 0, 24: 1}
    convert.main(["cityscapes", str(tmp_path), "train"])
    converted = open_photos("cityscapes", str(tmp_path), "train")
    assert converted.image_ids == raw.image_ids == [number]
    assert torch.equal(converted[0][1], ids)


def test_vistas_and_ade20k_are_read_raw(tmp_path):
    vistas = tmp_path / "vistas"
    labels = [
        {"name": "object--car", "instances": True, "color": [0, 0, 142]},
        {"name": "nature--sky", "instances": False, "color": [70, 130, 180]},
    ]
    for name in ("images", "instances"):
        (vistas / "training" / name).mkdir(parents=True)
    (vistas / "config.json").write_text(json.dumps({"labels": labels}))
    values = np.full((8, 12), 256, np.uint16)
    values[:4, :4], values[:4, 6:] = 0, 1  # two cars
    Image.fromarray(values).save(vistas / "training" / "instances" / "a.png")
    Image.new("RGB", (12, 8)).save(vistas / "training" / "images" / "a.jpg")
    source = open_photos("vistas", str(vistas), "training")
    assert sorted(s["category_id"] for s in source[0][2]) == [1, 1, 2]

    ade = tmp_path / "ade"
    (ade / "annotations_instance" / "training").mkdir(parents=True)
    for name in ("images", "annotations"):
        (ade / name / "training").mkdir(parents=True)
    (ade / "objectInfo150.txt").write_text("Idx\tRatio\tName\n1\t0.1\twall\n2\t0.1\tbed, couch\n")
    (ade / "categoryMapping.txt").write_text("1 2\n")
    semantic = np.ones((8, 12), np.uint8)
    instance = np.zeros((8, 12, 3), np.uint8)
    semantic[:4, :4], instance[:4, :4] = 2, (1, 1, 0)
    Image.fromarray(semantic).save(ade / "annotations" / "training" / "a.png")
    Image.fromarray(instance).save(ade / "annotations_instance" / "training" / "a.png")
    Image.new("RGB", (12, 8)).save(ade / "images" / "training" / "a.jpg")
    source = open_photos("ade20k", str(ade), "training")
    assert sorted(s["category_id"] for s in source[0][2]) == [1, 2]
    assert source.categories[2].isthing


def test_real_coco_panoptic_files_are_read(shared_data):
    root = str(shared_data / "coco_panoptic")
    cfg = Data(root=root, val="train", short_side=[96], long_side=160, workers=0)
    training = data.build(cfg, "train")
    assert (len(training), len(training.labels.things), len(training.labels.stuff)) == (100, 80, 53)
    image, target = training[3]
    assert target["masks"].shape[1:] == image.shape[1:]
    assert len(target["masks"]) == len(target["boxes"]) == len(target["labels"])
    groups = training.groups(2)
    assert groups is not None
    assert {*groups} == {0, 1}
    _, whole = data.build(cfg, "val", categories=training.categories)[3]
    assert tuple(whole["ids"].shape) == whole["size"]
    assert "boxes" not in whole
