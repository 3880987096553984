"""Rounds of train.py beside a loop written by hand, stopped runs, and what the agent can see."""

import copy
import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.clevr.arrays.encode import QuestionArrays
from common.clevr.execute import execute
from common.data import seed_everything, seed_of
from common.run import checkpoint
from common.sampling import SampleStream
from learning_by_asking import data
from learning_by_asking.agent import FIRST, Agent
from learning_by_asking.ask import SCORES, Policy
from learning_by_asking.asking.history import Asked, read_history
from learning_by_asking.asking.learn import train_answerer
from learning_by_asking.asking.propose import propose
from learning_by_asking.asking.sources import SOURCES
from learning_by_asking.build import build_agent
from learning_by_asking.config import Config, Learn, Rounds
from learning_by_asking.data import World
from learning_by_asking.oracle.ledger import Entry, Ledger
from learning_by_asking.oracle.oracles import Oracle, open_ledger
from learning_by_asking.oracle.replies import Reply
from learning_by_asking.train import train

from .small import WORLD, settings
from .test_oracle import SCENES, reach

FREE = Oracle(relevance_free=True)


def prepare(cfg: Config, *, turned: bool = False) -> tuple[Agent, World, Ledger]:
    """What train.py has before the first round; turned: the scenes belong to other images."""
    Path(cfg.output_dir).mkdir(exist_ok=True)
    world = data.build(cfg.data, cfg.seed, text=cfg.question_form == "text")
    scenes = list(data.scenes_of(cfg.data, "train"))
    ledger = open_ledger(
        cfg.oracle,
        cfg.budget,
        cfg.output_dir,
        vocabulary=world.words,
        features=world.init.features,
        find_scenes=lambda: scenes[::-1] if turned else scenes,
    )
    agent = build_agent(
        cfg,
        world,
        torch.device("cpu"),
        peek=ledger.peek,
        generated=lambda: data.generate_questions(cfg, world),
    )
    return agent, world, ledger


def saved(folder: Path, step: int) -> dict:
    return checkpoint.load(folder / f"checkpoint-{step:08d}.pt")["parts"]


def untimed(folder: Path) -> list[Asked]:
    return [replace(line, seconds=None) for line in read_history(folder)]


# By hand


class Hand:
    """Sec. 3 in plain Python: H for each answer, the score by it, and a list of what is known."""

    def __init__(self, cfg: Config, world: World) -> None:
        self.cfg, self.world = cfg, world
        self.H = [1 / 28] * 28
        self.snapshots = [self.H[:], self.H[:]]  # H_{t-D} and H_t
        self.seen: set[int] = set()
        self.counted: set[int] = set()
        self.total = 0
        rows = world.init.rows
        self.known = [
            (int(image), program.tolist(), int(answer))
            for image, program, answer in zip(
                rows.image_idxs, rows.programs, rows.answers, strict=True
            )
        ]

    def improvement(self, answer: int) -> float:
        if answer not in self.counted:
            return self.cfg.policy.optimism
        before, after = (H[answer] for H in self.snapshots)
        return min(1.0, max(-1.0, (after - before) / after))

    def observe(self, answer: int, right: bool) -> None:
        self.H[answer] += self.cfg.policy.rate * (right - self.H[answer])
        self.seen.add(answer)
        self.total += 1
        if self.total % self.cfg.policy.refresh == 0:
            self.snapshots = [self.snapshots[1], self.H[:]]
            self.counted = set(self.seen)

    def places(self, step: int, update: int, first: int) -> list[int]:
        """The batch of an update: half of it new replies, the rest anything known."""
        size, end = self.cfg.rounds.batch_size, len(self.known)
        fresh = size - round(self.cfg.rounds.replay * size) if end > first else 0
        order = np.random.default_rng(seed_of(self.cfg.seed, step, 3)).permutation(end - first)
        turn = range(update * fresh, (update + 1) * fresh)
        new = [first + int(order[i % (end - first)]) for i in turn]
        random = np.random.default_rng((seed_of(self.cfg.seed, step, 4), update))
        return [*new, *random.integers(end, size=size - fresh).tolist()]


