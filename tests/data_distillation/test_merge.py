"""NMS, box voting, the threshold that matches counts; card, section 7, numbers 4, 7, 15 to 17."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.ops import batched_nms

from data_distillation.distill import (
    SCORINGS,
    Detections,
    Merge,
    count_to_keep,
    kth_largest,
    merge_boxes,
    vote,
)

SIZE = (300, 300)
TABLE = [  # x1, y1, x2, y2, score
    (10, 10, 50, 90, 0.9),
    (12, 8, 52, 92, 0.8),
    (11, 11, 49, 88, 0.6),
    (14, 10, 56, 94, 0.3),
    (100, 20, 140, 80, 0.7),
    (102, 24, 138, 84, 0.5),
    (30, 10, 70, 90, 0.4),
    (200, 200, 210, 210, 0.06),
]


def detections(rows, labels=None) -> Detections:
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    labels = torch.ones(len(table), dtype=torch.long) if labels is None else torch.tensor(labels)
    return Detections(table[:, :4], table[:, 4], labels)


def random_detections(count: int = 200, classes: int = 3, seed: int = 0) -> Detections:
    make = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=make) * 100
    side = 20 + torch.rand(count, 2, generator=make) * 60
    scores = torch.rand(count, generator=make)
    labels = torch.randint(1, classes + 1, (count,), generator=make)
    return Detections(torch.cat((corner, corner + side), 1), scores, labels)


# Boxes that more than one votes for; Detectron's widths change none of them.
VOTED = {
    0.9: {0: (10.4, 10.4, 49.6, 89.2)},
    0.8: {0: (10.956522, 9.565217, 50.434783, 90.173913)},
    0.5: {
        0: (11.307692, 9.615385, 51.076923, 90.615385),
        4: (100.833333, 21.666667, 139.166667, 81.666667),
    },
    1.0: {},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("threshold", VOTED)
def test_voting_gives_the_boxes_worked_out_by_hand(threshold, legacy):
    found = detections(TABLE)
    kept = batched_nms(found.boxes, found.scores, found.labels, 0.5)
    assert kept.tolist() == [0, 4, 6, 7]
    voted = vote(found.take(kept), found, Merge(vote=threshold), legacy=legacy)
    expected = [VOTED[threshold].get(number, TABLE[number][:4]) for number in kept.tolist()]
    wanted = torch.tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(voted.boxes, wanted, rtol=0, atol=1e-4)
    assert torch.equal(voted.scores, found.scores[kept])  # scoring "id"


@pytest.mark.parametrize(
    ("scoring", "beta", "score"),
    [
        ("id", 1, 0.9),
        ("avg", 1, 0.766667),
        ("iou_avg", 1, 0.770168),
        ("generalized_avg", 2, 0.776745),
        ("temp_avg", 2, 0.655726),
        ("quasi_sum", 0.5, 1.0),  # 1.327906, which is no probability
    ],
)
def test_scoring_gives_the_score_worked_out_by_hand(scoring, beta, score):
    found = detections(TABLE)
    voted = vote(found.take(torch.tensor([0])), found, Merge(vote=0.8, scoring=scoring, beta=beta))
    assert voted.scores.item() == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("scoring", ["temp_avg", "avg", "generalized_avg", "quasi_sum"])
def test_without_beta_four_scorings_are_the_mean(scoring):
    found = random_detections()
    mean = vote(found, found, Merge(vote=0.5, scoring="avg")).scores
    other = vote(found, found, Merge(vote=0.5, scoring=scoring)).scores
    torch.testing.assert_close(other, mean)


def test_detectrons_widths_let_a_box_vote_that_has_no_vote_otherwise():
    found = detections([(0, 0, 10, 10, 0.9), (0, 0, 10, 8, 0.6)])
    best, merge = found.take(torch.tensor([0])), Merge(vote=0.81)
    assert torch.equal(vote(best, found, merge).boxes, best.boxes)
    legacy = vote(best, found, merge, legacy=True).boxes
    torch.testing.assert_close(legacy, torch.tensor([[0, 0, 10, 9.2]]))


def vote_by_loops(kept, voters, threshold, scoring, beta):
    """Detectron's `box_voting` with two Python loops, and IoU of pycocotools."""

    def xywh(boxes):
        table = boxes.double().numpy()
        return np.concatenate((table[:, :2], table[:, 2:] - table[:, :2]), 1)

    iou = coco_mask.iou(xywh(kept.boxes), xywh(voters.boxes), [0] * len(voters.boxes))
    boxes, scores = [], []
    for i, label in enumerate(kept.labels):
        total, weight, ps, ious = np.zeros(4), 0.0, [], []
        for j, own in enumerate(voters.labels):
            if own == label and iou[i, j] >= threshold:
                p = voters.scores[j].item()
                total += p * voters.boxes[j].double().numpy()
                weight += p
                ps.append(p)
                ious.append(iou[i, j])
        p, w = np.array(ps), np.array(ious)
        hot = p ** (1 / beta) / (p ** (1 / beta) + (1 - p) ** (1 / beta))
        scores.append(
            {
                "id": kept.scores[i].item(),
                "temp_avg": hot.mean(),
                "avg": p.mean(),
                "iou_avg": (p * w).sum() / w.sum(),
                "generalized_avg": (p**beta).mean() ** (1 / beta),
                "quasi_sum": min(1.0, p.sum() / len(p) ** beta),
            }[scoring]
        )
        boxes.append(total / weight)
    return np.array(boxes), np.array(scores)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_voting_equals_two_loops(scoring):
    voters = random_detections()
    kept = voters.take(batched_nms(voters.boxes, voters.scores, voters.labels, 0.5))
    merge = Merge(vote=0.4, scoring=scoring, beta=0.7)
    boxes, scores = vote_by_loops(kept, voters, merge.vote, scoring, merge.beta)
    voted = vote(kept, voters, merge)
    np.testing.assert_allclose(voted.boxes.numpy(), boxes, atol=1e-4)
    np.testing.assert_allclose(voted.scores.numpy(), scores, atol=1e-6)


