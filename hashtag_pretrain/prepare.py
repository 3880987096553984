"""Get tagged images ready: write shards, look for faults, choose the tags, find test images.

    python prepare.py shards source=folder root=/data/photos out=/data/tagged/shards
    python prepare.py shards source=list list=photos.txt [root=/data/photos] out=...
    python prepare.py shards source=coco root=/data/coco [split=train2017] [stop=words.txt] out=...
    python prepare.py index shards=/data/tagged/shards
    python prepare.py check shards=/data/tagged/shards [vocabulary=FILE] [decode=false]
    python prepare.py vocabulary shards=/data/tagged/shards out=/data/tagged/vocabulary.json
        [wordnet=/usr/share/wordnet] [rule=strict] [ambiguous=keep|drop] [classes=wnids.txt]
        [most=17000] [least=1] [stop=words.txt]
    python prepare.py duplicates train=SHARDS|FOLDER test=FOLDER init=FILE network=resnet50 out=...
        [width=16] [threshold=0.3] [k=21] [size=224] [whole=true] [device=cuda]

`shards` takes the names of folders, the words of a list (PATH<tab>tag tag tag, a line for each
image) or those of captions as tags; short=256 stores larger images smaller, and what cannot be
read is left out and named. `index` writes the index beside each shard, which training else makes.
`check` compares the shards with their hashes, decodes every image and counts tags. `vocabulary`
merges synonyms by WordNet 3.0 (rule: strict, vocabulary, components, first_sense, or none without
WordNet); classes= limits it to the synonyms of ImageNet's classes. `duplicates` writes the pairs,
exclude.txt for data.exclude and duplicates.txt for target.duplicates; look at the pairs, as the
threshold depends on the network. processes=0 uses this one alone, by default one a core.
Exit code 0: good, 2: bad data.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common import dist
from common.config import read_options, require_choice, require_range
from common.config import run as run_command
from common.errors import UserError
from common.pool import in_order
from hashtag_pretrain.duplicates.report import write_report
from hashtag_pretrain.duplicates.rmac import describe
from hashtag_pretrain.inputs.check import count_tags, look
from hashtag_pretrain.inputs.sources import (
    Photo,
    give_keys,
    make_sample,
    read_captions,
    read_folders,
    read_list,
)
from hashtag_pretrain.inputs.whole import WholeImages, find_copies
from hashtag_pretrain.model import RESNEXTS, Network, build_model, normalise
from hashtag_pretrain.shards.archive import Shards
from hashtag_pretrain.shards.index import Summary, find_shards, load_summary
from hashtag_pretrain.shards.writer import Sample, write_shards
from hashtag_pretrain.targets.sets import read_names
from hashtag_pretrain.weights.initialise import load_trunk, read_weights
from hashtag_pretrain.words.canonical import RULES
from hashtag_pretrain.words.vocabulary import Vocabulary, build
from hashtag_pretrain.words.wordnet import FOLDER, read_wordnet

SHOWN = 20  # faults that are named
NEEDED = {
    "shards": ("source", "out"),
    "index": ("shards",),
    "check": ("shards",),
    "vocabulary": ("shards", "out"),
    "duplicates": ("train", "test", "init", "out"),
}


@dataclass
class Options:
    """What the commands take."""

    source: str = ""  # folder | list | coco
    root: str = ""
    list: str = ""
    split: str = "train2017"  # of coco
    shards: str = ""
    out: str = ""
    short: int = 0  # pixels of the shorter side of what is stored smaller; 0: nothing is
    quality: int = 90  # of JPEG
    per_shard: int = 10_000  # images
    vocabulary: str = ""
    decode: bool = True  # check: every image
    wordnet: str = FOLDER
    rule: str = "strict"
    ambiguous: str = "keep"
    classes: str = ""  # file of wnids, one a line
    most: int = 0  # labels; 0: all
    least: int = 1  # uses of a label
    stop: str = ""  # file of words to leave out, one a line
    train: str = ""
    test: str = ""
    init: str = ""
    network: str = "resnet50"  # as the paper's descriptors
    width: int = 16  # of network=small, as network.width of its run
    size: int = 224  # pixels of the squares that are described
    threshold: float = 0.3
    k: int = 21
    whole: bool = False  # R-MAC with the maximum over the whole map besides
    device: str = ""
    batch_size: int = 64
    processes: int = -1

    def __post_init__(self) -> None:
        require_choice("source", self.source, ("", "folder", "list", "coco"))
        require_choice("rule", self.rule, RULES)
        require_choice("ambiguous", self.ambiguous, ("keep", "drop"))
        require_choice("network", self.network, (*RESNEXTS, "small"))  # with stages, for R-MAC
        require_range("quality", self.quality, 1, 100)
        for name in ("per_shard", "least", "k", "batch_size", "width"):
            require_range(name, getattr(self, name), 1)
        for name in ("short", "most"):
            require_range(name, getattr(self, name), 0)
        require_range("threshold", self.threshold, 0, 2)  # of unit vectors
        require_range("size", self.size, 32)


def main(words: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    words = list(sys.argv[1:] if words is None else words)
    if words and words[0] not in (*NEEDED, "-h", "--help"):
        raise ValueError(f"{words[0]} is unknown: choose {', '.join(NEEDED)}.")
    options = read_options(Options, words[1:], usage=__doc__, least=1)
    missing = [name for name in NEEDED[words[0]] if not getattr(options, name)]
    if missing:
        raise ValueError(f"{missing[0]}= is missing: python prepare.py {words[0]} {missing[0]}=...")
    commands = {
        "shards": make_shards,
        "index": index,
        "check": check,
        "vocabulary": make_vocabulary,
        "duplicates": find_duplicates,
    }
    try:
        commands[words[0]](options)
    except BrokenPipeError:
        raise
    except OSError as error:
        if not options.out or error.errno is None:
            raise
        raise UserError(
            f"out={options.out} is not written ({error}): make room there, or give another out=."
        ) from error


def make_shards(options: Options) -> None:
    """Write the images of a source to shards; UserError names those left out."""
    photos = read_source(options)
    faults: list[str] = []
    making = partial(make_sample, short=options.short, quality=options.quality)
    made = work(making, photos, options, "images")
    paths = write_shards(keep_good(made, faults), options.out, per_shard=options.per_shard)
    summaries = list(work(load_summary, paths, options, "shards"))
    images = sum(each.count for each in summaries)
    untagged = sum(each.faults.get("image without tags", 0) for each in summaries)
    print(f"{options.out}: {images} images in {len(paths)} shards, {untagged} of them without tags")
    report(faults)


def read_source(options: Options) -> list[Photo]:
    """The images of the source, with their tags and keys."""
    if options.source == "list":
        if not options.list:
            raise ValueError("list= is missing: python prepare.py shards source=list list=FILE ...")
        root = options.root or os.path.dirname(options.list)
        photos = read_list(options.list, root)
    else:
        if not options.root:
            raise ValueError(f"root= is missing: python prepare.py shards source={options.source}")
        root = options.root
        if options.source == "folder":
            photos = read_folders(root)
        else:
            stop = read_names(options.stop) if options.stop else []
            photos = read_captions(root, options.split, stop)
            root = os.path.join(root, options.split)
    return give_keys(photos, root or ".")


def keep_good(made: Iterable[tuple[Sample | None, str]], faults: list[str]) -> Iterator[Sample]:
    """The samples; what is wrong with the others goes to `faults`."""
    for sample, fault in made:
        if sample is None:
            faults.append(fault)
        else:
            yield sample


def index(options: Options) -> None:
    """Write the indexes that are missing; UserError where they name faults."""
    paths = find_shards(options.shards)
    summaries: list[Summary] = list(work(load_summary, paths, options, "shards"))
    print(f"{options.shards}: {sum(each.count for each in summaries)} images, {len(paths)} shards")
    report_faults([sentence for each in summaries for sentence in each.named])


def check(options: Options) -> None:
    """Compare shards with their indexes, decode images, count tags; UserError where one is bad."""
    vocabulary = Vocabulary.read(options.vocabulary) if options.vocabulary else None
    list(work(load_summary, find_shards(options.shards), options, "indexes"))
    shards = Shards(options.shards, vocabulary, keep=1)
    faults = shards.faults
    looking = partial(look, shards=shards, decode=options.decode)
    for found in work(looking, range(len(shards.paths)), options, "shards"):
        faults += found
    print(f"{options.shards}: {len(shards)} images in {len(shards.paths)} shards")
    for kind, count in shards.dropped.items():
        print(f"{count} x {kind}")
    hashes = np.concatenate([shards.hashes(shard) for shard in range(len(shards.paths))])
    repeated = len(hashes) - len(np.unique(hashes))
    if repeated:
        print(f"{repeated} keys stand in another shard, too: they share their part of the split")
    print(*count_tags(shards, vocabulary), sep="\n")
    report_faults(faults)


def make_vocabulary(options: Options) -> None:
    """Choose and merge the tags of shards, and write the vocabulary."""
    counts = Shards(options.shards).count_tags()
    vocabulary, found = build(
        counts,
        None if options.rule == "none" else read_wordnet(options.wordnet),
        rule=options.rule,
        ambiguous=options.ambiguous,
        classes=read_names(options.classes) if options.classes else None,
        most=options.most or None,
        least=options.least,
        stop=read_names(options.stop) if options.stop else (),
    )
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    vocabulary.write(options.out)
    print(f"{options.out}: {len(vocabulary)} labels")
    print(*found.lines(), sep="\n")


def find_duplicates(options: Options) -> None:
    """Write which test images are among the training images; UserError names unreadable ones."""
    train = WholeImages(options.train, options.size)
    test = WholeImages(options.test, options.size)
    out, device = Path(options.out), device_of(options)
    out.mkdir(parents=True, exist_ok=True)
    network = Network(options.network, options.width, memory_format="contiguous")
    model = build_model(network, 1000)
    weights = read_weights(model, options.init)
    mean, std = weights.pixels or (network.mean, network.std)
    print(load_trunk(model, weights, pixels=(mean, std)))
    model.to(device).eval()

    @torch.inference_mode()
    def describing(images: Tensor) -> Tensor:
        images = normalise(images.to(device), mean, std)
        return describe(model, images, whole=options.whole)

    copies = find_copies(
        train,
        test,
        describing,
        threshold=options.threshold,
        k=options.k,
        batch_size=options.batch_size,
        workers=processes_of(options),
        scratch=out,
    )
    print(*write_report(out, copies.pairs, copies.train_name, copies.test_name), sep="\n")
    report(copies.faults)


def device_of(options: Options) -> torch.device:
    """Where the images are described; ValueError for a device that is not there."""
    if not options.device:
        return dist.device()
    try:
        device = torch.device(options.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device={options.device} is not there ({reason}): give cpu.") from None
    return device


def processes_of(options: Options) -> int:
    """How many processes work."""
    return dist.cores() if options.processes < 0 else options.processes


def work(each: Any, items: Sequence[Any], options: Options, what: str) -> Iterator[Any]:
    """The results of `each` item in order, by several processes, with a bar."""
    count = min(processes_of(options), len(items))
    results = in_order(each, items, count) if count > 1 else map(each, items)
    return iter(tqdm(results, what, total=len(items), leave=False, disable=None))


def report(faults: Sequence[str]) -> None:
    """Name what was left out, and end with exit code 2, if there is any."""
    if faults:
        print(*faults[:SHOWN], sep="\n", file=sys.stderr)
        raise UserError(f"{len(faults)} images cannot be read and were left out")


def report_faults(faults: Sequence[str]) -> None:
    """Name the faults and end with exit code 2, if there are any."""
    if faults:
        print(*faults[:SHOWN], sep="\n", file=sys.stderr)
        raise UserError(f"{len(faults)} faults")
    print("no fault found")


if __name__ == "__main__":
    run_command(main)
