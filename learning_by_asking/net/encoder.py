"""What reads a question or an image, and the linear layers that give an answer.

B questions, L words or program tokens, E word vector, D LSTM states, A answers, I images.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

SPECIAL = 4  # <NULL>, <START>, <END> and <UNK>: the first ids of each vocabulary


class QuestionEncoder(nn.Module):
    """Word vectors and an LSTM; the top layer's state at the last word."""

    def __init__(self, *, tokens: int, embed: int = 300, hidden: int = 256, layers: int = 2):
        super().__init__()
        self.embed = nn.Embedding(tokens, embed)
        self.rnn = nn.LSTM(embed, hidden, layers, batch_first=True)

    def forward(self, questions: Tensor) -> Tensor:
        """Ids int64 (B, L), 0 behind the last -> (B, D)."""
        states, _ = self.rnn(self.embed(questions))
        last = ((questions != 0).sum(1) - 1).clamp(min=0)
        return states[torch.arange(len(states), device=states.device), last]


def build_head(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with ReLU between them: (B, inputs) -> (B, outputs)."""
    sizes = [inputs, *hidden]
    parts: list[nn.Module] = []
    for size, following in pairwise(sizes):
        parts += [nn.Linear(size, following), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(sizes[-1], outputs))


def mask_special(logits: Tensor) -> Tensor:
    """Logits (B, A) with -inf for the special ids, which are no answers."""
    special = torch.arange(logits.shape[1], device=logits.device) < SPECIAL
    return logits.masked_fill(special, -torch.inf)


def coordinates(height: int, width: int) -> Tensor:
    """Return x and y of each position (2, H, W), -1 to 1 at the corners; 0 along one position."""
    x, y = (
        torch.linspace(-1, 1, size) if size > 1 else torch.zeros(size) for size in (width, height)
    )
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])


class AddCoordinates(nn.Module):
    """Maps (I, C, H, W) with two channels more, x and y of each position, see `coordinates`."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("xy", coordinates(height, width), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """(I, C + 2, H, W), the coordinates last."""
        xy = self.get_buffer("xy").to(features.dtype)
        return torch.cat([features, xy.expand(len(features), -1, -1, -1)], 1)


class OnImages(nn.Module):
    """An answerer or relevance model of images: convolutions make the maps that `network` reads.

    # Differs: the paper's maps are those of a network that was trained on ImageNet.
    """

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for channels, side in ((3, 5), (width, 3), (width, 3)):
            parts += [nn.Conv2d(channels, width, side, stride=2, padding=side // 2), nn.ReLU()]
        self.convolutions = nn.Sequential(*parts)
        self.network: Any = network

    @staticmethod
    def map_size(height: int, width: int) -> tuple[int, int]:
        """An eighth of an image's height and width, rounded up."""
        return -(-height // 8), -(-width // 8)

    def project(self, images: Tensor) -> Tensor:
        """Images (I, 3, H, W), 0..1, to what `network` needs once an image."""
        return self.network.project(self.convolutions(2 * images - 1))

    def answer(self, questions: Tensor, image: Tensor, image_of: Tensor) -> Tensor:
        """As `network`, from `project`."""
        return self.network.answer(questions, image, image_of)

    def forward(self, questions: Tensor, images: Tensor, image_of: Tensor) -> Tensor:
        """As `network`, from images."""
        return self.answer(questions, self.project(images), image_of)
