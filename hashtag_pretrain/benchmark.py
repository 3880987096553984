"""Ours beside the usual ways: every speed that the README claims.

    python benchmark.py                               # all; some minutes on two cores
    python benchmark.py what=images repeats=5 threads=1
    python benchmark.py what=loss batch=256 out=loss.json
    python benchmark.py what=step device=cuda batch=64

The contestants run by turns in one process, each round another one first, after a check that they
give the same results where both compute them. `theirs / ours` is the ratio of the medians: above 1,
ours is faster.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnext50_32x4d
from torchvision.transforms import v2

from common import timing
from common.config import read_options, require_range
from common.config import run as run_command
from common.data import train_loader
from common.timing import Calls, Row
from hashtag_pretrain.config import Data
from hashtag_pretrain.data import Tagged, TaggedImages, collate
from hashtag_pretrain.hashtags import dense_loss, dense_targets, hashtag_loss
from hashtag_pretrain.inputs.augment import Augment, training_image
from hashtag_pretrain.inputs.sources import give_keys, make_sample, read_folders
from hashtag_pretrain.model import Network, build_model, choose_format, normalise
from hashtag_pretrain.shards.archive import Shards
from hashtag_pretrain.shards.order import ReplicationStream
from hashtag_pretrain.shards.writer import write_shards
from hashtag_pretrain.words.vocabulary import Vocabulary

TAGS = 17_000


@dataclass
class Options:
    """Words of the command line."""

    what: str = "all"  # all | images | ids | loss | step
    repeats: int = 5
    threads: int = 2  # of the CPU
    device: str = "cpu"  # cpu | cuda, of loss and step
    batch: int = 64  # images
    workers: int = 0  # loader processes, of `images`
    count: int = 512  # images, of `images`
    side: int = 640  # their longer side, pixels
    list: int = 1_000_000  # unique images, of `ids`
    out: str = ""  # a JSON file for the results

    def __post_init__(self) -> None:
        timing.require_sound(self, BENCHMARKS)
        for name in ("batch", "count", "side", "list"):
            require_range(name, getattr(self, name), 1)
        require_range("workers", self.workers, 0)


def images(options: Options) -> list[Row]:
    """Batches of training crops of 224 pixels from JPEGs, as bytes in memory on the CPU.

    Ours from shards, whose images prepare.py stored with short=256, and as they were; theirs by
    torchvision's ImageFolder, RandomResizedCrop and DataLoader from the files as they were.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder / "photos", options.count, options.side)
        photos = give_keys(read_folders(folder / "photos"), folder / "photos")
        names = sorted({photo.tags[0] for photo in photos})
        members = {name: k for k, name in enumerate(names)}
        vocabulary = Vocabulary(names, members, [[] for _ in names], [1 for _ in names])
        calls: Calls = {}
        for title, short in (("ours, short=256", 256), ("ours, as they were", 0)):
            samples = [make_sample(photo, short=short)[0] for photo in photos]
            write_shards(filter(None, samples), folder / f"shards{short}", per_shard=128)
            calls[title] = partial(
                read_shards, Shards(folder / f"shards{short}", vocabulary), options
            )
        calls["ImageFolder"] = partial(read_files, folder / "photos", options)
        seconds = timing.by_turns(calls, options.repeats, "cpu")
        count = options.count // options.batch * options.batch
        title = f"{count} images of {options.side} x {options.side * 3 // 4} pixels"
        return [Row(title, each, times) for each, times in seconds.items()]


def read_shards(shards: Shards, options: Options) -> None:
    """An epoch of our loader."""
    assert isinstance(shards.vocabulary, Vocabulary)
    tagged = Tagged(shards, shards.vocabulary, Data(held_out=0))
    dataset = TaggedImages(tagged, partial(training_image, options=Augment()))
    factors = [np.ones(count) for count in shards.counts]
    totals = shards.counts.astype(float)
    stream = ReplicationStream(shards.counts, totals, factors.__getitem__, options.batch, seed=0)
    steps = stream.steps_per_epoch
    for _ in train_loader(dataset, stream, 0, steps, workers=options.workers, collate=collate):
        pass


