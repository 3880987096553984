"""`python annotate.py`: images in, a file of labels out; shards, kills, thresholds, bad input."""

import json
import re
import shlex
import shutil
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import MISSING
from PIL import Image
from pycocotools.coco import COCO
from torchvision.models import get_model

from common import errors
from common.coco.fields import Categories
from common.run import checkpoint
from data_distillation import annotate
from data_distillation.model import Network, build_detector
from tests.commands import REPOSITORY
from tests.data_distillation.labelling import write_images, write_json
from tests.data_distillation.small import of_files
from tests.data_distillation.small import run as train_run

JOINTS = ["nose", "left hand", "right hand"]
NETWORK: dict[str, Any] = {
    "backbone": "small",
    "channels": 8,
    "hidden": 16,
    "pool": 4,
    "keypoint_convs": 1,
    "keypoint_channels": 8,
    "map_size": 16,
    "anchors": [12, 24],
    "short_sides": [48],
    "long_side": 96,
    "proposals": [30, 30],
    "detections": 6,
    "cls_std": 1.0,  # sure of things, though untrained
    "box_std": 0.1,
}
WORDS = {"transforms.scales": "[40,56]", "sigmas": "[0.1,0.1,0.1]"}


def write_run(folder: Path, joints: list[str], unnamed: int = 0, **data: Any) -> None:
    """What train.py leaves, with random weights."""
    folder.mkdir()
    torch.manual_seed(0)
    model = build_detector("keypoints", 2 + unnamed, len(joints), Network(**NETWORK))
    options = {"task": "keypoints"} | {f"network.{key}": value for key, value in NETWORK.items()}
    options |= {f"data.{key}": value for key, value in data.items()}
    names = ["solid", "shade", *["N/A"] * unnamed]
    categories = Categories([7, 3, *range(50, 50 + unnamed)], names)
    parts: dict[str, Any] = {"model": model, "categories": categories, "joints": joints}
    checkpoint.save(folder, 4, **parts, options=options)


def write_labelled(path: Path, images: list[dict[str, Any]], joints: list[str], v: int = 2) -> Path:
    """Two instances in each image but the last, with repeated float ids as in minival."""
    annotations = [
        {
            "id": 908400416500.0,
            "image_id": entry["id"],
            "category_id": category,
            "bbox": [3 * category, 5, 20, 24],
            "area": 480,
            "iscrowd": 0,
            "keypoints": [20, 10, v, 22, 20, v, 0, 0, 0],
            "num_keypoints": 2 * (v > 0),
        }
        for entry in images[:-1]
        for category in (3, 3, 7)
    ]
    for number, annotation in enumerate(annotations):
        annotation["bbox"][0] += number % 3  # no copies
    categories = [
        {"id": k, "name": n, "keypoints": joints} for k, n in ((7, "solid"), (3, "shade"))
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return write_json(path, content)


def entries(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": 50 + k,
            "file_name": f"image{k}.png",
            "width": 48,
            "height": 32 + 16 * (k < count - 1),
        }
        for k in range(count)
    ]


def write_world(folder: Path, joints: list[str]) -> None:
    """A run, images, the labelled file of others (3 * 3 instances in 4), the truth, a list."""
    write_run(folder / "run", joints)
    write_images(folder / "images", 5)
    write_labelled(folder / "train.json", entries(4), joints)
    write_labelled(folder / "truth.json", entries(5), joints)
    info = {"images": [entry | {"id": 5 - k} for k, entry in enumerate(entries(5))]}
    write_json(folder / "image_info_unlabeled2017.json", info)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, JOINTS)
    return folder


@pytest.fixture
def type_words(monkeypatch, capsys):
    """`python annotate.py words...`; what it prints, line by line."""

    def answer(*words: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["annotate.py", *words])
        annotate.main()
        return capsys.readouterr().out.splitlines()

    return answer


def usual(world: Path, out: Path, /, **changes: str) -> list[str]:
    words = {
        "images": str(world / "images"),
        "teacher": str(world / "run"),
        "labelled": str(world / "train.json"),
        "out": str(out),
    }
    words = WORDS | words | changes
    return [f"{name}={value}" for name, value in words.items()]


