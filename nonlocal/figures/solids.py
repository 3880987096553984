"""The first picture of a run on the built-in clips: from one solid, what the block looks at."""

from collections.abc import Callable, Sequence

from torch import Tensor

from .attention import Attention, Place, Size, middle_of, shares_of, size_of


def look_from_a_solid(
    boxes: Tensor, frames: Tensor, look: Callable[[Place], Attention]
) -> Attention:
    """The attention of that one of two solids that looks more at the other.

    A block that compares two solids needs only one of them to look at the other, and which one does
    may depend on their colours.

    boxes: (2, 4) x1, y1, x2, y2 in pixels. frames: (2, 2), the first and the one after the last.
    look: what a place of the clip attends to.
    """
    pairs = list(zip(boxes.tolist(), frames.tolist(), strict=True))
    entries = [look(middle(*pair)) for pair in pairs]
    first, second = (
        share_on(entry, *pair) for entry, pair in zip(entries, reversed(pairs), strict=True)
    )
    return entries[int(second >= first)]


def share_on(entry: Attention, box: Sequence[int], frames: Sequence[int]) -> float:
    """The share of a query's weights, by magnitude, on the cells that a solid meets."""
    weights = shares_of(entry.weights).abs().flatten()
    cells = meets(box, frames, entry.size, size_of(entry.weights))
    return float(weights[cells].sum() / weights.sum().clamp(min=1))


def middle(box: Sequence[int], frames: Sequence[int]) -> Place:
    """The middle of a solid, in its last frame."""
    x1, y1, x2, y2 = box
    return frames[1] - 0.5, (y1 + y2) / 2, (x1 + x2) / 2


def meets(box: Sequence[int], frames: Sequence[int], clip: Size, cells: Size) -> list[int]:
    """Numbers of the cells that a solid's box and frames overlap."""
    x1, y1, x2, y2 = box
    low, high = (frames[0], y1, x1), (frames[1], y2, x2)
    reach = [length / count / 2 for length, count in zip(clip, cells, strict=True)]
    found = []
    for number in range(cells[0] * cells[1] * cells[2]):
        at = middle_of(number, clip, cells)
        if all(a - r < h and a + r > lo for a, r, lo, h in zip(at, reach, low, high, strict=True)):
            found.append(number)
    return found
