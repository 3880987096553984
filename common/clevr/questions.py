"""Questions with their programs: CLEVR's files, the public generator's, CoGenT's and Humans'.

The released files, those of the public generator and those with human questions differ in how
they name functions, answers and families; here all become the same `Question`.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..coco.files import whole, without_collector
from ..run import sealed
from .execute import answer_text
from .programs import Node, check_nodes
from .scene_graph import check_file_name
from .stream import read_entries

EXPECTED = """expected one of
  CLEVR, CoGenT  ROOT/questions/CLEVR_{train,val,test,trainA,valA,testA,valB,testB}_questions.json
  Humans         ROOT/CLEVR-Humans-{train,val,test}.json or ROOT/CLEVR_humans_{train,val,test}.json,
                 also in ROOT/questions, ROOT/CLEVR-Humans or ROOT/CLEVR_humans"""

TEMPLATE_FILES: Final = {  # templates in each file, in the order of the released family numbers
    "compare_integer": 9,
    "comparison": 16,
    "three_hop": 6,
    "single_and": 5,
    "same_relate": 28,
    "single_or": 8,
    "one_hop": 6,
    "two_hop": 6,
    "zero_hop": 6,
}


@dataclass(frozen=True)
class Question:
    """A question about one image. Test questions have no answer, human ones no program.

    `index` numbers the questions of a split. `family` is the released number of the template,
    0..89; in a file of the public generator with templates that this repository does not know, it
    is the number inside the file `template`.
    """

    text: str
    image_index: int
    image_filename: str
    split: str
    index: int
    answer: str | None = None
    program: tuple[Node, ...] | None = None  # nodes after their inputs, the root last
    family: int | None = None
    template: str | None = None  # file of templates, e.g. "one_hop"
    template_index: int | None = None  # number inside that file


def read_questions(path: str | Path) -> list[Question]:
    """The questions of a file of any of the four kinds, in its order.

    ValueError names the file and the question.
    """
    programs = _Programs()
    with without_collector():
        rows = enumerate(read_entries(Path(path)))
        return [_question(row, i, str(path), programs) for i, row in rows]


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Put the name of the questions file in front of the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_questions(path: str | Path, questions: Iterable[Question]) -> None:
    """Write a questions file in the released form, which `read_questions` reads back unchanged."""
    rows = [_row(question) for question in questions]
    splits = sorted({row["split"] for row in rows})
    info = {"split": splits[0] if len(splits) == 1 else "", "version": "1.0", "date": ""}
    document = {"info": info | {"license": ""}, "questions": rows}
    sealed.write(Path(path), lambda file: file.write(json.dumps(document).encode()))


def find_questions(root: str | Path, split: str) -> Path:
    """The questions file of a split in the folder of CLEVR, CoGenT or CLEVR-Humans.

    Machine-made questions come first where a folder has human ones too.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; {EXPECTED}")
    candidates = _candidates(root, split)
    for file in candidates:
        if file.is_file():
            return file
    raise ValueError(f"no questions of {split!r}: {candidates[0]} does not exist; {EXPECTED}")


def has_questions(root: str | Path, split: str) -> bool:
    """Whether `find_questions` finds a file."""
    return any(file.is_file() for file in _candidates(Path(root), split))


def _candidates(root: Path, split: str) -> list[Path]:
    """Where the questions file of a split may be, machine-made questions first."""
    name = f"CLEVR_{split}_questions.json"
    humans = [f"CLEVR-Humans-{split}.json", f"CLEVR_humans_{split}.json"]
    candidates = [root / "questions" / name, root / name]
    for folder in (root, root / "questions", root / "CLEVR-Humans", root / "CLEVR_humans"):
        candidates += [folder / human for human in humans]
    return candidates


