"""A video in, its likeliest classes and what the network attends to out.

    python demo.py RUN video.mp4
    python demo.py nl_i3d.pkl video.mp4 classes=kinetics.txt network.inflate=3x1x1 ...

RUN is the folder of a run or a checkpoint; a file of weights of others needs the options of its
network. The video is a file, a folder of frames or an array. Its classes are those of all views, as
in a test; the picture shows what the last block attends to in the middle of the video, and is
written to outputs/video_attention.png in the current folder. Further words:

    block=layer2.3.nl           another block
    at=[0.5,0.4,0.7]            where to look from: shares of frames, height, width; by default
                                where the block changes the features most
    classes=FILE                names of the classes, one a line
    out=FILE.png                another place for the picture
    features=FILE.npy           the mean feature of each view as well, float32 (V, C)
    test.clips=1 ...            any option of a run
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from omegaconf import OmegaConf
from torch import Tensor

from common import dist, draw, files
from common.config import run as run_command
from common.config import to_dataclass
from common.run import checkpoint
from common.weights.formats import converting, read
from nonlocal_ import data
from nonlocal_.clips.lists import read_classes
from nonlocal_.clips.records import Record
from nonlocal_.config import Config
from nonlocal_.figures.attention import draw_attention
from nonlocal_.figures.focus import blocks_of, look
from nonlocal_.inputs.videos import Views
from nonlocal_.model import build_network
from nonlocal_.net.resnet import VideoNetwork
from nonlocal_.weights.formats import convert
from nonlocal_.weights.initialise import initialise, read_run, weights_file

USAGE = "usage: python demo.py RUN|FILE VIDEO [classes=FILE] [block=NAME] [at=[t,y,x]] [out=FILE]"
OWN = ("block", "at", "classes", "out", "features")
SHOWN = 5  # classes


@dataclass
class Trained:
    """A network in evaluation, the names of its classes, the settings of its run."""

    model: VideoNetwork
    names: list[str]
    cfg: Config


@torch.no_grad()
def main() -> None:
    """Read the words of the command line, classify, draw."""
    if not sys.argv[1:] or {"-h", "--help"} & {*sys.argv[1:]}:
        print(__doc__)
        return
    run, video, own, options = read_words(sys.argv[1:])
    trained = load(run, options, str(own.get("classes") or ""))
    dataset = data.views_of([Record(video, (0,))], trained.cfg, trained.names)
    scores, features = score(trained, dataset)
    for p, k in zip(*scores.topk(min(SHOWN, len(scores))), strict=True):
        print(f"{100 * p:5.1f} %  {trained.names[int(k)]}")
    if "features" in own:
        buffer = io.BytesIO()
        np.save(buffer, features.numpy())
        files.write(Path(own["features"]), lambda file: file.write(buffer.getvalue()))
        print(own["features"])
    out = Path(own.get("out", f"outputs/{Path(video).stem}_attention.png"))
    if draw_video(trained, dataset, own, out, title=Path(video).name):
        print(out)
    else:
        print("The network has no non-local block to draw.")


def read_words(words: list[str]) -> tuple[str, str, dict[str, Any], list[str]]:
    """The run, the video, the words of this command and options of a run; ValueError for others."""
    # A run of a sweep has "=" in its name
    plain = [word for word in words if "=" not in word or os.path.exists(word)]
    given = [word for word in words if word not in plain]
    if len(plain) != 2:
        raise ValueError(USAGE)
    mine = [word for word in given if word.partition("=")[0] in OWN]
    try:
        own: Any = OmegaConf.to_container(OmegaConf.from_dotlist(mine))
    except yaml.YAMLError:
        raise ValueError(
            f"a list does not end, or holds a sign that needs quotes; {USAGE}"
        ) from None
    at = own.get("at")
    shares = isinstance(at, list) and len(at) == 3
    shares = shares and all(isinstance(each, int | float) and 0 <= each <= 1 for each in at)
    if at is not None and not shares:
        raise ValueError(f"at={at}: give shares of frames, height and width, as at=[0.5,0.4,0.7].")
    return plain[0], plain[1], own, [word for word in given if word not in mine]


def load(source: str, options: list[str], classes: str = "") -> Trained:
    """The network of a run, or of a file of weights and the options of its network."""
    path = weights_file(source)
    stored = read_run(path)
    settings: Any = OmegaConf.structured(Config) if stored is None else stored.settings
    settings.data.root, settings.init, settings.only_evaluate = "", str(path), True
    settings.output_dir = ""
    if settings.data.name == "builtin":  # one view, as its clips have
        clips = settings.data.builtin
        settings.clip.frames, settings.clip.stride = clips.frames, 1
        settings.test.size, settings.test.clips, settings.test.crops = clips.side, 1, 1
    settings.merge_with_dotlist(options)
    cfg: Config = to_dataclass(settings)
    if cfg.task == "detection":
        raise ValueError(f"{source} is a detector of photos: give a network for clips.")
    names = stored.classes if stored else count_classes(path)
    given = read_classes(classes) if classes else names
    if len(given) != len(names):
        raise ValueError(f"{classes} has {len(given)} classes, and {source} {len(names)}.")
    model = build_network(cfg.network, cfg.block, len(names))
    if stored is None:
        print(initialise(model, cfg))
    else:
        checkpoint.load_matching(model, stored.tensors)
    return Trained(model.to(dist.device()).eval(), given, cfg)


def count_classes(path: Path) -> list[str]:
    """Numbers in the place of names for the classes of a file of weights."""
    with converting(path):
        tensors = convert(read(path), str(path)).tensors
    if "fc.bias" not in tensors:
        raise ValueError(f"{path} has no classifier: train one on it, by init={path}.")
    return [str(k) for k in range(tensors["fc.bias"].numel())]


@torch.no_grad()
def score(trained: Trained, dataset: Views) -> tuple[Tensor, Tensor]:
    """The probabilities (K,) of the video, and the mean feature (V, C) of each view."""
    cfg, device = trained.cfg, dist.device()
    probabilities, features = [], []
    for index in range(len(dataset)):
        clips = dataset[index][0].to(device)
        several = cfg.task == "multi_label"
        probabilities.append(trained.model.scores(clips, multi_label=several).cpu())
        features.append(trained.model.features(clips).mean((2, 3, 4)).cpu())
    joined = torch.cat(probabilities)
    found = joined.mean(0) if cfg.test.fuse == "mean" else joined.amax(0)
    return found, torch.cat(features)


def draw_video(
    trained: Trained, dataset: Views, own: dict[str, Any], out: Path, title: str
) -> bool:
    """Write the picture of what a block attends to; False where the network has no block."""
    blocks = blocks_of(trained.model)
    if not blocks:
        return False
    name = str(own.get("block", list(blocks)[-1]))
    if name not in blocks:
        raise ValueError(f"block={name} is not there: choose {', '.join(blocks)}.")
    views = dataset[len(dataset) // 2][0]
    clip = views[len(views) // 2].to(dist.device())
    at = None
    if "at" in own:
        t, y, x = (share * length for share, length in zip(own["at"], clip.shape[1:], strict=True))
        at = (t, y, x)
    found = look(trained.model, blocks[name], clip, at=at, title=title)
    draw.save_png(draw_attention([found], name), out)
    return True


if __name__ == "__main__":
    run_command(main)
