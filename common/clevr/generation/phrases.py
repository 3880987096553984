"""The sentences of the 90 templates, and other words for the same things.

In a sentence `{1}` is a noun phrase with its attributes ("small red cube"), `{1s}` its plural,
`{r1}` the relation that starts at noun phrase 1 ("to the left of"); text in brackets appears half
of the time. `{q}` is the attribute asked for, `{x}` the one that is shared or compared,
`{A}`, `{B}` the two sides of a comparison and `{where}` a chain of relations; the templates fill
those once.
"""

from typing import Final

ZERO_HOP_COUNT: Final = (
    "How many {1s} are there?",
    "What number of {1s} are visible?",
    "How many {1s} can be seen?",
)
ZERO_HOP_EXIST: Final = (
    "Are there any {1s}?",
    "Is there a {1}?",
    "Is any {1} visible?",
    "Are any {1s} to be seen?",
)
QUERY: Final = (  # {A} is the thing asked about, with its article
    "What {q} is {A}?",
    "What is the {q} of {A}?",
    "Which {q} does {A} have?",
    "There is {a A}; what is its {q}?",
)
HOP_COUNT: Final = (
    "How many {n s} are {where}?",
    "What number of {n s} are {where}?",
    "How many {n s} can be seen {where}?",
)
HOP_EXIST: Final = (
    "Are there any {n s} {where}?",
    "Is there a {n} {where}?",
    "Is any {n} {where}?",
)
SAME_EXIST: Final = (
    "Is there anything else that has the same {x} as the {1}?",
    "Does the {1} share its {x} with any other thing?",
    "Are there any other things of the same {x} as the {1}?",
)
SAME_COUNT: Final = (
    "How many other things have the same {x} as the {1}?",
    "What number of other things share their {x} with the {1}?",
    "How many other things are of the same {x} as the {1}?",
)
SAME_FILTER_EXIST: Final = (
    "Is there another {2} that has the same {x} as the {1}?",
    "Does the {1} share its {x} with another {2}?",
    "Are there any other {2s} of the same {x} as the {1}?",
)
SAME_FILTER_COUNT: Final = (
    "How many other {2s} have the same {x} as the {1}?",
    "What number of other {2s} share their {x} with the {1}?",
    "How many other {2s} are of the same {x} as the {1}?",
)
SAME_QUERY: Final = (
    "What {q} is the other {2} that has the same {x} as the {1}?",
    "What is the {q} of the other {2} of the same {x} as the {1}?",
    "There is another {2} that shares its {x} with the {1}; what is its {q}?",
)
COMPARISON: Final = (
    "Does {A} have the same {x} as {B}?",
    "Is the {x} of {A} equal to that of {B}?",
    "Is {A} of the same {x} as {B}?",
)
COMPARE_INTEGER: Final = {
    "equal_integer": (
        "Are there exactly as many {A} as {B}?",
        "Is the number of {A} the same as the number of {B}?",
        "Is the number of {A} equal to that of {B}?",
    ),
    "less_than": (
        "Are there fewer {A} than {B}?",
        "Is the number of {A} less than the number of {B}?",
        "Is the number of {A} smaller than that of {B}?",
    ),
    "greater_than": (
        "Are there more {A} than {B}?",
        "Is the number of {A} greater than the number of {B}?",
        "Is the number of {A} larger than that of {B}?",
    ),
}
SINGLE_AND_COUNT: Final = (
    "How many {3s} are both {r1} the {1} and {r2} the {2}?",
    "What number of {3s} are {r1} the {1} and [also] {r2} the {2}?",
)
SINGLE_AND_QUERY: Final = (
    "What {q} is the {3} that is both {r1} the {1} and {r2} the {2}?",
    "What is the {q} of the {3} that is {r1} the {1} and [also] {r2} the {2}?",
    "There is a {3} that is both {r1} the {1} and {r2} the {2}; what is its {q}?",
)
SINGLE_OR: Final = (
    "How many things are [either] {A} or {B}?",
    "What number of things are [either] {A} or {B}?",
)
SINGLE_OR_FILTER: Final = (
    "How many {3s} are [either] {A} or {B}?",
    "What number of {3s} are [either] {A} or {B}?",
)

# Two or three ways to say a value; the first one of a shape, size or material is its own name.
SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "thing": ("thing", "object"),
    "cube": ("cube", "block"),
    "sphere": ("sphere", "ball"),
    "small": ("small", "tiny"),
    "large": ("large", "big"),
    "rubber": ("rubber", "matte"),
    "metal": ("metal", "metallic", "shiny"),
    "left": ("left of", "to the left of", "on the left side of"),
    "right": ("right of", "to the right of", "on the right side of"),
    "behind": ("behind",),
    "front": ("in front of",),
}

# What people may say instead: none of these words is in a sentence or a synonym above.
OTHER_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "cube": ("box", "dice"),
    "block": ("box", "brick"),
    "sphere": ("globe", "orb"),
    "ball": ("globe", "orb"),
    "cylinder": ("tin", "drum"),
    "thing": ("item", "piece"),
    "object": ("item", "figure"),
    "small": ("little", "mini"),
    "tiny": ("little", "miniature"),
    "large": ("huge", "giant"),
    "big": ("huge", "giant"),
    "rubber": ("dull", "unpolished"),
    "matte": ("dull", "unpolished"),
    "metal": ("polished", "steel"),
    "metallic": ("reflective", "steel"),
    "shiny": ("glossy", "reflective"),
    "gray": ("grey", "silver"),
    "red": ("crimson", "scarlet"),
    "blue": ("navy", "azure"),
    "green": ("emerald", "grass colored"),
    "brown": ("tan", "chestnut"),
    "purple": ("violet", "lilac"),
    "cyan": ("turquoise", "aqua"),
    "yellow": ("golden", "lemon"),
    "behind": ("in back of", "past"),
    "visible": ("in view", "shown"),
}
OTHER_PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "how many": ("count how many", "tell me how many"),
    "what number of": ("what amount of",),
    "in front of": ("before", "closer than"),
    "on the left side of": ("leftward from",),
    "to the left of": ("leftward from",),
    "left of": ("leftward from",),
    "on the right side of": ("rightward from",),
    "to the right of": ("rightward from",),
    "right of": ("rightward from",),
    "the same": ("an identical",),
    "are there any": ("do you see any",),
    "is there a": ("do you see a",),
    "are there": ("do we have",),
    "have": ("possess",),
    "share": ("match in",),
}
