"""Visual Genome's files, which the test writes, in COCO's format."""

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from PIL import Image
from torchvision.models import get_model_weights

import maskx_rcnn
from common.coco.dataset import CocoDataset
from common.coco.files import find_split
from common.config import to_dataclass
from common.run import checkpoint
from maskx_rcnn import prepare
from maskx_rcnn.config import Config
from maskx_rcnn.inputs import stream, visual_genome
from maskx_rcnn.inputs.visual_genome import SYNSETS, build, match_classes
from maskx_rcnn.model import mask_rcnn, segment
from maskx_rcnn.train import train

FOLDER = Path(maskx_rcnn.__file__).parent

WIDTH, HEIGHT = 40, 30
COCO = {1: "person", 3: "car", 62: "couch", 63: "hair drier"}
URL = "https://cs.stanford.edu/people/rak248/VG_100K{}/{}.jpg"


def thing(synsets: list[str], x: int = 4, y: int = 5, w: int = 10, h: int = 12) -> dict[str, Any]:
    return {"object_id": 0, "synsets": synsets, "names": ["x"], "x": x, "y": y, "w": w, "h": h}


# Images by id: their coco_id, the folder's suffix, objects. The order of the file counts.
IMAGES: dict[int, tuple[int | None, str, list[dict[str, Any]]]] = {
    9: (None, "_2", [thing(["person.n.01"], x=x) for x in (4, 5, 6)]),
    2: (70, "", [thing(["car.n.01"]), thing(["car.n.02"]), thing(["person.n.01"], x=-5)]),
    5: (71, "", [thing([]), thing(["sofa.n.01", "tree.n.01"]), thing(["tree.n.01"], x=35, w=99)]),
    4: (None, "_2", [thing(["sofa.n.01"]), thing(["car.n.02"]), thing(["sky.n.01"], x=40)]),
    7: (None, "", [thing(["apple.n.01"]), thing(["tree.n.01"]), thing(["sofa.n.01"])]),
    3: (70_000, "", [thing(["sky.n.01"], h=0), thing(["sky.n.01"]), thing(["car.n.02"])]),
}


class Genome:
    """Files of both data sets, which a test may spoil before they are written."""

    def __init__(self, folder: Path) -> None:
        self.root, self.coco = folder / "vg", folder / "coco"
        self.images = [
            {
                "image_id": number,
                "width": WIDTH,
                "height": HEIGHT,
                "coco_id": coco,
                "url": URL.format(suffix, number),
            }
            for number, (coco, suffix, _) in IMAGES.items()
        ]
        self.objects = [
            {"image_id": number, "objects": [dict(each) for each in objects]}
            for number, (_, _, objects) in IMAGES.items()
        ]

    def write(self) -> None:
        for number, (_, suffix, _) in IMAGES.items():
            save_image(self.root / f"VG_100K{suffix}/{number}.jpg")
        for name, content in (("image_data", self.images), ("objects", self.objects)):
            (self.root / f"{name}.json").write_text(json.dumps(content))
        for split, number in (("train", 1), ("val", 71)):
            write_coco(self.coco, split, number)

    def build(self, **options: Any) -> None:
        build(self.root, self.coco, **{"classes": 6, "test": 2} | options)

    def read(self, split: str) -> dict[str, Any]:
        return json.loads((self.root / f"annotations/instances_vg3k_{split}.json").read_text())


def save_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 60)).save(path)


def write_coco(root: Path, split: str, number: int) -> None:
    """One image with a masked object of each class."""
    save_image(root / f"{split}2017/{number:012d}.jpg")
    corners = [4.0, 4, 24, 4, 24, 20, 4, 20]
    content = {
        "images": [
            {"id": number, "width": WIDTH, "height": HEIGHT, "file_name": f"{number:012d}.jpg"}
        ],
        "categories": [{"id": k, "name": name} for k, name in reversed(COCO.items())],
        "annotations": [
            {
                "id": k,
                "image_id": number,
                "category_id": k,
                "bbox": [4, 4, 20, 16],
                "area": 320,
                "iscrowd": 0,
                "segmentation": [corners],
            }
            for k in COCO
        ],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))


@pytest.fixture
def genome(tmp_path: Path) -> Genome:
    return Genome(tmp_path)


def test_classes_of_coco_come_first_and_the_others_by_name(genome, capsys):
    genome.write()
    genome.build()
    # The 6 most frequent: person 4, car.n.02 3, sofa 3, tree 3, sky 3, car.n.01 1 (before apple).
    # Two are called car: the more frequent is COCO's. Nobody names a hair drier: a class more.
    names = [
        "person.n.01.coco",
        "car.n.02.coco",
        "sofa.n.01.coco",
        "hand_blower.n.01.coco",
        "car.n.01",
        "sky.n.01",
        "tree.n.01",
    ]
    expected = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    for split in ("train", "val", "test"):
        assert genome.read(split)["categories"] == expected
    printed = capsys.readouterr().out
    assert "7 classes, the first 4 are COCO's" in printed
    assert "hair drier (hand_blower.n.01) gets no boxes" in printed


