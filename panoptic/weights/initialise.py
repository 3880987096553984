"""Start from the weights of others: detectron2's Panoptic FPN, torchvision's Mask R-CNN, ImageNet.

    report = initialise(network, "model_final_c10459.pkl")    # or "imagenet", or an own checkpoint
    print(report)                                             # what came from where, what did not

`formats.py` knows the names and conventions of others; here the tensors find their places. Nothing
is changed before everything fits.
"""

import glob
from collections.abc import Sequence
from pathlib import Path

from torch import nn
from torchvision.models import get_model_weights

from common.weights.formats import Report, State, converting, few, misfits, read

from ..model import PanopticFPN, Separate
from ..net.instance import MaskRCNN
from .formats import BOX, MASK, bare, from_detectron2, from_torchvision

PREDICTORS = (BOX, MASK, "sem_seg_head.predictor.")  # their channels are the classes
CLASSIFIERS = ("semantic.classifier.4.", "semantic.auxiliary.4.")  # PSPNet's last layers


def initialise(
    model: PanopticFPN | Separate,
    source: str | Path,
    *,
    category_ids: Sequence[int] | None = None,
) -> Report:
    """Load weights into the network, whatever their format, and report.

    source: a file (.pkl, .pth, .pt), the folder of a run (see `weights_file`), or "imagenet":
        torchvision's backbone, downloaded once.
    category_ids: the data set's category id of each thing label; COCO's 80 let torchvision's 91
        classes find theirs.

    Of the pair, a detector's weights are for Mask R-CNN and a backbone's for both. Predictors for
    another number of classes start anew, and the report says so. ValueError, in one sentence that
    names the option to change, where the weights need another network; then nothing is changed.
    """
    if str(source) == "imagenet":
        state, report = _imagenet(model), Report("torchvision's ImageNet weights")
    else:
        path = weights_file(source)
        state, report = read(path), Report(str(path))
    own = set(model.state_dict())
    with converting(source):
        if "conv1.weight" in state and "layer1.0.conv1.weight" in state:
            tensors = _backbone(model, state, report)
        elif any(name.startswith("backbone.bottom_up.") for name in state):
            detector = _detector(model, report)
            network = model if isinstance(model, PanopticFPN) else detector
            tensors = _place(from_detectron2(network, state, report))
        elif any(name.startswith(("sem_seg_head.", "semantic.", "instance.")) for name in state):
            tensors = dict(state)  # a checkpoint of this folder: names and shapes decide
            report.unused = [name for name in state if name not in own]
        elif any(name.startswith("backbone.body.") for name in state):
            detector = _detector(model, report)
            tensors = _place(from_torchvision(detector, state, report, category_ids))
        else:
            raise ValueError(
                f"{report.source} is in no known format (it holds {few(state, 3)}): known "
                "are detectron2's Panoptic FPN, torchvision's Mask R-CNN and ResNets, and own ones."
            )
    _load(model, tensors, report)
    return report


def weights_file(source: str | Path) -> Path:
    """The file that `source` names: itself, or the newest checkpoint of a run's folder.

    A folder may be given with `*` in it, as the rows of tables.py do; ValueError unless exactly one
    run matches and has a checkpoint.
    """
    wild = any(sign in str(source) for sign in "*?[")
    if Path(source).is_file() or not (wild or Path(source).is_dir()):
        return Path(source)
    folders = [Path(folder) for folder in sorted(glob.glob(str(source)))]
    if len(folders) != 1:
        found = f"{len(folders)} folders match" if folders else "no folder matches"
        raise ValueError(f"{source}: {found}, but it has to name one run that has finished.")
    files = sorted(folders[0].glob("checkpoint-*[0-9].pt"))
    if not files:
        raise ValueError(f"{folders[0]} has no checkpoint: train that run first.")
    return files[-1]


def _bodies(model: PanopticFPN | Separate) -> dict[str, nn.Module]:
    """The backbones by the prefix of their names."""
    bodies: dict[str, nn.Module] = {}
    if isinstance(model, Separate) and model.semantic is not None:
        bodies["semantic.body."] = model.semantic.body
    if model.instance is not None:
        bodies["instance.backbone.body."] = model.instance.backbone.body
    return bodies


def _imagenet(model: PanopticFPN | Separate) -> State:
    name = str(next(iter(_bodies(model).values())).name)
    if name == "mini":
        raise ValueError('backbone "mini" has no ImageNet weights: leave init empty.')
    return get_model_weights(name)["IMAGENET1K_V1"].get_state_dict(check_hash=True)


def _backbone(model: PanopticFPN | Separate, state: State, report: Report) -> State:
    """A classification network's tensors for every body of the model."""
    tensors: State = {}
    for prefix, one in _bodies(model).items():
        if getattr(one, "stride_in_1x1", False):
            raise ValueError(
                f"{report.source} wants stride 2 in the 3x3 convolutions: set "
                "model.stride_in_1x1=False."
            )
        known = [n for n in state if not n.startswith("fc.") and "num_batches" not in n]
        if found := misfits(one.state_dict(), {name: state[name] for name in known}):
            raise ValueError(
                f"{report.source} does not fit the model's backbone: {found}. Name its network as "
                "model.backbone, and a norm other than gn."
            )
        tensors |= {f"{prefix}{name}": state[name] for name in known}
    report.unused = [name for name in state if name.startswith("fc.")]
    return tensors


def _detector(model: PanopticFPN | Separate, report: Report) -> MaskRCNN:
    """The part of the model that a detector's weights are for."""
    if model.instance is None:
        raise ValueError(
            f"{report.source} holds a detector, the model is the semantic part alone: set "
            "model.part=instance or both."
        )
    return model.instance


def _place(tensors: State) -> State:
    """With our models' names: all but the semantic branch belongs to the part `instance`."""
    return {
        name if name.startswith("sem_seg_head.") else f"instance.{name}": value
        for name, value in tensors.items()
    }


def _load(model: PanopticFPN | Separate, tensors: State, report: Report) -> None:
    """Copy what fits; stop where anything but the number of classes does not."""
    own, fitting, others = model.state_dict(), {}, {}
    for name, value in tensors.items():
        if name not in own:
            if name not in report.unused and not name.endswith("num_batches_tracked"):
                report.unused.append(name)
        elif own[name].shape == value.shape:
            fitting[name] = value
        elif bare(name).startswith(PREDICTORS) or name.startswith(CLASSIFIERS):
            report.unused.append(name)
            note = f"{bare(name).rsplit('.', 1)[0]} has other classes and starts anew."
            report.notes += [note] if note not in report.notes else []
        else:
            others[name] = value
    started = tuple(p for p in _bodies(model) if any(name.startswith(p) for name in fitting))
    wanted = {n: own[n] for n in own if n in others or n.startswith(started)}
    if found := misfits(wanted, others | {n: fitting[n] for n in fitting if n in wanted}):
        raise ValueError(
            f"{report.source} does not fit the model: {found}. Name its network as model.backbone."
        )
    if not fitting:
        raise ValueError(f"{report.source} holds nothing of this model: is model.name right?")
    report.kept = [n for n in own if n not in fitting and not n.endswith("num_batches_tracked")]
    report.loaded = len(fitting)
    model.load_state_dict(fitting, strict=False)
