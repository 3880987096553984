"""Convert between COCO panoptic files (a JSON, PNGs in the folder of its name) and other formats.

    python convert.py from_two_channel FOLDER OUT.json --images IMAGES.json --categories CATS.json
    python convert.py to_two_channel PANOPTIC.json FOLDER
    python convert.py from_detection DETECTION.json OUT.json --categories CATS.json
    python convert.py to_detection PANOPTIC.json OUT.json --things-only
    python convert.py to_semantic PANOPTIC.json FOLDER --layout category|contiguous|stuff
    python convert.py cityscapes ROOT val            # gtFine as downloaded
    python convert.py ade20k ROOT validation         # ADEChallengeData2016 with instance maps
    python convert.py vistas ROOT validation --version v1.2

CATS.json is a list of COCO categories with `isthing`, or any JSON that has one as `categories`.
Every file appears whole or not at all. Exit code 0: done, 2: bad data, in one sentence.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.config import run as run_command
from panoptic.files import ade20k, cityscapes, coco, detection, semantic, two_channel, vistas
from panoptic.files.categories import Category
from panoptic.files.coco import PanopticFiles, load_categories, read_json
from panoptic.files.entries import image_entries
from panoptic.files.raw import write_split


def write(
    args: argparse.Namespace,
    images: list[dict[str, Any]],
    categories: dict[int, Category],
    results: Iterator[coco.Result],
) -> int:
    """Write COCO panoptic files, with a progress bar where there is a terminal."""
    bar = tqdm(results, "converting", len(images), unit="image", leave=False, disable=None)
    return coco.write_panoptic(
        args.out, args.folder, categories=categories, images=images, results=bar
    )


def from_two_channel(args: argparse.Namespace) -> int:
    """Two-channel PNGs of the images that a JSON lists -> COCO panoptic."""
    images = list(image_entries(read_json(args.images), str(args.images)).values())
    categories = load_categories(args.categories or args.images)
    results = two_channel.read_two_channel(args.source, images, categories, void=args.void)
    return write(args, images, categories, results)


def to_two_channel(args: argparse.Namespace) -> int:
    """COCO panoptic -> two-channel PNGs."""
    files = PanopticFiles(args.source, args.folder)
    return two_channel.write_two_channel(files, args.out, void=args.void)


def from_detection(args: argparse.Namespace) -> int:
    """COCO detection annotations that do not overlap -> COCO panoptic."""
    content = read_json(args.source)
    categories = load_categories(args.categories or args.source)
    images = list(image_entries(content, str(args.source)).values())
    results = detection.from_detection(content, categories, where=str(args.source))
    return write(args, images, categories, results)


def to_detection(args: argparse.Namespace) -> int:
    """COCO panoptic -> COCO detection annotations."""
    files = PanopticFiles(args.source, args.folder)
    coco.write_json(args.out, detection.to_detection(files, things_only=args.things_only))
    return len(files)


def to_semantic(args: argparse.Namespace) -> int:
    """COCO panoptic -> a semantic PNG per image."""
    files = PanopticFiles(args.source, args.folder)
    return semantic.write_semantic(files, args.out, layout=args.layout, void=args.void)


def require_sources_kept(args: argparse.Namespace) -> None:
    """Raise ValueError where the output is what it is made of."""
    given = vars(args)
    inputs = {"source": args.source} | {n: given.get(n) for n in ("images", "categories")}
    outputs = {"out": args.out}
    if args.command.startswith("from"):
        outputs["folder"] = coco.panoptic_folder(args.out, args.folder)
    else:
        inputs["folder"] = coco.panoptic_folder(args.source, args.folder)
    coco.require_apart(outputs, inputs)


def raw(args: argparse.Namespace) -> int:
    """A data set as downloaded -> COCO panoptic."""
    layout = {"cityscapes": cityscapes, "ade20k": ade20k, "vistas": vistas}[args.command]
    version = {"version": args.version} if args.command == "vistas" else {}
    out = args.out or layout.panoptic_json(args.root, args.split)
    write_split(layout.open_split(args.root, args.split, **version), out)
    print(f"written: {out}")
    return len(PanopticFiles(out))


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python convert.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    for name, work in {
        "from_two_channel": from_two_channel,
        "to_two_channel": to_two_channel,
        "from_detection": from_detection,
        "to_detection": to_detection,
        "to_semantic": to_semantic,
    }.items():
        c = commands.add_parser(name, help=work.__doc__)
        c.set_defaults(work=work)
        c.add_argument("source", type=Path)
        c.add_argument("out", type=Path)
        c.add_argument("--folder", type=Path, help="of the panoptic PNGs; by default X for X.json")
        if name.startswith("from"):
            c.add_argument("--categories", type=Path, help="by default those of the source")
        if "two_channel" in name:
            c.add_argument("--void", type=int, default=0, help="label outside of all classes")
    options = commands.choices
    options["from_two_channel"].add_argument("--images", type=Path, required=True)
    options["to_detection"].add_argument("--things-only", action="store_true")
    c = options["to_semantic"]
    c.add_argument("--layout", choices=semantic.LAYOUTS, default="category")
    c.add_argument("--void", type=int, help="label of void; by default the layout's")
    for name, splits in {
        "cityscapes": ("train", "val", "test"),
        "ade20k": ("training", "validation"),
        "vistas": ("training", "validation"),
    }.items():
        c = commands.add_parser(name, help=raw.__doc__)
        c.set_defaults(work=raw)
        c.add_argument("root", type=Path)
        c.add_argument("split", choices=splits)
        c.add_argument("--out", type=Path, help="the JSON; by default inside ROOT")
    commands.choices["vistas"].add_argument("--version", default="", help="v1.2 or v2.0")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Convert, and say how many images."""
    args = arguments().parse_args(words)
    if args.work is not raw:
        require_sources_kept(args)
    print(f"{args.work(args)} images converted")


if __name__ == "__main__":
    run_command(main)