def test_val_is_cocos_test_the_last_images_outside_of_it_train_the_rest(genome):
    genome.write()
    genome.build()
    ids = {s: [i["id"] for i in genome.read(s)["images"]] for s in ("train", "val", "test")}
    assert ids == {"train": [9, 2, 3], "val": [5], "test": [4, 7]}
    first = genome.read("train")["images"][0]
    assert first == {
        "id": 9,
        "width": WIDTH,
        "height": HEIGHT,
        "file_name": "VG_100K_2/9.jpg",
        "coco_id": None,
    }


def test_boxes_are_of_objects_with_one_frequent_synset_and_clipped(genome, capsys):
    genome.write()
    genome.build()
    found = {s: genome.read(s)["annotations"] for s in ("train", "val", "test")}
    boxes = {s: [(a["image_id"], a["category_id"], a["bbox"]) for a in found[s]] for s in found}
    usual = [4, 5, 10, 12]
    assert boxes["train"] == [
        *((9, 1, [x, 5, 10, 12]) for x in (4, 5, 6)),
        (2, 5, usual),
        (2, 2, usual),
        (2, 1, [0, 5, 5, 12]),  # from -5
        (3, 6, usual),
        (3, 2, usual),
    ]
    assert boxes["val"] == [(5, 7, [35, 5, 5, 12])]  # to 134
    assert boxes["test"] == [(4, 3, usual), (4, 2, usual), (7, 7, usual), (7, 3, usual)]
    for annotations in found.values():
        assert [a["id"] for a in annotations] == list(range(1, len(annotations) + 1))
        assert all("segmentation" not in a and not a["iscrowd"] for a in annotations)
        assert all(a["area"] == a["bbox"][2] * a["bbox"][3] for a in annotations)
    printed = capsys.readouterr().out
    assert "instances_vg3k_train.json: 3 images, 8 boxes" in printed
    for line in (
        "2 objects without an area in the image",  # right of the image, and 0 high
        "1 objects without a synset",
        "1 objects of several synsets",
        "1 objects of rarer synsets",
    ):
        assert f"left out: {line}" in printed


def test_the_command_writes_what_the_data_set_reads(genome, capsys):
    genome.write()
    prepare.main(["vg", f"root={genome.root}", f"coco={genome.coco}"])
    assert "8 classes" in capsys.readouterr().out  # with apple.n.01
    sizes = {}
    for split in ("train", "val", "test"):
        data = CocoDataset(*find_split(genome.root, f"vg3k_{split}"), strict=True)
        sizes[split] = len(data), sum(len(data.target(k)["boxes"]) for k in range(len(data)))
    assert sizes == {"train": (2, 5), "val": (1, 1), "test": (3, 8)}
    image, target = CocoDataset(*find_split(genome.root, "vg3k_val"))[0]
    assert image.shape == (3, HEIGHT, WIDTH)
    assert target["boxes"].tolist() == [[35, 5, 40, 17]]
    assert data.names[target["labels"][0]] == "tree.n.01"


def test_the_table_has_18_classes_of_coco_and_no_synset_twice():
    names = get_model_weights("maskrcnn_resnet50_fpn")["COCO_V1"].meta["categories"]
    assert set(SYNSETS) <= set(names)
    assert len(set(SYNSETS.values())) == len(SYNSETS) == 18
    assert SYNSETS["couch"] == "sofa.n.01"
    assert SYNSETS["fire hydrant"] == "water_faucet.n.01"


def test_a_class_is_the_most_frequent_synset_of_its_name_unless_the_table_has_it():
    frequent = ["orange.n.02", "traffic_light.n.01", "bus.n.04", "bus.n.01", "mouse.n.10"]
    names = ["bus", "traffic light", "mouse", "orange"]
    found = match_classes(names, frequent, SYNSETS)
    assert found == ["bus.n.04", "traffic_light.n.01", "mouse.n.10", "orange.n.01"]
    with pytest.raises(ValueError, match=r"'kite' has no synset among the 5 .*synsets=FILE.json"):
        match_classes(["kite"], frequent, SYNSETS)
    with pytest.raises(ValueError, match=r"'bus' and 'coach' are both bus\.n\.04"):
        match_classes(["bus", "coach"], frequent, {"coach": "bus.n.04"})


