"""How consistent are two people who annotate the same images? The study of Sec. 6.

    python study.py                                     # two simulated annotators, seconds
    python study.py a=FILE.json b=FILE.json out=DIR     # two annotations of the same images
    python study.py a=... b=... pred=FILE.json name=Cityscapes    # and a machine, against b
    python study.py scenes=200 seed=1 samples=2000
    python study.py world=shapes                        # simulated on plain shapes, not on solids

a, b and pred are COCO panoptic files, their PNGs in the folder of the same name or in a_folder=,
b_folder=, pred_folder=. One annotation acts as the prediction, the other as the truth; which one
makes no difference but for void and crowds, which only the truth's rules know, so both ways are
printed. Prints Tables 1, 2 and 6 beside the paper's figures, PQ by IoU threshold and by error
weight; writes those as study.md, everything as study.json, the classes as classes.csv, and
charts: classes.png, cdf.png, thresholds.png, weights.png, pairs.png.

All figures are percent. † marks what was recalled from the paper, not compared with it.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from common.config import read_options, require_choice, require_range
from common.config import run as run_command
from panoptic.annotators import simulate
from panoptic.annotators.analysis import SIZES, bootstrap, by_size, ious_of_matches, size_edges
from panoptic.annotators.simulate import Annotated
from panoptic.config import Scenes
from panoptic.evaluate_files import open_pair
from panoptic.figures import charts
from panoptic.figures.consistency import tables
from panoptic.figures.report import class_csv, content, without_nan
from panoptic.files.categories import Category, kinds
from panoptic.files.coco import write_json
from panoptic.files.pixels import write_bytes
from panoptic.inputs.scenes import PanopticScenes
from panoptic.metric.matching import RULES, Matching
from panoptic.quality import PanopticQuality

THRESHOLDS = (0.25, 0.5, 0.75)
ALPHAS = {"1": 1.0, "1/2": 0.5, "1/4": 0.25, "1/8": 0.125}
SHOWN = 4  # images of pairs.png
WORLD = Scenes(  # of the simulated study: more and smaller things than a small network could learn
    height=144,
    width=192,
    objects=[8, 14],
    together=6,
    clutter=[0, 0],
    radius=[0.16, 0.9],
    spread=2.0,
    min_visible=10,
)


@dataclass
class Options:
    """Words of the command line."""

    a: str = ""  # panoptic JSON of the first annotator; empty: simulated
    b: str = ""  # of the second
    pred: str = ""  # of a machine
    a_folder: str = ""  # of the PNGs; empty: X for X.json
    b_folder: str = ""
    pred_folder: str = ""
    out: str = "outputs/study"
    name: str = ""  # of the data in the tables
    world: str = "solids"  # simulated images: the built-in images | shapes: plain ones
    scenes: int = 60  # simulated images
    seed: int = 0  # of the scenes, the annotators and the bootstrap
    samples: int = 1000  # of the bootstrap
    rules: str = "official"  # official | paper: see evaluate_files.py

    def __post_init__(self) -> None:
        require_choice("rules", self.rules, RULES)
        require_choice("world", self.world, ("solids", "shapes"))
        for name in ("scenes", "samples"):
            require_range(name, getattr(self, name), 1)
        require_range("seed", self.seed, 0)
        if bool(self.a) != bool(self.b):
            raise ValueError("Two annotators are needed: give both a=FILE.json and b=FILE.json.")
        if self.pred and not self.a:
            raise ValueError(f"pred={self.pred} needs the annotations: give a= and b= as well.")


class Pair(NamedTuple):
    """One image as both annotators drew it, and as the machine did if there is one."""

    image: int | str
    a: Annotated
    b: Annotated
    machine: Annotated | None = None


@dataclass
class Study:
    """What was measured of all images: a as the prediction, b as the truth."""

    name: str
    categories: dict[int, Category]
    metrics: dict[float, PanopticQuality]  # by IoU threshold, 0 included
    swapped: PanopticQuality  # b as the prediction, a as the truth
    machine: PanopticQuality | None  # against b
    shown: list[tuple[Pair, Matching]] = field(default_factory=list)

    @property
    def half(self) -> PanopticQuality:
        """At the paper's threshold."""
        return self.metrics[0.5]


def open_files(options: Options) -> tuple[dict[int, Category], int, Iterator[Pair]]:
    """Categories, number of images, and the images of the files given."""
    folders = options.b_folder or None, options.a_folder or None
    b, a = open_pair(options.b, options.a, *folders)
    sources = [a, b]
    if options.pred:
        folders = options.b_folder or None, options.pred_folder or None
        sources.append(open_pair(options.b, options.pred, *folders)[1])
    numbers = [image["id"] for image in b.images]
    read = (Pair(n, *((s.ids(n), s.segments(n)) for s in sources)) for n in numbers)
    return b.categories, len(numbers), read