def dice(cfg: Config, step: int, use: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(cfg.seed, step, 100 + use))


def pick(scores: list[float], keys: Tensor, explore: bool) -> int:
    values = keys.tolist() if explore else [round(score, 6) for score in scores]
    return values.index(max(values))


def by_hand(cfg: Config, rounds: int) -> tuple[dict[str, Tensor], Hand, list[tuple]]:
    """Weights of the answerer, H, and (round, image, program, score, reply) of all questions."""
    agent, world, _ = prepare(cfg)
    agent.begin()
    scenes, words, hand = data.scenes_of(cfg.data, "train"), world.words, Hand(cfg, world)
    network, features, asked = agent.answerer, world.init.features, []
    optimizer = torch.optim.Adam(network.parameters(), cfg.rounds.lr)
    stream = SampleStream(len(world.images), cfg.rounds.images, seed=cfg.seed)
    for step in range(1, rounds + 1):
        images = world.images[[place for _, place in stream.share(step - 1, 0, 1)]]
        found = propose(
            agent.draw,
            torch.from_numpy(images),
            features[images],
            agent.asked,
            cfg.generator,
            generator=dice(cfg, step, 1),
        )
        random = dice(cfg, step)
        explore = torch.rand(len(images), generator=random) < cfg.policy.epsilon
        keys = torch.rand(found.allowed.shape, generator=random)
        first, observed = len(hand.known), []
        network.eval()
        for i, image in enumerate(images.tolist()):
            places = found.allowed[i].nonzero()[:, 0]
            if not len(places):
                continue
            programs = found.tokens[i, places]
            with torch.no_grad():
                one = torch.zeros(len(places), dtype=torch.int64)
                chances = network(programs, features[np.array([image])], one).softmax(1)[:, 4:]
            scores = [
                sum(p * hand.improvement(a) for a, p in enumerate(row)) for row in chances.tolist()
            ]
            best = pick(scores, keys[i, places], bool(explore[i]))
            program = programs[best].tolist()
            text = [words.tokens[token] for token in program]
            answer = execute(text, scenes[image], require_end=True).answer
            agent.asked.add(np.array([image]), np.array([program]))
            asked.append((step, image, words.decode_program(program), scores[best], answer))
            if answer is not None:
                number = words.answer[answer]
                hand.known.append((image, program, number))
                observed.append((number - 4, int(chances[best].argmax()) == number - 4))
        for answer, right in observed:  # before the answerer learns from them
            hand.observe(answer, right)
        network.train()
        for update in range(cfg.rounds.updates):
            seed_everything(seed_of(cfg.seed, step, 1000 + update))
            chosen = [hand.known[place] for place in hand.places(step, update, first)]
            width = max(len(program) for _, program, _ in chosen)
            rows = torch.tensor([p + [0] * (width - len(p)) for _, p, _ in chosen])
            own, image_of = np.unique([image for image, _, _ in chosen], return_inverse=True)
            logits = network(rows, features[own], torch.from_numpy(image_of))
            loss = F.cross_entropy(logits, torch.tensor([answer for _, _, answer in chosen]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.state_dict(), hand, asked


def test_the_answerer_starts_from_a_public_checkpoint(tmp_path, capsys):
    plain = settings(tmp_path)
    public = prepare(plain)[0].answerer.state_dict()
    public = {name: torch.full_like(value, 0.5) for name, value in public.items()}
    content = {"baseline_type": "CNN+LSTM+SA", "baseline_state": public, "vocab": {}}
    torch.save(content, tmp_path / "sa.pt")
    agent, _, _ = prepare(replace(plain, init=str(tmp_path / "sa.pt")))
    found = agent.answerer.state_dict()
    assert torch.equal(found["classifier.0.weight"], public["classifier.0.weight"])
    assert f"{tmp_path}/sa.pt: " in capsys.readouterr().out
    torch.save(content | {"baseline_type": "LSTM"}, tmp_path / "lstm.pt")
    with pytest.raises(ValueError, match=r"lstm\.pt is no checkpoint of CNN\+LSTM\+SA"):
        prepare(replace(plain, init=str(tmp_path / "lstm.pt")))


def test_the_beginning_is_learned_with_its_own_options(tmp_path):
    start = Learn(steps=2, lr=3e-3, batch_size=7, weight_decay=0.5)
    cfg = settings(tmp_path, start=start)
    agent, world, _ = prepare(cfg)
    plain = copy.deepcopy(agent.answerer)
    agent.begin()
    train_answerer(plain, world.init, **vars(start), seed=seed_of(cfg.seed, 0, 3))
    for ours, theirs in zip(agent.answerer.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("soft", [False, True])
def test_progress_counts_right_answers_or_their_probability(soft, tmp_path):
    cfg = settings(tmp_path, policy=Policy(soft=soft, rate=0.25))
    agent, world, _ = prepare(cfg)
    chances = np.full(28, 0.3 / 27)
    chances[5] = 0.7
    entry = Entry(0, tuple(world.words.encode_program(["exist", "scene"])), 0, chances)
    agent.take(1, [entry], [Reply(FIRST + 5, True, "")])
    assert float(agent.progress.accuracy[5]) == pytest.approx(
        1 / 28 + 0.25 * ((0.7 if soft else 1) - 1 / 28)
    )


@pytest.mark.parametrize("kind", ["learned", "refreshed"])
def test_relevance_goes_on_learning_where_it_is_refreshed(kind, tmp_path):
    cfg = settings(tmp_path)
    agent, _, ledger = prepare(replace(cfg, relevance=replace(cfg.relevance, kind=kind)))
    agent.begin()
    before = copy.deepcopy(agent.relevance.state_dict())
    play(agent, ledger, 1)
    same = [torch.equal(before[key], value) for key, value in agent.relevance.state_dict().items()]
    assert all(same) == (kind == "learned")


def test_the_log_says_how_varied_the_proposals_are(tmp_path):
    cfg = settings(tmp_path)
    agent, _, _ = prepare(cfg)
    proposals = agent.propose(1, agent.draw_images(1, 6))
    asked = proposals.tokens[proposals.allowed]
    assert agent.round["distinct"] == pytest.approx(len(asked.unique(dim=0)) / len(asked))
    train(cfg)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all({"distinct", "type_entropy", "length", "validity"} <= row.keys()
               for row in logged if "loss" in row)  # fmt: skip


@pytest.mark.parametrize("name", ["sa", "film"])  # film answers otherwise in training mode
def test_three_rounds_equal_a_loop_written_by_hand(name, tmp_path):
    cfg = settings(
        tmp_path / "run",
        budget=36,
        answerer=replace(settings(tmp_path).answerer, name=name),
        start=Learn(steps=10, lr=1e-2, batch_size=8),  # so that scores differ
        policy=Policy(epsilon=0.3, rate=0.2, refresh=2, optimism=0.5),
        rounds=Rounds(images=12, updates=3, lr=5e-3, batch_size=10, replay=0.4),
    )
    train(cfg)
    weights, hand, asked = by_hand(replace(cfg, output_dir=str(tmp_path / "hand")), 3)
    history, parts = read_history(tmp_path / "run"), saved(tmp_path / "run", 3)
    assert len(asked) > 24
    assert [line[:3] for line in asked] == [
        (line.round, line.image_index, list(line.program)) for line in history
    ]
    assert [line[4] for line in asked] == [line.reply for line in history]
    assert [line[3] for line in asked] == pytest.approx([line.score for line in history], abs=1e-5)
    assert 4 <= hand.total < len(asked)
    assert len(set(hand.H)) > 2
    progress = parts["progress"]
    assert progress["accuracy"].tolist() == pytest.approx(hand.H)
    assert progress["after"].tolist() == pytest.approx(hand.snapshots[1])
    assert progress["before"].tolist() == pytest.approx(hand.snapshots[0])
    start = saved(tmp_path / "run", 0)["answerer"]
    for name, value in parts["answerer"].items():
        if value.numel() > 1:  # a bias under the attention's softmax has only noise as gradient
            torch.testing.assert_close(value, weights[name], atol=1e-4, rtol=1e-3, msg=name)
    assert any((start[name] - value).abs().max() > 5e-3 for name, value in weights.items())


# Stopped and resumed


@pytest.mark.parametrize("kept", ["of the checkpoint", "paid beyond it"])
def test_a_run_stopped_after_a_round_and_resumed_ends_as_one_that_never_stopped(kept, tmp_path):
    cfg = settings(tmp_path / "whole", budget=24, save_every=2)
    if kept == "paid beyond it":
        refreshed = replace(cfg.relevance, kind="refreshed")
        cfg = replace(cfg, relevance=refreshed, generator=replace(cfg.generator, kind="lstm"))
    else:  # few images and many draws, so that what was asked before is drawn again
        many = replace(cfg.generator, raw=40, kept=40)
        cfg = replace(cfg, data=replace(cfg.data, images=6, init=30), generator=many)
    train(cfg)
    assert len(read_history(tmp_path / "whole")) == 24
    (tmp_path / "again").mkdir()
    for name in ("checkpoint-00000002.pt", "first_losses.json", "ask_log.jsonl"):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "again")
    log = tmp_path / "again" / "ask_log.jsonl"
    if kept == "of the checkpoint":
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join(line for line in lines if json.loads(line)["round"] <= 2))
        assert 0 < len(read_history(tmp_path / "again")) < 24
    train(replace(cfg, output_dir=str(tmp_path / "again")))
    assert untimed(tmp_path / "again") == untimed(tmp_path / "whole")
    a, b = (saved(tmp_path / name, 4) for name in ("whole", "again"))
    assert a.keys() == b.keys()
    for part in {"answerer", "relevance", "generator", "progress"} & a.keys():
        assert a[part].keys() == b[part].keys()
        for name, value in a[part].items():
            torch.testing.assert_close(b[part][name], value, atol=0, rtol=0, equal_nan=True)
    for name, value in a["memory"]["known"].items():
        torch.testing.assert_close(b["memory"]["known"][name], value, atol=0, rtol=0)


@pytest.mark.slow
def test_two_processes_buy_exactly_the_budget(commands, tmp_path):
    words = ["experiment=smoke", "budget=47", "models=[]", f"hydra.run.dir={tmp_path}"]
    ranks = commands.start_ranks("learning_by_asking", *words)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].text
    history = read_history(tmp_path)
    assert len(history) == 47
    asked = [(line.image_index, line.program) for line in history]
    assert len(set(asked)) == 47
    assert max(Counter(line.round for line in history).values()) <= 10
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert metrics["bought"] == 47


