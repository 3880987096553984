"""The data as this paper sees it, the built-in questions and CLEVR's files alike.

A split's name says what is read. `train` and `val`; with an A or B behind, CoGenT's (`trainA`,
`valB`); with `humans_` before, people's questions about the same images. A colon cuts it: to the
families of short or of long programs, `val:long`, Sec. 4.4; to the first images or the others,
`valB:first3000` and `valB:after3000`, Sec. 4.3.

Files are `<split>_questions` (.h5 of the public code, or a folder of prepare.py) and
`<split>_features` (.h5 or .npy), beside `vocab.json`, and `humans_vocab.json` for people's words.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from common.clevr import builtin, scene_graph, vocabulary
from common.clevr.arrays import encode, question_files
from common.clevr.arrays.features import Features
from common.clevr.dataset import UNK, Questions
from common.clevr.vocabulary import Vocabulary
from program_execution.config import Data as DataConfig

HUMANS = "humans_"


def build(cfg: DataConfig, split: str, words: Vocabulary, *, training: bool = False) -> Questions:
    """The questions of `split`, numbered by `words`, see `vocabulary_of`.

    ValueError names the file or question at fault, and the remedy.
    """
    name, _, cut = split.partition(":")
    rows, features, scenes = (
        _builtin(cfg, name, words) if cfg.name == "builtin" else _files(cfg, name, words)
    )
    if cut:
        rows = rows.select(np.flatnonzero(_select_cut(cfg, rows, cut, words)))
    limit = cfg.questions if training else cfg.val_questions
    if limit and limit < len(rows):
        rows = rows.select(np.arange(limit))
    if not len(rows):
        raise ValueError(f"the split {split!r} has no questions: see data.short")
    kind = cfg.builtin.features if cfg.name == "builtin" else "files"
    return Questions(split, rows, words, features, kind=kind, scenes=scenes)


def vocabulary_of(cfg: DataConfig, *splits: str) -> Vocabulary:
    """The vocabulary of the first split, a training split, by which a run reads all of them.

    Where one of the splits is of CLEVR-Humans, its further words come last.
    """
    names = [split.partition(":")[0] for split in splits]
    people = [name for name in names if name.startswith(HUMANS)]
    if cfg.name != "builtin":
        file = _root(cfg) / f"{HUMANS if people else ''}vocab.json"
        if not file.is_file():
            command = "humans" if people else "clevr"
            if (file.parent / "questions").is_dir() and not people:
                raise ValueError(
                    f"{file.parent} is a download (data.root): give the folder that "
                    f"`python prepare.py clevr {file.parent} OUT` writes, OUT."
                )
            raise ValueError(f"{file} does not exist (data.root): prepare.py {command} makes it.")
        return Vocabulary.load(file)
    words = vocabulary.build(_build_builtin(cfg, names[0].removeprefix(HUMANS)).questions)
    for name in people:
        words = vocabulary.expand(words, _build_builtin(cfg, name).questions)
    return words


def label(split: str) -> str:
    """The name of a split's metrics: its own, and whether its programs are short or long."""
    name, _, cut = split.partition(":")
    return f"{name}_{cut}" if cut in ("short", "long") else name


def build_ahead(cfg: DataConfig) -> None:
    """Make the built-in questions that a run will read, so that its processes find them cached."""
    if cfg.name == "builtin":
        for split in (cfg.train, cfg.val, *cfg.also):
            _build_builtin(cfg, split.partition(":")[0])