def test_a_file_replaces_synsets_of_the_table(genome, tmp_path):
    genome.write()
    file = tmp_path / "mine.json"
    file.write_text('{"couch": "tree.n.01", "hair drier": "sky.n.01"}')
    genome.build(synsets=str(file))
    names = [each["name"] for each in genome.read("val")["categories"]]
    assert names[:4] == ["person.n.01.coco", "car.n.02.coco", "tree.n.01.coco", "sky.n.01.coco"]
    assert names[4:] == ["car.n.01", "sofa.n.01"]
    for content, message in (
        ('{"coach": "bus.n.01"}', "'coach' is no class of COCO; did you mean couch?"),
        ('{"couch": 1}', 'names no synsets: write {"couch": "sofa.n.01", ...}'),
        ('["couch"]', "names no synsets"),
        ("{", "is not JSON, or was cut off"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            genome.build(synsets=str(file))
        assert str(file) in str(error.value)


def spoil_image(genome: Genome, **fields: Any) -> None:
    genome.images[2] |= fields


def spoil_object(genome: Genome, **fields: Any) -> None:
    genome.objects[1]["objects"][0] |= fields


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda g: spoil_image(g, width=None), "image 5 has width and height [None, 30]"),
        (lambda g: spoil_image(g, height=0), "image 5 has width and height [40, 0]"),
        (lambda g: spoil_image(g, url=URL.format("", "5")[:8]), "address that ends in FOLDER/FILE"),
        (lambda g: spoil_image(g, image_id=9), "image_id 9 is no number, or listed twice"),
        (lambda g: spoil_image(g, image_id="5"), "image_id '5' is no number"),
        (lambda g: spoil_image(g, coco_id=8), "left for val: of 6, 0 are of COCO's val2017"),
        (lambda g: spoil_object(g, x="1"), "object 0 of image 2 has x, y, w, h ['1', 5, 10, 12]"),
        (lambda g: spoil_object(g, w=float("nan")), "must be finite numbers of pixels"),
        (lambda g: g.objects[0].update(image_id=8), "image 8 is not listed in image_data.json"),
        (lambda g: g.objects[0].update(objects=[1]), "image 9 has no list of `objects`"),
        (lambda g: g.objects.append(3), "objects.json: 3 in its list is no object {...}"),
    ],
)
def test_a_fault_of_the_files_is_named_and_leaves_no_half_file(genome, spoil, message):
    spoil(genome)
    genome.write()
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        genome.build()
    assert "vg/" in str(error.value) or "left for val" in message
    assert not list(genome.root.rglob("*.tmp"))
    assert not list(genome.root.glob("annotations/*.json"))


