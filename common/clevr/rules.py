"""The grammar of programs in prefix order as rules, at three levels, each within the one before.

A stack holds what is still to come, the very next on top; it starts with the root. A token takes
the top away and puts the kinds of its inputs in its place, the first input on top:

    wanted      may follow                                  is replaced by
    root        count, exist                                set
                query_A                                     object
                equal_A                                     value of A, value of A
                equal_integer, less_than, greater_than      integer, integer
    set         scene                                       -
                filter_A[v]                                 set
                relate[r], same_A                           object
                union, intersect                            set, set
    object      unique                                      set
    integer     count                                       set
    value of A  query_A                                     object

- types: the table above. These are the programs that the symbolic executor accepts.
- canonical: the same, written as the data writes it. Successive filters ask for each attribute once
  at most, in the order shape, material, color, size (the size is filtered first, so it stands next
  to the scene); union and intersect appear as in the templates only.
- template: the same, with the skeleton of one of CLEVR's 90 templates (Johnson et al., CVPR 2017,
  Sec. 3). Which filters a run has, if any, is left open, as are the filters that a template leaves
  out so that its sentence does not give the answer away.
"""

import math
from collections.abc import Mapping
from typing import Final

from .execute import ANSWER_KINDS
from .functions import ATTRIBUTES, FUNCTIONS, Kind

# Symbol -> name of a function that may come -> the symbols in its place, the first on top.
Rules = Mapping[str, Mapping[str, tuple[str, ...]]]

ROOT: Final = "root"
_FILTERS: Final = tuple(f"filter_{name}" for name in reversed(ATTRIBUTES))  # as prefix shows them
_COMPARISONS: Final = ("equal_integer", "less_than", "greater_than")


def _type_rules() -> Rules:
    """Level `types`, read off the signatures."""
    rules: dict[str, dict[str, tuple[str, ...]]] = {name: {} for name in (ROOT, *Kind)}
    for function in FUNCTIONS.values():
        rules[function.output][function.name] = function.inputs
        if function.output in ANSWER_KINDS:
            rules[ROOT][function.name] = function.inputs
    return rules


TYPES: Final = _type_rules()


def _run(leaves: Mapping[str, tuple[str, ...]], name: str) -> Rules:
    """Rules of the symbol `name`: a run of filters in canonical order, then one of `leaves`."""
    rules = {}
    for used in range(len(_FILTERS) + 1):
        symbol = f"{name} {_FILTERS[used - 1]}" if used else name
        rest = {following: (f"{name} {following}",) for following in _FILTERS[used:]}
        rules[symbol] = {**leaves, **rest}
    return rules


def _count_rules(leaves: Mapping[str, tuple[str, ...]]) -> Rules:
    """Rules of the symbol `counted`, what a count at the root counts: a run of filters or a union.

    The templates have a union right below the count, of sets that may be related to something, or
    below one filter, of plain sets.
    """
    rules = {symbol: dict(follow) for symbol, follow in _run(leaves, "counted").items()}
    rules["counted"]["union"] = ("either", "either")
    for name in _FILTERS:
        rules["counted"][name] = (f"counted only {name}",)
        rules[f"counted only {name}"] = {**rules[f"counted {name}"], "union": ("plain", "plain")}
    return rules


def _sentences(
    leaves: Mapping[str, tuple[str, ...]], compared: str, numbers: tuple[str, ...], *, same: bool
) -> Rules:
    """The rules that the levels `canonical` and `template` share.

    leaves: what a set that is counted, asked about or looked for may consist of; compared: the
    objects whose values are compared; numbers: the symbols of two numbers; same: whether an
    attribute may be asked of the objects that share it.
    """
    both = {"intersect": ("beside", "beside")}
    rules: dict[str, Mapping[str, tuple[str, ...]]] = {
        ROOT: {
            "exist": ("set",),
            "count": ("counted",),
            **{f"query_{name}": (f"asked {name}",) for name in ATTRIBUTES},
            **{f"equal_{name}": (f"value {name}",) * 2 for name in ATTRIBUTES},
            **dict.fromkeys(_COMPARISONS, numbers),
        },
        "anchor": {"unique": ("plain",)},
        "beside": {"relate": ("anchor",)},
        **_run({"scene": ()}, "plain"),
        **_run({"scene": (), "relate": ("anchor",)}, "either"),
        **_run(leaves, "set"),
        **_count_rules({**leaves, **both}),
    }
    for name in ATTRIBUTES:
        asked = {k: v for k, v in leaves.items() if same or k != f"same_{name}"}
        rules[f"asked {name}"] = {"unique": (f"asked {name} set",)}
        rules |= _run({**asked, **both}, f"asked {name} set")
        rules[f"value {name}"] = {f"query_{name}": (compared,)}
    return rules


def canonical_rules() -> Rules:
    """Chains of any length; set operations as in the templates."""
    leaves = {"scene": (), "relate": ("object",)}
    leaves |= {f"same_{name}": ("object",) for name in ATTRIBUTES}
    return {
        **_sentences(leaves, "object", ("number", "number"), same=True),
        "object": {"unique": ("set",)},
        "number": {"count": ("set",)},
    }


def template_rules() -> Rules:
    """The 90 templates: `object 2` may be reached by two more relations, `object 1` by one."""
    leaves = {"scene": (), "relate": ("object 2",)}  # zero to three hops in all
    leaves |= {f"same_{name}": ("anchor",) for name in ATTRIBUTES}
    return {
        **_sentences(leaves, "object 1", ("first",), same=False),
        "object 2": {"unique": ("set 2",)},
        **_run({"scene": (), "relate": ("object 1",)}, "set 2"),
        "object 1": {"unique": ("either",)},
        # Two numbers, of which the second counts related objects only if the first does.
        "first": {"count": ("first set",)},
        **_run({"scene": ("plain number",), "relate": ("anchor", "number")}, "first set"),
        "plain number": {"count": ("plain",)},
        "number": {"count": ("either",)},
    }


def costs(rules: Rules) -> dict[str, float]:
    """The functions that each symbol needs at least; infinite where none can complete it."""
    cost = dict.fromkeys(rules, math.inf)
    changed = True
    while changed:
        changed = False
        for symbol, follow in rules.items():
            least = min(
                (1 + sum(cost[new] for new in news) for news in follow.values()), default=math.inf
            )
            changed = changed or least < cost[symbol]
            cost[symbol] = least
    return cost
