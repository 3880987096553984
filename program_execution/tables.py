"""The tables and figures of the paper, each row the overrides that give it.

    python tables.py                                        # the list
    python tables.py table1 scale=mini seeds=3 jobs=2      # run what is missing, print paper → ours
    python tables.py table1 scale=paper data.root=/data/clevr
    python tables.py table1 run=false                       # only print what has been measured

At `scale=paper` a row differs from `experiment=paper data=clevr` by what it names; data.root is a
folder of prepare.py. At `scale=mini` (conf/experiment/mini.yaml) the same networks are small and
learn built-in questions, of which fewer programs are known: 50 to 1,000 stand for the paper's few
thousand. Figures are percent of right answers: the paper's, which were recalled, of the test split,
whose answers are hidden, ours of the validation split.
"""

import common.run.interrupt  # noqa: F401 - first, for a Ctrl-C while torch is imported

# isort: split
from collections.abc import Sequence
from pathlib import Path

from common.clevr.functions import TYPES
from common.tables import Beside, Gap, Near, Row, Table, main
from program_execution import config  # noqa: F401 - tells Hydra the options

PAPER = ["experiment=paper", "data=clevr"]
SCALES = {"mini": ["experiment=mini"], "paper": PAPER}

PRINTED = (*TYPES, "accuracy")  # the columns of Table 1 in the paper's order
LSTM, CNN = ["model.name=lstm"], ["model.name=cnn_lstm"]
ATTENTION, MLP = ["model.name=cnn_lstm_sa"], ["model.name=cnn_lstm_sa_mlp"]
STRONG = ["data.programs=0", "ee_programs=ground_truth", "joint.steps=0"]
SEMI = ["ee_programs=predicted", "ee.steps=1000", "joint.steps=600"]  # of the miniature


def from_memory(
    name: str,
    overrides: Sequence[str],
    columns: Sequence[str],
    figures: str,
    *,
    mini: Sequence[str] | None = None,
) -> Row:
    """A row of the paper; its figures, in the order of `columns`, are from memory.

    mini: overrides of the miniature; without them the row's own.
    """
    paper = dict(zip(columns, map(float, figures.split()), strict=True))
    instead = None if mini is None else {"mini": mini}
    return Row(name, overrides, memory=paper, instead=instead, **paper)  # type: ignore[arg-type]


def semi(programs: int) -> list[str]:
    """The overrides of a run that knows this number of programs."""
    return [f"data.programs={programs}"]


