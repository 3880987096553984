"""Questions with an image: stacked attention, image and question side by side, or no image at all.

B questions, L tokens, I images, C x H x W features, D LSTM states, K attention, A answers.

    StackedAttentionNet  the paper's answerer and relevance model: attention over the image
                         in rounds (Yang et al., arXiv 1511.02274)
    CnnLstm              question and pooled image, joined
    Lstm                 the question alone, what words tell without an image

They are the baselines of "Inferring and Executing Programs for Visual Reasoning" (Johnson et al.,
ICCV 2017); parameters have that public code's names, and its sizes by default. `project` does what
an image needs once, however many questions are asked about it; `answer` does the rest.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import AddCoordinates, QuestionEncoder, build_head, mask_special


class StackedAttention(nn.Module):
    """One round of attention: the positions that fit the query, averaged, are added to it."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.Wv = nn.Conv2d(size, hidden, 1)
        self.Wu = nn.Linear(size, hidden)
        self.Wp = nn.Conv2d(hidden, 1, 1)

    def weights(self, image: Tensor, query: Tensor, image_of: Tensor) -> Tensor:
        """Share of each position (B, H, W), summing to 1; image (I, D, H, W), query (B, D)."""
        keys = self.Wv(image)[image_of]  # (B, K, H, W)
        scores = self.Wp(torch.tanh(keys + self.Wu(query)[:, :, None, None]))[:, 0]
        return F.softmax(scores.flatten(1), 1).view_as(scores)

    def forward(self, image: Tensor, query: Tensor, image_of: Tensor) -> Tensor:
        """The next query (B, D)."""
        shares = self.weights(image, query, image_of)
        return query + torch.einsum("bhw,bdhw->bd", shares, image[image_of])


class StackedAttentionNet(nn.Module):
    """Attention over the image, led by the question; an answerer, or with outputs=1 relevance.

    outputs: 1 for one logit without a mask; else the answers, of which special ids are masked.
    """

    def __init__(
        self,
        *,
        encoder: QuestionEncoder,
        feature_size: tuple[int, int, int],
        attention: int = 512,
        rounds: int = 2,
        fc: Sequence[int] = (1024,),
        add_coordinates: bool = True,
        outputs: int = 32,
    ) -> None:
        super().__init__()
        channels, height, width = feature_size
        size = encoder.rnn.hidden_size
        self.rnn = encoder
        self.place: nn.Module = nn.Identity()
        if add_coordinates:
            self.place = AddCoordinates(height, width)
        self.image_proj = nn.Conv2d(channels + 2 * add_coordinates, size, 1)
        self.rounds = rounds
        for i in range(rounds):
            self.add_module(f"stacked-attn-{i}", StackedAttention(size, attention))
        self.classifier = build_head(size, fc, outputs)

    def project(self, features: Tensor) -> Tensor:
        """Features (I, C, H, W) -> maps (I, D, H, W)."""
        return self.image_proj(self.place(features))

    def answer(self, questions: Tensor, image: Tensor, image_of: Tensor) -> Tensor:
        """Ids (B, L), maps of `project`, image of each question (B,) -> logits, see `forward`."""
        query = self.rnn(questions)
        for i in range(self.rounds):
            query = self.get_submodule(f"stacked-attn-{i}")(image, query, image_of)
        logits = self.classifier(query)
        return logits[:, 0] if logits.shape[1] == 1 else mask_special(logits)

    def forward(self, questions: Tensor, features: Tensor, image_of: Tensor) -> Tensor:
        """Ids (B, L), features (I, C, H, W), image (B,) -> logits (B, A), with one output (B,)."""
        return self.answer(questions, self.project(features), image_of)


class CnnLstm(nn.Module):
    """State of the question and the pooled image, joined in front of the linear layers."""

    def __init__(
        self,
        *,
        encoder: QuestionEncoder,
        feature_size: tuple[int, int, int],
        width: int = 512,
        fc: Sequence[int] = (1024,),
        outputs: int = 32,
    ) -> None:
        super().__init__()
        channels, rows, columns = feature_size
        if min(rows, columns) < 2:
            raise ValueError(
                f"features of {rows} x {columns} positions cannot be pooled for "
                "answerer.name=cnn_lstm: give larger maps."
            )
        self.rnn = encoder
        self.cnn = nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU(), nn.MaxPool2d(2))
        size = encoder.rnn.hidden_size + width * (rows // 2) * (columns // 2)
        self.classifier = build_head(size, fc, outputs)

    def project(self, features: Tensor) -> Tensor:
        """Features (I, C, H, W) -> vectors (I, width * H // 2 * W // 2)."""
        return self.cnn(features).flatten(1)

    def answer(self, questions: Tensor, image: Tensor, image_of: Tensor) -> Tensor:
        """Ids (B, L), vectors of `project`, image of each question (B,) -> logits (B, A)."""
        joined = torch.cat([self.rnn(questions), image[image_of]], 1)
        return mask_special(self.classifier(joined))

    def forward(self, questions: Tensor, features: Tensor, image_of: Tensor) -> Tensor:
        """Ids (B, L), features (I, C, H, W), image of each question (B,) -> logits (B, A)."""
        return self.answer(questions, self.project(features), image_of)


class Lstm(nn.Module):
    """The question alone, whatever the image."""

    def __init__(
        self, *, encoder: QuestionEncoder, fc: Sequence[int] = (1024,), outputs: int = 32
    ) -> None:
        super().__init__()
        self.rnn = encoder
        self.classifier = build_head(encoder.rnn.hidden_size, fc, outputs)

    def project(self, features: Tensor) -> Tensor:
        """Features as they are, which `answer` does not look at."""
        return features

    def answer(
        self, questions: Tensor, image: Tensor | None = None, image_of: Tensor | None = None
    ) -> Tensor:
        """Ids (B, L) -> logits (B, A)."""
        return mask_special(self.classifier(self.rnn(questions)))

    def forward(
        self, questions: Tensor, features: Tensor | None = None, image_of: Tensor | None = None
    ) -> Tensor:
        """Ids (B, L) -> logits (B, A); features and image_of are not looked at."""
        return self.answer(questions)


class QTypeMode:
    """Answers each type of question as most training questions of that type are answered."""

    def __init__(self, types: Tensor, answers: Tensor, *, outputs: int = 32, kinds: int = 13):
        """Count types (N,) in 0..kinds - 1 and answers (N,), int; of equal counts the lowest id."""
        if len(types) != len(answers) or not len(types):
            raise ValueError(
                f"{len(types)} types came with {len(answers)} answers: the mode of each type needs "
                "as many of both, and at least one"
            )
        if int(types.min()) < 0 or int(types.max()) >= kinds:
            bad = int(((types < 0) | (types >= kinds)).nonzero()[0])
            raise ValueError(
                f"question {bad} has the type {int(types[bad])}, not 0 to {kinds - 1}: leave out "
                "questions whose program, and so type, is unknown"
            )
        counts = torch.zeros(kinds, outputs, dtype=torch.int64)
        cells = types.long(), answers.long()
        counts.index_put_(cells, torch.ones_like(cells[1]), accumulate=True)
        self.overall = int(counts.sum(0).argmax())
        self.modes = torch.where(counts.sum(1) > 0, counts.argmax(1), self.overall)  # (kinds,)

    def __call__(self, types: Tensor) -> Tensor:
        """Answer ids int64 (N,); for a type that was not seen, or is -1, the overall mode."""
        modes = torch.cat([self.modes, torch.tensor([self.overall])])
        return modes[types.long()]