# What the agent can see


def play(agent: Agent, ledger: Ledger, step: int) -> None:
    """A round without its updates."""
    images = agent.draw_images(step, ledger.left)
    proposals = agent.propose(step, images)
    chances = agent.answer(proposals)
    scores = agent.score(step, proposals, chances)
    choice = agent.choose(step, scores, proposals, ledger.left)
    entries = agent.describe(proposals, chances, scores, choice, ledger.left)
    agent.take(step, entries, ledger.buy(step, entries))


def play_two(cfg: Config) -> list[Asked]:
    """What is asked in two rounds without updates."""
    agent, _, ledger = prepare(cfg)
    agent.begin()
    for step in (1, 2):
        play(agent, ledger, step)
    history = read_history(cfg.output_dir)
    assert agent.memory.bought == ledger.spent == len(history)
    return history


def reached(agent: Agent) -> list[object]:
    """Scenes that can be reached from the agent."""
    return [one for one in reach([agent]) if isinstance(one, SCENES)]


@pytest.mark.parametrize("source", SOURCES)
def test_the_agent_reaches_no_scene_graph(source, tmp_path):
    refreshed = replace(settings(tmp_path).relevance, kind="refreshed")
    cfg = settings(tmp_path, source=source, oracle=FREE, relevance=refreshed)
    agent, _, ledger = prepare(cfg)
    agent.begin()
    play(agent, ledger, 1)
    assert agent.memory.bought > 3
    assert not reached(agent)
    assert reached(replace(agent, peek=ledger.peek))  # only an upper bound is given this


