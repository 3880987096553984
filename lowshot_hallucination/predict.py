"""Classes learned from a handful of images, without training: what is in further ones?

    python predict.py run=RUN add=[mug:photos/mug,pen:pen.jpg] images=FILE|FOLDER
    python predict.py run=RUN add=[mug:mug.npy] features=FILE.npy

RUN is the folder of a run that has ended; its base classes compete with those that are added. A
class is NAME:PATH, PATH an image, a folder of images or a .npy of their features (n, d); a name
given several times has the examples of all its paths. The five likeliest classes of each image are
printed and written to outputs/predictions.json, beside a picture of the images. Further words:

    shots=5           the run's own novel classes as well, by 5 examples each
    base=false        without the run's base classes
    mu=0.4            the share of the novel classes in the prior; by default what the run has
                      chosen for the smallest n, or none where fewer than 5 classes are novel
    out=FILE.json     another place for the predictions; the picture is FILE.png
    save=FILE.pt      what was learned, and load=FILE.pt to go on from it
    export=FILE.npz   means, imagined examples and prototypes of all classes, for other programs
    drawn=16          images in the picture
    features_at=PATH  where the run's features are now, if they were moved

Exit code 0: done; 2: bad input, in one sentence.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING, OmegaConf
from torch import Tensor, nn

from common import dist, draw, files
from common.clevr.arrays.features import map_array
from common.config import read_options, require_range, to_dataclass
from common.config import run as run_command
from common.images import find_images, read_image
from common.run import checkpoint
from common.run.options import Options as Stored
from lowshot_hallucination import data
from lowshot_hallucination.config import Config
from lowshot_hallucination.features.problem import LowShot
from lowshot_hallucination.features.transforms import View
from lowshot_hallucination.figures.predictions import draw_images
from lowshot_hallucination.hallucinate import build_generator
from lowshot_hallucination.model import build_learner
from lowshot_hallucination.net.trunks import Network, Trunk
from lowshot_hallucination.protocol.predictor import Predictor
from lowshot_hallucination.weights.initialise import open_trunk, read_parts

SHOWN = 5  # classes of an image
FEW = 5  # novel classes that a prior of their group makes sense for
BATCH = 64  # images in the trunk at a time


@dataclass
class Options:
    """Words of the command."""

    run: str = MISSING
    add: list[str] = field(default_factory=list)
    images: str = ""
    features: str = ""
    shots: int = 0
    base: bool = True
    mu: float | None = None
    out: str = "outputs/predictions.json"
    save: str = ""
    load: str = ""
    export: str = ""
    drawn: int = 16
    features_at: str = ""

    def __post_init__(self) -> None:
        require_range("shots", self.shots, 0)
        require_range("drawn", self.drawn, 0)
        if self.mu is not None:
            require_range("mu", self.mu, 0, 1)
        if self.images and self.features:
            raise ValueError("images= and features= are two kinds of queries: give one of them.")
        if not (self.images or self.features or self.save or self.export):
            raise ValueError("there is nothing to do: give images=, features=, save= or export=.")
        if not self.out.endswith(".json"):
            raise ValueError(f"out={self.out}: give the name of a file that ends in .json.")


@dataclass(frozen=True)
class Run:
    """What a run has left."""

    cfg: Config
    learner: nn.Module
    generate: nn.Module
    problem: LowShot
    scale: float  # that all features were divided by
    n_aug: int
    mu: float | None  # chosen for the smallest n


@torch.no_grad()
def main() -> None:
    """Do what the command line says."""
    options: Options = read_options(Options, usage=__doc__, least=1)
    classes = parse_classes(options.add)
    make_folders([options.out, options.save, options.export])
    run = open_run(options)
    predictor = build_predictor(run, options)
    reader = Reader(run)
    for name, paths in classes.items():
        predictor.add(name, torch.cat([reader.read(path)[0] for path in paths]))
    predictor.mu = choose_prior(predictor, run.mu, options.mu)
    if options.save:
        predictor.save(Path(options.save))
        print(options.save)
    if options.export:
        predictor.export(Path(options.export))
        print(options.export)
    if options.images or options.features:
        rows, found = reader.read(options.images or options.features)
        report(predictor, rows, found, options)


def parse_classes(words: Sequence[str]) -> dict[str, list[str]]:
    """Paths of each class of NAME:PATH words; ValueError for another word or an absent path."""
    classes: dict[str, list[str]] = {}
    for word in words:
        name, _, path = str(word).partition(":")
        if not name or not path:
            raise ValueError(f"add={word}: write NAME:PATH, as add=[mug:photos/mug].")
        if not Path(path).exists():
            raise ValueError(f"add={word}: there is no {path}.")
        classes.setdefault(name, []).append(path)
    return classes


def make_folders(paths: Sequence[str]) -> None:
    """Make the folders that the files `paths` go to; ValueError where one cannot be written to."""
    for path in filter(None, paths):
        folder = Path(path).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{path} cannot be written ({error}): give another place.") from error
        if not os.access(folder, os.W_OK):
            raise ValueError(f"{path} cannot be written: you have no right to write to {folder}.")


def open_run(options: Options) -> Run:
    """Learner, generator and data of a run's newest checkpoint, with what it chose in its test."""
    folder = Path(options.run)
    found = sorted(folder.glob("checkpoint-*[0-9].pt"))
    if not found:
        inner = sorted({str(path.parent) for path in folder.glob("*/checkpoint-*[0-9].pt")})
        remedy = f"give one of {', '.join(inner)}" if inner else "give the folder of a run"
        raise ValueError(f"run={folder} has no checkpoint: {remedy}.")
    parts = read_parts(found[-1])
    if not {"learner", "generator", "data", "options"} <= set(parts):
        raise ValueError(f"{found[-1]} is of another stage: give a run of stage=meta.")
    cfg = read_settings(parts["options"], options)
    if (kind := cfg.hallucination.kind) in ("analogies", "views"):
        raise ValueError(f"run={folder} imagines by {kind}: give a run of another kind.")
    problem, scale = read_problem(cfg)
    if parts["data"] != problem.digest():
        raise ValueError(
            f"run={folder} was trained on other features than those of {problem.train.source}: "
            "give its own by features_at=."
        )
    width = problem.train.width
    learner = build_learner(cfg.learner, width)
    generate = build_generator(cfg.hallucination, width, spread=torch.eye(width))
    for net, name in ((learner, "learner"), (generate, "generator")):
        checkpoint.load_matching(net.to(dist.device()), parts[name])
    chosen = files.read_json(folder / "chosen.json")
    if not chosen:
        raise ValueError(f"{folder}/chosen.json is absent or damaged: start the run again.")
    smallest = chosen[min(chosen, key=int)]
    if cfg.learner.shrink == "cv":
        learner.shrink = smallest.get("shrink", 1.0)
    n_aug = smallest.get("n_aug", cfg.hallucination.fill_to)
    return Run(cfg, learner, generate, problem, scale, n_aug, smallest.get("mu"))