ALL = "ours, strong: all programs"
TABLE1 = [
    from_memory(
        "Q-type mode",
        ["model.name=qtype_mode"],
        PRINTED,
        "50.2 34.6 51.4 51.6 50.5 50.1 13.4 50.8 33.5 50.3 52.5 50.2 51.8 42.1",
    ),
    from_memory(
        "LSTM",
        LSTM,
        PRINTED,
        "61.8 42.5 63.0 73.2 71.7 49.9 12.2 50.8 33.2 50.5 52.5 49.7 51.8 47.0",
    ),
    from_memory(
        "CNN+LSTM",
        CNN,
        PRINTED,
        "68.2 47.8 60.8 74.3 72.5 62.5 22.4 59.9 50.9 56.5 53.0 53.8 55.5 54.3",
    ),
    from_memory(
        "CNN+LSTM+SA",
        ATTENTION,
        PRINTED,
        "68.4 57.5 56.8 74.9 68.2 90.1 83.3 89.8 87.6 52.1 55.5 49.7 50.9 69.8",
    ),
    from_memory(
        "CNN+LSTM+SA+MLP",
        MLP,
        PRINTED,
        "77.9 59.7 60.3 83.7 76.7 85.4 73.1 84.5 80.7 72.3 71.2 70.1 69.7 73.2",
    ),
    from_memory(
        ALL,
        STRONG,
        PRINTED,
        "97.1 92.7 98.0 99.0 98.9 98.8 98.4 98.1 97.3 99.8 98.5 98.9 98.4 96.9",
        mini=[],
    ),
    from_memory(
        "ours, 18k programs",
        semi(18_000),
        PRINTED,
        "95.3 90.1 93.9 97.1 97.6 98.1 97.1 97.7 96.6 99.0 97.6 98.0 97.3 95.4",
        mini=[*semi(1000), *SEMI],
    ),
    from_memory(
        "ours, 9k programs",
        semi(9000),
        PRINTED,
        "89.7 79.7 85.2 76.1 77.9 94.8 93.3 93.1 89.2 97.8 94.5 96.6 95.1 88.6",
        mini=[*semi(400), *SEMI],
    ),
]
SYMBOLIC = [
    Row(
        "all programs, run on the true scenes",
        ["data.programs=0", "joint.steps=0", "model.engine=symbolic"],
        instead={"mini": ["model.engine=symbolic"]},
    ),
    Row(
        "1k programs, run on the true scenes",
        ["data.programs=1000", "model.engine=symbolic"],
        instead={
            "mini": [*semi(100), "joint.steps=600", "reinforce.lr=5e-4", "model.engine=symbolic"]
        },
    ),
]
CURVE = ("ee_accuracy", "accuracy", "lift", "ee_program_match", "program_match")
CURVE_ROWS = [
    Row("500 programs", semi(500)),
    Row("1k programs", semi(1000)),
    Row("3k programs", semi(3000)),
    from_memory("9k programs", semi(9000), ["accuracy"], "88.6"),
    from_memory("18k programs", semi(18_000), ["accuracy"], "95.4"),
    from_memory("all programs", ["data.programs=0"], ["accuracy"], "96.9"),
]
CURVE_MINI_ROWS = [
    *(Row(f"{count} programs", semi(count)) for count in (50, 100, 200)),
    Row("all programs", semi(0)),
]
ATTENTION_ROWS = [
    Row("50 programs", semi(50)),
    Row("50 programs, attention", [*semi(50), "model.attention=dot"]),
]
B = ("accuracy", "valB_accuracy", "tune_accuracy", "tune_valB_accuracy")
SHORTER = [*SCALES["mini"], "baseline.steps=1000"]
OWN = [*SHORTER, "data.train=trainA", "data.val=valA", "data.also=[valB]"]
CUT = ["tune.train=valB:first3000", "tune.val=valB:after3000"]
COGENT = {
    "mini": [*OWN, "tune.train=trainB", "tune.val=valB", "tune.steps=400", "tune.questions=4000"],
    "paper": ["experiment=paper", "data=cogent", "tune.steps=100000", *CUT],
}
COGENT_ROWS = [
    from_memory("LSTM", LSTM, B, "55.2 50.9 51.5 54.9"),
    from_memory("CNN+LSTM", CNN, B, "63.7 57.0 58.3 61.1"),
    from_memory("CNN+LSTM+SA+MLP", MLP, B, "80.3 68.7 75.7 75.8"),
    from_memory("ours", semi(18_000), B, "96.6 73.7 76.1 92.7", mini=[]),
]
LONG = ("accuracy", "val_long_accuracy", "tune_accuracy", "tune_val_long_accuracy")
SHORT = ["data.train=train:short", "data.val=val:short", "data.also=[val:long]"]
SHORT += ["tune.train=train", "tune.val=val"]
HOPS = ["data.builtin.families=[zero_hop,one_hop,two_hop]", "data.short=8"]  # two hops are long
LENGTHS = {
    "mini": [*SHORTER, *SHORT, *HOPS, "ee.steps=1000", "tune.steps=400", "reinforce.lr=1e-3"],
    "paper": [*PAPER, *SHORT, "tune.steps=100000"],
}
TABLE2 = [
    from_memory("LSTM", LSTM, LONG, "46.4 48.6 46.5 49.9"),
    from_memory("CNN+LSTM", CNN, LONG, "54.0 52.8 54.3 54.2"),
    from_memory("CNN+LSTM+SA+MLP", MLP, LONG, "74.2 64.3 74.2 67.8"),
    from_memory("ours", semi(25_000), LONG, "95.9 55.3 95.6 77.8", mini=[]),
]
PEOPLE = ("humans_val_accuracy", "tune_humans_val_accuracy")
HUMANS = ["data.also=[humans_val]", "tune.train=humans_train", "tune.val=humans_val"]
HUMANS += ["tune.update=pg"]
KNOWN = ["experiment=semi", "data.programs=0", "joint.steps=0", "baseline.steps=1000"]
ASKED = {
    "mini": [*KNOWN, *HUMANS, "tune.steps=600", "tune.questions=2000", "reinforce.lr=1e-3"],
    "paper": [*PAPER, *HUMANS, "tune.steps=100000", "tune.lr=1e-4"],
}
TABLE3 = [
    from_memory("LSTM", LSTM, PEOPLE, "27.5 36.5"),
    from_memory("CNN+LSTM", CNN, PEOPLE, "37.7 43.2"),
    from_memory("CNN+LSTM+SA+MLP", MLP, PEOPLE, "50.4 57.6"),
    from_memory("ours", semi(18_000), PEOPLE, "54.0 66.6", mini=[]),
]

