"""What a run leaves as pictures: masks beside the truth, neighbours among classes."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from maskx_rcnn.data import PartialMasks
from maskx_rcnn.evaluate import draw_versus, evaluate
from maskx_rcnn.figures import masks, neighbours
from maskx_rcnn.model import mask_rcnn
from tests.maskx_rcnn.small import settings

HUES = 16
NAMES = [f"hue {k}" for k in range(HUES)]
EVEN, ODD = range(0, HUES, 2), range(1, HUES, 2)


def entry(box: list[int], category: int, image: int = 1, **more) -> dict:
    """An annotation, or a detection, whose mask is its box, in an image of 48 x 48 pixels."""
    x, y, width, height = box
    mask = np.zeros((48, 48), np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    code = rle.encode(mask)
    code["counts"] = code["counts"].decode()
    where = {"image_id": image, "category_id": category, "bbox": box, "segmentation": code}
    return where | {"iscrowd": 0} | more


def circle(size: int = 6) -> torch.Tensor:
    """A row for each hue, along the circle in a plane of `size` dimensions, of any length."""
    torch.manual_seed(0)
    turns = torch.arange(HUES) * 2 * math.pi / HUES
    plane = torch.linalg.qr(torch.randn(size, 2))[0].T
    lengths = torch.rand(HUES, 1) + 0.5
    return lengths * torch.stack([turns.cos(), turns.sin()], 1) @ plane


def test_the_nearest_classes_of_a_hue_are_the_hues_beside_it(tmp_path):
    shuffled = circle()[torch.randperm(HUES)]
    spaces = {"w_det": circle(), "w_seg": shuffled}
    found = neighbours.nearest(spaces, NAMES, EVEN, ODD)
    assert found.keys() == spaces.keys()
    for label in ODD:
        (first, near), (second, also), (_, far) = found["w_det"][NAMES[label]]
        assert {first, second} == {NAMES[label - 1], NAMES[(label + 1) % HUES]}
        cosines = math.cos(2 * math.pi / HUES), math.cos(6 * math.pi / HUES)
        assert (near, also, far) == pytest.approx((cosines[0], *cosines), abs=1e-4)
    assert found["w_det"] != found["w_seg"]
    neighbours.draw(tmp_path / "neighbours.png", spaces, NAMES, EVEN, ODD)
    assert Image.open(tmp_path / "neighbours.png").width > 500


def test_a_mask_is_cut_out_of_the_image_within_its_outline():
    image = torch.randint(0, 256, (3, 48, 96), dtype=torch.uint8)
    inside = torch.zeros(48, 96, dtype=torch.bool)
    inside[10:20, 30:60] = True
    code = rle.encode(np.asfortranarray(inside.numpy().astype(np.uint8)))
    drawn = masks.cut_out(image, [{"segmentation": code}], [masks.B_COLOR])
    assert drawn.shape == (3, masks.SIDE, 2 * masks.SIDE)
    large = inside.repeat_interleave(4, 0).repeat_interleave(4, 1)  # 192 of 48 pixels
    assert torch.equal(drawn[:, large], masks.enlarge(image)[:, large])
    line = (drawn == torch.tensor(masks.B_COLOR)[:, None, None]).all(0)
    assert torch.equal(line & ~large, masks.outline(large))
    rest = drawn[:, ~large & ~line]
    assert torch.equal(rest[0], rest[1])  # grey
    assert rest.min() >= 0.75 * 255


def test_images_come_first_whose_foreground_depends_on_the_class():
    apart, pair = [0, 0, 10, 10], [20, 20, 20, 20]
    truth = {
        "images": [{"id": number} for number in (1, 2, 3, 4, 5)],
        "annotations": [
            entry(pair, 1, 1),  # A alone
            entry(apart, 2, 2),  # B alone
            entry(pair, 2, 3),  # B in the box of A
            entry(pair, 1, 3),
            entry(pair, 2, 4),  # B in the box of a crowd, which is no object
            entry(pair, 1, 4, iscrowd=1),
        ],
    }
    assert masks.choose(truth, [{}], {2}) == [2, 1, 3, 0, 4]
    found = masks.by_image([entry(pair, 2, 4, score=0.9), entry(apart, 2, 2, score=0.4)], 0.5)
    assert masks.choose(truth, [found], {2}) == [2, 3, 1, 0, 4]
    assert masks.choose(truth, [found, {}], {2}) == [2, 1, 3, 0, 4]


def test_settings_side_by_side_show_the_b_masks_of_each(tmp_path):
    cfg = settings(tmp_path)
    dataset = PartialMasks(cfg.data, False)
    truth = [a | {"score": 0.9} for a in dataset.ground_truth()["annotations"]]
    of_b = [a for a in truth if a["category_id"] % 2 == 0]
    assert 0 < len(of_b) < len(truth)
    runs = {"all": truth, "B": of_b, "unsure": [a | {"score": 0.4} for a in truth]}
    folders = {name: tmp_path / name for name in (*runs, "diverged")}
    for name, folder in folders.items():
        folder.mkdir()
        if name in runs:
            (folder / "detections.json").write_text(json.dumps(runs[name]))
    draw_versus(cfg, folders)
    sheet = np.array(Image.open(tmp_path / "masks.png"))
    columns = [sheet[:, 4 + k * 196 : 196 + k * 196] for k in range(5)]  # image, truth, runs
    lines = [(column == masks.B_COLOR).all(2) for column in columns]
    assert sheet.shape[1] == 4 + 5 * 196
    assert not lines[0].any()
    assert lines[1].any()
    assert (lines[1] == lines[2])[18:].all()
    assert (lines[1] == lines[3])[18:].all()
    assert not lines[4].any()


@pytest.mark.parametrize("kind", ["transfer", "agnostic"])
def test_an_evaluation_draws_and_leaves_the_network_as_it_was(tmp_path, kind):
    torch.manual_seed(0)
    cfg = settings(tmp_path, kind=kind, standardise=kind == "transfer")
    dataset = PartialMasks(cfg.data, False)
    model = mask_rcnn(HUES, cfg.network, cfg.branch).train()
    predictor, boxes = model.roi_heads.mask_predictor, model.roi_heads.box_predictor
    if kind == "transfer":
        predictor.w_det(boxes)  # the last step of training, whose statistics remain
        torch.nn.init.normal_(boxes.cls_score.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, cfg, dataset, save=True)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert Image.open(tmp_path / "masks.png").width == 6 * 192 + 7 * 4
    assert (tmp_path / "neighbours.png").is_file() == (kind == "transfer")
    if kind == "transfer":
        found = json.loads((tmp_path / "neighbours.json").read_text())
        w_det = boxes.cls_score.weight - predictor.standardise.mean
        wanted = neighbours.nearest({"w_det": w_det[1:]}, dataset.names, EVEN, ODD)["w_det"]
        assert list(found) == ["w_det", "w_seg"]
        for label in ODD:
            nearest, cosines = zip(*found["w_det"][dataset.names[label]], strict=True)
            assert nearest == tuple(name for name, _ in wanted[dataset.names[label]])
            assert cosines == pytest.approx([v for _, v in wanted[dataset.names[label]]], abs=2e-4)
