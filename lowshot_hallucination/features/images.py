"""A low-shot problem given as images: which classes are base and novel, and the images of each.

N images, S pixels of a side. A label is a class id: the place of the class in `split.names`. The
training images of the base classes train the trunk; "train" is also the pool that the support is
drawn from, "test" holds the queries. Sources: `builtin`, `omniglot`, and folders (`folders`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from common import dist
from common.config import require_choice, require_range
from common.data import BadImages, eval_loader
from common.images import UnreadableImage

from .builtin import Builtin, builtin_source
from .folders import folder_source, imagenet_source
from .omniglot import omniglot_source
from .pool import Pool, Source
from .splits import ClassSplit
from .transforms import CROPS, View

SMALL = ("builtin", "omniglot", "cifar10")  # 32 pixels a side, not photographs of 224
SOURCES = (*SMALL, "folder", "imagenet")


@dataclass
class ImageData:
    """Where the images come from and what of each is seen. Group `data`."""

    name: str = "builtin"  # builtin | omniglot | cifar10 | folder | imagenet
    root: str = ""  # the folder; builtin needs none
    split: str = ""  # folder, cifar10: a JSON of base and novel classes; "": at random
    split_seed: int = 0  # of the random split
    base_share: float = 0.5  # of the classes, in a random split
    queries_share: float = 0.25  # of a class's images, where root has no train/ and test/
    label_idx: str = ""  # imagenet: the benchmark's label_idx.json
    label_order: str = "hg"  # hg | imagefolder: what the class ids in it count
    train_list: str = ""  # imagenet: the benchmark's train.json, for the rows of its split files
    size: int = 0  # pixels of a side; 0: 224, of the small sources 32
    resize: int = 0  # shorter side of which the test takes the centre; 0: size / 224 * 256, or size
    crop: str = ""  # random_resized | shift | none; "": random_resized, of the small ones shift
    flip: bool | None = None  # mirror half of the images; null: all but omniglot's
    jitter: float | None = None  # of brightness, contrast, colour; null: 0.4, small ones 0
    views: int = 0  # random views of a training image to write features of, as well as its centre
    workers: int = 0  # loader processes per process
    bad_images: str = "raise"  # raise | skip: an image that cannot be read
    bad_share: float = 0.001  # of the images, that may be skipped; one at least
    builtin: Builtin = field(default_factory=Builtin)

    def __post_init__(self) -> None:
        require_choice("data.name", self.name, SOURCES)
        require_choice("data.label_order", self.label_order, ("hg", "imagefolder"))
        require_choice("data.crop", self.crop, ("", *CROPS))
        require_choice("data.bad_images", self.bad_images, ("raise", "skip"))
        for name in ("base_share", "queries_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"data.{name}={getattr(self, name)}: choose a share between 0 and 1."
                )
        if self.split and self.name not in ("folder", "cifar10"):
            raise ValueError(f"data.split is of data.name=folder; {self.name} has its own split.")
        require_range("data.bad_share", self.bad_share, 0, 1)
        require_range("data.views", self.views, 0)
        require_range("data.workers", self.workers, 0)
        if self.jitter is not None:
            require_range("data.jitter", self.jitter, 0, 1)
        self.view()  # checks its sizes

    def view(self) -> View:
        """What is seen of an image, defaults filled in.

        Photographs as in the benchmark [HG: main.py]: RandomResizedCrop of 224, jitter 0.4, flip;
        the centre 224 of 256 at test. Small images: moved by up to 1/8 of their side.
        """
        small = self.name in SMALL
        size = self.size or (32 if small else 224)
        return View(
            size=size,
            resize=self.resize or (size if small else round(size * 256 / 224)),
            crop=self.crop or ("shift" if small else "random_resized"),
            flip=self.flip if self.flip is not None else self.name != "omniglot",
            jitter=self.jitter if self.jitter is not None else (0.0 if small else 0.4),
        )


@dataclass(frozen=True)
class Images:
    """An image problem."""

    name: str  # of the source, for reports
    source: Source
    view: View
    bad_images: str = "raise"
    bad_share: float = 0.001

    @property
    def split(self) -> ClassSplit:
        """The names of the classes and which are base_1, base_2, novel_1 and novel_2."""
        return self.source.split

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the report, about what the source left open."""
        return self.source.notes

    def load(
        self,
        split: str,
        classes: Sequence[int] | None = None,
        *,
        training: bool = False,
        views: int = 1,
    ) -> "ImageSet":
        """The images of a split, of these class ids or all.

        split: "train" or "test". training: random views, else the centre. views: how many of each
        image; example i is a view of image i modulo their number.
        """
        require_choice("split", split, ("train", "test"))
        pool = self.source.train if split == "train" else self.source.test
        chosen = pool if classes is None else pool.only(classes)
        return ImageSet(chosen, self.view.random if training else self.view.centre, views)


