"""COCO panoptic files: reading, writing, checking, and what is said about bad ones."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from panoptic.files.categories import Category, read_categories, require_equal, to_entries
from panoptic.files.coco import (
    PanopticFiles,
    read_ids,
    read_json,
    write_ids,
    write_panoptic,
)
from panoptic.files.entries import complete
from panoptic.files.pixels import encode_png, png_size, read_labels, write_bytes

CATEGORIES = {
    1: Category(1, "cat", True, (200, 10, 10), "animal"),
    9: Category(9, "sky", False, (10, 10, 200)),
}
IMAGES = [
    {"id": 5, "file_name": "five.jpg", "height": 4, "width": 6},
    {"id": "b", "file_name": "sub/b.jpg", "height": 3, "width": 3},
]


def maps():
    first = np.zeros((4, 6), np.int32)
    first[1:3, 2:5], first[3] = 16_777_215, 300
    second = np.full((3, 3), 7, np.int32)
    return [
        (5, first, [{"id": 300, "category_id": 9}, {"id": 16_777_215, "category_id": 1}]),
        ("b", second, [{"id": 7, "category_id": 1, "iscrowd": 1}]),
    ]


@pytest.fixture
def written(tmp_path):
    write_panoptic(tmp_path / "x.json", categories=CATEGORIES, images=IMAGES, results=maps())
    return tmp_path / "x.json"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_is_written_is_read_back(written):
    files = PanopticFiles(written)
    assert files.categories == CATEGORIES
    assert files.images == IMAGES
    assert len(files) == 2
    assert "b" in files
    assert 6 not in files
    for number, ids, _ in maps():
        assert files.ids(number).dtype == np.int32
        assert np.array_equal(files.ids(number), ids)
    assert files.path("b") == written.with_suffix("") / "sub" / "b.png"
    assert files.segments(5) == [
        {"id": 300, "category_id": 9, "iscrowd": 0, "area": 6, "bbox": [0, 3, 6, 1]},
        {"id": 16_777_215, "category_id": 1, "iscrowd": 0, "area": 6, "bbox": [2, 1, 3, 2]},
    ]
    assert files.segments("b")[0]["iscrowd"] == 1
    assert [image["id"] for image in files.only(["b"]).images] == ["b"]


def test_pillow_sees_red_green_and_blue_of_the_ids(tmp_path):
    ids = np.random.default_rng(0).integers(0, 1 << 24, (17, 31))
    write_ids(tmp_path / "a.png", ids)
    with Image.open(tmp_path / "a.png") as image:
        rgb = np.array(image, dtype=np.int64)
    assert np.array_equal(rgb @ [1, 256, 65536], ids)
    assert np.array_equal(read_ids(tmp_path / "a.png"), ids)
    assert png_size(tmp_path / "a.png") == (17, 31)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_grey_labels_survive_the_way_to_a_png_and_back(tmp_path, kind):
    labels = np.random.default_rng(0).integers(0, np.iinfo(kind).max + 1, (9, 13)).astype(kind)
    write_bytes(tmp_path / "a.png", encode_png(labels))
    assert np.array_equal(read_labels(tmp_path / "a.png"), labels)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.array(image), labels)


def test_areas_and_boxes_of_real_files_are_those_that_are_counted(shared_data):
    files = PanopticFiles(shared_data / "panopticapi_sample" / "panoptic_examples.json")
    assert len(files) == 2
    for image in files.images:
        number = image["id"]
        segments = files.segments(number)
        ids = files.ids(number)
        assert complete(ids, segments, where="", categories=files.categories) == segments


def png(pixels, mode=None):
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette(3 * [*range(256)])
    image.save(stream, "PNG")
    return stream.getvalue()


RGB = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
BAD_PNGS = {
    "grey pixels of 16 bits": png(RGB[..., 0].astype(np.uint16)),
    "RGB pixels of 16 bits": encode_png(RGB.astype(np.uint16)),
    "grey pixels of 8 bits": png(RGB[..., 0]),
    "RGBA pixels of 8 bits": png(np.concatenate([RGB, RGB[..., :1]], axis=-1)),
    "a palette pixels of 8 bits": png(RGB[..., 0] // 8, mode="P"),
    "damaged or cut off": png(RGB)[:-200],
    "is cut off": png(RGB)[:-12],
    "is not a PNG": b"GIF89a" + bytes(100),
    "not a PNG, or was cut off": png(RGB)[:20],
}


@pytest.mark.parametrize("reason", BAD_PNGS)
def test_another_image_than_an_8_bit_rgb_png_is_refused(tmp_path, reason):
    path = tmp_path / "bad.png"
    path.write_bytes(BAD_PNGS[reason])
    with pytest.raises(ValueError, match=f"bad.png .*{reason}"):
        read_ids(path)


def test_each_flipped_bit_is_noticed(tmp_path):
    ids = np.kron(np.arange(64).reshape(8, 8), np.full((8, 8), 70_001))
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
    for data in (png(rgb), encode_png(rgb)):
        for place in range(len(data)):
            damaged = bytearray(data)
            damaged[place] ^= 16
            (tmp_path / "a.png").write_bytes(damaged)
            with pytest.raises(ValueError, match=r"a\.png"):
                read_ids(tmp_path / "a.png")


def test_a_missing_png_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.png cannot be read: No such file"):
        read_ids(tmp_path / "none.png")


def test_labels_of_several_channels_are_asked_for(tmp_path):
    (tmp_path / "rgb.png").write_bytes(png(RGB))
    (tmp_path / "grey.png").write_bytes(png(RGB[..., 0]))
    assert np.array_equal(read_labels(tmp_path / "rgb.png", channels=2), RGB[..., :2])
    with pytest.raises(ValueError, match=r"rgb\.png holds RGB .*: expected one channel"):
        read_labels(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match=r"grey\.png holds grey .*: expected two or more"):
        read_labels(tmp_path / "grey.png", channels=2)
    Image.fromarray(RGB[..., 0] > 99).save(tmp_path / "bits.png")
    with pytest.raises(ValueError, match=r"bits\.png holds grey pixels of 1 bits: expected one"):
        read_labels(tmp_path / "bits.png")


def segment(content, **change):
    content["annotations"][0]["segments_info"][0].update(change)


def again(entries):
    entries.append(entries[0])


BAD_JSONS = {
    r"no list `annotations`": lambda c: c.pop("annotations"),
    r"no list `categories`": lambda c: c.pop("categories"),
    r"`categories` is not a list": lambda c: c.update(categories={}),
    r"category id 1 appears twice": lambda c: again(c["categories"]),
    r"category 1 \(cat\) has no `isthing`": lambda c: c["categories"][0].pop("isthing"),
    r"color of category 1 \(cat\) is not within": lambda c: c["categories"][0].update(
        color=[0, 0, 256]
    ),
    r"image 5 has two annotations": lambda c: again(c["annotations"]),
    r"an annotation has no `image_id`": lambda c: c["annotations"][0].pop("image_id"),
    r"image 5 has no `file_name`": lambda c: c["annotations"][0].pop("file_name"),
    r"image 5: file_name '\.\./a\.png' leads out": lambda c: c["annotations"][0].update(
        file_name="../a.png"
    ),
    r"image 5 has no list `segments_info`": lambda c: c["annotations"][0].pop("segments_info"),
    r"image id 5 appears twice": lambda c: again(c["images"]),
    r"image 5 is annotated, but not in": lambda c: c["images"].pop(0),
    r"image 5: segment id 16777215 appears twice": lambda c: segment(c, id=16_777_215),
    r"image 5: a segment has the id 0": lambda c: segment(c, id=0),
    r"image 5: segment id 16777216 is not within": lambda c: segment(c, id=1 << 24),
    r"image 5: segment id '3' is not within": lambda c: segment(c, id="3"),
    r"image 5: segment 300 is of category 77": lambda c: segment(c, category_id=77),
    r"image 5: `iscrowd` of segment 300 is neither": lambda c: segment(c, iscrowd=2),
}


@pytest.mark.parametrize("reason", BAD_JSONS)
def test_a_json_with_a_fault_is_refused_in_one_sentence(written, reason):
    edit(written, BAD_JSONS[reason])
    with pytest.raises(ValueError, match=rf"x\.json.*{reason}") as error:
        PanopticFiles(written)
    assert "\n" not in str(error.value)


def test_malformed_json_is_located(tmp_path):
    (tmp_path / "x.json").write_text('{"images": [1,\n 2')
    with pytest.raises(ValueError, match=r"x\.json is not JSON, or was cut off: .* line 2"):
        read_json(tmp_path / "x.json")


def test_a_missing_folder_is_named(written):
    with pytest.raises(ValueError, match=r"nowhere, the folder of .*x\.json's PNGs, does not"):
        PanopticFiles(written, written.parent / "nowhere")


def test_a_png_of_another_size_than_the_json_says_is_named(written):
    write_ids(written.parent / "x" / "five.png", np.zeros((6, 4), int))
    with pytest.raises(ValueError, match=r"five\.png is 4 x 6 pixels, but image 5 is 6 x 4"):
        PanopticFiles(written).ids(5)


def test_an_image_without_annotation_is_named(written):
    with pytest.raises(ValueError, match="has no annotation of image 77"):
        PanopticFiles(written).segments(77)


def test_predictions_may_have_but_annotations(written):
    edit(written, lambda c: (c.pop("images"), c.pop("categories")))
    files = PanopticFiles(written, categories=CATEGORIES)
    assert [image["id"] for image in files.images] == [5, "b"]
    assert files.ids("b").shape == (3, 3)


MAP = np.array([[1, 1, 2], [0, 0, 2]])
LISTED = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 9, "area": 2}]


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        (LISTED[:1], r"id 2 is in the map \(2 pixels\), but not among"),
        ([*LISTED, {"id": 3, "category_id": 1}], "segment 3 is listed, but has no pixel"),
        ([LISTED[0], {**LISTED[1], "area": 3}], "segment 2 has 2 pixels, but its `area` is 3"),
        ([*LISTED, LISTED[0]], "segment id 1 appears twice"),
        ([*LISTED, {"id": 0, "category_id": 1}], "a segment has the id 0"),
        ([LISTED[0], {"id": 2, "category_id": 8}], "segment 2 is of category 8"),
    ],
)
def test_map_and_segments_have_to_agree(segments, reason):
    with pytest.raises(ValueError, match=f"^here: {reason}"):
        complete(MAP, segments, where="here", categories=CATEGORIES)


def test_what_can_be_put_right_is_put_right_unless_strict():
    loose = [{"id": 3, "category_id": 1}, LISTED[0], {**LISTED[1], "area": 9, "bbox": []}]
    assert complete(MAP, loose, where="", strict=False) == [
        {"id": 1, "category_id": 1, "iscrowd": 0, "area": 2, "bbox": [0, 0, 2, 1]},
        {"id": 2, "category_id": 9, "iscrowd": 0, "area": 2, "bbox": [2, 0, 1, 2]},
    ]
    assert loose[2]["area"] == 9


def test_numbers_of_numpy_become_json(tmp_path):
    segments = [{"id": np.int64(7), "category_id": np.int64(1), "iscrowd": np.bool_(True)}]
    segments[0]["score"] = np.float32(0.5)
    results = [(np.int64(5), np.full((4, 6), 7), segments)]
    write_panoptic(tmp_path / "x.json", categories=CATEGORIES, images=IMAGES, results=results)
    segment = PanopticFiles(tmp_path / "x.json").segments(5)[0]
    assert (segment["iscrowd"], segment["score"]) == (1, 0.5)


def test_a_failure_while_writing_leaves_the_old_json_and_no_half_file(written):
    before = written.read_bytes()
    results = [*maps()[:1], ("b", np.full((3, 3), 8), maps()[1][2])]
    with pytest.raises(ValueError, match="image 'b': segment 7 is listed, but has no pixel"):
        write_panoptic(written, categories=CATEGORIES, images=IMAGES, results=results)
    assert written.read_bytes() == before
    names = [path.name for path in written.parent.rglob("*") if path.is_file()]
    assert sorted(names) == ["b.png", "five.png", "x.json"]


def test_results_of_unknown_images_and_of_equal_names_are_refused(tmp_path):
    options = {"categories": CATEGORIES, "images": IMAGES}
    with pytest.raises(ValueError, match="image 6 has a result, but is not among the images"):
        write_panoptic(tmp_path / "x.json", **options, results=[(6, *maps()[0][1:])])
    names = {5: "same.png", "b": "same.png"}
    with pytest.raises(ValueError, match=r"image 'b' and 5 would both be written as same\.png"):
        write_panoptic(tmp_path / "x.json", **options, results=maps(), names=names)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/a\.png"):
        write_ids(tmp_path / "file" / "a.png", np.zeros((2, 2), int))


def test_categories_survive_the_way_to_json_and_back_in_their_order():
    entries = to_entries(CATEGORIES)
    assert read_categories(entries[::-1], "x") == CATEGORIES
    assert list(read_categories(entries[::-1], "x")) == [9, 1]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({1: CATEGORIES[1]}, "9 is 'sky' .stuff. in the one and absent in the other"),
        ({**CATEGORIES, 1: Category(1, "dog", True)}, "1 is 'cat' .thing. in the one and 'dog'"),
        ({**CATEGORIES, 9: Category(9, "sky", True)}, "9 is 'sky' .stuff. .* and 'sky' .thing."),
    ],
)
def test_the_first_difference_of_categories_is_named(other, reason):
    with pytest.raises(ValueError, match=f"a and b differ in their categories: {reason}"):
        require_equal(CATEGORIES, other, files=("a", "b"))
    recoloured = {n: Category(n, c.name, c.isthing) for n, c in reversed(CATEGORIES.items())}
    require_equal(CATEGORIES, recoloured, files=("a", "b"))