def test_at_iou_1_and_without_voting_boxes_are_those_of_nms():
    found = random_detections()
    kept = batched_nms(found.boxes, found.scores, found.labels, 0.5)
    kept = kept[found.scores[kept] > 0.05]
    for threshold in (0, 1):
        merged = merge_boxes(found, Merge(vote=threshold, limit=1000), SIZE)
        torch.testing.assert_close(merged.boxes, found.boxes[kept])
        assert torch.equal(merged.scores, found.scores[kept])
        assert torch.equal(merged.labels, found.labels[kept])


def test_a_single_box_and_identical_boxes_stay():
    for rows in ([(10, 10, 50, 90, 0.9)], [(10, 10, 50, 90, 0.9), (10, 10, 50, 90, 0.1)]):
        merged = merge_boxes(detections(rows), Merge(), SIZE)
        torch.testing.assert_close(merged.boxes, torch.tensor([[10.0, 10, 50, 90]]))
        assert merged.scores.tolist() == pytest.approx([0.9])


def test_a_class_has_no_say_in_another():
    found = detections(TABLE[:2], labels=[1, 2])
    merged = merge_boxes(found, Merge(vote=0.5), SIZE)
    assert torch.equal(merged.boxes, found.boxes)
    assert merged.labels.tolist() == [1, 2]


def test_suppressed_candidates_vote_but_not_those_at_the_score_threshold():
    rows = [(0, 0, 100, 100, 0.9), (0, 0, 98, 100, 0.5), (0, 0, 96, 100, 0.25)]
    merged = merge_boxes(detections(rows), Merge(score=0.25), SIZE)
    assert merged.boxes[0, 2].item() == pytest.approx((100 * 0.9 + 98 * 0.5) / 1.4)


def test_a_box_of_no_area_for_which_nobody_votes_stays():
    found = detections([(5, 5, 5, 9, 0.9), (0, 0, 10, 10, 0.8)])
    voted = vote(found, found, Merge(scoring="iou_avg"))
    assert torch.equal(voted.boxes, found.boxes)
    assert torch.equal(voted.scores, found.scores)


def test_labels_lie_in_the_image_and_have_an_area():
    rows = [(-5, -5, 40, 400, 0.9), (310, 10, 350, 20, 0.8), (299, 50, 301, 60, 0.7)]
    merged = merge_boxes(detections(rows), Merge(), SIZE)
    assert merged.boxes.tolist() == [[0, 0, 40, 300], [299, 50, 300, 60]]


