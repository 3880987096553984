"""The `tiny` profile: short questions of a few families, sampled by rejection, fast.

One choice is drawn at every step of a template; a try that meets a dead end, a rule of the
generator or an answer that is too frequent already is thrown away. Differs: the answers are
balanced not for each template alone, but also for each set of attributes that its noun phrases
mention. Without that, "is there a large red metal cube" is mostly answered by no, and a model that
never sees the image learns it.
"""

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Final

from tqdm import tqdm

from ..execute import answer_text
from ..functions import ATTRIBUTES
from ..questions import Question
from ..scene_graph import SceneGraph
from .catalogue import select
from .generate import OVER, TRIVIAL, degenerate, make_question
from .options import KINDS, Kind, Option, Output, View, describe, finish
from .template import NOTHING, Step, Template, Values

FAMILIES: Final = (
    "zero_hop",
    "one_hop",
    *(f"same_relate/{i}" for i in range(8)),
    *(f"comparison/{i}" for i in range(4)),
    *(f"compare_integer/{i}" for i in range(3, 6)),
    "single_and/0",
)
TRIES: Final = 30  # of a template for one image


def generate_tiny(
    scenes: Sequence[SceneGraph],
    *,
    per_image: int = 10,
    seed: int = 0,
    families: Sequence[str | int] | None = None,
    attributes: Sequence[str] = tuple(ATTRIBUTES),
    filters: int = len(ATTRIBUTES),
    kinds: Sequence[Kind] = KINDS,
    progress: bool = False,
) -> list[Question]:
    """At most `per_image` questions about each scene, balanced over all of them.

    families: see `catalogue.select`; None takes FAMILIES. attributes: those that are asked about.
    filters: the most attributes that a noun phrase mentions. kinds: objects that can occur at
    all; phrases that describe nothing are made of these. progress: a bar on a terminal.
    """
    if per_image < 1 or not 1 <= filters <= len(ATTRIBUTES):
        raise ValueError(
            f"per_image={per_image} must be at least 1 and filters={filters} in "
            f"1..{len(ATTRIBUTES)}"
        )
    sampler = Sampler(
        select(FAMILIES if families is None else families, attributes=attributes),
        kinds=kinds,
        seed=seed,
    )
    questions: list[Question] = []
    bar = tqdm(scenes, desc="questions", unit="image", disable=None if progress else True)
    for scene in bar:
        view = View(scene, attributes=attributes, filters=filters, kinds=kinds)
        questions += sampler.ask(scene, view, per_image, len(questions))
    return questions


class Sampler:
    """Draws questions, and remembers which answers were given."""

    def __init__(self, chosen: Sequence[Template], *, kinds: Sequence[Kind], seed: int) -> None:
        self.templates, self.kinds = chosen, kinds
        self.random = random.Random(f"tiny {seed}")
        self.used = Counter({template.family: 0 for template in chosen})
        self.given: dict[Hashable, Counter[str]] = {}

    def ask(self, scene: SceneGraph, view: View, count: int, first: int) -> list[Question]:
        """At most `count` questions about a scene, numbered from `first`, of different families."""
        out: list[Question] = []
        turn = list(self.templates)
        self.random.shuffle(turn)
        turn.sort(key=lambda template: self.used[template.family])
        while turn and len(out) < count:
            template = turn.pop(0)
            found = self.search(template, view)
            if found is None:
                continue
            values, answer = found
            self.used[template.family] += 1
            question = make_question(template, values, answer, scene, self.random)
            out.append(replace(question, index=first + len(out)))
        return out

    def search(self, template: Template, view: View) -> tuple[Values, str] | None:
        """Values of the template whose answer is welcome, and the answer; None after TRIES."""
        for _ in range(TRIES):
            path = self._path(template, view)
            if path is None:
                continue
            values, answer = path
            if _contains(template, values) or degenerate(template, view, values, answer):
                continue
            if self._welcome(template, values, answer):
                return values, answer
        return None

    def _path(self, template: Template, view: View) -> tuple[Values, str] | None:
        """One random choice at every step, and the answer; None at a dead end."""
        values = Values({}, {})
        outputs: list[Output] = []
        for position, step in enumerate(template.steps):
            if step.noun or step.relation:
                option = self._choose(template, step, int(outputs[step.inputs[0]]), view)
                if option is None:
                    return None
                if option.relation:
                    values.relations[step.relation] = option.relation
                if option.combo is not None:
                    values.nouns[step.noun] = option.combo
                outputs.append(option.output)
            else:
                output = view.evaluate(step, [outputs[i] for i in step.inputs], values)
                assert output is not None, step.function
                outputs.append(output)
            for a, b in template.differ:
                if max(a, b) == position and outputs[a] == outputs[b]:
                    return None
        return values, answer_text(outputs[-1])

    def _choose(self, template: Template, step: Step, value: int, view: View) -> Option | None:
        """A random option: its number of attributes first, for short phrases are few."""
        trivial = bool(step.relation and step.noun) and self.random.random() < TRIVIAL
        groups = view.by_length(template, step, value, trivial=trivial)
        if not groups:
            return None
        option = self.random.choice(self.random.choice(groups))
        if step.function.endswith(("_count", "_exist")) and self.random.random() < 0.5:
            return self._redraw(step, value, option, view)
        return option

    def _redraw(self, step: Step, value: int, option: Option, view: View) -> Option:
        """The option with the values of another object, which need not be in the image."""
        combo = describe(self.random.choice(self.kinds), option.combo or NOTHING)
        among = view.relations[option.relation][value] if option.relation else value
        output = finish(step.function, view.combos.get(combo, 0) & among)
        assert output is not None, step.function
        return Option(output, combo, option.relation)

    def _welcome(self, template: Template, values: Values, answer: str) -> bool:
        """Whether the answer is not ahead of the others; if so, it is noted as given.

        An answer may be 10 % ahead of the second most frequent one where there are two, of the
        third where there are more: over the template, and over its questions that mention the same
        attributes.
        """
        mentioned = tuple(
            tuple(value is not None for value in combo) for _, combo in sorted(values.nouns.items())
        )
        counters = [
            self.given.setdefault(key, Counter(dict.fromkeys(self._answers(template), 0)))
            for key in (template.family, (template.family, mentioned))
        ]
        for counter in counters:
            rank = min(3, len(counter))
            if counter[answer] > OVER * sorted(counter.values(), reverse=True)[rank - 1]:
                return False
        for counter in counters:
            counter[answer] += 1
        return True

    def _answers(self, template: Template) -> list[str]:
        """The template's possible answers, as far as any object has them."""
        if not template.root.startswith("query_"):
            return list(template.answers)
        k = list(ATTRIBUTES).index(template.root.removeprefix("query_"))
        seen = {kind[k] for kind in self.kinds}
        return [answer for answer in template.answers if answer in seen]


def _contains(template: Template, values: Values) -> bool:
    """Whether one of two counted phrases describes all that the other does: its words decide."""
    if template.file != "compare_integer":
        return False
    last = [step.noun for step in template.steps if step.function.endswith("_count")]
    if len(last) != 2:
        return False
    a, b = (values.nouns[noun] for noun in last)
    pairs = list(zip(a, b, strict=True))
    wider = all(x is None or x == y for x, y in pairs)
    narrower = all(y is None or x == y for x, y in pairs)
    return wider or narrower
