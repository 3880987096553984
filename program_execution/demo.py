"""Answer one question about one image, and draw its program and where each module looks.

    python demo.py run=outputs/demo/TIME/programs/ee index=3        # a validation question
    python demo.py run=RUN index=3 question="How many red cubes are there?"
    python demo.py run=RUN image=FILE.png question="..."            # a run on CLEVR's features
    python demo.py init=[program_generator_18k.pt,execution_engine_18k.pt] image=FILE.png
        question="Does the small sphere have the same color as the cube left of the gray cube?"

`run` is the folder of one stage; weights of the public code go by `init`. Writes program.png, or
what out= names: the maps are those of figures/module_maps.py. Features of an image file come from
torchvision's ResNet-101, whose weights are downloaded, or weights=FILE.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from common.clevr.arrays import encode
from common.clevr.arrays.extract import Extractor, read_resized
from common.clevr.arrays.features import Features
from common.clevr.dataset import Questions
from common.clevr.vocabulary import Vocabulary
from common.config import read_options, require_range, to_dataclass
from common.config import run as run_command
from common.images import read_image
from program_execution import data
from program_execution.config import Config, Evaluate
from program_execution.figures import draw, explain
from program_execution.model import Network
from program_execution.stages import build
from program_execution.weights import formats
from program_execution.weights.initialise import weights_file


@dataclass
class Options:
    """Words of the command line."""

    run: str = ""  # folder of a finished stage
    init: list[str] = field(default_factory=list)  # or files of the public code, or of convert.py
    index: int = 0  # number of a question of the run's validation split
    split: str = ""  # another split of the run's data
    question: str = ""  # to ask about that question's image, or about `image`
    image: str = ""  # an image file
    weights: str = "IMAGENET1K_V1"  # of the ResNet-101 that sees it: a name, a file, or none
    beam: int = 1  # width of the search for a program; 1: greedy
    grammar: bool = False  # write only programs that can run
    out: str = "program.png"

    def __post_init__(self) -> None:
        require_range("index", self.index, 0)
        require_range("beam", self.beam, 1, 64)
        if bool(self.run) == bool(self.init):
            raise ValueError("give run=FOLDER of a run, or init=[FILE,FILE] of the public code.")
        if (self.image or self.init) and not (self.image and self.question):
            raise ValueError("give image=FILE and question=TEXT with it.")


def answer(options: Options) -> draw.Drawing:
    """Answer, print and draw one question; ValueError where the options do not fit together."""
    dataset, network, image = load_released(options) if options.init else load_run(options)
    chosen = Evaluate(beam=options.beam, grammar=options.grammar)
    place = 0 if options.question else options.index
    if place >= len(dataset):
        raise ValueError(
            f"index={options.index}: the split {dataset.split!r} has {len(dataset)} questions."
        )
    network.eval()
    drawing = explain.explain_question(network, dataset, place, chosen, image=image)
    print(options.question or drawing.question)
    if drawing.tokens:
        print(draw.expression(drawing.tokens, drawing.children))
        if drawing.misread:
            print(f"(the true program is {drawing.true_program})")
    truth = "" if drawing.truth is None else f" (the answer is {drawing.truth})"
    print(f"→ {drawing.answer or 'no engine, no answer'}{truth}")
    if options.question:
        drawing = replace(drawing, question=options.question)
    draw.draw_programs(options.out, [drawing], title=draw.DIRECTIONS)
    print(f"drawn in {options.out}")
    return drawing


def load_run(options: Options) -> tuple[Questions, Network, Tensor | None]:
    """The question, the network of a run, and the image where one was given."""
    cfg = read_config(Path(options.run))
    words = Vocabulary.load(Path(options.run, "vocab.json"))
    dataset = data.build(cfg.data, options.split or cfg.data.val, words)
    network = build(cfg, dataset)
    if options.image:
        own, image = ask_about_file(options, words)
        return own, network, image
    if options.question:
        row = min(options.index, len(dataset) - 1)
        dataset = make_question(options.question, dataset, int(dataset.rows.image_idxs[row]))
    return dataset, network, None


def read_config(folder: Path) -> Config:
    """The configuration that Hydra left in a run's folder or the one above, to go on from there."""
    if not folder.is_dir():
        raise ValueError(f"run={folder}: there is no such folder.")
    places = [place / ".hydra" / "config.yaml" for place in (folder, folder.resolve().parent)]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ValueError(f"run={folder} has no .hydra/config.yaml: it is no folder of train.py.")
    content = OmegaConf.structured(Config)
    content.merge_with(OmegaConf.load(file))
    content.output_dir = str(folder)
    cfg: Config = to_dataclass(content)
    if cfg.stage == "all":
        if not (folder / "vocab.json").is_file():
            raise ValueError(f"run={folder} has several stages: name the folder of one, as joint.")
        cfg = replace(cfg, stage=folder.resolve().name)
    return replace(cfg, init=[str(folder)])


def load_released(options: Options) -> tuple[Questions, Network, Tensor]:
    """The question and image given, and the networks of files of the public code."""
    network, words = Network(), None
    for source in options.init:
        path = weights_file(source)
        models = formats.load(path)
        network.generator = models.generator or network.generator
        network.engine = models.engine or network.engine
        network.baseline = models.baseline or network.baseline
        own = Vocabulary.of(models.vocabulary, str(path))
        if words is not None and (own.tokens, own.words) != (words.tokens, words.words):
            raise ValueError(f"{path} has another vocabulary than {options.init[0]}.")
        words = own
    assert words is not None
    dataset, image = ask_about_file(options, words)
    return dataset, network, image


def ask_about_file(options: Options, words: Vocabulary) -> tuple[Questions, Tensor]:
    """The question about an image file, with its features, and the image."""
    extractor = Extractor(weights=None if options.weights == "none" else options.weights)
    with torch.inference_mode():
        maps = extractor(read_resized(options.image)[None]).numpy()
    rows = question_arrays(options.question, words, 0)
    return Questions("image", rows, words, Features(maps)), read_image(options.image)


def make_question(text: str, dataset: Questions, image: int) -> Questions:
    """A split of this question alone, about an image of `dataset`; its program is not known."""
    rows = question_arrays(text, dataset.words, image)
    return Questions(
        dataset.split,
        rows,
        dataset.words,
        dataset.features,
        kind=dataset.kind,
        scenes=dataset.scenes,
    )


def question_arrays(text: str, words: Vocabulary, image: int) -> encode.QuestionArrays:
    """One question as numbers; ValueError for a word that the vocabulary does not have."""
    return encode.QuestionArrays(
        questions=np.array([words.encode_question(text, unknown="error")], np.int16),
        programs=None,
        answers=None,
        image_idxs=np.array([image]),
        orig_idxs=np.zeros(1, np.int64),
    )


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    answer(read_options(Options, words, usage=__doc__, least=1))


if __name__ == "__main__":
    run_command(main)
