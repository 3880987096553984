"""Which classes have masks: the paper's splits, and those of a user's file."""

import json
import re

import numpy as np
import pytest

from common.coco.dataset import Categories
from common.coco.fields import category_names
from maskx_rcnn.inputs.splits import SIZES, VOC, draw_classes, split_classes

# COCO's classes by rising id, and the ids that are in use of 1..90.
NAMES = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear,
zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball,
kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup,
fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut,
cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush""".replace("\n", " ").split(", ")
UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
IDS = [number for number in range(1, 91) if number not in UNUSED]
COCO = Categories(IDS, NAMES, "instances.json")
FOUR = Categories([3, 5, 9, 40], ["disc", "ring", "square", "plus"], "few.json")


def ids(labels: list[int]) -> list[int]:
    return [IDS[label] for label in labels]


def test_voc_has_the_ids_of_the_official_code():
    voc, rest = split_classes("voc", COCO)
    assert voc == [*range(7), 8, *range(14, 20), 39, 56, 57, 58, 60, 62]
    assert ids(voc) == [1, 2, 3, 4, 5, 6, 7, 9, *range(16, 22), 44, 62, 63, 64, 67, 72]
    assert [NAMES[label] for label in voc] == VOC
    assert len(rest) == 60
    assert split_classes("nonvoc", COCO) == (rest, voc)


def test_random_splits_are_drawn_in_the_order_of_the_official_code():
    first = [61, 57, 77, 6, 45, 8, 35, 73, 9, 59, 12, 27, 34, 63, 47, 54, 55, 13, 50, 66]
    assert draw_classes(20, 1, 80) == first
    assert split_classes("random20_1", COCO)[0] == sorted(first)
    drawn = {}
    for trial in range(1, 6):
        for size in SIZES:
            chosen, rest = split_classes(f"random{size}_{trial}", COCO)
            assert len(chosen) == size
            assert sorted(chosen + rest) == list(range(80))
            drawn[tuple(chosen)] = size, trial
    assert len(drawn) == 25
    # The draws of a trial follow each other: 30 of trial 1 depends on the 20 drawn before.
    random = np.random.RandomState(3)
    for trial in (1, 2):
        for size in (20, 30, 40, 50, 60):
            assert draw_classes(size, trial, 80) == random.choice(80, size, replace=False).tolist()


def test_every_second_class_all_and_random_ones_of_few():
    assert split_classes("even", FOUR) == ([0, 2], [1, 3])
    assert split_classes("odd", FOUR) == ([1, 3], [0, 2])
    assert split_classes("all", FOUR) == ([0, 1, 2, 3], [])
    chosen, rest = split_classes("random3_2", FOUR)
    assert (len(chosen), sorted(chosen + rest)) == (3, [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"A": ["square", "disc"]}, ([0, 2], [1, 3])),
        ({"A": [9, 3]}, ([0, 2], [1, 3])),
        ({"A": ["plus", 3], "B": [5]}, ([0, 3], [1])),
        ({"A": ["disc", 3], "B": [5, "ring"]}, ([0], [1])),
    ],
    ids=["names", "ids, which are no labels", "9 in neither", "named twice"],
)
def test_a_file_names_classes_or_their_ids_and_b_is_the_rest(tmp_path, content, expected):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(content))
    assert split_classes(str(file), FOUR) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"A": ["dics"]}', "'dics' is no class of the data set; did you mean disc?"),
        ('{"A": [0]}', "0 is no class of the data set; few.json has others."),
        ('{"A": [true]}', "True is no class of the data set"),
        ('{"A": [["disc"]]}', "['disc'] is no class of the data set; did you mean disc?"),
        ('{"A": ["disc"], "B": ["rings"]}', "did you mean ring?"),
        ('{"A": ["disc", "ring"], "B": [5]}', "category 5 is in A and in B"),
        ('{"A": []}', "leaves A or B empty"),
        ('{"A": ["disc"], "B": []}', "leaves A or B empty"),
        ('{"A": ["disc", "ring", "square", "plus"]}', "leaves A or B empty"),
        ('{"B": ["disc"]}', 'names no classes: write {"A": ["person", ...], "B": [...]}'),
        ('{"A": ["disc"], "B": "ring"}', "names no classes"),
        ('{"A": ["disc"], "b": ["ring"]}', "names no classes"),
        ('["disc"]', "names no classes"),
        ('{"A": ["disc"', "is not JSON, or was cut off"),
    ],
)
def test_a_fault_of_a_file_is_one_sentence_with_its_name(tmp_path, content, message):
    file = tmp_path / "mine.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        split_classes(str(file), FOUR)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "categories", "message"),
    [
        ("vocs", COCO, "data.masks=vocs is no split: give voc, nonvoc"),
        ("voc", FOUR, "voc: 'person' is no class of the data set"),
        ("random25_1", COCO, "draws 20, 30, 40, 50, 60 of 80 classes"),
        ("random20_0", COCO, "in trials 1, 2"),
        ("random4_1", FOUR, "here are 4"),
        ("random0_1", FOUR, "here are 4"),
        ("odd", Categories([1], ["one"]), "leaves A or B empty of 1 classes"),
        ("absent.json", FOUR, "absent.json does not exist"),
    ],
)
def test_a_split_that_does_not_fit_is_named(name, categories, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        split_classes(name, categories)


def test_classes_that_have_boxes_only_are_in_b_and_change_no_named_split(tmp_path):
    joined = Categories([*IDS, 91, 92], [*NAMES, "cell", "platelet"], "instances.json")
    for name in ("voc", "nonvoc", "even", "odd", "all", "random20_1", "random60_5"):
        chosen, rest = split_classes(name, COCO)
        assert split_classes(name, joined, added=2) == (chosen, [*rest, 80, 81])
    with pytest.raises(ValueError, match="voc: 'person' is no class"):
        split_classes("voc", Categories([1, 2], ["cell", "person"], "few.json"), added=1)
    file = tmp_path / "mine.json"
    file.write_text('{"A": ["dog"], "B": ["cell", "cat"]}')
    assert split_classes(str(file), joined, added=2) == ([16], [15, 80])
    file.write_text('{"A": ["dog", "cell"]}')
    with pytest.raises(ValueError, match=r"category 91 is in A, but of data.boxes_only"):
        split_classes(str(file), joined, added=2)


def test_a_name_of_two_classes_asks_for_their_ids(tmp_path):
    names = list(category_names([{"id": n, "name": "cell"} for n in (4, 7)]).values())
    twice = Categories([4, 7, 9], [*names, "dog"], "few.json")
    file = tmp_path / "mine.json"
    file.write_text('{"A": ["cell"]}')
    with pytest.raises(ValueError, match=r"'cell' is listed twice; use their ids, \[4, 7\]"):
        split_classes(str(file), twice)
    file.write_text('{"A": [7]}')
    assert split_classes(str(file), twice) == ([1], [0, 2])
