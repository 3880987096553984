"""Ours beside torchvision, fvcore and pycocotools: every speed that the README claims.

    python benchmark.py                                 # all; some minutes on two cores
    python benchmark.py what=loss repeats=21 threads=1 out=loss.json
    python benchmark.py what=step device=cuda batch=16  # 800 pixels, bfloat16

The contestants run by turns in one process, a different one first each time, after all were shown
to give the same result. `theirs / ours` is the ratio of the medians: above 1, ours is faster.
"""

import copy
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import box_iou, sigmoid_focal_loss
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from common import coco_eval, machine
from common.config import require_choice, require_range, typed
from common.config import run as run_command
from focal_loss.anchors import Anchors
from focal_loss.assign import assign
from focal_loss.criterion import DetectionLoss
from focal_loss.detect import Detector
from focal_loss.loss import BACKGROUND, IGNORED, focal_loss
from focal_loss.model import RetinaNet
from focal_loss.weights import torchvision_state

Calls = dict[str, Callable[[], Any]]  # a contestant's name -> what is timed; ours comes first
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 91  # torchvision's classifier
OBJECTS = 8  # an image; COCO has 7.3
CANDIDATES = 2000  # pairs of anchor and class above the threshold, an image


@dataclass(frozen=True)
class Options:
    """Words of the command line."""

    what: str = "all"
    repeats: int = 9
    threads: int = 2  # of the CPU
    device: str = "cpu"  # cpu | cuda
    size: int = 0  # pixels, a multiple of 32; 0: 256 on a CPU, 800 on a GPU
    batch: int = 2  # images
    amp: bool | None = None  # bfloat16 in the networks; not given: on a GPU only
    anchors: int = 49_104  # of the loss, an image; those of 512 x 512 pixels
    images: int = 500  # of the COCO evaluation
    out: str = ""  # a JSON file for the results

    def __post_init__(self) -> None:
        require_choice("what", self.what, [*BENCHMARKS, "all"])
        require_choice("device", self.device, ("cpu", "cuda"))
        require_range("repeats", self.repeats, 2)
        for name in ("threads", "batch", "anchors", "images"):
            require_range(name, getattr(self, name), 1)
        if self.size < 0 or self.size % 32:
            raise ValueError(f"size={self.size} must be a multiple of 32, or 0 for the default.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device=cuda, but PyTorch sees no GPU: use device=cpu.")

    def filled(self) -> "Options":
        """With the device's size and precision where none was given."""
        cuda = self.device == "cuda"
        amp = cuda if self.amp is None else self.amp
        return replace(self, size=self.size or (800 if cuda else 256), amp=amp)


@dataclass(frozen=True)
class Row:
    """What was measured of one contestant."""

    benchmark: str
    name: str
    seconds: list[float]  # of each repeat
    memory: int | None = None  # bytes beyond the inputs, at the peak

    def __str__(self) -> str:
        low, middle, high = (f"{1000 * q:,.1f}" for q in self.quartiles)
        memory = "–" if self.memory is None else f"{self.memory / 2**20:,.0f} MiB"
        return f"{self.benchmark} | {self.name} | {middle} ms | {low} – {high} | {memory}"

    @property
    def quartiles(self) -> list[float]:
        """Lower quartile, median, upper quartile, in seconds."""
        return statistics.quantiles(self.seconds, n=4, method="inclusive")


