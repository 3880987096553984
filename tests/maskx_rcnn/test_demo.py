"""One photo in, masks out: all of them, those of some classes, of given boxes, of added classes."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from common import draw, errors
from common.run import checkpoint
from common.run.options import Options
from maskx_rcnn import data, demo, train
from maskx_rcnn.config import MAY_CHANGE, Config
from maskx_rcnn.model import Network, mask_rcnn
from tests.maskx_rcnn.small import settings


def write_run(folder: Path, seed: int = 0, stage: str = "e2e", **branch) -> Config:
    """What a run with random weights leaves for the demo."""
    torch.manual_seed(seed)
    cfg = settings(folder, **branch)
    cfg.stage = stage
    dataset = data.PartialMasks(cfg.data, False)
    embeddings = torch.randn(16, 5) if cfg.branch.source == "embedding" else None
    model = mask_rcnn(16, cfg.network, cfg.branch, embeddings=embeddings)
    heads = model.roi_heads
    if cfg.branch.kind == "transfer":
        heads.mask_predictor.w_det(heads.box_predictor)  # the statistics of a step of training
    for layer in heads.mask_predictor.modules():  # masks of many shapes
        if isinstance(layer, torch.nn.ConvTranspose2d | torch.nn.Linear):
            layer.weight.data *= 4
    checkpoint.save(
        folder, 6, model=model, categories=dataset.categories, options=Options(cfg, MAY_CHANGE)
    )
    return cfg


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    folder.mkdir()
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return data.PartialMasks(settings(Path()).data, False)[0][0]


@pytest.fixture
def type_words(monkeypatch, capsys, tmp_path):
    """`python demo.py words...` in a folder of its own; what it prints, line by line."""

    def answer(*words: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, words)])
        demo.main()
        return capsys.readouterr().out.splitlines()

    monkeypatch.chdir(tmp_path)
    return answer


def test_the_picture_lies_in_the_current_folder_and_says_which_classes_are_of_b(
    run, tmp_path, type_words
):
    (tmp_path / "photos").mkdir()
    Image.new("LA", (64, 48), (200, 255)).save(tmp_path / "photos" / "photo.png")
    *lines, last = type_words(run, "photos/photo.png", "score=0")
    assert last == "photo_masks.png"
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["photo.png"]
    with Image.open(last) as drawn:
        assert drawn.size == (640, 480)
    names = demo.load(str(run)).categories.names
    assert len(lines) == 60
    for line in lines:
        label = names.index(" ".join(line.split()[:2]))
        assert ("(B)" in line) == (label % 2 == 1)


def test_without_a_photo_the_first_validation_image_is_taken(run, tmp_path, type_words, image):
    said, copied = type_words(run, "score=1")  # nothing is that sure
    assert said == "Nothing has a score of 1: give a lower score=."
    assert copied == "demo_masks.png"
    with Image.open(copied) as drawn:
        assert drawn.size == (480, 480)
    assert type_words(run / "checkpoint-00000006.pt", "score=1")[1:] == [copied]
    here = str(tmp_path / "here.png")
    assert type_words(run, "score=1", f"out={here}")[1:] == [here]
    pixels = demo.read_photo("", str(run), demo.load(str(run)).cfg)
    assert torch.equal(pixels, image)


@torch.no_grad()
def test_masks_of_some_classes_are_the_full_output_filtered(run, image):
    whole = demo.find(demo.load(str(run)), image, {"score": 0})
    chosen = sorted(set(whole["labels"].tolist()))[::2]
    trained = demo.load(str(run))
    names = [trained.categories.names[label] for label in chosen]
    part = demo.find(trained, image, {"score": 0, "classes": names})
    kept = torch.isin(whole["labels"], torch.tensor(chosen))
    assert 0 < kept.sum() < len(kept)
    assert whole["has_mask"].all()
    assert torch.equal(part["has_mask"], kept)
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(part[name], whole[name])
    assert torch.equal(part["masks"][kept], whole["masks"][kept])
    assert not part["masks"][~kept].any()
    drawn = demo.picture(image, part, trained)
    assert not torch.equal(drawn, demo.picture(image, whole, trained))


@torch.no_grad()
def test_masks_of_given_boxes_are_those_of_the_same_boxes_found(run, image):
    trained = demo.load(str(run))
    whole = demo.find(trained, image, {"score": 0})
    ids = trained.categories.ids
    columns = zip(whole["boxes"].tolist(), whole["labels"].tolist(), strict=True)
    given = [[*box, ids[label]] for box, label in columns]
    part = demo.find(trained, image, {"boxes": given[::-1]})
    assert torch.equal(part["labels"], whole["labels"].flip(0))
    assert torch.equal(part["masks"], whole["masks"].flip(0))
    assert whole["masks"].any()
    assert "scores" not in part
    other = [[*given[0][:4], ids[k]] for k in range(16)]  # one box, 16 classes
    found = demo.find(trained, image, {"boxes": other})
    assert len(found["masks"].flatten(1).unique(dim=0)) > 1


@torch.no_grad()
@pytest.mark.parametrize("kind", ["transfer", "agnostic"])
def test_classes_of_another_detector_get_masks(tmp_path, image, kind, type_words):
    first, second = tmp_path / "first", tmp_path / "second"
    for seed, folder in enumerate((first, second)):
        folder.mkdir()
        write_run(folder, seed, kind=kind, standardise=kind == "transfer")
    rows = [3, 16]
    plain = demo.load(str(first))
    grown = demo.add_classes(demo.load(str(first)), str(second), rows)
    names = grown.categories.names
    assert names[16:] == ["hue 045 (added)", "hue 338 (added)"]
    theirs = demo.load(str(second)).model.roi_heads.box_predictor
    for layer, each in (("cls_score", 1), ("bbox_pred", 4)):
        ours = getattr(grown.model.roi_heads.box_predictor, layer).weight
        assert torch.equal(
            ours[each * 17 :][:each], getattr(theirs, layer).weight[3 * each :][:each]
        )
    box = [5, 5, 40, 40]
    own = [[*box, name] for name in names[:16]]
    before = demo.find(plain, image, {"boxes": own})["masks"]
    after = demo.find(grown, image, {"boxes": [*own, *([*box, name] for name in names[16:])]})
    assert torch.equal(after["masks"][:16], before)
    again = demo.add_classes(demo.load(str(first)), str(first), rows)  # what it has already
    masks = demo.find(again, image, {"boxes": [[*box, name] for name in again.categories.names]})
    assert torch.equal(masks["masks"][16:], before[[2, 15]])
    *lines, _ = type_words(
        first, f"add={second}", "rows=[3,16]", "boxes=[[5,5,40,40,hue 338 (added)]]"
    )
    assert lines[0].split()[:4] == ["hue", "338", "(added)", "given"]


@torch.no_grad()
def test_torchvisions_weights_know_cocos_classes(tmp_path, monkeypatch, image):
    narrow = Network(
        backbone="resnet18", channels=8, hidden=16, short_side=48, long_side=96, mask_convs=1
    )
    monkeypatch.setattr(demo, "Network", lambda: narrow)
    state = mask_rcnn(90, narrow, demo.MaskBranch(kind="specific")).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    trained = demo.load(str(tmp_path / "weights.pth"))
    assert trained.categories.by_id()[90] == "toothbrush"
    found = demo.find(trained, image, {"boxes": [[1, 1, 40, 40, "person"], [1, 1, 40, 40, 18]]})
    assert found["labels"].tolist() == [0, 17]
    assert demo.class_names(trained)[17] == "dog"
    state["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(5, 16)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth is no run, nor torchvision's"):
        demo.load(str(tmp_path / "other.pth"))


def test_captions_of_equal_boxes_stand_one_below_the_other(run):
    trained = demo.load(str(run))
    image = torch.full((3, 48, 48), 255, dtype=torch.uint8)
    boxes = torch.tensor([[9.0, 9, 40, 40]] * 3 + [[10, 10, 44, 44]])
    found = {"boxes": boxes, "labels": torch.arange(4), "scores": torch.full((4,), 0.5)}
    found |= {"has_mask": torch.zeros(4, dtype=torch.bool), "masks": torch.zeros(4, 48, 48)}
    drawn = demo.picture(image, found, trained)
    for shade in draw.palette(4):  # a caption's plate of 15 rows, less its letters
        assert (drawn == torch.tensor(shade)[:, None, None]).all(0).sum() > 15 * 60 / 2
    empty = {name: value[:0] for name, value in found.items()}
    assert torch.equal(demo.picture(image, empty, trained), torch.full((3, 480, 480), 255).byte())
    places = demo.find_places(boxes[:, :2], ["a long caption"] * 4, 30)
    assert places[:, 0].tolist() == [0] * 4  # it begins within the image
    assert (places[1:, 1] - places[:-1, 1]).tolist() == [15] * 3


def test_help_prints_the_usage(type_words):
    assert "    out=FILE.png                         another place for the picture" in type_words(
        "-h"
    )


def test_a_and_b_are_those_of_the_checkpoint_where_the_file_of_the_split_has_moved(
    tmp_path, type_words
):
    cfg = settings(tmp_path / "run")
    cfg.steps, cfg.batch_size, cfg.test.images, cfg.data.masks = 1, 2, 0, str(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"A": ["hue 000", 3], "B": [5, 6]}')
    try:
        train.train(cfg)
    finally:
        checkpoint.unlock(cfg.output_dir)
    (tmp_path / "a.json").unlink()
    assert demo.load(cfg.output_dir).boxes_only == [4, 5]
    assert type_words(cfg.output_dir, "score=0")[-1] == "demo_masks.png"


FAULTS = {
    (): "usage: python demo.py RUN",
    ("{run}", "a.jpg", "b.jpg"): "usage: python demo.py RUN",
    ("{run}", "scores=1"): "scores=1 is unknown; usage: python demo.py RUN",
    ("{run}", "score=2"): "score=2 is no score: give a number from 0 to 1",
    ("{run}", "out=/"): "out=/ is no place for a PNG: give FILE.png",
    ("{run}", "out=none/a.png"): "out=none/a.png is no place for a PNG: .* in a folder that exists",
    ("{run}", "out=a.jpg"): "out=a.jpg is no place for a PNG",
    ("{run}", "boxes=[]"): r"boxes=\[\] is no list with entries",
    ("{run}", "none.jpg"): "none.jpg does not exist",
    ("{run}/..",): "has no checkpoint: give the folder of one run",
    ("{run}/none.pt",): "none.pt",
    ("{run}", "score=much"): "score=much is no score",
    ("{run}", "classes=[hue 022"): "a list does not end",
    ("{run}", "classes=[]"): r"classes=\[\] is no list",
    ("{run}", "classes=[hue 023]"): "classes: 'hue 023' is no class of the data set; did you mean",
    ("{run}", "boxes=[1,2,3,4,hue 022]"): "boxes: 1 is no .x1, y1, x2, y2, class.",
    ("{run}", "boxes=[[1,2,hue 022]]"): "is no .x1, y1, x2, y2, class.",
    ("{run}", "boxes=[[9,2,3,4,hue 022]]"): "is no box within the image's 48 x 48 pixels",
    ("{run}", "boxes=[[1,2,3,400,hue 022]]"): "is no box within the image's 48 x 48 pixels",
    ("{run}", "boxes=[[1,2,3,4,dog]]"): "boxes: 'dog' is no class",
    ("{run}", "add={run}"): "belong together",
    ("{run}", "add={run}", "rows=[17]"): "rows: 17 is no class of .*: give numbers from 1 to 16",
    ("{run}", "add={run}", "rows=[0]"): "rows: 0 is no class",
}


@pytest.mark.parametrize("words", FAULTS, ids=" ".join)
def test_a_fault_is_one_sentence(run, type_words, words):
    with pytest.raises((ValueError, OSError), match=FAULTS[words]) as caught:
        type_words(*(word.format(run=run) for word in words))
    assert errors.sentence(caught.value) == str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_without_masks_or_without_rows_to_add_to_is_refused(tmp_path):
    for name, options, message in (
        ("detector", {"stage": "detector"}, "is a detector, which has no masks"),
        ("specific", {"kind": "specific", "standardise": False}, "add= needs masks that follow"),
        ("fixed", {"source": "embedding", "embeddings": "x.npy"}, "add= needs masks that follow"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        write_run(folder, **options)
        with pytest.raises(ValueError, match=message):
            demo.add_classes(demo.load(str(folder)), str(folder), [1])


def test_a_run_of_a_sweep_has_an_equals_sign_in_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "branch.kind=transfer,seed=1").mkdir()
    (tmp_path / "a=b.jpg").touch()
    words = ["branch.kind=transfer,seed=1", "a=b.jpg", "score=0.5"]
    assert demo.read_words(words) == (words[0], words[1], {"score": 0.5})
    boxes = [[1, 2, 3, 4, "hue 022"]] * 20  # longer than the name of a file may be
    long = "boxes=[" + ",".join(f"[{','.join(map(str, box))}]" for box in boxes) + "]"
    assert demo.read_words([words[0], long])[2] == {"boxes": boxes}
    with pytest.raises(ValueError, match="seed=2 is unknown"):
        demo.read_words(["seed=2"])
