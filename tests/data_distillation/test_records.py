"""Records of what a teacher finds: shards, resuming, and images that cannot be read."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from common.images import UnreadableImage
from common.run import lock
from data_distillation.distill import Merge, Transforms, distill
from data_distillation.inputs.photos import find_photos
from data_distillation.labels.records import annotate, read_records, to_list
from data_distillation.labels.shards import claim, shard_file
from data_distillation.weights.teacher import NO_CLASS
from tests.data_distillation.labelling import (
    MERGE,
    TRANSFORMS,
    teacher,
    write_images,
    write_json,
)


@pytest.fixture
def images(tmp_path) -> Path:
    write_images(tmp_path / "images")
    return tmp_path / "images"


def label(images: Path, folder: Path, kind: str = "boxes", **options) -> Path:
    photos = find_photos(images, bad_images=options.pop("bad_images", "raise"))
    transforms = options.pop("transforms", TRANSFORMS)
    merge = options.pop("merge", MERGE)
    annotate(teacher(kind), photos, transforms, merge, folder, **options)
    return folder


@pytest.mark.parametrize("kind", ["boxes", "masks", "keypoints"])
def test_a_record_holds_exactly_what_the_teacher_found(images, tmp_path, kind):
    records = read_records(label(images, tmp_path / "records", kind))
    assert [image.file for image in records.images] == [f"image{k}.png" for k in range(5)]
    assert [(image.width, image.height) for image in records.images] == [(48, 48)] * 4 + [(48, 32)]
    photos, own = find_photos(images), teacher(kind)
    seen = 0
    for index, image in enumerate(records.images):
        (found,) = distill(
            own.model, [photos.read(index)], TRANSFORMS, MERGE, mirrored=own.mirrored
        )
        seen += len(found["scores"])
        assert image.boxes.dtype == image.scores.dtype == np.float32
        assert np.array_equal(image.boxes, found["boxes"].numpy())
        assert np.array_equal(image.scores, found["scores"].numpy())
        assert image.categories.tolist() == [[0, 7, 3][k] for k in found["labels"].tolist()]
        if kind == "keypoints":
            assert np.array_equal(image.keypoints, found["keypoints"].numpy())
        if kind == "masks":
            decoded = [rle.decode(mask) for mask in image.masks]
            assert np.array_equal(np.array(decoded, bool), found["masks"].numpy())
    assert seen >= 10  # else nothing was compared


def test_float32_values_come_back_exactly_in_few_digits():
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 0x7F000000, 20_000, np.uint32)
    values = np.concatenate([bits.view(np.float32), generator.random(20_000, np.float32) * 1000])
    assert to_list(torch.tensor([0.1, 1e-5, 123.25])) == [0.1, 1e-05, 123.25]
    lines = json.loads(json.dumps(to_list(torch.from_numpy(values))))
    assert np.array_equal(np.array(lines, np.float32), values)


def test_two_shards_are_one_run(images, tmp_path):
    whole = read_records(label(images, tmp_path / "one"))
    for shard in ((1, 2), (0, 2)):
        label(images, tmp_path / "two", shard=shard)
    both = read_records(tmp_path / "two")
    lines = shard_file(tmp_path / "one", (0, 1)).read_bytes().splitlines()[1:]
    shards = [shard_file(tmp_path / "two", (k, 2)).read_bytes().splitlines()[1:] for k in (0, 1)]
    assert [shards[k % 2][k // 2] for k in range(5)] == lines
    assert [image.file for image in both.images] == [image.file for image in whole.images]


def test_a_shard_that_was_cut_anywhere_goes_on_to_the_same_bytes(images, tmp_path):
    file = shard_file(label(images, tmp_path / "records"), (0, 1))
    content = file.read_bytes()
    ends = [place for place, byte in enumerate(content) if byte == 10]
    for length in (0, 1, 40, ends[0], ends[0] + 1, ends[2], ends[2] + 1, ends[3] + 30, ends[-1]):
        file.write_bytes(content[:length])
        label(images, tmp_path / "records")
        assert file.read_bytes() == content, length


def test_what_is_done_is_not_done_again(images, tmp_path):
    file = shard_file(label(images, tmp_path / "records"), (0, 1))
    before = file.read_bytes()
    (images / "image0.png").write_bytes(b"no image any more")
    label(images, tmp_path / "records")
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"transforms": Transforms(scales=[40], max_size=96)}, r"transforms\.scales is \[40, 56\]"),
        ({"merge": Merge(score=0.2, limit=6, vote=0.5)}, r"merge\.vote is 0\.9 there and 0\.5 now"),
        ({"amp": True}, "amp is False"),
        ({"shard": (0, 2)}, "shards is 1 there and 2 now"),
        ({"kind": "keypoints"}, "category_ids|kind|mirrored"),
    ],
)
def test_records_of_other_settings_stop_with_both_values(images, tmp_path, options, named):
    label(images, tmp_path / "records")
    with pytest.raises(ValueError, match=f"other settings, .*{named}.*: give another out="):
        label(images, tmp_path / "records", **options)


def test_another_list_or_teacher_stops_but_one_that_was_moved_does_not(images, tmp_path):
    label(images, tmp_path / "records")
    images.rename(tmp_path / "elsewhere")
    label(tmp_path / "elsewhere", tmp_path / "records")
    moved = teacher(where="there")
    annotate(moved, find_photos(tmp_path / "elsewhere"), TRANSFORMS, MERGE, tmp_path / "records")
    other = teacher(digest="e")
    with pytest.raises(ValueError, match="digest is d there and e now"):
        annotate(
            other, find_photos(tmp_path / "elsewhere"), TRANSFORMS, MERGE, tmp_path / "records"
        )
    (tmp_path / "elsewhere" / "image3.png").rename(tmp_path / "elsewhere" / "image7.png")
    with pytest.raises(ValueError, match=r"list is .* there"):
        label(tmp_path / "elsewhere", tmp_path / "records")


def test_missing_images_are_named_by_shard_and_number(images, tmp_path):
    folder = tmp_path / "records"
    with pytest.raises(ValueError, match="has no records"):
        read_records(folder)
    label(images, folder, shard=(1, 3))
    with pytest.raises(ValueError, match=r"2 of shard=0/3, 1 of shard=2/3\. Run"):
        read_records(folder)
    label(images, folder, shard=(0, 3))
    label(images, folder, shard=(2, 3))
    file = shard_file(folder, (1, 3))
    file.write_bytes(file.read_bytes()[:-3])  # torn
    with pytest.raises(ValueError, match="lacks images: 1 of shard=1/3"):
        read_records(folder)


def test_damage_is_told_by_file(images, tmp_path):
    file = shard_file(label(images, tmp_path / "records"), (0, 1))
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], lines[2][:30] + b"\n", *lines[3:]]))
    with pytest.raises(ValueError, match=r"shard-0-of-1\.jsonl is not JSON"):
        read_records(tmp_path / "records")
    file.write_bytes(b"".join([*lines, lines[-1]]))
    with pytest.raises(ValueError, match=r"shard-0-of-1\.jsonl is damaged: remove it"):
        label(images, tmp_path / "records")
    file.write_bytes(b"".join([*lines[:2], lines[4]]))
    with pytest.raises(ValueError, match=r"shard-0-of-1\.jsonl is damaged: remove it"):
        label(images, tmp_path / "records")


def test_a_shard_has_one_process_at_a_time(tmp_path):
    with claim(tmp_path, (0, 2)):
        child = os.fork()
        if not child:
            lock._held.clear()  # what the parent has is not the child's
            try:
                with claim(tmp_path, (1, 2)):
                    pass
                with claim(tmp_path, (0, 2)):
                    os._exit(1)
            except ValueError as error:
                os._exit(7 if "another process is at it" in str(error) else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with claim(tmp_path, (0, 2)):
        pass


def test_classes_that_the_labelled_set_lacks_leave_no_record(images, tmp_path):
    everything = read_records(label(images, tmp_path / "all"))
    some = teacher(category_ids=[NO_CLASS, 3])
    annotate(some, find_photos(images), TRANSFORMS, MERGE, tmp_path / "some")
    rest = read_records(tmp_path / "some")
    assert any(7 in image.categories for image in everything.images)
    for image, less in zip(everything.images, rest.images, strict=True):
        kept = image.categories == 3
        assert less.categories.tolist() == [3] * kept.sum()
        assert np.array_equal(less.boxes, image.boxes[kept])


def test_an_unreadable_image_stops_or_is_left_out_and_counted(images, tmp_path):
    whole = (images / "image2.png").read_bytes()
    (images / "image2.png").write_bytes(whole[:80])  # the header is sound
    with pytest.raises(UnreadableImage, match=r"image2\.png cannot be read .*bad_images=skip"):
        label(images, tmp_path / "records")
    records = read_records(label(images, tmp_path / "records", bad_images="skip"))
    assert [image.file for image in records.images] == [f"image{k}.png" for k in (0, 1, 3, 4)]
    assert len(records.skipped) == 1
    assert "image2.png" in records.skipped[0]


# The list of images.


def test_a_folder_is_read_at_any_depth_and_sorted(tmp_path):
    for name in ("b/2.JPG", "b/10.jpeg", "a/deep/1.png", "z.webp", "notes.txt", ".hidden.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    photos = find_photos(tmp_path)
    assert photos.files == ["z.webp", "a/deep/1.png", "b/10.jpeg", "b/2.JPG"]
    assert photos.ids == [1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"z\.webp cannot be read .* bad_images=skip"):
        photos.check(range(4))
    photos.bad_images = "skip"
    assert photos.check(range(4)) == []
    assert sorted(photos.skipped) == [0, 1, 2, 3]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none has no images"):
        find_photos(tmp_path / "none")


def info_file(tmp_path: Path, **changes) -> Path:
    """As COCO's image_info_unlabeled2017.json, without categories and annotations."""
    write_images(tmp_path / "unlabeled2017", 3)
    entries = [
        {"id": 30 - k, "file_name": f"image{k}.png", "width": 48, "height": 32 if k == 2 else 48}
        for k in range(3)
    ]
    entries[1] |= changes
    (tmp_path / "annotations").mkdir(exist_ok=True)
    content = {"info": {}, "licenses": [], "images": entries}
    return write_json(tmp_path / "annotations" / "image_info_unlabeled2017.json", content)


