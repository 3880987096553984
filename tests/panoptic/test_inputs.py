"""Files that nobody should have written: one sentence each, and never a hang or a crash."""

import json
import os
import struct
import zlib

import numpy as np
import pytest

from panoptic import convert, merge_files
from panoptic import evaluate_files as evaluate
from panoptic.evaluate_files import evaluate_files
from panoptic.files.categories import Category, to_entries
from panoptic.files.coco import PanopticFiles, read_json, write_panoptic
from panoptic.files.detection import decode, from_detection
from panoptic.files.pixels import MAX_PIXELS, encode_png, png_size, read_ids

CATEGORIES = {1: Category(1, "cat", True), 9: Category(9, "sky", False)}
IDS = np.array([[3, 3, 0], [3, 7, 7]])
SEGMENTS = [{"id": 3, "category_id": 1}, {"id": 7, "category_id": 9}]
IMAGES = [{"id": 5, "file_name": "a.jpg", "height": 2, "width": 3}]
DEEP = "[" * 100_000


@pytest.fixture
def written(tmp_path):
    write_panoptic(
        tmp_path / "x.json", categories=CATEGORIES, images=IMAGES, results=[(5, IDS, SEGMENTS)]
    )
    return tmp_path / "x.json"


def changed(path, place, value):
    """The same JSON with one value replaced, its place given by keys."""
    content = json.loads(path.read_text())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))


IMAGE, ANNOTATION, CATEGORY = ("images", 0), ("annotations", 0), ("categories", 0)
SEGMENT = (*ANNOTATION, "segments_info", 0)
NO_IDS = ([1], {}, True, 2**63, 10**400, 5.5, None)


@pytest.mark.parametrize(
    ("place", "values", "message"),
    [
        (
            (*IMAGE, "id"),
            NO_IDS,
            r"an image has no `id` that is text or a whole number below 2\^63",
        ),
        ((*ANNOTATION, "image_id"), NO_IDS, "an annotation has no `image_id` that is text or"),
        ((*SEGMENT, "id"), NO_IDS, "image 5: segment id .* is not within 1 to 16777215"),
        ((*SEGMENT, "category_id"), NO_IDS, "image 5: segment 3 is of category .*, which is not"),
        ((*CATEGORY, "id"), NO_IDS, "a category has the id .*: give a whole number"),
        ((*CATEGORY, "isthing"), ([1], {}, "1", 10**400), r"category 1 \(cat\) has no `isthing`"),
        ((*CATEGORY, "color"), ([0, 0, 0.5], [[0], 0, 0]), r"category 1 \(cat\) is not within"),
        ((*SEGMENT, "iscrowd"), ("0", [0], None, 10**400), "`iscrowd` of segment 3 is neither"),
        ((*IMAGE, "height"), ("2", None, 0, -2, [2], True, 10**400), "image 5 has the height"),
        ((*IMAGE, "width"), (2**26,), "image 5 is 67108864 x 2 pixels"),
        (("images",), (None, {}, "x"), "has no list `images`"),
        (("images",), ([None], [[]], [5]), "an image has no `id`"),
        (("images",), ([],), "image 5 is annotated, but not in `images`"),
        (("annotations",), (None, {}), "has no list `annotations`"),
        (("annotations",), ([None], [[]]), "an annotation has no `image_id`"),
        (("categories",), (None, [None]), "`categories` is not a list of objects"),
        ((*ANNOTATION, "segments_info"), (None, [None], {}), "image 5 has no list `segments_info`"),
        ((*ANNOTATION, "file_name"), ("a\0.png", "\ud800.png"), "image 5: file_name .* is no name"),
        ((*ANNOTATION, "file_name"), (None, 5, ["a"]), "image 5 has no `file_name`"),
    ],
)
def test_values_that_cannot_be_are_named_with_file_and_image(written, place, values, message):
    for value in values:
        changed(written, place, value)
        with pytest.raises(ValueError, match=rf"x\.json.*{message}") as error:
            PanopticFiles(written)
        assert len(str(error.value)) < 400
        assert "\n" not in str(error.value)


