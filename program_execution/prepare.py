"""Prepare CLEVR, or your own questions in its format, for training.

    python prepare.py clevr /data/CLEVR_v1.0 /data/clevr           # all of the following, in order
    python prepare.py humans /data/CLEVR-Humans /data/clevr        # people's questions beside it
    python prepare.py questions FILE.json /data/clevr/train_questions --build
    python prepare.py features /data/CLEVR_v1.0/images/val /data/clevr/val_features.npy
    python prepare.py generate /data/made --images 1000            # built-in data as CLEVR's files

The folder that they write, data.root of train.py, holds vocab.json, <split>_questions (a folder, or
.h5 as the public code has it) and <split>_features (.npy or .h5). What is there already is left
alone, so that an interrupted command may be repeated; --again makes it anew. Exit code 0: done, 2:
bad data.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from common import dist, draw, spawn
from common.clevr import builtin, questions, scene_graph, vocabulary
from common.clevr.arrays import encode as encoding
from common.clevr.arrays import extract as extraction
from common.clevr.arrays import question_files
from common.clevr.arrays.features import H5_SUFFIXES
from common.clevr.vocabulary import Vocabulary
from common.errors import sentence

SPLITS = ("train", "val")  # where none are asked for
WORDS = 10  # times that a word of people must occur, as in the public code


def encode(
    source: str | Path,
    out: str | Path,
    *,
    words: str | Path | None = None,
    build: bool = False,
    expand: bool = False,
    released: bool = False,
    min_count: int = 1,
    again: bool = False,
) -> int:
    """Number the questions of a JSON file; returns how many there are.

    words: vocab.json, by default beside `out`. build: make it from these questions, which should
    be the training split's; released: take that of the published models; expand: write
    humans_vocab.json beside `out`, with the words that these questions have `min_count` times or
    more. Raises ValueError naming file and question where something does not fit.
    """
    out = Path(out)
    words = out.parent / "vocab.json" if words is None else Path(words)
    whole = out / "arrays.json" if out.suffix not in H5_SUFFIXES else out
    if whole.exists() and not again:
        print(f"{out} is there already")
        return 0
    asked = questions.read_questions(source)
    if released:
        known = vocabulary.standard()
    elif build:
        known = vocabulary.build(asked, min_count=min_count)
    else:
        known = Vocabulary.load(words)
    if build or released:
        known.save(words)
    if expand:
        known = vocabulary.expand(known, asked, min_count)
        known.save(out.parent / "humans_vocab.json")
    with questions.naming(source):
        rows = encoding.encode(asked, known)
    if out.suffix in H5_SUFFIXES:
        question_files.write_h5(out, rows, known)
    else:
        question_files.save(out, rows, known)
    programs = "without programs" if rows.programs is None else f"{rows.programs.shape[1]} tokens"
    print(f"{out}: {len(rows)} questions of {rows.questions.shape[1]} words at most, {programs}")
    return len(rows)


def extract(
    images: str | Path,
    out: str | Path,
    *,
    weights: str = "IMAGENET1K_V1",
    half: bool = True,
    std: str = "iep",
    batch_size: int = 64,
    workers: int = 4,
    again: bool = False,
) -> None:
    """Write the features of a folder of images, float16 unless `half` is false, on a GPU if any.

    weights: a name of torchvision's ResNet-101 weights, which are downloaded, or a file; "none"
    leaves them random, for tests.
    """
    if Path(out).exists() and not again:
        print(f"{out} is there already")
        return
    extractor = extraction.Extractor(weights=None if weights == "none" else weights, std=std)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = extraction.extract(
        images,
        out,
        extractor,
        batch_size=batch_size,
        half=half,
        device=device,
        workers=workers,
        progress=True,
    )
    print(f"{out}: {' x '.join(map(str, shape))}")


def clevr(
    root: str | Path,
    out: str | Path,
    *,
    splits: Sequence[str] | None = None,
    released: bool = False,
    weights: str = "IMAGENET1K_V1",
    half: bool = True,
    workers: int = 4,
    again: bool = False,
) -> None:
    """Questions and features of a download of CLEVR or CoGenT; the first split makes vocab.json.

    splits: by default train, and val where it is there.
    """
    root, out = Path(root), Path(out)
    splits = _choose_splits(root, splits)
    files = {split: questions.find_questions(root, split) for split in splits}
    for split in splits:
        if not (root / "images" / split).is_dir():
            raise ValueError(
                f"{root / 'images' / split} is not there: expected images/{split}/CLEVR_{split}"
                "_000000.png and so on, as in the download."
            )
    for number, (split, file) in enumerate(files.items()):
        first = number == 0 and (again or not (out / "vocab.json").exists())
        build, given = first and not released, first and released
        target = out / f"{split}_questions"
        encode(file, target, build=build, released=given, again=again)
    for split in splits:
        extract(
            root / "images" / split,
            out / f"{split}_features.npy",
            weights=weights,
            half=half,
            workers=workers,
            again=again,
        )


def _choose_splits(root: Path, asked: Sequence[str] | None) -> Sequence[str]:
    """The splits that are asked for, by default those of `SPLITS` that `root` has."""
    if asked is not None:
        return asked
    there = [split for split in SPLITS if questions.has_questions(root, split)]
    if root.is_dir() and SPLITS[0] not in there:  # whose words the others are numbered by
        raise ValueError(
            f"{root} has no questions of {SPLITS[0]!r}: name the splits that it has with --splits, "
            f"the training split first; {questions.EXPECTED}"
        )
    if there and len(there) < len(SPLITS):
        print(f"note: {root} has questions of {there[0]} alone")
    return there or SPLITS


def humans(
    root: str | Path,
    out: str | Path,
    *,
    splits: Sequence[str] | None = None,
    min_count: int = WORDS,
    again: bool = False,
) -> None:
    """CLEVR-Humans' questions beside CLEVR's; the first split's words extend the vocabulary."""
    out = Path(out)
    splits = _choose_splits(Path(root), splits)
    further = out / "humans_vocab.json"
    for number, split in enumerate(splits):
        file = questions.find_questions(root, split)
        expand = number == 0 and (again or not further.exists())
        encode(
            file,
            out / f"humans_{split}_questions",
            words=None if expand else further,
            expand=expand,
            min_count=min_count,
            again=again,
        )