@pytest.fixture(scope="module")
def first(world) -> tuple[Path, list[str]]:
    """The labels of one plain command, which no test may change, and what it printed."""
    out = world / "first" / "auto.json"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr(sys, "argv", ["annotate.py", *usual(world, out)])
        patch.setattr(
            annotate, "print", lambda *text: printed.extend(f"{text[0]}".split("\n")), False
        )
        annotate.main()
    return out, printed


def test_a_folder_of_images_becomes_a_file_that_pycocotools_reads(world, first):
    out, printed = first
    content = json.loads(out.read_text())
    coco = COCO(str(out))
    # 9 instances in 4 images: k = round(2.25 * 5) = 11; 2 joints each.
    assert len(coco.anns) == 11
    assert content["info"]["k"] == {"all": 11}
    assert content["info"]["mu"] == 2.25
    assert content["categories"] == json.loads((world / "train.json").read_text())["categories"]
    assert content["info"]["folder"] == str(world / "images")
    assert sum(a["num_keypoints"] for a in content["annotations"]) == 22
    with Image.open(out.with_suffix(".png")) as drawn:
        assert min(drawn.size) > 0
    assert printed[:2] == [
        "labelled: 9 instances with joints in 4 images, denominator 4 (all images), mu = 2.2500",
        f"labels: 11 of {len(found_in(out)['scores'])} detections in 5 images, 2.2000 an image",
    ]
    threshold = content["info"]["thresholds"]["all"]
    assert printed[2] == f"  all classes: k = 11, threshold {threshold:.4g}, kept 11"
    assert printed[3].startswith("joints: 2.000 an instance, labelled 2.000 (k = 22, threshold ")
    assert printed[-2:] == [str(out), str(out.with_suffix(".png"))]


def found_in(out: Path) -> dict[str, list]:
    """All scores of the records beside a file."""
    lines = [
        json.loads(line)
        for file in sorted(out.with_suffix("").glob("records/shard-*.jsonl"))
        for line in file.read_text().splitlines()[1:]
    ]
    return {"scores": [score for line in lines for score in line.get("scores", ())]}


def test_more_shards_than_images_give_the_same_bytes(world, tmp_path, type_words):
    listed = str(write_json(tmp_path / "one.json", {"images": entries(5)[:1]}))
    one, two = tmp_path / "one" / "auto.json", tmp_path / "two" / "auto.json"
    words = {"images": listed, "root": str(world / "images"), "examples": "0"}
    type_words(*usual(world, one, **words))
    for shard in ("1/2", "0/2"):
        assert not two.exists()
        type_words(*usual(world, two, **words, shard=shard))
    assert two.read_bytes() == one.read_bytes()


