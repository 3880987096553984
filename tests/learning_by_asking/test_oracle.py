"""Who answers, and that no scene graph can be reached from what the agent is given."""

import dataclasses
import gc
import io
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import numpy as np
import pytest
import torch

from common.clevr import builtin
from common.clevr.arrays.encode import encode
from common.clevr.arrays.features import Features
from common.clevr.arrays.scenes import Bits, PackedScenes
from common.clevr.execute import Failure, execute
from common.clevr.grammar import Grammar
from common.clevr.scene_graph import SceneGraph, Thing
from common.clevr.vocabulary import standard
from common.errors import UserError
from common.images import read_image
from learning_by_asking.oracle.human import Human
from learning_by_asking.oracle.ledger import Entry, Ledger
from learning_by_asking.oracle.oracles import Cached, Noisy, Oracle, Symbolic, open_ledger
from learning_by_asking.oracle.replies import Reply, possible_answers

WORDS = standard()
SCENES = (SceneGraph, Thing, PackedScenes, Bits)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return builtin.build(split="train", images=30, cache=tmp_path_factory.mktemp("clevr"))


def draw_programs(count: int, seed: int, *, broken: bool) -> np.ndarray:
    """Rows (count, 28) from START to END, of random programs; broken: half of them malformed."""
    generator = torch.Generator().manual_seed(seed)
    grammar = Grammar(WORDS.tokens)
    weights = torch.tensor([20.0 if text in ("scene", "count") else 1.0 for text in WORDS.tokens])
    state, columns = grammar.start(count), [torch.ones(count, dtype=torch.int64)]
    for _ in range(27):
        chances = weights * grammar.mask(state)
        columns.append(torch.multinomial(chances, 1, generator=generator)[:, 0])
        state = grammar.advance(state, columns[-1])
    rows = torch.stack(columns, 1).numpy()
    random = np.random.default_rng(seed)
    for row in rows[::2] if broken else ():
        row[random.integers(1, 6)] = random.integers(len(WORDS.tokens))
    return rows


def write_row(*tokens: str) -> np.ndarray:
    return np.array([WORDS.encode_program(tokens)])


def open_with(world, folder: Path, **options):
    return open_ledger(
        Oracle(**options),
        10,
        folder,
        vocabulary=WORDS,
        features=Features(world.features),
        find_scenes=lambda: world.scenes,
    )


def test_the_symbolic_oracle_agrees_with_the_scalar_executor_on_10_thousand_programs(world):
    programs = draw_programs(10_000, 0, broken=True)
    images = np.arange(10_000) % len(world.scenes)
    reasons = set()
    replies = Symbolic(world.scenes, WORDS).ask(images, programs)
    for reply, image, row in zip(replies, images, programs, strict=True):
        tokens = [WORDS.tokens[i] for i in row]
        wanted = execute(tokens, world.scenes[image], require_end=True)
        assert reply.valid == (wanted.failure is None)
        assert reply.reason == (wanted.failure or "")
        assert reply.answer == (-1 if wanted.answer is None else WORDS.answer[wanted.answer])
        reasons.add(reply.reason)
    assert reasons == {"", *Failure}


def test_a_function_that_does_not_exist_is_a_reply_like_any_other(world):
    row = write_row("count", "scene")
    row[0, 1] = WORDS.program["<UNK>"]
    reply = Symbolic(world.scenes, WORDS).ask(np.array([0]), row)[0]
    assert reply == Reply(-1, False, "unknown")


def test_a_noisy_oracle_flips_its_share_to_other_possible_answers_and_stays_with_them(world):
    programs = draw_programs(6000, 1, broken=False)
    images = np.arange(6000) % len(world.scenes)
    symbolic = Symbolic(world.scenes, WORDS)
    right = symbolic.ask(images, programs)
    noisy = Noisy(symbolic, WORDS, flip=0.3).ask(images, programs)
    assert noisy == Noisy(symbolic, WORDS, flip=0.3).ask(images, programs)
    assert noisy != Noisy(symbolic, WORDS, flip=0.3, seed=1).ask(images, programs)
    questions = {}
    for a, b, image, row in zip(right, noisy, images, programs, strict=True):
        assert a.valid == b.valid
        if a.valid:
            questions[image, tuple(row)] = a.answer != b.answer
            assert WORDS.answers[b.answer] in possible_answers(WORDS.tokens[row[1]])
    flipped = np.mean(list(questions.values()))
    assert len(questions) > 300
    assert abs(flipped - 0.3) < 4 * np.sqrt(0.3 * 0.7 / len(questions))
    assert Noisy(symbolic, WORDS, flip=0.0).ask(images, programs) == right


