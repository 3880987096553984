"""The data as this paper sees it: images with panoptic maps, and what the networks learn from.

H x W pixels; a map is `ids` (H, W) int32, 0 void, with `segments`, dicts of COCO's keys. A source
(`PanopticScenes`, `Photos`) gives image, ids and segments as they are; `Panoptic` is one split of
it as a recipe wants it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from common import dist
from common.data import BadImages, eval_loader, train_loader
from common.sampling import SampleStream
from common.transforms import scaled_size
from panoptic.config import Config
from panoptic.config import Data as DataConfig
from panoptic.files.categories import Category, require_equal
from panoptic.inputs.augment import augment, resize
from panoptic.inputs.photos import Photos, open_photos
from panoptic.inputs.scenes import PanopticScenes
from panoptic.inputs.targets import Labels, training_target


def build(
    cfg: DataConfig,
    split: str,
    *,
    semantic: str = "stuff",
    categories: Mapping[int, Category] | None = None,
) -> "Panoptic":
    """The images of `split`, "train" or "val", with what that split does to them.

    semantic: "stuff" or "all", see `Labels`. categories: those of the training set, which this one
    has to share. Raises ValueError, naming file and remedy, for data that are not as they should.
    """
    training = split == "train"
    name = cfg.train if training else cfg.val
    source: PanopticScenes | Photos
    if cfg.name == "scenes":
        source = PanopticScenes(cfg.scenes, training)
    else:
        source = open_photos(cfg.name, cfg.root, name)
    if categories is not None:
        splits = (f"the split {cfg.train!r} to train on", f"the split {cfg.val!r} to evaluate on")
        require_equal(categories, source.categories, files=splits)
    return Panoptic(source, cfg, training, Labels.of(categories or source.categories, semantic))


class Panoptic(Dataset):
    """Images and panoptic maps of one split: (image uint8 (3, H, W), target).

    target: image_id, file, size (height, width) of the file, `segments` and `ids` (H, W) int32.
    In training `ids` are those of the image returned, and there are boxes (M, 4), labels (M,),
    masks (M, H, W) and semantic (H, W) of `training_target`. In evaluation `ids` have the size of
    the file, where PQ is computed, whatever the size of the image returned.
    """

    def __init__(
        self, source: PanopticScenes | Photos, cfg: DataConfig, training: bool, labels: Labels
    ) -> None:
        self.source, self.cfg, self.training, self.labels = source, cfg, training, labels
        self.categories: dict[int, Category] = source.categories
        self.files: Sequence[str] = source.files
        limit = cfg.limit if training else cfg.val_limit
        self.count = min(len(source), limit or len(source))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image, ids, segments = self.source[index]
        target: dict[str, Any] = {
            "image_id": self.source.image_ids[index],
            "file": self.files[index],
            "size": tuple(ids.shape),
            "segments": segments,
        }
        if self.training:
            image, ids = augment(image, ids, self.cfg)
            target |= training_target(ids, segments, self.labels)
        elif self.cfg.resize:
            size = scaled_size(ids.shape, self.cfg.test_short_side, self.cfg.test_long_side)
            image, _ = resize(image, ids, size)
        return image, target | {"ids": ids}

    def groups(self, minimum: int) -> list[int] | None:
        """1 for a tall image, 0 for a wide one; None where either has fewer than `minimum`."""
        tall = [int(height > width) for height, width in self.source.sizes[: self.count]]
        return tall if min(tall.count(0), tall.count(1)) >= minimum else None


@dataclass
class Batch:
    """Images uint8 (3, H, W) of any sizes, and their targets."""

    images: list[Tensor]
    targets: list[dict[str, Any]]

    @property
    def files(self) -> list[str]:
        """The images' files, for messages."""
        return [target["file"] for target in self.targets]

    def pin_memory(self) -> "Batch":
        """The images in page-locked memory; the loader calls it where there is a GPU."""
        return replace(self, images=[image.pin_memory() for image in self.images])

    def split(self, parts: int) -> list["Batch"]:
        """The batch in `parts` equal pieces, for gradient accumulation; ValueError if none fit."""
        size, rest = divmod(len(self.images), parts)
        if rest or not size:
            raise ValueError(f"{len(self.images)} images cannot be cut into {parts} equal pieces")
        starts = range(0, len(self.images), size)
        return [Batch(self.images[i : i + size], self.targets[i : i + size]) for i in starts]


def collate(examples: list[tuple[Tensor, dict[str, Any]]]) -> Batch:
    """Images are padded within the network only, where they are on the device."""
    return Batch([image for image, _ in examples], [target for _, target in examples])


def training_batches(dataset: Panoptic, cfg: Config, start: int, stop: int) -> Iterable[Batch]:
    """The batches of this process in the steps after `start`, up to `stop`.

    Raises ValueError unless each batch can be cut into `accumulate` equal pieces a process.
    """
    groups = dataset.groups(cfg.batch_size) if cfg.data.aspect_groups else None
    return train_loader(
        dataset,
        SampleStream(len(dataset), cfg.batch_size, seed=cfg.seed, groups=groups),
        start,
        stop,
        workers=cfg.data.workers,
        collate=collate,
        accumulate=cfg.accumulate,
        bad=BadImages(cfg.data.bad_images),
    )


class _Segments(Dataset):
    """The segments of each image, once image and map were read, and compared, as in a run."""

    def __init__(self, dataset: Panoptic) -> None:
        self.source, self.count, self.files = dataset.source, len(dataset), dataset.files

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        return self.source[index][2]


def look_through(dataset: Panoptic, workers: int) -> Iterator[list[dict[str, Any]]]:
    """Segments of each image in this process's share of a data set, all of whose files are read.

    Raises BadExample, naming the file, for the first that training or evaluation would stop at.
    """
    batches = eval_loader(_Segments(dataset), 4, workers=workers, collate=list)
    for batch in tqdm(batches, "checking", leave=False, disable=not dist.is_main() or None):
        yield from batch


def check_validation(dataset: Panoptic, workers: int) -> None:
    """Raise BadExample for a fault that evaluation would stop at; built-in images have none."""
    if isinstance(dataset.source, Photos):
        for _ in look_through(dataset, workers):
            pass


def validation_batches(dataset: Panoptic, cfg: Config) -> Iterable[Batch]:
    """The share of this process in the images to evaluate on, each exactly once."""
    return eval_loader(dataset, cfg.predict.batch_size, workers=cfg.data.workers, collate=collate)