def time_by_turns(calls: Calls, repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each repeat of every contestant, after one untimed round."""
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(-1, repeats):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            elapsed = _seconds(calls[name], device)
            if i >= 0:
                seconds[name].append(elapsed)
    return seconds


def _seconds(call: Callable[[], Any], device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000  # the events count milliseconds


def loss(options: Options) -> Calls:
    """Forward and backward pass of the focal loss; theirs gets ready one-hot targets."""
    torch.manual_seed(0)
    A, K, device = options.anchors, 80, options.device
    logits = torch.randn(options.batch, A, K, device=device).sub_(4.6).requires_grad_()
    labels = torch.full((options.batch, A), BACKGROUND, device=device)
    places = torch.rand(options.batch, A, device=device).argsort(1)
    some = max(1, min(100, A // 10))  # positives; five times as many are ignored
    found = torch.randint(K, (options.batch, some), device=device)
    labels.scatter_(1, places[:, :some], found).scatter_(1, places[:, some : 6 * some], IGNORED)
    targets = torch.zeros_like(logits, requires_grad=False)
    targets.view(-1, K)[labels.flatten() >= 0, labels[labels >= 0]] = 1
    # The cheapest way to leave out the ignored anchors and to divide: one more product.
    weights = ((labels != IGNORED) / some).unsqueeze(-1).float()  # (N, A, 1)
    peers = {_named("torchvision"): sigmoid_focal_loss}
    if find_spec("fvcore"):
        from fvcore.nn import sigmoid_focal_loss_jit  # detectron2's

        peers[_named("fvcore")] = sigmoid_focal_loss_jit

    def ours() -> Tensor:
        return focal_loss(logits, labels, alpha=0.25, gamma=2.0, normalizer=float(some))

    def theirs(function: Callable[..., Tensor]) -> Tensor:
        return (function(logits, targets, alpha=0.25, gamma=2.0) * weights).sum()

    def backward(forward: Callable[[], Tensor]) -> Tensor:
        logits.grad = None
        value = forward()
        value.backward()
        return value.detach()

    calls: Calls = {"ours": lambda: backward(ours)}
    for name, function in peers.items():
        calls[name] = lambda function=function: backward(lambda: theirs(function))
    return calls


def check_loss(calls: Calls) -> None:
    """Stop unless all contestants give one value."""
    values = [call() for call in calls.values()]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-4, atol=0)


def extra_memory(name: str, options: Options) -> int | None:
    """Bytes that one contestant of `loss` takes beyond its inputs; to be called in a new process.

    None where the system does not tell. `ru_maxrss` would not do: a child inherits its parent's.
    """
    torch.set_num_threads(options.threads)
    loss(replace(options, anchors=64))[name]()  # what libraries load at the first call
    call = loss(options)[name]
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is used now
    before = _peak(status)
    call()
    return _peak(status) - before


def _peak(status: Path) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def networks(options: Options) -> tuple[RetinaNet, nn.Module]:
    """Ours, with torchvision's anchors and P6, and torchvision's network of the same weights."""
    torch.manual_seed(0)
    ours = RetinaNet(num_classes=CLASSES, anchors="torchvision", p6="p5", tower_init="he")
    for name, buffer in ours.backbone.named_buffers():
        if name.endswith("bn3.weight"):
            buffer.fill_(0.25)  # without statistics, residual sums would double at every block
    ours = ours.to(options.device, memory_format=torch.channels_last)
    pyramid = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    limits = {"min_size": options.size, "max_size": options.size, "detections_per_img": 100}
    theirs = TorchvisionRetinaNet(pyramid, CLASSES, **limits).to(options.device)
    theirs.load_state_dict(torchvision_state(ours))
    return ours, theirs


def pictures(options: Options) -> list[Tensor]:
    """Soft random blobs (3, size, size), 0..1."""
    blobs = torch.rand(options.batch, 3, 16, 16, device=options.device)
    return list(F.interpolate(blobs, (options.size, options.size), mode="bilinear"))


def batched(images: list[Tensor]) -> Tensor:
    """Normalised images (N, 3, H, W) in channels_last, as from the project's loader."""
    mean, std = (images[0].new_tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    batch = ((torch.stack(images) - mean) / std).contiguous(memory_format=torch.channels_last)
    return batch


def objects(options: Options, height: int, width: int) -> list[dict[str, Tensor]]:
    """Targets of every image: random boxes from 16 pixels to half the image."""
    limit = torch.tensor([width, height], device=options.device)
    targets = []
    for _ in range(options.batch):
        corner, share = torch.rand(2, OBJECTS, 2, device=options.device)
        sides = 16 + share * (limit / 2 - 16)
        low = corner * (limit - sides)
        labels = torch.randint(CLASSES, (OBJECTS,), device=options.device)
        targets.append({"boxes": torch.cat([low, low + sides], 1), "labels": labels})
    return targets


def step(options: Options) -> Calls:
    """A training step from a list of images to updated weights; torchvision in both layouts."""
    ours, theirs = networks(options)
    images, targets = pictures(options), objects(options, options.size, options.size)
    criterion = DetectionLoss(box="l1", low_quality="any").to(options.device)  # torchvision's
    last = copy.deepcopy(theirs).to(memory_format=torch.channels_last)

    def our_losses() -> dict[str, Tensor]:
        batch = batched(images)
        with torch.autocast(options.device, torch.bfloat16, enabled=bool(options.amp)):
            logits, offsets = ours(batch)
        return criterion(logits, offsets, ours.anchors(options.size, options.size), targets)

    def their_losses(model: nn.Module) -> dict[str, Tensor]:
        with torch.autocast(options.device, torch.bfloat16, enabled=bool(options.amp)):
            return model(images, targets)

    calls = {"ours": _stepping(ours, our_losses)}
    for name, model in ((_named("torchvision"), theirs), ("same, channels_last", last)):
        calls[name] = _stepping(model, lambda model=model: their_losses(model))
    with torch.no_grad():
        found = list(our_losses().values())
        for model in (theirs, last):
            expected = their_losses(model).values()
            tolerance = 0.05 if options.amp else 1e-3
            for mine, other in zip(found, expected, strict=True):
                torch.testing.assert_close(mine, other, rtol=tolerance, atol=0, check_dtype=False)
    return calls


def _stepping(
    model: nn.Module, losses: Callable[[], dict[str, Tensor]]
) -> Callable[[], None]:
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, weight_decay=1e-4)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(losses().values()).backward()
        optimizer.step()

    return train


def inference(options: Options) -> Calls:
    """From a list of images to detections; 2,000 pairs of anchor and class an image to sort out."""
    torch.manual_seed(0)
    images = pictures(options)
    ours, theirs = networks(options)
    _spread(ours.eval(), batched(images))
    theirs.load_state_dict(torchvision_state(ours))
    theirs.eval()
    last = copy.deepcopy(theirs).to(memory_format=torch.channels_last)

    def detect(amp: bool) -> list[dict[str, Tensor]]:
        with torch.no_grad(), torch.autocast(options.device, torch.bfloat16, enabled=amp):
            return Detector()(ours, batched(images))

    def other(model: nn.Module, amp: bool) -> list[dict[str, Tensor]]:
        with torch.no_grad(), torch.autocast(options.device, torch.bfloat16, enabled=amp):
            return model(images)

    for model in (theirs, last):  # in float32: rounding to bfloat16 changes the order
        _require_same(detect(amp=False), other(model, amp=False))
    amp = bool(options.amp)
    return {
        "ours": lambda: detect(amp),
        _named("torchvision"): lambda: other(theirs, amp),
        "same, channels_last": lambda: other(last, amp),
    }


@torch.no_grad()
def _spread(model: RetinaNet, batch: Tensor) -> None:
    """Set both predicting layers so that logits vary and `CANDIDATES` pairs pass the threshold."""
    for head, outputs, spread in ((model.classification, 0, 1.0), (model.regression, 1, 0.3)):
        values = model(batch)[outputs].unflatten(1, (-1, model.anchor_grid.per_cell))
        centred = values - values.mean((0, 1))  # (N, cells, a, D)
        factor = spread / centred.std()
        head.predict.weight.mul_(factor)
        head.predict.bias.sub_(values.mean((0, 1)).flatten()).mul_(factor)
        if outputs == 0:
            best = (factor * centred).flatten().topk(len(batch) * CANDIDATES).values
            head.predict.bias.add_(math.log(0.05 / 0.95) - best[-1])


def _require_same(mine: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]]) -> None:
    """Stop unless 95 % of the boxes agree; near ties may fall either way in float32."""
    for a, b in zip(mine, theirs, strict=True):
        same = (box_iou(a["boxes"], b["boxes"]) > 0.99) & (a["labels"][:, None] == b["labels"])
        share = same.any(1).float().mean().item()
        counts = len(a["boxes"]), len(b["boxes"])
        assert min(counts) >= 20, f"{counts} detections are too few to compare"
        assert share >= 0.95, f"only {share:.0%} of {counts} detections agree"


