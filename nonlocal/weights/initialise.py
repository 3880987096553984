"""Start from the weights of others or of a run of ours."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torchvision.models import get_model_weights

from common.weights import pickles
from common.weights.formats import Report, State, converting, few, read

from ..config import Config
from ..net.detectors import imagenet_weights, load_weights
from ..net.insert import expand, stage_sizes
from .formats import EPS, Converted, convert, places, without

SOFTMAX = ("gaussian", "embedded_gaussian")


@dataclass
class Run:
    """What a checkpoint of ours holds, for `demo.py`: settings without `output_dir`."""

    settings: DictConfig
    classes: list[str]
    tensors: State


def initialise(model: nn.Module, cfg: Config) -> Report:
    """Load the weights that cfg.init names into the model, in place, and set it to evaluation.

    They are a run's folder, whose newest checkpoint is taken, a weight file in one of the formats
    of `formats.py`, or "imagenet": torchvision's, downloaded once. Kernels of images are inflated.
    Raises ValueError, with the options to set, where they are of another network, and where a
    tensor is missing that is neither of a block that the file lacks nor of a classifier of other
    classes.
    """
    if cfg.task == "detection":
        return initialise_detector(model, cfg)
    if cfg.init == "imagenet":
        converted = convert(imagenet(cfg.network.depth), "torchvision's ImageNet weights")
    else:
        path = weights_file(cfg.init)
        with converting(path):
            converted = convert(read(path), str(path))
    require(model, converted, cfg)
    own = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    tensors = fold_norms(converted.tensors, own)
    if cfg.new_classifier:
        tensors = without(tensors, "fc.")
    fitted = {name: fit(value, own[name]) for name, value in tensors.items() if name in own}
    fitting = {name: value for name, value in fitted.items() if value is not None}
    kept = [name for name in own if name not in fitting]
    require_whole(kept, fitted, converted, cfg)
    model.load_state_dict(fitting, strict=False)
    model.eval()
    unused = [name for name in tensors if name not in fitting] + converted.unused
    deeper = [name for name in unused if name.startswith("layer")]
    if deeper:
        raise ValueError(
            f"{converted.source} has {few(deeper, 3)}, which the network lacks: give weights of "
            "the same network."
        )
    wider = sum(own[name].ndim > tensors[name].ndim for name in fitting)
    notes = [f"{wider} kernels of images were inflated."] if wider else []
    return Report(converted.source, len(fitting), kept, unused, converted.notes + notes)


def initialise_detector(model: nn.Module, cfg: Config) -> Report:
    """`initialise` for task=detection."""
    file = None if cfg.init == "imagenet" else weights_file(cfg.init)
    weights = imagenet_weights(cfg.detector.backbone) if file is None else read(file)
    kept = load_weights(model, weights)  # type: ignore[arg-type]
    if cfg.only_evaluate and any(".nl." not in name for name in kept):
        raise ValueError(
            f"{cfg.init} lacks {few([name for name in kept if '.nl.' not in name], 3)} of a "
            "detector of these classes, so that there is nothing to evaluate: train first, or give "
            "the data whose classes it knows."
        )
    return Report(cfg.init, len(model.state_dict()) - len(kept), kept)


def imagenet(depth: str) -> State:
    """ImageNet weights of torchvision, downloaded once; ValueError where it has none."""
    if depth == "small":
        raise ValueError(
            "init=imagenet: network.depth=small has no ImageNet weights; set init='' to start at "
            "random, or give a run's folder."
        )
    return dict(get_model_weights(depth)["IMAGENET1K_V1"].get_state_dict(check_hash=True))


def require(model: nn.Module, converted: Converted, cfg: Config) -> None:
    """Raise ValueError, with all options to set, where the weights are of another network."""
    there = places(converted.tensors)
    if not set(there) <= set(expand(cfg.network.at, stage_sizes(model))):
        raise ValueError(
            f"{converted.source} has non-local blocks where the network has none: set "
            f"network.at=[{','.join(there)}]."
        )
    unread = [] if cfg.block.mode in SOFTMAX else ["block.scale"]
    unread += [] if cfg.block.pool else ["block.pool_first"]
    wanted = {
        name: values
        for name, values in converted.wants.items()
        if name not in unread and not any(same(value_of(cfg, name), value) for value in values)
    }
    if wanted:
        options = " ".join(f"{name}={written(values[0])}" for name, values in wanted.items())
        raise ValueError(f"{converted.source} is of another network: set {options}.")


def value_of(cfg: Config, name: str) -> Any:
    """The option of a dotted name."""
    group, _, option = name.partition(".")
    return getattr(getattr(cfg, group), option)


def same(ours: Any, wanted: Any) -> bool:
    """Whether an option is as wanted; levels to a tenth, as some write them rounded."""
    if isinstance(wanted, tuple):
        return all(abs(a - b) < 0.1 for a, b in zip(ours, wanted, strict=True))
    return ours == wanted


def written(value: Any) -> str:
    """A value as on the command line."""
    if isinstance(value, tuple):
        return "[" + ",".join(f"{each:.6g}" for each in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def fit(value: Tensor, own: Tensor) -> Tensor | None:
    """A tensor in the shape of ours: kernels of one frame repeated and divided by the frames.

    Axes of length 1 may be missing or too many. None where the shapes do not go together.
    """
    if value.ndim == 4 and own.ndim == 5:
        value = value.unsqueeze(2)
    if value.ndim == own.ndim == 5 and value.shape[2] == 1 < own.shape[2]:
        value = value.expand(-1, -1, own.shape[2], -1, -1) / own.shape[2]  # Sec. 3.3, inflation
    if [n for n in value.shape if n > 1] != [n for n in own.shape if n > 1]:
        return None
    return value.reshape(own.shape)


def fold_norms(tensors: State, own: State) -> State:
    """The norms of the file's blocks in their last convolutions, where ours have no norm."""
    found = dict(tensors)
    for name in tensors:
        norm, _, word = name.rpartition(".")
        if not norm.endswith(".nl.bn") or word != "running_var" or name in own:
            continue
        mean, var, weight, bias = (
            found.pop(f"{norm}.{each}") for each in ("running_mean", word, "weight", "bias")
        )
        scale = weight * (var + EPS).rsqrt()
        out = norm.removesuffix("bn") + "out"
        kernel = found[f"{out}.weight"]
        found[f"{out}.weight"] = kernel * scale.view(-1, *[1] * (kernel.ndim - 1))
        found[f"{out}.bias"] = (found[f"{out}.bias"] - mean) * scale + bias
    return found


