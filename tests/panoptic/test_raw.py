"""Cityscapes, ADE20k and Vistas as downloaded -> COCO panoptic, on tiny trees of the same form."""

import json

import numpy as np
import pytest
from PIL import Image

from panoptic.convert import main
from panoptic.files.ade20k import palette
from panoptic.files.cityscapes import CATEGORIES
from panoptic.files.coco import PanopticFiles


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def classes(files, number):
    """(id, category, crowd) of the segments of an image."""
    return [(s["id"], s["category_id"], s["iscrowd"]) for s in files.segments(number)]


# Cityscapes: person 24 as a group and as two instances, road 7, car 26, sky 23; the evaluation
# ignores unlabelled 0, static 4, polegroup 18 and caravan 29.
VALUES = np.array([[24, 24000, 24001, 7], [7, 29000, 4, 18], [0, 29, 26012, 23]], np.uint16)


@pytest.fixture
def cityscapes(tmp_path):
    for city, frame in (("ulm", "000019"), ("aachen", "000000")):
        name = f"{city}_000001_{frame}_gtFine_instanceIds.png"
        save(tmp_path / "gtFine" / "val" / city / name, VALUES)
    return tmp_path


def test_cityscapes_becomes_what_its_own_tool_makes_of_it(cityscapes):
    main(["cityscapes", str(cityscapes), "val"])
    file = cityscapes / "gtFine" / "cityscapes_panoptic_val.json"
    content = json.loads(file.read_text())
    files = PanopticFiles(file)
    number = "aachen_000001_000000"
    assert [image["id"] for image in files.images] == [number, "ulm_000001_000019"]
    assert files.path(number).name == f"{number}_gtFine_panoptic.png"
    assert content["images"][0] == {
        "id": number,
        "width": 4,
        "height": 3,
        "file_name": f"{number}_gtFine_leftImg8bit.png",
    }
    expected = np.where(np.isin(VALUES, [0, 4, 18, 29, 29000]), 0, VALUES)
    assert np.array_equal(files.ids(number), expected)
    assert classes(files, number) == [
        *((7, 7, 0), (23, 23, 0), (24, 24, 1)),
        *((24000, 24, 0), (24001, 24, 0), (26012, 26, 0)),
    ]
    road = files.segments(number)[0]
    assert (road["area"], road["bbox"]) == (2, [0, 0, 4, 2])


def test_cityscapes_has_8_things_and_11_kinds_of_stuff_by_label_id():
    things = [c.id for c in CATEGORIES.values() if c.isthing]
    assert things == [24, 25, 26, 27, 28, 31, 32, 33]
    assert len(CATEGORIES) == 19
    assert CATEGORIES[19].name == "traffic light"
    assert CATEGORIES[26].color == (0, 0, 142)


def test_faults_of_cityscapes_are_named(cityscapes):
    with pytest.raises(ValueError, match=r"gtFine/train has no \*/\*_instanceIds.png: expected"):
        main(["cityscapes", str(cityscapes), "train"])
    bad = cityscapes / "gtFine" / "val" / "ulm" / "ulm_000001_000019_gtFine_instanceIds.png"
    save(bad, np.array([[7, 34000]], np.uint16))
    with pytest.raises(ValueError, match=r"ulm_.*instanceIds\.png: value 34000 is of label 34"):
        main(["cityscapes", str(cityscapes), "val"])
    assert not (cityscapes / "gtFine" / "cityscapes_panoptic_val.json").exists()


# ADE20k: wall 1, sky 3, bed 8 and person 13 are four of the 150 classes; bed and person are thing
# classes 1 and 5 of the instance maps.
SEMANTIC = np.array([[1, 1, 3, 8], [13, 13, 0, 8], [3, 3, 1, 13]], np.uint8)
INSTANCE = np.array(
    [
        [(0, 0), (0, 0), (0, 0), (1, 1)],
        [(5, 1), (5, 2), (0, 0), (1, 1)],
        [(0, 0)] * 2 + [(5, 2)] * 2,
    ],
    np.uint8,
)


@pytest.fixture
def ade20k(tmp_path):
    pixels = np.concatenate([INSTANCE, np.zeros_like(INSTANCE[..., :1])], axis=-1)
    for name in ("ADE_val_00000002", "ADE_val_00000001"):
        save(tmp_path / "annotations" / "validation" / f"{name}.png", SEMANTIC)
        save(tmp_path / "annotations_instance" / "validation" / f"{name}.png", pixels)
    names = {1: "wall", 3: "sky", 8: "bed", 13: "person, individual, someone"}
    rows = [f"{number}\t0.1\t9\t9\t1\t{name}" for number, name in names.items()]
    (tmp_path / "objectInfo150.txt").write_text(
        "\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows])
    )
    (tmp_path / "categoryMapping.txt").write_text("Instance Semantic Name\n1 8 bed\n5 13 person\n")
    return tmp_path