def read_problem(cfg: Config) -> tuple[LowShot, float]:
    """The run's features, and what they were divided by."""
    features = cfg.features or data.prepare(cfg)
    raw = replace(cfg, features=features, problem=replace(cfg.problem, rescale=False))
    problem = data.build(raw)
    if not cfg.problem.rescale:
        return problem, 1.0
    base = problem.train.rows_of(problem.split.base)
    scale = float(np.mean(problem.train.values[base], dtype=np.float64))
    return data.rescale(problem), scale


def read_settings(stored: dict[str, Any], options: Options) -> Config:
    """The configuration of a checkpoint; options that only another version knows are left out."""
    settings: Any = OmegaConf.structured(Config)
    known = Stored(Config(), ()).values
    for name, value in stored.items():
        if name in known:
            OmegaConf.update(settings, name, value)
    settings.output_dir = options.run
    settings.features = options.features_at or settings.features
    return to_dataclass(settings)


def build_predictor(run: Run, options: Options) -> Predictor:
    """A predictor of the run's classes that the words ask for, or of those in a file."""
    if options.load:
        return Predictor.load(Path(options.load), run.learner, run.generate)
    predictor = Predictor(run.learner, run.generate, run.n_aug)
    split, wanted = run.problem.split, run.cfg.test.base_support
    counts = dict.fromkeys(split.base if options.base else [], wanted or None)
    counts |= dict.fromkeys(split.novel if options.shots else [], options.shots)
    for label, count in counts.items():
        rows = run.problem.train.rows_of([label])
        order = np.random.default_rng([run.cfg.problem.seed, 0, label]).permutation(rows)
        values = np.asarray(run.problem.train.values[order[:count]], np.float32)
        novel = label not in split.base
        predictor.add(split.names[label], torch.from_numpy(values), novel=novel)
    return predictor


