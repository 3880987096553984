"""Start from the weights of others or of a run of ours, whatever fits by name and shape."""

from pathlib import Path

from torchvision.models import get_model_weights
from torchvision.models.detection import MaskRCNN

from common.weights.formats import Report, converting, read

from .formats import BOX, COCO_IDS, Converted, convert, take_coco_rows

SCORES = f"{BOX}cls_score.weight"
MASK_BRANCH = ("roi_heads.mask_head.", "roi_heads.mask_predictor.")
COUNTER = "num_batches_tracked"  # of norms, which are frozen here


def initialise(model: MaskRCNN, init: str, backbone: str, *, mask_branch: bool = True) -> str:
    """Load weights into the model, in place; a report of what was loaded and what was not.

    init: a run's folder, whose newest checkpoint is taken, a weight file in one of the formats of
    `formats.py`, or "imagenet": torchvision's for `backbone`, downloaded once.
    mask_branch: False leaves it as it is, for a new branch on a trained detector.

    Raises ValueError where less than half of the network's tensors fit, of the parts that the file
    has, or a new branch would stand on a detector of which a tensor is missing or has another
    shape. Rows of torchvision's 90 classes fit COCO's 80.
    """
    if init == "imagenet":
        weights = get_model_weights(backbone)["IMAGENET1K_V1"].get_state_dict(check_hash=True)
        converted = convert(weights, "torchvision's ImageNet weights")
    else:
        path = weights_file(init)
        with converting(path):
            converted = convert(read(path), str(path))
    require(model, converted)
    state = converted.tensors
    rows = [len(each[SCORES]) for each in (state, model.state_dict()) if SCORES in each]
    if rows == [91, len(COCO_IDS)]:
        state = take_coco_rows(state)
    own = {
        k: v
        for k, v in model.state_dict().items()
        if not k.endswith(COUNTER) and (mask_branch or not k.startswith(MASK_BRANCH))
    }
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    parts = {part_of(name) for name in state}
    wanted = [name for name in own if part_of(name) in parts]
    if 2 * len(fitting) < len(wanted) or not fitting:
        raise ValueError(
            f"{init} is of another network: {len(fitting)} of {len(wanted)} tensors fit; give "
            f"weights of network.backbone={backbone} and its other sizes, in one of the formats "
            "that the README names."
        )
    kept = [name for name in own if name not in fitting]
    if kept and not mask_branch:
        shapes = ", ".join(f"{name} {tuple(own[name].shape)}" for name in kept[:3])
        raise ValueError(
            f"{init} is no whole detector for these classes and this network; it lacks {shapes}: "
            "give one that was trained with the same, or cut its rows by prepare.py cut."
        )
    model.load_state_dict(fitting, strict=False)
    unused = [n for n in state if n not in fitting and not n.endswith(COUNTER)]
    return str(Report(init, len(fitting), kept, unused + converted.unused))


def part_of(name: str) -> str:
    """The part of the network that a tensor is of, such as `backbone.body`."""
    return ".".join(name.split(".")[:2])


def require(model: MaskRCNN, converted: Converted) -> None:
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
        raise ValueError(f"init={init} has no checkpoint: train that run first.")
    return files[-1]
