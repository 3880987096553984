"""More than one process: loaders, ranks that buy together, and runs beside each other.

Run as a script, this file is what two ranks do: `python <file> FOLDER CASE`.
"""

import datetime
import json
import multiprocessing
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed

from common import dist
from common.clevr import dataset
from common.clevr.programs import canonical
from common.run.checkpoint import CheckpointError
from learning_by_asking import train as script
from learning_by_asking.agent import Agent
from learning_by_asking.ask import Policy
from learning_by_asking.asking.history import read_history
from learning_by_asking.config import Config
from learning_by_asking.data import World
from learning_by_asking.evaluate import learn_offline
from learning_by_asking.oracle.ledger import Ledger
from tests.learning_by_asking.small import settings
from tests.learning_by_asking.test_wiring import play, prepare, saved

# Loaders


def test_loader_processes_change_nothing(tmp_path, monkeypatch):
    started: list[int] = []
    load = dataset.DataLoader

    def note(*args, num_workers, **options):
        started.append(num_workers)
        return load(*args, num_workers=num_workers, **options)

    monkeypatch.setattr(dataset, "DataLoader", note)
    learned = []
    for workers in (0, 1):
        plain = settings(tmp_path / str(workers))
        cfg = replace(plain, data=replace(plain.data, workers=workers))
        agent, world, ledger = prepare(cfg)
        started.clear()
        agent.begin()
        assert (started[0], set(started[1:])) == (workers, {0})  # only to learn from
        play(agent, ledger, 1)
        started.clear()
        offline = learn_offline(agent, cfg, world, "lstm", 6)
        assert started == [workers]
        learned.append([*agent.answerer.parameters(), *offline.parameters()])
    for alone, loaded in zip(*learned, strict=True):
        assert torch.equal(alone, loaded)


# Runs beside each other


def test_a_run_in_another_folder_leaves_the_log_of_the_first_as_it_is(tmp_path):
    logs = []
    for name in ("first", "second"):
        agent, _, ledger = prepare(settings(tmp_path / name))
        agent.begin()
        play(agent, ledger, 1)
        logs.append((tmp_path / "first" / "ask_log.jsonl").read_bytes())
        assert len(read_history(tmp_path / name)) == 6
    assert logs[0] == logs[1]


LOCK = """
import fcntl, sys
file = open(sys.argv[1], "a+b")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Path]:
    """The folder of a run that is under way in another process."""
    words = [sys.executable, "-c", LOCK, str(tmp_path / ".lock")]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        yield tmp_path
        other.communicate()


def test_the_log_of_a_run_that_is_under_way_is_neither_mended_nor_appended_to(busy):
    log = busy / "ask_log.jsonl"
    log.write_text('{"round": 1, "image_ind')  # a line that is just being written
    with pytest.raises(CheckpointError, match="is in use by"):
        script.train(settings(busy))
    assert log.read_text() == '{"round": 1, "image_ind'
    assert not list(busy.glob("checkpoint*"))


# Ranks

LAST = {  # what a run is, and how many replies are bought in each round
    "one reply is left": ({"budget": 7}, [6, 1]),
    "one question is left": ({"budget": 7, "source": "passive"}, [6, 1]),
    "one image is asked about": ({"budget": 3}, [1, 1, 1]),
    "no new question is left": ({"budget": 40}, None),
}


def case(folder: Path, name: str) -> Config:
    plain = settings(folder, **LAST[name][0])
    typed = replace(plain.generator, kind="typed")
    match name:
        case "one image is asked about":
            few, one = replace(plain.data, images=1, init=5), replace(plain.rounds, images=1)
            return replace(plain, data=few, rounds=one, generator=typed)
        case "no new question is left":  # each of the two images comes three times in a round
            return replace(plain, data=replace(plain.data, images=2, init=8))
    return plain


@pytest.mark.slow
@pytest.mark.parametrize("name", LAST)
def test_ranks_of_which_one_has_no_question_end_alike_with_the_budget_bought(
    name, commands, tmp_path
):
    done = commands.run("", str(tmp_path), name, script=__file__)
    assert done.returncode == 0, done.stderr
    assert [path.parent.name for path in tmp_path.rglob("ask_log.jsonl")] == ["run"]
    history = read_history(tmp_path / "run")
    rounds, bought = Counter(line.round for line in history), LAST[name][1]
    assert bought is None or rounds == dict(enumerate(bought, 1))
    assert len({(line.image_index, canonical(line.program)) for line in history}) == len(history)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    assert [rank["bought"] for rank in ranks] == [len(history)] * 2
    last = json.loads((tmp_path / "run" / "result.json").read_text())["steps"]
    start, end = (saved(tmp_path / "run", step)["answerer"] for step in (0, last))
    for rank in ranks:
        assert rank["answerer"].keys() == end.keys()
        assert all(torch.equal(value, end[key]) for key, value in rank["answerer"].items())
    assert any(not torch.equal(value, start[key]) for key, value in end.items())


def test_what_two_ranks_choose_about_one_image_is_bought_once(tmp_path, monkeypatch):
    agent, _, ledger = prepare(settings(tmp_path))
    agent.begin()
    monkeypatch.setattr(dist, "gather", lambda value: [value, value])
    play(agent, ledger, 1)
    history = read_history(tmp_path)
    assert len({(line.image_index, canonical(line.program)) for line in history}) == len(history)


@pytest.mark.parametrize(
    ("most", "left", "shares"), [(1, 9, [1, 0]), (5, 9, [3, 2]), (5, 4, [2, 2])]
)
def test_two_ranks_share_a_global_pick_out(most, left, shares, tmp_path, monkeypatch):
    agent, *_ = prepare(settings(tmp_path, policy=Policy(global_pick=most)))
    proposals = agent.propose(1, agent.world.images[:4])
    scores = torch.rand(proposals.allowed.shape)
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    for rank, share in enumerate(shares):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        rows, picks, explored = agent.choose(1, scores, proposals, left)
        assert len(rows) == len(picks) == len(explored) == share


def work(rank: int, folder: Path, name: str) -> None:
    """One of the two ranks: a run, of which it keeps its own answerer."""
    store = distributed.FileStore(str(folder / "store"), 2)
    timeout = datetime.timedelta(seconds=90)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timeout)

    def keep(agent: Agent, cfg: Config, world: World, ledger: Ledger) -> dict[str, float]:
        content = {"answerer": agent.answerer.state_dict(), "bought": ledger.spent}
        torch.save(content, folder / f"rank{rank}.pt")
        return {"online": 0.0, "validity": 0.0}

    script.evaluate = keep
    script.train(case(folder / "run", name))
    distributed.destroy_process_group()


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=work, args=(rank, Path(sys.argv[1]), sys.argv[2])) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in processes))
