"""What each stage of training reads, changes and minimises, Sec. 3.

    pg        cross entropy of the true programs                              Sec. 3.2
    ee        cross entropy of the answers, by programs that are given        Sec. 3.3
    joint     the same by sampled programs, and REINFORCE for the generator   Sec. 3.4
    tune      as joint, on other questions, without any program               Sec. 4.3 to 4.5
    baseline  cross entropy of the answers, without programs

B questions, L tokens. Programs that are given begin with START; those that are decoded do not.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import dist
from common.clevr.dataset import Batch, Questions, in_order, training_batches
from common.clevr.grammar import Grammar
from common.data import seed_of
from common.run.sealed import write
from program_execution import data, evaluate
from program_execution.config import BASELINES, Config
from program_execution.decoding import reinforce
from program_execution.decoding.sample import sample
from program_execution.execution.symbolic import SymbolicEngine
from program_execution.model import Network
from program_execution.model import build as build_network
from program_execution.net.baselines import QTypeMode
from program_execution.net.seq2seq import NULL, START
from program_execution.weights.initialise import initialise


def datasets(cfg: Config) -> tuple[Questions, Questions, dict[str, Questions]]:
    """The questions to learn from, those that choose the best weights, and all that judge them."""
    size, world = cfg.of_stage().batch_size, dist.world_size()
    if size % world and not cfg.only_evaluate:  # gradients are means over equal shares
        raise ValueError(
            f"{cfg.stage}.batch_size={size} cannot be shared by processes={world}: choose a "
            f"multiple of {world}."
        )
    options, learn, choose = cfg.data, cfg.data.train, cfg.data.val
    if cfg.stage == "tune":
        learn, choose = cfg.tune.train or learn, cfg.tune.val or choose
        options = replace(options, questions=cfg.tune.questions or options.questions)
    words = data.vocabulary_of(options, options.train, learn)
    training = data.build(options, learn, words, training=True)
    if cfg.stage == "pg":
        training = data.select_known(training, options.programs, options.subset, cfg.seed)
    sets = {split: data.build(options, split, words) for split in (options.val, *options.also)}
    chosen = sets[choose] if choose in sets else data.build(options, choose, words)
    # The faults of all splits show now, not at the first validation.
    data.require_ready(training, needs(cfg))
    for judge in (chosen, *sets.values()):
        data.require_ready(judge, evaluate.needs(cfg), like=training)
    if cfg.stage == "pg":
        by_match = {"programs": "name another as data.val, for stage=pg is judged by its programs"}
        data.require_ready(chosen, by_match)
    few = np.arange(min(len(chosen), cfg.evaluate.questions))
    return training, chosen.subset(few), sets


def needs(cfg: Config) -> dict[str, str]:
    """What the questions to learn from must have, with the remedy where it is missing."""
    if cfg.stage == "pg":
        return {}  # data.select_known asks for programs
    found = {"answers": "name a split whose answers are known (data.train, tune.train)"}
    if cfg.stage == "ee" and cfg.ee_programs == "ground_truth":
        found["programs"] = "take ee_programs=predicted"
    if cfg.model.engine == "symbolic":
        found["scenes"] = "give data.scenes=FILE with {split} in its name"
    return found


def build(cfg: Config, training: Questions) -> Network:
    """The networks that the stage needs, sized for the data, with the weights of `cfg.init`."""
    words, rows, mode = training.words, training.rows, None
    assert training.features is not None
    if cfg.model.name == "qtype_mode":
        if rows.types is None or rows.answers is None:
            raise ValueError("model.name=qtype_mode needs the types of questions: their programs.")
        mode = QTypeMode(torch.from_numpy(rows.types), torch.from_numpy(rows.answers))
    channels, height, width = training.features.shape[1:]
    network = build_network(
        cfg.model,
        words=len(words.words),
        tokens=words.tokens,
        answers=len(words.answers),
        feature_size=(channels, height, width),
        writes=needs_generator(cfg),
        runs=cfg.stage != "pg",
        pixels=training.kind == "pixels",
        mode=mode,
    )
    for source in cfg.init:
        loaded = initialise(network, source, words)
        if dist.is_main():
            print(loaded)
    return network


def needs_generator(cfg: Config) -> bool:
    """Whether a stage needs the program generator."""
    if cfg.model.name in BASELINES:
        return False
    used = cfg.stage != "ee" or "predicted" in (cfg.ee_programs, cfg.evaluate.programs)
    begun = any(Path(cfg.output_dir).glob("checkpoint-*[0-9].pt"))
    if used and cfg.stage == "ee" and not cfg.init and not begun:
        raise ValueError(
            "stage=ee takes programs from a generator: give init=FOLDER of a run of stage=pg, or "
            "ee_programs=ground_truth with evaluate.programs=ground_truth."
        )
    return used


def batches(
    cfg: Config, network: Network, training: Questions, start: int, stop: int
) -> Iterable[Batch]:
    """The batches of this process in the steps after `start`, up to `stop`.

    Where the engine learns from the generator's programs, they take the place of the true ones.
    """
    if cfg.stage == "ee" and cfg.ee_programs == "predicted" and start < stop:
        training.programs = predict_programs(network, training, cfg.output_dir)
    return training_batches(
        training,
        batch_size=cfg.of_stage().batch_size,
        seed=cfg.seed,
        start=start,
        stop=stop,
        by_image=cfg.data.by_image,
        workers=cfg.data.workers,
    )


Losses = tuple[dict[str, Tensor], dict[str, Tensor]]  # to minimise; for the log


class Objective:
    """The losses of a stage, and what they need besides the network.

    average: REINFORCE's moving average, a part of the checkpoint.
    """

    def __init__(self, cfg: Config, network: Network, dataset: Questions) -> None:
        self.cfg, self.network, self.dataset = cfg, network, dataset
        options, words = cfg.reinforce, dataset.words
        self.average = reinforce.Baseline(options.baseline, decay=options.decay).to(dist.device())
        self.grammar = Grammar(words.tokens) if options.grammar else None
        self.symbolic = SymbolicEngine(words)
        self.update = (cfg.stage == "tune" and cfg.tune.update) or options.update

    def freeze_others(self) -> list[nn.Parameter]:
        """The parameters that the stage changes; all others are frozen."""
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

    def __call__(self, batch: Batch, step: int) -> Losses:
        """The losses of a batch, to be summed and minimised, and further values for the log."""
        if self.network.baseline is not None:
            logits = self.network.guess(batch)
            return {"answer": F.cross_entropy(logits, batch.answers)}, {}
        if self.cfg.stage == "pg":
            return {"program": self._program_loss(batch)}, {}
        if self.cfg.stage == "ee":
            assert batch.programs is not None
            logits = self.network.run(batch.programs, batch.features, batch.image_of)
            return {"answer": F.cross_entropy(logits, batch.answers)}, {}
        return self._answer_losses(batch, step)

    def _program_loss(self, batch: Batch) -> Tensor:
        """Mean cross entropy of the tokens of all processes."""
        assert self.network.generator is not None
        assert batch.programs is not None
        loss = self.network.generator.loss(batch.questions, batch.programs)
        tokens = (batch.programs[:, 1:] != NULL).sum().float()
        return loss * tokens / dist.mean(tokens)

    def _answer_losses(self, batch: Batch, step: int) -> Losses:
        """Sampled programs: their answers' loss, and the policy's."""
        options, losses = self.cfg.reinforce, {}
        assert self.network.generator is not None
        seed = seed_of(self.cfg.seed, step, dist.rank())
        with torch.set_grad_enabled(self.update != "ee"):
            sampled = sample(
                self.network.generator,
                batch.questions,
                temperature=options.temperature,
                generator=torch.Generator().manual_seed(seed),
                grammar=self.grammar,
                keep_sampling=options.official,
            )
        with torch.set_grad_enabled(self.update != "pg"):
            rewards, logits = self.reward(sampled.programs, batch)
        if logits is not None and self.update != "pg":
            losses["answer"] = F.cross_entropy(logits, batch.answers)
        shown = {"reward": rewards.mean()}
        if self.update != "ee":
            greedy = None
            if options.baseline == "self_critical":
                best = self.network.write(batch.questions)
                with torch.no_grad():
                    greedy, _ = self.reward(best, batch)
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

    def reward(self, programs: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Rewards (B,), 1 where the program leads to the right answer, and the engine's logits."""
        if self.network.engine is None:
            assert self.dataset.scene_arrays is not None
            images = self.dataset.rows.image_idxs[batch.rows]
            answers = self.symbolic(programs, self.dataset.scene_arrays, images)
            return (answers == batch.answers).float(), None
        logits = self.network.run(programs, batch.features, batch.image_of)
        return (logits.detach().argmax(1) == batch.answers).float(), logits


@torch.no_grad()
def predict_programs(
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
        found = network.write(batch.questions.to(dist.device())).cpu().numpy()
        pieces.append((batch.rows, found.astype(np.int16)))
    shares = [piece for share in dist.gather(pieces) for piece in share]
    longest = max(programs.shape[1] for _, programs in shares)
    rows = np.zeros((len(dataset), 1 + longest), np.int16)
    rows[:, 0] = START
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
