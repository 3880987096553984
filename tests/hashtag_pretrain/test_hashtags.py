"""The loss over tags, replication factors and the length of a run: `hashtag_pretrain/hashtags.py`.

The reference values are the paper's formulas, computed by hand or densely.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hashtag_pretrain.hashtags import (
    check_tags,
    dense_loss,
    dense_targets,
    find_threshold,
    hashtag_loss,
    hits,
    image_factors,
    images_processed,
    prior_bias,
    recall,
    sigmoid_loss,
    tag_factors,
)

Loss = Callable[[Tensor, Tensor], Tensor]
LOGITS = torch.tensor([[1.0, 2.0, 3.0, 0.0], [0.5, -1.0, 2.0, 0.0]])
TAGS = torch.tensor([[0, 2], [3, -1]])
FREQUENCIES = np.array([0.5, 0.1, 0.01, 0.001])


def some_tags(rows: int, most: int, vocabulary: int, seed: int = 0) -> Tensor:
    """1 to `most` tags a row, the padding wherever it falls."""
    generator = torch.Generator().manual_seed(seed)
    tags = torch.rand(rows, vocabulary, generator=generator).argsort(1)[:, :most]
    padded = torch.rand(rows, most, generator=generator) < 0.4
    padded[torch.arange(rows), torch.randint(most, (rows,), generator=generator)] = False
    return tags.masked_fill(padded, -1)


def some_logits(rows: int, vocabulary: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)


def multi_hot(tags: Tensor, vocabulary: int) -> Tensor:
    """1 for the tags of each row, by plain loops."""
    target = torch.zeros(len(tags), vocabulary, dtype=torch.float64)
    for row, ids in enumerate(tags.tolist()):
        for tag in ids:
            if tag >= 0:
                target[row, tag] = 1
    return target


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x)[0]


# The loss


def test_the_loss_of_two_images_is_the_value_by_hand() -> None:
    each = [hashtag_loss(LOGITS[i : i + 1], TAGS[i : i + 1]).item() for i in range(2)]
    assert each == pytest.approx([1.4401896, 2.3423495], abs=1e-6)
    assert hashtag_loss(LOGITS, TAGS).item() == pytest.approx(1.8912696, abs=1e-6)


def test_the_gradient_of_two_images_is_the_value_by_hand() -> None:
    x = LOGITS.clone().requires_grad_()
    expected = [-0.2064278, 0.1184414, 0.0719571, 0.0160293]
    expected += [0.0792224, 0.0176769, 0.3550499, -0.4519492]
    actual = gradient(hashtag_loss(x, TAGS), x).flatten().tolist()
    assert actual == pytest.approx(expected, abs=1e-6)


def test_the_sparse_loss_and_its_gradient_equal_dense_cross_entropy() -> None:
    tags, x = some_tags(40, 5, 30), some_logits(40, 30).requires_grad_()
    target = multi_hot(tags, 30)
    target = target / target.sum(1, keepdim=True)
    ours, theirs = hashtag_loss(x, tags), F.cross_entropy(x, target)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, x), (x.softmax(1) - target).detach() / 40)


def test_gradcheck_of_both_losses() -> None:
    tags, x = some_tags(4, 3, 6), some_logits(4, 6).requires_grad_()
    for loss in (hashtag_loss, sigmoid_loss):
        assert torch.autograd.gradcheck(lambda z, f=loss: f(z, tags), x)
        assert torch.autograd.gradgradcheck(lambda z, f=loss: f(z, tags), x)


def test_the_loss_of_one_tag_each_is_cross_entropy() -> None:
    x, labels = some_logits(20, 9), torch.arange(20) % 9
    torch.testing.assert_close(hashtag_loss(x, labels[:, None]), F.cross_entropy(x, labels))


def test_a_constant_added_to_the_logits_of_an_image_does_not_change_the_loss() -> None:
    tags, x = some_tags(20, 4, 12), some_logits(20, 12)
    shifted = x + 50 * torch.randn(20, 1, dtype=torch.float64)
    torch.testing.assert_close(hashtag_loss(shifted, tags), hashtag_loss(x, tags))


def test_neither_the_order_of_the_tags_nor_the_padding_changes_the_loss() -> None:
    x = some_logits(1, 6)
    forms = [[2, 5, -1], [5, -1, 2], [-1, -1, 5, 2, -1]]
    losses = [hashtag_loss(x, torch.tensor([form])).item() for form in forms]
    assert losses == pytest.approx([losses[0]] * 3)


def test_half_precision_logits_are_summed_in_float32() -> None:
    tags, x = some_tags(64, 4, 17_000), some_logits(64, 17_000)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = x.to(dtype)
        loss = hashtag_loss(rounded, tags)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(hashtag_loss(rounded.double(), tags).item(), abs=1e-5)
        assert loss.item() == pytest.approx(hashtag_loss(x, tags).item(), abs=1e-2)


def test_a_logit_of_minus_infinity_elsewhere_leaves_loss_and_gradient_finite() -> None:
    x = torch.tensor([[-torch.inf, 1.0, 2.0]], requires_grad=True)  # column 0 stands for padding
    loss = hashtag_loss(x, torch.tensor([[1, -1]]))
    assert loss.item() == pytest.approx(math.log(math.e + math.e**2) - 1)
    assert gradient(loss, x).isfinite().all()


@pytest.mark.slow
def test_the_compiled_loss_equals_the_eager_one() -> None:
    tags, x = some_tags(8, 3, 20), some_logits(8, 20)
    compiled = torch.compile(hashtag_loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, tags), hashtag_loss(x, tags))
    assert compiled(x, tags.masked_fill(torch.arange(8)[:, None] == 5, -1)).isnan()


FAULTS = [
    ([[0, 2], [-1, -1]], "row 1 has no tag"),
    ([[0, 2], [4, -1]], r"row 1 .* 4 .* outside a vocabulary of 4"),
    ([[-2, 2], [3, -1]], r"row 0 .* -2 .* outside"),
    ([[0, 2], [3, 3]], "row 1 names tag 3 twice"),
]


@pytest.mark.parametrize("loss", [hashtag_loss, sigmoid_loss])
@pytest.mark.parametrize(("tags", "message"), FAULTS)
def test_an_empty_row_and_a_wrong_tag_are_refused(loss: Loss, tags: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(LOGITS, torch.tensor(tags))


@pytest.mark.parametrize(("tags", "message"), FAULTS)
def test_a_batch_is_checked_before_it_goes_to_the_device(tags: list, message: str) -> None:
    check_tags(TAGS, 4)
    with pytest.raises(ValueError, match=message):
        check_tags(torch.tensor(tags), 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("loss", [hashtag_loss, sigmoid_loss])
def test_on_a_gpu_a_faulty_row_makes_the_loss_nan_and_a_sound_batch_equals_the_cpu(
    loss: Loss,
) -> None:
    for tags, _ in FAULTS:
        assert loss(LOGITS.cuda(), torch.tensor(tags).cuda()).isnan()
    torch.testing.assert_close(loss(LOGITS.cuda(), TAGS.cuda()).cpu(), loss(LOGITS, TAGS))


def test_logits_and_tags_of_different_batches_are_refused() -> None:
    for tags in (TAGS[:1], TAGS[0]):
        with pytest.raises(ValueError, match=r"logits \(2, 4\) and tags"):
            hashtag_loss(LOGITS, tags)


def test_the_sigmoid_loss_of_two_images_is_the_value_by_hand() -> None:
    each = [sigmoid_loss(LOGITS[i : i + 1], TAGS[i : i + 1], over="sum").item() for i in range(2)]
    assert each == pytest.approx([3.1819243, 4.1074142], abs=1e-6)


@pytest.mark.parametrize("over", ["sum", "mean"])
def test_the_sigmoid_loss_and_its_gradient_equal_binary_cross_entropy(over: str) -> None:
    tags, x = some_tags(40, 5, 30), some_logits(40, 30).requires_grad_()
    theirs = F.binary_cross_entropy_with_logits(x, multi_hot(tags, 30), reduction="none")
    theirs = (theirs.sum(1) if over == "sum" else theirs.mean(1)).mean()
    ours = sigmoid_loss(x, tags, over=over)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, x), gradient(theirs, x))


def test_the_sigmoid_loss_knows_two_ways_to_join_the_tags() -> None:
    with pytest.raises(ValueError, match="'sum' or 'mean'"):
        sigmoid_loss(LOGITS, TAGS, over="max")


def test_the_prior_bias_makes_the_sigmoid_answer_with_the_frequencies() -> None:
    frequencies = torch.tensor([0.5, 0.01, 0.25])
    torch.testing.assert_close(prior_bias(frequencies).sigmoid(), frequencies)
    assert prior_bias(torch.tensor([0.0, 1.0])).isfinite().all()


# Dense targets


def test_dense_targets_are_one_over_k_and_give_the_same_loss() -> None:
    tags, x = some_tags(40, 5, 30), some_logits(40, 30)
    targets = dense_targets(tags, 30)
    hot = multi_hot(tags, 30)
    torch.testing.assert_close(targets.double(), hot / hot.sum(1, keepdim=True))
    dense, sparse = dense_loss(x, targets.double()), hashtag_loss(x, tags)
    assert dense.item() == pytest.approx(sparse.item(), rel=1e-6)


def test_soft_labels_that_do_not_sum_to_1_are_refused() -> None:
    targets = dense_targets(TAGS, 4)
    assert dense_loss(LOGITS, targets).item() == pytest.approx(1.8912696, abs=1e-6)
    for wrong in (targets * 2, targets * torch.tensor([[1.0], [0.0]])):
        with pytest.raises(ValueError, match="sums to"):
            dense_loss(LOGITS, wrong)


# Held-out tags


def test_hits_and_recall_of_three_images_by_hand() -> None:
    logits = torch.tensor([[4.0, 3, 2, 1, 0], [0, 1, 2, 3, 4], [2, 4, 0, 3, 1]])
    tags = torch.tensor([[0, 4, -1], [0, 1, 3], [2, -1, -1]])
    assert hits(logits, tags, 1).tolist() == [True, False, False]
    assert hits(logits, tags, 2).tolist() == [True, True, False]
    assert hits(logits, tags, 9).tolist() == [True, True, True]
    assert recall(logits, tags, 1).tolist() == pytest.approx([1 / 2, 0, 0])
    assert recall(logits, tags, 3).tolist() == pytest.approx([1 / 2, 1 / 3, 0])
    assert recall(logits, tags, 4).tolist() == pytest.approx([1 / 2, 2 / 3, 0])


# Replication factors


def list_of(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Tags of images as ids (T,) and offsets (n + 1,)."""
    ids = np.array([tag for row in rows for tag in row], np.int32)
    return ids, np.cumsum([0, *map(len, rows)]).astype(np.int64)


