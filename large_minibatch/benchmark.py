"""Ours beside torchvision: every speed that the README claims.

    python benchmark.py                                  # all; some minutes on two cores
    python benchmark.py what=step repeats=21 threads=1 out=step.json
    python benchmark.py what=step device=cuda batch=256 size=224
    python benchmark.py what=loader data=/data/imagenet/val workers=4

The contestants run by turns in one process, each round another one first; those that train were
seen to give the same losses before. `theirs / ours` is the ratio of the medians: above 1, ours is
faster. Where other work shares the cores, OMP_WAIT_POLICY=PASSIVE keeps waiting threads from
blocking them.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import ImageFolder
from torchvision.models import resnet50
from torchvision.transforms import v2

from common import dist, timing
from common.config import read_options
from common.config import run as run_command
from common.run import machine
from common.tables.markdown import markdown
from common.timing import Calls, Row, version_of
from large_minibatch import allreduce, data, sgd
from large_minibatch.config import Config, Data, Norm
from large_minibatch.model import resnet
from large_minibatch.norm import ghost


@dataclass
class Options:
    """Words of the command line."""

    what: str = "all"  # all | step | ghost | mini | loader | scaling
    repeats: int = 9
    threads: int = 2  # of the CPU
    device: str = "cpu"  # cpu | cuda
    size: int = 0  # pixels; 0: 128 on a CPU, 224 on a GPU
    batch: int = 0  # images of `step` and `ghost`; 0: 32 on a CPU, 256 on a GPU
    amp: bool | None = None  # bfloat16 in the networks; not given: on a GPU only
    data: str = ""  # class folders for `loader`; empty: 256 made-up JPEGs of 500 x 375 pixels
    workers: int = 0  # loader processes of `loader`
    keep: bool = True  # as train.py does, keep freed memory in the process
    out: str = ""  # a JSON file for the results

    def __post_init__(self) -> None:
        timing.require_sound(self, [*BENCHMARKS, "scaling"])

    def with_defaults(self) -> "Options":
        """With what depends on the device where it was not given."""
        cuda = self.device == "cuda"
        size, batch = self.size or (224 if cuda else 128), self.batch or (256 if cuda else 32)
        return replace(self, size=size, batch=batch, amp=cuda if self.amp is None else self.amp)


def step(options: Options) -> Calls:
    """ResNet-50 of equal weights: images on the device to SGD step, plain BN over the batch.

    Theirs is torchvision's model and torch's SGD in a plain loop, as it is and in channels_last; on
    a GPU also compiled. `machine.keep_freed_memory`, which train.py calls, holds for the whole
    process and so serves theirs too: keep=false leaves it out.
    """
    torch.manual_seed(0)
    theirs = resnet50(weights=None)
    ours = resnet("resnet50", group=options.batch)
    ours.load_state_dict(theirs.state_dict())
    calls = {
        "ours": _training(ours, options, ours=True),
        version_of("torchvision"): _training(theirs, options, layout=torch.contiguous_format),
        "the same in channels_last": _training(copy.deepcopy(theirs), options),
    }
    if options.device == "cuda":
        compiled = cast(nn.Module, torch.compile(copy.deepcopy(theirs)))
        calls["the same, compiled"] = _training(compiled, options)
        own = cast(nn.Module, torch.compile(copy.deepcopy(ours)))
        calls["ours, compiled"] = _training(own, options, ours=True)
    return calls


def ghosts(options: Options) -> Calls:
    """ResNet-50 step with BN in groups of an eighth of the batch beside BN over the whole batch."""
    return _norms("resnet50", options)


def mini(options: Options) -> Calls:
    """The net of the miniature tables, 256 images of 32 pixels: 8 ghost groups, plain BN."""
    return _norms("mini", replace(options, size=32, batch=256), classes=16)


def _norms(name: str, options: Options, classes: int = 1000) -> Calls:
    torch.manual_seed(0)
    plain = resnet(name, num_classes=classes, norm="worker")
    grouped = ghost.convert(copy.deepcopy(plain), group=max(2, options.batch // 8))
    return {
        "ghost BN, 8 groups": _training(grouped, options, ours=True, classes=classes),
        "plain BN": _training(plain, options, ours=True, classes=classes),
    }


def _training(
    model: nn.Module,
    options: Options,
    *,
    ours: bool = False,
    layout: torch.memory_format = torch.channels_last,
    classes: int = 1000,
) -> Callable[[], Tensor]:
    """A training step that returns its loss; its rate is too small to part the contestants."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(options.batch, 3, options.size, options.size, generator=generator)
    labels = torch.randint(classes, (options.batch,), generator=generator).to(options.device)
    images = images.to(options.device).to(memory_format=layout)
    model.to(options.device).to(memory_format=layout).train()
    if ours:
        optimizer: torch.optim.Optimizer = sgd.MomentumSGD(sgd.decay_split(model, 1e-4), 1e-9)
    else:
        optimizer = SGD(model.parameters(), 1e-9, 0.9, weight_decay=1e-4, nesterov=True)

    def train() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(options.device, torch.bfloat16, enabled=bool(options.amp)):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        if ours:
            ghost.update_running(model)
        optimizer.step()
        return loss.detach()

    return train


