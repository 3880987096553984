"""Images with tags as people have them: folders, a list, COCO's captions; and copies of them.

folder   ROOT/<tag>/.../<image>: the names of the folders are the tags
list     lines PATH<tab>tag tag tag
coco     ROOT/annotations/captions_SPLIT.json: the words of an image's captions are its tags
"""

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from PIL import Image

from common.coco.files import read_json
from common.images import ImageFolder, UnreadableImage, read_image

from ..shards.index import hash_key
from ..shards.writer import IMAGES, Sample
from ..words.tags import normalise

# Words of captions that WordNet has as nouns too, as chemical elements or letters, and the like.
_WORDS = """
a about above across after all along am an and another any are around as at away back be been
before behind being below beside between both by can close do does down each eight few five for
four from front go going has have he her here him his i in inside into is it its just large less
like little lot lots lying made many may me more most near next nine no not of off old on one only
open or other out outside over part parked set seven several she side sitting six small so some
someone something standing still such ten than that the their them there they thing things this
three through to top toward towards two under up us use using very was well what when where which
while who will with without
"""
STOP = frozenset(_WORDS.split())


@dataclass(frozen=True)
class Photo:
    """An image file with its raw tags, and the key of its place in a shard."""

    path: str
    tags: list[str]
    key: str = ""


def read_folders(root: str | Path) -> list[Photo]:
    """The images below the folders in `root`, each with the names of all folders it lies in."""
    files = ImageFolder(root).files
    return [Photo(path, list(Path(path).relative_to(root).parent.parts)) for path in files]


def read_list(path: str | Path, root: str | Path = "") -> list[Photo]:
    """The images of a list; their paths start from `root`, by default from the list's folder."""
    path = Path(path)
    folder = os.fspath(root) or os.path.dirname(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # tags may have U+2028 and others
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a list of images ({error})") from None
    photos = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, tab, words = line.partition("\t")
        if not tab or not name:
            raise ValueError(f"{path}, line {number}: expected PATH<tab>tag tag tag, not {line!r}")
        photos.append(Photo(os.path.join(folder, name), words.split()))
    return photos


def read_captions(root: str | Path, split: str, stop: Collection[str] = ()) -> list[Photo]:
    """The images of a split of COCO, with the words of all their captions but STOP and `stop`."""
    path = Path(root, "annotations", f"captions_{split}.json")
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: root= is COCO's folder, and split= for instance train2017"
        )
    content = read_json(path)
    try:
        files = {image["id"]: image["file_name"] for image in content["images"]}
        captions = [(entry["image_id"], entry["caption"]) for entry in content["annotations"]]
        words: dict[int, list[str]] = {image: [] for image in files}
        left_out = STOP | {normalise(word) for word in stop} | {""}
        for image, caption in captions:
            words[image] += [normalise(word) for word in caption.split()]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has not the fields of COCO's captions ({error!r})") from None
    return [
        Photo(os.path.join(root, split, name), sorted(set(words[image]) - left_out))
        for image, name in files.items()
    ]


def give_keys(photos: list[Photo], root: str | Path) -> list[Photo]:
    """The photos with keys: their paths in `root` without the extension, each one only once."""
    seen: set[int] = set()
    paths: set[str] = set()
    found = []
    for photo in photos:
        path = os.path.relpath(photo.path, root)
        if path in paths:
            raise ValueError(f"{photo.path} stands twice in the list: give it one line of all tags")
        paths.add(path)
        if path.startswith(".."):
            path = os.path.abspath(photo.path).lstrip("/")
        folder, base = os.path.split(path.replace(os.sep, "/"))
        stem, ext = os.path.splitext(base)
        key = stem.replace(".", "_")  # the first dot would end it
        for name in (key, f"{key}_{ext[1:]}"):  # photo.jpg beside photo.png
            name = f"{folder}/{name}" if folder else name
            if hash_key(name) not in seen:
                break
        else:
            raise ValueError(f"{photo.path} has the key {name} of another file: rename one of them")
        seen.add(hash_key(name))
        found.append(replace(photo, key=name))
    return found


def make_sample(photo: Photo, *, short: int = 0, quality: int = 90) -> tuple[Sample | None, str]:
    """The photo as it goes into a shard, None where it cannot be read, and what is wrong.

    short: a larger image is stored as a JPEG file whose shorter side has so many pixels, upright;
    0: none is. Other files keep their bytes.
    """
    try:
        pixels = read_image(photo.path)
        ext = os.path.splitext(photo.path)[1][1:].lower()
        if ext in IMAGES and not 0 < short < min(pixels.shape[1:]):
            return Sample(photo.key, Path(photo.path).read_bytes(), ext, photo.tags), ""
    except (UnreadableImage, OSError) as error:
        return None, str(error)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    scale = min(1.0, short / min(image.size)) if short else 1.0
    size = (round(image.width * scale), round(image.height * scale))
    file = BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, "jpeg", quality=quality)
    return Sample(photo.key, file.getvalue(), "jpg", photo.tags), ""