def test_whole_floats_are_taken_as_the_numbers_that_they_are(written):
    changed(written, (*SEGMENT, "id"), 3.0)
    changed(written, (*IMAGE, "height"), 2.0)
    files = PanopticFiles(written)
    assert repr(files.segments(5)[0]["id"]) == "3"
    assert evaluate_files(written, written).all.pq == 1
    assert repr(files.images[0]["height"]) == "2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DEEP.encode(), "nested too deeply"),
        (b'{"a": ' + DEEP.encode(), "nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "a number that is too long"),
        ('{"a": "ä"}'.encode("latin-1"), "is not UTF-8 text"),
        ('{"a": 1}'.encode("utf-16")[:-1], "is not UTF-16.* text|is not JSON"),
        (b"", "is not JSON"),
    ],
)
def test_a_json_that_cannot_be_read_is_one_sentence(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.json .*({message})"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_json_in_another_unicode_encoding_is_read(written, encoding):
    written.write_bytes(written.read_text().encode(encoding))
    assert len(PanopticFiles(written)) == 1


def test_pipes_and_folders_are_no_files(written, tmp_path):
    png = tmp_path / "x" / "a.png"
    png.unlink()
    os.mkfifo(png)
    with pytest.raises(ValueError, match=r"a\.png cannot be read: it is not a regular file"):
        evaluate_files(written, written)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="cannot be read: it is not a regular file"):
            read_json(path)


def test_a_png_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    size = struct.pack(">II", 60_000, 60_000)
    data = encode_png(np.zeros((2, 2, 3), np.uint8))
    header = b"IHDR" + size + data[24:29]
    bomb = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    (tmp_path / "a.png").write_bytes(bomb)
    for read in (read_ids, png_size):
        with pytest.raises(ValueError, match=rf"a\.png says .* 60000 x 60000 .* = {MAX_PIXELS}"):
            read(tmp_path / "a.png")


FULL = {"size": [2, 3], "counts": [0, 6]}
BAD_MASKS = {
    "fill the image": {"size": [2, 3], "counts": [0, 4]},
    "fill the image, compressed": {"size": [2, 3], "counts": "04"},
    "negative": {"size": [2, 3], "counts": [8, -2]},
    "text of garbage": {"size": [2, 3], "counts": "\u00e9~~~~"},
    "another size": {"size": [3, 2], "counts": [0, 6]},
    "no size": {"counts": [0, 6]},
    "far point": [[0, 0, 1e7, 0, 1, 1]],
    "not finite": [[0, 0, float("nan"), 0, 1, 1]],
    "odd": [[0, 0, 1, 0, 1, 1, 2]],
    "no numbers": [["0", 0, 1, 0, 1, 1]],
    "nothing": None,
    "empty": [],
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_a_mask_that_is_not_sound_never_reaches_pycocotools(name, monkeypatch):
    monkeypatch.setattr("panoptic.files.detection.rle", None)
    with pytest.raises(ValueError, match=r"^x\.json: annotation 3 has "):
        decode(BAD_MASKS[name], 2, 3, where="x.json: annotation 3")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": [5]}, r"annotation 1 is of image \[5\], which is not among the `images`"),
        ({"image_id": True}, "annotation 1 is of image True"),
        ({"category_id": [1]}, r"annotation 1 of image 5 is of category \[1\]"),
        ({"category_id": 1.5}, "annotation 1 of image 5 is of category 1.5"),
        ({"iscrowd": "0"}, "annotation 1 of image 5 has an `iscrowd`"),
        ({"segmentation": BAD_MASKS["negative"]}, "image 5: annotation 1 has a negative run"),
    ],
)
def test_detections_are_checked_before_they_are_painted(change, message):
    annotation = {"id": 1, "image_id": 5, "category_id": 1, "segmentation": FULL}
    content = {"images": IMAGES, "annotations": [annotation | change]}
    with pytest.raises(ValueError, match=f"^x: {message}"):
        list(from_detection(content, CATEGORIES, where="x"))
    for annotations in (None, {}, [None]):
        with pytest.raises(ValueError, match="x has no list `annotations`"):
            list(from_detection(content | {"annotations": annotations}, CATEGORIES, where="x"))


