"""The paper's tables and figures, each row the overrides that give it.

    python tables.py                                       # the list
    python tables.py selection scale=mini seeds=5 jobs=2   # run what is missing, print, compare
    python tables.py selection run=false                   # only print what has been measured
    python tables.py headline scale=paper data.root=/data/clevr "data.scenes='/data/{split}.json'"

No figure of the paper is confirmed, so all its cells are empty; what it says stands as claims. All
figures are in percent: right answers of the answerer as it stands when the budget is spent
(online), of a fresh one that learns from everything that was bought, for equally many steps
whatever the source (offline), and the share of questions that made sense (validity).
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.tables import Beside, Gap, Row, Table, main
from learning_by_asking import config  # noqa: F401 - tells Hydra the options
from learning_by_asking.figures.curves import compare as compare_runs
from learning_by_asking.figures.curves import draw_curves

SCALES = {"mini": ["experiment=mini"], "paper": ["experiment=paper", "data=clevr"]}
FREE = ["oracle.relevance_free=true"]
# The worlds in which asking is tried: without a trap, and with a tenth and a third of what may be
# asked that nobody can learn. The last was designed after the second had shown nothing. What is
# proposed makes sense in all of them, so that the choice alone differs.
PERFECT = ["relevance.kind=oracle", *FREE]
TYPES = "exist,count,equal_integer,less_than,greater_than,query_size,query_shape"
TENTH = f"generator.types=[{TYPES},query_color,query_color]"
WORLDS = {
    "plain": [*PERFECT],
    "a tenth unlearnable": ["experiment=trap", TENTH, *PERFECT],
    "a third unlearnable": ["experiment=trap", *PERFECT],
}
SCORES = {
    "the score": [],
    "random": ["policy.score=random"],
    "entropy": ["policy.score=entropy"],
    "passive": ["source=passive"],
}


def gap(better: str, *than: str, column: str = "offline", at_least: float = 0.0) -> Gap:
    """One row ahead of others."""
    return Gap(better=better, than=than, column=column, at_least=at_least)


BUDGETS = {"mini": (500, 1000), "paper": (70_000, 210_000, 350_000, 560_000)}
SIZES = {"mini": (500, 1000, 2000), "paper": (7_000, 35_000, 70_000)}


def at_budgets(scale: str) -> list[str]:
    """Offline learning at smaller budgets, too."""
    return [f"offline_at=[{','.join(map(str, BUDGETS[scale]))}]"]


TABLES = [
    Table(
        "headline",
        "Accuracy by budget: questions that were asked, and those of the data set",
        rows=[Row("asked", []), Row("passive", ["source=passive"])],
        columns=[
            *(f"offline_{b}" for b in (*BUDGETS["mini"], *BUDGETS["paper"])),
            "offline",
            "lstm_offline",
            "film_offline",
            "sa_offline",
            "qtype",
        ],
        scales={
            "mini": [*SCALES["mini"], *at_budgets("mini"), "models=[modules,sa,film,lstm]"],
            "paper": [*SCALES["paper"], *at_budgets("paper"), "models=[sa,film,lstm]"],
        },
        claims=[
            gap("asked", "passive"),
            Beside(row="passive", column="sa_offline", other="lstm_offline", low=8),
        ],
        note="Where stacked attention does not see more than the question says, nothing else can "
        "be claimed. The paper: asked questions are at least as good at every budget, about 50 % "
        "more data-efficient, and serve other models too (figures not confirmed). IEP learns from "
        "export=true: python -m program_execution.train data=clevr data.root=RUN/data.",
    ),
    Table(
        "beginning",
        "Accuracy over the budget, for different numbers of questions to begin with",
        rows=[
            Row(f"{size:,} to begin with: {name}", [f"data.init={size}", *words], only=scale)
            for scale, sizes in SIZES.items()
            for size in sizes
            for name, words in (("asked", []), ("passive", ["source=passive"]))
        ],
        columns=["online", "offline"],
        scales=SCALES,
        note="The curves of the answerer as it stands are drawn into a picture beside the table's. "
        "The paper compares sizes, too, which we do not know.",
    ),
    Table(
        "proposals",
        "How questions are proposed and filtered",
        rows=[
            Row("random programs of the grammar", ["generator.kind=typed", "relevance.kind=none"]),
            Row("generator, no filter", ["relevance.kind=none"]),
            Row("generator of the image alone", ["generator.condition=image"]),
            Row("generator, relevance learned once", ["relevance.kind=learned"]),
            Row("generator, relevance refreshed", ["relevance.kind=refreshed"]),
            Row("generator, perfect relevance", PERFECT),
            Row("no grammar mask", ["generator.mask=false"]),
            Row("questions of the beginning", ["generator.kind=empirical"]),
        ],
        columns=["validity", "online", "offline"],
        scales=SCALES,
        claims=[
            gap("generator, no filter", "random programs of the grammar", column="validity"),
            gap("generator, relevance learned once", "generator, no filter", column="validity"),
            gap("generator, relevance refreshed", "generator, no filter", column="validity"),
            gap(
                "generator, perfect relevance",
                "generator, relevance refreshed",
                column="validity",
            ),
        ],
        note="The paper: without relevance much of the budget is wasted, with it most of the gap "
        "to a perfect filter is closed (figures not confirmed).",
    ),
    Table(
        "selection",
        "How the question is chosen, in three worlds",
        rows=[
            Row(f"{world}: {score}", [*words, *more], only="mini")
            for world, words in WORLDS.items()
            for score, more in SCORES.items()
        ]
        + [
            Row(name, [f"policy.score={name}"], only="paper")
            for name in ("lba", "abs_progress", "entropy", "variation_ratio", "random")
        ],
        columns=["online", "offline"],
        scales=SCALES,
        claims=[
            *(gap(f"{w}: the score", f"{w}: random") for w in WORLDS),
            *(gap(f"{w}: the score", f"{w}: passive") for w in WORLDS),
            *(gap(f"{w}: random", f"{w}: entropy") for w in WORLDS),
            gap("lba", "random"),
            gap("random", "entropy"),
        ],
        note="The paper: its score is best, entropy a poor choice. At scale=mini all proposals "
        "make sense, and the world with a third of them unlearnable was designed to be one where "
        "choosing pays.",
    ),
    Table(
        "curriculum",
        "When each type was asked: rank correlation of its mean time with what may order the types",
        rows=[
            Row(f"{world}: {score}", [*words, *SCORES[score]])
            for world, words in WORLDS.items()
            for score in ("the score", "random")
        ],
        columns=["order_by_loss", "order_by_answers", "order_by_length"],
        scales={"mini": SCALES["mini"]},
        claims=[gap(f"{w}: the score", f"{w}: random", column="order_by_loss") for w in WORLDS],
        digits=2,
        note="order_by_loss: with the answerer's loss before it asks, order_by_answers: with the "
        "number of possible answers, order_by_length: with the length of its programs. The paper: "
        "from easy to hard (figures not confirmed).",
    ),
    Table(
        "scores",
        "All scores, in the plain world",
        rows=[
            Row(name, [f"policy.score={name}", *(FREE if name == "oracle_loss" else [])])
            for name in (
                "lba",
                "abs_progress",
                "entropy",
                "variation_ratio",
                "least_confident_type",
                "round_robin_type",
                "random",
                "oracle_loss",
            )
        ],
        columns=["online", "offline", "validity"],
        scales={"mini": SCALES["mini"]},
    ),
    Table(
        "sources",
        "The data set's questions instead",
        rows=[
            Row("asked", []),
            Row("passive, pairs of all images", ["source=passive"]),
            Row("passive, all questions of few images", ["source=passive_images"]),
            Row("chosen among the data set's", ["source=passive_active"]),
            Row("the template generator's", ["source=generator_passive"]),
        ],
        columns=["online", "offline", "validity", "qtype", "lstm_offline"],
        scales={
            "mini": [*SCALES["mini"], "models=[modules,lstm]"],
            "paper": [*SCALES["paper"], "models=[sa,lstm]"],
        },
    ),
    Table(
        "humans",
        "People's questions",
        rows=[Row("asked", []), Row("passive", ["source=passive"])],
        columns=["offline", "finetuned"],
        scales={
            "mini": [
                *SCALES["mini"],
                "data.val=humans_val",
                "data.finetune=humans_train",
                "finetune.steps=100",
                "finetune.lr=5e-4",
                "question_form=text",
                "models=[sa]",
                "answerer.name=sa",
            ],
            "paper": [
                "experiment=paper",
                "data=humans",
                "question_form=text",
                "data.finetune=humans_train",
            ],
        },
        claims=[gap("asked", "passive")],
        note="The paper: equal or better (figures not confirmed). At scale=mini in words of other "
        "people than the training questions'.",
    ),
    Table(
        "cogent",
        "Asked about images of CoGenT's A, tested on B (not in the paper)",
        rows=[Row("asked", []), Row("passive", ["source=passive"])],
        columns=["offline", "valB_accuracy"],
        scales={
            "mini": [*SCALES["mini"], "data.train=trainA", "data.val=valA", "data.also=[valB]"],
            "paper": ["experiment=paper", "data=cogent"],
        },
    ),
]


def compare(table: Table, folders: Mapping[str, Sequence[Path]], stem: Path) -> str:
    """Paired tests of a world's rows against its first, seed by seed; the curves of all, drawn."""
    worlds: dict[str, dict[str, dict[int, Path]]] = {}
    for name, paths in folders.items():
        runs = {int(re.sub(r"\D", "", path.name)): path for path in paths}
        if runs:
            worlds.setdefault(name.rpartition(": ")[0], {})[name] = runs
    if table.name == "beginning":
        every = {name: runs for world in worlds.values() for name, runs in world.items()}
        draw_curves(stem.with_name(f"{stem.name}_curves.png"), every)
    several = [runs for runs in worlds.values() if len(runs) > 1]
    return "\n\n".join(compare_runs(runs, next(iter(runs))) for runs in several)


if __name__ == "__main__":
    main(TABLES, script=Path(__file__).with_name("train.py"), compare=compare)
