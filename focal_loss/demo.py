"""One image in, its detections out: `python demo.py run=outputs/... image=photo.jpg`.

Without `image` the first built-in validation images are shown. Writes `demo.png` (or out=FILE).
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import MISSING

from common import dist, draw
from common.config import read_options
from common.config import run as run_command
from common.images import read_image
from focal_loss import data
from focal_loss.detect import Detector
from focal_loss.evaluate import load_run


@dataclass
class Options:
    """Words of the command line."""

    run: str = MISSING  # a folder that train.py wrote
    image: str = ""  # an image file
    out: str = "demo.png"
    score: float = 0.3  # from which a detection is drawn


@torch.no_grad()
def main() -> None:
    """Read the words of the command line, detect, draw."""
    options: Options = read_options(Options, usage=__doc__)
    model, cfg, categories = load_run(Path(options.run))
    view = data.build(cfg.data, "val", categories)
    image = read_image(options.image) if options.image else view[0][0]
    size = (image.shape[1], image.shape[2])
    target = {"boxes": torch.zeros(0, 4), "size": size, "file": options.image or "built-in"}
    resized = view.resize(image, target)[0] if view.resize else image
    batch = data.Collate(cfg.data)([(resized, target)]).to(dist.device())
    found = Detector(score=options.score)(model, batch.images, batch.sizes, [size])[0]
    drawn = draw.boxes(
        image,
        found["boxes"].cpu(),
        labels=found["labels"].cpu(),
        scores=found["scores"].cpu(),
        names=view.names,
        scale=max(1, round(480 / min(size))),
    )
    draw.save_png(drawn, Path(options.out))
    columns = (found[key].tolist() for key in ("boxes", "scores", "labels"))
    for box, score, label in zip(*columns, strict=True):
        print(f"{view.names[label]:>12} {score:.2f}  " + " ".join(f"{x:.1f}" for x in box))
    print(options.out)


if __name__ == "__main__":
    run_command(main)