class ImageSet(Dataset):
    """Items (uint8 (3, S, S), class id), each image `views` times.

    Random views come from torch's global generator, which the loaders of `common.data` seed for
    each example. labels: int64 (N * views,) class ids; files: names by index, for messages.
    """

    def __init__(self, pool: Pool, view: Callable[[Tensor], Tensor], views: int = 1) -> None:
        self.pool, self.view, self.views = pool, view, views
        self.labels = torch.from_numpy(pool.labels).repeat(views)
        self.files = pool

    def __len__(self) -> int:
        return len(self.pool) * self.views

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.view(self.pool.read(i % len(self.pool))), int(self.labels[i])


class Looked(Dataset):
    """Item i is why image i of a pool cannot be read, or empty."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def __len__(self) -> int:
        return len(self.pool)

    def __getitem__(self, i: int) -> str:
        try:
            self.pool.read(i)
        except UnreadableImage as error:
            return str(error)
        return ""


def drop_unreadable(images: Images, *, workers: int = 0) -> Images:
    """The problem without the images that cannot be read, before anything is learned from it.

    Every file is read once, by all processes together. ValueError names the first that cannot be
    read where `bad_images` is raise, or where there are more than `bad_share` allows.
    """
    kept, notes = {}, list(images.notes)
    for split, pool in (("train", images.source.train), ("test", images.source.test)):
        faults = [""] * len(pool)
        if pool.pixels is None:
            faults = find_faults(pool, split, workers)
        found = [fault for fault in faults if fault]
        most = BadImages(images.bad_images, images.bad_share).most(len(pool))
        if len(found) > most:
            remedy = "replace it, or give data.bad_images=skip"
            if images.bad_images == "skip":
                remedy = f"{most} may be left out: replace them, or raise data.bad_share"
            raise ValueError(f"{len(found)} of {len(pool)} images: {found[0]}; {remedy}.")
        if found:
            notes.append(f"{len(found)} of {len(pool)} {split} images left out, first: {found[0]}")
        kept[split] = pool.rows(np.array([not fault for fault in faults]))
    source = images.source._replace(train=kept["train"], test=kept["test"], notes=tuple(notes))
    return replace(images, source=source)


def find_faults(pool: Pool, split: str, workers: int) -> list[str]:
    """Why each image cannot be read, empty where it can."""
    quiet = None if dist.is_main() else True
    loader = eval_loader(Looked(pool), 64, workers=workers, collate=list)
    own = [fault for part in tqdm(loader, f"reading {split}", disable=quiet) for fault in part]
    faults = [""] * len(pool)
    for rank, part in enumerate(dist.gather(own)):
        faults[rank :: dist.world_size()] = part
    return faults


def build_images(options: ImageData) -> Images:
    """The problem that the options describe; ValueError or FileNotFoundError names what to mend."""
    if options.name != "builtin" and not options.root:
        raise ValueError(f"data.name={options.name} needs data.root=<folder>.")
    match options.name:
        case "builtin":
            source = builtin_source(options.builtin)
        case "omniglot":
            source = omniglot_source(options.root, options.view().resize, options.split_seed)
        case "imagenet":
            source = imagenet_source(
                options.root, options.label_idx, options.label_order, options.train_list
            )
        case _:
            source = folder_source(
                options.root,
                options.split,
                seed=options.split_seed,
                base_share=options.base_share,
                queries_share=options.queries_share,
            )
    return Images(options.name, source, options.view(), options.bad_images, options.bad_share)
