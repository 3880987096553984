"""Feature transfer: a linear classifier on the features of a trunk that stays as it is.

The features are computed once and kept.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import dist
from common.config import require_range
from common.data import BadImages, eval_loader

from .holdout import Found, search
from .images import Images, Listing, Reading, centre_view, random_view, require_sizes
from .linear import Features, Linear, make_problem, solve_lbfgs
from .outcome import Outcome, Scores, report
from .sets import Target


@dataclass
class Probe:
    """A linear probe; Unstated: all of it, but that the trunk is frozen and the grid held out."""

    decays: list[float] = field(default_factory=lambda: [0, 1e-6, 1e-5, 1e-4, 1e-3])
    iterations: int = 1000  # of L-BFGS, at most
    standardise: bool = True  # features of mean 0 and variance 1 over the training images
    held_out: float = 0.1  # share of each class's training images that the grid is scored on
    splits: int = 1  # over which that score is averaged, for small targets
    size: int = 224  # pixels
    resize: int = 256  # shorter side of what the centre crop is taken from
    augment: str = "crop"  # crop | shift | none, of `views`
    views: int = 1  # of each training image: 1 is the centre crop, more are random
    images: int = 256  # that go through the trunk at a time
    amp: bool = False  # bfloat16 in the trunk

    def __post_init__(self) -> None:
        require_sizes("probe", self.size, self.resize, self.augment)
        require_range("probe.held_out", self.held_out, 0.001, 0.9)
        for name in ("iterations", "splits", "views", "images"):
            require_range(f"probe.{name}", getattr(self, name), 1)
        if not self.decays or min(self.decays) < 0:
            raise ValueError("probe.decays needs values from 0 up.")


@dataclass(frozen=True)
class Setting:
    """A point of the grid."""

    decay: float


def probe(
    model: nn.Module,
    target: Target,
    options: Probe,
    *,
    seed: int,
    reading: Reading,
    folder: Path | None = None,
) -> dict[str, float]:
    """Top-1 and top-5 on the test images in percent: {"probe": ..., "probe5": ...}.

    The model has `features` and `fc`, as those of model.py do. folder: for probe.csv, the classes.
    """
    found = fit_probe(model, target.train, len(target.classes), options, seed=seed, reading=reading)
    outcome = score_probe(model, found.model, target.test, options, reading=reading)
    return report(outcome, target, "probe", folder)


def fit_probe(
    model: nn.Module,
    train: Listing,
    classes: int,
    options: Probe,
    *,
    seed: int,
    reading: Reading,
) -> Found[Setting, Linear]:
    """The classifier of all training images, its setting found on some that were held out."""
    augment = random_view(options.size, options.augment)
    view = centre_view(options.size, options.resize) if options.views == 1 else augment
    images = Images(train, view, options.views)
    features = extract(model, images, options, reading, reading.policy())
    grid = [Setting(decay) for decay in options.decays]

    def fit(setting: Setting, numbers: Tensor, name: str) -> Linear:
        rows = features.rows(numbers)
        problem = make_problem(
            features, rows, classes, setting.decay, standardise=options.standardise
        )
        return solve_lbfgs(problem, options.iterations)

    def score(linear: Linear, numbers: Tensor) -> float:
        scores = Scores()
        for values, labels in features.blocks(features.rows(numbers)):
            scores.add(linear(values), labels)
        return scores.accuracy()

    return search(
        train.labels,
        grid,
        fit,
        score,
        share=options.held_out,
        seed=seed,
        splits=options.splits,
    )


def score_probe(
    model: nn.Module, linear: Linear, test: Listing, options: Probe, *, reading: Reading
) -> Outcome:
    """What trunk and classifier make of the test images."""
    images = Images(test, centre_view(options.size, options.resize))
    features = extract(model, images, options, reading)
    scores = Scores()
    for values, labels in features.blocks(torch.arange(len(features.labels))):
        scores.add(linear(values), labels)
    return scores.outcome()


@torch.no_grad()
def extract(
    model: nn.Module,
    images: Images,
    options: Probe,
    reading: Reading,
    bad: BadImages | None = None,
) -> Features:
    """`model.features` of this process's share of the images; the model is left as it was.

    In evaluation throughout: a norm that sees one batch would move its running statistics.
    """
    before = {name: value.clone() for name, value in model.named_buffers()}
    training = model.training
    model.eval()
    batches = eval_loader(images, options.images, workers=reading.workers, bad=bad)
    device = dist.device()
    numbers = torch.arange(dist.rank(), len(images), dist.world_size())
    width: int = model.fc.in_features  # type: ignore[union-attr, assignment]
    values, labels, done = torch.empty(len(numbers), width), torch.empty_like(numbers), 0
    for batch, label in tqdm(batches, "features", leave=False, disable=quiet(len(batches))):
        with torch.autocast(device.type, torch.bfloat16, enabled=options.amp):
            found = model.features(reading.normalise(batch))  # type: ignore[operator]
        values[done : done + len(label)] = found.float().cpu()
        labels[done : done + len(label)] = label
        done += len(label)
    model.train(training)
    moved = [name for name, value in model.named_buffers() if not equal(value, before[name])]
    if moved:
        raise RuntimeError(f"the frozen trunk's {moved[0]} has changed ({len(moved)} such buffers)")
    return Features(place(values), labels, numbers % len(images.listing))


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same bit by bit, a nan being itself."""
    return bool(((a == b) | ((a != a) & (b != b))).all())


def place(values: Tensor) -> Tensor:
    """The features on the GPU where they take less than half of what is free there."""
    device = dist.device()
    if device.type == "cpu" or 2 * values.nbytes > torch.cuda.mem_get_info(device)[0]:
        return values
    return values.to(device)


def quiet(batches: int) -> bool | None:
    """What hides tqdm's bar: not the main process, or few batches; None: no terminal."""
    return True if batches < 20 or not dist.is_main() else None