def test_half_precision_and_the_merge_reach_the_teacher(world, first, tmp_path, type_words):
    out = tmp_path / "auto.json"
    type_words(*usual(world, out), "amp=true", "merge.heatmaps=logit")
    content, plain = (json.loads(file.read_text()) for file in (out, first[0]))
    assert (content["info"]["amp"], plain["info"]["amp"]) == (True, False)
    assert content["info"]["merge"]["heatmaps"] == "logit"
    scores = [{a["score"] for a in each["annotations"]} for each in (content, plain)]
    assert not scores[0] & scores[1]  # of bfloat16 layers


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("ssdlite320_mobilenet_v3_large", "after NMS"),
        pytest.param("fasterrcnn_mobilenet_v3_large_320_fpn", "before NMS", marks=pytest.mark.slow),
    ],
)
def test_weights_of_a_detector_of_torchvision_label_a_folder(
    name, candidates, tmp_path, type_words
):
    torch.manual_seed(0)
    model = get_model(name, weights=None, weights_backbone=None, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    write_images(tmp_path / "images", 2)
    write_labelled(tmp_path / "train.json", entries(4), JOINTS)
    out = tmp_path / "auto.json"
    words = {"teacher": str(tmp_path / "weights.pth"), "architecture": name}
    words |= {"transforms.scales": "[240]", "transforms.flip": "false"}
    type_words(*usual(tmp_path, out, **words))
    content = json.loads(out.read_text())
    assert content["info"]["candidates"] == candidates
    assert content["info"]["kind"] == "boxes"
    assert content["info"]["k"] == {"all": 5}  # 9 instances in 4 images: 2.25 * 2, halves go up
    assert len(content["annotations"]) >= 5
    assert {a["category_id"] for a in content["annotations"]} <= {3, 7}


def test_cells_are_labelled_by_a_model_of_half_the_labels_and_scored_by_the_hidden_half(
    shared_data, tmp_path, type_words
):
    """BCCD: a teacher, its labels with their AP, and a student of both, each of two steps."""
    root, out = tmp_path / "bccd", tmp_path / "auto.json"
    (root / "annotations").mkdir(parents=True)
    (root / "images").symlink_to(shared_data / "bccd" / "images")
    content = json.loads((shared_data / "bccd/annotations/instances_train.json").read_text())
    for name, images in (("train", content["images"][:3]), ("val", content["images"][3:6])):
        ids = {entry["id"] for entry in images}
        own = [a for a in content["annotations"] if a["image_id"] in ids]
        part = content | {"images": images, "annotations": own}
        write_json(root / "annotations" / f"{name}.json", part)
    listed = write_json(tmp_path / "rest.json", {"images": content["images"][3:6]})
    cfg = replace(of_files(root, tmp_path / "teacher"), task="boxes")
    train_run(cfg)
    words = [f"images={listed}", f"root={root / 'images'}", f"teacher={cfg.output_dir}"]
    words += [f"labelled={root}/annotations/train.json", f"truth={root}/annotations/val.json"]
    printed = type_words(*words, f"out={out}", "transforms.scales=[40]", "labels.per_class=true")
    assert sum(line.startswith("against the truth: AP ") for line in printed) == 1
    labels = json.loads(out.read_text())
    assert [entry["name"] for entry in labels["categories"]] == ["RBC", "WBC", "Platelets"]
    assert labels["annotations"]
    student = replace(cfg, output_dir=str(tmp_path / "student"))
    student.data = replace(cfg.data, automatic=str(out))
    assert {"box_AP", "label_AP"} <= train_run(student).keys()


def test_the_readmes_commands_have_all_words_that_are_needed():
    needed = {field.name for field in fields(annotate.Options) if field.default == MISSING}
    assert needed == {"images", "teacher", "labelled", "out"}
    text = (REPOSITORY / "data_distillation" / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^python annotate\.py (images=.*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        given = {word.split("=")[0] for word in shlex.split(command, comments=True)}
        assert needed <= given, command


def test_two_shards_give_the_same_bytes_as_one_command(world, first, tmp_path, type_words):
    out = tmp_path / "auto.json"
    printed = type_words(*usual(world, out), "shard=1/2")
    assert printed[-1].startswith("shard 1/2 is done. ")
    assert "lacks images: 3 of shard=0/2" in printed[-1]
    assert not out.exists()
    type_words(*usual(world, out), "shard=0/2")
    assert out.read_bytes() == first[0].read_bytes()


def test_a_command_that_was_killed_goes_on_to_the_same_bytes(
    world, first, tmp_path, commands, type_words
):
    out = tmp_path / "auto.json"
    words = usual(world, out)
    run = commands.start("data_distillation", *words, script="annotate.py", stall=4)
    run.until(1, "stalled")
    run.kill()
    file = tmp_path / "auto" / "records" / "shard-0-of-1.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4  # the first line and 3 of 5 images
    assert not out.exists()
    file.write_bytes(b"".join([*lines[:3], lines[3][:50]]))  # and it may have torn the last one
    type_words(*words)
    assert out.read_bytes() == first[0].read_bytes()


def test_other_thresholds_need_no_network_and_no_images(world, first, tmp_path, type_words):
    shutil.copytree(first[0].parent, tmp_path / "copy")
    out = tmp_path / "copy" / "auto.json"
    printed = type_words("threshold", f"out={out}", "labels.factor=0.5", "examples=0")
    assert "mu = 2.2500, times labels.factor=0.5" in printed[0]
    assert "k = 6" in printed[2]
    content = json.loads(out.read_text())
    assert len(content["annotations"]) == 6
    assert content["info"]["labels"]["factor"] == 0.5
    type_words("threshold", f"out={out}")
    assert out.read_bytes() == first[0].read_bytes()


def test_images_that_were_moved_are_found_by_either_command(world, tmp_path, type_words):
    here, moved, out = tmp_path / "here", tmp_path / "moved", tmp_path / "auto.json"
    shutil.copytree(world / "images", here)
    type_words(*usual(world, out, images=str(here)))
    before = out.read_bytes()
    here.rename(moved)
    printed = type_words("threshold", f"out={out}")  # needs no images
    assert printed[-1] == (
        f"warning: no picture, as {here}/image0.png is not here: python annotate.py threshold "
        f"out={out} root=DIR draws the images of another folder."
    )
    assert out.read_bytes() == before
    assert not out.with_suffix(".png").exists()  # it showed other labels
    assert type_words("threshold", f"out={out}", f"root={moved}")[-1].endswith("auto.png")
    assert json.loads(out.read_text())["info"]["folder"] == str(moved)
    out.unlink()
    assert type_words(*usual(world, out, images=str(moved)))[-1].endswith("auto.png")
    assert json.loads(out.read_text())["info"]["folder"] == str(moved)


def test_threshold_stops_before_the_file_is_overwritten(world, first, tmp_path, type_words):
    shutil.copytree(first[0].parent, tmp_path / "copy")
    out = tmp_path / "copy" / "auto.json"
    words = ["threshold", f"out={out}", "labels.factor=0.5", "sigmas=[0.1,0.1,0.1]"]
    short = world / "train.json"
    with pytest.raises(ValueError, match=rf"truth={short} has no image image4\.png"):
        type_words(*words, f"truth={short}")
    with pytest.raises(ValueError, match=rf"root={tmp_path} has no {tmp_path}/image0\.png"):
        type_words(*words, f"root={tmp_path}")
    assert out.read_bytes() == first[0].read_bytes()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"name": "person"}, "id 3 is shade there and person in the file"),
        ({"id": 9}, "id 3 is .* there and missing in the file"),
        ({"keypoints": ["nose", "tail", "ear"]}, "id 3 is joints .*hand there and joints nose, ta"),
    ],
)
def test_records_of_other_categories_stop(world, first, tmp_path, type_words, old, change, fault):
    """Old records have no names: there the ids alone can be told apart."""
    shutil.copytree(first[0].parent, tmp_path / "copy")
    out, other = tmp_path / "copy" / "auto.json", tmp_path / "other.json"
    content = json.loads((world / "train.json").read_text())
    content["categories"][1] |= change
    for entry in content["annotations"]:
        if entry["category_id"] == 3:
            entry["category_id"] = content["categories"][1]["id"]
    words = ["threshold", f"out={out}", f"labelled={write_json(other, content)}"]
    if old:
        inputs = out.with_suffix("") / "records" / "inputs.json"
        known = json.loads(inputs.read_text())
        del known["categories"]
        write_json(inputs, known)
    if old and "id" not in change:
        assert type_words(*words, "examples=0")[-1] == str(out)
        return
    with pytest.raises(ValueError, match=f"records of other categories than labelled=.*{fault}"):
        type_words(*words)
    assert out.read_bytes() == first[0].read_bytes()


