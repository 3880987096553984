"""Pretrain on tagged images: `python train.py`, or see conf/experiment.

The demo trains a small net on rendered scenes with noisy hashtags, the images drawn as they are or
by the square root of their rarest tag's frequency, and probes both, and no training at all.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import time
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from common import config, dist
from common.data import seed_everything, seed_of
from common.optim import follow
from common.run import checkpoint, machine, result, versus
from common.run.log import Log, require_finite
from common.run.options import Options
from hashtag_pretrain import data
from hashtag_pretrain.config import MAY_CHANGE, Config
from hashtag_pretrain.evaluate import columns, draw_versus, evaluate
from hashtag_pretrain.hashtags import hashtag_loss, images_processed, prior_bias, sigmoid_loss
from hashtag_pretrain.model import build_model, choose_format, normalise
from hashtag_pretrain.net.parallel import (
    WholeModel,
    WholeOptimizer,
    gather_model,
    parallelise,
    share_norms,
    summing,
)
from hashtag_pretrain.optimizer import build_optimizer, steps_of
from hashtag_pretrain.weights.initialise import initialise


def train(cfg: Config) -> dict[str, float]:
    """Pretrain, resuming from `cfg.output_dir`; return the final metrics in percent."""
    started = time.time()
    seed_everything(cfg.seed)
    machine.keep_freed_memory()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = dist.device()
    if cfg.images >= 0 and not cfg.only_evaluate:
        data.pieces_of(cfg)  # whether there are any, before all tags are counted
    hashtags = data.build(cfg)
    images = cfg.images or images_processed(hashtags.tagged.images)
    steps = steps_of(images, cfg.batch_size)
    if dist.is_main():
        print(hashtags.describe(cfg, max(0, images)))
    model = build(cfg, hashtags).to(device)
    shape = (cfg.per_gpu, 3, cfg.augment.size, cfg.augment.size)
    layout = torch.contiguous_format
    if not (cfg.parallel == "fsdp" and dist.world_size() > 1):  # which wants contiguous weights
        layout = choose_format(model, cfg.network, shape, amp=cfg.amp)
    model.to(memory_format=layout)
    network = parallelise(model, cfg.parallel, compress=cfg.compress, compiled=cfg.network.compile)
    optimizer, schedule = build_optimizer(network, cfg, steps)
    average = None
    if cfg.ema:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema), use_buffers=True)
    final = average.module if average else model  # what is scored
    whole = WholeModel(network), WholeOptimizer(network, optimizer)
    parts: dict[str, Any] = {
        "model": whole[0],
        "optimizer": whole[1],
        "schedule": schedule,
        "vocabulary": hashtags.tagged.vocabulary.digest,
        "data": hashtags.digest(),
        "batch_size": cfg.batch_size,
        "options": Options(cfg, MAY_CHANGE),
    } | ({"average": average} if average else {})
    start = checkpoint.resume(cfg.output_dir, steps=None if cfg.only_evaluate else steps, **parts)
    if cfg.only_evaluate:
        checkpoint.require_weights(cfg.output_dir, start, cfg.init)
    follow(schedule)

    stop = start if cfg.only_evaluate else steps
    log = Log(cfg.output_dir, steps, every=cfg.log_every, start=start)
    model.train()
    for step, pieces in enumerate(data.batches(hashtags, cfg, start, stop), start + 1):
        optimizer.zero_grad(set_to_none=True)
        total, count = torch.zeros((), device=device), data.pieces_of(cfg)
        for number, piece in enumerate(pieces, 1):  # one for each of the paper's GPUs
            inputs, tags = piece.to(device)
            seed_everything(seed_of(cfg.seed, step, dist.rank() * count + number - 1))
            with summing(network, last=number == count):
                with torch.autocast(device.type, torch.bfloat16, enabled=cfg.amp):
                    logits = network(take(inputs, cfg, layout))  # (B, V)
                loss = compute_loss(logits, tags, cfg)
                require_finite({"loss": loss}, step, piece.files)
                (loss / count).backward()
            total += loss.detach() / count
        lr = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        if average:
            average.update_parameters(model)
        log(step, force=step == 1, loss=total, lr=lr)
        stopping = dist.stop_requested()
        if stopping or step % cfg.save_every == 0 or step == steps:
            for each in dict.fromkeys((model, final)):
                share_norms(each)
            for part in whole:
                part.collect()
            checkpoint.save(cfg.output_dir, step, **parts)
        if stopping:
            log.close()
            dist.exit_preempted(step)

    if not average:
        labels = len(hashtags.tagged.vocabulary.names)
        final = gather_model(network, partial(build_model, cfg.network, labels))
    metrics = evaluate(final, cfg, hashtags)
    log(max(1, stop), force=True, **metrics)
    log.close()
    seconds = time.time() - started
    result.write(cfg.output_dir, metrics, steps=stop, seconds=seconds, columns=columns(cfg))
    return metrics


def build(cfg: Config, hashtags: data.Hashtags) -> nn.Module:
    """The network for the vocabulary, with the weights that `init` names."""
    model = build_model(cfg.network, len(hashtags.tagged.vocabulary.names))
    if cfg.loss.prior_bias:
        frequencies = torch.from_numpy(hashtags.tagged.frequencies())
        with torch.no_grad():
            model.get_parameter("fc.bias").copy_(prior_bias(frequencies))
    trained = cfg.only_evaluate and any(Path(cfg.output_dir).glob("checkpoint-*[0-9].pt"))
    if cfg.init and not trained:  # `resume` loads all of it
        digest = hashtags.tagged.vocabulary.digest
        report = initialise(model, cfg.init, vocabulary=digest, complete=cfg.only_evaluate)
        if dist.is_main():
            print(report)
    return model


def take(images: Tensor, cfg: Config, layout: torch.memory_format) -> Tensor:
    """What the network takes, of images uint8 (B, 3, S, S)."""
    return normalise(images, cfg.network.mean, cfg.network.std).contiguous(memory_format=layout)


def compute_loss(logits: Tensor, tags: Tensor, cfg: Config) -> Tensor:
    """The softmax's or the sigmoid's loss of logits (B, V) and tags (B, k)."""
    if cfg.loss.kind == "sigmoid":
        return sigmoid_loss(logits, tags, over=cfg.loss.over)
    return hashtag_loss(logits, tags)


def run(cfg: Config) -> dict[str, float]:
    """`train`, leaving a result also where the loss diverges."""
    return result.record(train, cfg, columns=columns(cfg))


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one setting, or with `versus` several side by side."""
    settings: Config = config.to_dataclass(cfg)
    if settings.versus:
        names = columns(settings)
        label = f"{names[0]}, top-1 in %"
        folders = versus.run_all(run, cfg, columns=names, curve=names[0], label=label)
        draw_versus(settings, folders)
    else:
        dist.launch(run, settings, settings.processes)


if __name__ == "__main__":
    config.run(main)