def test_a_cached_oracle_repeats_the_replies_of_a_log_and_names_what_is_missing(world, tmp_path):
    ledger = open_with(world, tmp_path)
    rows = [*draw_programs(4, 2, broken=True)]
    entries = [Entry(i, tuple(row.tolist()), -1, np.full(28, 1 / 28)) for i, row in enumerate(rows)]
    bought = ledger.buy(1, entries)
    cached = Cached(ledger.path, WORDS)
    assert cached.ask(np.arange(4), np.stack(rows)) == bought
    red, small = "filter_color[red]", "filter_size[small]"
    either = write_row("count", "union", red, "scene", small, "scene")
    bought = ledger.buy(2, [Entry(9, tuple(either[0].tolist()), 1, np.full(28, 1 / 28))])
    turned = write_row("count", "union", small, "scene", red, "scene")
    assert Cached(ledger.path, WORDS).ask(np.array([9]), turned) == bought
    with pytest.raises(ValueError, match=r"no reply to 'count scene' about image 7"):
        cached.ask(np.array([7]), write_row("count", "scene"))
    with pytest.raises(ValueError, match=r"nowhere\.jsonl does not exist"):
        Cached(tmp_path / "nowhere.jsonl", WORDS)


def test_a_person_is_asked_in_words_until_the_answer_is_one_of_the_possible():
    sink = io.StringIO()
    source = io.StringIO("maybe\n 3 \nY\ninvalid\n")
    person = Human(WORDS, lambda image: f"image_{image}.png", source=source, sink=sink)
    rows = [
        *write_row("count", "scene"),
        *write_row("exist", "scene"),
        *write_row("query_size", "unique", "scene")[:, :5],
        *write_row("count", "unique", "scene"),
    ]
    programs = np.zeros((4, 5), np.int64)
    for program, row in zip(programs, rows, strict=True):
        program[: len(row)] = row
    replies = list(person.ask(np.array([4, 5, 6, 7]), programs))
    assert replies == [
        Reply(WORDS.answer["3"], True, ""),
        Reply(WORDS.answer["yes"], True, ""),
        Reply(-1, False, "unanswerable"),
        Reply(-1, False, "type_error"),  # malformed: it has no sentence to show
    ]
    text = sink.getvalue()
    assert "Question 1 of 4: " in text
    assert "image_4.png" in text
    assert "'maybe' is no answer" in text
    assert "(yes, no, invalid; quit)" in text
    assert "image_7.png" not in text


@pytest.mark.parametrize("ending", ["quit\n", ""])
def test_a_person_who_stops_keeps_the_answers_given(ending, tmp_path):
    folder = tmp_path / "run"
    entries = [
        Entry(i, tuple(write_row("count", "scene")[0].tolist()), 1, np.full(28, 1 / 28))
        for i in range(3)
    ]
    ledger = open_human(folder, f"3\n4\n{ending}")
    with pytest.raises(UserError, match="All answers given are kept"):
        ledger.buy(1, entries)
    again = open_human(folder, "5\n")
    answers = [WORDS.answers[reply.answer] for reply in again.buy(1, entries)]
    assert answers == ["3", "4", "5"]
    assert again.spent == 3
    assert len(again.path.read_text().splitlines()) == 3


def open_human(folder: Path, typed: str):
    person = Human(WORDS, str, source=io.StringIO(typed), sink=io.StringIO())
    return Ledger(person, folder, budget=3, vocabulary=WORDS)


def test_the_ledger_has_the_oracle_and_the_prices_of_its_options(world, tmp_path):
    programs = draw_programs(200, 1, broken=True)
    images = np.arange(200) % len(world.scenes)
    symbolic = Symbolic(world.scenes, WORDS).ask(images, programs)
    for flip, seed in ((0.0, 0), (1.0, 0), (0.5, 0), (0.5, 1)):
        ledger = open_with(world, tmp_path, kind="noisy", flip=flip, seed=seed, relevance_free=True)
        expected = Noisy(Symbolic(world.scenes, WORDS), WORDS, flip=flip, seed=seed)
        assert ledger.peek(images, programs) == expected.ask(images, programs)
    assert [reply.valid for reply in ledger.peek(images, programs)] == [r.valid for r in symbolic]
    assert open_with(world, tmp_path).cost_invalid == 1
    assert open_with(world, tmp_path, cost_invalid=0).cost_invalid == 0


