"""A small FiLM: the question scales and shifts what convolutions see (arXiv 1709.07871).

B questions, L tokens, I images, C x H x W features, F channels of the blocks, A answers.

The architecture to which asked data are handed on. # Differs: an LSTM of the answerer's size in
place of a GRU of 4096, so that it also learns from the few questions of a small run.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import AddCoordinates, QuestionEncoder, build_head, mask_special


class Block(nn.Module):
    """x = relu(conv1x1(input)); x + relu(scale * norm(conv3x3(x)) + shift)."""

    def __init__(self, width: int, height: int, columns: int) -> None:
        super().__init__()
        self.place = AddCoordinates(height, columns)
        self.first = nn.Conv2d(width + 2, width, 1)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width, affine=False)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return x (B, F, H, W) after the block; scale and shift (B, F)."""
        x = F.relu(self.first(self.place(x)))
        y = self.norm(self.second(x))
        return x + F.relu(scale[:, :, None, None] * y + shift[:, :, None, None])


class FilmNet(nn.Module):
    """Convolutions whose channels are scaled and shifted by the question, block after block."""

    def __init__(
        self,
        *,
        encoder: QuestionEncoder,
        feature_size: tuple[int, int, int],
        blocks: int = 4,
        width: int = 128,
        fc: Sequence[int] = (1024,),
        outputs: int = 32,
    ) -> None:
        super().__init__()
        channels, height, columns = feature_size
        self.rnn = encoder
        self.film = nn.Linear(encoder.rnn.hidden_size, blocks * 2 * width)
        self.stem = nn.Sequential(
            AddCoordinates(height, columns),
            nn.Conv2d(channels + 2, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.blocks = nn.ModuleList(Block(width, height, columns) for _ in range(blocks))
        self.place = AddCoordinates(height, columns)
        self.out = nn.Conv2d(width + 2, width, 1)
        self.classifier = build_head(width, fc, outputs)

    def project(self, features: Tensor) -> Tensor:
        """Features (I, C, H, W) -> maps (I, F, H, W)."""
        return self.stem(features)

    def answer(self, questions: Tensor, image: Tensor, image_of: Tensor) -> Tensor:
        """Ids (B, L), maps of `project`, image of each question (B,) -> logits (B, A)."""
        film = self.film(self.rnn(questions)).unflatten(1, (len(self.blocks), 2, -1))
        x = image[image_of]
        for i, block in enumerate(self.blocks):
            x = block(x, 1 + film[:, i, 0], film[:, i, 1])
        x = F.relu(self.out(self.place(x)))
        return mask_special(self.classifier(torch.amax(x, (2, 3))))

    def forward(self, questions: Tensor, features: Tensor, image_of: Tensor) -> Tensor:
        """Ids (B, L), features (I, C, H, W), image of each question (B,) -> logits (B, A)."""
        return self.answer(questions, self.project(features), image_of)
