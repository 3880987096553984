"""The ledger: an exact budget, a log that no kill spoils.

Run as a script, this file is what two processes do: `python <file> FOLDER`.
"""

import datetime
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as distributed

from common import dist
from common.clevr.vocabulary import standard
from learning_by_asking.oracle.ledger import BudgetExceeded, Entry, Ledger
from learning_by_asking.oracle.replies import Reply

WORDS = standard()
PROGRAMS = [("count", "scene"), ("exist", "scene"), ("count", "unique", "scene")]


class Counting:
    """An oracle of simple rules that counts what it is asked: odd images are invalid.

    dies_at: the number of the question that kills the process, as a signal would.
    """

    def __init__(self, dies_at: int = 10**9) -> None:
        self.asked, self.dies_at = 0, dies_at

    def ask(self, images: np.ndarray, programs: np.ndarray) -> Iterator[Reply]:
        assert len(images) == len(programs)
        for image in images.tolist():
            self.asked += 1
            if self.asked == self.dies_at:
                raise InterruptedError
            good = image % 2 == 0
            yield Reply(WORDS.answer["3"], True, "") if good else Reply(-1, False, "unique_many")


def open_ledger(folder, oracle=None, *, budget: int = 1000, **options) -> Ledger:
    return Ledger(oracle or Counting(), folder, budget=budget, vocabulary=WORDS, **options)


def entry(image: int, program: int = 0, **known) -> Entry:
    ids = tuple(WORDS.encode_program(PROGRAMS[program]))
    return Entry(image, ids, 1, np.full(28, 1 / 28), **known)


def entries_of(round: int, count: int) -> list[Entry]:
    """What a run that is a function of its seed asks in a round; some questions occur twice."""
    random = np.random.default_rng(round)
    return [entry(int(random.integers(20)), int(random.integers(3))) for _ in range(count)]


def spend(
    ledger: Ledger, start: int = 0, size: int = 7, states: dict | None = None
) -> list[list[Reply]]:
    """Rounds until nothing is left; the ledger's state after each goes into `states`."""
    replies, round = [], start
    while ledger.left:
        round += 1
        replies.append(ledger.buy(round, entries_of(round, min(size, ledger.left))))
        if states is not None:
            states[round] = ledger.state_dict()
    return replies


def test_exactly_the_budget_is_sold_and_the_next_call_is_refused(tmp_path):
    oracle = Counting()
    ledger = open_ledger(tmp_path, oracle)
    spend(ledger, size=128)
    assert oracle.asked == ledger.calls == ledger.spent == 1000
    assert len(ledger.path.read_text().splitlines()) == 1000
    with pytest.raises(BudgetExceeded, match="1 replies are asked for, but the budget has 0 left"):
        ledger.buy(9, [entry(0)])
    assert oracle.asked == 1000


def test_a_request_beyond_the_rest_is_refused_as_a_whole(tmp_path):
    oracle = Counting()
    ledger = open_ledger(tmp_path, oracle, budget=5)
    ledger.buy(1, entries_of(1, 3))
    with pytest.raises(BudgetExceeded, match=r"3 replies .* 2 left"):
        ledger.buy(2, entries_of(2, 3))
    assert (oracle.asked, ledger.left, ledger.calls) == (3, 2, 3)
    assert len(ledger.buy(2, entries_of(2, 2))) == 2


@pytest.mark.parametrize(("cost", "spent"), [(1, 4), (0, 2)])
def test_an_invalid_reply_costs_what_is_said(cost, spent, tmp_path):
    ledger = open_ledger(tmp_path, budget=4, cost_invalid=cost)
    replies = ledger.buy(1, [entry(0), entry(1), entry(2), entry(3)])
    assert [reply.valid for reply in replies] == [True, False, True, False]
    assert (ledger.spent, ledger.calls, ledger.valid, ledger.left) == (spent, 4, 2, 4 - spent)


def test_a_line_says_what_was_asked_and_why(tmp_path):
    ledger = open_ledger(tmp_path)
    chances = np.full(28, 0.5 / 27)
    chances[WORDS.answer["3"] - 4] = 0.5
    known = {"n_raw": 64, "n_kept": 16, "relevance": 0.75, "score": 0.1234567, "seconds": 0.5}
    ids = (*WORDS.encode_program(PROGRAMS[1]), 0, 0)  # padded
    ledger.buy(
        3, [Entry(2, ids, 0, chances, rank_by_entropy=4, eps_random=True, **known), entry(1)]
    )
    first, second = map(json.loads, ledger.path.read_text().splitlines())
    entropy = -0.5 * math.log(0.5) - 0.5 * math.log(0.5 / 27)
    assert first == {
        "round": 3,
        "image_index": 2,
        "type": "exist",
        "program": ["exist", "scene"],
        "n_raw": 64,
        "n_kept": 16,
        "relevance": 0.75,
        "score": 0.123457,
        "rank_by_entropy": 4,
        "eps_random": True,
        "reply": "3",
        "valid": True,
        "reason": "",
        "v_prob_answer": 0.5,
        "v_entropy": round(entropy, 6),
        "seconds": 0.5,
    }
    assert (second["reply"], second["reason"]) == (None, "unique_many")
    assert (second["relevance"], second["score"], second["v_prob_answer"]) == (None, None, None)


