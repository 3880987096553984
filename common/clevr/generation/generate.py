"""CLEVR's question generator: all 90 templates, balanced answers, and a bounded search.

The algorithm is the public one (Johnson et al., CVPR 2017, Sec. 3.3-3.5, and its
`generate_questions.py`): for each image the least used templates first; for each template a
depth-first search over the values of its steps; a question is dropped where its answer, its
wording or its relations make it trivial.

# Differs: a search ends after `CAP` partial questions. The public one has no bound, and where the
# balance of answers forbids all that a image offers it may go through millions.
# Differs: phrases that describe nothing are drawn so that nothing in the image fits them, and
# mention the same attributes as a phrase that fits. The public code draws them without looking.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from tqdm import tqdm

from ...pool import in_order
from ..functions import ATTRIBUTES
from ..questions import Question
from ..scene_graph import SceneGraph
from .catalogue import select
from .options import KINDS, Kind, Option, Output, View, describe, finish
from .realise import realise
from .template import NOTHING, Step, Template, Values, program

CAP: Final = 3000  # partial questions looked at in one search
RESET: Final = 250  # images after which all counts start again
TRIVIAL: Final = 0.1  # largest share of relations that exclude nothing
OVER: Final = 1.1  # how much more often than the second most frequent an answer may have been given
_MEDIAN = 5  # and how much more often than the median, which counts as 5 at least


def generate(
    scenes: Sequence[SceneGraph],
    *,
    per_image: int = 10,
    seed: int = 0,
    profile: str = "fixed",
    families: Sequence[str | int] | None = None,
    attributes: Sequence[str] = tuple(ATTRIBUTES),
    kinds: Sequence[Kind] = KINDS,
    workers: int = 0,
    progress: bool = False,
) -> list[Question]:
    """At most `per_image` questions about each scene, each of another template.

    profile, families, attributes: see `catalogue.select`. kinds: objects that can occur at all;
    phrases that describe nothing are made of these. workers: processes; the questions do not depend
    on them, as the counts start again with every 250 images and each worker takes such a block.
    """
    if per_image < 1:
        raise ValueError(f"per_image={per_image} must be at least 1")
    chosen = select(families, attributes=attributes, profile=profile)
    settings = _Settings(chosen, per_image, seed, tuple(attributes), tuple(kinds))
    blocks = [
        (first, list(scenes[first : first + RESET])) for first in range(0, len(scenes), RESET)
    ]
    questions: list[Question] = []
    hidden = None if progress else True  # None: hidden unless there is a terminal
    with tqdm(total=len(scenes), desc="questions", unit="image", disable=hidden) as bar:
        for (_, block), found in zip(blocks, _run(settings, blocks, workers), strict=True):
            start = len(questions)
            questions += [replace(q, index=start + i) for i, q in enumerate(found)]
            bar.update(len(block))
    return questions


@dataclass(frozen=True)
class _Settings:
    templates: tuple[Template, ...]
    per_image: int
    seed: int
    attributes: tuple[str, ...]
    kinds: tuple[Kind, ...]


Block = tuple[int, list[SceneGraph]]  # position of the first scene, and up to RESET scenes


def _run(settings: _Settings, blocks: list[Block], workers: int) -> Iterator[list[Question]]:
    """The questions of each block, made here or by worker processes."""
    work = partial(_block, settings)
    if workers < 2 or len(blocks) < 2:
        yield from map(work, blocks)
        return
    # spawned: a fork of a process in which torch has threads may hang
    yield from in_order(work, blocks, workers, method="spawn")


def _block(settings: _Settings, block: Block) -> list[Question]:
    first, scenes = block
    search = _Search(settings, random.Random(f"full {settings.seed} {first}"))
    return [question for scene in scenes for question in search.ask(scene)]


class _Search:
    """The search, and what was asked and answered since the counts began."""

    def __init__(self, settings: _Settings, generator: random.Random) -> None:
        self.settings, self.random = settings, generator
        self.used = Counter({template.family: 0 for template in settings.templates})
        self.given = {t.family: Counter(dict.fromkeys(t.answers, 0)) for t in settings.templates}

    def ask(self, scene: SceneGraph) -> list[Question]:
        """At most `per_image` questions about a scene, the least used templates first."""
        view = View(scene, attributes=self.settings.attributes, kinds=self.settings.kinds)
        out: list[Question] = []
        for template in sorted(self.settings.templates, key=lambda t: self.used[t.family]):
            if len(out) == self.settings.per_image:
                break
            found = self.find(template, view)
            if found is None:
                continue
            values, answer = found
            self.used[template.family] += 1
            self.given[template.family][answer] += 1
            out.append(make_question(template, values, answer, scene, self.random))
        return out

    def find(self, template: Template, view: View) -> tuple[Values, str] | None:
        """Values of the template that the scene answers acceptably, and the answer."""
        stack: list[tuple[tuple[Output, ...], Values]] = [((), Values())]
        for _ in range(CAP):
            if not stack:
                break
            outputs, values = stack.pop()
            outputs = self._forward(template, view, outputs, values)
            if not outputs:
                continue
            if len(outputs) < len(template.steps):
                stack += self._expand(template, view, outputs, values)
                continue
            answer = view.run(template, values)
            assert answer is not None, template.name
            if self._welcome(template, answer) and not degenerate(template, view, values, answer):
                return values, answer
        return None

    def _forward(
        self, template: Template, view: View, outputs: tuple[Output, ...], values: Values
    ) -> tuple[Output, ...]:
        """The outputs up to the next step with a choice; none where a constraint is violated."""
        while True:
            for a, b in template.differ:
                if max(a, b) < len(outputs) and outputs[a] == outputs[b]:
                    return ()
            if len(outputs) == len(template.steps):
                return outputs
            step = template.steps[len(outputs)]
            if step.noun or step.relation:
                return outputs
            output = view.evaluate(step, [outputs[i] for i in step.inputs], values)
            assert output is not None, step
            outputs = (*outputs, output)

    def _expand(
        self, template: Template, view: View, outputs: tuple[Output, ...], values: Values
    ) -> list[tuple[tuple[Output, ...], Values]]:
        """One partial question for each choice of the next step, in random order."""
        step = template.steps[len(outputs)]
        value = outputs[step.inputs[0]]
        options = self._thin(view.options(template, step, value))
        if step.function in ("filter", "filter_count", "filter_exist"):
            options += self._misses(step, int(value), options, view)
        self.random.shuffle(options)
        out = []
        for option in options:
            nouns, relations = values.nouns, values.relations
            if option.combo is not None:
                nouns = {**nouns, step.noun: option.combo}
            if option.relation is not None:
                relations = {**relations, step.relation: option.relation}
            out.append(((*outputs, option.output), Values(nouns, relations)))
        return out

    def _thin(self, options: list[Option]) -> list[Option]:
        """The options with at most a tenth of them trivial, in a new list."""
        kept = [option for option in options if not option.trivial]
        trivial = [option for option in options if option.trivial]
        most = round(len(kept) * TRIVIAL / (1 - TRIVIAL))
        return kept + self.random.sample(trivial, min(most, len(trivial)))

    def _misses(self, step: Step, among: int, options: list[Option], view: View) -> list[Option]:
        """Phrases that describe nothing in the set `among`.

        For `filter_exist` as many as there are real ones, else as many as fit one object; fewer
        where the attributes leave no more.
        """
        real = [option.combo or NOTHING for option in options]
        single = sum((view.combos[combo] & among).bit_count() == 1 for combo in real)
        wanted = len(real) if step.function == "filter_exist" else single
        output = finish(step.function, 0)
        assert output is not None, step.function
        found: dict = {}
        for _ in range(4 * wanted):
            if len(found) == wanted:
                break
            kind = self.random.choice(self.settings.kinds)
            combo = describe(kind, self.random.choice(real))
            if not view.combos.get(combo, 0) & among:
                found[combo] = Option(output, combo)
        return list(found.values())

    def _welcome(self, template: Template, answer: str) -> bool:
        """Whether an answer is not given too often already, by the public generator's two rules."""
        given = self.given[template.family]
        counts = sorted(given.values())
        median = max(counts[len(counts) // 2], _MEDIAN)
        return given[answer] <= OVER * counts[-2] and given[answer] <= 5 * median


def degenerate(template: Template, view: View, values: Values, answer: str) -> bool:
    """Whether any one relation could be left out, with `scene` in its place, and not be missed.

    The public rule, which looks at relations that stand for themselves alone: those of single_and.
    """
    relations = (k for k, step in enumerate(template.steps) if step.function == "relate")
    return any(view.run(template, values, without=k) == answer for k in relations)


def make_question(
    template: Template, values: Values, answer: str, scene: SceneGraph, generator: random.Random
) -> Question:
    """The question in words, with its program; its index is 0."""
    return Question(
        text=realise(template, values, generator),
        image_index=scene.image_index,
        image_filename=scene.image_filename,
        split=scene.split,
        index=0,
        answer=answer,
        program=program(template, values),
        family=template.family,
        template=template.file,
        template_index=template.index,
    )
