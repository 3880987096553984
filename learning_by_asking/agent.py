"""The agent: what it proposes, how it answers, what it chooses by, and what it remembers.

I images of a round (of this process), P proposals of an image, L tokens. It sees features of images
and replies, never a scene.
"""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import dist, files
from common.clevr.arrays.encode import QuestionArrays
from common.clevr.functions import SPECIAL
from common.data import seed_everything, seed_of
from common.sampling import SampleStream
from learning_by_asking.ask import (
    Progress,
    choose,
    choose_most,
    correctness,
    entropy,
    score_proposals,
)
from learning_by_asking.asking.draws import train_generator
from learning_by_asking.asking.learn import answer, losses_by_type, train_answerer
from learning_by_asking.asking.memory import Memory
from learning_by_asking.asking.propose import Asked, Proposals, diversity, propose
from learning_by_asking.asking.relevance import (
    Calibrated,
    Known,
    refresh,
    train_relevance,
)
from learning_by_asking.asking.sources import OwnQuestions, passive
from learning_by_asking.config import Config
from learning_by_asking.data import World
from learning_by_asking.language.sentences import encode_sentences
from learning_by_asking.net.generator import ProgramLSTM
from learning_by_asking.oracle.ledger import Entry
from learning_by_asking.oracle.replies import Reply

FIRST_LOSSES = "first_losses.json"
FIRST = len(SPECIAL)  # id of the first answer
ROWS = 8192  # proposals that are answered at a time
PROBED = 2000  # questions that tell which types are hard at first
Choice = tuple[Tensor, Tensor, Tensor]  # rows of images, of proposals, whether at random; (m,)
Peek = Callable[[np.ndarray, np.ndarray], list[Reply]]  # images (n,), programs (n, L)
LEARNED = ("learned", "refreshed")  # kinds of relevance that have a network


