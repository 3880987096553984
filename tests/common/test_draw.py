import math

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from common import draw

GREY = torch.full((3, 40, 60), 90, dtype=torch.uint8)
NAMES = ["cube", "sphere", "cone"]


def read(path):
    with Image.open(path) as picture:
        return pil_to_tensor(picture)


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
    picture = draw.boxes(GREY, torch.tensor([[10.0, 12, 30, 34]]), colors=[(255, 0, 0)])
    assert picture[:, 12, 10:31].T.tolist() == [[255, 0, 0]] * 21
    assert picture[:, 12:35, 30].T.tolist() == [[255, 0, 0]] * 23
    assert (picture[:, 14:33, 12:29] == 90).all()
    assert torch.equal(GREY, before)


def test_boxes_of_one_label_share_a_color():
    corners = torch.tensor([[2.0, 2, 10, 10], [30, 20, 50, 38]])
    picture = draw.boxes(GREY, corners)
    assert not torch.equal(picture[:, 2, 5], picture[:, 20, 40])
    picture = draw.boxes(GREY, corners, labels=[1, 1], names=["", "", ""])
    assert torch.equal(picture[:, 2, 5], picture[:, 20, 40])


def test_captions_stay_inside_the_picture_and_have_readable_ink():
    corners = torch.tensor([[0.0, 0, 20, 10], [55, 30, 60, 40]])
    for shade in ((255, 255, 0), (0, 0, 90)):
        picture = draw.boxes(
            GREY,
            corners,
            labels=[0, 1],
            scores=[0.5, 1.0],
            names=NAMES,
            colors=[shade] * 2,
            scale=4,
        )
        assert picture.shape == (3, 160, 240)
        plate = (picture == torch.tensor(shade, dtype=torch.uint8)[:, None, None]).all(0)
        ink = (picture < 70).all(0) if shade[0] else (picture > 185).all(0)
        assert plate[0].sum() > 40  # the first caption has no room above its box
        assert ink[:20].sum() > 20
        assert ink[100:, 160:].sum() > 20  # the second one would reach beyond the right side


def test_boxes_that_leave_the_picture_are_cut_and_no_boxes_are_fine():
    draw.boxes(GREY, torch.tensor([[-20.0, -5, 500, 60]]), scores=[0.3])
    assert torch.equal(draw.boxes(GREY, torch.zeros(0, 4)), GREY)


@pytest.mark.parametrize(
    ("corners", "options", "message"),
    [
        (torch.tensor([[5.0, 5, 1, 9]]), {}, "box 0 is"),
        (torch.tensor([[5.0, 5, float("nan"), 9]]), {}, "box 0 is"),
        (torch.zeros(2, 5), {}, r"\(M, 4\), not \(2, 5\)"),
        (torch.zeros(2, 4), {"labels": [1]}, "2 boxes come with 1 labels"),
        (torch.zeros(2, 4), {"colors": [(0, 0, 0)]}, "2 instances come with 1 colors"),
    ],
)
def test_boxes_that_cannot_be_drawn_are_named(corners, options, message):
    with pytest.raises(ValueError, match=message):
        draw.boxes(GREY, corners, **options)


def test_an_image_of_another_type_is_refused():
    with pytest.raises(ValueError, match="float32"):
        draw.boxes(GREY.float(), torch.zeros(0, 4))


def test_a_mask_is_see_through_inside_a_solid_contour():
    mask = torch.zeros(1, 40, 60, dtype=torch.bool)
    mask[0, 10:30, 20:50] = True
    picture = draw.masks(GREY, mask, colors=[(250, 10, 10)], alpha=0.5)
    assert picture[:, 10, 30].tolist() == [250, 10, 10]
    assert picture[:, 20, 35].tolist() == [170, 50, 50]
    assert (picture[:, ~mask[0]] == 90).all()
    assert draw.masks(GREY, mask[:0], scale=2).shape == (3, 80, 120)
    assert draw.masks(GREY, mask, scale=2).shape == (3, 80, 120)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        draw.masks(GREY, torch.zeros(1, 40, 61, dtype=torch.bool))


def test_a_map_paints_each_id_in_its_own_color_and_no_negative_id():
    ids = torch.tensor([[0, 0, 0], [3, 3, -1], [3, 3, -1]])
    picture = draw.label_map(ids, scale=3)
    assert picture[:, 1, 1].tolist() == list(draw.palette(4)[0])
    assert picture[:, 8, 1].tolist() == list(draw.palette(4)[3])
    assert picture[:, 8, 8].tolist() == [255, 255, 255]
    over = draw.label_map(torch.full((40, 60), 300), image=GREY, alpha=0.0)
    assert torch.equal(over, GREY)


