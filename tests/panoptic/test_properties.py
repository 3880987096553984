"""What PQ must not depend on: order, ids, batches, processes, the library that holds the maps."""

import pickle

import numpy as np
import pytest
import torch

from panoptic.metric import peers
from panoptic.metric.matching import PAPER, _assign
from panoptic.metric.overlaps import LIMIT, _batch_on_device, batch_overlaps, overlaps
from panoptic.quality import PanopticQuality, summarise

THINGS = {7: True, 3: True, 10: False, 200: False}
Pair = tuple[np.ndarray, list[dict], np.ndarray, list[dict]]


def some_map(seed: int, *, void: bool, crowd: bool) -> tuple[np.ndarray, list[dict]]:
    """Random rectangles over each other, int32 (24, 32)."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((24, 32), np.int32)
    keys = rng.choice(LIMIT - 1, 12, replace=False) + 1
    ids[:] = 0 if void else keys[0]
    for key in keys[1:].tolist():
        (y, x), (h, w) = rng.integers(0, (20, 28)), rng.integers(3, 14, 2)
        ids[y : y + h, x : x + w] = key
    listed = [
        {
            "id": int(key),
            "category_id": int(rng.choice(list(THINGS))),
            "iscrowd": int(crowd and rng.random() < 0.3),
        }
        for key in keys
        if (ids == key).any()
    ]
    return ids, listed


def jittered(ids: np.ndarray, listed: list[dict], seed: int) -> tuple[np.ndarray, list[dict]]:
    """A prediction: moved by some pixels, some categories changed, no crowds."""
    rng = np.random.default_rng(seed)
    moved = np.roll(ids, rng.integers(-3, 4, 2), (0, 1))
    moved[:2] = 0 if (ids == 0).any() else moved[:2]
    present = set(np.unique(moved).tolist())
    found = []
    for segment in listed:
        category = segment["category_id"] if rng.random() < 0.8 else int(rng.choice(list(THINGS)))
        if segment["id"] in present:
            found.append({"id": segment["id"], "category_id": category})
    return moved, found


def some_pairs(count: int = 12, *, void: bool = True, crowd: bool = True) -> list[Pair]:
    pairs = []
    for seed in range(count):
        truth = some_map(seed, void=void, crowd=crowd)
        pairs.append((*jittered(*truth, 100 + seed), *truth))
    return pairs


def score(pairs: list[Pair], **rules) -> PanopticQuality:
    metric = PanopticQuality(THINGS, **rules)
    for i, pair in enumerate(pairs):
        metric.update(*pair, image=i)
    return metric


def counts(metric: PanopticQuality) -> list:
    return metric.sums[:, 1:4].tolist()


def assert_same(one: PanopticQuality, other: PanopticQuality) -> None:
    assert counts(one) == counts(other)
    torch.testing.assert_close(one.sums, other.sums, rtol=0, atol=1e-12)
    assert one.count == other.count


def test_random_maps_score_as_the_straightforward_version():
    pairs = some_pairs(30)
    sized = []
    for prediction, predicted, truth, true in pairs:
        areas = [{**s, "area": int((truth == s["id"]).sum())} for s in true]
        sized.append((prediction, predicted, truth, areas))
    expected = torch.tensor(
        list(peers.panoptic_quality(sized, THINGS).values()), dtype=torch.float64
    )
    torch.testing.assert_close(score(pairs).sums[:, :4], expected, rtol=0, atol=1e-12)
    assert_same(score(sized, areas="json"), score(pairs))
    assert (expected[:, 1:].sum(0) > 10).all()  # all of TP, FP and FN occur


def test_truth_and_prediction_may_change_places_without_void_and_crowds():
    pairs = some_pairs(void=False, crowd=False)
    forth = score(pairs).compute()
    back = score([(t, ts, p, ps) for p, ps, t, ts in pairs]).compute()
    for group in ("all", "things", "stuff"):
        one, other = getattr(forth, group), getattr(back, group)
        assert (one.pq, one.sq, one.rq, one.n) == pytest.approx(
            (other.pq, other.sq, other.rq, other.n), abs=1e-12
        )
    assert 0.1 < forth.all.pq < 0.9


def test_the_order_of_images_and_segments_changes_nothing():
    pairs = some_pairs()
    turned = [(p, ps[::-1], t, ts[::-1]) for p, ps, t, ts in pairs[::-1]]
    assert_same(score(pairs, **PAPER), score(turned, **PAPER))


def test_other_ids_change_nothing():
    def renamed(ids: np.ndarray, listed: list[dict]) -> tuple[np.ndarray, list[dict]]:
        other = {segment["id"]: i + 1 for i, segment in enumerate(listed[::-1])} | {0: 0}
        moved = np.vectorize(other.get)(ids).astype(np.uint8)
        return moved, [{**segment, "id": other[segment["id"]]} for segment in listed]

    pairs = some_pairs()
    compact = [(*renamed(p, ps), *renamed(t, ts)) for p, ps, t, ts in pairs]
    assert_same(score(pairs), score(compact))


def test_metrics_of_parts_merge_to_that_of_the_whole():
    pairs = some_pairs()
    whole = score(pairs, keep_images=True)
    first = score(pairs[:5], keep_images=True)
    second = PanopticQuality(THINGS, keep_images=True)
    for i, pair in enumerate(pairs[5:], 5):
        second.update(*pair, image=i)
    first.merge(pickle.loads(pickle.dumps(second)))
    assert_same(whole, first)
    assert first.images == list(range(12))
    for one, other in zip(whole.records, first.records, strict=True):
        np.testing.assert_array_equal(one, other)


def test_sums_add_up_over_processes():
    pairs = some_pairs()
    parts = [score(pairs[:7]), score(pairs[7:])]

    def exchanged(value: torch.Tensor) -> torch.Tensor:  # what rank 0 gets from a sum of two
        count = torch.full((1, 5), float(parts[1].count), dtype=torch.float64)
        return value + torch.cat([parts[1].sums, count])

    assert_same(parts[0].reduce(exchanged), score(pairs))
    assert parts[0].count == 7
    states = [part.state_dict() for part in parts]
    states[0]["sums"] += states[1]["sums"]
    states[0]["count"] += states[1]["count"]
    metric = PanopticQuality(THINGS)
    metric.load_state_dict(states[0])
    assert_same(metric, score(pairs))


@pytest.mark.parametrize("keep_images", [False, True])
def test_a_saved_metric_goes_on(keep_images, tmp_path):
    pairs = some_pairs()
    torch.save(score(pairs[:4], keep_images=keep_images).state_dict(), tmp_path / "metric.pt")
    metric = PanopticQuality(THINGS, keep_images=keep_images)
    metric.load_state_dict(torch.load(tmp_path / "metric.pt", weights_only=True))
    for i, pair in enumerate(pairs[4:], 4):
        metric.update(*pair, image=i)
    whole = score(pairs, keep_images=keep_images)
    assert_same(metric, whole)
    if keep_images:
        assert metric.images == whole.images
        np.testing.assert_array_equal(metric.records.iou, whole.records.iou)


def test_metrics_that_do_not_fit_are_not_mixed():
    metric = PanopticQuality(THINGS)
    for other, message in (
        (PanopticQuality({**THINGS, 5: True}), "The categories .5. are not those"),
        (PanopticQuality(dict(reversed(THINGS.items()))), "order"),
        (PanopticQuality(THINGS, threshold=0.75), "follow other rules"),
        (PanopticQuality(THINGS, keep_images=True), "choose the same"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.merge(other)
    with pytest.raises(ValueError, match="The saved categories"):
        metric.load_state_dict(PanopticQuality({1: True}).state_dict())
    with pytest.raises(ValueError, match="keep_images=False"):
        PanopticQuality(THINGS, keep_images=True).load_state_dict(metric.state_dict())
    with pytest.raises(ValueError, match="keep_images=True"):
        _ = metric.records


def test_a_batch_gives_what_single_images_give():
    pairs = some_pairs()
    predictions, predicted, truths, true = (list(part) for part in zip(*pairs, strict=True))
    for stack in (np.stack, lambda maps: torch.from_numpy(np.stack(maps))):
        metric = PanopticQuality(THINGS, keep_images=True)
        images = list(range(12))
        metric.update_batch(stack(predictions), predicted, stack(truths), true, images=images)
        assert_same(metric, score(pairs))
        assert metric.images == images
    with pytest.raises(ValueError, match="12 predicted and 12 true maps, 12 and 11 lists"):
        metric.update_batch(np.stack(predictions), predicted, np.stack(truths), true[1:])
    broken = [*true[:3], true[3][1:], *true[4:]]
    with pytest.raises(ValueError, match="image 3 of the batch: the map of the truth has id"):
        metric.update_batch(np.stack(predictions), predicted, np.stack(truths), broken)
    assert metric.count == 12


@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.uint32])
def test_tensors_give_what_arrays_give(kind):
    pairs = some_pairs()
    tensors = [
        (torch.from_numpy(p).to(kind), ps, torch.from_numpy(t).to(kind), ts)
        for p, ps, t, ts in pairs
    ]
    assert_same(score(pairs), score(tensors))


def devices() -> list:
    gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    return ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, gpu])]


@pytest.mark.parametrize("device", devices())
def test_the_way_of_the_gpu_counts_the_same_overlaps(device):
    pairs = some_pairs()
    truths = torch.from_numpy(np.stack([t for _, _, t, _ in pairs])).to(device)
    predictions = torch.from_numpy(np.stack([p for p, _, _, _ in pairs])).to(device)
    names = [f"image {i}: " for i in range(12)]
    found = _batch_on_device(truths, predictions, names)
    for one, other in zip(found, batch_overlaps(truths.cpu(), predictions.cpu()), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    predictions[4, 3, 2] = LIMIT
    with pytest.raises(ValueError, match=f"image 4: the prediction has id {LIMIT} in its map"):
        _batch_on_device(truths, predictions, names)
    assert _batch_on_device(truths[:0], predictions[:0], []) == []
    assert _batch_on_device(truths[:1, :0], predictions[:1, :0], names[:1])[0].pixels.size == 0


def test_overlaps_are_those_of_a_table_of_all_pixels():
    rng = np.random.default_rng(0)
    for ids in (rng.integers(0, 5, (2, 40, 50)), rng.integers(0, LIMIT, (2, 40, 50))):
        truth, prediction = ids
        found = overlaps(truth, prediction[:, ::-1])  # not contiguous
        both = np.stack([truth.ravel(), prediction[:, ::-1].ravel()])
        pairs, pixels = np.unique(both, axis=1, return_counts=True)
        np.testing.assert_array_equal(np.stack(found[:2]), pairs)
        np.testing.assert_array_equal(found.pixels, pixels)
        assert all(part.dtype == np.int64 for part in found)


def test_ids_whose_hashes_collide_are_kept_apart():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, LIMIT, (400, 500))  # 200,000 pairs share 65,536 hashes
    found = overlaps(truth, truth[::-1])
    assert len(found.pixels) == len(np.unique(truth << 24 | truth[::-1]))
    assert found.pixels.sum() == truth.size


def test_the_optimal_assignment_at_one_half_is_the_unique_matching():
    for pair in some_pairs(30):
        matching = PanopticQuality(THINGS).update(*pair)
        assert sorted(_assign(matching.tp)) == sorted(matching.tp)


def test_below_one_half_no_other_assignment_has_a_greater_iou():
    from itertools import permutations

    for pair in some_pairs(20):
        matching = PanopticQuality(THINGS, threshold=0).update(*pair)
        for category in THINGS:
            iou = {
                (o.truth, o.prediction): o.iou
                for o in matching.overlapping
                if o.category == category
            }
            rows, columns = sorted({t for t, _ in iou}), sorted({p for _, p in iou})
            if not 0 < len(rows) <= 6 or len(columns) > 6:
                continue
            columns += [-1] * len(rows)  # no partner
            most = max(
                sum(iou.get(each, 0.0) for each in zip(rows, chosen, strict=True))
                for chosen in set(permutations(columns, len(rows)))
            )
            total = sum(o.iou for o in matching.tp if o.category == category)
            assert total == pytest.approx(most, abs=1e-12)


def test_a_lower_threshold_never_has_fewer_matches():
    found = [score(some_pairs(), threshold=t).sums[:, 1].sum() for t in (0, 0.25, 0.5, 0.75)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]


def test_pq_is_sq_times_rq_for_each_class_and_every_weight():
    metric = score(some_pairs())
    for alpha in (0.125, 0.5, 1):
        for one in summarise(metric.sums, THINGS, alpha=alpha).classes.values():
            assert one.pq == pytest.approx(one.sq * one.rq, abs=1e-15)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 8), (5, 13), (40, 60)])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.uint64])
def test_shared_pixels_are_those_of_numpys_unique(size, kind):
    generator = np.random.default_rng(size[1])
    most = min(np.iinfo(kind).max, LIMIT - 1)
    for largest in (1, 200, most):
        for repeats in (1, 5):  # noise, and runs
            coarse = generator.integers(0, largest, (2, *size), dtype=kind, endpoint=True)
            t, p = coarse.repeat(repeats, axis=2)
            keys = t.astype(np.int64) << 24 | p.astype(np.int64)
            expected, pixels = np.unique(keys, return_counts=True)
            found = overlaps(t, p)
            assert np.array_equal(found.truth << 24 | found.prediction, expected)
            assert np.array_equal(found.pixels, pixels)
            assert {column.dtype for column in found} == {np.dtype(np.int64)}
