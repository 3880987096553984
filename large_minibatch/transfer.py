"""Train Mask R-CNN on a pre-trained backbone and evaluate it on COCO: Table 3.

    python transfer.py init=outputs/.../checkpoint-00450000.pt data.root=/data/coco   # Table 3a
    python transfer.py init=imagenet data.root=/data/coco gpus=4                      # Table 3b
    python transfer.py transfer=small                                                 # CPU, seconds

`gpus` is k of Table 3b; the rate, the batch and the number of steps follow from it. A process plays
k / processes of them, one after the other, so k may exceed the GPUs that are there.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import glob
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig
from torch import Tensor
from torch.optim import SGD
from torchvision.models import get_model_weights
from torchvision.models.detection import MaskRCNN
from tqdm import tqdm

from common import config, dist
from common.coco import evaluate as coco_eval
from common.config import require_choice, require_range
from common.data import eval_loader, seed_everything, seed_of
from common.optim import parameter_groups, warmup_multistep
from common.run import checkpoint, result
from common.run.log import Log, require_finite
from common.run.options import Options
from common.weights.formats import few, read
from large_minibatch.allreduce import summing
from large_minibatch.mask_rcnn.instances import (
    Instances,
    TransferData,
    collate,
    to_device,
    training_batches,
)
from large_minibatch.mask_rcnn.network import (
    IMAGES_PER_GPU,
    FineTuning,
    TransferModel,
    fine_tuning,
    load_backbone,
    mask_rcnn,
)
from large_minibatch.weights.formats import convert

COLUMNS = ("box_AP", "mask_AP")  # percent


@dataclass
class TransferConfig:
    """One fine-tuning."""

    init: str = MISSING  # checkpoint or folder of train.py, file, `imagenet`, `none`
    seed: int = 0
    gpus: int = 0  # k of Table 3b: 2 images a step and a rate of .0025 each; 0: the processes
    steps: int = 0  # 0: 1.28M / k, Table 3b
    drops: list[float] = field(default_factory=lambda: [0.75])  # shares of the run, MRCNN 3.1
    warmup: int = 500  # steps, D1
    warmup_start: float = 1 / 3  # share of the rate at step 0, D1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    bias_lr: float = 2.0  # D1: biases learn twice as fast ...
    bias_decay: bool = False  # ... and without weight decay
    amp: bool = False  # bfloat16
    processes: int = 0  # 0: one per GPU, or one on a CPU
    threads: int = 0  # CPU threads of each process; 0: all cores shared out
    log_every: int = 20  # steps
    save_every: int = 2500  # steps
    evaluate_every: int = 0  # steps; 0: only at the end
    only_evaluate: bool = False  # score the folder's checkpoint without training
    evaluator: str = "pycocotools"  # pycocotools | faster, the same figures sooner
    output_dir: str = "${hydra:runtime.output_dir}"
    data: TransferData = field(default_factory=TransferData)
    model: TransferModel = field(default_factory=TransferModel)

    def __post_init__(self) -> None:
        require_choice("evaluator", self.evaluator, ("pycocotools", "faster"))
        for name in ("gpus", "steps", "warmup", "evaluate_every", "threads"):
            require_range(name, getattr(self, name), 0)
        for name in ("log_every", "save_every"):
            require_range(name, getattr(self, name), 1)


# What may differ when a run is resumed: its length, where it runs, what it says.
MAY_CHANGE = (
    "steps",
    "processes",
    "threads",
    "log_every",
    "save_every",
    "evaluate_every",
    "only_evaluate",
    "evaluator",
    "model.score",
    "model.detections",
    "data.root",
    "data.val",
    "data.workers",
)

ConfigStore.instance().store("transfer_schema", TransferConfig)


def train(cfg: TransferConfig) -> dict[str, float]:
    """Fine-tune, resuming from `cfg.output_dir`; box_AP, mask_AP, ... in percent."""
    started = time.time()
    seed_everything(cfg.seed)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = dist.device()
    recipe, passes = plan(cfg)
    training = Instances(cfg.data, True)
    validation = Instances(cfg.data, False, training.categories)
    validation.check_images()  # its faults show now, not after training
    model = mask_rcnn(len(training.category_ids), **asdict(cfg.model))
    initialise(model, cfg)
    model.to(device)
    groups = parameter_groups(
        model,
        weight_decay=cfg.weight_decay,
        decay_bias=cfg.bias_decay,
        lr=recipe.lr,
        bias_lr=cfg.bias_lr,
    )
    optimizer = SGD(groups, recipe.lr, cfg.momentum)
    schedule = warmup_multistep(
        optimizer,
        milestones=recipe.milestones,
        warmup=recipe.warmup,
        warmup_start=cfg.warmup_start,
    )
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    parts |= {"category_ids": training.category_ids, "gpus": recipe.gpus}
    parts |= {"categories": training.categories}
    parts |= {"options": Options(cfg, MAY_CHANGE)}
    start = checkpoint.resume(
        cfg.output_dir, steps=None if cfg.only_evaluate else recipe.iterations, **parts
    )
    if cfg.only_evaluate:
        checkpoint.require_weights(cfg.output_dir, start)

    steps = recipe.iterations
    stop = start if cfg.only_evaluate else steps
    loader = training_batches(
        training, cfg.data, start, stop, batch_size=recipe.batch_size, seed=cfg.seed
    )
    log = Log(cfg.output_dir, steps, every=cfg.log_every, start=start)
    network = dist.wrap(model)
    for step, (images, targets) in enumerate(loader, start + 1):
        optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for worker in range(passes):  # the GPUs of Table 3b that this process plays
            part = slice(IMAGES_PER_GPU * worker, IMAGES_PER_GPU * (worker + 1))
            seed_everything(seed_of(cfg.seed, step, dist.rank() * passes + worker))
            inputs, labelled = to_device(images[part], targets[part], device)
            with summing(network, last=worker == passes - 1):
                with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
                    losses = network(inputs, labelled)
                require_finite(losses, step, [target["file"] for target in targets[part]])
                (sum(losses.values()) / passes).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / passes
        optimizer.step()
        schedule.step()
        log(step, force=step == 1, **sums, lr=schedule.get_last_lr()[0])
        stopping = dist.stop_requested()
        if stopping or step % cfg.save_every == 0 or step == steps:
            checkpoint.save(cfg.output_dir, step, **parts)
        if stopping:
            log.close()
            dist.exit_preempted(step)
        if cfg.evaluate_every and step % cfg.evaluate_every == 0 and step < steps:
            log(step, force=True, **evaluate(model, validation, cfg))

    metrics = evaluate(model, validation, cfg)
    log(max(1, stop), force=True, **metrics)
    log.close()
    seconds = time.time() - started
    result.write(cfg.output_dir, metrics, steps=stop, seconds=seconds, columns=COLUMNS)
    return metrics


def plan(cfg: TransferConfig) -> tuple[FineTuning, int]:
    """The row of Table 3b, and how many of its GPUs each process plays."""
    world = dist.world_size()
    gpus = cfg.gpus or world
    if gpus % world:
        raise ValueError(
            f"gpus={gpus} cannot be shared by {world} processes: choose a multiple of their "
            f"number, such as gpus={-(-gpus // world) * world}, or other processes"
        )
    row = fine_tuning(gpus, iterations=cfg.steps, drops=cfg.drops, warmup=cfg.warmup)
    return row, gpus // world


def initialise(model: MaskRCNN, cfg: TransferConfig) -> None:
    """Load the backbone that `cfg.init` names."""
    if cfg.init == "none":
        return
    unused: list[str] = []
    # Differs: Table 3b starts from MSRA's ResNet-50, whose stride is in the 1x1 convolutions.
    if cfg.init == "imagenet":
        weights = get_model_weights(cfg.model.backbone)["IMAGENET1K_V1"]
        state = weights.get_state_dict(check_hash=True)
    else:
        state = read(weights_file(cfg.init))
        if "backbone.body.conv1.weight" in state:  # an R-CNN of torchvision
            converted = convert(state, cfg.init)
            state, unused = converted.tensors, converted.unused
    try:
        loaded = load_backbone(model, state)
    except ValueError as error:
        raise ValueError(f"{cfg.init}: {error} (model.backbone={cfg.model.backbone}).") from None
    if dist.is_main():
        print(f"{loaded} tensors of the backbone loaded from {cfg.init}.")
        if unused:
            print(f"{len(unused)} are unused: {few(unused)}.")


def weights_file(init: str) -> Path:
    """The file that `init` names: itself, or the newest checkpoint of the one run that it matches.

    A run's folder may be given with `*` in it, as Table 3a does, which knows the runs by minibatch.
    """
    if not any(character in init for character in "*?[") and not Path(init).is_dir():
        return Path(init)
    folders = [Path(folder) for folder in sorted(glob.glob(init))]
    if len(folders) != 1:
        found = f"{len(folders)} folders match" if folders else "no folder matches"
        raise ValueError(f"init={init}: {found}, but it has to name one run that has finished.")
    files = sorted(folders[0].glob("checkpoint-*[0-9].pt"))
    if not files:
        raise ValueError(f"init={init}: {folders[0]} has no checkpoint, train that run first.")
    return files[-1]


def evaluate(model: MaskRCNN, dataset: Instances, cfg: TransferConfig) -> dict[str, float]:
    """box_AP, mask_AP, box_AP50, ... in percent, the same on every process."""
    model.eval()
    found = list(detect(model, dataset, cfg))
    model.train()
    detections = [d for part in dist.gather(found) for d in part]
    metrics: dict[str, float] = {}
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        scores = coco_eval.evaluate(
            dataset.ground_truth(), detections, kind=kind, backend=cfg.evaluator
        )
        metrics |= {f"{name}_{key}": value for key, value in scores.items()}
    return metrics


@torch.no_grad()
def detect(model: MaskRCNN, dataset: Instances, cfg: TransferConfig) -> Iterator[dict]:
    """Detections of this process's images in COCO's result format, with masks."""
    device = dist.device()
    batches = eval_loader(dataset, IMAGES_PER_GPU, workers=cfg.data.workers, collate=collate)
    for images, targets in tqdm(
        batches, "evaluate", leave=False, disable=None if dist.is_main() else True
    ):
        inputs, _ = to_device(images, targets, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
            results = model(inputs)
        for target, found in zip(targets, results, strict=True):
            yield from coco_eval.to_coco(
                target["image_id"],
                found["boxes"].float().cpu(),
                found["scores"].float().cpu(),
                found["labels"].cpu() - 1,
                dataset.category_ids,
                masks=(found["masks"][:, 0] >= 0.5).cpu(),
            )


def run(cfg: TransferConfig) -> dict[str, float]:
    """`train`, leaving a result also where the loss diverges."""
    return result.record(train, cfg, columns=COLUMNS)


@hydra.main(version_base="1.3", config_path="conf", config_name="transfer")
def main(cfg: DictConfig) -> None:
    """Fine-tune and evaluate one setting."""
    settings: TransferConfig = config.to_dataclass(cfg)
    dist.launch(run, settings, settings.processes)


if __name__ == "__main__":
    config.run(main)