@pytest.mark.parametrize("dies_at", [1, 3, 7, 8, 20, 49, 50])
@pytest.mark.parametrize("saved", [0, 1, 2])
def test_a_killed_run_pays_for_nothing_twice_and_writes_the_same_log(dies_at, saved, tmp_path):
    whole = open_ledger(tmp_path / "whole", budget=50)
    expected = spend(whole)
    ledger = open_ledger(tmp_path / "killed", oracle := Counting(dies_at), budget=50)
    states = {0: ledger.state_dict()}
    with pytest.raises(InterruptedError):
        spend(ledger, states=states)
    state = states.get(saved, states[0])
    start = state["round"]
    again = Counting()
    resumed = open_ledger(tmp_path / "killed", again, budget=50)
    resumed.load_state_dict(state)
    assert resumed.spent == resumed.calls == 7 * start
    assert spend(resumed, start) == expected[start:]
    assert (oracle.asked - 1) + again.asked == 50  # the one that killed was not answered
    assert resumed.path.read_bytes() == whole.path.read_bytes()


def test_replies_that_a_run_does_not_ask_for_again_stay_paid(tmp_path):
    open_ledger(tmp_path, budget=10).buy(1, [entry(0), entry(2), entry(4)])
    oracle = Counting()
    ledger = open_ledger(tmp_path, oracle, budget=10)
    assert ledger.left == 10  # a run that repeats itself gets them again
    ledger.buy(1, [entry(0), entry(6)])  # this one does not
    assert (oracle.asked, ledger.spent, ledger.left) == (1, 4, 6)
    assert open_ledger(tmp_path, budget=10).state_dict() == {"round": 0, "calls": 0}
    later = open_ledger(tmp_path, budget=10)
    later.load_state_dict(ledger.state_dict())
    assert later.spent == 4


def test_the_budget_holds_for_a_run_that_does_not_repeat_itself(tmp_path):
    open_ledger(tmp_path, budget=4).buy(1, [entry(i) for i in range(4)])
    oracle = Counting()
    ledger = open_ledger(tmp_path, oracle, budget=4)
    with pytest.raises(BudgetExceeded, match=r"1 replies .* 0 left"):
        ledger.buy(1, [entry(0), entry(10)])
    assert oracle.asked == 0
    assert len(ledger.buy(1, [entry(0), entry(1)])) == 2


def test_a_line_that_a_kill_cut_off_is_dropped_with_a_warning(tmp_path):
    ledger = open_ledger(tmp_path)
    ledger.buy(1, entries_of(1, 5))
    whole = ledger.path.read_bytes()
    os.truncate(ledger.path, len(whole) - 3)
    oracle = Counting()
    with pytest.warns(UserWarning, match="last line was cut off"):
        resumed = open_ledger(tmp_path, oracle)
    resumed.buy(1, entries_of(1, 5))
    assert oracle.asked == 1
    assert ledger.path.read_bytes() == whole


@pytest.mark.parametrize("line", ["{}", "no json", '{"round": 1, "valid": true, "reply": "pink"}'])
def test_a_damaged_line_is_named(line, tmp_path):
    ledger = open_ledger(tmp_path)
    ledger.buy(1, entries_of(1, 2))
    with ledger.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"ask_log\.jsonl, line 3 is no reply"):
        open_ledger(tmp_path)


def test_a_checkpoint_without_its_log_is_refused(tmp_path):
    ledger = open_ledger(tmp_path / "a")
    ledger.buy(1, entries_of(1, 2))
    with pytest.raises(ValueError, match=r"holds 0 replies up to round 1, but the .* knows of 2"):
        open_ledger(tmp_path / "b").load_state_dict(ledger.state_dict())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"ask_log\.jsonl could not be written"):
        open_ledger(tmp_path / "file").buy(1, [entry(0)])


def test_a_full_disk_is_named_with_what_stays_paid(tmp_path):
    ledger = open_ledger(tmp_path)
    ledger.path = Path("/dev/full")
    with pytest.raises(OSError, match=r"could not be written \(No space left.*stay paid"):
        ledger.buy(1, [entry(0)])


def test_what_is_valid_is_told_for_free_only_where_that_is_allowed(tmp_path):
    rows = np.array([WORDS.encode_program(PROGRAMS[0])] * 2)
    free = open_ledger(tmp_path, relevance_free=True)
    assert [reply.valid for reply in free.peek(np.array([0, 1]), rows)] == [True, False]
    assert (free.spent, free.path.exists()) == (0, False)
    with pytest.raises(ValueError, match=r"oracle\.relevance_free"):
        open_ledger(tmp_path).peek(np.array([0]), rows[:1])


@pytest.mark.parametrize("options", [{"budget": -1}, {"cost_invalid": 2}])
def test_a_budget_or_cost_out_of_range_is_refused(options, tmp_path):
    with pytest.raises(ValueError, match=r"budget=.*cost_invalid="):
        open_ledger(tmp_path, **options)


def test_two_processes_buy_what_one_buys(commands, tmp_path):
    whole = open_ledger(tmp_path / "one", budget=50)
    spend(whole)
    done = commands.run("", str(tmp_path), script=__file__)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two" / "ask_log.jsonl").read_bytes() == whole.path.read_bytes()


def work(rank: int, folder: Path) -> None:
    """One of the two processes."""
    store = distributed.FileStore(str(folder / "store"), 2)
    timeout = datetime.timedelta(seconds=90)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timeout)
    oracle = Counting()
    replies = spend(open_ledger(folder / "two", oracle, budget=50))
    assert dist.gather(replies) == [replies, replies]
    assert dist.gather(oracle.asked) == [50, 0]  # rank 0 alone asks
    distributed.destroy_process_group()


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    arguments = [(rank, Path(sys.argv[1])) for rank in range(2)]
    processes = [fork.Process(target=work, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in processes))