def test_other_scene_graphs_leave_the_first_proposals_and_scores_as_they_are(tmp_path):
    logs = []
    for name in ("right", "turned"):
        agent, _, ledger = prepare(settings(tmp_path / name), turned=name == "turned")
        agent.begin()
        play(agent, ledger, 1)
        logs.append(untimed(tmp_path / name))
    assert logs[0] != logs[1]
    blank = {"reply": None, "valid": False, "reason": "", "v_prob_answer": None}
    assert [replace(a, **blank) for a in logs[0]] == [replace(b, **blank) for b in logs[1]]


# Sources and scores


@pytest.mark.parametrize("score", SCORES)
def test_every_score_spends_its_budget_on_new_questions(score, tmp_path):
    history = play_two(settings(tmp_path, policy=Policy(score=score, refresh=4), oracle=FREE))
    if score != "oracle_loss":  # which asks only what has an answer
        assert len(history) == 12
    else:
        assert all(line.valid or line.eps_random for line in history)
    assert len({(line.image_index, line.program) for line in history}) == len(history) > 0
    assert all(line.score is not None and math.isfinite(line.score) for line in history)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_spends_its_budget(source, tmp_path):
    train(settings(tmp_path, source=source))
    history = read_history(tmp_path)
    assert [line.round for line in history] == [1] * 6 + [2] * 6
    assert len({(line.image_index, line.program) for line in history}) == 12
    if source != "lba":
        assert all(line.valid for line in history)