def test_the_factors_of_four_tags_are_the_values_by_hand() -> None:
    def factors(rule: str) -> list[float]:
        return tag_factors(FREQUENCIES, 0.1, rule).tolist()

    assert factors("square_root") == pytest.approx([1, 1, 3.1622777, 10])
    assert factors("uniform") == pytest.approx([1, 1, 10, 100])
    assert factors("natural") == [1, 1, 1, 1]


def test_the_factors_equal_a_plain_copy_of_the_formula() -> None:
    def plain(f: float, t: float) -> float:  # as detectron2's code has it, not its docstring
        return max(1.0, math.sqrt(t / f))

    frequencies = np.random.default_rng(0).random(200) ** 4
    expected = [plain(f, 0.03) for f in frequencies]
    assert tag_factors(frequencies, 0.03, "square_root").tolist() == pytest.approx(expected)
    assert plain(0.015, 0.03) == pytest.approx(math.sqrt(2)), "half the threshold: not twice"


def test_a_tag_without_images_has_factor_1_and_nothing_is_divided_by_0() -> None:
    with np.errstate(all="raise"):
        for rule in ("natural", "square_root", "uniform"):
            assert tag_factors(np.array([0.0, 1e-4]), 0.1, rule)[0] == 1


def test_factors_are_capped() -> None:
    assert tag_factors(FREQUENCIES, 0.5, "uniform", most=20).tolist() == [1, 5, 20, 20]


