"""The data as the paper sees it: images that people labelled, and images that a teacher labelled.

M objects of an image, J joints. Boxes are float xyxy in pixels of the image, joints continuous x, y
and visibility; both kinds of images look the same to the loss (Sec. 3).
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common import dist
from common.coco.dataset import Categories
from common.coco.files import find_split, has_split, read_json
from common.data import BadImages, eval_loader, train_loader
from common.sampling import mix
from data_distillation.config import Config
from data_distillation.config import Data as DataConfig
from data_distillation.inputs.builtin import write_builtin
from data_distillation.inputs.labelled import Labelled
from data_distillation.inputs.mixture import MixtureStream
from data_distillation.inputs.photos import Photos, find_photos
from data_distillation.labels.report import say_count

Examples = tuple[list[Tensor], list[dict[str, Any]]]


@dataclass
class Piece:
    """Some images and their targets, as much as one of the paper's GPUs has in a step."""

    images: list[Tensor]
    targets: list[dict[str, Any]]
    share: float = 1.0  # of its losses in those of the step, for this process
    number: int = 0  # among the pieces of all processes, from which its seed follows

    @property
    def files(self) -> list[str]:
        """The images' files, for messages."""
        return [target["file"] for target in self.targets]

    def to(self, device: torch.device) -> Examples:
        """What the network takes."""
        return to_device((self.images, self.targets), device)


class Mixture(Dataset):
    """The manual images, then the automatic ones, if there are any.

    contents: of the files of both, as of `hash_contents`.
    """

    def __init__(
        self,
        manual: Labelled,
        automatic: Labelled | None,
        share: float,
        contents: tuple[str, str] = ("", ""),
    ) -> None:
        self.manual, self.automatic, self.contents = manual, automatic, contents
        self.chosen = np.zeros(0, np.int64)
        if automatic is not None:  # the images of a smaller share are in all larger ones
            order = np.random.default_rng(mix(11)).permutation(len(automatic))
            self.chosen = order[: max(1, round(share * len(automatic)))]
        parts = [manual.files, *([automatic.files[self.chosen]] if automatic else [])]
        self.files = np.concatenate(parts)

    def __len__(self) -> int:
        return len(self.manual) + len(self.chosen)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        own = index - len(self.manual)
        if own < 0:
            image, target = self.manual[index]
            return image, target | {"automatic": False}
        assert self.automatic is not None
        image, target = self.automatic[int(self.chosen[own])]
        return image, target | {"automatic": True}

    @property
    def has_ignored(self) -> bool:
        """Whether some automatic image has regions that count neither as object nor background."""
        return self.automatic is not None and bool(self.automatic.source.counts()[1][:, 1].any())

    def batches(self, cfg: Config, start: int, stop: int) -> Iterator[list[Piece]]:
        """Its share, for this process, of the steps after `start` to `stop`, cut for its GPUs.

        Raises ValueError unless `batch_size` is a multiple of `images_per_gpu` times processes.
        """
        share = cfg.images_per_gpu * dist.world_size()
        if cfg.batch_size % share:
            raise ValueError(
                f"batch_size={cfg.batch_size} is no multiple of {share}, images_per_gpu times "
                "processes: choose one."
            )
        count = cfg.batch_size // share
        wide = [self.manual.wide()]
        if self.automatic is not None:
            wide.append(self.automatic.wide()[self.chosen])
        loader = train_loader(
            self,
            MixtureStream(
                len(self.manual),
                len(self.chosen),
                cfg.batch_size,
                ratio=cfg.data.ratio,
                seed=cfg.seed,
                first=np.concatenate(wide) if cfg.data.aspect_order else None,
            ),
            start,
            stop,
            workers=cfg.data.workers,
            collate=collate,
            accumulate=count,
            bad=BadImages(cfg.data.bad_images),
        )
        return (cut(examples, cfg, count) for examples in loader)


def cut(examples: Examples, cfg: Config, count: int) -> list[Piece]:
    """The pieces of a step; with `automatic_weight` each source of a piece is one of its own."""
    images, targets = examples
    size, pieces = cfg.images_per_gpu, []
    for k in range(count):
        places = range(size * k, size * (k + 1))
        groups = {1.0: list(places)}
        if cfg.automatic_weight != 1:
            groups = {
                weight: [place for place in places if targets[place]["automatic"] == automatic]
                for automatic, weight in ((False, 1.0), (True, cfg.automatic_weight))
            }
        for source, (weight, group) in enumerate(groups.items()):
            if group:
                share = weight * len(group) / size / count
                number = 2 * (dist.rank() * count + k) + source
                some = [images[place] for place in group], [targets[place] for place in group]
                pieces.append(Piece(some[0], some[1], share, number))
    return pieces


def locate(cfg: DataConfig, split: str, task: str) -> tuple[list[Path], list[Path]]:
    """Folders and files of a split, or of several joined by +."""
    root = root_of(cfg)
    pairs = [find_split(root, part, kind=kind_of(task)) for part in split.split("+")]
    return [path for some, _ in pairs for path in some], [
        path for _, some in pairs for path in some
    ]


def hash_contents(files: Sequence[Path]) -> str:
    """What annotation files hold, to tell a training from that on files that have changed."""
    found = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:16]


def kind_of(task: str) -> str:
    """Which of COCO's annotation files a task reads."""
    return "keypoints" if task == "keypoints" else "boxes"