@pytest.mark.parametrize("changed", [{"factor": "type_answer"}, {"soft": True}])
def test_progress_by_type_and_soft_progress_are_kept(changed, tmp_path):
    train(settings(tmp_path, source="passive", policy=Policy(refresh=4, **changed)))
    H = saved(tmp_path, 2)["progress"]["accuracy"]
    assert H.shape == ((13 * 28,) if "factor" in changed else (28,))
    assert (H != 1 / 28).any()


@pytest.mark.parametrize("kind", ["learned", "oracle"])
def test_proposals_are_filtered_by_their_relevance(kind, tmp_path):
    relevance = replace(settings(tmp_path).relevance, kind=kind)
    history = play_two(settings(tmp_path, relevance=relevance, oracle=FREE))
    assert 6 < len(history) <= 12
    assert all(line.relevance is not None for line in history)
    if kind == "oracle":
        assert all(line.valid for line in history)


def test_a_global_pick_buys_the_best_of_all_images(tmp_path):
    train(settings(tmp_path, policy=Policy(refresh=4, global_pick=3, epsilon=0.0)))
    history = read_history(tmp_path)
    assert Counter(line.round for line in history) == dict.fromkeys(range(1, 5), 3)
    for step in range(1, 5):
        scores = [line.score for line in history if line.round == step]
        assert scores == sorted(scores, reverse=True)


def test_an_answerer_of_words_remembers_the_sentences(tmp_path):
    train(settings(tmp_path, question_form="text"))
    known = saved(tmp_path, 2)["memory"]["known"]
    assert len(known["questions"]) > 0
    assert (known["questions"][:, 1] > 0).all()


def multiset(rows: QuestionArrays, world: World) -> Counter:
    return Counter(
        (int(image), tuple(world.words.decode_program(program)), world.words.decode_answer(answer))
        for image, program, answer in zip(rows.image_idxs, rows.programs, rows.answers, strict=True)
    )


@pytest.mark.parametrize("source", ["passive", "passive_images"])
def test_a_passive_source_gives_the_questions_of_the_data_set_and_their_answers(source, tmp_path):
    cfg = settings(tmp_path, source=source)
    cfg = replace(cfg, budget=WORLD.train_images * WORLD.per_image - cfg.data.init)
    train(cfg)
    world = data.build(cfg.data, cfg.seed)
    history = read_history(tmp_path)
    assert Counter((line.image_index, line.program, line.reply) for line in history) == multiset(
        world.pool.rows, world
    )
    changes = sum(a.image_index != b.image_index for a, b in pairwise(history))
    images = len({line.image_index for line in history})
    assert (changes == images - 1) == (source == "passive_images")
