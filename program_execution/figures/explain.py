"""How an answer comes about: the functions of a question's program and where their modules look."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import dist
from common.clevr.dataset import Questions
from common.clevr.functions import SPECIAL
from common.clevr.grammar import Grammar
from common.clevr.scene_graph import SceneGraph
from common.scenes.world import color_rgb

from ..config import Config, Evaluate
from ..execution.schedule import Language, parse
from ..execution.symbolic import SymbolicEngine
from ..model import Network
from . import draw
from .module_maps import module_maps

SPREAD = 3.0  # the built-in centres lie in [-SPREAD, SPREAD]^2, in world units
CAMERA = ("right", "behind")  # the directions of a ground map's columns and, from below, rows


def write_figure(network: Network, cfg: Config, dataset: Questions) -> None:
    """Write `programs.png`: the first questions of each type, their programs and module maps."""
    if not dist.is_main() or not cfg.evaluate.pictures:
        return
    network.eval()
    places = choose_places(dataset, cfg.evaluate.pictures)
    drawings = [explain_question(network, dataset, place, cfg.evaluate) for place in places]
    if drawings:
        draw.draw_programs(Path(cfg.output_dir, "programs.png"), drawings, title=draw.DIRECTIONS)


def choose_places(dataset: Questions, count: int) -> list[int]:
    """Places of `count` questions: one of every type, then a second of every type, ...

    Each is the first of its type about an image that none of the others is about, if there is one.
    """
    images, types = dataset.rows.image_idxs, dataset.rows.types
    kinds = np.zeros(len(dataset), np.int64) if types is None else types
    left = {kind: np.flatnonzero(kinds == kind).tolist() for kind in dict.fromkeys(kinds.tolist())}
    chosen: list[int] = []
    shown: set[int] = set()
    while any(left.values()):
        for places in filter(None, left.values()):
            place = next((p for p in places if int(images[p]) not in shown), places[0])
            places.remove(place)
            chosen.append(place)
            shown.add(int(images[place]))
            if len(chosen) == count:
                return chosen
    return chosen


def explain_question(
    network: Network,
    dataset: Questions,
    place: int,
    options: Evaluate,
    *,
    image: Tensor | None = None,
) -> draw.Drawing:
    """One question of a split, as the network answers it.

    image: uint8 (3, H, W) to show; None: what there is, see `show_image`.
    """
    words = dataset.words
    batch = dataset[np.array([place])].to(dist.device())
    known = dataset.rows.answers is not None
    truth = words.decode_answer(int(batch.answers[0])) if known else None
    upside_down = False
    if image is None:
        image, upside_down = show_image(dataset, int(dataset.rows.image_idxs[place]))
    program = batch.programs
    true = None if program is None else draw.expression(*read_tree(program[0], words.tokens))
    if network.generator is not None and (program is None or options.programs == "predicted"):
        grammar = Grammar(words.tokens) if options.grammar else None
        program = network.write(batch.questions, beam=options.beam, grammar=grammar)
    features = None if batch.features is None else batch.features.to(dist.device())
    if network.baseline is not None:
        with torch.no_grad():
            answer = best_answer(network.guess(batch), words.answers)
        return draw.Drawing(words.decode_question(batch.questions[0]), image, [], [], answer, truth)
    assert program is not None
    answer, maps = "", None
    if network.engine is not None and features is not None:
        answer, maps = run_engine(network, features, program, words.answers)
    elif dataset.scene_arrays is not None:
        row = dataset.rows.image_idxs[batch.rows]
        number = int(SymbolicEngine(words)(program, dataset.scene_arrays, row)[0])
        answer = words.answers[number] if number else "none"
    if maps is not None and upside_down:
        maps = maps.flip(1)
    tokens, children = read_tree(program[0], words.tokens)
    return draw.Drawing(
        question=words.decode_question(batch.questions[0]),
        image=image,
        tokens=tokens,
        children=children,
        answer=answer,
        truth=truth if answer else None,
        maps=maps,
        true_program=true,
    )


def best_answer(logits: Tensor, answers: list[str]) -> str:
    """The answer of the largest of `logits` (1, A), special tokens left out."""
    return answers[len(SPECIAL) + int(logits[0, len(SPECIAL) :].argmax())]


def run_engine(
    network: Network, features: Tensor, program: Tensor, answers: list[str]
) -> tuple[str, Tensor | None]:
    """The engine's answer to a program (1, L), and its module maps (N, H, W), first run first."""
    assert network.engine is not None
    with torch.no_grad():
        maps = network.see(features)
        answer = best_answer(network.engine(maps, program), answers)
    found = module_maps(network.engine, maps, program[0])
    return answer, torch.stack([each.map for each in found]).cpu() if found else None


def read_tree(program: Tensor, tokens: list[str]) -> tuple[list[str], list[list[int]]]:
    """Functions of a program (L,) in the order they run, and the places of each one's inputs.

    What is missing is completed and what is too much is left out, as the engine does.
    """
    language = Language(tokens)
    nodes = parse([program.tolist()], language, [0], share=False)
    order: list[int] = []

    def visit(node: int) -> None:
        for child in nodes.children[node]:
            if child >= 0:
                visit(child)
        order.append(node)

    visit(nodes.roots[0])
    place = {node: i for i, node in enumerate(order)}
    children = [[place[c] for c in nodes.children[node] if c >= 0] for node in order]
    return [language.tokens[nodes.tokens[node]] for node in order], children


def show_image(dataset: Questions, image: int) -> tuple[Tensor, bool]:
    """How an image of a split can be shown, uint8 (3, H, W), and whether its maps are upside down.

    Built-in scenes without a rendered image are drawn from above; where there are only features
    of a file, the mean of their channels is shown.
    """
    if dataset.kind == "grid" and dataset.scenes is not None:
        return draw_from_above(dataset.scenes[image]), True  # a map's first row is the front
    assert dataset.features is not None
    maps = dataset.features[np.array([image])][0]  # (C, H, W)
    if dataset.kind == "pixels":
        return (maps * 255).round().to(torch.uint8), False
    mean = maps.mean(0)
    mean = (mean - mean.min()) / (mean.max() - mean.min()).clamp(min=1e-12)
    return (mean * 255).to(torch.uint8).expand(3, -1, -1), False


def draw_from_above(scene: SceneGraph) -> Tensor:
    """A scene on its ground plane, uint8 (3, 128, 128), front below, as the camera has it."""
    things = []
    for thing in scene.things:
        x, y = (
            0.5 + float(np.dot(thing.position, scene.directions[name])) / (2 * 2**0.5 * SPREAD)
            for name in CAMERA
        )
        color = "#" + "".join(f"{channel:02x}" for channel in color_rgb(thing.color))
        things.append((x, 1 - y, thing.shape, color, thing.size == "large"))
    return draw.draw_ground(things)
