"""Questions to choose from: drawn, checked for relevance, and never the same about an image twice.

Two questions about an image are the same where their programs have one canonical form.

I images of a round, J of them that are drawn for again; R raw programs of an image, P proposals
that are kept; L tokens of a program, START and END included.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.clevr.accuracy import TYPES
from common.clevr.arrays.encode import root_types
from common.clevr.functions import END, NULL, SPECIAL, START
from common.clevr.grammar import LEVELS
from common.clevr.programs import canonical
from common.clevr.vocabulary import Vocabulary

from ..net.generator import CONDITIONS

TRIES = 3  # draws for an image until it is skipped in the round
KINDS = ("lstm", "empirical", "typed")
_NULL, _START, _END = (SPECIAL.index(name) for name in (NULL, START, END))

# Images int64 (J,), their maps (J, C, H, W), R, generator -> programs int64 (J, R, L)
Draw = Callable[[Tensor, Tensor, int, torch.Generator], Tensor]


@dataclass
class Generator:
    """How questions are proposed: the group `generator`."""

    # lstm: learned | empirical: those of the beginning, of other images too | typed: random
    # programs that the oracle can read, the floor
    kind: str = "lstm"
    condition: str = "image_type"  # image_type | image | type | none: what the generator is told
    types: list[str] = field(default_factory=list)  # drawn uniformly; empty: of the beginning
    embed: int = 300  # Unstated
    hidden: int = 512  # Unstated
    steps: int = 15_000  # Unstated: of learning from the beginning
    lr: float = 5e-4  # Unstated: of Adam
    batch_size: int = 128  # Unstated
    temperature: float = 1.3  # Unstated: above 1 for variety
    mask: bool = True  # Unstated: draw only what is a program of the grammar
    level: str = "types"  # of the grammar: types | canonical | template
    raw: int = 500  # Unstated: programs drawn for an image
    kept: int = 50  # Unstated: proposals that remain of them
    dedupe: str = "image"  # Unstated: never ask the same about an image twice | none

    def __post_init__(self) -> None:
        for name, choices in (
            ("kind", KINDS),
            ("condition", CONDITIONS),
            ("level", tuple(LEVELS)),
            ("dedupe", ("image", "none")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"generator.{name}={getattr(self, name)} is not one of {', '.join(choices)}."
                )
        for name in self.types:
            if name not in TYPES:
                raise ValueError(
                    f"generator.types names {name!r}, which is none of {', '.join(TYPES)}."
                )
        if self.types and (self.kind == "typed" or "type" not in self.condition):
            raise ValueError(
                f"generator.types={self.types} is without effect with generator.kind={self.kind} "
                f"and generator.condition={self.condition}, which draw no type: remove it."
            )
        for name in ("embed", "hidden", "batch_size", "raw", "kept"):
            if getattr(self, name) < 1:
                raise ValueError(f"generator.{name}={getattr(self, name)}: give at least 1.")
        if self.steps < 0:
            raise ValueError(f"generator.steps={self.steps}: give 0 or more.")
        for name in ("lr", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"generator.{name}={getattr(self, name)}: give more than 0.")
        if self.kept > self.raw:
            raise ValueError(
                f"generator.kept={self.kept} is more than generator.raw={self.raw}: of the raw "
                "programs some are kept."
            )


class Relevance(Protocol):
    """What says whether proposals fit their image; see relevance.py."""

    def probabilities(
        self, images: Tensor, programs: Tensor, types: Tensor, features: Tensor
    ) -> Tensor:
        """Probabilities (J, R) of being valid, from programs (J, R, L) and maps (J, C, H, W)."""

    def keep(self, probabilities: Tensor, types: Tensor) -> Tensor:
        """Which of them may be asked, bool (J, R)."""


@dataclass
class Proposals:
    """P proposals for each of I images; where there are fewer, `allowed` is False.

    Such a gap holds START END, the type -1, and NaN for the rest.
    """

    images: Tensor  # int64 (I,), rows of the features
    tokens: Tensor  # int64 (I, P, L)
    types: Tensor  # int64 (I, P): what the root says, whatever was wished for; -1 none of the 13
    allowed: Tensor  # bool (I, P)
    relevance: Tensor  # float32 (I, P), NaN where no relevance model looked
    raw: Tensor  # int64 (I,): programs drawn

    @property
    def kept(self) -> Tensor:
        """Proposals of each image, int64 (I,); 0: the image is skipped in this round."""
        return self.allowed.sum(1)

    @classmethod
    def empty(cls, images: Tensor, most: int, length: int, device: torch.device) -> "Proposals":
        """Room for `most` proposals of each image, all gaps."""
        shape = (len(images), most)
        tokens = torch.zeros(*shape, length, dtype=torch.int64, device=device)
        tokens[..., 0], tokens[..., 1] = _START, _END
        return cls(
            images=images,
            tokens=tokens,
            types=torch.full(shape, -1, device=device),
            allowed=torch.zeros(shape, dtype=torch.bool, device=device),
            relevance=torch.full(shape, torch.nan, device=device),
            raw=torch.zeros(len(images), dtype=torch.int64, device=device),
        )

    def fill(self, row: int, source: "Proposals", place: int, chosen: Tensor) -> None:
        """Copy the proposals `chosen` (n,) int64 of row `place` in `source` to row `row`."""
        n, chosen = len(chosen), chosen.to(self.types.device)
        for name in ("tokens", "types", "relevance"):
            getattr(self, name)[row, :n] = getattr(source, name)[place, chosen]
        self.allowed[row, :n] = True


class Asked:
    """What was asked about each image so far, whatever the oracle replied.

    It has no state of its own to store: `add` the table of all replies after a resume.
    """

    def __init__(self, words: Vocabulary) -> None:
        self.words = words
        self._seen: defaultdict[int, set[bytes]] = defaultdict(set)
        self._key = lru_cache(maxsize=2**16)(self._spell)  # most programs are drawn again and again

    def add(self, images: np.ndarray, programs: np.ndarray) -> None:
        """Note questions: images int (n,), programs int (n, L)."""
        for image, row in zip(images.tolist(), np.asarray(programs, np.int64), strict=True):
            self._seen[image].add(self._key(row.tobytes()))

    def select(self, image: int, rows: np.ndarray, taken: set[bytes], most: int) -> list[int]:
        """The first `most` places of programs (n, L) that are new for the image.

        taken: what is new no longer, besides what was asked; those found are added to it.
        """
        found: list[int] = []
        seen = self._seen.get(image, set())
        for place, row in enumerate(np.asarray(rows, np.int64)):
            key = self._key(row.tobytes())
            if key not in seen and key not in taken:
                taken.add(key)
                found.append(place)
                if len(found) == most:
                    break
        return found

    def _spell(self, row: bytes) -> bytes:
        """The key of a program, from the bytes of its tokens in int64."""
        tokens = (self.words.tokens[number] for number in np.frombuffer(row, np.int64))
        return bytes(self.words.program[text] for text in canonical(list(tokens)))


def propose(
    draw: Draw,
    images: Tensor,
    maps: Tensor,
    asked: Asked,
    options: Generator,
    *,
    generator: torch.Generator,
    relevance: Relevance | None = None,
) -> Proposals:
    """`options.kept` relevant new questions about each image, a random choice of the raw ones.

    images: int64 (I,) on the CPU. maps: (I, C, H, W), on the device that the proposals shall be on.
    generator: on the CPU, of this round. Where all programs of an image were asked before or are
    irrelevant, it is drawn for again, twice; then it is left without a proposal.
    """
    out = Proposals.empty(images, options.kept, 2, maps.device)
    taken: defaultdict[int, set[bytes]] = defaultdict(set)  # an image may occur twice in a round
    waiting = torch.arange(len(images))  # places of the images that have no proposal yet
    for _ in range(TRIES):
        if not len(waiting):
            break
        some = maps[waiting.to(maps.device)]
        raw = _draw_raw(draw, images[waiting], some, asked.words, options.raw, generator, relevance)
        order = torch.rand(raw.types.shape, generator=generator).argsort(1)  # (J, R)
        allowed, rows = raw.allowed.cpu(), raw.tokens.cpu().numpy()
        if out.tokens.shape[2] < raw.tokens.shape[2]:
            out.tokens = F.pad(out.tokens, (0, raw.tokens.shape[2] - out.tokens.shape[2]))
        out.raw[waiting.to(maps.device)] += options.raw
        for j, place in enumerate(waiting.tolist()):
            left = order[j][allowed[j, order[j]]]
            if options.dedupe == "image":
                image = int(images[place])
                left = left[asked.select(image, rows[j, left.numpy()], taken[image], options.kept)]
            out.fill(place, raw, j, left[: options.kept])
        waiting = (out.kept == 0).nonzero()[:, 0].cpu()
    used = (out.tokens != _NULL).any(0).any(0).nonzero()
    out.tokens = out.tokens[..., : int(used[-1]) + 1 if len(used) else 2]
    return out


def _draw_raw(
    draw: Draw,
    images: Tensor,
    maps: Tensor,
    words: Vocabulary,
    count: int,
    generator: torch.Generator,
    relevance: Relevance | None,
) -> Proposals:
    """Proposals (J, R) as they are drawn, whether asked before or not; allowed: the relevant."""
    programs = draw(images, maps, count, generator)
    programs = programs.to(maps.device)
    types = types_of(programs, words)
    chance = torch.full(types.shape, torch.nan, device=maps.device)
    keep = torch.ones(types.shape, dtype=torch.bool, device=maps.device)
    if relevance is not None:
        chance = relevance.probabilities(images, programs, types, maps).float()
        keep = relevance.keep(chance, types)
    return Proposals(
        images=images,
        tokens=programs,
        types=types,
        allowed=keep,
        relevance=chance,
        raw=torch.full((len(images),), count, device=maps.device),
    )


def types_of(programs: Tensor, words: Vocabulary) -> Tensor:
    """Types (..., ) int64 of programs (..., L), read off their roots; -1: none of the 13."""
    rows = programs.cpu().numpy().reshape(-1, programs.shape[-1])
    types = torch.from_numpy(root_types(rows, words).astype(np.int64))
    return types.view(programs.shape[:-1]).to(programs.device)


def diversity(proposals: Proposals) -> dict[str, float]:
    """How varied the allowed proposals are; all 0 where there is none.

    distinct: share of different programs. type_entropy: over their types, in nats. length: mean
    number of functions.
    """
    programs = proposals.tokens[proposals.allowed]  # (n, L)
    if not len(programs):
        return {"distinct": 0.0, "type_entropy": 0.0, "length": 0.0}
    _, counts = proposals.types[proposals.allowed].unique(return_counts=True)
    share = counts / len(programs)
    return {
        "distinct": len(programs.unique(dim=0)) / len(programs),
        "type_entropy": -float((share * share.log()).sum()),
        "length": float((programs > _END).sum(1).float().mean()),
    }
