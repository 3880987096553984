"""What a scene offers to a question: its objects as bit sets, and the values a step may take.

Bit i of a set stands for object i. The two question generators read the same tables.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from ..execute import answer_text
from ..functions import ATTRIBUTES, MOST_OBJECTS, RELATIONS
from ..scene_graph import SceneGraph
from .template import NOTHING, Combo, Step, Template, Values

Kind = tuple[str, str, str, str]  # size, color, material and shape of an object
KINDS: tuple[Kind, ...] = tuple((z, c, m, s) for z, c, m, s in product(*ATTRIBUTES.values()))
Output = int | bool | str  # a set or an object is an int
_NAMES = tuple(ATTRIBUTES)
_COMPARISONS = {
    "equal_integer": lambda a, b: a == b,
    "less_than": lambda a, b: a < b,
    "greater_than": lambda a, b: a > b,
    "union": lambda a, b: a | b,
    "intersect": lambda a, b: a & b,
    **{f"equal_{attribute}": lambda a, b: a == b for attribute in ATTRIBUTES},
}


@dataclass(frozen=True)
class Option:
    """A choice for one step: what its noun and relation become, and its output then."""

    output: Output
    combo: Combo | None = None
    relation: str | None = None
    trivial: bool = False  # the relation excludes nothing that the combo does not


class View:
    """A scene's sets: of each relation, of equal attributes, and of each combo that occurs.

    attributes: those that noun phrases may mention. filters: the most of them in one phrase.
    kinds: the objects that other scenes may have.
    """

    def __init__(
        self,
        scene: SceneGraph,
        *,
        attributes: Sequence[str] = _NAMES,
        filters: int = len(_NAMES),
        kinds: Sequence[Kind] = KINDS,
    ) -> None:
        if len(scene.things) > MOST_OBJECTS:
            raise ValueError(
                f"scene {scene.image_index} has {len(scene.things)} objects, but CLEVR's answers "
                f"count to {MOST_OBJECTS}: leave it out"
            )
        self.kinds: list[Kind] = [(t.size, t.color, t.material, t.shape) for t in scene.things]
        self.values = {
            name: [v for v in values if any(kind[k] == v for kind in kinds)]
            for k, (name, values) in enumerate(ATTRIBUTES.items())
        }
        self.everything = (1 << len(self.kinds)) - 1
        self.relations = {
            name: [sum(1 << j for j in others) for others in scene.relations[name]]
            for name in RELATIONS
        }
        self.same = [[self._equal(i, k) for k in range(4)] for i in range(len(self.kinds))]
        self.combos: dict[Combo, int] = {}
        for i, kind in enumerate(self.kinds):
            for combo in combos_of(kind, attributes, filters):
                self.combos[combo] = self.combos.get(combo, 0) | 1 << i
        self._options: dict[tuple, list[Option]] = {}
        self._lengths: dict[tuple, list[list[Option]]] = {}

    def _equal(self, i: int, k: int) -> int:
        """The other objects with the same value of attribute k as object i."""
        values = [kind[k] for kind in self.kinds]
        return _bits(j for j, value in enumerate(values) if j != i and value == values[i])

    def options(self, template: Template, step: Step, value: Output) -> list[Option]:
        """All choices for a step with parameters, from its input `value`, that the scene offers.

        A phrase may say nothing ("thing") unless that makes a dull question: what a filter
        keeps of all things, whether there are any, and what same_relate asks without a filter.
        """
        key = _key(template, step, value)
        if key not in self._options:
            _, _, excluded, bare = key
            options = self._make(step, int(value), excluded)
            self._options[key] = [option for option in options if bare or option.combo != NOTHING]
        return self._options[key]

    def by_length(
        self, template: Template, step: Step, value: Output, *, trivial: bool
    ) -> list[list[Option]]:
        """The trivial ones of `options`, or the others, by the number of their attributes."""
        key = (_key(template, step, value), trivial)
        if key not in self._lengths:
            groups: dict[int, list[Option]] = {}
            for option in self.options(template, step, value):
                if option.trivial == trivial:
                    groups.setdefault(count_words(option.combo or NOTHING), []).append(option)
            self._lengths[key] = [groups[length] for length in sorted(groups)]
        return self._lengths[key]

    def _make(self, step: Step, value: int, excluded: frozenset[str]) -> list[Option]:
        """The options of one step, without a rule about phrases that say nothing."""
        if not step.noun:
            return [Option(self.relations[name][value], None, name) for name in RELATIONS]
        combos = [(c, s) for c, s in self.combos.items() if not _mentions(c, excluded)]
        attribute = step.function.removeprefix("filter_")
        if attribute in ATTRIBUTES:  # one value, whether or not something has it
            return [
                Option(value & self.combos.get(combo, 0), combo)
                for combo in (_single(attribute, v) for v in self.values[attribute])
            ]
        keeps_none = step.function.endswith(("_count", "_exist"))
        out = []
        for name in RELATIONS if step.relation else (None,):
            among = self.relations[name][value] if name else value
            for combo, members in combos:
                found = members & among
                if not found and not (keeps_none and name):
                    continue
                output = finish(step.function, found)
                if output is not None:
                    out.append(Option(output, combo, name, bool(name) and found == members))
        return out

    def evaluate(self, step: Step, inputs: Sequence[Output], values: Values) -> Output | None:
        """The step's output; None where `unique` meets none or several."""
        name, *rest = step.function.split("_")
        value: Output = inputs[0] if inputs else self.everything
        if step.relation:
            value = self.relations[values.relations[step.relation]][int(value)]
        if step.noun:
            value = int(value) & self.combos.get(values.nouns.get(step.noun, NOTHING), 0)
            return finish(step.function, value)
        if step.function in _COMPARISONS:
            return _COMPARISONS[step.function](*inputs)
        if name == "same":
            return self.same[int(value)][_NAMES.index(rest[0])]
        if name == "query":
            return self.kinds[int(value)][_NAMES.index(rest[0])]
        return finish(f"_{name}", int(value))

    def run(self, template: Template, values: Values, *, without: int | None = None) -> str | None:
        """The template's answer, None where it has none.

        without: position of a step that `scene` takes the place of.
        """
        outputs: list[Output] = []
        for position, step in enumerate(template.steps):
            if position == without:
                outputs.append(self.everything)
                continue
            output = self.evaluate(step, [outputs[i] for i in step.inputs], values)
            if output is None:
                return None
            outputs.append(output)
        return answer_text(outputs[-1])


