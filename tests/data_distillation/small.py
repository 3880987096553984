"""The settings of a run of a few thousand parameters on a few scenes, and labels made by hand."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.run import checkpoint
from data_distillation import config, train
from data_distillation.config import Config, Data
from data_distillation.inputs.builtin import Builtin, write_builtin
from data_distillation.model import Network

BUILTIN = Builtin(labelled=12, unlabelled=8, test=6)  # those of experiment=smoke
NETWORK = Network(
    backbone="small",
    channels=8,
    hidden=16,
    pool=4,
    keypoint_convs=1,
    keypoint_channels=8,
    map_size=16,
    least_keypoints=0,
    mask_convs=1,
    mask_size=8,
    anchors=[12, 24],
    short_sides=[64],
    long_side=128,
    proposals=[30, 20],
    rois=8,
    score=0.0,  # an untrained network is sure of nothing
    detections=10,
    cls_std=0.05,
)
JOINTS = ["nose", "left_hand", "right_hand"]


def settings(folder: Path, **data: Any) -> Config:
    """A run of two steps on the built-in scenes."""
    plain = {"name": "builtin", "root": "", "unlabelled": "unlabelled", "truth": "hidden"}
    plain |= {"workers": 0, "builtin": replace(BUILTIN)}
    return Config(
        steps=2,
        batch_size=4,
        images_per_gpu=2,
        optimizer="adamw",
        lr=1e-3,
        bias_lr=1.0,
        bias_decay=True,
        init="",
        log_every=1,
        output_dir=str(folder),
        data=Data(**plain | data),
        network=replace(NETWORK),
        test=config.Test(batch_size=4, images=0),
    )


def run(cfg: Config) -> dict[str, float]:
    """`train.py` in this process."""
    try:
        return train.train(cfg)
    finally:
        checkpoint.unlock(cfg.output_dir)


def saved(cfg: Config) -> dict[str, Any]:
    """The parts of the last checkpoint of a run that has ended."""
    return checkpoint.load(Path(cfg.output_dir) / f"checkpoint-{cfg.steps:08d}.pt")["parts"]


def lines(folder: Path | str) -> list[dict]:
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def write_hidden(file: Path) -> Path:
    """The hidden truth of the unlabelled scenes as a file of annotate.py."""
    root = write_builtin(BUILTIN)
    content = json.loads((root / "annotations" / "hidden.json").read_text())
    for number, annotation in enumerate(content["annotations"]):
        annotation |= {"score": 0.5 + number / 100, "source": "auto"}
    content["info"] = {"folder": str(root / "images")}
    file.write_text(json.dumps(content))
    return file


def thing(points: Sequence[float] = (8, 9, 2, 20, 20, 1, 0, 0, 0), **fields: Any) -> dict[str, Any]:
    """An object of 24 x 24 pixels with three joints."""
    plain = {"category_id": 1, "bbox": [6, 6, 24, 24], "area": 576, "iscrowd": 0}
    seen = sum(flag > 0 for flag in points[2::3])
    return plain | {"keypoints": list(points), "num_keypoints": seen} | fields


def write_split(
    root: Path,
    split: str,
    images: Sequence[Sequence[dict]],
    *,
    joints: Sequence[str] = JOINTS,
    name: str = "person",
    info: dict | None = None,
) -> Path:
    """A split in COCO's format of noise images of 48 x 40 pixels with these objects."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    category = {"id": 1, "name": name} | ({"keypoints": list(joints)} if joints else {})
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [category]}
    for number, things in enumerate(images, 1):
        pixels = random.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / split / f"{number}.png")
        entry = {"id": number, "file_name": f"{number}.png", "width": 48, "height": 40}
        content["images"].append(entry)
        for each in things:
            own = {"id": len(content["annotations"]) + 1, "image_id": number}
            content["annotations"].append(own | each)
    if info is not None:
        content["info"] = info
    path = root / "annotations" / f"{split}.json"
    path.write_text(json.dumps(content))
    return path


def of_files(root: Path, folder: Path, **data: Any) -> Config:
    """A run on the splits `train` and `val` of a folder, of which nothing is unlabelled."""
    cfg = settings(folder)
    plain = {"name": "coco_format", "root": str(root), "workers": 0, "flip": 0.0}
    cfg.data = Data(**plain | data)
    cfg.network.short_sides, cfg.test.sigmas = [48], [0.1, 0.1, 0.1]
    return cfg