def test_new_scores_put_labels_in_a_new_order():
    rows = [(0, 0, 10, 10, 0.9), (0, 0, 10, 10, 0.1), (50, 50, 60, 60, 0.8)]
    merged = merge_boxes(detections(rows), Merge(scoring="avg"), SIZE)
    assert merged.scores.tolist() == pytest.approx([0.8, 0.5])
    assert merged.boxes[0].tolist() == [50, 50, 60, 60]


@pytest.mark.parametrize("scoring", ["id", "avg"])
def test_ties_at_the_limit_stay(scoring):
    scores = (0.9, 0.9, 0.9, 0.5, 0.5, 0.5, 0.5)
    rows = [(20 * i, 0, 20 * i + 10, 10, score) for i, score in enumerate(scores)]
    for limit, count in ((5, 7), (3, 3), (2, 3), (9, 7)):
        merge = Merge(limit=limit, scoring=scoring)
        assert len(merge_boxes(detections(rows), merge, SIZE).boxes) == count


def test_no_candidates_are_no_labels():
    for scoring in SCORINGS:
        merged = merge_boxes(detections([]), Merge(scoring=scoring), SIZE)
        assert merged.boxes.shape == (0, 4)
        assert merged.scores.shape == merged.labels.shape == (0,)


def test_unknown_choices_stop_with_the_known_ones():
    with pytest.raises(ValueError, match=r"merge\.scoring=mean: give one of id, temp_avg"):
        Merge(scoring="mean")
    with pytest.raises(ValueError, match=r"merge\.heatmaps=probs: give prob or logit"):
        Merge(heatmaps="probs")


IMAGES = [[0.99, 0.95, 0.4, 0.1], [0.9, 0.9, 0.3], [0.85, 0.2, 0.05], []]
SCORES = torch.tensor(list(itertools.chain(*IMAGES)))


@pytest.mark.parametrize(
    ("instances", "labelled", "k", "threshold", "kept"),
    [
        (3, 2, 6, 0.4, 6),
        (5, 4, 5, 0.85, 5),
        (1, 2, 2, 0.95, 2),
        (3, 4, 3, 0.9, 4),  # a tie
        (10, 1, 40, -math.inf, 10),
        (0, 7, 0, math.inf, 0),
    ],
)
def test_the_threshold_is_the_one_worked_out_by_hand(instances, labelled, k, threshold, kept):
    assert count_to_keep(instances, labelled, len(IMAGES)) == k
    found = kth_largest(SCORES, k)
    assert found == pytest.approx(threshold)
    assert (found <= SCORES).sum() == kept


def test_the_threshold_matches_counts_best_of_all():
    make = np.random.default_rng(0)
    for _ in range(50):
        scores = torch.tensor(make.permutation(40)[: make.integers(1, 40)] / 40)
        labelled, images = make.integers(1, 9, 2).tolist()
        instances = int(make.integers(0, 30))
        wanted = instances / labelled
        errors = {
            t: abs((scores >= t).sum().item() / images - wanted) for t in [*scores.tolist(), 2.0]
        }
        found = kth_largest(scores, count_to_keep(instances, labelled, images))
        error = abs((scores >= found).sum().item() / images - wanted)
        assert error == pytest.approx(min(errors.values()), abs=1e-12)


def test_halves_go_up_and_large_counts_are_exact():
    assert [count_to_keep(instances, 2, 1) for instances in (1, 3, 5)] == [1, 2, 3]
    exact = Fraction(860_001 * 10**9 * 123_403, 118_287)
    assert count_to_keep(860_001 * 10**9, 118_287, 123_403) == math.floor(exact + Fraction(1, 2))


def test_no_images_are_no_labels_and_no_labelled_images_an_error():
    assert count_to_keep(5, 3, 0) == 0
    assert kth_largest(torch.zeros(0), 0) == math.inf
    assert kth_largest(torch.zeros(0), 3) == -math.inf
    with pytest.raises(ValueError, match="the labelled set has no image"):
        count_to_keep(5, 0, 3)


def test_a_threshold_keeps_float32_scores_exactly():
    scores = torch.rand(1000)
    for k in (1, 17, 1000):
        assert (scores >= kth_largest(scores, k)).sum() == k