def _question(row: Any, i: int, file: str, programs: "_Programs") -> Question:
    """One entry of a questions file."""
    if not isinstance(row, dict):
        raise ValueError(f"{file}: question {i} is not an object {{...}}")
    index = row.get("question_index", i)
    where = f"{file}: question {index}"
    text: Any = row.get("question")
    image: Any = row.get("image_index")
    if not whole(index):
        raise ValueError(f"{file}: entry {i}: question_index {index!r} is not a whole number")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where} has no text")
    if not whole(image):
        raise ValueError(f"{where} has no whole `image_index`: {image!r}")
    family, template, template_index = _family(row, where)
    return Question(
        text=text,
        image_index=image,
        image_filename=check_file_name(row.get("image_filename"), where),
        split=str(row.get("split") or ""),
        index=index,
        answer=_answer(row.get("answer"), where),
        program=programs.read(row["program"], where) if row.get("program") is not None else None,
        family=family,
        template=template,
        template_index=template_index,
    )


def _answer(value: Any, where: str) -> str | None:
    """The answer as a word; the public generator writes yes/no as bool and counts as int."""
    if value is None:
        return None
    if isinstance(value, bool | int):
        return answer_text(value)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: answer {value!r} is neither a word nor a whole number")
    return value


def _family(row: dict, where: str) -> tuple[int | None, str | None, int | None]:
    """Family, template file and number inside that file.

    The public generator counts families inside `template_filename`; the release counts through
    all files. `template` and `template_index` are what `write_questions` adds to its form.
    """
    family = row.get("question_family_index")
    file = row.get("template_filename")
    template, number = row.get("template"), row.get("template_index")
    for name, value in (("question_family_index", family), ("template_index", number)):
        if value is not None and not whole(value):
            raise ValueError(f"{where}: {name} {value!r} is not a whole number")
    for name, value in (("template_filename", file), ("template", template)):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{where}: {name} {value!r} is not a name")
    if file is None:
        return family, template, number
    template, number = file.removesuffix(".json"), family
    if number is not None and number < TEMPLATE_FILES.get(template, 0):
        family = family_number(template, number)
    return family, template, number


def family_number(file: str, index: int) -> int:
    """Family 0..89 over all files of the template `index` of a file, as far as the order is known.

    The release does not say in which order its families count through the files.
    """
    files = list(TEMPLATE_FILES)
    return sum(TEMPLATE_FILES[name] for name in files[: files.index(file)]) + index


class _Programs:
    """Reads programs. Equal nodes become one object, and so do equal programs, checked once."""

    def __init__(self) -> None:
        self.nodes: dict[tuple, Node] = {}
        self.programs: dict[tuple[Node, ...], tuple[Node, ...]] = {}

    def read(self, rows: Any, where: str) -> tuple[Node, ...]:
        if not isinstance(rows, list):
            raise ValueError(f"{where}: its program is not a list of functions")
        program = tuple([self._node(row, f"{where}, function {k}") for k, row in enumerate(rows)])
        known = self.programs.get(program)
        if known is None:
            check_nodes(program, where)
            known = self.programs[program] = program
        return known

    def _node(self, row: Any, where: str) -> Node:
        """A function; the public generator's own files say `type` and `side_inputs`."""
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not an object {{...}}: {row!r:.80}")
        name, inputs = row.get("function", row.get("type")), row.get("inputs")
        values = row.get("value_inputs", row.get("side_inputs")) or []
        if not isinstance(name, str):
            raise ValueError(f"{where} has no name as its `function` (or `type`): {row!r:.80}")
        if not isinstance(inputs, list) or not all(whole(source) for source in inputs):
            raise ValueError(f"{where}: `inputs` must be a list of whole numbers: {row!r:.80}")
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ValueError(
                f"{where}: `value_inputs` (or `side_inputs`) must be a list of words: {row!r:.80}"
            )
        key = (name, tuple(inputs), tuple(values))
        node = self.nodes.get(key)
        if node is None:
            node = self.nodes[key] = Node(*key)
        return node


def _row(question: Question) -> dict[str, Any]:
    """The question in the released form, without what it lacks."""
    row: dict[str, Any] = {
        "split": question.split,
        "image_index": question.image_index,
        "image_filename": question.image_filename,
        "question_index": question.index,
        "question": question.text,
    }
    optional = {
        "question_family_index": question.family,
        "answer": question.answer,
        "template": question.template,
        "template_index": question.template_index,
    }
    row |= {name: value for name, value in optional.items() if value is not None}
    if question.program is not None:
        row["program"] = [
            {
                "function": node.function,
                "inputs": list(node.inputs),
                "value_inputs": list(node.values),
            }
            for node in question.program
        ]
    return row
