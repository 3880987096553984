"""What a student lacks, said before hours go into its teacher."""

from contextlib import suppress
from pathlib import Path

from common.run import checkpoint
from common.run.options import Options
from data_distillation import data
from data_distillation.config import Config, may_change
from data_distillation.distill import mirrored_joints
from data_distillation.labels.transforms import name_equal, without_flips
from data_distillation.model import build_detector
from data_distillation.weights.initialise import initialise, weights_file


def require_same_run(cfg: Config) -> None:
    """Raise CheckpointError where the run in the folder has other options that may not change.

    Damaged checkpoints are passed over, as by `checkpoint.resume`, which names them.
    """
    files = sorted(Path(cfg.output_dir).glob("checkpoint-*[0-9].pt"), reverse=True)
    for path in files:
        with suppress(checkpoint.CheckpointError):
            stored = checkpoint.load(path).get("parts", {}).get("options", {})
            break
    else:
        return
    fixed, _ = Options(cfg, may_change(cfg)).changes(stored)
    if fixed:
        before, now = (
            ", ".join(f"{name}={pair[k]}" for name, pair in fixed.items()) for k in (0, 1)
        )
        raise checkpoint.CheckpointError(
            f"{path} was written with {before}, this run has {now}: give the same, or another "
            "output folder."
        )


def require_weights(cfg: Config, manual: data.Labelled) -> None:
    """Raise ValueError where the weights that a student starts from do not fit its network."""
    if cfg.init in ("", "teacher"):
        return
    if cfg.init != "imagenet" and not weights_file(cfg.init).is_file():
        raise ValueError(f"init={cfg.init} does not exist: give a file of weights or a folder.")
    model = build_detector(cfg.task, len(manual.names), manual.joint_count, cfg.network)
    initialise(model, cfg.init, cfg.network.backbone)


def require_images(cfg: Config, teacher: Config, manual: data.Labelled) -> None:
    """Raise ValueError where images to label cannot be read; say which transforms are of no use."""
    if cfg.data.automatic != "teacher":
        if cfg.data.automatic:
            data.image_folder(Path(cfg.data.automatic))
        return
    photos = data.find_unlabelled(cfg.data, cfg.task)
    sizes = photos.check(range(len(photos)))
    transforms, note = without_flips(cfg.transforms, cfg.task, mirrored_joints(manual.joints))
    network = teacher.network
    equal = name_equal(sizes, transforms, network.short_sides[-1], network.long_side)
    for text in filter(None, (note, equal)):
        print(f"warning: {text}", flush=True)
