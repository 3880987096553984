"""The settings of a run of a few thousand parameters, and tiny videos and photos for it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.run import checkpoint
from nonlocal_ import train
from nonlocal_.config import Clip, Config, Data, Test
from nonlocal_.inputs.builtin import Builtin
from nonlocal_.model import Network
from nonlocal_.net.detectors import Detector

DETECTOR: dict[str, Any] = {  # runs in a tenth of a second
    "backbone": "resnet18",
    "channels": 16,
    "hidden": 32,
    "mask_convs": 1,
    "keypoint_convs": 2,
    "keypoint_channels": 16,
    "anchors": [16, 32, 64, 96, 128],
    "short_sides": [64],
    "long_side": 96,
    "proposals": [40, 20],
    "rois": 8,
    "score": 0.0,  # an untrained network is sure of nothing
    "detections": 5,
}


def settings(folder: Path | str, **options: Any) -> Config:
    """A run of three steps on the built-in clips."""
    builtin = Builtin(train=8, test=6)  # those of experiment=smoke
    plain = {
        "steps": 3,
        "batch_size": 4,
        "per_gpu": 2,
        "precise_norm": 0,
        "init": "",
        "log_every": 1,
        "output_dir": str(folder),
        "data": Data(name="builtin", root="", workers=0, builtin=builtin),
        "clip": Clip(frames=4, stride=2, jitter=[32, 40], crop=32),
        "network": Network(depth="small", at=["res3.0"]),
        "test": Test(size=32, images=0),
    }
    return Config(**plain | options)


def videos(root: Path, **options: Any) -> Data:
    """The options of the lists train.txt and val.txt of a folder."""
    plain = {"root": str(root), "train": "train.txt", "val": "val.txt", "workers": 0}
    return Data(name="videos", **plain | options)


def photos(root: Path, folder: Path, **options: Any) -> Config:
    """A detector on the photos that `write_photos` wrote."""
    data = Data(name="coco", root=str(root), train="train", val="val", workers=0)
    plain = {"task": "detection", "network": Network(), "detector": Detector(**DETECTOR)}
    return settings(folder, data=data, **plain | options)


def run(cfg: Config) -> dict[str, float]:
    """`train.py` in this process."""
    try:
        return train.run(cfg)
    finally:
        checkpoint.unlock(cfg.output_dir)


def saved(cfg: Config) -> dict[str, Any]:
    """The parts of the last checkpoint of a run that has ended."""
    return checkpoint.load(Path(cfg.output_dir) / f"checkpoint-{cfg.steps:08d}.pt")["parts"]


def lines(folder: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def write_array(file: Path, frames: int, height: int = 32, width: int = 48, seed: int = 0) -> Path:
    """A video of noise, an array."""
    rng = np.random.default_rng(seed)
    np.save(file, rng.integers(0, 256, (frames, height, width, 3), np.uint8))
    return file


def write_list(root: Path, name: str, labels: Sequence[str], frames: int = 9) -> None:
    """A list of videos of noise with these labels, and the videos."""
    for number, _ in enumerate(labels):
        write_array(root / f"{name}{number}.npy", frames + number, seed=number)
    text = "".join(f"{name}{number}.npy {label}\n" for number, label in enumerate(labels))
    (root / f"{name}.txt").write_text(text)


def write_photos(root: Path, joints: Sequence[str] = ()) -> Path:
    """The splits train and val of four photos each in COCO's format, one object in each."""
    (root / "annotations").mkdir(parents=True)
    rng = np.random.default_rng(0)
    corners = [8, 8, 48, 8, 48, 56, 8, 56]
    for split in ("train", "val"):
        entries, things = [], []
        (root / split).mkdir()
        for number in range(1, 5):
            pixels = rng.integers(0, 255, (64, 72, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / f"{number}.png")
            entry = {"id": number, "file_name": f"{number}.png", "width": 72, "height": 64}
            entries.append(entry)
            shape = {"segmentation": [corners], "bbox": [8, 8, 40, 48], "area": 40 * 48}
            if joints:
                shape["keypoints"] = [20, 20, 2] * len(joints)
                shape["num_keypoints"] = len(joints)
            things.append(
                {"id": number, "image_id": number, "category_id": 3, "iscrowd": 0} | shape
            )
        category = {"id": 3, "name": "thing"} | ({"keypoints": list(joints)} if joints else {})
        content = {"images": entries, "annotations": things, "categories": [category]}
        for stem in ("instances", "person_keypoints"):
            file = root / "annotations" / f"{stem}_{split}.json"
            file.write_text(json.dumps(content))
    return root
