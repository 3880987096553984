import math

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from common import draw

GREY = torch.full((3, 40, 60), 90, dtype=torch.uint8)
NAMES = ["cube", "sphere", "cone"]


def read(path):
    with Image.open(path) as image:
        return pil_to_tensor(image)


def test_palette_starts_alike_for_any_count_and_repeats_no_color_within_a_hundred():
    colors = draw.palette(100)
    assert draw.palette(7) == colors[:7]
    assert len(set(colors)) == 100


def test_hand_picked_colors_are_far_apart():
    colors = draw.PALETTE
    pairs = [(a, b) for i, a in enumerate(colors) for b in colors[:i]]
    assert min(math.dist(a, b) for a, b in pairs) > 50


def test_a_box_is_outlined_in_its_color_and_leaves_its_inside_and_the_input_alone():
    before = GREY.clone()
    drawn = draw.boxes(GREY, torch.tensor([[10.0, 22, 30, 34]]), labels=[0], names=["a"])
    assert drawn[:, 34, 10:31].T.tolist() == [list(draw.PALETTE[0])] * 21
    assert drawn[:, 22:35, 30].T.tolist() == [list(draw.PALETTE[0])] * 13
    assert (drawn[:, 24:33, 12:29] == 90).all()
    assert torch.equal(GREY, before)


def test_boxes_of_one_label_share_a_color():
    corners = torch.tensor([[2.0, 20, 10, 38], [30, 20, 50, 38]])
    drawn = draw.boxes(GREY, corners, labels=[0, 1], names=NAMES)
    assert not torch.equal(drawn[:, 38, 5], drawn[:, 38, 40])
    drawn = draw.boxes(GREY, corners, labels=[1, 1], names=NAMES)
    assert torch.equal(drawn[:, 38, 5], drawn[:, 38, 40])


def test_captions_stay_inside_the_image_and_have_readable_ink():
    corners = torch.tensor([[0.0, 0, 20, 10], [55, 30, 60, 40]])
    for label in (3, 4):  # a bright and a dark colour
        drawn = draw.boxes(
            GREY,
            corners,
            labels=torch.tensor([label] * 2),
            scores=torch.tensor([0.5, 1.0]),
            names=["cube"] * 5,
            scale=4,
        )
        assert drawn.shape == (3, 160, 240)
        shade = torch.tensor(draw.PALETTE[label], dtype=torch.uint8)
        plate = (drawn == shade[:, None, None]).all(0)
        ink = (drawn < 40).all(0) if label == 3 else (drawn > 220).all(0)
        assert plate[0].sum() > 40  # the first caption has no room above its box
        assert ink[:20].sum() > 20
        assert ink[100:, 160:].sum() > 20  # the second one would reach beyond the right side


def test_boxes_that_leave_the_image_are_cut_and_no_boxes_are_fine():
    draw.boxes(GREY, torch.tensor([[-20.0, -5, 500, 60]]), labels=[0], names=NAMES, scores=[0.3])
    assert torch.equal(draw.boxes(GREY, torch.zeros(0, 4), labels=[], names=NAMES), GREY)


def test_a_grid_holds_each_image_unchanged_in_reading_order():
    images = [torch.full((3, 20, 30), value, dtype=torch.uint8) for value in (10, 20, 30)]
    sheet = draw.grid(images, 2, titles=["", "", ""], padding=4)
    assert sheet.shape == (3, 4 + 2 * 42, 4 + 2 * 34)  # 18 pixels for a title
    assert (sheet[:, 22:42, 4:34] == 10).all()
    assert (sheet[:, 22:42, 38:68] == 20).all()
    assert (sheet[:, 64:84, 4:34] == 30).all()
    assert (sheet[:, 64:84, 38:68] == 255).all()
    titled = draw.grid(images, 4, titles=["a", "b", "a title wider than its image"])
    assert titled.shape[2] > 4 * 4 + 3 * 30
    with pytest.raises(ValueError, match="shorter"):
        draw.grid(images, 2, titles=["a"])


def test_a_grid_of_images_of_several_sizes_is_laid_out_by_line_and_column():
    shapes = [(20, 30), (20, 30), (60, 10), (50, 10), (5, 7)]
    images = [torch.full((3, *shape), i, dtype=torch.uint8) for i, shape in enumerate(shapes)]
    sheet = draw.grid(images, 2, titles=[""] * 5, padding=1)
    assert sheet.shape == (3, 20 + 60 + 5 + 3 * 18 + 4, 30 + 30 + 3)
    assert (sheet[:, 58:118, 11:21] == 2).all()  # in the middle of its column
    assert (sheet[:, 58:108, 42:52] == 3).all()
    assert [(sheet == i).all(0).sum() for i in range(5)] == [600, 600, 600, 500, 35]


def test_a_legend_shows_the_palette():
    swatches = draw.legend(NAMES, colors=draw.palette(3))
    for color in draw.palette(3):
        assert (swatches == torch.tensor(color, dtype=torch.uint8)[:, None, None]).all(0).any()


def test_a_png_comes_back_exactly_and_leaves_no_other_file(tmp_path):
    image = torch.randint(256, (3, 17, 23), generator=torch.manual_seed(0)).byte()
    draw.save_png(image, tmp_path / "new" / "a.png")
    assert torch.equal(read(tmp_path / "new" / "a.png"), image)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_a_figure_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.png"
    draw.save_png(GREY, path)
    with pytest.raises(ValueError, match="frac"):  # found only while the PNG is being written
        draw.curves(path, {"a": ([1, 2], [1, 2])}, xlabel=r"$\frac{$", ylabel="")
    assert torch.equal(read(path), GREY)
    assert len(list(tmp_path.iterdir())) == 1


def test_curves_are_valid_images(tmp_path):
    lines = {"FL": ([1, 2, 3], [3.0, float("nan"), 0.1]), "CE": ([1], [2.0])}
    draw.curves(tmp_path / "a.png", lines, xlabel="step", ylabel="loss")
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.format == "PNG"
        assert len(image.convert("L").getcolors()) > 5


def test_bars_show_what_was_measured_and_leave_out_what_nobody_has(tmp_path):
    panels = {"AP": {"a": 31.2, "b": None}, "AP_small": {"a": None, "b": None}}
    draw.bars(tmp_path / "one.png", {"AP": panels["AP"]})
    draw.bars(tmp_path / "two.png", panels)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 20) or []}
    assert draw.palette(1)[0] in colors