def require_whole(
    kept: list[str], fitted: Mapping[str, Tensor | None], converted: Converted, cfg: Config
) -> None:
    """Raise ValueError where tensors are missing that no block and no classifier of ours explain.

    kept: names of ours that get nothing. fitted: the file's by our names, None: of another shape.
    """
    blocks = {name.partition(".nl.")[0] for name in fitted if ".nl." in name}
    missing = [n for n in kept if ".nl." not in n or n.partition(".nl.")[0] in blocks]
    classifier = [name for name in missing if name.startswith("fc.")]
    missing = [name for name in missing if name not in classifier]
    if missing:
        raise ValueError(
            f"{converted.source} does not fit the network, of which it lacks {few(missing, 3)} in "
            "this shape: give weights of the same network."
        )
    if not classifier or cfg.new_classifier:
        return
    if cfg.only_evaluate:
        raise ValueError(
            f"{converted.source} has no classifier of these classes, so that there is nothing to "
            "evaluate: train first, or give the data whose classes it knows."
        )
    if not converted.partial and not any(name.startswith("fc.") for name in fitted):
        raise ValueError(
            f"{converted.source} has no classifier: set new_classifier=true to learn one."
        )


def weights_file(init: str) -> Path:
    """The file that `init` names: itself, or the newest checkpoint of a run's folder."""
    path = Path(init)
    if not path.is_dir():
        return path
    files = sorted(path.glob("checkpoint-*[0-9].pt"))
    if not files:
        raise ValueError(f"{init} has no checkpoint: train that run first.")
    return files[-1]


def read_run(path: Path) -> Run | None:
    """Settings, classes and tensors of a checkpoint of ours; None for a file of others.

    Options of other versions are left out.
    """
    content = pickles.read(path)
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, dict) or not {"options", "classes", "model"} <= set(parts):
        return None
    settings = OmegaConf.structured(Config)
    for name, value in parts["options"].items():
        if (
            OmegaConf.select(settings, name, throw_on_missing=False) is not None
            or name == "data.root"
        ):
            OmegaConf.update(settings, name, value)
    settings.output_dir = ""
    assert isinstance(settings, DictConfig)
    return Run(settings, list(parts["classes"]), parts["model"])