def choose_prior(predictor: Predictor, chosen: float | None, given: float | None) -> float | None:
    """The share of the novel classes in the prior, and a line on it.

    With a single novel class every image would be of it with probability mu, whatever it shows: the
    run's mu, chosen for many, is left out for a few.
    """
    novel, base = sum(predictor.novel), len(predictor.novel) - sum(predictor.novel)
    mu = given if given is not None else chosen if novel >= FEW else None
    if not base or not novel:
        mu = None
    words = "as the learner has them" if mu is None else f"with a prior of {mu:g} for the novel"
    print(f"{base} base and {novel} novel classes; probabilities {words}.")
    return mu


class Reader:
    """Images and features as the run's learner wants them; the trunk is opened when needed."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.trunk: tuple[Network, View, bool] | None = None

    def read(self, path: str) -> tuple[Tensor, list[str]]:
        """Features (n, d) of an image, a folder of images or a .npy, and the names of its rows."""
        if Path(path).suffix == ".npy":
            values = np.atleast_2d(np.array(map_array(Path(path)), np.float32))
            names = [f"{path}, row {row}" for row in range(len(values))]
            rows = torch.from_numpy(values)
        else:
            names = list_images(path)
            rows = self.embed(names)
        return rows / self.run.scale, names

    def embed(self, paths: Sequence[str]) -> Tensor:
        """What the run's trunk makes of images, (n, d) on the CPU."""
        self.trunk = self.trunk or open_features(self.run)
        network, view, inverted = self.trunk
        parts = []
        for first in range(0, len(paths), BATCH):
            images = torch.stack([view.centre(read_image(p)) for p in paths[first : first + BATCH]])
            if inverted:
                images = 255 - images
            parts.append(network.features(images.to(dist.device())).float().cpu())
        return torch.cat(parts)


def open_features(run: Run) -> tuple[Network, View, bool]:
    """The trunk that made the run's features, and its view of an image, by their classes.json.

    Last: whether it saw images inverted, as it sees Omniglot's, whose ink is bright.
    """
    path = Path(run.problem.train.source).parent / "classes.json"
    trunk = files.read_json(path).get("trunk", {})
    if not trunk:
        raise ValueError(
            f"the features of run={run.cfg.output_dir} come without their trunk, as there is no "
            f"{path} that names it: give features in a .npy instead of images."
        )
    options = trunk["options"] | ({"weights": trunk["folder"]} if trunk["folder"] else {})
    network, _ = open_trunk(Trunk(**options), len(run.problem.split.names))
    inverted = trunk.get("source") == "omniglot"
    return network.to(dist.device()).eval(), View(**trunk["view"]), inverted


def list_images(path: str) -> list[str]:
    """The image itself, or those anywhere in a folder; ValueError where there is none."""
    place = Path(path).resolve()
    if not place.exists():
        raise ValueError(f"{path} does not exist: give an image or a folder of images.")
    if place.is_file():
        return [path]
    found = next(find_images(place.parent, [place.name]))[1]
    if not found:
        raise ValueError(f"{path} holds no images: give another folder.")
    return found


def report(predictor: Predictor, rows: Tensor, names: Sequence[str], options: Options) -> None:
    """Print and write the likeliest classes of the rows; draw them where they are images."""
    _, probabilities = predictor.predict(rows)
    values, labels = probabilities.topk(min(SHOWN, probabilities.shape[1]))
    tops = [
        [(predictor.names[k], p) for k, p in zip(*pair, strict=True)]
        for pair in zip(labels.tolist(), values.tolist(), strict=True)
    ]
    for name, top in zip(names, tops, strict=True):
        print(f"{name}: {', '.join(f'{label} {100 * p:.1f} %' for label, p in top)}")
    out = Path(options.out)
    found = [
        {"name": name, "top": [{"class": label, "probability": round(p, 6)} for label, p in top]}
        for name, top in zip(names, tops, strict=True)
    ]
    content = {"run": options.run, "mu": predictor.mu, "predictions": found}
    files.write_text(out, json.dumps(content, indent=1) + "\n")
    print(out)
    if options.images and options.drawn:
        best = [top[0] for top in tops[: options.drawn]]
        draw.save_png(draw_images(names[: options.drawn], best), out.with_suffix(".png"))
        print(out.with_suffix(".png"))


if __name__ == "__main__":
    run_command(main)
