"""Try a pre-trained trunk on a target: linear probe, fine-tuning, zero-shot, detection; export it.

    python transfer.py init=RUN protocol=probe target.name=cifar10 target.root=/data/cifar10
    python transfer.py init=wsl protocol=finetune target.name=imagenet target.root=/data/imagenet
    python transfer.py init=RUN protocol=zero_shot zero_shot.vocabulary=vocabulary.json target...
    python transfer.py init=wsl protocol=evaluate target.name=imagenet target.root=/data/imagenet
    python transfer.py init=RUN protocol=detection detection.root=/data/coco
    python transfer.py init=RUN protocol=export form=detectron2
    python transfer.py transfer=smoke target.root=FOLDER              # seconds on a CPU

The settings of a probe or of fine-tuning are chosen on held-out training images; the test images
are opened once, at the end.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig
from torch import nn
from torch.optim import SGD

from common import config, dist
from common.config import require_choice, require_range
from common.data import seed_everything, train_loader
from common.optim import parameter_groups, warmup_multistep
from common.run import checkpoint, result
from common.run.log import Log, require_finite
from common.run.options import Options
from common.sampling import SampleStream
from hashtag_pretrain.model import Network, build_model
from hashtag_pretrain.targets import detection as detect
from hashtag_pretrain.targets.detection import Detection
from hashtag_pretrain.targets.finetune import FineTune, finetune, score_finetune
from hashtag_pretrain.targets.images import Reading
from hashtag_pretrain.targets.outcome import report
from hashtag_pretrain.targets.probe import Probe, probe
from hashtag_pretrain.targets.sets import Target, read_target
from hashtag_pretrain.targets.zero_shot import ZeroShot, find_tags, score_zero_shot
from hashtag_pretrain.weights.formats import FORMS
from hashtag_pretrain.weights.initialise import Pixels, export_trunk, initialise, load_trunk
from hashtag_pretrain.words.vocabulary import Vocabulary

COLUMNS = {  # protocol: the metrics that are printed, percent
    "probe": ("probe", "probe5"),
    "finetune": ("finetune", "finetune5"),
    "zero_shot": ("zero_shot", "zero_shot5"),
    "evaluate": ("evaluate", "evaluate5"),
    "detection": ("box_AP", "mask_AP"),
    "export": (),
}


@dataclass
class TransferTarget:
    """The classification target."""

    name: str = "folder"  # folder | imagenet | cub | places365 | cifar10
    root: str = ""
    classes: str = ""  # file of class folders, one a line: the 5k or 9k of ImageNet
    duplicates: str = ""  # file of test images, one a line, for the lower bound: Sec. 2.4


@dataclass
class TransferConfig:
    """One transfer."""

    # Run of train.py, file, wsl | swsl | ssl | swag | imagenet; none: random weights
    init: str = MISSING
    protocol: str = "probe"  # probe | finetune | zero_shot | evaluate | detection | export
    form: str = "torchvision"  # of export: torchvision | detection | detectron2
    seed: int = 0
    processes: int = 0  # 0: one per GPU, or one on a CPU
    threads: int = 0  # CPU threads of each process; 0: all cores shared out
    workers: int = 8  # loader processes per process
    bad_images: str = "raise"  # raise | skip: what an unreadable training image does
    log_every: int = 20  # steps, of detection
    output_dir: str = "${hydra:runtime.output_dir}"
    network: Network = field(default_factory=Network)
    target: TransferTarget = field(default_factory=TransferTarget)
    probe: Probe = field(default_factory=Probe)
    finetune: FineTune = field(default_factory=FineTune)
    zero_shot: ZeroShot = field(default_factory=ZeroShot)
    detection: Detection = field(default_factory=Detection)

    def __post_init__(self) -> None:
        require_choice("protocol", self.protocol, COLUMNS)
        require_choice("form", self.form, FORMS)
        require_choice("bad_images", self.bad_images, ("raise", "skip"))
        for name in ("threads", "workers"):
            require_range(name, getattr(self, name), 0)
        require_range("log_every", self.log_every, 1)
        classified = self.protocol in ("probe", "finetune", "zero_shot", "evaluate")
        if classified and not self.target.root:
            raise ValueError(f"protocol={self.protocol} needs target.root=FOLDER.")
        if self.protocol == "zero_shot" and not self.zero_shot.vocabulary:
            raise ValueError("protocol=zero_shot needs zero_shot.vocabulary=FILE.")
        if self.protocol == "detection" and not self.detection.root:
            raise ValueError("protocol=detection needs detection.root=FOLDER.")
        if self.protocol in ("evaluate", "export") and self.init == "none":
            raise ValueError(f"protocol={self.protocol} needs init=RUN or a file of weights.")

    def pixels(self) -> Pixels:
        """What the images are normalised by."""
        return self.network.mean, self.network.std

    def reading(self) -> Reading:
        """How the images of the target are read."""
        return Reading(*self.pixels(), self.workers, self.bad_images)

    def origin(self) -> dict[str, Any]:
        """What fine-tuning starts from, by key."""
        network, target = self.network, self.target
        return {
            "init": self.init,
            "network.name": network.name,
            "network.width": network.width,
            "target.name": target.name,
            "target.root": target.root,
        }


# What may differ when a detection run is resumed.
MAY_CHANGE = (
    "processes",
    "threads",
    "workers",
    "bad_images",
    "log_every",
    "network.checkpoint",
    "network.memory_format",
    "network.compile",
    "probe",
    "finetune",
    "zero_shot",
    "detection.root",
    "detection.val",
    "detection.save_every",
)

ConfigStore.instance().store("hashtag_transfer_schema", TransferConfig)


def transfer(cfg: TransferConfig) -> dict[str, float]:
    """Do what `protocol` says; metrics in percent, which result.json keeps too."""
    started = time.time()
    seed_everything(cfg.seed)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    folder = Path(cfg.output_dir)
    checkpoint.lock(folder)
    steps = 0
    if cfg.protocol == "export":
        return export(cfg, folder)
    if cfg.protocol == "detection":
        metrics, steps = train_detector(cfg, build_trunk(cfg)), cfg.detection.steps
    elif cfg.protocol == "zero_shot":
        metrics = try_zero_shot(cfg, read(cfg), folder)
    elif cfg.protocol == "evaluate":
        metrics = evaluate(cfg, read(cfg), folder)
    else:
        target, model = read(cfg), build_trunk(cfg).to(dist.device())
        same: dict[str, Any] = {"seed": cfg.seed, "reading": cfg.reading(), "folder": folder}
        if cfg.protocol == "probe":
            metrics = probe(model, target, cfg.probe, **same)
        else:
            metrics = finetune(model, target, cfg.finetune, **same, origin=cfg.origin())
    columns = COLUMNS[cfg.protocol]
    columns += ("lower_bound",) if "lower_bound" in metrics else ()
    seconds = time.time() - started
    result.write(folder, metrics, steps=steps, seconds=seconds, columns=columns)
    return metrics


def read(cfg: TransferConfig) -> Target:
    """The target of the options."""
    target = cfg.target
    found = read_target(
        target.name, target.root, classes=target.classes, duplicates=target.duplicates
    )
    if dist.is_main():
        print(
            f"{found.name}: {len(found.classes)} classes, {len(found.train)} training and "
            f"{len(found.test)} test images"
            + ("" if found.duplicates is None else f", {len(found.duplicates)} of them duplicates")
        )
    return found


def build_trunk(cfg: TransferConfig) -> nn.Module:
    """The network with the weights that `init` names; its last layer is of no use."""
    model = build_model(cfg.network, 1)
    if cfg.init != "none":
        loaded = load_trunk(model, cfg.init, pixels=cfg.pixels())
        if dist.is_main():
            print(loaded)
    return model


def build_whole(cfg: TransferConfig, classes: int, vocabulary: str = "") -> nn.Module:
    """The network with the weights that `init` names, the last layer of these classes included."""
    model = build_model(cfg.network, classes)
    if cfg.init != "none":
        loaded = initialise(
            model, cfg.init, vocabulary=vocabulary, complete=True, pixels=cfg.pixels()
        )
        if dist.is_main():
            print(loaded)
    return model


def export(cfg: TransferConfig, folder: Path) -> dict[str, float]:
    """Write the trunk to the run's folder under the names of other code."""
    path = folder / f"trunk-{cfg.form}.{'pth' if cfg.form == 'detectron2' else 'pt'}"
    model = build_trunk(cfg)
    if dist.is_main():
        mean, std = cfg.network.mean, cfg.network.std
        export_trunk(model, path, form=cfg.form, mean=mean, std=std)
        print(f"{path} written")
    dist.barrier()
    return {}