def test_the_factor_of_an_image_is_that_of_its_rarest_tag_and_none_without_tags() -> None:
    factors = tag_factors(FREQUENCIES, 0.1, "square_root")
    rows = [[0, 3], [0, 1], [], [2, 0], [0], []]
    expected = [10, 1, 0, 3.1622777, 1, 0]
    assert image_factors(factors, list_of(rows)).tolist() == pytest.approx(expected)
    assert image_factors(factors, list_of([[0, 1], [0], []])).tolist() == [1, 1, 0]
    assert image_factors(factors, list_of([[], []])).tolist() == [0, 0]
    assert image_factors(factors, list_of([])).shape == (0,)


def test_image_factors_equal_a_loop() -> None:
    rng = np.random.default_rng(1)
    rows = [rng.choice(50, rng.integers(0, 6), replace=False).tolist() for _ in range(500)]
    factors = rng.random(50) * 9 + 1
    expected = [max((factors[tag] for tag in row), default=0) for row in rows]
    assert image_factors(factors, list_of(rows)).tolist() == expected
    with pytest.raises(ValueError, match=r"tag 50 .* vocabulary of 50"):
        image_factors(factors, list_of([[50]]))


def test_uniform_sampling_of_single_tags_flattens_their_frequencies() -> None:
    counts = 1000 // np.arange(1, 31)
    tags = list_of([[tag] for tag, count in enumerate(counts) for _ in range(count)])
    frequencies = counts / counts.sum()
    factors = tag_factors(frequencies, frequencies.max(), "uniform")
    realised = np.bincount(tags[0], image_factors(factors, tags))  # one tag each
    assert realised.tolist() == pytest.approx([1000] * 30, rel=0.01)
    root = tag_factors(frequencies, frequencies.max(), "square_root")
    realised = np.bincount(tags[0], image_factors(root, tags))
    assert realised.tolist() == pytest.approx((1000 * np.sqrt(counts / 1000)).tolist())


