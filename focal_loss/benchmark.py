"""Ours beside torchvision, fvcore and pycocotools: every speed that the README claims.

    python benchmark.py                                 # all; some minutes on two cores
    python benchmark.py what=loss repeats=21 threads=1 out=loss.json
    python benchmark.py what=step device=cuda batch=16  # 800 pixels, bfloat16

The contestants run by turns in one process, each round another one first, after a check that they
give the same results. `theirs / ours` is the ratio of the medians: above 1, ours is faster. Where
other work shares the cores, OMP_WAIT_POLICY=PASSIVE keeps waiting threads from blocking them.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou, sigmoid_focal_loss

from common import timing
from common.coco import evaluate
from common.config import read_options, require_range
from common.config import run as run_command
from common.timing import Calls, Row, version_of
from focal_loss import peers
from focal_loss.criterion import DetectionLoss
from focal_loss.detect import Detector
from focal_loss.loss import IGNORED, focal_loss
from focal_loss.net.anchors import Anchors
from focal_loss.targets.assign import assign
from focal_loss.weights.export import torchvision_state


@dataclass
class Options:
    """Words of the command line."""

    what: str = "all"  # all | loss | step | inference | assign | coco
    repeats: int = 9
    threads: int = 2  # of the CPU
    device: str = "cpu"  # cpu | cuda
    size: int = 0  # pixels, a multiple of 32; 0: 256 on a CPU, 800 on a GPU
    batch: int = 2  # images
    amp: bool | None = None  # bfloat16 in the networks; not given: on a GPU only
    anchors: int = 49_104  # of the loss, an image; those of 512 x 512 pixels
    pairs: int = 2000  # of anchor and class above the score threshold in inference, an image
    images: int = 500  # of the COCO evaluation
    out: str = ""  # a JSON file for the results

    def __post_init__(self) -> None:
        timing.require_sound(self, BENCHMARKS)
        require_range("anchors", self.anchors, 10)
        for name in ("batch", "pairs", "images"):
            require_range(name, getattr(self, name), 1)
        if self.size < 0 or self.size % 32:
            raise ValueError(f"size={self.size} must be a multiple of 32, or 0 for the default.")

    def with_defaults(self) -> "Options":
        """With the size and the precision of the device where they were not given."""
        cuda = self.device == "cuda"
        amp = cuda if self.amp is None else self.amp
        return replace(self, size=self.size or (800 if cuda else 256), amp=amp)

    def autocast(self) -> torch.autocast:
        """Precision of the networks."""
        return torch.autocast(self.device, torch.bfloat16, enabled=bool(self.amp))


def loss(options: Options) -> Calls:
    """Focal loss of (batch, anchors, 80) float32 logits, forward and backward.

    One-hot targets are made for theirs beforehand; the memory includes the gradient.
    """
    torch.manual_seed(0)
    logits, labels, targets = peers.loss_inputs(options.batch, options.anchors, options.device)
    positives = int((labels[0] >= 0).sum())
    # To leave out ignored anchors and to divide costs theirs one product, the least possible.
    weights = ((labels != IGNORED) / positives).float().unsqueeze(-1)  # (N, A, 1)

    def theirs(function: Callable[..., Tensor]) -> Tensor:
        return (function(logits, targets, alpha=0.25, gamma=2.0) * weights).sum()

    def backward(forward: Callable[[], Tensor]) -> tuple[Tensor, Tensor | None]:
        logits.grad = None
        value = forward()
        value.backward()
        return value.detach(), logits.grad

    forward: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: focal_loss(logits, labels, normalizer=float(positives)),
        version_of("torchvision"): partial(theirs, sigmoid_focal_loss),
    }
    if find_spec("fvcore"):
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of torch.jit
            from fvcore.nn import sigmoid_focal_loss_jit  # the one that detectron2 uses
        forward[version_of("fvcore")] = partial(theirs, sigmoid_focal_loss_jit)
    return {name: partial(backward, each) for name, each in forward.items()}


def step(options: Options) -> Calls:
    """R-50-FPN with equal weights: list of images, losses, gradients, SGD step; 8 objects an image.

    torchvision's time includes its resizing, which changes nothing here.
    """
    torch.manual_seed(0)
    size, device = options.size, options.device
    images = peers.random_images(options.batch, size, device)
    targets = peers.objects(options.batch, size, size, device)
    ours, theirs = peers.networks(size, device)
    last = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    criterion = DetectionLoss(box="l1", low_quality="any").to(device)  # torchvision's choices

    def our_losses() -> list[Tensor]:
        with options.autocast():
            logits, offsets = ours(peers.normalise(images))
        return list(criterion(logits, offsets, ours.anchors(size, size), targets).values())

    def their_losses(model: nn.Module) -> list[Tensor]:
        with options.autocast():
            return list(model(images, targets).values())

    return {
        "ours": _sgd_step(ours, our_losses),
        version_of("torchvision"): _sgd_step(theirs, partial(their_losses, theirs)),
        "the same in channels_last": _sgd_step(last, partial(their_losses, last)),
    }


def _sgd_step(model: nn.Module, losses: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
    """An SGD step too small to make the contestants' weights differ."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-9, momentum=0.9, weight_decay=1e-4)

    def train() -> list[Tensor]:
        optimizer.zero_grad(set_to_none=True)
        parts = losses()
        torch.stack(parts).sum().backward()
        optimizer.step()
        return [part.detach().float() for part in parts]

    return train


