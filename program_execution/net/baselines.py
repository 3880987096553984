"""The networks without programs that the paper compares with (Sec. 4.1, Table 1).

B questions, T words, E word vector, D LSTM states, I images, C x H x W features, A answers.

    QTypeMode       the most frequent answer to each type of question
    Lstm            the question alone
    CnnLstm         question and image side by side
    CnnLstmSA       attention over the image, two rounds (Yang et al., arXiv 1511.02274); with a
                    hidden layer in its head it is the table's CNN+LSTM+SA+MLP, without one SA

All networks take (questions, features, image_of) and give logits; parameters have the public code's
names, and its sizes by default.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .options import EncoderOptions


class QTypeMode:
    """Answers each type of question as the training questions of that type are answered most."""

    def __init__(self, types: Tensor, answers: Tensor) -> None:
        """types, answers: int (N,) of the training questions; of equal counts the lowest id."""
        if len(types) != len(answers) or not len(types):
            raise ValueError(f"{len(types)} types were given for {len(answers)} answers.")
        if int(types.min()) < 0:
            raise ValueError(
                f"question {int((types < 0).nonzero()[0])} has no type: without programs the "
                "baseline of types cannot be computed."
            )
        counts = torch.zeros(int(types.max()) + 1, int(answers.max()) + 1, dtype=torch.int64)
        ones = torch.ones(len(types), dtype=torch.int64)
        counts.index_put_((types.long(), answers.long()), ones, accumulate=True)
        self.overall = int(counts.sum(0).argmax())
        self.modes = torch.where(counts.sum(1) > 0, counts.argmax(1), self.overall)

    def __call__(self, types: Tensor) -> Tensor:
        """Answer ids int64 (N,) of questions of these types; of an unseen type the overall mode."""
        known = (types >= 0) & (types < len(self.modes))
        modes = self.modes[types.long().clamp(0, len(self.modes) - 1)]
        return torch.where(known, modes, self.overall)


class QuestionEncoder(nn.Module):
    """Word vectors and an LSTM; the top layer's state at the last word."""

    def __init__(self, words: int, options: EncoderOptions) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, options.embedding)
        self.rnn = nn.LSTM(
            options.embedding,
            options.hidden,
            options.layers,
            dropout=options.dropout,
            batch_first=True,
        )

    def forward(self, questions: Tensor) -> Tensor:
        """Word ids (B, T), 0 behind the last -> (B, D)."""
        states, _ = self.rnn(self.embed(questions.long()))
        last = ((questions != 0).sum(1) - 1).clamp(min=0)
        return states[torch.arange(len(states), device=states.device), last]


def build_head(inputs: int, hidden: Sequence[int], answers: int) -> nn.Sequential:
    """Linear layers with ReLU between them: (B, inputs) -> (B, answers)."""
    parts: list[nn.Module] = []
    for outputs in hidden:
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*parts, nn.Linear(inputs, answers))


class Lstm(nn.Module):
    """The question alone, whatever the image."""

    def __init__(
        self,
        *,
        question_words: int = 93,
        answers: int = 32,
        fc: Sequence[int] = (1024,),
        encoder: EncoderOptions | None = None,
    ) -> None:
        super().__init__()
        encoder = encoder or EncoderOptions()
        self.rnn = QuestionEncoder(question_words, encoder)
        self.classifier = build_head(encoder.hidden, fc, answers)

    def forward(
        self, questions: Tensor, features: Tensor | None = None, image_of: Tensor | None = None
    ) -> Tensor:
        """Word ids (B, T) -> logits (B, A); features and image_of are not looked at."""
        return self.classifier(self.rnn(questions))