def test_a_list_without_categories_is_accepted_and_its_folder_found(tmp_path):
    photos = find_photos(info_file(tmp_path))
    assert photos.root == tmp_path / "unlabeled2017"
    assert photos.ids == [30, 29, 28]
    assert photos.check(range(3)) == [(48, 48), (48, 48), (32, 48)]
    image = photos.read(2)
    assert (image.shape, image.dtype) == ((3, 32, 48), torch.float32)
    assert 0.9 < image.max() <= 1


def test_a_strip_without_a_pixel_in_a_resized_view_is_refused_or_skipped(tmp_path):
    for name, size in (("a.png", (64, 48)), ("b.png", (2000, 1)), ("c.png", (4, 500))):
        Image.new("RGB", size).save(tmp_path / name)
    photos = find_photos(tmp_path)
    with pytest.raises(UnreadableImage, match=r"b\.png is 2000 x 1 pixels, too narrow.*bad_images"):
        photos.check(range(3))
    photos.bad_images = "skip"
    assert photos.check(range(3)) == [(48, 64)]
    assert sorted(photos.skipped) == [1, 2]
    assert photos.read(1) is None


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"file_name": "absent.png"},
            r"absent\.png is listed in .*json, but does not exist.*root=",
        ),
        ({"width": 50}, r"image1\.png is 48 x 48 pixels, but listed as 50 x 48.*bad_images=skip"),
        ({"file_name": "../image1.png"}, "which must be a path of its own below the image folder"),
        ({"file_name": "/image1.png"}, "which must be a path of its own below the image folder"),
        ({"file_name": "image0.png"}, "which must be a path of its own below the image folder"),
        ({"id": 30}, "image id of .* appears twice"),
        ({"height": None}, "`height`"),
    ],
)
def test_a_bad_entry_of_a_list_is_named_before_the_first_image(tmp_path, changes, fault):
    with pytest.raises(ValueError, match=fault):
        find_photos(info_file(tmp_path, **changes)).check(range(3))