def test_a_finished_command_does_not_rename_its_labels(world, first, tmp_path, type_words):
    shutil.copytree(first[0].parent, tmp_path / "copy")
    out = tmp_path / "copy" / "auto.json"
    content = json.loads((world / "train.json").read_text())
    content["categories"][1]["name"] = "person"
    labelled = str(write_json(tmp_path / "other.json", content))
    names = str(write_json(tmp_path / "names.json", {"shade": "person"}))
    with pytest.raises(ValueError, match="id 3 is shade there and person in the file"):
        type_words(*usual(world, out, labelled=labelled, categories=names))
    assert out.read_bytes() == first[0].read_bytes()


def test_a_class_that_the_labelled_set_lacks_is_named_once(world, tmp_path, type_words):
    write_run(tmp_path / "run", JOINTS, unnamed=3)
    printed = type_words(*usual(world, tmp_path / "auto.json", teacher=str(tmp_path / "run")))
    assert printed[0] == f"{world}/train.json lacks N/A: these are not labelled."


def test_without_a_label_there_is_no_picture(first, tmp_path, type_words):
    shutil.copytree(first[0].parent, tmp_path / "copy")
    out = tmp_path / "copy" / "auto.json"
    words = ["labels.match=fixed", "labels.score=1"]
    assert type_words("threshold", f"out={out}", *words)[-1] == str(out)
    assert not json.loads(out.read_text())["annotations"]
    assert not out.with_suffix(".png").exists()