@pytest.fixture
def results(tmp_path):
    """Options and content of the four files that are merged."""
    content = {
        "instances": [{"image_id": 5, "category_id": 1, "score": 0.9, "segmentation": FULL}],
        "semantic": [{"image_id": 5, "category_id": 9, "segmentation": FULL}],
        "images": {"images": IMAGES},
        "categories": to_entries(CATEGORIES),
    }
    for name, value in content.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    words = [f"{name}={tmp_path / name}.json" for name in content]
    return [*words, f"out={tmp_path / 'out.json'}", "workers=0"], tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": [5]}, "has no `image_id`"),
        ({"category_id": {}}, "is of category {}, which is not"),
        ({"score": True}, "has no `score`"),
        ({"score": 10**400}, "has no `score`"),
        ({"score": float("nan")}, "has no `score`"),
        ({"segmentation": BAD_MASKS["fill the image"]}, "has run lengths of 4 pixels"),
        ({"segmentation": BAD_MASKS["far point"]}, "has a polygon with a point"),
    ],
)
def test_results_to_merge_are_checked(results, change, message):
    words, folder = results
    file = folder / "instances.json"
    file.write_text(json.dumps([json.loads(file.read_text())[0] | change]))
    with pytest.raises(ValueError, match=rf"instances\.json: result 0 \(of image .*\) {message}"):
        merge_files.main(words)


@pytest.mark.parametrize("name", ["instances", "semantic", "images", "categories"])
def test_an_input_is_not_overwritten(results, name):
    words, folder = results
    before = (folder / f"{name}.json").read_bytes()
    sentence = f"out would overwrite {name}, .*{name}.json: give another name"
    with pytest.raises(ValueError, match=sentence):
        merge_files.main([*words, f"out={folder / '.' / name}.json"])
    assert (folder / f"{name}.json").read_bytes() == before


@pytest.mark.parametrize(
    ("main", "words", "message"),
    [
        (evaluate.main, "gt=A.json pred=B.json json=B.json", r"json would overwrite pred, B\.json"),
        (evaluate.main, "gt=A.json pred=B.json csv=A.json", r"csv would overwrite gt, A\.json"),
        (
            evaluate.main,
            "disjoint_ap gt=A.json pred=B out=A.json",
            r"out would overwrite gt, A\.json",
        ),
        (convert.main, "to_detection A.json A.json", r"out would overwrite source, A\.json"),
        (convert.main, "to_semantic A.json A", "out would overwrite folder, A"),
        (convert.main, "from_two_channel A A.json --images I.json", "folder would .* source, A"),
        (
            merge_files.main,
            "instances=I semantic=S images=M categories=C out=P search=true gt=G.json folder=G",
            "folder would overwrite gt_folder, G",
        ),
    ],
)
def test_no_command_overwrites_what_it_reads(main, words, message):
    with pytest.raises(ValueError, match=message):
        main(words.split())


def test_results_of_images_that_are_not_listed_are_counted_in_a_line(results, capsys):
    words, folder = results
    entries = json.loads((folder / "instances.json").read_text())
    others = [entries[0] | {"image_id": number} for number in (6, "x")]
    (folder / "instances.json").write_text(json.dumps([*others, *entries]))
    merge_files.main(words)
    said = capsys.readouterr().err
    assert f"2 results of {folder}/instances.json are left out: {folder}/images.json" in said
    assert "semantic.json are" not in said
    assert [s["category_id"] for s in PanopticFiles(folder / "out.json").segments(5)] == [1]


def test_a_converter_refuses_what_is_no_list_of_images(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"images": None, "categories": []}))
    words = ["from_detection", str(tmp_path / "x.json"), str(tmp_path / "out.json")]
    with pytest.raises(ValueError, match=r"x\.json has no list `images`"):
        convert.main(words)