def loader(options: Options) -> Calls:
    """64 training crops of 224 pixels from JPEGs to a normalised batch, decoding included.

    Theirs is ImageFolder, RandomResizedCrop, flip and normalisation in a DataLoader. Both take
    torchvision's crop and filter, so the work is the same; the random numbers are not.
    """
    root = Path(options.data or _jpegs())
    cfg = Config(batch_size=64, per_forward=64, norm=Norm(group=1))
    cfg.data = Data(name="folder", root=str(root.parent), train=root.name, val=root.name)
    cfg.data = replace(
        cfg.data, crop="torchvision", interpolation="bilinear", workers=options.workers
    )
    training = data.build(cfg.data, "train")
    plan = data.plan_of(cfg, len(training))

    def our_batches() -> Iterator[Tensor]:
        for pieces in data.training_batches(training, cfg, plan, 0, 1000 * plan.steps_per_epoch):
            for piece in pieces:
                yield data.normalise(piece.images, cfg.data)

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(cfg.data.mean, cfg.data.std),
        ]
    )

    def their_batches() -> Iterator[Tensor]:
        batches = DataLoader(
            ImageFolder(str(root), transform),
            64,
            shuffle=True,
            drop_last=True,
            num_workers=options.workers,
            persistent_workers=options.workers > 0,
        )
        while True:
            for images, _ in batches:
                yield images

    def take(batches: Iterator[Tensor]) -> tuple[int, ...]:
        return tuple(next(batches).shape)

    return {
        "ours": partial(take, our_batches()),
        version_of("torchvision"): partial(take, their_batches()),
    }


def _jpegs() -> Path:
    """A temporary folder of 256 smooth random images, 500 x 375 pixels, in two classes."""
    root = Path(tempfile.mkdtemp(prefix="large_minibatch-")) / "jpegs"
    generator = torch.Generator().manual_seed(0)
    for number in range(256):
        folder = root / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        coarse = torch.rand(1, 3, 24, 32, generator=generator)
        pixels = F.interpolate(coarse, (375, 500), mode="bicubic").clamp(0, 1)[0]
        pixels = (pixels + 0.05 * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)
        array = (255 * pixels).byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / f"{number}.jpg", quality=93)
    return root


BENCHMARKS = {"step": step, "ghost": ghosts, "mini": mini, "loader": loader}


def scaling(options: Options) -> str:
    """Two processes beside one at 256 images of 32 pixels each, one thread a process.

    The efficiency is the share of twice the speed of one that two reach.
    """
    cases = [(1, "ddp"), (2, "ddp"), (2, "ring"), (2, "halving_doubling")]
    head = ["processes", "allreduce", "ms a step", "images a second", "efficiency"]
    lines: list[list[str]] = []
    single = 0.0
    for processes, algorithm in cases:
        seconds = dist.launch(_time_step, (algorithm, options.repeats), processes)
        rate = 256 * processes / seconds
        single = single or rate
        share = f"{100 * rate / processes / single:.0f} %"
        name = algorithm if processes > 1 else "–"
        lines.append([str(processes), name, f"{1000 * seconds:.1f}", f"{rate:,.0f}", share])
    return markdown(head, lines, left=2)


def _time_step(case: tuple[str, int]) -> float:
    """Median seconds of a step in this process, summing gradients by the named algorithm."""
    algorithm, repeats = case
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = resnet("mini", num_classes=16)
    network = dist.wrap(model, broadcast_buffers=False)
    if dist.world_size() > 1 and algorithm != "ddp":
        network.register_comm_hook(None, allreduce.hook(algorithm))  # type: ignore[operator]
    train = _training(network, Options(size=32, batch=256, amp=False), ours=True, classes=16)
    seconds = []
    for _ in range(3 + 5 * repeats):
        began = time.perf_counter()
        train()
        seconds.append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    return statistics.median(seconds[3:])


def measure(what: str, options: Options) -> tuple[list[Row], list[str]]:
    """Rows of one benchmark, ours first, after a look at the losses in float32; and rates."""
    contest = BENCHMARKS[what]
    if what == "step":
        losses = [call() for call in contest(replace(options, amp=False)).values()]
        for loss in losses[1:]:
            torch.testing.assert_close(losses[0], loss, rtol=1e-4, atol=0)
    seconds = timing.by_turns(contest(options), options.repeats, options.device)
    rows = [Row(what, name, times) for name, times in seconds.items()]
    if what != "step":
        return rows, []
    rates = {row.name: work(options) / row.quartiles[1] / 1e12 for row in rows}
    told = "TFLOP/s of the convolutions and products"
    return rows, [f"- step, {name}: {rate:.2f} {told}" for name, rate in rates.items()]


def work(options: Options) -> float:
    """Floating-point operations of a ResNet-50 training step, products and sums counted apart."""
    with torch.device("meta"):
        model, images = resnet50(), torch.empty(1, 3, options.size, options.size)
    with FlopCounterMode(display=False) as counter:
        model.eval()(images)
    return 3.0 * options.batch * counter.get_total_flops()  # backward: twice the forward


def main(words: list[str] | None = None) -> None:
    """Measure, print, and write what `out` names."""
    options: Options = read_options(Options, words, usage=__doc__).with_defaults()
    torch.backends.cudnn.benchmark = True  # the shapes are always the same
    if options.keep:
        machine.keep_freed_memory()
    timing.compare(options, BENCHMARKS, measure)
    if options.what in ("all", "scaling"):
        print(f"\n{scaling(options)}\n\n- scaling: {' '.join((scaling.__doc__ or '').split())}")


if __name__ == "__main__":
    run_command(main)