def test_files_that_are_missing_or_cut_off_are_named(genome):
    genome.write()
    whole = (genome.root / "objects.json").read_text()
    for text, message in (
        (whole[:-30], "objects.json is not JSON, or was cut off"),
        ("", "objects.json is no JSON list"),
        ('{"a": 1}', "objects.json is no JSON list, but starts with"),
        (whole.replace("synsets", "sets"), "names no synsets: take that of version 1.2 or 1.4"),
    ):
        (genome.root / "objects.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            genome.build()
    (genome.root / "VG_100K_2/4.jpg").unlink()
    with pytest.raises(ValueError, match=r"VG_100K_2/4.jpg is listed in .*image_data.json, but"):
        genome.build()
    (genome.root / "objects.json").unlink()
    with pytest.raises(ValueError, match=r"objects.json does not exist; expected ROOT/objects"):
        genome.build()
    (genome.root / "image_data.json").unlink()
    with pytest.raises(ValueError, match=r"image_data.json does not exist"):
        genome.build()
    genome.coco = genome.root / "absent"
    (genome.root / "objects.json").write_text("[]")
    (genome.root / "image_data.json").write_text("[]")
    with pytest.raises(ValueError, match="absent is not a folder; expected one of"):
        genome.build()


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_entries_may_lie_across_the_blocks_that_are_read(tmp_path, monkeypatch, block):
    monkeypatch.setattr(stream, "BLOCK", block)
    entries = [{"a": [1, {"b": "é ] }, {"}]}, {}, {"c": -12.5e3, "d": None}]
    for indent in (None, 1):
        file = tmp_path / "list.json"
        file.write_text("\n " + json.dumps(entries, indent=indent, ensure_ascii=False) + "\n")
        assert list(stream.read_entries(file)) == entries
    file.write_text("[]")
    assert list(stream.read_entries(file)) == []


def test_a_file_is_never_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK", 1 << 14)
    file = tmp_path / "list.json"
    file.write_text(json.dumps([{"a": "x" * 1000}] * 4000))  # 4 MB
    tracemalloc.start()
    assert sum(len(entry["a"]) for entry in stream.read_entries(file)) == 4_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    monkeypatch.setattr(stream, "LARGEST", 1 << 15)
    file.write_text('[{"a": "' + "x" * (1 << 17))
    with pytest.raises(ValueError, match="is not JSON, or was cut off: Unterminated string"):
        list(stream.read_entries(file))


def test_a_file_of_a_split_appears_whole_or_not_at_all(genome):
    genome.write()
    genome.build()
    before = (genome.root / "annotations/instances_vg3k_val.json").read_bytes()

    def annotations():
        yield {"id": 1}
        raise ValueError("the disk fails")

    with pytest.raises(ValueError, match="the disk fails"):
        visual_genome.write_split(
            genome.root / "annotations/instances_vg3k_val.json", [], [], annotations()
        )
    assert (genome.root / "annotations/instances_vg3k_val.json").read_bytes() == before
    assert len(list((genome.root / "annotations").iterdir())) == 3


def settings(*words: str) -> Config:
    """What `python train.py WORDS` would train."""
    ConfigStore.instance().store("schema", Config)  # other tests keep theirs under this name
    with initialize_config_dir(str(FOLDER / "conf"), version_base="1.3"):
        return to_dataclass(compose("config", list(words)))


def test_the_recipe_of_both_stages_is_the_official_codes():
    boxes = settings("experiment=vg_boxes", "data.root=x", "output_dir=y")
    assert (boxes.stage, boxes.steps, boxes.lr, boxes.batch_size) == ("detector", 180_000, 0.01, 8)
    assert [round(share * boxes.steps) for share in boxes.milestones] == [120_000, 160_000]
    masks = settings("experiment=vg_masks", "data.root=x", "output_dir=y")
    assert (masks.stage, masks.steps, masks.lr, masks.batch_size) == ("masks", 90_000, 0.02, 16)
    assert [round(share * masks.steps) for share in masks.milestones] == [60_000, 80_000]
    assert (masks.branch.source, masks.branch.layers, masks.branch.mlp) == ("cls+box", 2, 1)
    deep = (FOLDER / "conf/experiment/vg_masks.yaml").read_text()
    words = re.search(r"resnet101\n# +(.*)\n", deep)[1].split()
    deep = settings("experiment=vg_masks", "data.root=x", "output_dir=y", *words)
    assert (deep.steps, deep.lr, deep.batch_size, deep.images_per_gpu) == (180_000, 0.01, 8, 1)


SMALL = """backbone=small channels=8 hidden=16 mask_convs=1 mask_size=8 anchors=[12,24]
short_side=30 long_side=40 proposals=[20,20] rois=16 positive=0.5 score=0"""
QUICK = [f"network.{word}" for word in SMALL.split()]
QUICK += ["steps=2", "batch_size=1", "images_per_gpu=1", "data.workers=0", "log_every=1"]


def test_two_stages_give_all_classes_of_visual_genome_masks(genome, tmp_path):
    genome.write()
    genome.build()
    boxes, masks = tmp_path / "boxes", tmp_path / "masks"
    cut, whole = tmp_path / "cut.pt", tmp_path / "whole.pt"
    words = ["experiment=vg_boxes", f"data.root={genome.root}", "init=", f"output_dir={boxes}"]
    train(settings(*words, *QUICK))
    prepare.main(["cut", str(boxes), f"out={cut}", "rows=5"])
    words = ["experiment=vg_masks", f"data.root={genome.coco}", f"init={cut}"]
    train(settings(*words, f"output_dir={masks}", *QUICK))
    prepare.main(["restore", str(masks), f"cut={cut}", f"out={whole}"])

    cfg = settings("experiment=vg_masks", "data.root=x", "output_dir=y", *QUICK)
    model = mask_rcnn(7, cfg.network, cfg.branch).eval()
    parts = checkpoint.load(whole)["parts"]
    checkpoint.load_matching(model, parts["model"])
    assert parts["categories"]["names"][3:5] == ["hand_blower.n.01.coco", "car.n.01"]
    start, end = (
        checkpoint.load(folder / "checkpoint-00000002.pt")["parts"]["model"]
        for folder in (boxes, masks)
    )
    for name, value in parts["model"].items():
        branch = name.startswith("roi_heads.mask_")
        assert torch.equal(value, (end if branch else start)[name]), name
    image = torch.rand(3, HEIGHT, WIDTH)
    box = torch.tensor([[4.0, 4, 30, 25]]).repeat(7, 1)
    (found,) = segment(model, [image], [box], [torch.arange(1, 8)])
    assert found.shape == (7, HEIGHT, WIDTH)
