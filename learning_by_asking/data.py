"""The world of a run: images to ask about, questions to begin with, questions of the test.

A split's name says what is read: `train`, `val`; with A or B behind CoGenT's; with `humans_` before
people's questions about the same images. Files are `<split>_questions` (.h5 of the public code, or
a folder of program_execution's prepare.py) and `<split>_features` (.h5 or .npy), beside vocab.json.
Scenes are read for the oracle alone, which `scenes_of` is for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from common.clevr import builtin, scene_graph, vocabulary
from common.clevr.accuracy import TYPES
from common.clevr.arrays import encode, question_files
from common.clevr.arrays.features import Features
from common.clevr.arrays.grid import channels
from common.clevr.dataset import Questions
from common.clevr.scene_graph import SceneGraph
from common.clevr.vocabulary import Vocabulary
from common.config import require_choice
from learning_by_asking.asking.export import HUMANS
from learning_by_asking.asking.sources import generate_passive
from learning_by_asking.config import BuiltIn, Config, Data
from learning_by_asking.language.sentences import add_words
from learning_by_asking.oracle.oracles import Symbolic


@dataclass(frozen=True)
class World:
    """What an agent may see. Questions have the features of their images."""

    init: Questions  # to begin with, D_init
    pool: Questions  # the data set's other questions about `images`: for passive sources
    images: np.ndarray  # (N,) rows of the features: those that are asked about, D_train
    tests: dict[str, Questions]  # by name of the split, the first is the main one
    words: Vocabulary
    finetune: Questions | None = None  # what offline answerers go on to learn from

    @property
    def feature_size(self) -> tuple[int, int, int]:
        """Channels, height and width of a map."""
        assert self.init.features is not None
        C, H, W = self.init.features.shape[1:]
        return C, H, W

    @property
    def shows_images(self) -> bool:
        """Whether the maps are images, uint8."""
        assert self.init.features is not None
        return self.init.features.dtype == np.uint8


def build(cfg: Data, seed: int, *, text: bool = False) -> World:
    """The world; ValueError names the file or the option at fault.

    seed: of what is drawn. text: the vocabulary has all words of sentences.
    """
    words = add_words(find_vocabulary(cfg)) if text else find_vocabulary(cfg)
    train = read_split(cfg, cfg.train, words)
    if train.rows.programs is None or train.rows.answers is None:
        raise ValueError(f"the split {cfg.train!r} has no programs or no answers: name another.")
    assert train.features is not None
    images = np.unique(train.rows.image_idxs)
    images = images[: cfg.images or None]
    known = np.flatnonzero(np.isin(train.rows.image_idxs, images))
    if cfg.init >= len(known):
        some = f" about the first {cfg.images} images" if cfg.images else ""
        more = " or raise data.images" if cfg.images else ""
        raise ValueError(
            f"data.init={cfg.init}, but the split {cfg.train!r} has {len(known)} questions{some}: "
            f"lower data.init{more}."
        )
    order = np.random.default_rng((seed, 11)).permutation(known)
    init, rest = train.subset(np.sort(order[: cfg.init])), train.subset(np.sort(order[cfg.init :]))
    if cfg.init_images == "others":
        images = np.setdiff1d(images, init.rows.image_idxs)
        rest = rest.subset(np.flatnonzero(np.isin(rest.rows.image_idxs, images)))
    if not len(images) or not len(rest):
        raise ValueError(
            f"data.init={cfg.init} with data.init_images={cfg.init_images} leaves no image to ask "
            "about: lower it, or give data.init_images=all."
        )
    tests = {name: read_split(cfg, name, words) for name in (cfg.val, *cfg.also)}
    finetune = read_split(cfg, cfg.finetune, words) if cfg.finetune else None
    for name, test in (tests | ({cfg.finetune: finetune} if finetune else {})).items():
        if test.rows.answers is None:
            raise ValueError(
                f"the split {name!r} has no answers: name one of which they are known."
            )
        if test.rows.programs is None and not text:
            raise ValueError(f"the split {name!r} has no programs: give question_form=text.")
        if not len(test):
            raise ValueError(f"the split {name!r} has no question: ask about more types or images.")
        assert test.features is not None
        if test.features.shape[1:] != train.features.shape[1:]:
            raise ValueError(
                f"the maps of {name!r} have the shape {test.features.shape[1:]}, those of "
                f"{cfg.train!r} {train.features.shape[1:]}: extract both in one way."
            )
    return World(init, rest, images, tests, words, finetune)


def read_split(cfg: Data, name: str, words: Vocabulary) -> Questions:
    """The questions of a split with the features of their images."""
    if cfg.name != "builtin":
        rows, features = read_files(Path(cfg.root), name, words)
        limit = cfg.val_questions if name not in (cfg.train, cfg.finetune) else 0
        rows = rows.select(np.arange(min(limit, len(rows)))) if limit else rows
        return Questions(name, rows, words, features)
    made = build_builtin(cfg.builtin, name)
    rows = encode.encode(made.questions, words)
    left_out = mentions(rows, cfg.builtin.hidden, words)
    learned = name in (cfg.train, cfg.finetune)
    if not learned:
        assert rows.types is not None
        for each in cfg.builtin.untested:
            require_choice("data.builtin.untested", each, TYPES)
        untested = [TYPES.index(each) for each in cfg.builtin.untested]
        left_out |= np.isin(rows.types, untested)
    places = np.flatnonzero(~left_out)
    rows = rows.select(places if learned else places[: cfg.val_questions or None])
    return Questions(name, rows, words, Features(hide(made.features, cfg.builtin)))


def mentions(rows: encode.QuestionArrays, attributes: list[str], words: Vocabulary) -> np.ndarray:
    """Which questions describe an object by one of the attributes, bool (N,)."""
    assert rows.programs is not None
    heads = tuple(f"filter_{attribute}[" for attribute in attributes)
    tokens = [number for number, name in enumerate(words.tokens) if name.startswith(heads)]
    return np.asarray(np.isin(rows.programs, tokens).any(1))


def hide(features: np.ndarray, cfg: BuiltIn) -> np.ndarray:
    """The maps without the channels of the attributes that are not shown."""
    if not cfg.hidden:
        return features
    world = options_of(cfg, "").world(cfg.height, cfg.width, rendered=False)
    names = [name.partition("=")[0] for name in channels(world)]
    shown = features.copy()
    shown[:, [i for i, name in enumerate(names) if name in cfg.hidden]] = 0
    return shown


def scenes_of(cfg: Data, name: str) -> Sequence[SceneGraph]:
    """The scene graphs of a split's images, in the order of the features: for the oracle."""
    if cfg.name == "builtin":
        return build_builtin(cfg.builtin, name).scenes
    if not cfg.scenes:
        raise ValueError("the oracle needs data.scenes=FILE with {split} in its name.")
    graphs = scene_graph.read_scenes(cfg.scenes.replace("{split}", name.removeprefix(HUMANS)))
    graphs.sort(key=lambda graph: graph.image_index)
    if [graph.image_index for graph in graphs] != list(range(len(graphs))):
        raise ValueError(f"data.scenes={cfg.scenes}: its images are not numbered 0, 1, 2 ...")
    return graphs


