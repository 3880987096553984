"""Matching networks against PyTorch's LSTMs run step by step, and their symmetries."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowshot_hallucination import model
from lowshot_hallucination.hallucinate import Support
from lowshot_hallucination.model import Learner, build_learner
from lowshot_hallucination.net.episode import permute
from lowshot_hallucination.net.matching import Attention, Context, class_orders, tile


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make(width: int = 6, **options: object) -> Any:
    """A learner in float64, in the mode of the test."""
    return build_learner(Learner(**options), width).double().eval()  # type: ignore[arg-type]


def without_context(learner: Any) -> Any:
    """LSTMs that give 0 whatever they read."""
    for name, each in learner.named_parameters():
        if name.startswith(("context", "attention")):
            nn.init.zeros_(each)
    return learner


def episode(counts: tuple[int, ...] = (1, 3, 2), width: int = 6) -> tuple[Support, Tensor]:
    support = Support(torch.rand(len(counts), 4, width).double(), torch.tensor(counts))
    support.features[~support.mask] = torch.nan
    return support, torch.rand(5, width).double()


def stepwise(lstm: nn.LSTM, sequence: Tensor, ending: str) -> Tensor:
    """One direction of an LSTM, an LSTMCell step by step, in the order of the sequence."""
    cell = nn.LSTMCell(lstm.input_size, lstm.hidden_size).double()
    cell.load_state_dict({name: getattr(lstm, f"{name}_l0{ending}") for name in cell.state_dict()})
    state, outputs = None, []
    for row in sequence:
        state = cell(row, state)
        outputs.append(state[0])
    return torch.stack(outputs)


def test_the_context_is_the_sequence_and_two_lstms() -> None:
    context, sequence = Context(6).double(), torch.randn(5, 6).double()
    backward = stepwise(context.lstm, sequence.flip(0), "_reverse").flip(0)
    expected = sequence + stepwise(context.lstm, sequence, "") + backward
    torch.testing.assert_close(context(sequence), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_query_reads_the_examples_as_the_equations_say(dtype: torch.dtype) -> None:
    attention = Attention(6, hops=3).to(dtype)
    f, g = (torch.randn(n, 6, dtype=dtype, requires_grad=True) for n in (4, 7))
    h, c = f, torch.zeros_like(f)
    for _ in range(3):
        r = (h @ g.T).softmax(1) @ g
        h, c = attention.cell(torch.cat((f, r), 1), (h, c))
        h = h + f
    read = attention(f, g)
    torch.testing.assert_close(read, h)
    expected = torch.autograd.grad(h.square().sum(), (f, g))
    torch.testing.assert_close(torch.autograd.grad(read.square().sum(), (f, g)), expected)


@pytest.mark.parametrize("score", ["cosine", "hg"])
def test_without_lstms_classes_are_attention_on_the_examples(score: str) -> None:
    learner = without_context(make(method="mn", mn_score=score, mn_tile=False))
    support, queries = episode()
    rows = torch.cat([support.features[k, :n] for k, n in enumerate((1, 3, 2))])
    onehot = F.one_hot(torch.tensor([0, 1, 1, 1, 2, 2])).double()
    if score == "hg":
        logits = queries @ (rows / (rows.norm(dim=1, keepdim=True) + 1e-5)).T
    else:
        logits = 10 * F.cosine_similarity(queries[:, None], rows[None], dim=2)
    p = learner(support, queries).softmax(1)
    torch.testing.assert_close(p, logits.softmax(1) @ onehot)
    torch.testing.assert_close(p.sum(1), torch.ones(5).double())


def test_the_whole_matching_network_is_that_of_the_benchmark() -> None:
    learner = make(method="mn", mn_score="hg", mn_tile=False)
    support, queries = episode()
    rows = torch.cat([support.features[k, :n] for k, n in enumerate((1, 3, 2))])
    both, _ = learner.context.lstm(rows[:, None])
    g = rows + both[:, 0, :6] + both[:, 0, 6:]
    h, c = queries, torch.zeros_like(queries)
    for _ in range(5):
        h, c = learner.attention.cell(torch.cat((queries, (h @ g.T).softmax(1) @ g), 1), (h, c))
        h = h + queries
    p = (h @ (g / (g.norm(dim=1, keepdim=True) + 1e-5)).T).softmax(1)
    expected = torch.stack([p[:, :1].sum(1), p[:, 1:4].sum(1), p[:, 4:].sum(1)], 1)
    torch.testing.assert_close(learner(support, queries).softmax(1), expected)


def test_prototype_matching_is_the_same_cell_over_class_means() -> None:
    learner = make(method="pmn")
    support, queries = episode()
    means = torch.stack([support.features[k, :n].mean(0) for k, n in enumerate((1, 3, 2))])
    g = learner.context(means)
    f = learner.attention(queries, g)
    expected = 10 * F.cosine_similarity(f[:, None], g[None], dim=2)
    torch.testing.assert_close(learner(support, queries), expected)
    euclidean = make(method="pmn", distance="euclidean")
    euclidean.load_state_dict(learner.state_dict() | {"scale": torch.tensor(1.0)})
    expected = -torch.cdist(f, g).square()
    torch.testing.assert_close(euclidean(support, queries).softmax(1), expected.softmax(1))


def test_prototype_matching_without_lstms_is_the_nearest_cosine() -> None:
    support, queries = episode()
    pmn, nearest = (
        without_context(make(method=each, distance="cosine", scale=10.0))
        for each in ("pmn", "nearest")
    )
    torch.testing.assert_close(pmn(support, queries), nearest(support, queries))


def test_one_class_has_all_of_the_probability() -> None:
    support, queries = episode((2,))
    for method in ("pmn", "mn", "pn"):
        assert torch.equal(make(method=method)(support, queries).softmax(1), torch.ones(5, 1))


def test_repeated_examples_change_matching_networks_by_their_context_alone() -> None:
    support, queries = episode((4, 4))
    twice = Support(support.features.repeat(1, 2, 1), support.counts * 2)
    pmn = make(method="pmn")
    torch.testing.assert_close(pmn(twice, queries), pmn(support, queries))
    mn = make(method="mn", mn_tile=False)
    p = mn(support, queries).softmax(1)
    assert (mn(twice, queries).softmax(1) - p).abs().max() > 1e-4
    plain = without_context(mn)
    p = plain(support, queries).softmax(1)
    torch.testing.assert_close(plain(twice, queries).softmax(1), p)


@pytest.mark.parametrize("method", ["mn", "pmn"])
def test_the_order_of_classes_counts_through_the_lstms_alone(method: str) -> None:
    support, queries = episode()
    order = torch.tensor([2, 0, 1])
    learner = make(method=method)
    difference = learner(permute(support, order), queries) - learner(support, queries)[:, order]
    assert difference.abs().max() > 1e-4
    plain = without_context(learner)
    expected = plain(support, queries)[:, order]
    torch.testing.assert_close(plain(permute(support, order), queries), expected)


@pytest.mark.parametrize("method", ["mn", "pmn"])
def test_the_order_of_examples_in_a_class_counts_for_mn_and_not_for_pmn(method: str) -> None:
    support, queries = episode((4, 4))
    learner = make(method=method)
    turned = learner(Support(support.features.flip(1), support.counts), queries)
    change = (turned - learner(support, queries)).abs().max()
    assert (change > 1e-4) if method == "mn" else (change < 1e-12)


@pytest.mark.parametrize("method", ["mn", "pmn"])
def test_training_reads_classes_in_random_orders_and_the_test_in_the_given_one(method: str) -> None:
    support, queries = episode()
    learner = make(method=method, mn_tile=False)
    assert torch.equal(learner(support, queries), learner(support, queries))
    learner.train()
    torch.manual_seed(3)
    drawn = learner(support, queries)
    torch.manual_seed(3)
    order = torch.randperm(3)
    assert order.tolist() != [0, 1, 2]
    given = learner.eval()(permute(support, order), queries)
    torch.testing.assert_close(drawn[:, order], given)


@pytest.mark.parametrize("method", ["mn", "pmn"])
def test_an_ensemble_of_orders_averages_log_probabilities(method: str) -> None:
    support, queries = episode()
    several, single = make(method=method, order_ensemble=4), make(method=method)
    single.load_state_dict(several.state_dict())
    orders = class_orders(3, training=False, ensemble=4, device=torch.device("cpu"))
    assert orders[0].tolist() == [0, 1, 2]
    logs = []
    for order in orders:
        log = single(permute(support, order), queries).log_softmax(1)
        logs.append(log[:, order.argsort()])
    assert len({tuple(order.tolist()) for order in orders}) > 1
    torch.testing.assert_close(several(support, queries), torch.stack(logs).mean(0))


def test_tiled_classes_have_as_many_examples_as_the_largest() -> None:
    support, queries = episode((1, 4, 3))
    tiled = tile(support)
    assert tiled.counts.tolist() == [4, 4, 4]
    expected = [[0, 0, 0, 0], [0, 1, 2, 3], [0, 1, 2, 0]]
    for k, slots in enumerate(expected):
        assert torch.equal(tiled.features[k], support.features[k, slots])
    learner, untiled = make(method="mn"), make(method="mn", mn_tile=False)
    untiled.load_state_dict(learner.state_dict())
    assert torch.equal(learner(support, queries), untiled(tiled, queries))
    assert not torch.allclose(learner(support, queries), untiled(support, queries))


def test_training_sees_the_examples_as_they_are() -> None:
    support, queries = episode((1, 4, 3))
    learner = without_context(make(method="mn")).train()
    untiled = without_context(make(method="mn", mn_tile=False))
    torch.testing.assert_close(learner(support, queries), untiled(support, queries))


def test_queries_in_parts_give_what_all_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    support, queries = episode()
    learner = make(method="mn")
    expected = learner(support, queries)
    monkeypatch.setattr(model, "SCORES", 30)  # 12 examples: 2 queries at a time
    torch.testing.assert_close(learner(support, queries), expected)


def test_a_class_of_no_weight_keeps_a_finite_log_probability() -> None:
    learner = without_context(make(2, method="mn", scale=1e5, mn_tile=False))
    features = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).double()
    support = Support(features, torch.ones(2).long())
    logits = learner(support, torch.tensor([[1.0, 0.0]]).double())
    torch.testing.assert_close(logits.log_softmax(1), torch.tensor([[0.0, -1e5]]).double())


@pytest.mark.parametrize("options", [{"method": "pmn"}, {"method": "mn"}, {"mn_score": "hg"}])
def test_gradients_of_matching_networks(options: dict) -> None:
    learner = make(3, **({"method": "mn", "hops": 2} | options))
    support, queries = episode((1, 2), 3)
    features = support.features.nan_to_num().requires_grad_()

    def logits(features: Tensor, queries: Tensor, *_: Tensor) -> Tensor:
        return learner(Support(features, support.counts), queries).log_softmax(1)

    inputs = (features, queries.requires_grad_(), *learner.parameters())
    assert torch.autograd.gradcheck(logits, inputs, fast_mode=True)