TABLES = [
    Table(
        "table1",
        "Right answers by kind of question",
        rows=TABLE1,
        columns=("accuracy", *TYPES),
        scales=SCALES,
        claims=[
            Gap(
                better=ALL,
                than=["CNN+LSTM+SA", "CNN+LSTM+SA+MLP"],
                column="accuracy",
                at_least=15.0,
                paper=23.7,
            ),
            Gap(better="CNN+LSTM+SA", than=["CNN+LSTM", "LSTM"], column="accuracy", paper=15.5),
            Near(row="ours, 18k programs", to=ALL, column="accuracy", within=2.0, paper=-1.5),
        ],
        note="People†, in the paper's order, overall last: 96.6 86.7 79.0 87.0 91.0 97.0 "
        "95.0 94.0 94.0 94.0 98.0 96.0 96.0 92.6. At scale=mini 1,000 and 400 stand for 18k, 9k.",
    ),
    Table(
        "curve",
        "Accuracy against the number of known programs, before and after joint training",
        rows=CURVE_ROWS,
        columns=CURVE,
        scales={"paper": PAPER},
        claims=[Gap(better="18k programs", than=["9k programs"], column="accuracy", paper=6.8)],
        note="ee_: before joint training. lift: what joint training adds to the accuracy. The "
        "figure's other points cannot be read off; its figures here are Table 1's.",
    ),
    Table(
        "curve_mini",
        "Accuracy against the number of known programs, in miniature",
        rows=CURVE_MINI_ROWS,
        columns=CURVE,
        scales={"mini": ["experiment=semi"]},
        claims=[
            *(
                Beside(row=f"{count} programs", column=column, other=f"ee_{column}", low=low)
                for column, low in (("accuracy", 5), ("program_match", 0))
                for count in (50, 100)
            ),
            Beside(row="all programs", column="accuracy", other="ee_accuracy", low=-1, high=1),
            Gap(better="100 programs", than=["50 programs"], column="accuracy"),
            Near(row="200 programs", to="all programs", column="accuracy", within=2.0),
        ],
        note="Of questions without a relation, on which the engine comes to its end. ee_: before "
        "joint training. lift: what joint training adds to the accuracy.",
    ),
    Table(
        "attention",
        "A generator that also looks at every word of the question",
        rows=ATTENTION_ROWS,
        columns=CURVE,
        scales={"mini": ["experiment=semi"]},
        claims=[Gap(better="50 programs, attention", than=["50 programs"], column="ee_accuracy")],
        note="Not in the paper. The columns are those of curve_mini.",
    ),
    Table(
        "cogent",
        "CoGenT: trained on A, then fine-tuned on B without programs, Sec. 4.3",
        rows=COGENT_ROWS,
        columns=(*B, "drop", "recovery"),
        scales=COGENT,
        claims=[
            Beside(row="ours", column="accuracy", other="valB_accuracy", low=10, paper=22.9),
            Beside(
                row="ours", column="tune_valB_accuracy", other="valB_accuracy", low=10, paper=19.0
            ),
            Beside(row="ours", column="tune_accuracy", other="accuracy", high=0, paper=-20.5),
            Gap(better="ours", than=["LSTM"], column="drop", paper=18.6),
            Gap(better="ours", than=["LSTM"], column="recovery", paper=15.0),
        ],
        note="drop: A less B before fine-tuning; recovery: B after it less B before. Cubes and "
        "cylinders swap their colours between A and B.",
    ),
    Table(
        "table2",
        "Trained on families of short programs, then fine-tuned on all without programs",
        rows=TABLE2,
        columns=(*LONG, "recovery"),
        scales=LENGTHS,
        claims=[Gap(better="ours", than=["LSTM"], column="recovery", at_least=10.0, paper=21.2)],
        note="recovery: long programs' questions after fine-tuning less before. Which families are "
        "short the paper does not say: those of fewer than data.short functions in the mean here.",
    ),
    Table(
        "table3",
        "People's questions, before and after fine-tuning on them, Sec. 4.5",
        rows=TABLE3,
        columns=PEOPLE,
        scales=ASKED,
        claims=[
            Gap(
                better="ours",
                than=["CNN+LSTM+SA+MLP", "LSTM"],
                column="tune_humans_val_accuracy",
                paper=9.0,
            )
        ],
        note="Of the baselines fine-tuning changes the LSTM alone. At scale=mini the words of the "
        "built-in questions, those without a relation, are replaced by others instead.",
    ),
    Table(
        "symbolic",
        "Programs run on the true scenes: what is lost by the programs alone",
        rows=SYMBOLIC,
        columns=("executed", "program_match", "malformed"),
        scales={"mini": SCALES["mini"], "paper": [*PAPER, "data.scenes=???"]},
        note="Not in the paper. At scale=paper give data.scenes=.../CLEVR_{split}_scenes.json.",
    ),
]

if __name__ == "__main__":
    main(TABLES, script=Path(__file__).with_name("train.py"))