def generate(
    out: str | Path,
    *,
    images: int = 100,
    per_image: int = 10,
    profile: str = "full",
    split: str = "train",
    objects: tuple[int, int] = (3, 10),
    size: tuple[int, int] = (480, 320),
    seed: int = 0,
) -> None:
    """Built-in images of `size`, width and height, scene graphs and questions, as CLEVR's files."""
    out = Path(out)
    made = builtin.build(
        split=split,
        images=images,
        per_image=per_image,
        seed=seed,
        profile=profile,
        options=builtin.Options(objects=objects),
        features=builtin.FeatureOptions(kind="pixels", width=size[0], height=size[1]),
    )
    folder = out / "images" / split
    for scene, image in zip(made.scenes, made.features, strict=True):
        draw.save_png(torch.from_numpy(image), folder / scene.image_filename)
    scene_graph.write_scenes(out / "scenes" / f"CLEVR_{split}_scenes.json", made.scenes)
    questions.write_questions(out / "questions" / f"CLEVR_{split}_questions.json", made.questions)
    print(f"{out}: {images} images, {len(made.questions)} questions of {split}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python prepare.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    c = commands.add_parser("clevr", help="all of a download of CLEVR or CoGenT")
    c.add_argument("root", type=Path)
    c.add_argument("out", type=Path)
    c.add_argument("--splits", nargs="+", help="the training split first")
    c.add_argument("--released", action="store_true", help="the published models' vocabulary")
    _for_features(c)
    c = commands.add_parser("humans", help="CLEVR-Humans' questions beside CLEVR's")
    c.add_argument("root", type=Path)
    c.add_argument("out", type=Path)
    c.add_argument("--splits", nargs="+", help="the training split first")
    c.add_argument("--min-count", type=int, default=WORDS, help="times that a new word must occur")
    c = commands.add_parser("questions", help="one questions file")
    c.add_argument("source", type=Path)
    c.add_argument("out", type=Path, help="a folder, or a file .h5")
    c.add_argument("--words", type=Path, help="vocab.json; by default beside OUT")
    c.add_argument("--build", action="store_true", help="make vocab.json from these questions")
    c.add_argument("--released", action="store_true", help="the published models' vocabulary")
    c.add_argument("--expand", action="store_true", help="write humans_vocab.json with more words")
    c.add_argument("--min-count", type=int, default=1, help="times that a word must occur")
    c = commands.add_parser("features", help="features of one folder of images")
    c.add_argument("images", type=Path)
    c.add_argument("out", type=Path, help="a file .npy or .h5")
    c.add_argument("--std", choices=tuple(extraction.STD), default="iep")
    c.add_argument("--batch-size", type=int, default=64)
    _for_features(c)
    c = commands.add_parser("generate", help="built-in data in CLEVR's layout")
    c.add_argument("out", type=Path)
    c.add_argument("--images", type=int, default=100)
    c.add_argument("--per-image", type=int, default=10, help="questions of an image")
    c.add_argument("--profile", choices=("full", "tiny"), default="full")
    c.add_argument("--split", choices=builtin.SPLITS, default="train")
    c.add_argument("--objects", type=int, nargs=2, default=(3, 10))
    c.add_argument("--size", type=int, nargs=2, default=(480, 320), help="width and height")
    c.add_argument("--seed", type=int, default=0)
    for name, command in commands.choices.items():
        if name != "generate":
            command.add_argument("--again", action="store_true", help="also what is there already")
    options = vars(parser.parse_args(arguments))
    try:
        _COMMANDS[options.pop("command")](**options)
    except (ValueError, OSError) as error:
        print(f"bad data: {sentence(error) or error}", file=sys.stderr)
        return 2
    return 0


def _for_features(command: argparse.ArgumentParser) -> None:
    command.add_argument("--weights", default="IMAGENET1K_V1", help="a name, a file, or none")
    command.add_argument("--float32", dest="half", action="store_false", help="not float16")
    command.add_argument("--workers", type=int, default=min(4, dist.cores()))


_COMMANDS: dict[str, Callable[..., Any]] = {
    "clevr": clevr,
    "humans": humans,
    "questions": encode,
    "features": extract,
    "generate": generate,
}


if __name__ == "__main__":
    with spawn.ending_at_once():
        sys.exit(main())
