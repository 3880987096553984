"""A teacher: a detector that labels images, and what its outputs mean in the labelled file.

    load_teacher("outputs/demo/mine", content)                        a run of ours, or its file
    load_teacher("torchvision:keypointrcnn_resnet50_fpn", content)    downloaded once
    load_teacher("weights.pth", content, architecture="retinanet_resnet50_fpn")

Classes are matched by name, never by order alone: six of COCO's names spelled as VOC's would else
drop six classes, and another order would relabel every image, without a word.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models import detection, get_model, get_model_weights, list_models

from common.coco.fields import category_names
from common.coco.files import read_json
from common.run import checkpoint
from common.weights import pickles
from common.weights.formats import State, few, tensors_by_name

from ..distill import mirrored_joints
from ..model import Network, build_detector
from .initialise import weights_file

NO_CLASS = -1  # category id of a class that the labelled file lacks; files may have an id 0
PREFIX = "torchvision:"
# Their COCO_V1 weights were trained when frozen norms added nothing to the variance.
WITHOUT_EPS = tuple(
    f"{name}_resnet50_fpn" for name in ("fasterrcnn", "maskrcnn", "keypointrcnn", "retinanet")
)


@dataclass
class Teacher:
    """A detector in evaluation mode; category_ids of the labelled file, by label 1..K."""

    model: nn.Module
    kind: str  # boxes | masks | keypoints
    category_ids: list[int]  # NO_CLASS: a class that the labelled file lacks, which is dropped
    mirrored: tuple[int, ...] | None  # of each joint its partner; None: no flips
    digest: str  # SHA-256 of the weights
    where: str
    dropped: list[str] = field(default_factory=list)  # names of these classes
    joint_offset: float = 0.5  # data.joint_offset of its training


@dataclass
class Detector:
    """A model and what is known of its outputs: names by label 1..K, names of joints."""

    model: nn.Module
    classes: list[str]
    joints: list[str]
    where: str
    joint_offset: float = 0.5


def load_teacher(
    name: str, labelled: Mapping[str, Any], architecture: str = "", categories: str = ""
) -> Teacher:
    """The teacher that `name` means, for the categories of the labelled file.

    name: a run's folder, whose newest checkpoint is taken, `torchvision:NAME`, or a file: of a run,
    or the weights of torchvision's `architecture`. labelled: content of a COCO-format file.
    categories: FILE.json {"teacher's name": "labelled name" or null}, where names differ. Raises
    ValueError where classes or joints do not agree.
    """
    if name.startswith(PREFIX):
        found = from_torchvision(name.removeprefix(PREFIX))
    else:
        path = weights_file(name)
        if not path.exists() and name in list_models(detection):
            raise ValueError(
                f"teacher={name} is no file: give teacher={PREFIX}{name} for torchvision's weights."
            )
        content = pickles.read(path)
        if isinstance(content, dict) and isinstance(content.get("parts"), dict):
            found = from_run(path)
        else:
            found = from_file(path, tensors_by_name(content), labelled, architecture)
    model = found.model.eval().requires_grad_(False)
    kind = kind_of(model)
    if kind == "keypoints":
        check_joints(found, labelled_joints(labelled))
    ids = match_classes(found, labelled, categories)
    return Teacher(
        model,
        kind,
        ids,
        mirrored_joints(found.joints) if kind == "keypoints" else None,
        digest_weights(model),
        found.where,
        [each for each, number in zip(found.classes, ids, strict=True) if number == NO_CLASS],
        found.joint_offset,
    )


def from_torchvision(name: str) -> Detector:
    """A detector of torchvision with its default weights, through torch hub's cache."""
    require_architecture(name, f"teacher={PREFIX}{name}")
    weights = get_model_weights(name).DEFAULT
    model = get_model(name, weights=weights)
    joints = list(weights.meta.get("keypoint_names", []))
    where = f"{PREFIX}{name} ({weights.name})"
    return Detector(model, list(weights.meta["categories"][1:]), joints, where)


def from_run(path: Path) -> Detector:
    """A checkpoint of a run of ours, which holds its options and its names."""
    parts = checkpoint.load(path)["parts"]
    options = parts.get("options", {})
    missing = [part for part in ("model", "categories", "joints") if part not in parts]
    if missing or "task" not in options:
        raise ValueError(
            f"{path} is no checkpoint of data_distillation/train.py: give one, or weights of "
            "torchvision's with architecture=NAME."
        )
    stored = {each.name: options.get(f"network.{each.name}") for each in fields(Network)}
    network = Network(**{name: value for name, value in stored.items() if value is not None})
    classes, joints = parts["categories"]["names"], parts["joints"]
    model = build_detector(options["task"], len(classes), len(joints), network)
    try:
        checkpoint.load_matching(model, parts["model"])
    except checkpoint.CheckpointError as error:
        raise ValueError(f"{path}: {error}") from error
    return Detector(model, classes, joints, str(path), options.get("data.joint_offset", 0.5))