def _key(template: Template, step: Step, value: Output) -> tuple:
    """What the options of a step depend on; the last: whether a phrase may say nothing."""
    bare = step.function not in ("filter", "filter_exist") and not (
        step.function == "filter_count" and template.file == "same_relate"
    )
    return step.function, value, template.exclusions(step.noun), bare


def finish(function: str, found: int) -> Output | None:
    """Set `found` after the unique, count or exist that `function` ends in; None: not unique."""
    if function.endswith("_unique"):
        return found.bit_length() - 1 if found and not found & (found - 1) else None
    if function.endswith("_count"):
        return found.bit_count()
    return found > 0 if function.endswith("_exist") else found


def combos_of(kind: Kind, attributes: Sequence[str], filters: int) -> list[Combo]:
    """All descriptions of an object by at most `filters` of `attributes`, NOTHING among them."""
    choices = [(None, v) if a in attributes else (None,) for a, v in zip(_NAMES, kind, strict=True)]
    combos = [(z, c, m, s) for z, c, m, s in product(*choices)]
    return [combo for combo in combos if count_words(combo) <= filters]


def count_words(combo: Combo) -> int:
    """How many attributes a combo mentions."""
    return len(combo) - combo.count(None)


def describe(kind: Kind, combo: Combo) -> Combo:
    """The values of `kind` for the attributes that `combo` mentions."""
    z, c, m, s = (a if b is not None else None for a, b in zip(kind, combo, strict=True))
    return z, c, m, s


def _single(attribute: str, value: str) -> Combo:
    """The combo that mentions one attribute."""
    z, c, m, s = (value if name == attribute else None for name in _NAMES)
    return z, c, m, s


def _mentions(combo: Combo, excluded: frozenset[str]) -> bool:
    return any(combo[_NAMES.index(attribute)] is not None for attribute in excluded)


def _bits(members: Iterable[int]) -> int:
    return sum(1 << j for j in members)
