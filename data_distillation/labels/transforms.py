"""The transforms beside the images and joints at hand: what is left out, and what coincides."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..distill import Size, Transforms, View, make_views


def without_flips(
    transforms: Transforms, kind: str, mirrored: Sequence[int] | None
) -> tuple[Transforms, str]:
    """The transforms without flips where left and right joints are not known, and a note of it.

    kind: "boxes", "masks" or "keypoints". mirrored: as of `mirrored_joints`. The note is empty
    where the transforms are as before.
    """
    if kind != "keypoints" or mirrored is not None or not transforms.flip:
        return transforms, ""
    return replace(transforms, flip=False), (
        "no flips, as the joints' names tell no left from right: name them as left_hand and "
        "right_hand in the labelled file's `categories`."
    )


def name_equal(sizes: Sequence[Size], transforms: Transforms, own: int, own_max: int) -> str:
    """Which scales are the same pass for the most frequent of the sizes (H, W); empty: none are.

    own, own_max: as of `own_size`.
    """
    views = make_views(replace(transforms, flip=False), own)
    for (height, width), count in Counter(sizes).most_common():
        pairs = equal_sizes(views, (height, width), own, transforms, own_max)
        shorts = dict.fromkeys(view.short or own for pair in pairs for view in pair)
        if shorts:
            return (
                f"the scales {', '.join(map(str, shorts))} are the same for {count} of "
                f"{len(sizes)} images, of {width} x {height} pixels, and count several times: "
                "raise transforms.max_size, or leave some out of transforms.scales."
            )
    return ""


def joint_shift(joint_offset: float, transforms: Transforms) -> float:
    """Pixels from the joints of a network that learned with `joint_offset` to continuous ones.

    Of a mirrored pass they lie as far on the other side, so that its average with the other is 0.
    """
    return 0.0 if transforms.flip else 0.5 - joint_offset


def equal_sizes(
    views: Sequence[View], size: Size, own: int, transforms: Transforms, own_max: int = 1333
) -> list[tuple[View, View]]:
    """Pairs of views that are the same for an image of `size`, as the longer side has a cap.

    own, own_max: as of `own_size`.
    """
    first: dict[tuple[int, int, bool], View] = {}
    pairs = []
    for view in views:
        short, cap = (view.short, transforms.max_size) if view.short else (own, own_max)
        ratio = min(short / min(size), cap / max(size))
        same = first.setdefault((int(size[0] * ratio), int(size[1] * ratio), view.flip), view)
        if same != view:
            pairs.append((same, view))
    return pairs