def assignment(options: Options) -> Calls:
    """Anchors of 800 x 1344 pixels to objects, the whole batch."""
    torch.manual_seed(0)
    anchors = Anchors()(800, 1344, options.device)
    targets = objects(options, 800, 1344)
    boxes = [target["boxes"] for target in targets]
    labels = [target["labels"] for target in targets]
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)

    def ours() -> tuple[Tensor, Tensor]:
        return assign(anchors, boxes, labels, low_quality="any")

    def theirs() -> list[Tensor]:
        return [matcher(box_iou(each, anchors)) for each in boxes]

    found, match = ours()
    expected = torch.stack(theirs())  # -1 background, -2 ignored, as ours
    share = (torch.where(found >= 0, match, found) == expected).float().mean().item()
    assert share > 0.9999, f"only {share:.4%} of the anchors agree"  # ties at 0.4 and 0.5
    return {"ours": ours, _named("torchvision"): theirs}


def coco(options: Options) -> Calls:
    """The official evaluation of 100 detections an image, with either library."""
    chance = random.Random(0)
    ids = range(1, options.images + 1)

    def box() -> list[float]:
        w, h = (chance.uniform(8, 300) for _ in range(2))
        return [chance.uniform(0, 640 - w), chance.uniform(0, 480 - h), w, h]

    annotations = [
        {"id": 7 * i + j, "image_id": i, "category_id": chance.randint(1, 80), "bbox": box()}
        for i in ids
        for j in range(7)
    ]
    near = [
        {**a, "bbox": [v * chance.uniform(0.9, 1.1) for v in a["bbox"]], "score": chance.random()}
        for a in annotations
        for _ in range(4)
    ]
    far = [
        {"image_id": i, "category_id": chance.randint(1, 80), "bbox": box(), "score": 0.3 * chance.random()}
        for i in ids
        for _ in range(72)
    ]
    truth = {
        "images": [{"id": i, "width": 640, "height": 480} for i in ids],
        "categories": [{"id": k, "name": str(k)} for k in range(1, 81)],
        "annotations": annotations,
    }

    def score(backend: str) -> dict[str, float]:
        return coco_eval.evaluate(truth, near + far, backend=backend)

    calls: Calls = {}
    if find_spec("faster_coco_eval"):
        calls[f"evaluator=faster ({_named('faster-coco-eval')})"] = lambda: score("faster")
    calls[f"{_named('pycocotools')}, the default"] = lambda: score("pycocotools")
    results = [list(call().values()) for call in calls.values()]
    assert all(r == results[0] or torch.allclose(*map(torch.tensor, (r, results[0])), equal_nan=True) for r in results)
    return calls
