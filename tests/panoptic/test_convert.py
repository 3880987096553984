"""Converters: two-channel, detection and semantic formats, each way and back."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from panoptic.convert import main
from panoptic.evaluate_files import evaluate_files
from panoptic.files.categories import Category, to_entries
from panoptic.files.coco import PanopticFiles, write_ids, write_json
from panoptic.files.detection import decode, encode, from_detection, to_detection
from panoptic.files.pixels import read_labels
from panoptic.files.semantic import class_labels, to_semantic
from panoptic.files.two_channel import from_two_channel, to_two_channel
from panoptic.metric import peers

CATEGORIES = {
    3: Category(3, "cat", True, (200, 10, 10)),
    7: Category(7, "sky", False, (10, 10, 200)),
    300: Category(300, "dog", True, (10, 200, 10)),
    8: Category(8, "sea", False, (10, 10, 200)),
}
IDS = np.array([[11, 11, 12, 0], [70, 70, 12, 13], [80, 80, 80, 13]])
SEGMENTS = [
    {"id": 70, "category_id": 7, "iscrowd": 0},
    {"id": 12, "category_id": 3, "iscrowd": 1},
    {"id": 11, "category_id": 3, "iscrowd": 0},
    {"id": 80, "category_id": 8, "iscrowd": 0},
    {"id": 13, "category_id": 3, "iscrowd": 0},
]


@pytest.fixture
def sample(shared_data):
    return shared_data / "panopticapi_sample"


def equal_but_for_ids(one, other):
    """Whether two (ids, segments) part the image in the same way, with equal classes and crowds."""

    def named(ids, segments):
        table = {s["id"]: i for i, s in enumerate(segments, 1)} | {0: 0}
        order = [(s["category_id"], s.get("iscrowd", 0)) for s in segments]
        return np.vectorize(table.__getitem__)(ids), order

    (first, classes), (second, other_classes) = named(*one), named(*other)
    return classes == other_classes and np.array_equal(first, second)


def same_partition(one, other):
    """As `equal_but_for_ids`, in any order of the segments and without crowds."""
    classes = [
        {s["id"]: s["category_id"] for s in segments} | {0: None} for _, segments in (one, other)
    ]
    pairs = set(zip(one[0].ravel().tolist(), other[0].ravel().tolist(), strict=True))
    one_to_one = len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    return one_to_one and all(classes[0][a] == classes[1][b] for a, b in pairs)


def test_the_two_channel_sample_becomes_the_panoptic_sample(sample, tmp_path):
    out = tmp_path / "out.json"
    words = ["from_two_channel", str(sample / "panoptic_examples_2ch_format"), str(out)]
    words += ["--images", str(sample / "images_info_examples.json")]
    words += ["--categories", str(sample / "panoptic_coco_categories.json")]
    main(words)
    scores = evaluate_files(sample / "panoptic_examples.json", out)
    assert (scores.all.pq, scores.all.sq, scores.all.rq, scores.all.n) == (1, 1, 1, 8)
    truth, ours = PanopticFiles(sample / "panoptic_examples.json"), PanopticFiles(out)
    for number in (142238, 439180):
        one, other = ((f.ids(number), f.segments(number)) for f in (truth, ours))
        assert same_partition(one, other)


def test_panoptic_to_two_channel_to_panoptic_is_the_identity(sample, tmp_path):
    source = sample / "panoptic_examples.json"
    main(["to_two_channel", str(source), str(tmp_path / "two")])
    words = ["from_two_channel", str(tmp_path / "two"), str(tmp_path / "back.json")]
    main([*words, "--images", str(source)])
    truth, ours = PanopticFiles(source), PanopticFiles(tmp_path / "back.json")
    for number in (142238, 439180):
        one, other = ((f.ids(number), f.segments(number)) for f in (truth, ours))
        assert same_partition(one, other)
    theirs = sample / "panoptic_examples_2ch_format" / "000000142238.png"
    classes = [read_labels(p, channels=2)[..., 0] for p in (theirs, tmp_path / "two" / theirs.name)]
    assert np.array_equal(*classes)


def test_stuff_of_any_instance_number_is_one_segment():
    pixels = np.array([[[7, 0], [7, 5], [3, 1]], [[3, 2], [0, 9], [7, 255]]], np.uint8)
    ids, segments = from_two_channel(pixels, CATEGORIES)
    assert [segment["category_id"] for segment in segments] == [3, 3, 7]
    assert ids[0, 0] == ids[0, 1] == ids[1, 2]
    assert ids[1, 1] == 0
    assert len(np.unique(ids)) == 4


def test_void_may_have_another_label():
    pixels = np.array([[[255, 0], [3, 1]]], np.uint8)
    assert (from_two_channel(pixels, CATEGORIES, void=255)[0] > 0).tolist() == [[False, True]]
    with pytest.raises(ValueError, match=r"map: label 255 is neither a category nor void \(0\)"):
        from_two_channel(pixels, CATEGORIES)
    zero = {0: Category(0, "wall", False), **CATEGORIES}
    with pytest.raises(ValueError, match=r"map: void=0 is a category .*: give void another label"):
        from_two_channel(pixels, zero)
    assert (from_two_channel(pixels * 0, zero, void=255)[0] > 0).all()
    back = to_two_channel(IDS, SEGMENTS, CATEGORIES, void=255)
    assert back[0, 3].tolist() == [255, 0, 0]
    with pytest.raises(ValueError, match="void=7 is a category"):
        to_two_channel(IDS, SEGMENTS, CATEGORIES, void=7)


def test_what_two_channels_of_8_bits_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="segment 5 would be instance 1 of category 300"):
        to_two_channel(np.full((1, 1), 5), [{"id": 5, "category_id": 300}], CATEGORIES)
    many = np.arange(1, 257)[None]
    segments = [{"id": int(number), "category_id": 3} for number in many[0]]
    with pytest.raises(ValueError, match="segment 256 would be instance 256 of category 3"):
        to_two_channel(many, segments, CATEGORIES)


def test_run_lengths_are_those_of_pycocotools():
    generator = np.random.default_rng(0)
    ids = np.kron(generator.integers(0, 5, (6, 7)), np.ones((4, 3), int)) * 1_000_003
    masks = encode(ids)
    assert sorted(masks) == [n for n in np.unique(ids).tolist() if n]
    for number, mask in masks.items():
        theirs = rle.encode(np.asfortranarray(ids == number, np.uint8))
        assert mask == {"size": [24, 21], "counts": theirs["counts"].decode()}
        assert np.array_equal(decode(mask, 24, 21, where=""), ids == number)


def test_masks_are_decoded_without_pycocotools_warning():
    code = encode(IDS)[12]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(decode(code, 3, 4, where=""), IDS == 12)
        assert np.array_equal(peers.decode(code), IDS == 12)


def test_the_panoptic_sample_becomes_the_detection_sample(sample, tmp_path):
    out = tmp_path / "out.json"
    main(["to_detection", str(sample / "panoptic_examples.json"), str(out)])
    ours = json.loads(out.read_text())
    theirs = json.loads((sample / "panoptic_coco_detection_format.json").read_text())
    assert [a.pop("id") for a in ours["annotations"]] == list(range(1, 51))
    assert [a.pop("id") for a in theirs["annotations"]] == list(range(50))
    assert ours["annotations"] == theirs["annotations"]
    assert ours["images"] == theirs["images"]
    assert all(category.pop("isthing") in (0, 1) for category in ours["categories"])
    assert ours["categories"] == theirs["categories"]


def test_panoptic_to_detection_to_panoptic_is_the_identity(sample, tmp_path):
    source = sample / "panoptic_examples.json"
    main(["to_detection", str(source), str(tmp_path / "detection.json")])
    main(["from_detection", str(tmp_path / "detection.json"), str(tmp_path / "back.json")])
    truth, ours = PanopticFiles(source), PanopticFiles(tmp_path / "back.json")
    assert ours.categories == truth.categories
    for number in (142238, 439180):
        one, other = ((f.ids(number), f.segments(number)) for f in (truth, ours))
        assert equal_but_for_ids(one, other)


def test_the_detection_sample_becomes_the_panoptic_sample(sample, tmp_path):
    words = ["from_detection", str(sample / "panoptic_coco_detection_format.json")]
    words += [str(tmp_path / "x.json"), "--categories"]
    main([*words, str(sample / "panoptic_coco_categories.json")])
    truth, ours = (PanopticFiles(p) for p in (sample / "panoptic_examples.json", words[2]))
    for number in (142238, 439180):
        one, other = ((f.ids(number), f.segments(number)) for f in (truth, ours))
        assert equal_but_for_ids(one, other)


def test_stuff_can_be_left_out_of_detections(sample):
    files = PanopticFiles(sample / "panoptic_examples.json")
    content = to_detection(files, things_only=True)
    things = {c.id for c in files.categories.values() if c.isthing}
    assert {category["id"] for category in content["categories"]} == things
    assert {a["category_id"] for a in content["annotations"]} <= things
    assert len(content["annotations"]) == 43


def detections(**change):
    """An image of 4 x 3 pixels with a polygon and uncompressed run lengths."""
    polygon = {"segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]], "category_id": 3, "id": 1, "image_id": 5}
    runs = {"size": [3, 4], "counts": [9, 3]}
    column = {"segmentation": runs, "category_id": 7, "id": 2, "image_id": 5, **change}
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 3, "width": 4} for n in (5, 6)]
    return {"images": images, "annotations": [polygon, column]}


def test_polygons_and_plain_run_lengths_are_masks_too():
    (number, ids, segments), (empty, nothing, none) = from_detection(
        detections(), CATEGORIES, where="x"
    )
    assert (number, empty) == (5, 6)
    drawn = (ids[..., None] == [segment["id"] for segment in segments]).astype(int)
    assert drawn[..., 0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert drawn[..., 1].tolist() == [[0, 0, 0, 1]] * 3
    assert not nothing.any()
    assert none == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"segmentation": {"size": [3, 4], "counts": [0, 3, 9]}}, "annotations 1 and 2 overlap"),
        ({"segmentation": {"size": [3, 4], "counts": [12]}}, "annotation 2 has an empty mask"),
        ({"segmentation": {"size": [3, 3], "counts": [0, 9]}}, "run lengths of size .3, 3"),
        ({"segmentation": None}, "annotation 2 has no polygon and no run lengths"),
        ({"category_id": 4}, "annotation 2 of image 5 is of category 4, which is not"),
        ({"image_id": 9}, "annotation 2 is of image 9, which is not"),
    ],
)
def test_faults_of_detections_name_image_and_annotation(change, reason):
    with pytest.raises(ValueError, match=f"x: .*{reason}"):
        list(from_detection(detections(**change), CATEGORIES, where="x"))


def test_semantic_labels_are_numbered_in_three_ways():
    assert class_labels(CATEGORIES, "category") == ({3: 3, 7: 7, 300: 300, 8: 8}, 0)
    assert class_labels(CATEGORIES, "contiguous") == ({3: 0, 7: 1, 300: 2, 8: 3}, 255)
    assert class_labels(CATEGORIES, "stuff") == ({3: 0, 7: 1, 300: 0, 8: 2}, 255)
    stuff = to_semantic(IDS, SEGMENTS, *class_labels(CATEGORIES, "stuff"))
    assert stuff.dtype == np.uint8
    assert stuff.tolist() == [[0, 0, 0, 255], [1, 1, 0, 0], [2, 2, 2, 0]]
    assert to_semantic(IDS, SEGMENTS, *class_labels(CATEGORIES, "category")).dtype == np.uint16
    with pytest.raises(ValueError, match="void=7 is the label of a class"):
        class_labels(CATEGORIES, "category", void=7)
    with pytest.raises(ValueError, match="layout=d2 is unknown: choose from category"):
        class_labels(CATEGORIES, "d2")


@pytest.mark.parametrize("layout", ["category", "contiguous", "stuff"])
def test_semantic_pngs_say_the_class_of_each_pixel(sample, tmp_path, layout):
    source = sample / "panoptic_examples.json"
    main(["to_semantic", str(source), str(tmp_path), "--layout", layout])
    files = PanopticFiles(source)
    labels, void = class_labels(files.categories, layout)
    with Image.open(tmp_path / "000000439180.png") as image:
        assert image.mode == "L"
        found = np.array(image)
    ids = files.ids(439180)
    expected = np.full(ids.shape, void)
    for segment in files.segments(439180):
        expected[ids == segment["id"]] = labels[segment["category_id"]]
    assert np.array_equal(found, expected)


def test_a_missing_two_channel_png_and_other_pixels_are_named(tmp_path):
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": to_entries(CATEGORIES)}
    write_json(tmp_path / "images.json", content)
    words = ["from_two_channel", str(tmp_path), str(tmp_path / "out.json")]
    words += ["--images", str(tmp_path / "images.json")]
    with pytest.raises(ValueError, match=r"a\.png cannot be read: No such file"):
        main(words)
    write_ids(tmp_path / "a.png", np.full((2, 2), 99))
    with pytest.raises(ValueError, match=r"a\.png \(image 1\): label 99 is neither a category"):
        main(words)
    assert not (tmp_path / "out.json").exists()
