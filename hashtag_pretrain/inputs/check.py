"""What is wrong with shards that an index does not know, and what tags they have."""

from collections import Counter

import numpy as np

from common.images import UnreadableImage

from ..shards.archive import Shards
from ..shards.index import hash_file
from ..words.vocabulary import Vocabulary
from .decode import View, decode_crop

SHOWN = 20  # of the most frequent tags


def look(shard: int, *, shards: Shards, decode: bool) -> list[str]:
    """What is wrong with a shard: another hash, and images that cannot be decoded."""
    path, faults = shards.paths[shard], []
    if hash_file(path) != shards.summaries[shard].sha256:
        faults.append(f"{path.name}: its bytes are not those that were indexed")
    if decode:
        start = int(shards.starts[shard])
        for image in range(start, start + int(shards.counts[shard])):
            try:
                decode_crop(shards.read(image), shards.name(image), whole_image)
            except UnreadableImage as error:
                faults.append(str(error))
    return faults


def whole_image(height: int, width: int) -> View:
    """All pixels, and the first of them as the view."""
    return View((0, 0, height, width), (height, width), (0, 0), 1)


def count_tags(shards: Shards, vocabulary: Vocabulary | None) -> list[str]:
    """Lines on how many tags the images have, of the vocabulary where there is one."""
    lines = []
    if vocabulary is None:
        counts = shards.count_tags()
    else:
        counts, untagged = Counter[str](), 0
        for shard in range(len(shards.paths)):
            tags = shards.tags(shard)
            uses = np.bincount(tags.ids, minlength=len(vocabulary.names)).tolist()
            counts.update(dict(zip(vocabulary.names, uses, strict=True)))
            untagged += int((np.diff(tags.offsets) == 0).sum())
        lines.append(f"{untagged} images have no tag of the vocabulary")
        unused = [name for name in vocabulary.names if not counts[name]]
        if unused:
            lines.append(
                f"{len(unused)} of its {len(vocabulary.names)} labels have no image: {unused[0]}"
            )
    used = sum(count > 0 for count in counts.values())
    mean = counts.total() / max(1, len(shards))
    lines.append(f"{used} tags, {mean:.2f} an image; the most frequent:")
    lines.append(", ".join(f"{tag} {n}" for tag, n in counts.most_common(SHOWN) if n))
    return lines