def read_files(folder: Path, options: Options) -> None:
    """An epoch of the usual loader."""
    views = [v2.PILToTensor(), v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()]
    dataset = ImageFolder(str(folder), v2.Compose(views))
    for _ in DataLoader(
        dataset, options.batch, shuffle=True, num_workers=options.workers, drop_last=True
    ):
        pass


def write_photos(folder: Path, count: int, side: int) -> None:
    """JPEGs of smooth random shapes with grain, in four folders."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
        photo = Image.fromarray(coarse).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
        grain = rng.integers(-12, 13, (side * 3 // 4, side, 1))
        pixels = (np.asarray(photo).astype(int) + grain).clip(0, 255).astype(np.uint8)
        path = folder / f"tag{i % 4}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, "JPEG", quality=90)


def ids(options: Options) -> list[Row]:
    """The numbers of the images of an epoch, batches of 8,064, replicated up to 100 times.

    Ours window by window; theirs expands the list and shuffles it, as detectron2's sampler does.
    Images have one tag by a Zipf law, 10,000 in a shard.
    """
    seconds = timing.by_turns(ids_calls(options.list), options.repeats, "cpu")
    rows = []
    for name, times in seconds.items():
        memory = timing.in_new_process(ids_memory, name, options.list)
        rows.append(Row(f"ids of {options.list:,} images", name, times, memory))
    return rows


def ids_calls(count: int) -> Calls:
    """An epoch's ids in the two ways."""
    shards = -(-count // 10_000)
    counts = np.full(shards, 10_000)
    totals = np.array([zipf_factors(shard).sum() for shard in range(shards)])

    def ours() -> None:
        stream = ReplicationStream(counts, totals, zipf_factors, 8064, seed=0)
        for step in range(stream.steps_per_epoch):
            stream.share(step, 0, 1)

    def theirs() -> None:
        factors = torch.from_numpy(np.concatenate([zipf_factors(i) for i in range(shards)]))
        whole = torch.trunc(factors)
        generator = torch.Generator().manual_seed(0)
        repeats = whole + (torch.rand(len(factors), generator=generator) < factors - whole).double()
        expanded = []
        for index, repeat in enumerate(repeats):
            expanded.extend([index] * int(repeat.item()))
        order = torch.randperm(len(expanded), generator=generator)
        listed = torch.tensor(expanded, dtype=torch.int64)[order].tolist()
        for start in range(0, len(listed) - 8063, 8064):
            listed[start : start + 8064]

    return {"ours": ours, "the expanded list": theirs}


def zipf_factors(shard: int) -> np.ndarray:
    """r(I) of 10,000 images whose tags follow a Zipf law, square-root sampling."""
    rank = np.random.default_rng(shard).zipf(1.6, 10_000)
    return np.sqrt(np.minimum(rank, 10_000.0))


def ids_memory(name: str, count: int) -> int | None:
    """Bytes that one of the two takes; for a new process."""
    return timing.extra_memory(ids_calls(count)[name], "cpu")


def loss(options: Options) -> list[Row]:
    """The loss of 17,000 tags and its gradient by the logits, 2.2 tags an image.

    Ours gathers the tags' logits; theirs is torch's cross entropy with a dense target of 1/k.
    """
    title = f"loss, {options.batch} x {TAGS:,}"
    calls = loss_calls(options.batch, options.device)
    ours, theirs = (call() for call in calls.values())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-8)
    seconds = timing.by_turns(calls, options.repeats, options.device)
    rows = []
    for name, times in seconds.items():
        memory = timing.in_new_process(
            loss_memory, name, options.batch, options.device, options.threads
        )
        rows.append(Row(title, name, times, memory))
    return rows


