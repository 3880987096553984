"""Full-network fine-tuning: the trunk is where training starts, with a new last layer.

n images in K classes. Rates are those of a batch of 256 and grow with the batch.
"""

import copy
import hashlib
import math
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from common import dist
from common.config import require_choice, require_range
from common.data import eval_loader, seed_everything, train_loader
from common.optim import NORMS, one_cycle, parameter_groups, warmup_multistep
from common.run import checkpoint
from common.run.log import Diverged, require_finite
from common.sampling import SampleStream

from ..net.parallel import share_norms
from .holdout import Found, Ledger, describe, search, split
from .images import Images, Listing, Reading, centre_view, random_view, require_sizes
from .outcome import Outcome, Scores, report
from .sets import Target


@dataclass
class FineTune:
    """Fine-tuning; the grid lies around what the authors' later work has (1905.00546).

    Unstated: all of it. ImageNet 30 epochs, Places 10 to 20, CUB 150 to 300 at 224 and 448 pixels.
    """

    lrs: list[float] = field(default_factory=lambda: [0.0001, 0.00025, 0.001, 0.0025, 0.01, 0.1])
    decays: list[float] = field(default_factory=lambda: [0, 1e-5, 1e-4, 1e-3])
    head_lrs: list[float] = field(default_factory=lambda: [1, 10])  # factors, of the last layer
    epochs: int = 30
    batch_size: int = 256  # over all processes
    schedule: str = "drops"  # drops: 3 by 10, equally spaced | one_cycle
    warmup: float = 0.05  # share of the steps; one_cycle has its own
    momentum: float = 0.9
    learn: str = "all"  # all | classifier: the last layer and the norms, as FixRes at a new size
    held_out: float = 0.1  # share of each class's training images that the grid is scored on
    splits: int = 1  # over which that score is averaged, for small targets
    size: int = 224  # pixels
    resize: int = 256  # shorter side of what the centre crop is taken from
    augment: str = "crop"  # crop | shift | none
    images: int = 256  # that are evaluated at a time, on each process
    amp: bool = False  # bfloat16 in the network
    save_every: int = 1  # epochs

    def __post_init__(self) -> None:
        require_choice("finetune.schedule", self.schedule, ("drops", "one_cycle"))
        require_choice("finetune.learn", self.learn, ("all", "classifier"))
        require_sizes("finetune", self.size, self.resize, self.augment)
        require_range("finetune.held_out", self.held_out, 0.001, 0.9)
        require_range("finetune.warmup", self.warmup, 0, 1)
        require_range("finetune.momentum", self.momentum, 0, 0.99999)
        for name in ("epochs", "batch_size", "splits", "images", "save_every"):
            require_range(f"finetune.{name}", getattr(self, name), 1)
        if not self.lrs or not self.head_lrs or min(self.lrs + self.head_lrs) <= 0:
            raise ValueError("finetune.lrs and finetune.head_lrs need values above 0.")
        if not self.decays or min(self.decays) < 0:
            raise ValueError("finetune.decays needs values from 0 up.")


@dataclass(frozen=True)
class Setting:
    """A point of the grid."""

    lr: float  # of 256 images
    decay: float
    head_lr: float  # factor on it


