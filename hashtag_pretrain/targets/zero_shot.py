"""Classes without any training on them: a class scores the sum of p over the tags that name it.

V tags, K classes. A tag names a class where the class's synset is in its key, or, for classes that
are words, where it is the class's own tag. A class without one has probability 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common import dist
from common.config import require_range
from common.data import eval_loader

from ..words.vocabulary import Vocabulary, class_tags
from .images import Images, Listing, Reading, centre_view, require_sizes
from .outcome import Outcome, Scores
from .sets import is_wnid


@dataclass
class ZeroShot:
    """How images are looked at."""

    vocabulary: str = ""  # file of the tags that the network's last layer was trained on
    size: int = 224  # pixels
    resize: int = 256  # shorter side of what the centre crop is taken from
    images: int = 256  # at a time, on each process

    def __post_init__(self) -> None:
        require_sizes("zero_shot", self.size, self.resize, "none")
        require_range("zero_shot.images", self.images, 1)


def find_tags(vocabulary: Vocabulary, classes: list[str]) -> list[list[int]]:
    """The tags of each class; ValueError where no class has any."""
    found = class_tags(vocabulary, classes) if all(map(is_wnid, classes)) else []
    if not any(found):  # of words, or of wnids that are tags themselves (rule=none)
        found = [vocabulary.look_up([name]) for name in classes]
    if not any(found):
        raise ValueError(
            f"none of the {len(classes)} classes, such as {classes[0]!r}, has a tag in the "
            "vocabulary: give target.classes of other names, or protocol=probe."
        )
    return found


def sum_tags(logits: Tensor, tags: list[list[int]]) -> Tensor:
    """Sums (B, K) of the softmax of logits (B, V) over each class's tags."""
    columns = torch.tensor([tag for each in tags for tag in each], device=logits.device)
    owners = [label for label, each in enumerate(tags) for _ in each]
    probabilities = logits.float().softmax(1)[:, columns]
    sums = probabilities.new_zeros(len(logits), len(tags))
    return sums.index_add(1, torch.tensor(owners, device=logits.device), probabilities)


@torch.no_grad()
def score_zero_shot(
    model: nn.Module, test: Listing, tags: list[list[int]], options: ZeroShot, reading: Reading
) -> Outcome:
    """What the network's tags make of the test images."""
    training = model.training
    model.to(dist.device()).eval()
    images = Images(test, centre_view(options.size, options.resize))
    scores = Scores()
    for batch, labels in eval_loader(images, options.images, workers=reading.workers):
        scores.add(sum_tags(model(reading.normalise(batch)), tags), labels)
    model.train(training)
    return scores.outcome()