def test_with_a_truth_the_ap_of_the_labels_is_printed_by_threshold_too(world, tmp_path, type_words):
    out = tmp_path / "auto.json"
    truth = str(world / "truth.json")
    printed = type_words(*usual(world, out, truth=truth))
    (line,) = [line for line in printed if line.startswith("against the truth: AP ")]
    assert type_words("threshold", f"out={out}")[-3] == line
    itself = write_json(tmp_path / "itself.json", json.loads(out.read_text()))
    words = ["threshold", f"out={out}", "labels.match=fixed", "labels.score=0"]
    printed = type_words(*words, "labels.keep_empty=true")
    content = json.loads(out.read_text())
    for number, annotation in enumerate(content["annotations"]):
        annotation["bbox"][0] += number / 1000  # no copies
    write_json(itself, content)
    printed = type_words(*words, "labels.keep_empty=true", f"truth={itself}")
    assert "against the truth: AP 100.0, AP50 100.0, AP75 100.0" in printed


def test_a_list_without_categories_is_labelled_in_its_order_with_its_ids(
    world, first, tmp_path, type_words
):
    out = tmp_path / "auto.json"
    listed = str(world / "image_info_unlabeled2017.json")
    type_words(*usual(world, out, images=listed, root=str(world / "images")))
    content, of_folder = json.loads(out.read_text()), json.loads(first[0].read_text())
    ids = {entry["id"]: entry["file_name"] for entry in content["images"]}
    assert all(name == f"image{5 - number}.png" for number, name in ids.items())
    boxes = [a["bbox"] for a in content["annotations"]]
    assert boxes == [a["bbox"] for a in of_folder["annotations"]]


def test_passes_that_coincide_are_named(world, tmp_path, type_words):
    words = ["transforms.scales=[60,70,80]", "transforms.max_size=96"]
    printed = type_words(*usual(world, tmp_path / "auto.json"), *words)
    assert printed[0] == (
        "warning: the scales 70, 80 are the same for 1 of 5 images, of 48 x 32 pixels, and count "
        "several times: raise transforms.max_size, or leave some out of transforms.scales."
    )
    assert "several times" not in " ".join(type_words(*usual(world, tmp_path / "b.json")))


def test_images_that_cannot_be_read_stop_the_command_or_are_counted(world, tmp_path, type_words):
    shutil.copytree(world / "images", tmp_path / "images")
    (tmp_path / "images" / "image1.png").write_bytes(b"GIF89a")
    words = usual(world, tmp_path / "auto.json", images=str(tmp_path / "images"))
    with pytest.raises(ValueError, match=r"image1\.png cannot be read .*bad_images=skip"):
        type_words(*words)
    assert not (tmp_path / "auto").exists()  # before the first image
    printed = type_words(*words, "bad_images=skip")
    assert "images that could not be read: 1, left out" in printed
    assert " in 4 images, " in printed[1]


def test_joints_without_left_and_right_are_not_flipped(tmp_path, type_words):
    write_world(tmp_path, ["a", "b", "c"])
    printed = type_words(*usual(tmp_path, tmp_path / "auto.json"))
    assert printed[0].startswith("warning: no flips, as the joints' names tell no left from right")
    content = json.loads((tmp_path / "auto.json").read_text())
    assert content["info"]["transforms"]["flip"] is False


def test_joints_of_a_network_of_pixels_are_written_as_they_are(world, tmp_path, type_words):
    write_run(tmp_path / "pixels", JOINTS, joint_offset=0.0)
    pixels = {"teacher": str(tmp_path / "pixels")}
    found = []
    for name, changes in (
        ("plain", {}),
        ("by the word", {"joint_offset": "0"}),
        ("by the run", pixels),
    ):
        out = tmp_path / f"{name}.json"
        type_words(*usual(world, out, **changes), "transforms.flip=false", "examples=0")
        found.append(joints_of(out))
        before = out.read_bytes()
        type_words("threshold", f"out={out}", "examples=0")
        assert out.read_bytes() == before
    assert len(found[0]) == 22
    # The network's output is the pixel itself, from which files have taken off 0.5.
    torch.testing.assert_close(found[1][:, :2], found[0][:, :2] + 0.5)
    assert torch.equal(found[2], found[1])


