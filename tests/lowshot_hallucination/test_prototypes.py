"""Prototype learners against values by hand, SciPy's distances and closed forms."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from lowshot_hallucination.hallucinate import Support
from lowshot_hallucination.model import Learner, PrototypeLearner, build_learner
from lowshot_hallucination.net.episode import permute, to_support
from lowshot_hallucination.net.prototypes import cosine, masked_mean, shrink, squared_euclidean


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make(width: int = 6, **options: object) -> PrototypeLearner:
    """A learner in float64, in the mode of the test."""
    learner = build_learner(Learner(**options), width)  # type: ignore[arg-type]
    assert isinstance(learner, PrototypeLearner)
    return learner.double().eval()


def episode(counts: tuple[int, ...] = (1, 3, 2), width: int = 6) -> tuple[Support, Tensor]:
    """A support with NaN as padding, and 5 queries."""
    support = Support(torch.rand(len(counts), 4, width).double(), torch.tensor(counts))
    support.features[~support.mask] = torch.nan
    return support, torch.rand(5, width).double()


def test_two_classes_by_hand() -> None:
    features = torch.tensor([[[0.0, 0.0], [2.0, 0.0]], [[0.0, 4.0], [0.0, 2.0]]])
    support, query = Support(features, torch.tensor([2, 2])), torch.tensor([[1.0, 1.0]])
    learner = make(2, method="nearest").float()
    assert learner.prototypes(support).tolist() == [[1.0, 0.0], [0.0, 3.0]]
    p = learner(support, query).softmax(1)
    torch.testing.assert_close(p, torch.tensor([[0.9820138, 0.0179862]]), rtol=0, atol=1e-7)
    expected = torch.tensor([[-1.0, -5.0]]).log_softmax(1)
    torch.testing.assert_close(learner(support, query).log_softmax(1), expected)


def test_the_softmax_is_that_of_squared_distances() -> None:
    queries, prototypes = torch.randn(7, 9).double(), torch.randn(4, 9).double()
    expected = torch.from_numpy(-cdist(queries.numpy(), prototypes.numpy(), "sqeuclidean"))
    linear = squared_euclidean(queries, prototypes)
    torch.testing.assert_close(linear.softmax(1), expected.softmax(1), rtol=0, atol=1e-12)
    nearest = make(9, method="nearest")(Support(prototypes[:, None], torch.ones(4).long()), queries)
    assert nearest.argmax(1).tolist() == expected.argmax(1).tolist()


def test_a_large_common_part_of_all_features_costs_no_digits() -> None:
    queries, prototypes = torch.randn(7, 9).double(), torch.randn(4, 9).double()
    far = squared_euclidean((queries + 300).float(), (prototypes + 300).float())
    exact = squared_euclidean((queries + 300).float().double(), (prototypes + 300).float().double())
    torch.testing.assert_close(far.double(), exact, rtol=0, atol=1e-3)


def test_means_leave_the_padding_out() -> None:
    support, _ = episode()
    means = masked_mean(support.features[support.mask], support.mask)
    for k, n in enumerate(support.counts.tolist()):
        torch.testing.assert_close(means[k], support.features[k, :n].mean(0))


@pytest.mark.parametrize("method", ["pn", "pmn", "nearest", "mn"])
def test_padding_has_no_effect_on_logits_or_gradients(method: str) -> None:
    support, queries = episode()
    learner = build_learner(Learner(method=method), 6).double().eval()
    other = Support(support.features.nan_to_num(7.0).requires_grad_(), support.counts)
    logits = learner(other, queries)
    torch.testing.assert_close(logits, learner(support, queries), rtol=0, atol=1e-12)
    logits.logsumexp(1).sum().backward()
    assert other.features.grad is not None
    assert not other.features.grad[~support.mask].any()
    assert other.features.grad[support.mask].any()


@pytest.mark.parametrize("method", ["pn", "nearest"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine", "centred_cosine"])
def test_a_class_scores_the_same_beside_classes_of_other_shots(method: str, distance: str) -> None:
    learner = make(method=method, distance=distance)
    learner.set_centre(torch.rand(20, 6))
    support, queries = episode((1, 4, 2))
    mixed = learner(support, queries)
    for first, second in pairwise(range(3)):
        pair = permute(support, torch.tensor([first, second]))
        alone = learner(Support(pair.features[:, : int(pair.counts.max())], pair.counts), queries)
        difference = mixed[:, first] - mixed[:, second]
        torch.testing.assert_close(alone[:, 0] - alone[:, 1], difference, rtol=0, atol=1e-12)


def test_prototypes_do_not_depend_on_order_or_repetition_of_examples() -> None:
    learner = make(method="pn")
    support, queries = episode((4, 4))
    expected = learner(support, queries)
    turned = Support(support.features.flip(1), support.counts)
    twice = Support(support.features.repeat(1, 2, 1), support.counts * 2)
    for same in (turned, twice):
        torch.testing.assert_close(learner(same, queries), expected, rtol=0, atol=1e-12)
    swapped = learner(permute(support, torch.tensor([1, 0])), queries)
    torch.testing.assert_close(swapped, expected.flip(1), rtol=0, atol=1e-12)


def test_cosines_are_those_of_scipy_and_zero_features_have_cosine_0_and_a_gradient() -> None:
    queries, prototypes = torch.randn(5, 6).double(), torch.randn(3, 6).double()
    expected = 1 - cdist(queries.numpy(), prototypes.numpy(), "cosine")
    np.testing.assert_allclose(cosine(queries, prototypes).numpy(), expected, atol=1e-12)
    nothing = torch.zeros(1, 6, requires_grad=True)
    score = cosine(nothing, prototypes.float())
    assert score.tolist() == [[0.0, 0.0, 0.0]]
    score.sum().backward()
    assert nothing.grad is not None
    assert nothing.grad.isfinite().all()


@pytest.mark.parametrize("method", ["pn", "nearest", "pmn"])
def test_shrinkage_of_1_is_the_plain_learner(method: str) -> None:
    learner = make(method=method)
    learner.set_centre(torch.rand(20, 6))
    support, queries = episode()
    means = learner.prototypes(support)
    assert torch.equal(shrink(means, torch.rand(6).double(), 1.0), means)
    learner.shrink = 0.0
    assert torch.equal(learner.prototypes(support), learner.centre.expand(3, -1))
    learner.shrink = 0.3
    expected = learner.centre + 0.3 * (means - learner.centre)
    torch.testing.assert_close(learner.prototypes(support), expected)
    assert not torch.equal(learner(support, queries), make(method=method)(support, queries))


def test_prototypes_that_shrink_towards_the_origin_rank_as_the_dot_product() -> None:
    learner = make(method="nearest", shrink="1e-9")
    learner.set_centre(torch.zeros(1, 6))
    support, queries = episode()
    means = masked_mean(support.features[support.mask], support.mask)
    order = learner(support, queries).argsort(1)
    assert torch.equal(order, (queries @ means.T).argsort(1))
    learner.shrink = 1.0
    assert not torch.equal(order, learner(support, queries).argsort(1))


def test_centred_cosine_about_the_origin_is_the_cosine() -> None:
    plain, centred = (
        make(method="nearest", distance=each) for each in ("cosine", "centred_cosine")
    )
    support, queries = episode()
    centred.set_centre(torch.zeros(3, 6))
    assert torch.equal(centred(support, queries), plain(support, queries))
    centre = torch.rand(6).double()
    centred.set_centre(centre[None])
    moved = Support(support.features - centre, support.counts)
    torch.testing.assert_close(centred(support, queries), plain(moved, queries - centre))


def test_the_centre_is_the_mean_of_embedded_features_and_is_asked_for() -> None:
    learner = make(method="pn", distance="centred_cosine")
    support, queries = episode()
    with pytest.raises(ValueError, match="set_centre"):
        learner(support, queries)
    features = torch.rand(11, 6).half()
    learner.float().set_centre(features)
    torch.testing.assert_close(learner.centre, learner.embed(features.float()).mean(0))
    again = make(method="pn", distance="centred_cosine").float()
    again.load_state_dict(learner.state_dict())
    single = Support(support.features.float(), support.counts)
    assert torch.equal(again(single, queries.float()), learner(single, queries.float()))


def test_while_an_embedding_learns_the_centre_is_the_mean_of_the_prototypes() -> None:
    learner = make(method="pn", distance="centred_cosine").train()
    support, queries = episode()
    means = learner.prototypes(support)
    expected = cosine(learner.embed(queries) - means.mean(0), means - means.mean(0))
    torch.testing.assert_close(learner(support, queries), 10 * expected)
    nearest = make(method="nearest", distance="centred_cosine")
    nearest.set_centre(torch.rand(3, 6))
    expected = nearest(support, queries)
    assert torch.equal(nearest.train()(support, queries), expected)


def test_features_in_float16_give_what_their_values_in_float32_give() -> None:
    learner = build_learner(Learner(method="pn"), 6).eval()
    support = Support(torch.rand(3, 4, 6).half(), torch.tensor([1, 3, 4]))
    queries = torch.rand(5, 6).half()
    wide = Support(support.features.float(), support.counts)
    assert torch.equal(learner(support, queries), learner(wide, queries.float()))


def test_distances_stay_in_float32_under_autocast() -> None:
    learner = build_learner(Learner(method="nearest"), 6)
    support = Support(torch.rand(3, 4, 6), torch.tensor([1, 3, 4]))
    queries = torch.rand(5, 6)
    expected = learner(support, queries)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(learner(support, queries), expected)


@pytest.mark.parametrize("distance", ["euclidean", "cosine", "centred_cosine"])
def test_gradients_of_the_prototypical_network(distance: str) -> None:
    learner = make(4, method="pn", distance=distance).train()
    support, queries = episode((1, 3), 4)
    features = support.features.nan_to_num().requires_grad_()

    def logits(features: Tensor, queries: Tensor, *_: Tensor) -> Tensor:
        return learner(Support(features, support.counts), queries)

    inputs = (features, queries.requires_grad_(), *learner.parameters())
    assert torch.autograd.gradcheck(logits, inputs)


def test_parameters_are_those_of_the_embedding_and_the_scale() -> None:
    def count(**options: object) -> int:
        learner = build_learner(Learner(**options), 512)  # type: ignore[arg-type]
        return sum(each.numel() for each in learner.parameters())

    layer = 512 * 512 + 512
    assert count() == 2 * layer + 1
    assert count(learn_scale=False, embed_layers=5) == 5 * layer
    assert count(learn_scale=False, embed_hidden=64) == 2 * 512 * 64 + 64 + 512
    assert count(method="nearest") == 0
    lstm = 4 * (512 * (512 + 512) + 2 * 512)
    cell = 4 * (512 * (1024 + 512) + 2 * 512)
    assert count(method="pmn") == count(method="mn") == 2 * lstm + cell + 1


def test_the_embedding_is_the_perceptron_of_the_paper() -> None:
    learner = make(method="pn")
    first, second = (each for each in learner.embed.layers if isinstance(each, nn.Linear))
    x = torch.randn(3, 6).double()
    expected = (x @ first.weight.T + first.bias).relu() @ second.weight.T + second.bias
    torch.testing.assert_close(learner.embed(x), expected)
    learner = make(method="pn", final_relu=True)
    assert learner.embed(x).min() == 0


def test_labels_with_gaps_give_one_prototype_each() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [9.0, 9.0]])
    support, classes = to_support(features, torch.tensor([2, 0, 2, -5]))
    assert classes.tolist() == [-5, 0, 2]
    assert support.counts.tolist() == [1, 1, 2]
    prototypes = make(2, method="nearest").prototypes(support)
    assert prototypes.tolist() == [[9.0, 9.0], [0.0, 1.0], [2.0, 0.0]]


def test_examples_of_a_class_keep_their_order() -> None:
    labels = torch.randint(5, (40,)) * 3
    support, classes = to_support(torch.arange(40.0)[:, None], labels)
    for k, label in enumerate(classes):
        rows = support.features[k, : support.counts[k], 0]
        assert rows.tolist() == (labels == label).nonzero()[:, 0].tolist()


def test_features_and_labels_that_do_not_fit_stop() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\) and labels of shape \(2,\)"):
        to_support(torch.rand(3, 2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="at least 1"):
        to_support(torch.rand(0, 2), torch.tensor([], dtype=torch.long))
    with pytest.raises(ValueError, match="float32: give integers"):
        to_support(torch.rand(2, 2), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "protonet"}, "learner.method=protonet: choose from pn, mn"),
        ({"distance": "l1"}, "learner.distance=l1"),
        ({"shrink": "1.5"}, "learner.shrink=1.5: give a number from 0 to 1, or cv"),
        ({"shrink": "some"}, "learner.shrink=some"),
        ({"hops": 0}, "learner.hops=0: give 1 or more"),
        ({"scale": -1.0}, "learner.scale=-1.0: give 0 or more"),
        ({"order_ensemble": 3}, "learner.order_ensemble=3 has no effect with learner.method=pn"),
        ({"method": "nearest", "embed": "mlp"}, "learner.embed=mlp has no effect"),
        ({"method": "nearest", "final_relu": True}, "learner.final_relu=True has no effect"),
        ({"method": "mn", "distance": "cosine"}, "learner.distance=cosine has no effect"),
        ({"method": "mn", "shrink": "cv"}, "learner.shrink=cv has no effect"),
        ({"method": "mn", "mn_score": "hg", "scale": 3.0}, "learner.scale has no effect"),
        ({"method": "pmn", "distance": "centred_cosine"}, "Give euclidean or cosine"),
    ],
)
def test_an_option_without_such_a_value_or_effect_stops(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Learner(**options)


@pytest.mark.parametrize("method", ["logistic"])
def test_classifiers_that_are_fitted_to_each_test_are_no_learners(method: str) -> None:
    with pytest.raises(ValueError, match=r"baselines/logistic\.py"):
        build_learner(Learner(method=method), 4)
