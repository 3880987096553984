"""What comes before a student: its teacher is trained, and labels images, Sec. 3.

Settings that ask for the same teacher share it, and what it has found in the images: both lie in
folders that follow from their settings and the seed. Labels that differ in thresholds alone are
chosen from the same findings, without the network.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common import config, dist, draw, files, spawn
from common.coco.fields import read_annotations
from common.errors import UserError
from common.run import versus
from common.tables.runs import read_result
from data_distillation import data
from data_distillation.checks import require_images, require_same_run, require_weights
from data_distillation.config import MAY_CHANGE, OF_STUDENTS, Config
from data_distillation.distill import mirrored_joints
from data_distillation.figures.labels import draw_labels
from data_distillation.labels.choose import choose
from data_distillation.labels.counts import count_labelled
from data_distillation.labels.records import annotate, describe, read_records
from data_distillation.labels.shards import parse_shard, read_info, require_same
from data_distillation.labels.transforms import without_flips
from data_distillation.weights.teacher import Teacher, load_teacher

TEACHERS, LABELS = Path("outputs/teachers"), Path("outputs/labels")
Run = Callable[[Config], object]


def prepare_all(cfg: DictConfig, run: Run) -> DictConfig:
    """`cfg` whose settings of `versus` all have their labels and weights as files."""
    settings = {}
    for name, variant in versus.variants(cfg).items():
        # Teachers have all cores: they are trained one by one.
        found = prepare(merge(variant, {"threads": cfg.threads}), run)
        settings[str(name)] = [*cfg.versus[name], *words(found)]
    return merge(cfg, {"versus": settings})


def with_files(cfg: DictConfig, run: Run) -> DictConfig:
    """`cfg` with its labels and weights as files."""
    return merge(cfg, {}, words(prepare(cfg, run)))


def prepare(cfg: DictConfig, run: Run) -> list[tuple[str, str]]:
    """Train the teacher that `cfg` asks for and let it label, where that has not been done.

    Returns the overrides that put the folder and the file in the place of `teacher`.
    """
    settings: Config = config.to_dataclass(cfg)
    labels, weights = settings.data.automatic == "teacher", settings.init == "teacher"
    if not labels and not weights:
        return []
    teacher = find_teacher(cfg)
    own: Config = config.to_dataclass(teacher)
    folder = Path(own.output_dir)
    manual = data.build_manual(settings.data, settings.task)
    found = [("teacher", "[]"), ("rounds", "1")]
    if weights:
        found.append(("init", str(folder)))
    if labels:
        found.append(("data.automatic", str(label_file(folder, settings, manual))))
    # What the student lacks shows before a teacher has been trained.
    require_same_run(config.to_dataclass(merge(cfg, {}, words(found))))
    require_weights(settings, manual)
    if not (labels and Path(found[-1][1]).is_file()):
        require_images(settings, own, manual)
    train_teacher(teacher, run)
    if labels:
        label(folder, settings, manual)
    return found


def find_teacher(cfg: DictConfig) -> DictConfig:
    """The settings of the teacher: those of `teacher`, or in later rounds the student of before."""
    changes: dict[str, Any] = {"versus": {}, "only_evaluate": False}
    if cfg.rounds > 1:
        changes |= {"rounds": cfg.rounds - 1, "data": {"automatic": "teacher"}}
        teacher = merge(cfg, changes)
    else:
        changes |= {"data": {"automatic": ""}, "teacher": []}
        # `init=` is the empty text, as on the command line.
        teacher = merge(cfg, changes, [w + "''" if w.endswith("=") else w for w in cfg.teacher])
    settings: Config = config.to_dataclass(teacher)
    if settings.init == "teacher" and cfg.rounds == 1:
        raise ValueError(
            "init=teacher: say in `teacher` what it starts from itself, as in "
            "\"teacher=['steps=130000','init=imagenet']\"."
        )
    if settings.task != cfg.task:
        raise ValueError(
            f"the teacher's task={settings.task} is not the student's, {cfg.task}: leave task= out "
            "of `teacher`."
        )
    known = identity(settings) | {"contents": contents_of(settings)}
    place = TEACHERS.absolute() / f"{digest(known)}-seed{settings.seed}"
    return merge(teacher, {"output_dir": str(place)})


def contents_of(cfg: Config) -> str:
    """What the annotations hold that a teacher learns from.

    Empty for the built-in images, which follow from their options, and where there is no data set:
    whoever reads it then says so.
    """
    if cfg.data.name == "builtin" or not Path(cfg.data.root).is_dir():
        return ""
    _, files = data.locate(cfg.data, cfg.data.train, cfg.task)
    return data.hash_contents(files)


def require_single() -> None:
    """Raise UserError under torchrun and Slurm: they start one training, not another before it."""
    if spawn.place(os.environ) is not None:
        raise UserError(
            "torchrun and Slurm start one run, but a teacher comes before it here: give "
            "processes=N in their place, or data.automatic=FILE of annotate.py."
        )


def train_teacher(cfg: DictConfig, run: Run) -> None:
    """Train a teacher to its end, unless it has been; others that want it wait meanwhile."""
    settings: Config = config.to_dataclass(cfg)
    folder = Path(settings.output_dir)
    with waiting(folder):
        found = read_result(folder)
        if found is not None and found["steps"] == settings.steps:
            return
        require_single()
        print(f"The teacher is trained first, in {files.relative(folder)}.", flush=True)
        record = folder / ".hydra" / "config.yaml"
        record.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, record)  # as Hydra leaves it for a single run
        settings = config.to_dataclass(with_files(cfg, run))
        dist.launch(run, settings, settings.processes)


def identity(cfg: Config) -> dict[str, Any]:
    """What tells one training from another: its settings, without what leaves the weights alone."""
    values = flatten(asdict(cfg))
    unread = (*MAY_CHANGE, *(() if cfg.data.automatic else OF_STUDENTS))
    kept = {k: v for k, v in values.items() if not k.startswith((*unread, "output_dir", "versus"))}
    return kept | {"steps": cfg.steps, "data.root": cfg.data.root}


def flatten(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """{"data": {"flip": 1}} -> {"data.flip": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = flatten(value, f"{before}{name}.") if isinstance(value, dict) else None
        flat |= inner if inner is not None else {f"{before}{name}": value}
    return flat


def digest(values: dict[str, Any]) -> str:
    """A short name for some settings."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


@dataclass
class Labelling:
    """What the processes need that label images together."""

    teacher: Path
    settings: Config
    folder: Path  # of the records


def label_file(teacher: Path, cfg: Config, manual: data.Labelled) -> Path:
    """Where the labels lie that `cfg` asks for; the folder is that of what the teacher found."""
    what: dict[str, Any] = {
        "teacher": teacher.name,  # wherever its folder is
        "images": cfg.data.unlabelled,
        "root": cfg.data.root,
        "list": data.find_unlabelled(cfg.data, cfg.task).digest(),
    }
    what |= {"amp": cfg.amp, "transforms": asdict(cfg.transforms), "merge": asdict(cfg.merge)}
    what["builtin"] = asdict(cfg.data.builtin) if cfg.data.name == "builtin" else None
    chosen = digest(asdict(cfg.labels) | {"labelled": manual.digest})
    return LABELS.absolute() / f"{teacher.name}-{digest(what)}" / f"{chosen}.json"


def label(teacher: Path, cfg: Config, manual: data.Labelled) -> None:
    """Write `label_file`; the images are looked at where the teacher has not done so yet."""
    file = label_file(teacher, cfg, manual)
    with waiting(file.parent):
        if file.is_file():
            return
        transforms, _ = without_flips(cfg.transforms, cfg.task, mirrored_joints(manual.joints))
        job = Labelling(teacher, replace(cfg, transforms=transforms), file.parent / "records")
        if not is_labelled(job):
            require_single()
            dist.launch(label_share, job, cfg.processes)
        write_labels(job, manual, file)


def is_labelled(job: Labelling) -> bool:
    """Whether the teacher has looked at all images, by however many processes."""
    try:
        info = read_info(job.folder)
    except ValueError:  # some are missing, or all
        return False
    cfg, shard = job.settings, parse_shard(info["shard"])
    photos = data.find_unlabelled(cfg.data, cfg.task)
    now = describe(read_teacher(job), photos, cfg.transforms, cfg.merge, shard, amp=cfg.amp)
    require_same(job.folder, now)
    return True


def label_share(job: Labelling) -> None:
    """Write what the teacher finds in this process's share of the images."""
    cfg = job.settings
    annotate(
        read_teacher(job),
        data.find_unlabelled(cfg.data, cfg.task),
        cfg.transforms,
        cfg.merge,
        job.folder,
        shard=(dist.rank(), dist.world_size()),
        device=dist.device(),
        amp=cfg.amp,
    )


def read_teacher(job: Labelling) -> Teacher:
    """The teacher of a run of ours."""
    _, labelled = data.locate(job.settings.data, job.settings.data.train, job.settings.task)
    return load_teacher(str(job.teacher), read_annotations(labelled))


def write_labels(job: Labelling, manual: data.Labelled, file: Path) -> None:
    """Choose the labels from what was found, and print how."""
    cfg = job.settings
    records = read_records(job.folder)
    records.shift_joints(cfg.data.joint_offset)
    labelled = count_labelled(manual.whole_truth(), manual.source.where, manual.digest)
    content, report = choose(records, labelled, cfg.labels, cfg.task)
    print(report)
    picture, drawn = file.with_suffix(".png"), ""
    if content["annotations"]:
        draw.save_png(draw_labels(content, 16), picture)
        drawn = f", drawn in {picture.name}"
    files.write_text(file, json.dumps(content))
    print(f"labels: {files.relative(file)}{drawn}")


def words(found: Sequence[tuple[str, str]]) -> list[str]:
    """Overrides as on a command line."""
    return [f"{name}={value}" for name, value in found]


def merge(cfg: DictConfig, changes: dict[str, Any], overrides: Sequence[str] = ()) -> DictConfig:
    """`cfg` with changes, then with overrides."""
    merged = OmegaConf.merge(cfg, changes, OmegaConf.from_dotlist(list(overrides)))
    assert isinstance(merged, DictConfig)
    return merged


@contextmanager
def waiting(folder: Path) -> Iterator[None]:
    """Alone among the processes that want what is made in this folder: the others wait for it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for {files.relative(folder)}.", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