def require_ready(
    dataset: Questions, needs: Mapping[str, str], *, like: Questions | None = None
) -> None:
    """Raise ValueError, naming the split, where a run could not go through its questions.

    needs: what they must have, of "answers", "programs" and "scenes", each with the remedy where
    it is missing. like: the split that the network learns from, whose features have the same size.
    """
    rows, features = dataset.rows, dataset.features
    parts = {"answers": rows.answers, "programs": dataset.programs, "scenes": dataset.scenes}
    for part, remedy in needs.items():
        if parts[part] is None:
            raise ValueError(f"the split {dataset.split!r} has no {part}: {remedy}.")
    assert features is not None
    counts = {str(features.path or "the features"): len(features)}
    if dataset.scenes is not None:
        counts["data.scenes"] = len(dataset.scenes)
    for source, count in counts.items():
        wrong = np.flatnonzero((rows.image_idxs < 0) | (rows.image_idxs >= count))
        if len(wrong):
            raise ValueError(
                f"question {rows.orig_idxs[wrong[0]]} of the split {dataset.split!r} is about "
                f"image {rows.image_idxs[wrong[0]]}, but {source} holds images 0 to {count - 1}: "
                "make it from all images of this split, with prepare.py."
            )
    size = features.shape[1:]
    if like is not None and like.features is not None and size != like.features.shape[1:]:
        raise ValueError(
            f"{features.path} holds maps of {_size_text(size)}, but those of the split "
            f"{like.split!r} are {_size_text(like.features.shape[1:])}: extract both in one way."
        )
    if min(size[1:]) < 2:
        raise ValueError(
            f"{features.path} holds maps of {_size_text(size)}, of which 2 x 2 pooling leaves "
            "nothing: extract larger ones."
        )


