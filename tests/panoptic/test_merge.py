"""The merge: the official figures, an independent procedure on run lengths, and the variants."""

from functools import partial

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from common.coco.masks import run_lengths
from panoptic.merge import _claim_on_device, add_stuff, merge, remove_overlaps, scale_area
from panoptic.merging.deeplab import find_centers, group_pixels, merge_centers
from panoptic.merging.runs import merge_runs, pixels_of
from panoptic.quality import PanopticQuality

# pycocotools' own, about NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# 64 x 96 pixels; category, score, rows, columns
INSTANCES = [
    (1, 0.9, (4, 24), (4, 24)),
    (1, 0.8, (4, 24), (14, 34)),
    (2, 0.8, (4, 24), (15, 35)),
    (2, 0.7, (30, 50), (10, 30)),
    (1, 0.5, (30, 50), (25, 45)),
    (1, 0.49999, (52, 60), (60, 90)),
    (2, 0.6, (30, 50), (20, 26)),
    (1, 0.55, (0, 0), (0, 0)),
]
STUFF = [(10, (0, 32), (0, 96)), (11, (32, 64), (0, 40)), (12, (32, 64), (40, 96))]
THINGS = [(1, 400), (1, 200), (2, 400), (1, 300)]
ORACLE = [  # thresholds, category and area of each segment, void
    ({}, [*THINGS, (10, 2402), (11, 740), (12, 1702)], 0),
    (
        {"overlap": 0.45},
        [(1, 400), (2, 220), (2, 400), (1, 300), (10, 2382), (11, 740), (12, 1702)],
        0,
    ),
    ({"overlap": 0.8}, [*THINGS, (10, 2402), (11, 740), (12, 1702)], 0),
    (
        {"confidence": 0.6},
        [(1, 400), (1, 200), (2, 400), (10, 2432), (11, 920), (12, 1792)],
        0,
    ),
    ({"stuff_area": 740}, [*THINGS, (10, 2402), (11, 740), (12, 1702)], 0),
    ({"stuff_area": 741}, [*THINGS, (10, 2402), (12, 1702)], 740),
    ({"stuff_area": 1900}, [*THINGS, (10, 2402)], 2442),
]