def test_keypoints_without_label_are_not_drawn_and_limbs_need_both_ends():
    person = torch.tensor([[[5.0, 5, 2], [50, 5, 0], [5, 30, 1]]])
    picture = draw.keypoints(GREY, person, skeleton=[(0, 1), (0, 2)], colors=[(255, 0, 0)])
    assert (picture[:, 3:8, 10:60] == 90).all()
    assert picture[:, 18, 5].tolist() == [255, 0, 0]  # the limb
    assert picture[:, 5, 5].tolist() == [255, 0, 0]  # visible: a disc
    assert picture[:, 30, 5].tolist() == [255, 255, 255]  # hidden: a ring
    assert torch.equal(draw.keypoints(GREY, person[:0]), GREY)


def test_a_grid_holds_each_picture_unchanged_in_reading_order():
    images = [torch.full((3, 20, 30), value, dtype=torch.uint8) for value in (10, 20, 30)]
    sheet = draw.grid(images, 2, padding=4)
    assert sheet.shape == (3, 4 + 2 * 24, 4 + 2 * 34)
    assert (sheet[:, 4:24, 4:34] == 10).all()
    assert (sheet[:, 4:24, 38:68] == 20).all()
    assert (sheet[:, 28:48, 4:34] == 30).all()
    assert (sheet[:, 28:48, 38:68] == 255).all()
    titled = draw.grid([*images, GREY], 4, titles=["a", "b", "c", "a title wider than its picture"])
    assert titled.shape[1] > 40
    with pytest.raises(ValueError, match="3 images come with 1 titles"):
        draw.grid(images, 2, titles=["a"])
    with pytest.raises(ValueError, match="at least one"):
        draw.grid([], 2)


def test_a_grid_of_images_of_several_sizes_is_laid_out_by_line_and_column():
    shapes = [(20, 30), (20, 30), (60, 10), (50, 10), (5, 7)]
    images = [torch.full((3, *shape), i, dtype=torch.uint8) for i, shape in enumerate(shapes)]
    sheet = draw.grid(images, 2, padding=1)
    assert sheet.shape == (3, 20 + 60 + 5 + 4, 30 + 30 + 3)
    assert (sheet[:, 22:82, 11:21] == 2).all()  # in the middle of its column
    assert (sheet[:, 22:72, 42:52] == 3).all()
    assert [(sheet == i).all(0).sum() for i in range(5)] == [600, 600, 600, 500, 35]


def test_a_legend_shows_the_palette():
    swatches = draw.legend(NAMES)
    for color in draw.palette(3):
        assert (swatches == torch.tensor(color, dtype=torch.uint8)[:, None, None]).all(0).any()


def test_a_png_comes_back_exactly_and_leaves_no_other_file(tmp_path):
    image = torch.randint(256, (3, 17, 23), generator=torch.manual_seed(0)).byte()
    draw.save_png(image, tmp_path / "new" / "a.png")
    assert torch.equal(read(tmp_path / "new" / "a.png"), image)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_a_picture_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.png"
    draw.save_png(GREY, path)
    with pytest.raises(ValueError, match="frac"):  # found only while the PNG is being written
        draw.curves(path, {"a": ([1, 2], [1, 2])}, title=r"$\frac{$")
    assert torch.equal(read(path), GREY)
    assert len(list(tmp_path.iterdir())) == 1


def test_curves_are_valid_images(tmp_path):
    lines = {"FL": ([1, 2, 3], [3.0, float("nan"), 0.1]), "CE": ([1], [2.0])}
    draw.curves(tmp_path / "a.png", lines, title="t", xlabel="step", ylabel="loss", log=True)
    draw.curves(tmp_path / "b.png", {})
    for name in "ab":
        with Image.open(tmp_path / f"{name}.png") as picture:
            picture.load()
            assert picture.format == "PNG"
            assert len(picture.convert("L").getcolors()) > 5


def test_bars_show_what_was_measured_and_leave_out_what_nobody_has(tmp_path):
    panels = {"AP": {"a": 31.2, "b": None}, "AP_small": {"a": None, "b": None}}
    draw.bars(tmp_path / "one.png", {"AP": panels["AP"]})
    draw.bars(tmp_path / "two.png", panels)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20) or []}
    assert draw.palette(1)[0] in colors