def zipf(images: int, vocabulary: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Tags of images by a Zipf law, and how many of the images have each."""
    rng = np.random.default_rng(2)
    p = np.arange(1, vocabulary + 1) ** -1.6
    rows = [
        np.unique(rng.choice(vocabulary, rng.integers(1, 4), p=p / p.sum())) for _ in range(images)
    ]
    tags = list_of([row.tolist() for row in rows])
    return tags, np.bincount(tags[0], minlength=vocabulary) / images


@pytest.mark.parametrize("rule", ["square_root", "uniform"])
@pytest.mark.parametrize("length", [3000, 3001.5, 4000, 9000, 50_000])
def test_the_threshold_for_a_length_of_the_list_gives_it_within_a_thousandth(
    rule: str, length: float
) -> None:
    tags, frequencies = zipf(3000, 40)

    def measure(threshold: float) -> float:
        return float(image_factors(tag_factors(frequencies, threshold, rule), tags).sum())

    threshold = find_threshold(length, measure, frequencies)
    assert measure(threshold) == pytest.approx(length, rel=1e-3)


def test_lengths_that_no_threshold_gives_are_refused() -> None:
    tags, frequencies = zipf(100, 10)

    def measure(rule: str, threshold: float) -> float:
        return float(image_factors(tag_factors(frequencies, threshold, rule), tags).sum())

    with pytest.raises(ValueError, match=r"90 images .* shorter than .* 100"):
        find_threshold(90, lambda t: measure("uniform", t), frequencies)
    with pytest.raises(ValueError, match="no threshold"):
        find_threshold(200, lambda t: measure("natural", t), frequencies)
    with pytest.raises(ValueError, match="no tag has an image"):
        find_threshold(200, lambda t: 100.0, np.zeros(3))


@pytest.mark.parametrize(
    ("frequencies", "threshold", "rule", "message"),
    [
        ([0.5], 0.1, "log", "natural, square_root or uniform"),
        ([0.5], 0.0, "uniform", "threshold is 0.0"),
        ([-0.5], 0.1, "uniform", "share of the images"),
        ([float("nan")], 0.1, "uniform", "share of the images"),
    ],
)
def test_impossible_factors_are_refused(
    frequencies: list[float], threshold: float, rule: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tag_factors(np.array(frequencies), threshold, rule)


# The length of a run


@pytest.mark.parametrize(
    ("images", "epochs", "steps"),
    [
        (1.28e6, 100, 15_873),
        (1e7, 14.513, None),
        (1e8, 3.219, None),
        (9.4e8, 2.098, 244_517),
        (3.5e9, 2, 868_056),
    ],
)
def test_images_processed_at_the_anchors(images: float, epochs: float, steps: int | None) -> None:
    processed = images_processed(int(images))
    assert processed / images == pytest.approx(epochs, abs=5e-4)
    if steps is not None:
        assert round(processed / 8064) == steps


def test_more_images_take_more_passes_and_fewer_epochs() -> None:
    sizes = np.unique(np.logspace(0, 11, 300).astype(np.int64))
    processed = np.array([images_processed(int(n)) for n in sizes])
    assert (np.diff(processed) > 0).all()
    assert (np.diff(processed / sizes) <= 1e-9).all()
    with pytest.raises(ValueError, match="at least 1"):
        images_processed(0)