def finetune(
    model: nn.Module,
    target: Target,
    options: FineTune,
    *,
    seed: int,
    reading: Reading,
    folder: Path | None = None,
    origin: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Top-1 and top-5 on the test images in percent: {"finetune": ..., "finetune5": ...}.

    The model stays as it is: copies are trained. folder: for checkpoints, from which a run that is
    started again goes on, and finetune.csv, the accuracy by class. origin: options by their keys,
    plain values, that have to be the same when it is.
    """
    found = fit_finetune(
        model,
        target.train,
        len(target.classes),
        options,
        seed=seed,
        reading=reading,
        folder=folder,
        origin=origin,
    )
    outcome = score_finetune(found.model, target.test, options, reading)
    return report(outcome, target, "finetune", folder)


def fit_finetune(
    model: nn.Module,
    train: Listing,
    classes: int,
    options: FineTune,
    *,
    seed: int,
    reading: Reading,
    folder: Path | None = None,
    origin: dict[str, Any] | None = None,
) -> Found[Setting, nn.Module]:
    """The network of all training images, its setting found on some that were held out."""
    require_enough(train, options)
    grid = [
        Setting(lr, decay, head_lr)
        for lr in options.lrs
        for decay in options.decays
        for head_lr in options.head_lrs
    ]

    def fit(setting: Setting, numbers: Tensor, name: str) -> nn.Module | None:
        where = None if folder is None else folder / "finetune" / name
        one = copy.deepcopy(model)
        try:
            train_one(
                one,
                train.only(numbers),
                classes,
                setting,
                options,
                seed,
                reading,
                folder=where,
                begins=begins,
            )
        except Diverged:
            if name == "all":
                raise
            return None
        if where is not None and name != "all":  # its score is what is kept
            checkpoint.unlock(where)
            if dist.is_main():
                shutil.rmtree(where)
        return one

    def score(one: nn.Module | None, numbers: Tensor) -> float:
        if one is None:
            return math.nan
        return score_finetune(one, train.only(numbers), options, reading, training=True).accuracy()

    ledger = None
    begins = ""
    if folder is not None:
        where = folder / "finetune"
        checkpoint.lock(where)
        begins = fingerprint(model, train, reading)
        same = (origin or {}) | {"images": str(train.folder), "seed": seed}
        same |= {f"finetune.{name}": value for name, value in asdict(options).items()}
        ledger = Ledger(where, same | {"digest of weights, images and pixels": begins})
    return search(
        train.labels,
        grid,
        fit,  # type: ignore[arg-type]  # None only of a part of the images
        score,
        share=options.held_out,
        seed=seed,
        splits=options.splits,
        ledger=ledger,
    )


def require_enough(train: Listing, options: FineTune) -> None:
    """ValueError where a fit, of a part of the images where there is a grid, has no full batch."""
    count = len(train)
    if len(options.lrs) * len(options.decays) * len(options.head_lrs) > 1:
        count = len(split(train.labels, options.held_out, 0)[0])
    if options.batch_size > count:
        most = count // dist.world_size() * dist.world_size()
        raise ValueError(
            f"finetune.batch_size={options.batch_size} is more than the {count} training images of "
            f"{train.folder} that are not held out: give at most {most}."
        )


def train_one(
    model: nn.Module,
    train: Listing,
    classes: int,
    setting: Setting,
    options: FineTune,
    seed: int,
    reading: Reading,
    *,
    folder: Path | None = None,
    begins: str = "",
) -> None:
    """Fine-tune the model in place, resuming from `folder`; its last layer becomes a new one.

    begins: what a checkpoint keeps of where this one started, see `fingerprint`.
    """
    seed_everything(seed)
    device = dist.device()
    replace_head(model, classes)
    model.to(device).train()
    per_epoch = len(train) // options.batch_size
    steps = options.epochs * per_epoch
    lr = setting.lr * options.batch_size / 256
    groups = parameter_sets(model, setting, lr, options.learn)
    optimizer = SGD(groups, lr, options.momentum, nesterov=options.momentum > 0)
    schedule = make_schedule(optimizer, options, steps)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    parts |= {"setting": asdict(setting), "classes": classes, "seed": seed}
    parts |= {"batch_size": options.batch_size, "epochs": options.epochs}
    parts |= {"initial weights and images": begins}
    start = checkpoint.resume(folder, steps=steps, **parts) if folder else 0
    network = dist.wrap(model)
    batches = train_loader(
        Images(train, random_view(options.size, options.augment)),
        SampleStream(len(train), options.batch_size, seed=seed),
        start,
        steps,
        workers=reading.workers,
        bad=reading.policy(),
    )
    bar = tqdm(batches, describe(setting), leave=False, disable=None if dist.is_main() else True)
    for step, (images, labels) in enumerate(bar, start + 1):
        with torch.autocast(device.type, torch.bfloat16, enabled=options.amp):
            logits = network(reading.normalise(images))  # (B, K)
        loss = F.cross_entropy(logits.float(), labels.to(device, non_blocking=True))
        require_finite({"classification": loss}, step, [])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        stopping = folder is not None and dist.stop_requested()
        if folder and (stopping or step == steps or step % (options.save_every * per_epoch) == 0):
            share_norms(model)
            checkpoint.save(folder, step, **parts)
        if stopping:
            dist.exit_preempted(step)
    share_norms(model)


def fingerprint(model: nn.Module, train: Listing, reading: Reading) -> str:
    """What tells the weights, images and pixels that a fine-tuning starts from, from others."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode() + value.detach().cpu().contiguous().view(-1).numpy().tobytes())
    found.update(train.names.tobytes() + train.labels.numpy().tobytes())
    found.update(repr((list(reading.mean), list(reading.std))).encode())
    return found.hexdigest()[:16]


def replace_head(model: nn.Module, classes: int) -> None:
    """Give the model a last layer `fc` of K outputs, N(0, 0.01) as in pretraining."""
    width: int = model.fc.in_features  # type: ignore[union-attr, assignment]
    model.fc = nn.Linear(width, classes)
    nn.init.normal_(model.fc.weight, std=0.01)
    nn.init.zeros_(model.fc.bias)


def parameter_sets(
    model: nn.Module, setting: Setting, lr: float, learn: str
) -> list[dict[str, Any]]:
    """Parameters as optimizer groups, the last layer's with a rate of its own; norms no decay."""
    head = set(model.fc.parameters())  # type: ignore[union-attr]
    if learn == "classifier":
        model.requires_grad_(False)
        for module in (model.fc, *(m for m in model.modules() if isinstance(m, NORMS))):
            module.requires_grad_(True)
    groups = []
    for group in parameter_groups(model, weight_decay=setting.decay):
        for mine, factor in ((False, 1.0), (True, setting.head_lr)):
            chosen = [each for each in group["params"] if (each in head) == mine]
            if chosen:
                groups.append(group | {"params": chosen, "lr": lr * factor})
    return groups


def make_schedule(optimizer: SGD, options: FineTune, steps: int) -> LambdaLR:
    """A warm-up and three equally spaced drops to a tenth, or one cycle."""
    if options.schedule == "one_cycle":
        return one_cycle(optimizer, steps)
    drops = sorted({round(steps * quarter / 4) for quarter in (1, 2, 3)} - {0})
    warmup = int(options.warmup * steps)
    return warmup_multistep(optimizer, milestones=drops, warmup=warmup, warmup_start=0.1)


@torch.no_grad()
def score_finetune(
    model: nn.Module, test: Listing, options: FineTune, reading: Reading, *, training: bool = False
) -> Outcome:
    """What the network makes of images: a centre crop of each.

    training: these are held-out training images, of which unreadable ones may be skipped.
    """
    before, device = model.training, dist.device()
    model.eval()
    images = Images(test, centre_view(options.size, options.resize))
    bad = reading.policy() if training else None
    scores = Scores()
    for batch, labels in eval_loader(images, options.images, workers=reading.workers, bad=bad):
        with torch.autocast(device.type, torch.bfloat16, enabled=options.amp):
            logits = model(reading.normalise(batch))
        scores.add(logits.float(), labels)
    model.train(before)
    return scores.outcome()