def test_a_person_is_shown_the_pixels_of_an_image_that_has_no_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 3, 8, 8)).astype(np.uint8)
    ledger = open_ledger(
        Oracle(kind="human"),
        1,
        tmp_path,
        vocabulary=WORDS,
        features=Features(pixels),
        find_scenes=list,
    )
    person = ledger._oracle
    assert isinstance(person, Human)
    shown = read_image(person.image_of(1))
    assert torch.equal(shown[:, ::60, ::60], torch.from_numpy(pixels[1]))


def test_a_person_cannot_be_asked_about_feature_maps(world, tmp_path):
    with pytest.raises(ValueError, match=r"oracle\.images"):
        open_with(world, tmp_path, kind="human")
    pattern = str(tmp_path / "CLEVR_{:06d}.png")
    with pytest.raises(ValueError, match=r"CLEVR_000000\.png does not exist \(oracle\.images\)"):
        open_with(world, tmp_path, kind="human", images=pattern)
    (tmp_path / "CLEVR_000000.png").touch()
    with pytest.raises(ValueError, match=r"names one image: put \{:06d\} into it"):
        open_with(world, tmp_path, kind="human", images=str(tmp_path / "CLEVR_000000.png"))
    ledger = open_with(world, tmp_path, kind="human", images=pattern)
    assert ledger._oracle.image_of(12) == str(tmp_path / "CLEVR_000012.png")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"kind": "oracle"}, r"oracle\.kind=oracle"),
        ({"flip": 1.5}, r"oracle\.flip"),
        ({"kind": "cached"}, r"oracle\.file"),
        ({"file": "x"}, r"oracle\.file"),
        ({"cost_invalid": 2}, r"oracle\.cost_invalid"),
        ({"images": "a.png"}, r"oracle\.images"),
        ({"kind": "human", "images": "{name}.png"}, r"oracle\.images"),
        ({"kind": "human", "relevance_free": True}, r"oracle\.relevance_free"),
    ],
)
def test_an_option_out_of_range_is_named(options, key):
    with pytest.raises(ValueError, match=key):
        Oracle(**options)


def test_a_type_has_the_answers_that_its_questions_have_in_the_data(world):
    for question in world.questions:
        assert question.answer in possible_answers(question.program[-1].function)
    with pytest.raises(ValueError, match="no type"):
        possible_answers("scene")


def reach(roots: Iterable[object]) -> list[object]:
    """All objects that these refer to, in any number of steps.

    Of a function, what it closes over and its defaults; modules, classes and code are left out.
    """
    seen: dict[int, object] = {}
    todo = list(roots)
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, ModuleType | type | CodeType):
            continue
        seen[id(one)] = one
        if isinstance(one, FunctionType):
            todo += [one.__closure__, one.__defaults__, one.__kwdefaults__, vars(one)]
        else:
            todo += gc.get_referents(one)
    return list(seen.values())


def test_no_scene_graph_can_be_reached_from_what_the_agent_holds(world, tmp_path):
    ledger = open_with(world, tmp_path, relevance_free=True)
    rows = encode(world.questions, WORDS)
    entries = [
        Entry(int(rows.image_idxs[i]), tuple(rows.programs[i].tolist()), 0, np.full(28, 1 / 28))
        for i in range(8)
    ]
    held = [rows, Features(world.features), WORDS, entries, ledger.buy(1, entries)]
    held += [
        ledger.state_dict(),
        ledger.path.read_text(),
        ledger.peek(np.array([0]), rows.programs[:1]),
    ]
    assert not [one for one in reach(held) if isinstance(one, SCENES)]
    # The walk would find them: the ledger's oracle has them.
    assert [one for one in reach([ledger]) if isinstance(one, SCENES)]


def test_other_scene_graphs_change_the_replies_and_nothing_else(world, tmp_path):
    turned = dataclasses.replace(world, scenes=world.scenes[::-1])
    rows = encode(world.questions, WORDS)
    entries = [
        Entry(int(rows.image_idxs[i]), tuple(rows.programs[i].tolist()), 0, np.full(28, 1 / 28))
        for i in range(8)
    ]
    logs = []
    for number, each in enumerate((world, turned)):
        ledger = open_with(each, tmp_path / str(number))
        ledger.buy(1, entries)
        logs.append(ledger.path.read_text())
    assert logs[0] != logs[1]
    assert [line.split('"reply"')[0] for line in logs[0].splitlines()] == [
        line.split('"reply"')[0] for line in logs[1].splitlines()
    ]
