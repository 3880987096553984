"""Look into a trained model: how the loss spreads over its anchors, Fig. 4 of the paper.

    python analyse.py run=outputs/demo/20260101-120000/focal_loss

writes `cdf.png` and `cdf.csv` into the run's folder and prints the shares.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import sys
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from common import dist
from common.coco.dataset import Categories
from common.config import run as run_command
from common.config import typed
from common.run import checkpoint
from focal_loss import cdf, data
from focal_loss.config import Config
from focal_loss.model import RetinaNet
from focal_loss.targets.assign import assign

POSITIVES, NEGATIVES = 100_000, 10_000_000  # samples of the paper's figure


def load(folder: Path) -> tuple[RetinaNet, Config, Categories]:
    """The trained model of a run, averaged where the run averages, its settings, its categories."""
    files = sorted(folder.glob("checkpoint-*.pt"))
    settings = folder / ".hydra" / "config.yaml"
    if not files or not settings.is_file():
        raise ValueError(f"{folder} holds no finished run: give run=outputs/... of train.py.")
    parts = checkpoint.load(files[-1])["parts"]
    schema = OmegaConf.structured(Config)
    cfg: Config = typed(cast(DictConfig, OmegaConf.merge(schema, OmegaConf.load(settings))))
    model = RetinaNet(num_classes=len(parts["category_ids"]), **asdict(cfg.model))
    averaged = {  # AveragedModel's names
        name.removeprefix("module."): value
        for name, value in parts.get("average", {}).items()
        if name.startswith("module.")
    }
    print(checkpoint.load_matching(model, averaged or parts["model"]))
    model.to(dist.device()).to(memory_format=torch.channels_last)
    return model.eval(), cfg, Categories(**parts["categories"], where=str(files[-1]))


@torch.no_grad()
def anchor_logits(model: RetinaNet, cfg: Config, categories: Categories) -> tuple[Tensor, Tensor]:
    """x_t of positive and of negative logits on the validation pictures, as many as in Fig. 4."""
    dataset = data.build(cfg.data, "val", categories)
    positives, negatives = [], []
    device = dist.device()
    share = NEGATIVES / max(1, len(dataset))  # of each picture, so that all pictures count
    for batch in tqdm(data.validation_batches(dataset, cfg), "anchors", leave=False, disable=None):
        batch = batch.to(device)
        logits, _ = model(batch.images)
        labels, _ = assign(
            model.anchors(*batch.images.shape[-2:]),
            [target["boxes"] for target in batch.targets],
            [target["labels"] for target in batch.targets],
            low_quality=cfg.loss.low_quality,
            positive=cfg.loss.positive_iou,
            negative=cfg.loss.negative_iou,
        )
        for one_logits, one_labels in zip(logits, labels, strict=True):
            positive, negative = cdf.split_logits(one_logits.float(), one_labels)
            positives.append(positive.cpu())
            negatives.append(cdf.thin(negative, max(1, int(share))).cpu())
    return cdf.thin(torch.cat(positives), POSITIVES), cdf.thin(torch.cat(negatives), NEGATIVES)


def report(folder: Path) -> None:
    """Write Fig. 4 of a run and print its shares as a Markdown table."""
    model, cfg, categories = load(folder)
    positives, negatives = anchor_logits(model, cfg, categories)
    rows = cdf.write(folder, positives, negatives)
    print(f"\nShare of the loss; {len(positives):,} positives, {len(negatives):,} negatives")
    print("| " + " | ".join(rows[0]) + " |\n|" + "--:|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{value:.4g}" for value in row.values()) + " |")
    print(f"\n{folder / 'cdf.png'}")


def main() -> None:
    """Read `run=FOLDER` from the command line."""
    words = dict(word.partition("=")[::2] for word in sys.argv[1:])
    if list(words) != ["run"]:
        raise ValueError("usage: python analyse.py run=outputs/... (a folder that train.py wrote)")
    report(Path(words["run"]))


if __name__ == "__main__":
    run_command(main)