def try_zero_shot(cfg: TransferConfig, target: Target, folder: Path) -> dict[str, float]:
    """Accuracy of the classes by their tags; classes without a tag are named."""
    vocabulary = Vocabulary.read(cfg.zero_shot.vocabulary)
    tags = find_tags(vocabulary, target.classes)
    missing = [name for name, each in zip(target.classes, tags, strict=True) if not each]
    model = build_whole(cfg, len(vocabulary.names), vocabulary.digest)
    if missing and dist.is_main():
        print(f"{len(missing)} classes have no tag and score 0: {', '.join(missing)}")
    outcome = score_zero_shot(model, target.test, tags, cfg.zero_shot, cfg.reading())
    return report(outcome, target, "zero_shot", folder)


def evaluate(cfg: TransferConfig, target: Target, folder: Path) -> dict[str, float]:
    """Accuracy of weights that know the target's classes, such as WSL's of ImageNet."""
    model = build_whole(cfg, len(target.classes)).to(dist.device())
    outcome = score_finetune(model, target.test, cfg.finetune, cfg.reading())
    return report(outcome, target, "evaluate", folder)


def train_detector(cfg: TransferConfig, trunk: nn.Module) -> dict[str, float]:
    """Train Mask R-CNN on the trunk, resuming from the run's folder; box_AP, mask_AP, ..."""
    options, device = cfg.detection, dist.device()
    training = detect.Instances(options, True)
    validation = detect.Instances(options, False, training.source.categories)
    model = detect.build_detector(cfg.network, trunk, len(training.category_ids), options)
    model.to(device).train()
    groups = parameter_groups(model, weight_decay=options.weight_decay)
    optimizer = SGD(groups, options.lr, options.momentum)
    drops = sorted({max(1, round(share * options.steps)) for share in options.drops})
    schedule = warmup_multistep(
        optimizer, milestones=drops, warmup=min(options.warmup, options.steps)
    )
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    parts |= {"categories": training.category_ids, "options": Options(cfg, MAY_CHANGE)}
    start = checkpoint.resume(cfg.output_dir, steps=options.steps, **parts)
    loader = train_loader(
        training,
        SampleStream(len(training), options.batch_size, seed=cfg.seed),
        start,
        options.steps,
        workers=cfg.workers,
        collate=detect.collate,
        bad=cfg.reading().policy(),
    )
    log = Log(cfg.output_dir, options.steps, every=cfg.log_every, start=start)
    network = dist.wrap(model)
    for step, (images, targets) in enumerate(loader, start + 1):
        inputs, labelled = detect.to_device(images, targets)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.amp):
            losses = network(inputs, labelled)
        require_finite(losses, step, [target["file"] for target in targets])
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        optimizer.step()
        schedule.step()
        log(step, force=step == 1, **losses, lr=schedule.get_last_lr()[0])
        stopping = dist.stop_requested()
        if stopping or step % options.save_every == 0 or step == options.steps:
            checkpoint.save(cfg.output_dir, step, **parts)
        if stopping:
            log.close()
            dist.exit_preempted(step)
    metrics = detect.evaluate(model, validation, options, cfg.workers)
    log(options.steps, force=True, **metrics)
    log.close()
    return metrics


def run(cfg: TransferConfig) -> dict[str, float]:
    """`transfer`, leaving a result also where the loss diverges."""
    return result.record(transfer, cfg, columns=COLUMNS[cfg.protocol])


@hydra.main(version_base="1.3", config_path="conf", config_name="transfer")
def main(cfg: DictConfig) -> None:
    """Transfer one trunk."""
    settings: TransferConfig = config.to_dataclass(cfg)
    dist.launch(run, settings, settings.processes)


if __name__ == "__main__":
    config.run(main)