def test_ade20k_joins_its_semantic_and_instance_maps(ade20k):
    main(["ade20k", str(ade20k), "validation"])
    files = PanopticFiles(ade20k / "ade20k_panoptic_validation.json")
    number = "ADE_val_00000001"
    assert [image["id"] for image in files.images] == [number, "ADE_val_00000002"]
    assert files.images[0]["file_name"] == f"{number}.jpg"
    assert {c.name: c.isthing for c in files.categories.values()} == {
        **{"wall": False, "sky": False},
        **{"bed": True, "person": True},
    }
    ids = files.ids(number)
    place = {segment["id"]: i for i, segment in enumerate(files.segments(number), 1)} | {0: 0}
    assert [category for _, category, _ in classes(files, number)] == [1, 3, 8, 13, 13]
    # The instance map goes above the semantic one: row 2, column 2 is a wall there.
    assert np.vectorize(place.get)(ids).tolist() == [[1, 1, 2, 3], [4, 5, 0, 3], [2, 2, 5, 5]]


def test_things_of_ade20k_without_an_instance_are_void_and_covered_stuff_is_gone(ade20k):
    folder = ade20k / "annotations_instance" / "validation"
    pixels = np.zeros((3, 4, 3), np.uint8)
    pixels[SEMANTIC == 3] = (5, 1, 0)
    for file in folder.glob("*.png"):
        save(file, pixels)
    main(["ade20k", str(ade20k), "validation", "--out", str(ade20k / "o.json")])
    files = PanopticFiles(ade20k / "o.json")
    assert [category for _, category, _ in classes(files, "ADE_val_00000001")] == [1, 13]
    assert (files.ids("ADE_val_00000001") == 0).tolist() == np.isin(SEMANTIC, [0, 8, 13]).tolist()


def test_faults_of_ade20k_are_named(ade20k):
    with pytest.raises(ValueError, match=r"annotations/training has no \*\.png: expected"):
        main(["ade20k", str(ade20k), "training"])
    folder = ade20k / "annotations_instance" / "validation"
    save(folder / "ADE_val_00000001.png", np.full((3, 4, 3), 9, np.uint8))
    with pytest.raises(ValueError, match=r"0001\.png: thing class 9 is not in categoryMap"):
        main(["ade20k", str(ade20k), "validation"])
    save(folder / "ADE_val_00000001.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"00001\.png: the semantic map has the shape \(3, 4\)"):
        main(["ade20k", str(ade20k), "validation"])
    (folder / "ADE_val_00000001.png").unlink()
    with pytest.raises(ValueError, match=r"annotations_instance/.*00001\.png does not exist"):
        main(["ade20k", str(ade20k), "validation"])
    (ade20k / "objectInfo150.txt").write_text("nothing")
    with pytest.raises(ValueError, match=r"objectInfo150\.txt has no numbered line"):
        main(["ade20k", str(ade20k), "validation"])
    (ade20k / "categoryMapping.txt").unlink()
    with pytest.raises(ValueError, match=r"categoryMapping\.txt cannot be read"):
        main(["ade20k", str(ade20k), "validation"])


def test_a_palette_has_256_colours():
    assert len({palette(label) for label in range(256)}) == 256


# Vistas: labels 0 bird (thing), 1 road (stuff), 2 car (thing), 3 unlabelled.
INSTANCES = np.array([[0, 1, 256, 257], [512, 767, 768, 256]], np.uint16)
LABELS = [
    {"name": "animal--bird", "instances": True, "evaluate": True, "color": [165, 42, 42]},
    {"name": "flat--road", "instances": False, "evaluate": True, "color": [128, 64, 128]},
    {"name": "vehicle--car", "instances": True, "evaluate": True, "color": [0, 0, 142]},
    {"name": "void--unlabeled", "instances": False, "evaluate": False, "color": [0, 0, 0]},
]


@pytest.mark.parametrize("version", ["", "v1.2"])
def test_vistas_has_its_label_in_the_upper_byte(tmp_path, version):
    name = f"config_{version}.json" if version else "config.json"
    (tmp_path / name).write_text(json.dumps({"labels": LABELS, "mapping": "public"}))
    save(tmp_path / "validation" / version / "instances" / "aB-_1.png", INSTANCES)
    main(["vistas", str(tmp_path), "validation", "--version", version])
    files = PanopticFiles(tmp_path / "vistas_panoptic_validation.json")
    assert [c.name for c in files.categories.values()] == [label["name"] for label in LABELS[:3]]
    assert files.categories[3].supercategory == "vehicle"
    # Label 0, instance 0 is a bird, not void; road is one segment whatever its lower byte.
    assert files.ids("aB-_1").tolist() == [[256, 257, 512, 512], [768, 1023, 0, 512]]
    assert classes(files, "aB-_1") == [
        *((256, 1, 0), (257, 1, 0), (512, 2, 0)),
        *((768, 3, 0), (1023, 3, 0)),
    ]


def test_faults_of_vistas_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json does not exist: expected ROOT/config"):
        main(["vistas", str(tmp_path), "training"])
    (tmp_path / "config.json").write_text(json.dumps({"labels": LABELS[:2]}))
    with pytest.raises(ValueError, match=r"training/instances has no \*\.png"):
        main(["vistas", str(tmp_path), "training"])
    save(tmp_path / "training" / "instances" / "a.png", INSTANCES)
    with pytest.raises(ValueError, match=r"a\.png: value 512 is of label 2, but .* only 2 labels"):
        main(["vistas", str(tmp_path), "training"])
    (tmp_path / "config.json").write_text(json.dumps({"labels": [{"name": "x"}]}))
    with pytest.raises(ValueError, match=r"config\.json: label 0 has no proper `name`"):
        main(["vistas", str(tmp_path), "training"])