def inference(options: Options) -> Calls:
    """R-50-FPN with equal weights: from a list of images to the 100 best detections of each.

    The random weights are set so that `pairs` of anchor and class an image exceed the threshold.
    """
    torch.manual_seed(0)
    images = peers.random_images(options.batch, options.size, options.device)
    ours, theirs = peers.networks(options.size, options.device)
    peers.make_confident(ours.eval(), peers.normalise(images), options.pairs)
    theirs.load_state_dict(torchvision_state(ours))
    last = copy.deepcopy(theirs.eval()).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def our_detections() -> list[dict[str, Tensor]]:
        with options.autocast():
            return Detector()(ours, peers.normalise(images))

    @torch.no_grad()
    def their_detections(model: nn.Module) -> list[dict[str, Tensor]]:
        with options.autocast():
            return model(images)

    return {
        "ours": our_detections,
        version_of("torchvision"): partial(their_detections, theirs),
        "the same in channels_last": partial(their_detections, last),
    }


def assignment(options: Options) -> Calls:
    """Anchors of a batch of 800 x 1344 pixels to 8 objects an image."""
    torch.manual_seed(0)
    anchors = Anchors()(800, 1344, options.device)
    targets = peers.objects(options.batch, 800, 1344, options.device)
    boxes, labels = ([target[key] for target in targets] for key in ("boxes", "labels"))
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)

    def ours() -> Tensor:
        found, match = assign(anchors, boxes, labels, low_quality="any")
        return torch.where(found >= 0, match, found)  # as theirs: -1 background, -2 ignored

    def theirs() -> Tensor:
        return torch.stack([matcher(box_iou(each, anchors)) for each in boxes])

    return {"ours": ours, version_of("torchvision"): theirs}


def coco(options: Options) -> Calls:
    """COCO metrics of images with 100 detections each: `test.evaluator=faster`, the default."""
    content, found = peers.coco_inputs(options.images)

    def metrics(backend: str) -> Tensor:
        values = evaluate.evaluate(content, found, backend=backend).values()
        return torch.tensor(list(values), dtype=torch.float64)

    backends = {f"evaluator=faster, {version_of('faster-coco-eval')}": "faster"}
    backends |= {version_of("pycocotools"): "pycocotools"}
    return {name: partial(metrics, backend) for name, backend in backends.items()}


BENCHMARKS = {
    "loss": loss,
    "step": step,
    "inference": inference,
    "assign": assignment,
    "coco": coco,
}


def measure(what: str, options: Options) -> tuple[list[Row], list[str]]:
    """Rows of one benchmark, ours first, after comparing the results in float32; and notes."""
    if what == "coco" and not find_spec("faster_coco_eval"):
        return [], ["coco is left out: it needs pip install -e '.[fast]'"]
    contest = BENCHMARKS[what]
    calls = contest(options)
    exact = calls if not options.amp else contest(replace(options, amp=False))
    require_same(what, [call() for call in exact.values()])
    del exact  # on a GPU, three networks
    seconds = timing.by_turns(calls, options.repeats, options.device)
    memory: dict[str, int | None] = dict.fromkeys(calls)
    if what == "loss":
        memory = {name: timing.in_new_process(loss_memory, name, options) for name in calls}
    return [Row(what, name, seconds[name], memory[name]) for name in calls], []


def require_same(what: str, results: list[Any]) -> None:
    """Stop unless every contestant's results are those of the first, in float32."""
    for other in results[1:]:
        match what:
            case "inference":
                peers.require_same_detections(results[0], other)
            case "assign":  # an overlap of exactly 0.4 or 0.5 may be rounded either way
                share = (results[0] == other).float().mean().item()
                assert share > 0.9999, f"only {share:.4%} of the anchors agree"
            case _:
                torch.testing.assert_close(results[0], other, rtol=1e-3, atol=1e-9, equal_nan=True)


def loss_memory(name: str, options: Options) -> int | None:
    """Bytes that a contestant of `loss` takes beyond its inputs; for a new process."""
    torch.set_num_threads(options.threads)
    loss(replace(options, anchors=64))[name]()  # what libraries load at their first call
    return timing.extra_memory(loss(options)[name], options.device)


def main(words: list[str] | None = None) -> None:
    """Measure, print, and write what `out` names."""
    options = read_options(Options, words, usage=__doc__).with_defaults()
    torch.backends.cudnn.benchmark = True  # the shapes are always the same
    timing.compare(options, BENCHMARKS, measure)


if __name__ == "__main__":
    run_command(main)
