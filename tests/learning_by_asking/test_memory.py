"""What was bought: tables that grow, batches of an update, the way back from a checkpoint."""

from collections import Counter

import numpy as np
import pytest
import torch

from common.clevr import builtin, vocabulary
from common.clevr.arrays.encode import QuestionArrays, encode
from common.clevr.arrays.features import Features
from learning_by_asking.asking.memory import Memory
from learning_by_asking.oracle.oracles import Symbolic


def initial(count=5, width=4):
    programs = np.arange(count * width, dtype=np.int16).reshape(count, width) % 40 + 4
    return QuestionArrays(
        questions=programs[:, :3],
        programs=programs,
        answers=np.arange(count) + 4,
        image_idxs=np.arange(count),
        orig_idxs=np.arange(count) + 100,
        types=np.arange(count).astype(np.int8),
    )


def buy(memory, round_, count, seed):
    """Add random replies, a third of them invalid; what was added."""
    random = np.random.default_rng(seed)
    reply = {
        "images": random.integers(9, size=count),
        "programs": random.integers(4, 40, size=(count, 3 + seed % 4)),
        "answers": np.where(random.random(count) < 1 / 3, -1, random.integers(4, 32, size=count)),
        "types": random.integers(13, size=count),
    }
    memory.add(round_, **reply)
    return reply


def filled(rounds=6, count=20):
    memory = Memory(initial())
    return memory, [buy(memory, r, count, r) for r in range(1, rounds + 1)]


def flat(rows):
    """The rows with their programs cut at the first NULL."""
    return [
        (tuple(p[p > 0].tolist()), a, i, o, k)
        for p, a, i, o, k in zip(
            rows.programs, rows.answers, rows.image_idxs, rows.orig_idxs, rows.types, strict=True
        )
    ]


def expected(replies, valid):
    rows, place = [], 0
    for reply in replies:
        for program, answer, image, kind in zip(
            reply["programs"], reply["answers"], reply["images"], reply["types"], strict=True
        ):
            if (answer >= 0) == valid:
                rows.append((tuple(program.tolist()), answer, image, place, kind))
            place += 1
    return rows


def test_the_tables_hold_every_reply_in_its_order():
    memory, replies = filled()
    assert flat(memory.asked()) == expected(replies, True)
    assert flat(memory.refused()) == expected(replies, False)
    assert flat(memory.rows()) == flat(initial()) + expected(replies, True)
    assert memory.bought == 120
    stored = memory.state_dict()["known"]
    valid = [reply["answers"] >= 0 for reply in replies]
    assert stored["rounds"].tolist() == [r for r, v in enumerate(valid, 1) for _ in range(v.sum())]


def test_a_smaller_budget_is_what_was_bought_with_it():
    memory, _ = filled()
    small, _ = filled(rounds=3)
    words = vocabulary.build([])
    features = Features(np.zeros((9, 1, 1, 1), np.float32))
    assert flat(memory.dataset(words, features, 60).rows) == flat(small.rows())
    assert flat(memory.dataset(words, features, 0).rows) == flat(initial())
    assert flat(memory.dataset(words, features).rows) == flat(memory.rows())


def test_a_batch_is_half_new_and_half_of_everything():
    memory, _ = filled()
    new = len(memory.asked())
    fresh = len(memory.asked()) - len(filled(rounds=5)[0].asked())
    seen = Counter()
    for update in range(fresh):
        places = memory.draw(6, update, 10, replay=0.5, seed=3)
        assert (places[:5] >= 5 + new - fresh).all()
        assert (places < 5 + new).all()
        seen.update(places[:5].tolist())
    assert len(seen) == fresh
    assert set(seen.values()) == {5}
    replayed = [memory.draw(6, u, 10, replay=0.5, seed=3)[5:] for u in range(400)]
    counts = np.bincount(np.concatenate(replayed), minlength=5 + new)
    assert counts.min() > 0
    assert counts.max() < 3 * counts.mean()


def test_a_batch_is_a_function_of_seed_round_and_update():
    memory, _ = filled()
    early, _ = filled(rounds=4)
    same = {"size": 12, "replay": 0.5, "seed": 7}
    assert np.array_equal(memory.draw(4, 2, **same), early.draw(4, 2, **same))
    first = memory.draw(4, 0, **same)
    for other in (
        memory.draw(4, 1, **same),
        memory.draw(5, 0, **same),
        memory.draw(4, 0, **same | {"seed": 8}),
    ):
        assert not np.array_equal(first, other)


def test_a_round_without_a_valid_reply_replays():
    memory = Memory(initial())
    memory.add(1, images=[0], programs=np.array([[1, 2]]), answers=np.array([-1]), types=[3])
    places = memory.draw(1, 0, 16, replay=0.5, seed=0)
    assert len(places) == 16
    assert (places < 5).all()


def test_a_memory_comes_back_from_its_state():
    memory, _ = filled(rounds=4)
    state = memory.state_dict()
    tensors = [value for part in ("known", "invalid") for value in state[part].values()]
    assert all(isinstance(value, torch.Tensor) for value in tensors)
    again, _ = filled(rounds=7)  # whose rows are wider, and are lost
    again.load_state_dict(state)
    for step in (5, 6):
        assert flat(again.rows()) == flat(memory.rows())
        assert flat(again.refused()) == flat(memory.refused())
        for each in (memory, again):
            buy(each, step, 20, step)


def test_a_checkpoint_of_another_beginning_is_not_taken():
    memory, _ = filled(rounds=1)
    with pytest.raises(ValueError, match="began with 5 questions, this run with 3"):
        Memory(initial(3)).load_state_dict(memory.state_dict())


def test_rows_that_were_handed_out_do_not_change():
    memory, _ = filled(rounds=1)
    rows = memory.asked()
    before = flat(rows)
    for step in range(2, 9):
        buy(memory, step, 20, step)
    assert flat(rows) == before


def test_faulty_replies_are_named():
    memory, _ = filled(rounds=3)
    with pytest.raises(ValueError, match="round 2 comes behind round 3"):
        buy(memory, 2, 1, 1)
    with pytest.raises(ValueError, match="2 programs were given for 1 images"):
        memory.add(4, images=[0], programs=np.ones((2, 3)), answers=np.array([4]), types=[0])


def test_asking_the_questions_of_the_data_set_gives_the_data_set():
    made = builtin.build(split="val", images=20, per_image=5)
    words = vocabulary.build(made.questions)
    rows = encode(made.questions, words)
    oracle, memory = Symbolic(made.scenes, words), Memory(rows.select(range(10)))
    order = np.random.default_rng(0).permutation(len(rows))
    for step, places in enumerate(np.array_split(order, 7), 1):
        images, programs = rows.image_idxs[places], rows.programs[places]
        answers = np.array([reply.answer for reply in oracle.ask(images, programs)])
        memory.add(
            step, images=images, programs=programs, answers=answers, types=rows.types[places]
        )
    strip = lambda found: Counter((p, a, i, k) for p, a, i, _, k in flat(found))  # noqa: E731
    assert strip(memory.asked()) == strip(rows)
    assert not len(memory.refused())