def make_pairs(options: Options) -> tuple[dict[int, Category], int, Iterator[Pair]]:
    """The same of the built-in images or of plain shapes, as simulated annotators draw them."""
    if options.world == "shapes":
        categories = simulate.CATEGORIES
        truths = simulate.scenes(options.scenes, seed=options.seed)
    else:
        world = replace(WORLD, val_images=options.scenes, seed=options.seed)
        scenes = PanopticScenes(world, training=False)
        categories = scenes.categories
        images = (scenes[i] for i in range(options.scenes))
        truths = ((ids.numpy(), segments) for _, ids, segments in images)
    drawn = simulate.pairs(truths, seed=options.seed, categories=kinds(categories))
    return categories, options.scenes, (Pair(i, a, b) for i, (a, b) in enumerate(drawn))


def measure(options: Options) -> Study:
    """Compare the annotators image by image, with a progress bar."""
    categories, count, images = open_files(options) if options.a else make_pairs(options)
    things = kinds(categories)

    def metric(threshold: float = 0.5) -> PanopticQuality:
        return PanopticQuality(
            things, threshold=threshold, keep_images=True, **RULES[options.rules]
        )

    name = options.name or (Path(options.b).stem if options.b else "simulated")
    metrics = {threshold: metric(threshold) for threshold in (0.0, *THRESHOLDS)}
    study = Study(name, categories, metrics, metric(), metric() if options.pred else None)
    for pair in tqdm(images, "comparing", count, unit="image", leave=False, disable=None):
        for threshold, one in study.metrics.items():
            matching = one.update(*pair.a, *pair.b, image=pair.image)
            if threshold == 0.5 and len(study.shown) < SHOWN:
                study.shown.append((pair, matching))
        study.swapped.update(*pair.b, *pair.a, image=pair.image)
        if study.machine is not None and pair.machine is not None:
            study.machine.update(*pair.machine, *pair.b, image=pair.image)
    return study


def sizes(study: Study) -> dict[str, dict[str, Any]]:
    """Table 2, for all segments and for things alone: edges, and {"S": (PQ, SQ, RQ), ...}."""
    # Unstated: whether "objects" are things or all segments; both are given.
    found: dict[str, dict[str, Any]] = {}
    for group in ("all", "things"):
        limits = size_edges(study.half, things=group == "things")
        parts = by_size(study.half, limits)
        scores = {size: getattr(parts[size], group) for size in SIZES}
        percent = {s: tuple(100 * x for x in (g.pq, g.sq, g.rq)) for s, g in scores.items()}
        found[group] = {"edges": limits, **percent}
    return found


def intervals(metric: PanopticQuality, options: Options) -> dict[str, tuple[float, ...]]:
    """5th and 95th percentile by measure, percent."""
    # Differs: the paper draws several choices of which annotation is the truth. Without void and
    # crowds that changes nothing, so images are drawn with replacement.
    drawn = bootstrap(metric, samples=options.samples, seed=options.seed)
    return {name: tuple(100 * end for end in ends) for name, ends in drawn.items()}


def figures(study: Study, options: Options) -> dict[str, Any]:
    """All figures of the study, percent; what study.json holds."""
    ious = ious_of_matches(study.metrics[0.0])
    found: dict[str, Any] = {
        "name": study.name,
        "images": study.half.count,
        "consistency": study.half.compute().percent(),
        "swapped": study.swapped.compute().percent(),
        "intervals": intervals(study.half, options),
        "sizes": sizes(study),
        "thresholds": {str(t): study.metrics[t].compute().percent() for t in THRESHOLDS},
        "alphas": {n: study.half.compute(alpha=alpha).percent() for n, alpha in ALPHAS.items()},
        "matched": len(ious),
        "matched below 0.5": 100 * float((ious < 0.5).mean()) if len(ious) else math.nan,
        "classes": content(study.half.compute(), study.categories)["per_class"],
    }
    if study.machine is not None:
        found["machine"] = study.machine.compute().percent()
        found["machine intervals"] = intervals(study.machine, options)
    return found


def write(study: Study, found: Mapping[str, Any], folder: Path) -> None:
    """study.json, study.md, classes.csv and the charts."""
    scores = study.half.compute()
    write_json(folder / "study.json", without_nan(found))
    write_bytes(folder / "study.md", f"{tables(found)}\n".encode())
    write_bytes(folder / "classes.csv", class_csv(scores, study.categories).encode())
    charts.classes(folder / "classes.png", scores, study.categories)
    charts.cdf(folder / "cdf.png", study.metrics[0.0])
    charts.thresholds(folder / "thresholds.png", found["thresholds"])
    charts.weights(folder / "weights.png", found["alphas"])
    charts.annotations(
        folder / "pairs.png",
        [(f"{pair.image}", pair.a, pair.b, matching) for pair, matching in study.shown],
        study.categories,
    )


def run(options: Options) -> dict[str, Any]:
    """Measure, print and write; the figures."""
    study = measure(options)
    if study.half.count == 0:
        raise ValueError(f"{options.b} has no image: there is nothing to compare")
    found = figures(study, options)
    write(study, found, Path(options.out))
    print(tables(found))
    print(f"\n{study.half.count} images; everything is in {options.out}")
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Read the options from the command line."""
    run(read_options(Options, words, usage=__doc__))


if __name__ == "__main__":
    run_command(main)