def scenes_for(cfg: Data, world: World) -> Sequence[SceneGraph]:
    """`scenes_of` the images that are asked about; ValueError if a known answer is not theirs."""
    scenes, rows = scenes_of(cfg, cfg.train), world.init.rows
    assert rows.programs is not None
    assert rows.answers is not None
    if len(scenes) <= rows.image_idxs.max():
        return scenes  # open_ledger says how many are missing
    replies = Symbolic(scenes, world.words).ask(rows.image_idxs, rows.programs)
    wrong = np.flatnonzero(np.array([reply.answer for reply in replies]) != rows.answers)
    if len(wrong):
        raise ValueError(
            f"the scenes answer {len(wrong)} of {len(rows)} questions of {cfg.train!r} otherwise "
            f"than it says, such as question {rows.orig_idxs[wrong[0]]}: data.scenes={cfg.scenes} "
            "must name the scenes of that split's images."
        )
    return scenes


def generate_questions(cfg: Config, world: World) -> encode.QuestionArrays:
    """Fresh questions of the template generator about the images, for source=generator_passive."""
    if cfg.data.builtin.hidden:
        raise ValueError(
            "source=generator_passive describes objects by what data.builtin.hidden hides: give "
            "another source, or hide nothing."
        )
    scenes = scenes_of(cfg.data, cfg.data.train)
    own = cfg.data.builtin
    rows = generate_passive(
        [scenes[image] for image in world.images],
        world.words,
        cfg.budget,
        options=options_of(own, "") if cfg.data.name == "builtin" else None,
        profile=own.profile if cfg.data.name == "builtin" else "full",
        seed=cfg.seed,
    )
    return replace(rows, image_idxs=world.images[rows.image_idxs])