def from_file(path: Path, state: State, labelled: Mapping[str, Any], architecture: str) -> Detector:
    """Weights of torchvision's `architecture`, without names of their own.

    With K + 1 outputs these are the labelled categories by rising id; with 91 they are COCO's ids.
    """
    if not state:
        raise ValueError(f"{path} holds no tensors by name: give a file of weights.")
    require_architecture(architecture, f"{path} needs architecture=NAME: {architecture!r}")
    own = list(category_names(labelled["categories"]).values())
    joints = labelled_joints(labelled)
    faults = []
    for classes in (own, coco_names()):
        outputs = len(classes) + 1
        faults.append(find_misfit(architecture, outputs, len(joints), state))
        if not faults[-1]:
            model = build(architecture, outputs, len(joints))
            model.load_state_dict(dict(state), strict=False)
            if is_official(path, architecture):
                remove_eps(model)
            return Detector(model, classes, joints, f"{path} ({architecture})")
    raise ValueError(
        f"{path} does not fit {architecture} with {len(own)} classes and the background, the "
        f"labelled file's, nor with COCO's 91 outputs: {faults[0]}. Give the architecture and the "
        "labelled file of its training."
    )


def is_official(path: Path, architecture: str) -> bool:
    """Whether a file has the name of torchvision's weights that want norms without eps."""
    url = get_model_weights(architecture)["COCO_V1"].url
    return architecture in WITHOUT_EPS and url.endswith(f"/{path.name}")


def remove_eps(model: nn.Module) -> None:
    """Let the norms add nothing to the variance, as torchvision does for these weights."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0


def build(architecture: str, outputs: int, joints: int) -> nn.Module:
    """A detector of torchvision without weights."""
    known = {"weights": None, "weights_backbone": None, "num_classes": outputs}
    if architecture.startswith("keypointrcnn"):
        known["num_keypoints"] = joints
    return get_model(architecture, **known)


def find_misfit(architecture: str, outputs: int, joints: int, state: State) -> str:
    """What of the tensors does not fit a detector; "" if all do, older versions' names included."""
    with torch.device("meta"):
        model = build(architecture, outputs, joints)
    try:
        found = model.load_state_dict(dict(state), strict=False, assign=True)
    except RuntimeError as error:  # of another shape
        return str(error).split("\n")[1].strip().rstrip(".")
    counted = [n for n in found.missing_keys if not n.endswith("num_batches_tracked")]
    kinds = {"missing": counted, "unknown": found.unexpected_keys}
    return "; ".join(f"{len(n)} {kind}: {few(n, 3)}" for kind, n in kinds.items() if n)


def require_architecture(name: str, what: str) -> None:
    """Raise ValueError unless torchvision has such a detector."""
    known = list_models(detection)
    if name not in known:
        raise ValueError(f"{what} is none of torchvision's: choose among {', '.join(known)}.")


def coco_names() -> list[str]:
    """Names of COCO's ids 1..90; N/A where there is none."""
    weights = get_model_weights("fasterrcnn_resnet50_fpn")["COCO_V1"]
    return list(weights.meta["categories"][1:])


def kind_of(model: nn.Module) -> str:
    """What a detector gives besides boxes."""
    heads = getattr(model, "roi_heads", None)
    if heads is None:
        return "boxes"
    return "keypoints" if heads.has_keypoint() else "masks" if heads.has_mask() else "boxes"


def labelled_joints(labelled: Mapping[str, Any]) -> list[str]:
    """Names of the joints in a labelled file; the same for all its categories."""
    named = [entry["keypoints"] for entry in labelled["categories"] if entry.get("keypoints")]
    if any(names != named[0] for names in named):
        raise ValueError(
            "the labelled file's categories have different `keypoints`: give them one list."
        )
    return [str(name) for name in named[0]] if named else []


def check_joints(found: Detector, joints: Sequence[str]) -> None:
    """Raise ValueError unless the joints of a teacher are those of the labelled file."""
    if list(joints) != found.joints:
        raise ValueError(
            f"the joints of {found.where} are not those of the labelled file.\n"
            f"teacher: {', '.join(found.joints)}\nlabelled file: {', '.join(joints) or 'none'}\n"
            "Give both the same `keypoints` in the same order."
        )


def match_classes(found: Detector, labelled: Mapping[str, Any], categories: str) -> list[int]:
    """Category id in the labelled file of each class of the teacher, NO_CLASS where it lacks one.

    Raises ValueError, with both lists, where the teacher lacks a class of the labelled file.
    """
    ids = {name: number for number, name in category_names(labelled["categories"]).items()}
    renamed = read_map(categories, found.classes, list(ids)) if categories else {}
    names = [renamed.get(name, name) for name in found.classes]
    missing = [name for name in ids if name not in names]
    if missing:
        raise ValueError(
            f"{found.where} has no class {', '.join(missing)}.\n"
            f"teacher: {', '.join(found.classes)}\nlabelled file: {', '.join(ids)}\n"
            'Where names differ for one thing, give categories=FILE.json with {"teacher\'s name": '
            '"labelled name"}.'
        )
    return [ids.get(name, NO_CLASS) if name is not None else NO_CLASS for name in names]


def read_map(file: str, classes: Sequence[str], labelled: Sequence[str]) -> dict[str, str | None]:
    """The labelled name, or None to drop it, of some classes of a teacher."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f'{file} must be {{"teacher\'s name": "labelled name"}}.')
    unknown = [name for name in content if name not in classes]
    unknown += [str(n) for n in content.values() if n is not None and n not in labelled]
    if unknown:
        raise ValueError(
            f"{file} names {', '.join(unknown)}.\nteacher: {', '.join(classes)}\n"
            f"labelled file: {', '.join(labelled)}\nGive the teacher's names before the colons, "
            "the labelled file's behind."
        )
    return content


def digest_weights(model: nn.Module) -> str:
    """SHA-256 of the tensors of a model by their names; counters of batches left out."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            array = np.ascontiguousarray(value.detach().cpu().numpy())
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.data)
    return digest.hexdigest()
