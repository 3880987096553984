"""Features of all images of a problem, written as a feature folder, by all processes together."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common import dist
from common.data import eval_loader

from ..features.formats import new_folder, write_classes
from ..features.images import Images, ImageSet
from ..net.trunks import Network
from ..weights.initialise import SEEN

NEGATIVE = (
    "Some features of this trunk are negative, which a hallucinator cannot imagine: its last layer "
    "is a ReLU."
)


def extract(
    network: Network,
    images: Images,
    folder: str | Path,
    *,
    run: str | Path = "",
    views: int = 0,
    batch_size: int = 256,
    workers: int = 0,
    amp: bool = False,
) -> None:
    """Write the features of the base and novel classes of both splits, whole or not at all.

    Rows keep the order of the images, for the benchmark's split files; see `features.formats` for
    the files. run: the backbone's folder, which classes.json names so that further images can
    become rows. views: random ones of each training image, of which features are written too; they
    are the same in every call. batch_size: images of this process at a time. amp: bfloat16 in the
    network.
    Raises ValueError where a folder is there already, or a feature is not finite.
    """
    options = network.options
    if not run and not options.weights:
        raise ValueError("the trunk has random weights: set trunk.weights=, or train it first.")
    device = dist.device()
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    network.to(device).to(memory_format=layout).eval()
    classes = sorted(images.split.base + images.split.novel)
    with new_folder(Path(folder)) if dist.is_main() else nullcontext() as made:
        part = dist.gather(made)[0]
        datasets = {split: images.load(split, classes) for split in ("train", "test")}
        if views:
            datasets["train_views"] = images.load("train", classes, training=True, views=views)
        lowest = []
        for name, dataset in datasets.items():
            paths = create(part, name, dataset, network.width)
            lowest.append(
                fill(network, dataset, paths, batch_size=batch_size, workers=workers, amp=amp)
            )
        if dist.is_main():
            notes = [*images.notes]
            notes += [SEEN] if options.weights == "imagenet" else []
            notes += [NEGATIVE] if min(lowest) < 0 else []
            write_classes(part, images.split, describe(network, images, run), notes)
    dist.barrier()  # the folder has its name now


def describe(network: Network, images: Images, run: str | Path) -> dict[str, Any]:
    """What a further image needs to become a row, see `weights.initialise.reopen`."""
    options = asdict(network.options)
    if Path(options["weights"]).is_file():
        options["weights"] = str(Path(options["weights"]).resolve())
    where = str(Path(run).resolve()) if run else ""
    view = asdict(images.view)
    return {"folder": where, "options": options, "view": view, "source": images.name}


def create(part: Path, name: str, dataset: ImageSet, width: int) -> list[Path]:
    """The files, empty yet, of features float32 (N, d) and labels int64 (N,).

    Those of views are features float32 (N, V, d) alone.
    """
    rows = len(dataset.pool)
    if name == "train_views":
        shapes: dict[str, tuple[int, ...]] = {name: (rows, dataset.views, width)}
    else:
        shapes = {name: (rows, width), f"{name}_labels": (rows,)}
    paths = [part / f"{each}.npy" for each in shapes]
    if dist.is_main():
        for path, dtype, shape in zip(paths, ("f4", "i8"), shapes.values(), strict=False):
            make_array(path, dtype, shape)
    dist.barrier()
    return paths


def make_array(path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    """A .npy of zeros whose whole place on the disk is taken; ValueError where there is none.

    A mapped file with holes on a disk that fills up would end the process without a word (SIGBUS).
    """
    try:
        np.lib.format.open_memmap(path, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise ValueError(
            f"features of shape {shape} in {path.parent} could not be written ({error.strerror}): "
            "free space, or choose another disk by FAIR_VISION_CACHE or hydra.run.dir."
        ) from error


@torch.no_grad()
def fill(
    network: Network,
    dataset: ImageSet,
    paths: Sequence[Path],
    *,
    batch_size: int,
    workers: int,
    amp: bool,
) -> float:
    """Write this process's examples, every `world_size`-th; the lowest feature of all processes."""
    rank, world, device = dist.rank(), dist.world_size(), dist.device()
    values, *others = (np.load(path, mmap_mode="r+") for path in paths)  # others: labels, or none
    by_view = values.reshape(len(dataset.pool), dataset.views, network.width)
    own = np.arange(rank, len(dataset), world)
    loader = eval_loader(dataset, batch_size, workers=workers)
    done, lowest = 0, 0.0
    name = f"features of {paths[0].stem}"
    for images, found in tqdm(loader, name, disable=None if dist.is_main() else True):
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            features = network.features(images.to(device, non_blocking=True)).float().cpu()
        require_finite(features, dataset, rank + world * done, world)
        view, rows = np.divmod(own[done : done + len(found)], len(dataset.pool))
        by_view[rows, view] = features.numpy()
        for labels in others:
            labels[rows] = found.numpy()
        done += len(found)
        lowest = min(lowest, features.min().item())
    for array in (values, *others):
        array.flush()
    return min(dist.gather(lowest))


def require_finite(features: Tensor, dataset: ImageSet, first: int, every: int) -> None:
    """ValueError, naming an image, where its features (B, d) are not finite numbers."""
    sound = features.isfinite().all(1)
    if not sound.all():
        index = first + every * int((~sound).int().argmax())
        raise ValueError(
            f"the features of {dataset.files[index]} are not finite: look at the trunk's weights."
        )