def find_vocabulary(cfg: Data) -> Vocabulary:
    """The vocabulary of the training split; where people's questions are read, theirs."""
    people = [name for name in (cfg.val, *cfg.also, cfg.finetune) if name.startswith(HUMANS)]
    if cfg.name != "builtin":
        if not cfg.root:
            raise ValueError("data=clevr needs data.root=<folder with vocab.json>.")
        return load_vocabulary(Path(cfg.root), people[0] if people else cfg.train)
    words = vocabulary.build(build_builtin(cfg.builtin, cfg.train).questions)
    for name in people:
        words = vocabulary.expand(words, build_builtin(cfg.builtin, name).questions)
    return words


def load_vocabulary(root: Path, name: str) -> Vocabulary:
    """What the questions of a split of prepared files are encoded with."""
    file = root / f"{HUMANS if name.startswith(HUMANS) else ''}vocab.json"
    if not file.is_file():
        raise ValueError(
            f"{file} does not exist (data.root): program_execution/prepare.py makes it."
        )
    return Vocabulary.load(file)


def read_files(root: Path, name: str, words: Vocabulary) -> tuple[encode.QuestionArrays, Features]:
    """A split of prepared files; `words` has more than its vocabulary at the end, or the same."""
    base = name.removeprefix(HUMANS)
    places = {
        "questions": [root / f"{name}_questions", root / f"{name}_questions.h5"],
        "features": [root / f"{base}_features.npy", root / f"{base}_features.h5"],
    }
    found = {what: [path for path in paths if path.exists()] for what, paths in places.items()}
    for what, paths in found.items():
        if not paths:
            raise ValueError(
                f"{places[what][0]} does not exist (data.root), nor {places[what][1].name}: "
                "program_execution/prepare.py makes them."
            )
    own = load_vocabulary(root, name)
    rows = question_files.open_questions(found["questions"][0], own)
    if (own.tokens, own.answers, own.words) != (
        words.tokens,
        words.answers,
        words.words[: len(own.words)],
    ):
        raise ValueError(
            f"{root}/humans_vocab.json does not extend vocab.json: make both anew with "
            "program_execution/prepare.py."
        )
    features = Features(found["features"][0])
    outside = np.flatnonzero((rows.image_idxs < 0) | (rows.image_idxs >= len(features)))
    if len(outside):
        raise ValueError(
            f"question {rows.orig_idxs[outside[0]]} of {name!r} is about image "
            f"{rows.image_idxs[outside[0]]}, but {found['features'][0]} has {len(features)} images."
        )
    return rows, features


def build_ahead(cfg: Data) -> None:
    """Make the built-in questions that a run will read, so that its processes find them cached."""
    if cfg.name == "builtin":
        for split in (cfg.train, cfg.val, *cfg.also):
            build_builtin(cfg.builtin, split)


def options_of(cfg: BuiltIn, combos: str) -> builtin.Options:
    """What may be in the built-in scenes, and what is asked about them."""
    return builtin.Options(
        objects=(cfg.objects[0], cfg.objects[1]),
        colors=tuple(cfg.colors),
        shapes=tuple(cfg.shapes),
        materials=tuple(cfg.materials),
        sizes=tuple(cfg.sizes),
        combos=combos,
        attributes=tuple(cfg.attributes) or None,
        families=tuple(cfg.families) or None,
        filters=cfg.filters,
    )


def build_builtin(cfg: BuiltIn, name: str) -> builtin.BuiltIn:
    """The built-in questions of a split, whose name says which."""
    base = name.removeprefix(HUMANS)
    kind = next((kind for kind in ("train", "val") if base.startswith(kind)), "")
    combos = base.removeprefix(kind)
    if not kind or combos not in ("", "A", "B"):
        raise ValueError(
            f"the built-in data have no split {name!r}: choose train or val, with A or B behind "
            "for CoGenT's colours, with humans_ before for other words."
        )
    return _build_once(
        split=kind,
        images=cfg.train_images if kind == "train" else cfg.val_images,
        per_image=cfg.per_image,
        seed=cfg.seed,
        profile=cfg.profile,
        paraphrase=base != name,
        options=options_of(cfg, combos),
        features=builtin.FeatureOptions(
            kind=cfg.features, grid=cfg.grid, height=cfg.height, width=cfg.width
        ),
    )


@cache
def _build_once(**settings: Any) -> builtin.BuiltIn:
    """The built-in questions with these settings, made once in a process."""
    return builtin.build(**settings)