def rectangle(rows, columns):
    mask = np.zeros((64, 96), bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def given(kind="map"):
    """Masks, scores, labels and the semantic map, or its masks."""
    masks = np.stack([rectangle(rows, columns) for *_, rows, columns in INSTANCES])
    scores = np.array([score for _, score, *_ in INSTANCES])
    stuff = [(category, rectangle(rows, columns)) for category, rows, columns in STUFF]
    semantic = sum(category * mask for category, mask in stuff)
    labels = [category for category, *_ in INSTANCES]
    return masks, scores, labels, semantic if kind == "map" else stuff


def by_run_lengths(masks, scores, labels, stuff, *, confidence=0.5, overlap=0.5, stuff_area=4096):
    """The procedure written plainly, with pycocotools alone: map, [(category, area), ...]."""
    codes = [rle.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    ids, segments, used = np.zeros(masks.shape[1:], int), [], None
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        area = rle.area(codes[i])
        if scores[i] < confidence or area == 0:
            continue
        shared = 0 if used is None else rle.area(rle.merge([used, codes[i]], intersect=True))
        if shared / area > overlap or shared == area:
            continue
        used = codes[i] if used is None else rle.merge([used, codes[i]])
        free = (rle.decode(codes[i]) == 1) & (ids == 0)
        segments.append((labels[i], int(free.sum())))
        ids[free] = len(segments)
    for category, mask in stuff:
        free = mask & (ids == 0)
        if free.sum() > 0 and free.sum() >= stuff_area:
            segments.append((category, int(free.sum())))
            ids[free] = len(segments)
    return ids, segments


def coded(mask):
    """Run lengths of a mask."""
    return run_lengths(rle.encode(np.asfortranarray(mask.astype(np.uint8))), *mask.shape)


def listed(segments):
    return [(segment["category_id"], segment["area"]) for segment in segments]


@pytest.mark.parametrize("kind", ["map", "masks"])
@pytest.mark.parametrize(("thresholds", "expected", "void"), ORACLE)
def test_the_merge_gives_the_official_scripts_areas(thresholds, expected, void, kind):
    ids, segments = merge(*given(kind), **{"stuff_area": 0, **thresholds})
    assert listed(segments) == expected
    assert (ids == 0).sum() == void
    assert [(ids == s["id"]).sum() for s in segments] == [s["area"] for s in segments]
    assert [s["id"] for s in segments] == list(range(1, len(segments) + 1))


def random_case(generator, count=25, size=(40, 56)):
    """Rectangles that overlap, with scores of which many are equal, and stuff masks."""
    masks = np.zeros((count, *size), bool)
    for mask in masks[1:]:  # the first is empty
        (y, x), (h, w) = generator.integers(0, 35, 2), generator.integers(1, 25, 2)
        mask[y : y + h, x : x + w] = generator.random(mask[y : y + h, x : x + w].shape) < 0.9
    scores = generator.integers(0, 11, count) / 10
    semantic = generator.integers(0, 5, (5, 7)).repeat(8, 0).repeat(8, 1)
    stuff = [(10 + k, semantic == k) for k in range(5)]
    return masks, scores, [int(k) for k in generator.integers(1, 4, count)], stuff, semantic + 10


def test_arrays_tensors_the_device_path_and_run_lengths_agree():
    generator = np.random.default_rng(0)
    for _ in range(25):
        masks, scores, labels, stuff, semantic = random_case(generator)
        limits = {
            "confidence": float(generator.integers(0, 11) / 10),
            "overlap": float(generator.integers(0, 11) / 10),
            "stuff_area": int(generator.integers(0, 300)),
        }
        ids, expected = by_run_lengths(masks, scores, labels, stuff, **limits)
        array, segments = merge(masks, scores, labels, stuff, **limits)
        assert isinstance(array, np.ndarray)
        assert array.dtype == np.int32
        assert listed(segments) == expected
        assert (array == ids).all()
        tensor, same = merge(
            torch.from_numpy(masks),
            torch.from_numpy(scores),
            torch.tensor(labels),
            torch.from_numpy(semantic),
            **limits,
        )
        assert isinstance(tensor, torch.Tensor)
        assert (tensor.numpy() == ids).all()
        assert same == segments
        runs = [coded(mask) for mask in masks]
        regions = [(category, coded(mask)) for category, mask in stuff]
        from_runs, same = merge_runs(runs, scores.tolist(), labels, regions, (40, 56), **limits)
        assert (from_runs == ids).all()
        assert same == segments
        found = remove_overlaps(
            masks, scores, confidence=limits["confidence"], overlap=limits["overlap"]
        )
        order = [
            i
            for i in np.argsort(-scores, kind="stable").tolist()
            if scores[i] >= limits["confidence"]
        ]
        owner, kept, areas = _claim_on_device(torch.from_numpy(masks), order, limits["overlap"])
        assert (owner.numpy() == found.owner).all()
        assert (kept, areas) == (found.kept, found.areas)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_map():
    masks, scores, labels, semantic = given()
    for thresholds, expected, _ in ORACLE:
        ids, segments = merge(
            torch.from_numpy(masks).cuda(),
            torch.from_numpy(scores).cuda(),
            labels,
            torch.from_numpy(semantic).cuda(),
            **{"stuff_area": 0, **thresholds},
        )
        on_cpu, _ = merge(masks, scores, labels, semantic, **{"stuff_area": 0, **thresholds})
        assert listed(segments) == expected
        assert (ids.cpu().numpy() == on_cpu).all()


def test_pixels_of_run_lengths_count_down_the_columns():
    for runs, expected in (
        ([6], []),
        ([0, 6], range(6)),
        ([2, 1, 1, 2], [2, 4, 5]),
        ([0, 1, 5], [0]),
    ):
        assert pixels_of(np.array(runs)).tolist() == [*expected]
    masks = [np.array([6])]
    stuff = [(10, np.array([0, 6])), (11, np.array([0, 6]))]
    ids, segments = merge_runs(masks, [0.9], [1], stuff[:1], (2, 3), stuff_area=0)
    assert listed(segments) == [(10, 6)]
    assert ids.tolist() == [[1, 1, 1]] * 2
    with pytest.raises(ValueError, match="category 10 has two masks"):
        merge_runs([], [], [], [stuff[0]] * 2, (2, 3))
    with pytest.raises(ValueError, match="score 1 is not a number"):
        merge_runs(masks * 2, [0.9, np.nan], [1, 1], [], (2, 3))


def test_equal_scores_keep_their_order_and_scores_stay_in_the_segments():
    masks = np.ones((3, 4, 4), bool)
    _, segments = merge(masks, np.full(3, 0.75), [5, 6, 7], np.zeros((4, 4), int), things={0})
    assert segments == [
        {"id": 1, "category_id": 5, "iscrowd": 0, "area": 16, "score": 0.75, "instance": 0}
    ]


def test_a_score_or_share_at_its_threshold_stays():
    masks = np.zeros((2, 1, 4), bool)
    masks[0, 0, :2] = masks[1, 0, 1:3] = True
    nothing = np.full((1, 4), -1)
    assert len(merge(masks, np.array([0.9, 0.5]), [1, 1], nothing)[1]) == 2
    assert len(merge(masks, np.array([0.9, 0.5]), [1, 1], nothing, overlap=0.4999)[1]) == 1
    assert len(merge(masks, np.array([0.9, 0.49999]), [1, 1], nothing)[1]) == 1


def test_a_limit_of_zero_lists_no_segment_without_pixels():
    masks = np.ones((1, 2, 2), bool)
    for semantic in (np.full((2, 2), 10), [(10, np.ones((2, 2), bool))]):
        ids, segments = merge(masks, np.ones(1), [1], semantic, stuff_area=0)
        assert [segment["category_id"] for segment in segments] == [1]
        assert (ids == 1).all()


def test_an_instance_that_is_hidden_altogether_is_no_segment_at_an_overlap_of_1():
    masks = np.zeros((3, 2, 4), bool)
    masks[0, :, :3] = masks[1, :, 1:3] = masks[2, :, 2:] = True
    scores, nothing = np.array([0.9, 0.8, 0.7]), np.full((2, 4), -1)
    _, segments = merge(masks, scores, [1, 2, 3], nothing, overlap=1)
    assert listed(segments) == [(1, 6), (3, 2)]
    _, kept, areas = _claim_on_device(torch.from_numpy(masks), [0, 1, 2], 1.0)
    assert (kept, areas) == ([0, 2], [6, 2])


def test_label_0_is_any_thing_in_detectron2s_maps_and_a_class_elsewhere():
    semantic = np.array([[0, 0, 1], [1, 255, -1]])
    none = np.zeros((0, 2, 3), bool), np.zeros(0), []
    ids, segments = merge(*none, semantic, stuff_area=0, things={0, 255})
    assert listed(segments) == [(1, 2)]
    assert ids.tolist() == [[0, 0, 1], [1, 0, 0]]
    _, segments = merge(*none, semantic, stuff_area=0, things={255})
    assert listed(segments) == [(0, 2), (1, 2)]


def test_stuff_masks_that_overlap_are_painted_in_their_order():
    left, right = (np.zeros((2, 4), bool) for _ in range(2))
    left[:, :3] = right[:, 1:] = True
    free = np.zeros((2, 4), int)
    for stuff in ([(10, left), (11, right)], [(11, left), (10, right)]):
        _, segments = add_stuff(free, stuff, stuff_area=0)
        assert listed(segments) == [(stuff[0][0], 6), (stuff[1][0], 2)]


def test_merging_leaves_the_quality_of_things_alone():
    generator = np.random.default_rng(1)
    categories = {1: True, 2: True, 3: True, **{10 + k: False for k in range(5)}}
    alone, merged = PanopticQuality(categories), PanopticQuality(categories)
    for _ in range(5):
        masks, scores, labels, stuff, _ = random_case(generator)
        truth = merge(masks[::2], scores[::2], labels[::2], stuff, confidence=0, stuff_area=0)
        shifted = np.roll(masks, 1, 1)
        merged.update(*merge(shifted, scores, labels, stuff, stuff_area=0), *truth)
        alone.update(*merge(shifted, scores, labels, [], stuff_area=0), *truth)
    assert alone.compute().things == merged.compute().things
    assert alone.compute().things.pq > 0
    assert merged.compute().stuff.pq > 0


def test_the_stuff_limit_can_be_scaled_to_an_images_size():
    assert scale_area(480, 640) == 4096
    assert scale_area(48, 64) == 41


def test_read_only_and_reversed_arrays_and_other_masks_orders_are_taken():
    masks, scores, labels, semantic = given()
    expected, _ = merge(masks, scores, labels, semantic, stuff_area=0)
    turned = np.asfortranarray(masks)[:, ::-1]
    scores.flags.writeable = False
    ids, _ = merge(turned, scores, labels, semantic[::-1], stuff_area=0)
    assert (ids == expected[::-1]).all()


def test_no_instances_and_no_pixels_give_no_segments():
    ids, segments = merge(torch.zeros(0, 3, 5, dtype=torch.bool), torch.zeros(0), [], [])
    assert ids.shape == (3, 5)
    assert segments == []
    assert merge(np.zeros((1, 0, 0), bool), np.ones(1), [1], np.zeros((0, 0), int))[1] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": np.zeros((8, 64, 96))}, r"masks must be bool \(N, H, W\), not float64"),
        ({"scores": np.ones(7)}, "8 masks come with scores of shape"),
        ({"scores": np.full(8, np.nan)}, "score 0 is not a number"),
        ({"labels": [1]}, "8 masks come with 1 labels"),
        ({"labels": np.full(8, 1.5)}, r"label 1\.5 is no category id"),
        ({"semantic": np.zeros((64, 96))}, "take the argmax"),
        ({"semantic": np.zeros((64, 95), int)}, r"the semantic map is \(64, 95\)"),
        ({"semantic": np.full((64, 96), 2**20)}, "the semantic map holds 1048576"),
        ({"semantic": [(10, np.zeros((64, 96)))]}, "the mask of category 10 must be bool"),
        ({"semantic": [(10, np.zeros((64, 96), bool))] * 2}, "category 10 has two masks"),
    ],
)
def test_parts_that_do_not_fit_are_named(change, message):
    parts = dict(zip(("masks", "scores", "labels", "semantic"), given(), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        merge(**parts)


@pytest.mark.parametrize("name", ["confidence", "overlap", "stuff_area"])
def test_a_threshold_that_is_not_a_number_is_named(name):
    for call in (lambda **nan: merge(*given(), **nan), partial(merge_runs, [], [], [], [], (2, 3))):
        with pytest.raises(ValueError, match=f"{name} is not a number"):
            call(**{name: np.nan})


def centred(ids):
    """Heat map with a peak at the middle of each id of a map, and the offsets to them."""
    heat, offsets = torch.zeros(ids.shape), torch.zeros(2, *ids.shape)
    for number in ids.unique().tolist():
        if number:
            places = (ids == number).nonzero().float()
            middle = places.mean(0).round()
            heat[tuple(middle.long())] = 0.5 + number / 10
            offsets[:, ids == number] = (middle - places).T
    return heat, offsets


def test_true_centres_and_offsets_give_back_the_instances():
    ids = torch.zeros(20, 30, dtype=torch.int32)
    ids[2:8, 2:9], ids[2:8, 9:15], ids[12:18, 10:20] = 1, 2, 3  # 1 and 2 touch
    semantic = torch.full((20, 30), 7)
    semantic[ids > 0] = 1
    semantic[ids == 3] = 2
    semantic[12, 10] = 1  # one pixel of the third is mistaken
    found, segments = merge_centers(semantic, *centred(ids), things={1, 2}, stuff_area=10)
    assert [(s["category_id"], s["area"]) for s in segments] == [
        *((2, 60), (1, 36), (1, 42), (7, 20 * 30 - 138)),
    ]
    assert segments[0]["score"] == pytest.approx(0.8)
    for number, segment in zip((3, 2, 1), segments, strict=False):
        assert ((found == segment["id"]) == (ids == number)).all()


def test_small_stuff_void_and_things_without_centre_stay_void():
    semantic = torch.tensor([[1, 1, 7, 8], [1, 1, 7, 255]])
    ids, segments = merge_centers(
        semantic,
        torch.zeros(2, 4),
        torch.zeros(2, 2, 4),
        things={1},
        stuff_area=2,
        void={255},
    )
    assert ids.tolist() == [[0, 0, 1, 0], [0, 0, 1, 0]]
    assert [segment["category_id"] for segment in segments] == [7]


def test_centres_are_peaks_above_the_threshold_and_the_hottest_are_kept():
    heat = torch.zeros(9, 9)
    heat[1, 1], heat[1, 2], heat[7, 7], heat[7, 1] = 0.9, 0.8, 0.5, 0.1
    centers, found = find_centers(heat, kernel=3)
    assert centers.tolist() == [[1, 1], [7, 7]]
    assert found.tolist() == pytest.approx([0.9, 0.5])
    assert find_centers(heat, kernel=3, top=1)[0].tolist() == [[1, 1]]
    with pytest.raises(ValueError, match="odd number"):
        find_centers(heat, kernel=4)


def test_pixels_go_to_the_nearest_centre_whatever_the_chunk(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(12, 17, generator=generator) < 0.7
    offsets = 5 * torch.randn(2, 12, 17, generator=generator)
    centers = torch.randint(0, 12, (6, 2), generator=generator)
    groups = group_pixels(centers, offsets, chosen)
    for y, x in torch.cartesian_prod(torch.arange(12), torch.arange(17)).tolist():
        if not chosen[y, x]:
            assert groups[y, x] == 0
            continue
        lead = torch.tensor([y, x]) + offsets[:, y, x]
        distances = (centers - lead).square().sum(1)
        assert distances[groups[y, x] - 1] == pytest.approx(distances.min().item())
    monkeypatch.setattr("panoptic.merging.deeplab.CHUNK", 30)
    assert (group_pixels(centers, offsets, chosen) == groups).all()
