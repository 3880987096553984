"""Start from the weights of others or of a run of ours, whatever fits by name and shape."""

from pathlib import Path

from torchvision.models import get_model_weights, list_models
from torchvision.models.detection import FasterRCNN

from common.weights.formats import Report, converting, read

from .formats import BOX, COCO_IDS, Converted, convert, take_coco_rows

SCORES = f"{BOX}cls_score.weight"
COUNTER = "num_batches_tracked"  # of norms, which are frozen here


def initialise(model: FasterRCNN, init: str, backbone: str) -> str:
    """Load weights into the model, in place; a report of what was loaded and what was not.

    init: a run's folder, whose newest checkpoint is taken, a weight file in one of the formats of
    `formats.py`, or "imagenet": torchvision's for `backbone`, downloaded once. Raises ValueError
    where less than half of the network's tensors fit, of the parts that the file has. Rows of
    torchvision's 90 classes fit COCO's 80.
    """
    if init == "imagenet":
        converted = convert(imagenet(backbone), "torchvision's ImageNet weights")
    else:
        path = weights_file(init)
        with converting(path):
            converted = convert(read(path), str(path))
    require(model, converted)
    state, own = converted.tensors, model.state_dict()
    rows = [len(each[SCORES]) for each in (state, own) if SCORES in each]
    if rows == [91, len(COCO_IDS)]:
        state = take_coco_rows(state)
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    parts = {part_of(name) for name in state}
    wanted = [name for name in own if part_of(name) in parts]
    if 2 * len(fitting) < len(wanted) or not fitting:
        raise ValueError(
            f"{init} is of another network: {len(fitting)} of {len(wanted)} tensors fit; give "
            f"weights of network.backbone={backbone} and its other sizes, in one of the formats "
            "that the README names."
        )
    model.load_state_dict(fitting, strict=False)
    report = Report(
        init,
        len(fitting),
        kept=[name for name in own if name not in fitting],
        unused=[n for n in state if n not in fitting and not n.endswith(COUNTER)]
        + converted.unused,
    )
    return str(report)


def imagenet(backbone: str) -> dict:
    """ImageNet weights of a backbone of torchvision; ValueError where it has none."""
    if backbone not in list_models():
        raise ValueError(
            f"init=imagenet: torchvision has no weights of network.backbone={backbone}; give a "
            "file of weights by init=FILE, or init='' to start at random."
        )
    return get_model_weights(backbone)["IMAGENET1K_V1"].get_state_dict(check_hash=True)


def part_of(name: str) -> str:
    """The part of the network that a tensor is of, such as `backbone.body`."""
    return ".".join(name.split(".")[:2])


def require(model: FasterRCNN, converted: Converted) -> None:
    """Raise ValueError, naming the options, where the weights want another network or pixels."""
    for name, wanted, ours in (
        ("mean", converted.mean, model.transform.image_mean),
        ("std", converted.std, model.transform.image_std),
    ):
        if wanted and any(abs(a - b) > 1e-4 for a, b in zip(wanted, ours, strict=True)):
            values = ",".join(f"{value:.6g}" for value in wanted)
            raise ValueError(
                f"{converted.source} wants other pixels than the network gives: set "
                f"network.{name}=[{values}]."
            )
    body = getattr(model.backbone, "body", None)
    first = body.layer2[0].conv1 if body is not None else None
    if first is None or converted.stride_in_1x1 is None or first.kernel_size != (1, 1):
        return
    if (first.stride == (2, 2)) != converted.stride_in_1x1:
        raise ValueError(
            f"{converted.source} was trained with network.stride_in_1x1={converted.stride_in_1x1}: "
            "set it so."
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
