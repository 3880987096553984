"""Scene graphs as arrays, for the execution of many programs at once.

A set of objects is one int64: bit i is set for object i. The values of the attributes are numbered
through: size 0-1, color 2-9, material 10-11, shape 12-14.

S scenes of n objects at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np

from ..functions import ATTRIBUTES, RELATIONS
from ..scene_graph import SceneGraph

MOST_BITS: Final = 62  # objects of a scene: an int64 with the sign left alone
VALUES: Final = tuple(value for values in ATTRIBUTES.values() for value in values)
FIRST: Final = np.cumsum([0, *(len(values) for values in ATTRIBUTES.values())])[:-1]  # (4,)


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class PackedScenes:
    """S scenes as arrays, filled up to the n objects of the largest."""

    attributes: np.ndarray  # int8 (S, n, 4): place in the tuples of ATTRIBUTES, in their order
    mask: np.ndarray  # bool (S, n): whether there is such an object
    relations: np.ndarray  # bool (S, 4, n, n): [s, r, i, j] says that j is r of i

    def __len__(self) -> int:
        return len(self.mask)

    @cached_property
    def bits(self) -> "Bits":
        """The sets of each scene as bits, made once."""
        scenes, n = self.mask.shape
        if n > MOST_BITS:
            raise ValueError(f"a scene may have up to {MOST_BITS} objects here, not {n}")
        weights = 1 << np.arange(n)
        looks = self.attributes + FIRST  # (S, n, 4)
        own = np.where(self.mask, weights, 0)  # (S, n)
        members = np.zeros((scenes, len(VALUES)), np.int64)
        for i in range(n):
            for a in range(len(ATTRIBUTES)):
                members[np.arange(scenes), looks[:, i, a]] |= own[:, i]
        # A scene without objects must still have an object 0 to point at where `unique` fails.
        room = ((0, 0), (0, int(n == 0)))
        return Bits(
            everything=own.sum(1),
            members=members,
            related=np.pad(self.relations @ weights, ((0, 0), *room)),
            looks=np.pad(looks, (*room, (0, 0))),
        )


class Bits(NamedTuple):
    everything: np.ndarray  # int64 (S,)
    members: np.ndarray  # int64 (S, 15): the objects with each value
    related: np.ndarray  # int64 (S, 4, n): the objects that are r of i
    looks: np.ndarray  # int64 (S, n, 4): values, numbered through


def pack(scenes: Sequence[SceneGraph]) -> PackedScenes:
    """Scene graphs as arrays; ValueError naming the image that has too many objects."""
    n = max((len(scene.things) for scene in scenes), default=0)
    packed = PackedScenes(
        np.zeros((len(scenes), n, len(ATTRIBUTES)), np.int8),
        np.zeros((len(scenes), n), bool),
        np.zeros((len(scenes), len(RELATIONS), n, n), bool),
    )
    codes = {name: {v: i for i, v in enumerate(values)} for name, values in ATTRIBUTES.items()}
    for s, scene in enumerate(scenes):
        if len(scene.things) > MOST_BITS:
            raise ValueError(
                f"scene {s} ({scene.image_filename}) has {len(scene.things)} objects; batched "
                f"execution takes up to {MOST_BITS}"
            )
        packed.mask[s, : len(scene.things)] = True
        for i, thing in enumerate(scene.things):
            packed.attributes[s, i] = [codes[name][getattr(thing, name)] for name in ATTRIBUTES]
            for r, name in enumerate(RELATIONS):
                packed.relations[s, r, i, list(scene.relations[name][i])] = True
    return packed
