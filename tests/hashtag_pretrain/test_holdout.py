"""The search for hyper-parameters: a stratified split, the best setting, an interrupted search."""

import math

import pytest
import torch

from hashtag_pretrain.targets.holdout import Ledger, search, split

LABELS = torch.tensor([0] * 10 + [1] * 4 + [2] + [3] * 2)


def test_the_split_holds_out_a_share_of_each_class_and_never_its_only_image():
    kept, out = split(LABELS, 0.3, seed=0)
    assert torch.bincount(LABELS[out], minlength=4).tolist() == [3, 1, 0, 1]
    assert sorted(kept.tolist() + out.tolist()) == list(range(len(LABELS)))
    assert torch.bincount(LABELS[kept], minlength=4).min() >= 1


def test_the_split_is_a_function_of_the_seed():
    first, second = split(LABELS, 0.3, 0), split(LABELS, 0.3, 0)
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[1], split(LABELS, 0.3, 1)[1])


def test_one_image_of_each_class_cannot_be_split():
    with pytest.raises(ValueError, match="held out"):
        split(torch.arange(5), 0.5, 0)


def run(scores, ledger=None, splits=1, grid=("a", "b", "c")):
    """A search whose settings have given scores; also what was fitted, in order."""
    fitted = []

    def fit(setting, numbers, name):
        fitted.append((setting, len(numbers), name))
        return setting

    def score(model, numbers):
        assert model in scores
        return scores[model]

    found = search(LABELS, grid, fit, score, share=0.3, seed=0, splits=splits, ledger=ledger)
    return found, fitted


def test_the_best_setting_is_fitted_on_all_training_images():
    found, fitted = run({"a": 1.0, "b": 3.0, "c": 2.0})
    assert (found.setting, found.scores) == ("b", [1.0, 3.0, 2.0])
    assert fitted == [("a", 12, "0-0"), ("b", 12, "1-0"), ("c", 12, "2-0"), ("b", 17, "all")]


def test_a_setting_that_diverges_is_the_worst():
    assert run({"a": math.nan, "b": 0.0, "c": -1.0})[0].setting == "b"
    with pytest.raises(ValueError, match="lower the rates"):
        run(dict.fromkeys("abc", math.nan))


def test_a_grid_of_one_setting_needs_no_held_out_images():
    found, fitted = run({}, grid=("a",))
    assert (fitted, found.scores) == ([("a", 17, "all")], [])


def test_a_score_is_the_mean_over_the_splits():
    found, fitted = run({"a": 1.0, "b": 2.0, "c": 0.0}, splits=3)
    assert found.scores == [1.0, 2.0, 0.0]
    assert len(fitted) == 3 * 3 + 1


def test_an_interrupted_search_goes_on_with_the_scores_that_it_has(tmp_path):
    scores = {"a": 1.0, "b": math.nan, "c": 2.0}
    run(scores, Ledger(tmp_path, {"seed": 0}))
    found, fitted = run(scores, Ledger(tmp_path, {"seed": 0}))
    assert (found.setting, found.scores) == ("c", [1.0, -math.inf, 2.0])
    assert fitted == [("c", 17, "all")]
    with pytest.raises(ValueError, match="began with seed=0, this one has seed=1: give"):
        Ledger(tmp_path, {"seed": 1})
