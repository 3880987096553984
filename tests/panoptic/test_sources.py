"""Panoptic maps from several sources, and how they are drawn."""

import colorsys
from itertools import pairwise

import pytest
import torch

from panoptic.figures import draw
from panoptic.files.categories import Category
from panoptic.files.entries import complete
from panoptic.merging.sources import Output, Thresholds, components, panoptic_map
from panoptic.metric.matching import Matching, Outcome

CATEGORIES = {
    7: Category(7, "cat", True),
    0: Category(0, "sky", False),
    3: Category(3, "dog", True),
    9: Category(9, "grass", False),
}


def output_of(semantic: torch.Tensor, *masks: torch.Tensor) -> Output:
    stacked = torch.stack(masks) if masks else torch.zeros(0, *semantic.shape, dtype=torch.bool)
    return Output(stacked, torch.ones(len(masks)), [7] * len(masks), semantic)


def test_components_are_connected_pixels_of_a_thing_class():
    semantic = torch.zeros(6, 12, dtype=torch.int64)  # category 0: sky
    semantic[1:3, 1:4] = 7
    semantic[3, 4] = 7  # over the corner
    semantic[1:3, 6:8] = 7
    semantic[5, 11] = 7  # too small
    ids, segments = components(semantic, Thresholds(stuff_area=1), {3, 7}, least=2)
    assert [(s["category_id"], s["area"]) for s in segments] == [(7, 7), (7, 4), (0, 60)]
    assert ids[5, 11] == 0
    complete(ids.numpy(), segments, where="components")


def test_oracles_take_their_part_from_the_truth():
    truth = torch.zeros(8, 8, dtype=torch.int32)
    truth[:4], truth[4:, :4], truth[4:, 4:6], truth[4:, 6:] = 1, 2, 3, 4
    segments = [
        {"id": 1, "category_id": 0},
        {"id": 2, "category_id": 7},
        {"id": 3, "category_id": 3, "iscrowd": 1},
        {"id": 4, "category_id": 9},
    ]
    options = {"thresholds": Thresholds(stuff_area=1)}
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, :4] = True
    output = output_of(torch.full((8, 8), 9), mask)
    ids, found = panoptic_map("oracle_semantic", output, truth, segments, CATEGORIES, **options)
    areas = {(s["category_id"], s["area"]) for s in found}
    assert areas == {(7, 16), (0, 24), (9, 8)}
    assert (ids[6:, :6] == 0).all()  # the true map knows things there, and they were not found
    ids, found = panoptic_map("oracle_instances", output, truth, segments, CATEGORIES, **options)
    assert {(s["category_id"], s["area"]) for s in found} == {(7, 16), (9, 48)}


def test_the_parts_are_those_of_the_merge():
    semantic = torch.zeros(8, 8, dtype=torch.int64)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, :4] = True
    output, truth = output_of(semantic, mask), torch.zeros(8, 8, dtype=torch.int32)
    areas = {}
    for source in ("merged", "things", "stuff"):
        _, found = panoptic_map(
            source, output, truth, [], CATEGORIES, thresholds=Thresholds(stuff_area=1)
        )
        areas[source] = {s["category_id"]: s["area"] for s in found}
    assert areas == {"merged": {7: 32, 0: 32}, "things": {7: 32}, "stuff": {0: 64}}


def test_small_images_have_small_limits_on_request():
    assert Thresholds().area((64, 96)) == 4096
    assert Thresholds(scale=True).area((64, 96)) == 82
    assert Thresholds(scale=True).area((480, 640)) == 4096


def test_the_error_map_shows_what_was_found_invented_and_missed():
    truth, prediction = torch.zeros(2, 6).int(), torch.zeros(2, 6).int()
    truth[0, :3], prediction[0, :2] = 1, 4  # a match, but for one pixel
    truth[1, :2], prediction[1, 1:3] = 2, 5
    matching = Matching(
        tp=[Outcome(1, 1, 4, 3, 2, 2, 3)],
        fp=[Outcome(1, 0, 5, 0, 2, 0, 2)],
        fn=[Outcome(1, 2, 0, 2, 0, 0, 2)],
        ignored=[],
        overlapping=[],
    )
    image = torch.zeros(3, 2, 6, dtype=torch.uint8)
    drawn = draw.errors(image, prediction, truth, matching, alpha=1.0, scale=9)
    middle = drawn[:, 4::9, 4::9].permute(1, 2, 0).tolist()
    found, border, invented, missed, both, ignored = map(list, draw.ERRORS.values())
    assert middle[0] == [found, found, border, ignored, ignored, ignored]
    assert middle[1] == [missed, both, invented, ignored, ignored, ignored]


def test_an_overlay_paints_segments_and_void_grey():
    ids = torch.tensor([[1, 1, 0, 0]]).int()
    categories = {1: Category(1, "a", False, (10, 200, 30))}
    image = torch.full((3, 1, 4), 100, dtype=torch.uint8)
    segments = [{"id": 1, "category_id": 1}]
    drawn = draw.overlay(image, ids, segments, categories, alpha=1.0)
    color, border, void = [10, 200, 30], [*draw.BOUNDARY], [*draw.VOID]
    assert drawn[:, 0].T.tolist() == [color, color, border, void]


def test_things_keep_the_hue_of_their_class_over_any_image():
    ids = torch.arange(1, 7).int().repeat_interleave(2)[None]
    category = Category(1, "a", True, (230, 80, 50))
    segments = [{"id": number, "category_id": 1} for number in range(1, 7)]
    image = torch.tensor([0, 60, 250], dtype=torch.uint8)[:, None, None].repeat(1, 1, 12)
    drawn = draw.overlay(image, ids, segments, {1: category})[:, 0, 1::2].T / 255
    found = [colorsys.rgb_to_hls(*color) for color in drawn.tolist()]
    wanted = colorsys.rgb_to_hls(*(value / 255 for value in category.color))
    assert [hue for hue, _, _ in found] == pytest.approx([wanted[0]] * 6, abs=0.01)
    assert all(abs(a[1] - b[1]) > 0.02 for a, b in pairwise(found))  # neighbours can be told apart