def _size_text(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def select_known(dataset: Questions, count: int, subset: str, seed: int) -> Questions:
    """The training questions whose programs are known: `count` of them, 0 for all.

    subset: the first ones, as the public code takes them; random ones, another choice for each
    seed; or `count` random ones of each question family. Raises ValueError where there are no
    programs, or no families.
    """
    if dataset.rows.programs is None:
        raise ValueError(
            f"the split {dataset.split!r} has no programs, but stage=pg learns from them: train it "
            "on another split, or fine-tune with stage=tune."
        )
    total, random = len(dataset), np.random.default_rng((seed, 4))
    if not count:
        return dataset
    if subset == "first":
        return dataset.subset(np.arange(min(count, total)))
    order = random.permutation(total)
    if subset == "random":
        return dataset.subset(np.sort(order[:count]))
    families = dataset.rows.families
    if families is None:
        raise ValueError(
            f"data.subset=per_family needs question families, and the split {dataset.split!r} has "
            "none: take data.subset=random."
        )
    chosen = [order[families[order] == family][:count] for family in np.unique(families)]
    return dataset.subset(np.sort(np.concatenate(chosen)))


def short_families(cfg: DataConfig, words: Vocabulary) -> dict[int, float]:
    """Families of short programs, Sec. 4.4, and the mean number of functions of each.

    # Unstated: which families are short; ours have fewer than `data.short` functions in the mean
    # over the training split. `data.short_families` names others.
    """
    name = cfg.train.partition(":")[0]
    rows = (_builtin if cfg.name == "builtin" else _files)(cfg, name, words)[0]
    if rows.families is None or rows.programs is None:
        raise ValueError(
            f"the split {name!r} has no question families or no programs, so its short ones are "
            "not known: give data.short_families."
        )
    lengths = (rows.programs > UNK).sum(1)
    means = {int(f): float(lengths[rows.families == f].mean()) for f in np.unique(rows.families)}
    if cfg.short_families:
        return {family: means.get(family, 0.0) for family in cfg.short_families}
    return {family: mean for family, mean in means.items() if mean < cfg.short}


def _select_cut(
    cfg: DataConfig, rows: encode.QuestionArrays, cut: str, words: Vocabulary
) -> np.ndarray:
    """Which questions a cut leaves: bool (N,)."""
    if cut.startswith(("first", "after")):
        first = rows.image_idxs < int(cut[len("first") :])
        return first if cut.startswith("first") else ~first
    if rows.families is None:
        raise ValueError(f"the questions have no families, so :{cut} does not apply to them.")
    short = np.isin(rows.families, list(cfg.short_families or short_families(cfg, words)))
    return short if cut == "short" else ~short


Source = tuple[encode.QuestionArrays, Features | None, Sequence[scene_graph.SceneGraph] | None]


def _files(cfg: DataConfig, name: str, words: Vocabulary) -> Source:
    """A split of prepared files."""
    root = _root(cfg)
    own = vocabulary_of(cfg, name)
    rows = None
    for candidate in (root / f"{name}_questions", root / f"{name}_questions.h5"):
        if candidate.exists():
            rows = question_files.open_questions(candidate, own)
            _require_same(own, words, candidate)
            break
    base = name.removeprefix(HUMANS)
    found = [root / f"{base}_features{suffix}" for suffix in (".npy", ".h5")]
    found = [path for path in found if path.exists()]
    if rows is None or not found:
        lacking = f"{name}_questions" if rows is None else f"{base}_features"
        raise ValueError(
            f"{root}/{lacking} does not exist (data.root): expected vocab.json, {name}_questions "
            f"(.h5 or a folder) and {base}_features (.h5 or .npy); prepare.py makes them. Other "
            "splits are named by data.train and data.val, or --splits of check_data.py."
        )
    scenes = None
    if cfg.scenes:
        scenes = scene_graph.read_scenes(cfg.scenes.replace("{split}", base))
        scenes.sort(key=lambda graph: graph.image_index)
        if [graph.image_index for graph in scenes] != list(range(len(scenes))):
            raise ValueError(f"data.scenes={cfg.scenes}: its images are not numbered 0, 1, 2 ...")
    return rows, Features(found[0]), scenes


def _require_same(own: Vocabulary, words: Vocabulary, where: Path) -> None:
    """Raise ValueError unless two vocabularies differ by words at the end of one alone."""
    shorter = min(len(own.words), len(words.words))
    if (own.tokens, own.answers) != (words.tokens, words.answers) or (
        own.words[:shorter] != words.words[:shorter]
    ):
        raise ValueError(
            f"{where} was encoded with another vocabulary than this run's: encode it anew with "
            "prepare.py, or start from a run with its vocab.json."
        )


def _root(cfg: DataConfig) -> Path:
    root = Path(cfg.root)
    if not root.is_dir():
        raise ValueError(
            f"{cfg.root} is not a folder: give data.root, the folder that prepare.py or the public "
            "code wrote vocab.json into."
        )
    return root


def _builtin(cfg: DataConfig, name: str, words: Vocabulary) -> Source:
    """A split of the built-in scenes."""
    made = _build_builtin(cfg, name)
    rows = encode.encode(made.questions, words)
    marked = cfg.builtin.features == "grid" and cfg.builtin.marks != 1
    features = made.features * np.float32(cfg.builtin.marks) if marked else made.features
    return rows, Features(features), made.scenes


def _build_builtin(cfg: DataConfig, name: str) -> builtin.BuiltIn:
    """The built-in questions of a split, whose name says which."""
    base = name.removeprefix(HUMANS)
    kind = next((kind for kind in ("train", "val") if base.startswith(kind)), "")
    combos = base.removeprefix(kind)
    if not kind or combos not in ("", "A", "B"):
        raise ValueError(
            f"the built-in data have no split {name!r}: choose train or val, with A or B behind "
            "for CoGenT's colours, with humans_ before for other words."
        )
    world = cfg.builtin
    return _build_once(
        split=kind,
        images=world.train_images if kind == "train" else world.val_images,
        per_image=world.per_image,
        seed=world.seed,
        profile=world.profile,
        paraphrase=base != name,
        options=builtin.Options(
            objects=(world.objects[0], world.objects[1]),
            colors=tuple(world.colors),
            shapes=tuple(world.shapes),
            materials=tuple(world.materials),
            sizes=tuple(world.sizes),
            combos=combos,
            attributes=tuple(world.attributes) or None,
            families=tuple(world.families) or None,
            filters=world.filters,
        ),
        features=builtin.FeatureOptions(
            kind=world.features, grid=world.grid, height=world.height, width=world.width
        ),
    )


@cache
def _build_once(**settings: Any) -> builtin.BuiltIn:
    """The built-in questions with these settings, made once in a process."""
    return builtin.build(**settings)
