"""Ours beside torchvision: every speed that the README claims.

    python benchmark.py                                  # all; some minutes on two cores
    python benchmark.py what=step repeats=21 threads=1 out=step.json
    python benchmark.py what=logits classes=3002 regions=100
    python benchmark.py what=step device=cuda batch=16   # 800 pixels, bfloat16

The contestants run by turns in one process, each round another one first, after a check that they
give the same results. `theirs / ours` is the ratio of the medians: above 1, ours is faster. Where
other work shares the cores, OMP_WAIT_POLICY=PASSIVE keeps waiting threads from blocking them.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_inference

from common import timing
from common.config import read_options, require_choice, require_range
from common.config import run as run_command
from common.timing import Calls, Row, version_of
from maskx_rcnn.frozen import FrozenBranch, FrozenNetwork, find_regions
from maskx_rcnn.model import MaskBranch, Network, mask_rcnn, pyramid
from maskx_rcnn.transfer import MaskPredictor, Targets, WeightTransfer, dot

COCO = 80  # classes of `step` and `stages`
OBJECTS = 8  # of an image
BRANCH = ("loss_mask",)  # the loss that differs from torchvision's


@dataclass
class Options:
    """Words of the command line."""

    what: str = "all"  # all | step | stages | logits | head
    repeats: int = 9
    threads: int = 2  # of the CPU
    device: str = "cpu"  # cpu | cuda
    size: int = 0  # pixels; 0: 256 on a CPU, 800 on a GPU
    batch: int = 2  # images
    amp: bool | None = None  # bfloat16 in the networks; not given: on a GPU only
    classes: int = 3002  # of `logits` and `head`, with background; Visual Genome's
    regions: int = 100  # of `logits` and `head`; the most detections of an image
    out: str = ""  # a JSON file for the results

    def __post_init__(self) -> None:
        require_choice("what", self.what, ["all", *BENCHMARKS])
        require_choice("device", self.device, ("cpu", "cuda"))
        require_range("repeats", self.repeats, 2)
        require_range("classes", self.classes, 2)
        require_range("size", self.size, 0)
        for name in ("threads", "batch", "regions"):
            require_range(name, getattr(self, name), 1)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device=cuda, but PyTorch sees no GPU: use device=cpu.")

    def with_defaults(self) -> "Options":
        """With the size and the precision of the device where they were not given."""
        cuda = self.device == "cuda"
        amp = cuda if self.amp is None else self.amp
        return replace(self, size=self.size or (800 if cuda else 256), amp=amp)

    def autocast(self) -> torch.autocast:
        """Precision of the networks."""
        return torch.autocast(self.device, torch.bfloat16, enabled=bool(self.amp))


def step(options: Options) -> Calls:
    """R-50-FPN with equal weights, 80 classes, 8 objects an image: images, losses, SGD step.

    Ours with masks for all objects, as torchvision needs them, and for those of half the classes.
    Theirs has ours' trunk with its frozen norms and stages.
    """
    network = _network(options)
    ours, half = (
        mask_rcnn(COCO, network, MaskBranch(), classes_with_masks=known)
        for known in (None, range(1, COCO // 2 + 1))
    )
    theirs = MaskRCNN(
        pyramid(network),
        COCO + 1,
        min_size=options.size,
        max_size=options.size,
        rpn_post_nms_top_n_train=network.proposals[0],
        box_batch_size_per_image=network.rois,
    )
    half.load_state_dict(ours.state_dict())
    own = ours.state_dict()
    logits = "roi_heads.mask_predictor.mask_fcn_logits."
    kept = {name: own.get(name, value) for name, value in theirs.state_dict().items()}
    assert {name for name in kept if name not in own} == {logits + "weight", logits + "bias"}
    theirs.load_state_dict(kept)
    images, targets = _batch(options)
    contestants = {
        "ours": ours,
        "ours, half of the classes with masks": half,
        version_of("torchvision"): theirs,
    }
    return {
        name: _sgd_step(model, model, (images, targets), options)
        for name, model in contestants.items()
    }


def stages(options: Options) -> Calls:
    """A step of the mask branch on a frozen R-50-FPN beside one of the whole network.

    Of the same images and regions: from features that were kept, from images, end to end.
    """
    model = mask_rcnn(COCO, _network(options), MaskBranch()).to(options.device).train()
    images, targets = _batch(options)
    torch.manual_seed(1)
    with options.autocast():
        kept = find_regions(model, images, targets).to(torch.device(options.device))
    frozen = {"frozen, features kept": FrozenBranch(model), "frozen": FrozenNetwork(model)}
    heads = model.roi_heads
    branch = nn.ModuleList([heads.mask_head, heads.mask_predictor])
    inputs = (kept, (images, targets))
    calls = {
        name: _sgd_step(network, branch, given, options)
        for (name, network), given in zip(frozen.items(), inputs, strict=True)
    }
    return calls | {"end to end": _sgd_step(model, model, (images, targets), options)}


def _network(options: Options) -> Network:
    torch.manual_seed(0)
    return Network(short_side=options.size, long_side=options.size)


def _batch(options: Options) -> tuple[list[Tensor], Targets]:
    """Images of soft blobs (3, size, size), their objects with a disc as mask."""
    torch.manual_seed(0)
    size, device = options.size, options.device
    blobs = torch.rand(options.batch, 3, 16, 16, device=device)
    targets = []
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    for _ in range(options.batch):
        sides = torch.empty(OBJECTS, 2).uniform_(size / 8, size / 2)
        low = torch.rand(OBJECTS, 2) * (size - sides)
        boxes = torch.cat([low, low + sides], 1)
        (x, y), (w, h) = (low + sides / 2).T[..., None, None], sides.T[..., None, None]
        masks = ((columns - x) / w) ** 2 + ((rows - y) / h) ** 2 <= 0.25
        labels = torch.arange(OBJECTS) * (COCO // OBJECTS) + 1  # half of them are in the first half
        target = {"boxes": boxes, "labels": labels, "masks": masks.to(torch.uint8)}
        targets.append({name: value.to(device) for name, value in target.items()})
    return list(F.interpolate(blobs, (size, size), mode="bilinear")), targets


def _sgd_step(
    network: nn.Module, trained: nn.Module, inputs: tuple, options: Options
) -> Callable[[], dict[str, Tensor]]:
    """An SGD step that gives its losses; its rate is too small to part the contestants."""
    network.to(options.device).train()
    parameters = [each for each in trained.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-9, momentum=0.9, weight_decay=1e-4)

    def train() -> dict[str, Tensor]:
        torch.manual_seed(1)  # of the regions that are drawn
        optimizer.zero_grad(set_to_none=True)
        with options.autocast():
            losses = network(*inputs)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        return {name: value.detach().float() for name, value in losses.items()}

    return train


def logits(options: Options) -> Calls:
    """The regions' own of all classes' masks, from features Z (regions, 256, 28, 28) by w_seg."""
    torch.manual_seed(0)
    z = torch.randn(options.regions, 256, 28, 28, device=options.device).relu()
    labels = torch.randint(options.classes, (options.regions,), device=options.device)
    w_seg = 0.03 * torch.randn(options.classes, 256, device=options.device)
    rows = torch.arange(len(labels), device=options.device)

    def dense() -> Tensor:
        return F.conv2d(z, w_seg[:, :, None, None])[rows, labels]

    calls = {"gathered": lambda: dot(z, w_seg[labels]), "dense convolution": dense}
    return {name: partial(_infer, each, options) for name, each in calls.items()}


def head(options: Options) -> Calls:
    """The whole mask branch in evaluation: features (regions, 256, 14, 14) to probabilities.

    T has run before, as after the first image. Theirs is torchvision's predictor with T's weights.
    """
    torch.manual_seed(0)
    pooled = torch.randn(options.regions, 256, 14, 14, device=options.device)
    labels = torch.randint(options.classes, (options.regions,), device=options.device)
    convs = MaskRCNNHeads(256, (256,) * 4, 1).to(options.device)
    boxes = FastRCNNPredictor(1024, options.classes).to(options.device)
    ours = MaskPredictor(256, 256, transfer=WeightTransfer(5 * 1024)).to(options.device).eval()
    theirs = MaskRCNNPredictor(256, 256, options.classes).to(options.device).eval()
    with torch.no_grad():
        theirs.conv5_mask.load_state_dict(ours.conv5_mask.state_dict())
        theirs.mask_fcn_logits.weight.copy_(ours.w_seg(boxes)[:, :, None, None])
        theirs.mask_fcn_logits.bias.zero_()
    calls = {
        "ours": lambda: ours(convs(pooled), labels, boxes).float().sigmoid(),
        version_of("torchvision"): lambda: maskrcnn_inference(
            theirs(convs(pooled)).float(), [labels]
        )[0][:, 0],
    }
    return {name: partial(_infer, each, options) for name, each in calls.items()}


@torch.no_grad()
def _infer(call: Callable[[], Tensor], options: Options) -> Tensor:
    with options.autocast():
        return call()


BENCHMARKS = {"step": step, "stages": stages, "logits": logits, "head": head}


def measure(what: str, options: Options) -> list[Row]:
    """Rows of one benchmark, ours first, after comparing the results in float32."""
    contest = BENCHMARKS[what]
    require_same(what, [call() for call in contest(replace(options, amp=False)).values()])
    calls = contest(options)
    seconds = timing.by_turns(calls, options.repeats, options.device)
    memory: dict[str, int | None] = dict.fromkeys(calls)
    if what in ("logits", "head"):
        memory = {name: timing.in_new_process(extra_memory, what, name, options) for name in calls}
    return [Row(what, name, seconds[name], memory[name]) for name in calls]


def require_same(what: str, results: list) -> None:
    """Stop unless the contestants' results are those of the first, in float32.

    Of `step` the losses but that of the masks, whose heads differ; of `stages` that alone.
    """
    for other in results[1:]:
        first = results[0]
        if what in ("step", "stages"):
            names = [name for name in other if (name in BRANCH) == (what == "stages")]
            first, other = ([each[name] for name in names] for each in (first, other))
            assert first
        torch.testing.assert_close(other, first, rtol=1e-3, atol=1e-5)


def extra_memory(what: str, name: str, options: Options) -> int | None:
    """Bytes that a contestant takes beyond its inputs; for a new process."""
    torch.set_num_threads(options.threads)
    small = replace(options, regions=1, classes=2)
    BENCHMARKS[what](small)[name]()  # what libraries load at their first call
    return timing.extra_memory(BENCHMARKS[what](options)[name], options.device)


def main(words: list[str] | None = None) -> None:
    """Measure, print, and write what `out` names."""
    options: Options = read_options(Options, words, usage=__doc__ or "").with_defaults()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True  # the shapes are always the same
    facts = timing.conditions(options.device)
    shown = facts | asdict(options)
    print(*(f"{key} {value}" for key, value in shown.items()), sep=", ", flush=True)
    names = list(BENCHMARKS) if options.what == "all" else [options.what]
    rows = [row for name in names for row in measure(name, options)]
    print(f"\n{timing.table(rows)}\n")
    for name in names:
        print(f"- {name}: {' '.join((BENCHMARKS[name].__doc__ or '').split())}")
    if options.out:
        results = [asdict(row) | {"quartiles": row.quartiles} for row in rows]
        content = {"conditions": facts, "options": asdict(options), "results": results}
        Path(options.out).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