def loss_calls(batch: int, device: str) -> Calls:
    """The gradient (B, V) of the loss in the two ways."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, TAGS, generator=generator).to(device).requires_grad_()
    tags = torch.rand(batch, TAGS, generator=generator).topk(4, 1).indices
    more = torch.rand(batch, 3, generator=generator) < 0.4
    tags[:, 1:] = torch.where(more, tags[:, 1:], -1)
    tags = tags.to(device)

    def ours() -> Tensor:
        return torch.autograd.grad(hashtag_loss(logits, tags), logits)[0]

    def theirs() -> Tensor:
        return torch.autograd.grad(dense_loss(logits, dense_targets(tags, TAGS)), logits)[0]

    return {"ours": ours, "dense targets": theirs}


def loss_memory(name: str, batch: int, device: str, threads: int) -> int | None:
    """Bytes that one of the two takes beyond its inputs; for a new process."""
    torch.set_num_threads(threads)
    loss_calls(2, device)[name]()  # what libraries load at their first call
    return timing.extra_memory(loss_calls(batch, device)[name], device)


def step(options: Options) -> list[Row]:
    """A training step of ResNeXt-50 32x4d at 128 pixels: forward, backward, update.

    Ours in the memory format that `network.memory_format=auto` finds; theirs is torchvision's
    network in a plain loop with the dense loss. 1,500 tags.
    """
    batch = min(options.batch, 16) if options.device == "cpu" else options.batch
    images = torch.randint(0, 256, (batch, 3, 128, 128), dtype=torch.uint8, device=options.device)
    tags = torch.randint(0, 1500, (batch, 1), device=options.device)
    network = Network("resnext50_32x4d")
    ours = build_model(network, 1500).to(options.device)
    theirs = resnext50_32x4d(num_classes=1500).to(options.device)
    theirs.load_state_dict(ours.state_dict())
    layout = choose_format(ours, network, images.shape)
    ours.to(memory_format=layout)
    calls: Calls = {
        "ours": partial(train_step, ours, images, tags, network, layout),
        "torchvision": partial(train_plainly, theirs, images, tags, network),
    }
    torch.testing.assert_close(*(call() for call in calls.values()), rtol=1e-3, atol=1e-3)
    seconds = timing.by_turns(calls, options.repeats, options.device)
    return [Row(f"step of {batch} images", name, times) for name, times in seconds.items()]


def train_step(
    model: nn.Module,
    images: Tensor,
    tags: Tensor,
    network: Network,
    layout: torch.memory_format,
) -> Tensor:
    """Our step; its loss."""
    inputs = normalise(images, network.mean, network.std).contiguous(memory_format=layout)
    found = hashtag_loss(model(inputs), tags)
    return update(model, found)


def train_plainly(model: nn.Module, images: Tensor, tags: Tensor, network: Network) -> Tensor:
    """The usual step; its loss."""
    inputs = normalise(images, network.mean, network.std)
    found = F.cross_entropy(model(inputs), dense_targets(tags, 1500))
    return update(model, found)


def update(model: nn.Module, found: Tensor) -> Tensor:
    """Gradients and a plain step by a rate of 0, so that every round has the same weights."""
    model.zero_grad(set_to_none=True)
    found.backward()
    torch.optim.SGD(model.parameters(), 0.0, 0.9, nesterov=True).step()
    return found.detach()


BENCHMARKS = {"images": images, "ids": ids, "loss": loss, "step": step}


def measure(what: str, options: Options) -> tuple[list[Row], list[str]]:
    """Rows of one benchmark, ours first, and notes."""
    return BENCHMARKS[what](options), []


def main(words: list[str] | None = None) -> None:
    """Measure, print, and write what `out` names."""
    timing.compare(read_options(Options, words, usage=__doc__), BENCHMARKS, measure)


if __name__ == "__main__":
    run_command(main)