def test_a_list_elsewhere_needs_the_folder_of_its_images(tmp_path):
    file = info_file(tmp_path).rename(tmp_path / "list.json")
    with pytest.raises(ValueError, match=r"image0\.png, the first image of .*root="):
        find_photos(file)
    assert find_photos(file, tmp_path / "unlabeled2017").check([0]) == [(48, 48)]
    with pytest.raises(ValueError, match=r"root=.* is no folder"):
        find_photos(file, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no list `images`"):
        find_photos(write_json(tmp_path / "bare.json", {"annotations": []}))


def test_a_photo_is_upright_unless_it_is_listed_as_it_is_stored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    photos = find_photos(tmp_path)
    assert photos.check([0]) == [(40, 20)]
    assert photos.read(0).shape == (3, 40, 20)
    entry = {"id": 1, "file_name": "turned.jpg", "width": 40, "height": 20}
    listed = find_photos(write_json(tmp_path / "list.json", {"images": [entry]}))
    assert listed.check([0]) == [(20, 40)]
    assert listed.read(0).shape == (3, 20, 40)


def test_a_damaged_header_is_found_before_the_first_image(tmp_path):
    write_images(tmp_path, 2)
    huge = struct.pack(">II", 2**30, 2**30)
    content = (tmp_path / "image1.png").read_bytes()
    (tmp_path / "image1.png").write_bytes(content[:16] + huge + content[24:])
    with pytest.raises(UnreadableImage, match=r"image1\.png cannot be read"):
        find_photos(tmp_path).check(range(2))