def root_of(cfg: DataConfig) -> Path:
    """The folder of the data set; the built-in one is written first."""
    if cfg.name == "builtin":
        return write_builtin(cfg.builtin)
    if not Path(cfg.root).is_dir():
        raise ValueError(f"data.root={cfg.root} is no folder: give the one of the data set.")
    return Path(cfg.root)


def build_manual(cfg: DataConfig, task: str) -> Labelled:
    """The labelled images to train on."""
    folders, files = locate(cfg, cfg.train, task)
    return Labelled(folders, files, cfg, task, training=True, skip_empty=cfg.skip_empty)


def build_training(cfg: DataConfig, task: str) -> Mixture:
    """The images to train on: the labelled ones, and those of the file `data.automatic`."""
    manual = build_manual(cfg, task)
    automatic, made = None, ""
    if cfg.automatic:
        file = Path(cfg.automatic)
        folder, made = image_folder(file), hash_contents([file])
        unlimited = replace(cfg, limit=0)
        automatic = Labelled(
            [folder], [file], unlimited, task, training=True, categories=manual.categories
        )
    _, files = locate(cfg, cfg.train, task)
    return Mixture(manual, automatic, cfg.automatic_share, (hash_contents(files), made))


def build_validation(cfg: DataConfig, task: str, categories: Categories | None = None) -> Labelled:
    """The images to evaluate on."""
    folders, files = locate(cfg, cfg.val, task)
    return Labelled(folders, files, cfg, task, training=False, categories=categories)


def find_unlabelled(cfg: DataConfig, task: str) -> Photos:
    """The images to label: those of a split, whose annotations are not read, or of a folder."""
    root, kind = root_of(cfg), kind_of(task)
    if has_split(root, cfg.unlabelled, kind=kind):
        folders, found = find_split(root, cfg.unlabelled, kind=kind)
        if len(found) == 1:
            return find_photos(found[0], folders[0], cfg.bad_images)
    for folder in (root / cfg.unlabelled, Path(cfg.unlabelled)):
        if folder.is_dir():
            return find_photos(folder, bad_images=cfg.bad_images)
    raise ValueError(
        f"data.unlabelled={cfg.unlabelled} is neither one split of {root}, with its images in "
        "`annotations`, nor a folder of images: give either."
    )


def image_folder(file: Path) -> Path:
    """The folder of the images of a file that annotate.py wrote."""
    if not file.is_file():
        raise ValueError(
            f"data.automatic={file} does not exist: give teacher, or a file of annotate.py."
        )
    content = read_json(file)
    info = content.get("info") if isinstance(content, dict) else None
    if not isinstance(info, dict) or not isinstance(info.get("folder"), str):
        raise ValueError(
            f"data.automatic={file} is no file of annotate.py: its `info` names no folder."
        )
    if not content.get("images") or not content.get("annotations"):
        raise ValueError(
            f"data.automatic={file} has no label: make some, by a longer trained teacher or a "
            "higher labels.factor, or give data.automatic=''."
        )
    if not Path(info["folder"]).is_dir():
        raise ValueError(
            f"data.automatic={file}: its images were in {info['folder']}, which is no folder: run "
            f"annotate.py threshold out={file} root=DIR to say where they are."
        )
    return Path(info["folder"])


def check_labels(training: Mixture, cfg: Config) -> None:
    """Print what there is to learn from; ValueError where there is nothing."""
    manual, automatic = training.manual, training.automatic
    if not any(manual.has_object(int(index)) for index in manual.kept):
        raise ValueError(
            f"data.train={cfg.data.train} has no image with "
            f"{'a visible joint' if cfg.task == 'keypoints' else 'an object'}: give another split."
        )
    if automatic is not None:
        file = cfg.data.automatic
        if automatic.joints != manual.joints:
            raise ValueError(
                f"the joints of data.automatic={file} are not those of data.train="
                f"{cfg.data.train}: {', '.join(automatic.joints) or 'none'} there and "
                f"{', '.join(manual.joints) or 'none'} here."
            )
    if dist.is_main():
        print(f"{say_count(len(manual), 'labelled image')} ({manual.digest})", end="")
        print(f", {len(training.chosen):,} with automatic labels" if automatic else "")


def collate(examples: list[tuple[Tensor, dict[str, Any]]]) -> Examples:
    """Images of any sizes, and their targets."""
    return [image for image, _ in examples], [target for _, target in examples]


def to_device(examples: Examples, device: torch.device) -> Examples:
    """What the network takes: images in 0..1, labels from 1; 0 is the background."""
    images, targets = examples
    inputs = [image.to(device, non_blocking=True).float() / 255 for image in images]
    names = ("boxes", "labels", "keypoints", "masks", "ignore")
    wanted = [
        {name: target[name].to(device, non_blocking=True) for name in names if name in target}
        for target in targets
    ]
    for each in wanted:
        each["labels"] = each["labels"] + 1
        if "masks" in each:
            each["masks"] = each["masks"].to(torch.uint8)  # the network resizes them
    return inputs, wanted


def validation_batches(dataset: Labelled, cfg: Config) -> Iterable[Examples]:
    """The share of this process in the images to evaluate on, each exactly once."""
    return eval_loader(dataset, cfg.test.batch_size, workers=cfg.data.workers, collate=collate)
