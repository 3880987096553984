"""Networks to start from: another run's, or the files of the public code."""

from pathlib import Path

import torch
from torch import Tensor

from common.clevr.vocabulary import Vocabulary
from common.run import checkpoint
from common.weights import pickles
from common.weights.formats import State, tensors_by_name

from ..model import PARTS, Network
from . import formats

EMBEDDINGS = ("generator.encoder_embed.weight", "baseline.rnn.embed.weight")  # a row for each word


def initialise(network: Network, source: str, words: Vocabulary) -> str:
    """Load the parts of `network` that `source` has; a report of one line.

    source: a run's folder, whose best or newest weights are taken and which may be named by a
    pattern that one folder matches; a checkpoint; or a file of the public code. Further words of
    `words` get new rows, small and random (0.01), after the old ones. Raises ValueError where no
    part fits, or where the source was trained with another vocabulary.
    """
    path = weights_file(source)
    state, theirs = read(path)
    if theirs is not None:
        _require_same(theirs, words, path)
    loaded = []
    for name, part in network.parts().items():
        own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
        if not own:
            continue
        for embedding in EMBEDDINGS:
            key = embedding.removeprefix(f"{name}.")
            if key in own:
                own[key] = grow(own[key], len(words.words))
        try:
            report = checkpoint.load_matching(part, own)
        except checkpoint.CheckpointError as error:
            raise checkpoint.CheckpointError(f"{path}: its {name} does not fit: {error}") from None
        loaded.append(f"{name} ({report})")
    if not loaded:
        raise ValueError(
            f"{path} has none of {', '.join(network.parts())}, which this stage starts from."
        )
    return f"{path}: {', '.join(loaded)}"


def read(path: Path) -> tuple[State, Vocabulary | None]:
    """Tensors by name with the part in front, `engine.stem.0.weight`, and the vocabulary.

    path: a checkpoint of ours, with vocab.json beside it, or its tensors alone; a file of the
    public code; or one that convert.py wrote. Nothing in it is run.
    """
    state = tensors_by_name(pickles.read(path))
    if any(name.partition(".")[0] in PARTS for name in state):
        beside = path.parent / "vocab.json"
        return state, Vocabulary.load(beside) if beside.is_file() else None
    models = formats.load(path)
    state = {}
    for name in models.options:
        part = getattr(models, name)
        state |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    words = Vocabulary.of(models.vocabulary, str(path)) if models.vocabulary else None
    return state, words


def weights_file(source: str) -> Path:
    """The file that `source` means: itself, or a run's best or newest checkpoint.

    Raises ValueError where there is none, or a pattern has several matches.
    """
    path = Path(source)
    if any(mark in source for mark in "*?["):
        found = (
            sorted(Path().glob(source))
            if not path.is_absolute()
            else sorted(Path("/").glob(str(path.relative_to("/"))))
        )
        if len(found) != 1:
            count = f"{len(found)} folders match" if found else "no folder matches"
            raise ValueError(f"{source}: {count}; init needs one.")
        path = found[0]
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"init={source}: there is no such file or folder.")
    best = path / "best.pt"
    if best.is_file():
        return best
    newest = max(path.glob("checkpoint-*[0-9].pt"), default=None)
    if newest is None:
        raise ValueError(
            f"init={source}: {path} has no checkpoint: train that run first; of a run of several "
            "stages name the folder of one, such as joint."
        )
    return newest


def grow(rows: Tensor, count: int) -> Tensor:
    """Embedding rows (n, E) with new ones behind, N(0, 0.01^2), up to `count`, Sec. 4.5."""
    further = max(0, count - len(rows))
    new = 0.01 * torch.randn(further, rows.shape[1])
    return torch.cat([rows, new.to(rows)])


def _require_same(theirs: Vocabulary, words: Vocabulary, path: Path) -> None:
    """Raise ValueError unless `words` are `theirs` with further words at most."""
    if (theirs.tokens, theirs.answers) != (words.tokens, words.answers) or (
        theirs.words != words.words[: len(theirs.words)]
    ):
        raise ValueError(
            f"{path} was trained with another vocabulary than these data have: encode the "
            "questions with its vocab.json (prepare.py questions --vocabulary)."
        )