class CnnLstm(nn.Module):
    """State of the question and the pooled image, joined in front of the linear layers."""

    def __init__(
        self,
        *,
        question_words: int = 93,
        answers: int = 32,
        feature_size: tuple[int, int, int] = (1024, 14, 14),
        cnn_proj: int = 512,
        fc: Sequence[int] = (1024,),
        encoder: EncoderOptions | None = None,
    ) -> None:
        super().__init__()
        encoder = encoder or EncoderOptions()
        self.rnn = QuestionEncoder(question_words, encoder)
        channels, height, width = feature_size
        self.cnn = nn.Sequential(nn.Conv2d(channels, cnn_proj, 1), nn.ReLU(), nn.MaxPool2d(2))
        size = encoder.hidden + cnn_proj * (height // 2) * (width // 2)
        self.classifier = build_head(size, fc, answers)

    def forward(
        self, questions: Tensor, features: Tensor, image_of: Tensor | None = None
    ) -> Tensor:
        """Word ids (B, T), features (I, C, H, W), image of each question (B,) -> logits (B, A)."""
        images = image_for_each(self.cnn(features).flatten(1), questions, image_of)
        return self.classifier(torch.cat([self.rnn(questions), images], 1))


class StackedAttention(nn.Module):
    """One round of attention: the pixels that fit the query, averaged, are added to it."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.Wv = nn.Conv2d(size, hidden, 1)
        self.Wu = nn.Linear(size, hidden)
        self.Wp = nn.Conv2d(hidden, 1, 1)

    def weights(self, image: Tensor, query: Tensor, image_of: Tensor | None = None) -> Tensor:
        """Share of each pixel (B, H, W), summing to 1; image (I, D, H, W), query (B, D)."""
        pixels = image_for_each(self.Wv(image), query, image_of)
        h = torch.tanh(pixels + self.Wu(query)[:, :, None, None])
        scores = self.Wp(h)[:, 0]  # (B, H, W)
        return F.softmax(scores.flatten(1), 1).view_as(scores)

    def forward(self, image: Tensor, query: Tensor, image_of: Tensor | None = None) -> Tensor:
        """The next query (B, D)."""
        shares = self.weights(image, query, image_of)
        seen = image_for_each(image, query, image_of)
        return query + torch.einsum("bhw,bdhw->bd", shares, seen)


class CnnLstmSA(nn.Module):
    """Attention over the image, led by the question.

    fc: hidden sizes of the head: () is the table's CNN+LSTM+SA, (1024,) its CNN+LSTM+SA+MLP.
    """

    def __init__(
        self,
        *,
        question_words: int = 93,
        answers: int = 32,
        feature_size: tuple[int, int, int] = (1024, 14, 14),
        attention: int = 512,
        rounds: int = 2,
        fc: Sequence[int] = (1024,),
        encoder: EncoderOptions | None = None,
    ) -> None:
        super().__init__()
        encoder = encoder or EncoderOptions()
        self.rnn = QuestionEncoder(question_words, encoder)
        self.image_proj = nn.Conv2d(feature_size[0], encoder.hidden, 1)
        self.rounds = rounds
        for i in range(rounds):
            self.add_module(f"stacked-attn-{i}", StackedAttention(encoder.hidden, attention))
        self.classifier = build_head(encoder.hidden, fc, answers)

    def forward(
        self, questions: Tensor, features: Tensor, image_of: Tensor | None = None
    ) -> Tensor:
        """Word ids (B, T), features (I, C, H, W), image of each question (B,) -> logits (B, A)."""
        query = self.rnn(questions)
        image = self.image_proj(features)
        for i in range(self.rounds):
            query = self.get_submodule(f"stacked-attn-{i}")(image, query, image_of)
        return self.classifier(query)


def image_for_each(images: Tensor, questions: Tensor, image_of: Tensor | None) -> Tensor:
    """The image (B, ...) of each question; ValueError where their numbers do not fit."""
    if image_of is not None:
        return images.index_select(0, image_of.to(images.device))
    if len(images) != len(questions):
        raise ValueError(
            f"{len(questions)} questions came with {len(images)} images: give image_of, the image "
            "of each question."
        )
    return images