@dataclass
class Agent:
    """Networks, progress and memory of a run; the methods follow the order of a round."""

    cfg: Config
    world: World
    device: torch.device
    answerer: nn.Module
    generator: ProgramLSTM | None  # of generator.kind=lstm
    relevance: Calibrated | Known | None
    progress: Progress
    memory: Memory
    asked: Asked
    draw: Any  # of raw programs
    rows: QuestionArrays  # questions of the data set, for the passive sources
    order: np.ndarray  # places of `rows` that a passive source asks, in turn
    own: OwnQuestions | None  # of source=passive_active
    peek: Peek | None  # of policy.score=oracle_loss
    round: dict[str, float] = field(default_factory=dict)  # the last one's, for the log
    began: float = 0.0

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        parts = {"answerer": self.answerer, "progress": self.progress, "memory": self.memory}
        parts |= {"generator": self.generator} if self.generator is not None else {}
        return parts | ({"relevance": self.relevance} if self._learns_relevance() else {})

    def begin(self) -> None:
        """Let g, r and v learn from the questions to begin with."""
        cfg, init = self.cfg, self.world.init
        if self.generator is not None:
            seed_everything(seed_of(cfg.seed, 0, 1))
            loss = train_generator(
                self.generator,
                init,
                cfg.generator,
                seed=seed_of(cfg.seed, 0, 1),
            )
            self._say(f"generator: {loss:.3f} nats a token")
        if self._learns_relevance():
            assert isinstance(self.relevance, Calibrated)
            seed_everything(seed_of(cfg.seed, 0, 2))
            assert init.features is not None
            trained = train_relevance(
                self.relevance.network,
                init.rows,
                init.features,
                cfg.relevance,
                seed=seed_of(cfg.seed, 0, 2),
            )
            self.relevance.load_state_dict(trained.state_dict())
            self._say("relevance: learned and calibrated")
        seed_everything(seed_of(cfg.seed, 0, 3))
        loss = train_answerer(
            self.answerer,
            init,
            steps=cfg.start.steps,
            lr=cfg.start.lr,
            batch_size=cfg.start.batch_size,
            weight_decay=cfg.start.weight_decay,
            seed=seed_of(cfg.seed, 0, 3),
            form=cfg.question_form,
            workers=cfg.data.workers,
        )
        self._say(f"answerer: loss {loss:.3f} on the questions to begin with")
        rest = self.world.pool  # of the data set, for this figure alone: all types, no test
        some = rest.subset(np.linspace(0, len(rest) - 1, min(PROBED, len(rest))).astype(np.int64))
        losses = losses_by_type(self.answerer, some, form=cfg.question_form)
        if dist.is_main():  # for the curriculum: which types were hard at first
            known = {kind: value for kind, value in losses.items() if math.isfinite(value)}
            files.write_text(Path(cfg.output_dir, FIRST_LOSSES), json.dumps(known) + "\n")

    def restore(self) -> None:
        """After a resume: what was asked already is asked no more."""
        for rows in (self.memory.asked(), self.memory.refused()):
            if rows.programs is not None and len(rows):
                self.asked.add(rows.image_idxs, rows.programs)

    # ---- a round

    def dice(self, step: int, use: int = 0) -> torch.Generator:
        """Random numbers of this round and process, on the CPU."""
        generator = torch.Generator()
        generator.manual_seed(seed_of(self.cfg.seed, step, 100 + 10 * dist.rank() + use))
        return generator

    def draw_images(self, step: int, left: int) -> np.ndarray:
        """What this process asks about: rows of the features, or places of a passive source."""
        self.began = time.time()
        if self.cfg.source in ("lba", "passive_active"):
            stream = SampleStream(
                len(self.world.images), self.cfg.rounds.images, seed=self.cfg.seed
            )
            keys = stream.share(step - 1, 0, 1)  # all, for some may have no new question
            chosen = self.world.images[[place for _, place in keys]]
        else:
            done = self.memory.bought
            chosen = self.order[done : done + min(self.cfg.rounds.images, left)]
        return chosen[dist.rank() :: dist.world_size()]

    @torch.no_grad()
    def propose(self, step: int, images: np.ndarray) -> Proposals:
        """Proposals (I, P); a passive source has one for each place."""
        if self.cfg.source == "lba":
            found = propose(
                self.draw,
                torch.from_numpy(images),
                self.features(images),
                self.asked,
                self.cfg.generator,
                generator=self.dice(step, 1),
                relevance=self.relevance,
            )
            self.round = diversity(found)
            return found
        if self.cfg.source == "passive_active":
            assert self.own is not None
            found = self.own.propose(torch.from_numpy(images))
        else:
            found = passive(self.rows, images)
        moved = ("tokens", "types", "allowed", "relevance", "raw")
        return replace(found, **{name: getattr(found, name).to(self.device) for name in moved})

    @torch.no_grad()
    def answer(self, proposals: Proposals) -> Tensor:
        """v(a | I, q) float32 (I, P, 28) in evaluation mode; NaN in the gaps."""
        count, P, _ = proposals.tokens.shape
        if not count:  # in a last round with fewer images than processes
            return torch.zeros(0, P, len(self.world.words.answers) - FIRST, device=self.device)
        training = self.answerer.training
        self.answerer.eval()
        parts = []
        for places in torch.arange(count).split(max(1, ROWS // P)):
            rows = self.read(proposals.tokens[places].flatten(0, 1))
            features = self.features(proposals.images[places].numpy())
            image_of = torch.arange(len(places), device=self.device).repeat_interleave(P)
            parts.append(self.answerer(rows, features, image_of).float().softmax(1)[:, FIRST:])
        self.answerer.train(training)
        probabilities = torch.cat(parts).view(count, P, -1)
        return probabilities.masked_fill(~proposals.allowed[..., None], torch.nan)

    def score(self, step: int, proposals: Proposals, probabilities: Tensor) -> Tensor:
        """Scores (I, P) on the CPU by the policy."""
        return score_proposals(
            probabilities.cpu(),
            proposals.types.cpu(),
            self.cfg.policy,
            self.progress,
            generator=self.dice(step, 2),
            losses=self.true_losses(proposals, probabilities) if self.peek else None,
        )

    def true_losses(self, proposals: Proposals, probabilities: Tensor) -> Tensor:
        """The loss of v on the true answer (I, P), NaN where there is none: an upper bound."""
        assert self.peek is not None
        count, P, _ = proposals.tokens.shape
        images = proposals.images.repeat_interleave(P).numpy()
        replies = self.peek(images, proposals.tokens.flatten(0, 1).cpu().numpy())
        answers = torch.tensor([reply.answer for reply in replies]).view(count, P)
        chosen = (answers - FIRST).clamp(min=0)[..., None]
        losses = -probabilities.cpu().gather(2, chosen)[..., 0].log()
        return losses.masked_fill(answers < FIRST, torch.nan)

    def choose(self, step: int, scores: Tensor, proposals: Proposals, left: int) -> Choice:
        """The questions to buy: one of each image, or with policy.global_pick the best of all.

        Several processes share the latter out: each takes the best of its own images.
        """
        allowed, dice = proposals.allowed.cpu(), self.dice(step)
        most = self.cfg.policy.global_pick
        if not most:
            picks, explored = choose(scores, allowed, self.cfg.policy.epsilon, dice)
            rows = (picks >= 0).nonzero()[:, 0]
            return rows, picks[rows], explored[rows]
        share, rest = divmod(min(most, left), dist.world_size())
        share += dist.rank() < rest
        return choose_most(scores, allowed, self.cfg.policy.epsilon, dice, most=share)

    def describe(
        self, proposals: Proposals, probabilities: Tensor, scores: Tensor, choice: Choice, left: int
    ) -> list[Entry]:
        """What is to be bought, of all processes, no more than is left."""
        allowed, doubt = proposals.allowed.cpu(), entropy(probabilities.cpu())
        seconds = (time.time() - self.began) / max(1, len(choice[0]))
        entries = []
        for i, p, explored in zip(*(part.tolist() for part in choice), strict=True):
            entries.append(
                Entry(
                    image=int(proposals.images[i]),
                    program=tuple(proposals.tokens[i, p].tolist()),
                    type=int(proposals.types[i, p]),
                    probabilities=probabilities[i, p].cpu().numpy(),
                    n_raw=int(proposals.raw[i]),
                    n_kept=int(allowed[i].sum()),
                    relevance=float(proposals.relevance[i, p]),
                    score=float(scores[i, p]),
                    rank_by_entropy=int(((doubt[i] > doubt[i, p]) & allowed[i]).sum()),
                    eps_random=explored,
                    seconds=seconds,
                )
            )
        everyone = chain.from_iterable(zip_longest(*dist.gather(entries)))
        return self._once([entry for entry in everyone if entry is not None])[:left]

    def take(self, step: int, entries: Sequence[Entry], replies: Sequence[Reply]) -> None:
        """Note the replies: H by v's predictions before it learns, the memory, what was asked."""
        if not entries:
            return
        width = max(len(entry.program) for entry in entries)
        programs = np.zeros((len(entries), width), np.int64)
        for row, entry in zip(programs, entries, strict=True):
            row[: len(entry.program)] = entry.program
        images = np.array([entry.image for entry in entries])
        answers = np.array([reply.answer for reply in replies])
        types = np.array([entry.type for entry in entries])
        counted = (answers >= FIRST) & (types >= 0)
        probabilities = torch.from_numpy(np.stack([entry.probabilities for entry in entries]))
        true = torch.from_numpy(answers[counted] - FIRST)
        right = correctness(probabilities[counted], true, soft=self.cfg.policy.soft)
        self.progress.update(true, right, torch.from_numpy(types[counted]))
        self.memory.add(
            step,
            images=images,
            programs=programs,
            answers=answers,
            types=types,
            questions=self.words_of(programs) if self.cfg.question_form == "text" else None,
        )
        self.asked.add(images, programs)
        valid = np.array([reply.valid for reply in replies])
        self.round["validity"] = 100 * float(valid.mean())
        every = self.cfg.relevance.every or max(1, rounds_of(self.cfg) // 50)
        if self.cfg.relevance.kind == "refreshed" and self._learns_relevance() and not step % every:
            assert isinstance(self.relevance, Calibrated)
            assert self.world.init.features is not None
            refresh(
                self.relevance,
                self.world.init.rows,
                self.world.init.features,
                self.cfg.relevance,
                valid=self.memory.asked(),
                invalid=self.memory.refused(),
                seed=seed_of(self.cfg.seed, 0, 2),  # as before, so that what was held out stays so
                round_=step,
            )

    def loss(self, network: nn.Module, step: int, update: int) -> Tensor:
        """Cross entropy of this process's share of an update's batch, new replies and replay."""
        cfg = self.cfg.rounds
        seed_everything(seed_of(self.cfg.seed, step, 1000 + update))
        places = self.memory.draw(
            step, update, cfg.batch_size, replay=cfg.replay, seed=self.cfg.seed
        )
        questions = self.memory.dataset(self.world.words, self.world.init.features)  # type: ignore
        batch = questions[places[dist.rank() :: dist.world_size()]].to(self.device)
        return F.cross_entropy(answer(network, batch, self.cfg.question_form), batch.answers)

    # ---- small things

    def features(self, images: np.ndarray) -> Tensor:
        """Maps (I, C, H, W) of images on the device."""
        assert self.world.init.features is not None
        return self.world.init.features[images].to(self.device)

    def read(self, programs: Tensor) -> Tensor:
        """What the answerer reads of programs (n, L): these, or the words of their sentences."""
        if self.cfg.question_form == "program":
            return programs
        words = self.words_of(programs.cpu().numpy()).astype(np.int64)
        return torch.from_numpy(words).to(self.device)

    def words_of(self, programs: np.ndarray) -> np.ndarray:
        """Sentences of programs (n, L) as words, int (n, Lq)."""
        return encode_sentences(programs, self.world.words, programs.sum(1) + self.cfg.seed)

    def _once(self, entries: list[Entry]) -> list[Entry]:
        """Without what two processes chose about an image that comes twice in the round."""
        source, dedupe = self.cfg.source, self.cfg.generator.dedupe
        if source != "passive_active" and (source != "lba" or dedupe == "none"):
            return entries
        taken: defaultdict[int, set[bytes]] = defaultdict(set)
        return [
            entry
            for entry in entries
            if self.asked.select(entry.image, np.array([entry.program]), taken[entry.image], 1)
        ]

    def _learns_relevance(self) -> bool:
        return self.cfg.source == "lba" and self.cfg.relevance.kind in LEARNED

    def _say(self, text: str) -> None:
        if dist.is_main():
            print(text, flush=True)


def rounds_of(cfg: Config) -> int:
    """Rounds that spend the budget where every image has a new question."""
    return math.ceil(cfg.budget / (cfg.policy.global_pick or cfg.rounds.images))
