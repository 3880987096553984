"""Which proposals make sense for their image: the relevance model r and its calibration.

r has the answerer's architecture, weights of its own and one logit. It learns from the pairs of
image and question of pairs.py.

N pairs, I images, P proposals of an image, L tokens of a program. Types are 0..12 as in
common.clevr.accuracy.TYPES, -1 where a program has none of these roots.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from common import dist
from common.clevr.accuracy import TYPES
from common.clevr.arrays.encode import QuestionArrays
from common.clevr.arrays.features import Features
from common.data import seed_of
from common.run.log import require_finite
from common.sampling import SampleStream

from .calibration import choose_threshold, fit_platt
from .pairs import Pairs, collect_pairs

KINDS = ("none", "learned", "refreshed", "oracle")
ROWS = 4096  # pairs that go through the network at once when nothing is learned
ENOUGH = 20  # held-out pairs of a type from which it is calibrated alone


@dataclass
class Relevance:
    """How proposals are filtered; the paper gives no number of these."""

    # none | learned: once, on the beginning | refreshed: on the replies too | oracle: upper bound
    kind: str = "learned"
    neg_ratio: int = 1  # Unstated: irrelevant images for each question of the beginning
    by_type: bool = True  # irrelevant images come from questions of the same type
    steps: int = 15_000  # Unstated
    lr: float = 5e-4  # Unstated: of Adam
    batch_size: int = 128  # Unstated
    held_out: float = 0.1  # share of the pairs that calibrates and is not learned from
    threshold: str = "validity"  # validity: see `validity` | f1: the best F1 score
    validity: float = 0.5  # Unstated: share of valid ones among the kept proposals of a type
    prior: float = 0.3  # Unstated: share of valid proposals before the filter, until replies tell
    least: float = 0.25  # share of a type's held-out pairs that passes at least: none dies out
    every: int = 0  # rounds between refreshes; 0: one fiftieth of all
    refresh_steps: int = 500  # of a refresh

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("kind", self.kind, KINDS),
            ("threshold", self.threshold, ("validity", "f1")),
        ):
            if value not in choices:
                raise ValueError(f"relevance.{name}={value} is not one of {', '.join(choices)}.")
        for name in ("neg_ratio", "steps", "batch_size", "refresh_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"relevance.{name}={getattr(self, name)}: give at least 1.")
        if self.every < 0 or not 0 < self.lr < float("inf"):
            raise ValueError(
                f"relevance.every={self.every}, relevance.lr={self.lr}: give rounds from 0 and a "
                "learning rate above 0."
            )
        for name in ("held_out", "validity", "prior", "least"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"relevance.{name}={getattr(self, name)}: give a share between 0 and 1."
                )


class Calibrated(nn.Module):
    """A relevance network whose logits are made probabilities, and a threshold for each type."""

    scale: Tensor  # float (14,): of the logit, the last for programs of no type
    shift: Tensor  # float (14,)
    thresholds: Tensor  # float (14,): probabilities from which a proposal is kept

    def __init__(self, network: nn.Module) -> None:
        """network: (questions (B, L), features (I, C, H, W), image_of (B,)) -> logits (B,)."""
        super().__init__()
        self.network = network
        rows = len(TYPES) + 1
        self.register_buffer("scale", torch.ones(rows))
        self.register_buffer("shift", torch.zeros(rows))
        self.register_buffer("thresholds", torch.zeros(rows))

    @torch.no_grad()
    def probabilities(
        self, images: Tensor, programs: Tensor, types: Tensor, features: Tensor
    ) -> Tensor:
        """Probabilities of being valid, float (I, P), 0..1.

        images (I,): rows of the features, not looked at; programs (I, P, L); types (I, P) int64;
        features (I, C, H, W).
        """
        proposals, training = types.shape[1], self.network.training
        self.network.eval()
        logits = []
        for places in torch.arange(len(types)).split(max(1, ROWS // proposals)):
            image_of = torch.arange(len(places)).repeat_interleave(proposals).to(types.device)
            rows = programs[places].flatten(0, 1)
            logits.append(self.network(rows, features[places], image_of).float())
        self.network.train(training)
        logit = torch.cat(logits).view(types.shape)
        return (self.scale[types] * logit + self.shift[types]).sigmoid()

    def keep(self, probabilities: Tensor, types: Tensor) -> Tensor:
        """Which proposals pass the threshold of their type, bool (I, P)."""
        return probabilities >= self.thresholds[types]

    def calibrate(self, held_out: Pairs, features: Features, options: Relevance) -> None:
        """Platt scaling (1999) and a threshold for each type, on pairs that were not learned from.

        A type with fewer than 20 pairs, or of one label only, is treated as all types together. A
        type with 20 replies is calibrated on these alone, for they are of proposals, although of
        such as passed the filter: nothing is bought to see what it refuses. The share of relevant
        ones among other pairs depends on `neg_ratio` and is shifted to `prior`.
        """
        if held_out.replies.all():
            raise ValueError(
                "no pair was held out to calibrate the relevance model on: give more questions "
                "(data.init) or a larger share (relevance.held_out)."
            )
        logits = self._logits(held_out, features)
        labels = torch.from_numpy(held_out.labels).double()
        replies = torch.from_numpy(held_out.replies)
        types = torch.from_numpy(held_out.types)
        for row in (-1, *range(len(TYPES))):
            of_type = (types == row) | (row < 0)
            asked, made = of_type & replies, of_type & ~replies
            if asked.sum() >= ENOUGH:
                self._set(row, logits[asked], labels[asked], 1.0, options)
            elif row < 0 or (made.sum() >= ENOUGH and 0 < labels[made].mean() < 1):
                share = labels[made].mean().clamp(0.01, 0.99).item()
                odds = options.prior / (1 - options.prior) * (1 - share) / share
                self._set(row, logits[made], labels[made], odds, options)
            else:
                for values in (self.scale, self.shift, self.thresholds):
                    values[row] = values[-1]

    def _set(
        self, row: int, logits: Tensor, labels: Tensor, odds: float, options: Relevance
    ) -> None:
        """Scale, shift and threshold of one type; logits, labels: double (M,).

        odds: by which relevant pairs are likelier among the proposals than here.
        """
        towards = None if row < 0 else float(self.scale[-1])
        scale, shift = fit_platt(logits, labels, towards)
        self.scale[row], self.shift[row] = scale, shift + math.log(odds)
        self.thresholds[row] = choose_threshold(
            (scale * logits + shift + math.log(odds)).sigmoid(),
            labels,
            torch.where(labels > 0, odds, 1.0),
            rule=options.threshold,
            validity=options.validity,
            least=options.least,
        )

    @torch.no_grad()
    def _logits(self, pairs: Pairs, features: Features) -> Tensor:
        """Logits double (N,) on the CPU, without calibration."""
        training = self.network.training
        self.network.eval()
        logits = [
            self.network(*_inputs(pairs, places, features))
            for places in np.array_split(np.arange(len(pairs)), -(-len(pairs) // ROWS) or 1)
        ]
        self.network.train(training)
        return torch.cat(logits).double().cpu()


class Known:
    """The upper bound: whether a proposal is valid, as the oracle knows it, at no cost."""

    def __init__(self, is_valid: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        """is_valid: (images int (n,), programs int (n, L)) -> bool (n,)."""
        self.is_valid = is_valid

    def probabilities(
        self, images: Tensor, programs: Tensor, types: Tensor, features: Tensor
    ) -> Tensor:
        """As those of `Calibrated`, 0 or 1; the features are not looked at."""
        repeated = images.repeat_interleave(types.shape[1]).cpu().numpy()
        valid = self.is_valid(repeated, programs.flatten(0, 1).cpu().numpy())
        return torch.from_numpy(np.asarray(valid, np.float32)).view(types.shape).to(types.device)

    def keep(self, probabilities: Tensor, types: Tensor) -> Tensor:
        """Which proposals are valid, bool (I, P)."""
        return probabilities > 0.5


def train_relevance(
    network: nn.Module,
    initial: QuestionArrays,
    features: Features,
    options: Relevance,
    *,
    seed: int,
) -> Calibrated:
    """Train a network of build_relevance on the questions of the beginning, and calibrate it."""
    model = Calibrated(network)
    learning, held_out = _collect(initial, options, seed)
    _fit(network, learning, features, options, steps=options.steps, seed=seed)
    model.calibrate(held_out, features, options)
    return model


def refresh(
    model: Calibrated,
    initial: QuestionArrays,
    features: Features,
    options: Relevance,
    *,
    valid: QuestionArrays,
    invalid: QuestionArrays,
    seed: int,
    round_: int,
) -> None:
    """Let the relevance model go on learning with all replies so far, and calibrate it again.

    initial, valid, invalid: the beginning and the replies in the order in which they were bought.
    """
    learning, held_out = _collect(initial, options, seed, valid, invalid)
    again = seed_of(seed, round_, 2)
    _fit(model.network, learning, features, options, steps=options.refresh_steps, seed=again)
    model.calibrate(held_out, features, options)


def _collect(
    initial: QuestionArrays,
    options: Relevance,
    seed: int,
    valid: QuestionArrays | None = None,
    invalid: QuestionArrays | None = None,
) -> tuple[Pairs, Pairs]:
    return collect_pairs(
        initial,
        seed=seed,
        ratio=options.neg_ratio,
        by_type=options.by_type,
        held_out=options.held_out,
        valid=valid,
        invalid=invalid,
    )


def _fit(
    network: nn.Module,
    pairs: Pairs,
    features: Features,
    options: Relevance,
    *,
    steps: int,
    seed: int,
) -> None:
    """Minimise the binary cross entropy of the pairs."""
    stream = SampleStream(len(pairs), options.batch_size, seed=seed)
    optimizer = torch.optim.Adam(network.parameters(), options.lr)
    wrapped, training = dist.wrap(network), network.training
    network.train()
    hidden = None if dist.is_main() else True  # None: hidden unless there is a terminal
    for step in trange(steps, desc="relevance", disable=hidden):
        keys = stream.share(step, dist.rank(), dist.world_size())
        places = np.array([place for _, place in keys])
        logits = wrapped(*_inputs(pairs, places, features)).float()
        labels = torch.from_numpy(pairs.labels[places]).to(logits.device)
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        require_finite({"relevance": loss}, step + 1, [f"image {i}" for i in pairs.images[places]])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    network.train(training)


def _inputs(pairs: Pairs, places: np.ndarray, features: Features) -> tuple[Tensor, Tensor, Tensor]:
    """What a network reads of these pairs: each map once."""
    images, image_of = np.unique(pairs.images[places], return_inverse=True)
    programs = torch.from_numpy(pairs.programs[places].astype(np.int64))
    device = dist.device()
    maps, of = features[images], torch.from_numpy(image_of.reshape(-1))
    return programs.to(device), maps.to(device), of.to(device)
