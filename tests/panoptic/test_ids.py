"""Segment ids: colours, areas and boxes, and new ids: unique, and near the colour of the class."""

import itertools

import numpy as np
import pytest

from panoptic.files.categories import Category
from panoptic.files.ids import (
    LIMIT,
    SegmentIds,
    _walk,
    id_to_rgb,
    measure,
    present,
    relabel,
)

BYTES = np.array([1, 256, 65536])  # of an id: red, green, blue
PERSON = Category(1, "person", True, (220, 20, 60))
GRASS = Category(10, "grass", False, (107, 142, 35))
TREE = Category(11, "tree", False, (107, 142, 35))  # the same colour
NIGHT = Category(12, "night", False)  # black, the colour of void


def categories(*given):
    return {category.id: category for category in given}


def distance(number, category):
    rgb = id_to_rgb(np.array(number)).astype(int)
    return int(np.abs(rgb - category.color).max())


def test_all_ids_survive_the_way_to_colours_and_back():
    every = np.arange(LIMIT, dtype=np.int32)
    rgb = id_to_rgb(every)
    assert rgb.dtype == np.uint8
    assert rgb.shape == (LIMIT, 3)
    assert np.array_equal(rgb @ BYTES, every)


def test_an_id_is_red_plus_256_green_plus_65536_blue():
    colours = np.random.default_rng(0).integers(0, 256, (7, 5, 3))
    expected = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
    assert np.array_equal(id_to_rgb(expected), colours)


@pytest.mark.parametrize("ids", [np.array([-1]), np.array([LIMIT]), np.array([0.5])])
def test_what_three_bytes_cannot_hold_is_no_id(ids):
    with pytest.raises(ValueError, match=r"ids (reach from|are of type)"):
        id_to_rgb(ids)


@pytest.mark.parametrize("order", ["C", "F"])
def test_areas_and_boxes_are_those_of_each_mask(order):
    generator = np.random.default_rng(1)
    coarse = generator.integers(0, 6, (7, 9)) * 2_000_000
    ids = np.asarray(np.kron(coarse, np.ones((5, 4), int)), order=order)
    ids[3, 2:20] = 77
    found, areas, boxes = measure(ids)
    assert found.tolist() == np.unique(ids).tolist()
    for number, area, (x, y, width, height) in zip(found, areas, boxes, strict=True):
        rows, columns = np.nonzero(ids == number)
        assert area == len(rows)
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_an_empty_map_has_no_ids(shape):
    assert [len(column) for column in measure(np.zeros(shape, int))] == [0, 0, 0]


def test_labels_are_replaced_and_others_become_void():
    labels = np.array([[65535, 3], [0, 3]])
    assert present(labels) == [0, 3, 65535]
    assert relabel(labels, {3: 9_000_000, 65535: 1}).tolist() == [[1, 9_000_000], [0, 9_000_000]]


def test_5000_instances_get_unique_ids_near_the_class_colour_and_never_void():
    new = SegmentIds(categories(PERSON, GRASS, TREE, NIGHT))
    stuff = [new.new(10), new.new(11), new.new(12)]
    instances = [new.new(1) for _ in range(5000)]
    assert len({0, *stuff, *instances}) == 5004
    assert max(distance(number, PERSON) for number in instances) <= 30
    assert stuff[0] == GRASS.color @ BYTES
    assert distance(stuff[1], TREE) <= 30
    assert distance(stuff[2], NIGHT) <= 30


def test_5000_segments_of_each_of_two_stuff_classes_of_one_colour_do_not_collide():
    new = SegmentIds(categories(GRASS, TREE))
    ids = [new.new(number) for number in (10, 11) * 5000]
    assert len({0, *ids}) == 10_001
    assert all(distance(number, GRASS) <= 30 for number in ids)


def test_when_the_colours_near_a_class_are_used_up_others_follow():
    new = SegmentIds(categories(NIGHT))
    near = [new.new(12) for _ in range(31**3 - 1)]
    assert max(distance(number, NIGHT) for number in near) == 30
    further = [new.new(12) for _ in range(1000)]
    assert min(distance(number, NIGHT) for number in further) == 31
    assert len({0, *near, *further}) == 31**3 + 1000


def test_ids_depend_on_the_calls_alone():
    first, second = (SegmentIds(categories(PERSON, GRASS)) for _ in range(2))
    assert [first.new(c) for c in (1, 10, 1, 1)] == [second.new(c) for c in (1, 10, 1, 1)]


def test_neighbouring_instances_differ_visibly():
    new = SegmentIds(categories(PERSON))
    colours = id_to_rgb(np.array([new.new(1) for _ in range(20)])).astype(int)
    steps = [np.abs(a - b).sum() for a, b in itertools.pairwise(colours)]
    assert min(steps) >= 10


def test_an_unknown_class_is_named():
    with pytest.raises(ValueError, match="category 7 is unknown"):
        SegmentIds(categories(PERSON)).new(7)


@pytest.mark.slow
def test_a_class_visits_every_colour():
    visited = np.bincount(np.fromiter(_walk(PERSON), np.int32), minlength=LIMIT)
    assert len(visited) == LIMIT
    assert visited[1:].min() == 1  # 0 is void
