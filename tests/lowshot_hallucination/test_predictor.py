"""A classifier to which classes are added without training."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.run.sealed import CheckpointError
from lowshot_hallucination.hallucinate import Hallucination, Support, build_generator
from lowshot_hallucination.protocol.predictor import Predictor
from lowshot_hallucination.protocol.prior import with_prior

WIDTH = 6


class NearestMean(nn.Module):
    """-|f(x) - mean of f(rows)|^2, f linear; its prototypes are drawn to the origin by `shrink`."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(WIDTH, 4, bias=False)
        self.shrink = 1.0

    def prototypes(self, support: Support) -> Tensor:
        rows = torch.where(support.mask[..., None], self.f(support.features), 0)
        return self.shrink * rows.sum(1) / support.counts[:, None]

    def forward(self, support: Support, queries: Tensor) -> Tensor:
        return -(torch.cdist(self.f(queries), self.prototypes(support)) ** 2)


def make(mu: float | None = None, kind: str = "learned", seed: int = 0) -> Predictor:
    """A predictor without classes, its nets at random weights."""
    torch.manual_seed(seed)
    generate = build_generator(Hallucination(kind=kind, init="gaussian"), WIDTH)
    return Predictor(NearestMean(), generate, n_aug=5, mu=mu)


def fill(predictor: Predictor) -> Predictor:
    """Two base classes with many rows, two novel ones with few."""
    generator = torch.Generator().manual_seed(1)
    for name, count in {"cat": 8, "dog": 7, "mug": 1, "pen": 3}.items():
        rows = torch.rand(count, WIDTH, generator=generator)
        predictor.add(name, rows, novel=name in ("mug", "pen"))
    return predictor


QUERIES = torch.rand(9, WIDTH, generator=torch.Generator().manual_seed(2))


def test_probabilities_are_those_of_the_learner_on_real_and_imagined_rows():
    predictor = fill(make())
    names, probabilities = predictor.predict(QUERIES)
    support = predictor.support()
    assert support.counts.tolist() == [8, 7, 5, 5]
    for k, real in enumerate(predictor.real):
        assert torch.equal(support.features[k, : len(real)], real)
    means = [predictor.learner.f(rows).mean(0) for rows in predictor.rows]
    distances = torch.cdist(predictor.learner.f(QUERIES), torch.stack(means)) ** 2
    expected = (-distances).softmax(1)
    torch.testing.assert_close(probabilities, expected.detach())
    assert names == [["cat", "dog", "mug", "pen"][k] for k in expected.argmax(1)]


def test_the_prior_gives_the_novel_classes_its_mass():
    predictor = fill(make(mu=0.3))
    _, probabilities = predictor.predict(QUERIES)
    torch.testing.assert_close(probabilities[:, 2:].sum(1), torch.full((9,), 0.3))
    plain = fill(make())
    logits = plain.learner(plain.support(), QUERIES).detach()
    novel = torch.tensor([False, False, True, True])
    torch.testing.assert_close(probabilities, with_prior(logits, novel, 0.3))


def test_without_novel_classes_the_prior_changes_nothing():
    predictor = make(mu=0.3)
    predictor.add("cat", QUERIES[:3], novel=False)
    predictor.add("dog", QUERIES[3:6], novel=False)
    _, probabilities = predictor.predict(QUERIES)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(9))


def test_a_class_added_later_leaves_the_rows_of_the_others_as_they_were():
    predictor = fill(make())
    before = [rows.clone() for rows in predictor.rows]
    state = torch.get_rng_state()
    predictor.add("cup", QUERIES[:2])
    assert torch.equal(torch.get_rng_state(), state)  # nor does it touch the caller's generator
    assert all(map(torch.equal, before, predictor.rows[:4]))
    other = make()
    other.add("cup", QUERIES[:2])  # first instead of last
    assert torch.equal(other.rows[0], predictor.rows[4])
    assert predictor.predict(QUERIES)[1].shape == (9, 5)


def test_what_is_imagined_differs_between_classes_of_equal_rows():
    predictor = make()
    predictor.add("a", QUERIES[:1])
    predictor.add("b", QUERIES[:1])
    assert not torch.equal(predictor.rows[0], predictor.rows[1])


def test_a_predictor_that_imagines_nothing_has_real_rows_alone():
    predictor = Predictor(NearestMean(), build_generator(Hallucination(kind="none"), WIDTH), 0)
    predictor.add("a", QUERIES[:1])
    assert torch.equal(predictor.rows[0], QUERIES[:1])


def test_a_saved_predictor_predicts_the_same_and_learns_on(tmp_path):
    predictor = fill(make(mu=0.4))
    predictor.learner.shrink = 0.7
    predictor.save(tmp_path / "new" / "shop.pt")
    nets = make(seed=5)
    again = Predictor.load(tmp_path / "new" / "shop.pt", nets.learner, nets.generate)
    assert (again.names, again.novel, again.mu) == (predictor.names, predictor.novel, 0.4)
    assert torch.equal(again.predict(QUERIES)[1], predictor.predict(QUERIES)[1])
    for each in (again, predictor):
        each.add("cup", QUERIES[:2])
    assert torch.equal(again.predict(QUERIES)[1], predictor.predict(QUERIES)[1])


def test_a_file_of_other_nets_or_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "shop.pt"
    fill(make()).save(path)
    plain = make(kind="dropout")
    with pytest.raises(CheckpointError, match=r"shop.pt, generator: these weights do not fit"):
        Predictor.load(path, plain.learner, plain.generate)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"shop.pt is damaged"):
        Predictor.load(path, make().learner, make().generate)
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="no file of a predictor"):
        Predictor.load(path, make().learner, make().generate)


def test_the_export_holds_means_imagined_rows_and_prototypes(tmp_path):
    predictor = fill(make())
    predictor.export(tmp_path / "classes.npz")
    with np.load(tmp_path / "classes.npz") as found:
        assert found["names"].tolist() == ["cat", "dog", "mug", "pen"]
        assert found["novel"].tolist() == [False, False, True, True]
        assert found["counts"].tolist() == [8, 7, 1, 3]
        assert found["owner"].tolist() == [2, 2, 2, 2, 3, 3]
        mug = found["imagined"][found["owner"] == 2]
        np.testing.assert_array_equal(mug, predictor.rows[2][1:])
        np.testing.assert_allclose(found["means"][2], predictor.real[2][0])
        both = np.concatenate([predictor.real[2], mug]).mean(0)
        np.testing.assert_allclose(found["augmented_means"][2], both, rtol=1e-5)
        prototype = predictor.learner.f(torch.from_numpy(both)).detach()
        np.testing.assert_allclose(found["prototypes"][2], prototype, rtol=1e-4, atol=1e-6)


def test_bad_input_stops_with_the_class_that_it_is_of():
    predictor = fill(make())
    for name, rows, words in (
        ("cat", QUERIES[:1], "'cat' is there already"),
        ("cup", QUERIES[:0], "'cup' has features of shape"),
        ("cup", QUERIES[0], "'cup' has features of shape"),
        ("cup", QUERIES[:1, :4], "'cup': features of width 4, while those of 'cat' have 6"),
        ("cup", QUERIES[:1] * float("nan"), "'cup': features that are not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            predictor.add(name, rows)
    assert predictor.names == ["cat", "dog", "mug", "pen"]
    with pytest.raises(ValueError, match="the queries: features of width 4"):
        predictor.predict(QUERIES[:, :4])
    with pytest.raises(ValueError, match="knows no class"):
        make().predict(QUERIES)
    with pytest.raises(ValueError, match="mu=2"):
        make(mu=2)
