"""Stage-wise training, Sec. 4.1: one detector, and mask branches that are trained on it.

Settings that differ in the mask branch alone share their detector: it is trained once, in a folder
that follows from its settings and its seed.
"""

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common import config, files
from common.tables.runs import read_result
from maskx_rcnn.config import MAY_CHANGE, Config, Paintings
from maskx_rcnn.model import MaskBranch

DETECTORS = Path("outputs/detectors")


def detector_settings(cfg: DictConfig) -> Config:
    """The settings of the detector that `cfg` starts from: boxes of all classes, no masks."""
    plain = OmegaConf.merge(cfg, {"versus": {}, "detector": [], "init": cfg.detector_init})
    merged = OmegaConf.merge(plain, OmegaConf.from_dotlist(list(cfg.detector)))
    assert isinstance(merged, DictConfig)
    settings: Config = config.to_dataclass(merged)
    images = replace(settings.data, masks="all", mask_share=0.0, all_masks=False)
    if images.name != "paintings":
        images.paintings = Paintings()  # they play no part
    settings = replace(
        settings,
        only_evaluate=False,
        test=replace(settings.test, grabcut=False),
        branch=MaskBranch(kind="agnostic"),
        data=images,
    )
    values = flatten(asdict(settings))
    kept = {k: v for k, v in values.items() if not k.startswith((*MAY_CHANGE, "output_dir"))}
    kept |= {"steps": settings.steps, "data.root": settings.data.root}
    name = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]
    return replace(settings, output_dir=str(DETECTORS.absolute() / f"{name}-seed{settings.seed}"))


def flatten(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """{"data": {"flip": 1}} -> {"data.flip": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = flatten(value, f"{before}{name}.") if isinstance(value, dict) else None
        flat |= inner if inner is not None else {f"{before}{name}": value}
    return flat


def share_detector(cfg: DictConfig, train: Callable[[Config, int], object]) -> DictConfig:
    """`cfg` with `init`: the folder of its detector, which `train` trains where it is not there."""
    settings = detector_settings(cfg)
    folder = Path(settings.output_dir)
    with waiting(folder):
        found = read_result(folder)
        if found is None or found["steps"] != settings.steps:
            print(
                f"The detector of this run is trained first, in {files.relative(folder)}.",
                flush=True,
            )
            train(settings, settings.processes)
    merged = OmegaConf.merge(cfg, {"init": str(folder), "detector": []})
    assert isinstance(merged, DictConfig)
    return merged


@contextmanager
def waiting(folder: Path) -> Iterator[None]:
    """Alone among the processes that want this detector: the others wait until it is trained."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for the detector in {files.relative(folder)}.", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
