"""What each stage of training minimises, Sec. 3: programs, answers, or answers through programs.

    pg        cross entropy of the true programs                              Sec. 3.2
    ee        cross entropy of the answers, by programs that are given        Sec. 3.3
    joint     the same by sampled programs, and REINFORCE for the generator   Sec. 3.4
    tune      as joint, on other questions, without any program               Sec. 4.3 to 4.5
    baseline  cross entropy of the answers, without programs

B questions, L tokens. Programs that are given begin with START; those that are decoded do not.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import dist
from common.clevr.dataset import Batch, Questions, in_order
from common.clevr.functions import END, SPECIAL
from common.clevr.grammar import Grammar
from common.clevr.vocabulary import Vocabulary
from common.run.sealed import write
from program_execution.config import Config
from program_execution.decoding import reinforce, sample
from program_execution.decoding.beam import beam as search
from program_execution.execution.symbolic import SymbolicEngine
from program_execution.model import Network

NULL_ID, START_ID, END_ID = 0, SPECIAL.index("<START>"), SPECIAL.index(END)


class Objective:
    """The losses of a stage, and what they need besides the network.

    average: REINFORCE's moving average, a part of the checkpoint.
    """

    def __init__(self, cfg: Config, network: Network, dataset: Questions) -> None:
        self.cfg, self.network, self.dataset = cfg, network, dataset
        words = dataset.words
        options = cfg.reinforce
        self.average = reinforce.Baseline(options.baseline, decay=options.decay).to(dist.device())
        self.grammar = Grammar(words.tokens) if options.grammar else None
        self.symbolic = SymbolicEngine(words)
        self.update = (cfg.stage == "tune" and cfg.tune.update) or options.update

    def trained(self) -> list[nn.Parameter]:
        """What the stage changes; all else is frozen."""
        parts = self.network.parts()
        chosen: list[nn.Module]
        if "baseline" in parts:
            only_words = self.cfg.stage == "tune" and self.update == "pg"
            chosen = self.network.question_part() if only_words else list(parts.values())
        elif self.cfg.stage in ("pg", "ee"):
            chosen = self.network.side(self.cfg.stage)
        else:
            sides = ("pg", "ee") if self.update == "both" else (self.update,)
            chosen = [module for side in sides for module in self.network.side(side)]
        self.network.requires_grad_(False)
        for module in chosen:
            module.requires_grad_(True)
        return [p for p in self.network.parameters() if p.requires_grad]

    def __call__(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses of a batch, whose sum is minimised, and what else is worth a look."""
        if self.network.baseline is not None:
            logits = self.network.guess(batch)
            return {"answer": F.cross_entropy(logits, batch.answers)}, {}
        if self.cfg.stage == "pg":
            return {"program": self._of_programs(batch)}, {}
        if self.cfg.stage == "ee":
            assert batch.programs is not None
            logits = self.network.run(batch.programs, batch.features, batch.image_of)
            return {"answer": F.cross_entropy(logits, batch.answers)}, {}
        return self._by_answers(batch, step)

    def _of_programs(self, batch: Batch) -> Tensor:
        """Mean cross entropy of the tokens of all processes."""
        assert self.network.generator is not None
        assert batch.programs is not None
        loss = self.network.generator.loss(batch.questions, batch.programs)
        tokens = (batch.programs[:, 1:] != NULL_ID).sum().float()
        return loss * tokens / dist.mean(tokens)

    def _by_answers(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Sampled programs: their answers' loss, and the policy's."""
        options, losses = self.cfg.reinforce, {}
        assert self.network.generator is not None
        seed = (self.cfg.seed * 1_000_003 + step * 4099 + dist.rank()) % 2**32
        with torch.set_grad_enabled(self.update != "ee"):
            sampled = sample.sample(
                self.network.generator,
                batch.questions,
                temperature=options.temperature,
                generator=torch.Generator().manual_seed(seed),
                grammar=self.grammar,
                keep_sampling=options.official,
            )
        with torch.set_grad_enabled(self.update != "pg"):
            rewards, logits = self.answered(sampled.programs, batch)
        if logits is not None and self.update != "pg":
            losses["answer"] = F.cross_entropy(logits, batch.answers)
        shown = {"reward": rewards.mean()}
        if self.update != "ee":
            greedy = None
            if options.baseline == "self_critical":
                best = sample.greedy(self.network.generator, batch.questions).programs
                with torch.no_grad():
                    greedy, _ = self.answered(best, batch)
            expected = self.average(rewards, types=batch.types, greedy=greedy)
            losses["policy"] = options.weight * reinforce.policy_loss(
                sampled.log_probs,
                sampled.mask,
                rewards,
                expected,
                official=options.official,
                entropy=sampled.entropy,
                entropy_weight=options.entropy,
            )
            shown["advantage"] = (rewards - expected).std(correction=0)
        return losses, shown

    def answered(self, programs: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Rewards (B,), 1 where the program leads to the right answer, and the engine's logits."""
        if self.network.engine is None:
            assert self.dataset.packed is not None
            images = self.dataset.rows.image_idxs[batch.rows]
            answers = self.symbolic(programs, self.dataset.packed, images)
            return (answers == batch.answers).float(), None
        logits = self.network.run(programs, batch.features, batch.image_of)
        return (logits.detach().argmax(1) == batch.answers).float(), logits


@torch.no_grad()
def predicted(
    network: Network, dataset: Questions, folder: str | Path, *, size: int = 512
) -> np.ndarray:
    """Programs int16 (N, L) of all questions by the greedy generator, START in front.

    They are kept in `folder`/programs.npy for as long as the generator and the questions are the
    same. Every process decodes its share.
    """
    path, key = Path(folder, "programs.npy"), _key(network, dataset)
    mark = path.with_suffix(".txt")
    if path.exists() and mark.exists() and mark.read_text() == key:
        return np.load(path, allow_pickle=False)
    assert network.generator is not None
    network.generator.eval()
    pieces = []
    for batch in in_order(dataset.without_features(), size):
        batch = batch.to(dist.device())
        found = sample.greedy(network.generator, batch.questions).programs.cpu().numpy()
        pieces.append((batch.rows, found.astype(np.int16)))
    shares = [piece for share in dist.gather(pieces) for piece in share]
    longest = max(programs.shape[1] for _, programs in shares)
    rows = np.zeros((len(dataset), 1 + longest), np.int16)
    rows[:, 0] = START_ID
    for places, programs in shares:
        rows[places, 1 : 1 + programs.shape[1]] = programs
    if dist.is_main():
        write(path, lambda file: np.save(file, rows, allow_pickle=False))
        write(mark, lambda file: file.write(key.encode()))
    return rows


def _key(network: Network, dataset: Questions) -> str:
    """Differs where another generator or other questions would give other programs."""
    assert network.generator is not None
    digest = hashlib.sha256(np.ascontiguousarray(dataset.rows.questions).tobytes())
    for name, value in network.generator.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average the gradients over all processes; what none of them touched stays without one.

    Which modules of the engine a batch needs differs from process to process, and Adam leaves
    alone what has no gradient, so DistributedDataParallel, which fills in zeros, does not fit.
    """
    if dist.world_size() == 1:
        return
    own = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device)
    touched = dist.total(own.long()).tolist()
    wanted = [p for p, count in zip(parameters, touched, strict=True) if count]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in wanted]
    mean = dist.mean(torch.cat([grad.flatten() for grad in grads]))
    for p, piece in zip(wanted, mean.split([p.numel() for p in wanted]), strict=True):
        p.grad = piece.view_as(p)


def decoded(
    network: Network, questions: Tensor, words: Vocabulary, *, beam: int = 1, grammar: bool = False
) -> Tensor:
    """The generator's programs (B, T) for questions (B, L), greedy or by beam search."""
    assert network.generator is not None
    allowed = Grammar(words.tokens) if grammar else None
    if beam > 1:
        return search(network.generator, questions, width=beam, grammar=allowed).programs
    return sample.greedy(network.generator, questions, grammar=allowed).programs
