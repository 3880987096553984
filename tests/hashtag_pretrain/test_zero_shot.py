"""Classes by the tags that name them."""

import pytest
import torch
from torch import nn

from hashtag_pretrain.targets.zero_shot import ZeroShot, find_tags, score_zero_shot, sum_tags
from hashtag_pretrain.words.vocabulary import Vocabulary, build

from .small_target import READING, small_target


def vocabulary():
    """brownbear and bruin share a synset; crane has two."""
    return Vocabulary(
        names=["brownbear", "bruin", "crane", "red"],
        members={"brownbear": 0, "ursusarctos": 0, "bruin": 1, "crane": 2, "red": 3, "scarlet": 3},
        synsets=[
            ["n02132136"],
            ["n02132136", "n02132320"],
            ["n02012849", "n03126707"],
            ["n04962784"],
        ],
        counts=[4, 3, 2, 1],
    )


def test_a_class_has_the_tags_whose_keys_contain_its_synset():
    wnids = ["n02132136", "n03126707", "n02012849", "n01440764"]
    assert find_tags(vocabulary(), wnids) == [[0, 1], [2], [2], []]


def test_a_class_that_is_a_word_has_its_own_tag():
    assert find_tags(vocabulary(), ["Scarlet", "Ursus arctos", "tench"]) == [[3], [0], []]


def test_wnids_that_are_tags_themselves_name_their_classes():
    """As `prepare.py vocabulary rule=none` makes of ImageNet's folders."""
    wnids = ["n01440764", "n01443537", "n01484850"]
    found, _ = build({wnids[1]: 4, wnids[0]: 3}, None, rule="none")
    assert find_tags(found, wnids) == [[1], [0], []]


def test_classes_without_any_tag_are_refused():
    with pytest.raises(ValueError, match="none of the 1 classes"):
        find_tags(vocabulary(), ["tench"])


def test_a_class_scores_the_sum_of_its_tags_probabilities():
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    sums = sum_tags(logits, [[0, 1], [2], [2], []])
    assert torch.allclose(sums, torch.tensor([[0.3, 0.3, 0.3, 0.0]]))


class MeanColour(nn.Module):
    """Logits: the mean of red, green and blue, and a tag of nothing."""

    def forward(self, images):
        return torch.cat([9 * images.mean((2, 3)), torch.full((len(images), 1), -9.0)], 1)


def test_the_colours_of_the_target_are_recognised_without_training(tmp_path):
    target = small_target(tmp_path)
    options = ZeroShot(size=16, resize=16, images=5)
    tags = [[2], [1], [0, 3]]  # blue, green, red
    outcome = score_zero_shot(MeanColour(), target.test, tags, options, READING)
    assert outcome.accuracy() == 100
    outcome = score_zero_shot(MeanColour(), target.test, [[2], [1], []], options, READING)
    assert outcome.accuracy() == pytest.approx(200 / 3)
