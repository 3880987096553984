"""Start from the weights of others or of a run of ours, and hand our trunk on.

print(load_trunk(model, "ig_resnext101_32x16-c6f796b0.pth"))   # all but the last layer
print(initialise(model, "outputs/2026-01-01/12-00-00"))        # that too, where it fits
export_trunk(model, "trunk.pt", form="detection")              # for torchvision's detectors
"""

import hashlib
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model_weights

from common.run.sealed import write
from common.weights import pickles
from common.weights.formats import Report, State, converting, few, misfits, tensors_by_name

from .formats import (
    COUNTER,
    LICENCE,
    NONCOMMERCIAL,
    URLS,
    find_network,
    name_head,
    rename_trunk,
    require_known,
)

TORCHVISION = {  # its names of the words of `init`
    "imagenet": "IMAGENET1K_V1",
    "imagenet-v2": "IMAGENET1K_V2",
    "swag": "IMAGENET1K_SWAG_E2E_V1",
    "swag-linear": "IMAGENET1K_SWAG_LINEAR_V1",
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Pixels = tuple[Sequence[float], Sequence[float]]  # mean and std of red, green, blue in 0..1
LARGE = 2**28  # bytes of a file that is mapped instead of read
HASHED = re.compile(r"(ig_|semi_|resne|regnet_|vit_)\w*-([0-9a-f]{8})\.pth")  # SHA-256 in the name


@dataclass
class Weights:
    """Tensors by torchvision's names.

    digest: of the vocabulary of their last layer. pixels: that a run normalised. Both if known.
    """

    tensors: State
    source: str
    digest: str = ""
    pixels: Pixels | None = None
    notes: list[str] = field(default_factory=list)


def load_trunk(
    model: nn.Module, source: str | Path | Weights, *, pixels: Pixels | None = None
) -> Report:
    """Load all weights but those of the last layer, in place, which stays as initialised.

    source: what `read_weights` gave; a run's folder, whose newest checkpoint is taken; a file; a
    word: imagenet, imagenet-v2, swag or swag-linear, torchvision's; wsl, swsl or ssl. All but the
    first two were trained on hashtags or with their help. Words are downloaded once. pixels: mean
    and std of the images to come. Raises ValueError where the weights are of another network, or a
    run's of other pixels, with the options of theirs; then nothing is changed.
    """
    weights = source if isinstance(source, Weights) else read_weights(model, str(source))
    compare_pixels(weights, pixels)
    weights.tensors = without_fc(weights.tensors)
    return load(model, weights)


def initialise(
    model: nn.Module,
    source: str | Path,
    *,
    vocabulary: str = "",
    complete: bool = False,
    pixels: Pixels | None = None,
) -> Report:
    """`load_trunk`, and the last layer where it is of these classes.

    vocabulary: digest of the model's vocabulary; the last layer of another one, or of a file that
    names none, stays as initialised. Without it the number of classes decides. complete: raise
    ValueError where the last layer does not fit, as for an evaluation.
    """
    weights = read_weights(model, str(source))
    compare_pixels(weights, pixels)
    reason = unfit(model, weights, vocabulary)
    if reason and complete:
        raise ValueError(
            f"{weights.source}: {reason}, so that there is nothing to evaluate: train first, or "
            "give the vocabulary or classes that it knows."
        )
    if reason:
        weights.tensors = without_fc(weights.tensors)
        weights.notes.append(f"The last layer stays as initialised: {reason}.")
    return load(model, weights)


def unfit(model: nn.Module, weights: Weights, vocabulary: str) -> str:
    """Why the last layer of a file is not for this model; empty where it is."""
    own, given = model.state_dict()["fc.weight"], weights.tensors.get("fc.weight")
    if given is None:
        return "the file has none"
    if given.shape[0] != own.shape[0]:
        return f"the file has {len(given)} classes, the model {len(own)}"
    if vocabulary and not weights.digest:
        return "the file does not tell its vocabulary"
    if vocabulary and weights.digest != vocabulary:
        return "the file has another vocabulary of as many tags"
    return ""


def load(model: nn.Module, weights: Weights) -> Report:
    """Load tensors that must be all of the model's, but for the last layer."""
    own = model.state_dict()
    wanted = own if "fc.weight" in weights.tensors else without_fc(own)
    if found := misfits(wanted, weights.tensors):
        theirs = find_network(weights.tensors)
        remedy = f"set {theirs}" if theirs else "give weights of the same network"
        if theirs == find_network(own):
            remedy = "download or export it again"
        raise ValueError(f"{weights.source} does not fit the model: {remedy}. It has {found}.")
    model.load_state_dict(weights.tensors, strict=False)
    kept = [n for n in own if n not in weights.tensors and not n.endswith(COUNTER)]
    return Report(weights.source, len(weights.tensors), kept, notes=weights.notes)


def without_fc(state: State) -> State:
    """The tensors of the trunk."""
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def read_weights(model: nn.Module, source: str) -> Weights:
    """The weights that a word, a run's folder or a file means."""
    if source in TORCHVISION or source in URLS:
        found = download(source, find_network(model.state_dict()))
        weights = Weights(name_head(found), source)
        weights.notes += [LICENCE] if not source.startswith("imagenet") else []
        return weights
    path = find_file(source)
    require_digest(path)
    content = read_content(path)
    parts = content.get("parts") if isinstance(content, dict) else None
    average = parts.get("average") if isinstance(parts, dict) else None
    with converting(path):  # a run's averaged weights are what it scored
        tensors = name_head(tensors_by_name({"model": average} if average else content))
    tensors.pop("n_averaged", None)
    require_known(tensors, str(path))
    weights = Weights(tensors, str(path))
    if isinstance(parts, dict):
        weights.digest = str(parts.get("vocabulary", ""))
        options = parts.get("options", {})
        if "network.mean" in options and "network.std" in options:
            weights.pixels = options["network.mean"], options["network.std"]
    if NONCOMMERCIAL.search("/".join(path.parts[-2:])):
        weights.notes.append(LICENCE)
    return weights


def compare_pixels(weights: Weights, pixels: Pixels | None) -> None:
    """Note what a run's weights want of the pixels; ValueError where those to come are others."""
    if weights.pixels is None:
        return
    wanted, given = (tuple(map(tuple, each)) for each in (weights.pixels, pixels or (MEAN, STD)))
    if wanted == given:
        return
    shown = [f"[{','.join(map(str, values))}]" for values in wanted]
    options = f"network.mean={shown[0]} network.std={shown[1]}"
    if pixels is not None:
        raise ValueError(f"{weights.source} was trained with {options}: give these.")
    weights.notes.append(f"These weights want pixels of {options}.")


def find_file(source: str) -> Path:
    """The file itself, or the newest checkpoint of a run's folder."""
    path = Path(source)
    if not path.is_dir():
        return path
    files = sorted(path.glob("checkpoint-*[0-9].pt"))
    if not files:
        raise ValueError(f"{source} has no checkpoint: train that run first.")
    return files[-1]


def require_digest(path: Path) -> None:
    """Raise ValueError where a published file is not the one whose SHA-256 is in its name."""
    found = HASHED.fullmatch(path.name)
    if found is None or not path.is_file():
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(found[2]):
        raise ValueError(
            f"{path} is damaged: its SHA-256 starts with {digest[:8]}, not with the {found[2]} of "
            "its name. Download it again."
        )


def read_content(path: Path) -> Any:
    """Content of a file; a large one is mapped, so that its tensors take no memory of their own.

    Only files of PyTorch since 1.6 can be mapped: those of WSL are older.
    """
    if not path.is_file() or path.stat().st_size < LARGE or not zipfile.is_zipfile(path):
        return pickles.read(path)
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, UnpicklingError) as error:
        raise ValueError(
            f"{path} is refused: it is damaged, or more than tensors and plain values; nothing of "
            "it was run. Download it again."
        ) from error