def joints_of(out: Path) -> torch.Tensor:
    """The labelled joints of a file, (n, 3)."""
    annotations = json.loads(out.read_text())["annotations"]
    points = torch.tensor([a["keypoints"] for a in annotations]).view(-1, 3)
    return points[points[:, 2] > 0]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"joint_offset": "2"}, "joint_offset=2.0 is out of range"),
        ({"out": "auto.txt"}, r"out=auto\.txt: give the name of a file that ends in \.json"),
        ({"out": "{world}/train.json"}, "out=.* is a file that is read"),
        ({"labelled": "{world}/none.json"}, r"none\.json does not exist"),
        ({"labelled": "{world}/run"}, "run is not a regular file"),
        ({"labelled": "{world}/blind.json"}, "has no instance with a visible joint"),
        ({"images": "{world}/empty"}, "empty has no images"),
        ({"images": "{world}/nowhere"}, "nowhere does not exist"),
        ({"images": "{world}/absent.json", "root": "{world}/images"}, r"image9\.png is listed in"),
        ({"teacher": "{world}/empty"}, "has no checkpoint"),
        ({"truth": "{world}/image_info_unlabeled2017.json"}, "has no list `annotations`"),
        ({"truth": "{world}/train.json"}, r"truth=.*train\.json has no image image4\.png"),
        ({"out": "{world}/train.json/a/b.json"}, "out=.*b.json: .* cannot be written .*another pl"),
        ({"truth": "{world}/truth.json", "sigmas": "[]"}, r"3 joints: give sigmas=\[\.\.\.\]"),
        ({"shard": "2/2"}, "shard=2/2: give one of 0/N to N-1/N"),
        ({"bad_images": "drop"}, "bad_images=drop is unknown"),
        ({"merge.scoring": "best"}, "merge.scoring=best"),
    ],
)
def test_bad_input_stops_before_the_first_image(world, tmp_path, type_words, changes, fault):
    (world / "empty").mkdir(exist_ok=True)
    write_labelled(world / "blind.json", entries(4), JOINTS, v=0)
    entry = entries(5)[0] | {"id": 1, "file_name": "image9.png"}
    write_json(world / "absent.json", {"images": [entries(5)[0], entry]})
    words = {name: value.format(world=world) for name, value in changes.items()}
    out = tmp_path / "auto.json"
    with pytest.raises((ValueError, errors.UserError), match=fault):
        type_words(*usual(world, out, **words))
    assert not list(tmp_path.rglob("*.jsonl"))
    assert not out.exists()


def test_records_of_other_settings_and_missing_ones_stop(first, world, tmp_path, type_words):
    words = [word for word in usual(world, first[0]) if not word.startswith("transforms")]
    with pytest.raises(ValueError, match=r"transforms\.scales is \[40, 56\] there and \[48\] now"):
        type_words(*words, "transforms.scales=[48]")
    with pytest.raises(ValueError, match=r"records has no records: run annotate\.py with the same"):
        type_words("threshold", f"out={tmp_path / 'none.json'}")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (
            ["images=a", "labels.facter=2"],
            "Unknown option 'labels.facter'. Did you mean 'labels.fa",
        ),
        (["images=a"], "is not set: give"),
        (["images=a", "merge.nms=half"], "merge.nms=half: a number is expected."),
        (["threshold", "out=a.json", "transforms.flip=false"], "Unknown option 'transforms"),
        (["threshold", "out=a.json", "labels.factor=0"], "labels.factor=0 would keep no label"),
        (["threshold", "out=a.json", "labels.keypoint_score=nan"], "=nan: give a finite number"),
    ],
)
def test_a_wrong_word_is_one_sentence(monkeypatch, capsys, words, fault):
    monkeypatch.setattr(sys, "argv", ["annotate.py", *words])
    with pytest.raises(SystemExit) as stop:
        annotate.run_command(annotate.main)
    assert stop.value.code == 2
    text = capsys.readouterr().err
    assert fault in text
    assert text.count("\n") == 1


def test_without_words_the_command_explains_itself(type_words, capsys):
    for words in ([], ["--help"], ["threshold"]):
        with pytest.raises(SystemExit) as stop:
            type_words(*words)
        assert not stop.value.code
        assert "python annotate.py threshold out=auto.json" in capsys.readouterr().out