def download(word: str, network: str) -> State:
    """Weights by the word of `init` for a network in the words of `find_network`, kept by torch."""
    name = network.removeprefix("network.name=").partition(" ")[0]
    if word in URLS:
        if name not in URLS[word]:
            raise ValueError(f"init={word}: {name} has none; there are {few(URLS[word])}.")
        url = URLS[word][name]
        return dict(
            torch.hub.load_state_dict_from_url(
                url, map_location="cpu", check_hash=True, weights_only=True
            )
        )
    try:
        return dict(get_model_weights(name)[TORCHVISION[word]].get_state_dict(check_hash=True))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"init={word}: torchvision has none for {name}; give a file of weights or the folder "
            "of a run."
        ) from error


def export_trunk(
    model: nn.Module,
    path: str | Path,
    *,
    form: str = "torchvision",
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> None:
    """Write the trunk, without the last layer, for other code: a whole file or none.

    form: torchvision and detection write {"state_dict", "meta"}. detectron2 writes {"model", ...},
    a .pth for MODEL.WEIGHTS; "meta" tells its configuration: pixels are RGB there too.
    mean, std: of the pixels, red, green, blue in 0..1.
    """
    state = rename_trunk(model.state_dict(), form)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    meta: dict[str, Any] = {"channels": "RGB", "range": [0.0, 1.0], "stride_in_3x3": True}
    meta |= {"mean": list(mean), "std": list(std), "network": find_network(model.state_dict())}
    content: dict[str, Any] = {"state_dict": tensors, "meta": meta}
    if form == "detectron2":
        meta |= {
            "INPUT.FORMAT": "RGB",
            "MODEL.PIXEL_MEAN": [255 * value for value in mean],
            "MODEL.PIXEL_STD": [255 * value for value in std],
            "MODEL.RESNETS.STRIDE_IN_1X1": False,
        }
        content = {"model": tensors, "__author__": "hashtag_pretrain", "matching_heuristics": True}
        content["meta"] = meta
    write(Path(path), lambda file: torch.save(content, file))
