"""How a run is judged: right answers by question type, and the quality of the programs."""

import math

import torch
from torch import Tensor
from tqdm import tqdm

from common import dist
from common.clevr.accuracy import GROUPS, TypeAccuracy, exact_match
from common.clevr.dataset import Batch, Questions, in_order
from common.clevr.functions import SPECIAL
from common.clevr.grammar import Grammar
from common.metrics import Average
from program_execution import data
from program_execution.config import Config
from program_execution.execution.symbolic import SymbolicEngine
from program_execution.model import Network

ANSWERS = ("accuracy", *GROUPS)  # metrics of a run that answers, in percent
PROGRAMS = ("program_match", "malformed")  # and of one that only writes programs


@torch.no_grad()
def evaluate(network: Network, cfg: Config, dataset: Questions) -> dict[str, float]:
    """Metrics in percent, the same on every process; each question counts once.

    accuracy of the answers, and of those of each of the 13 types and 5 groups; program_match: the
    generator's program is the true one token by token; executed: on the scene graph it gives the
    right answer; malformed: it is no well-typed tree. A metric that the data or the stage do not
    allow is left out; that of a type of which there is no question is nan.
    """
    device, words = dist.device(), dataset.words
    answering = cfg.stage != "pg"
    data.require_ready(dataset, needs(cfg))
    writing = network.generator is not None and wants_programs(cfg)
    symbolic = SymbolicEngine(words)
    grammar = Grammar(words.tokens) if cfg.evaluate.grammar else None
    types, sums = TypeAccuracy(), {name: Average() for name in (*PROGRAMS, "executed")}
    training = network.training
    network.eval()
    pieces = in_order(
        dataset if answering and cfg.model.engine == "neural" else dataset.without_features(),
        cfg.evaluate.batch_size,
        cfg.data.workers,
    )
    quiet = None if dist.is_main() else True
    for batch in tqdm(pieces, "evaluate", leave=False, disable=quiet):
        batch = batch.to(device)
        programs = batch.programs
        if writing:
            programs = network.write(batch.questions, beam=cfg.evaluate.beam, grammar=grammar)
            _judge(programs, batch, dataset, symbolic, sums)
        if answering:
            answers = answer(network, cfg, dataset, batch, programs, symbolic)
            types.update(answers == batch.answers, batch.types)
    network.train(training)
    metrics = {name: total.compute() for name, total in sums.items()} if writing else {}
    metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
    if answering:
        found = types.compute()
        metrics = {"accuracy": found.pop("overall")} | found | metrics
    return metrics


def needs(cfg: Config) -> dict[str, str]:
    """What a split must have to be evaluated, with the remedy where it is missing."""
    if cfg.stage == "pg":
        return {}
    found = {"answers": "name splits whose answers are known (data.val, data.also, tune.val)"}
    if cfg.model.name == "iep" and not wants_programs(cfg):
        found["programs"] = "take evaluate.programs=predicted"
    if cfg.model.engine == "symbolic":
        found["scenes"] = "give data.scenes=FILE with {split} in its name"
    return found


def wants_programs(cfg: Config) -> bool:
    """Whether the evaluation is of programs that the generator writes."""
    return cfg.stage == "pg" or cfg.evaluate.programs == "predicted"


def answer(
    network: Network,
    cfg: Config,
    dataset: Questions,
    batch: Batch,
    programs: Tensor | None,
    symbolic: SymbolicEngine,
) -> Tensor:
    """Answers (B,) in vocabulary indices, never a special token but where a program fails."""
    with torch.autocast(batch.questions.device.type, torch.bfloat16, enabled=cfg.amp):
        if network.baseline is not None:
            logits = network.guess(batch)
        else:
            assert programs is not None
            if network.engine is None:
                assert dataset.scene_arrays is not None
                return symbolic(programs, dataset.scene_arrays, dataset.rows.image_idxs[batch.rows])
            logits = network.run(programs, batch.features, batch.image_of)
    logits = logits.float()
    logits[:, : len(SPECIAL)] = -torch.inf
    return logits.argmax(1)


def _judge(
    programs: Tensor,
    batch: Batch,
    dataset: Questions,
    symbolic: SymbolicEngine,
    sums: dict[str, Average],
) -> None:
    """Count how many of these programs (B, T) match, are malformed, give the right answer."""
    count = len(programs)
    if batch.programs is not None:
        sums["program_match"].add(percent(exact_match(programs, batch.programs)), count)
    sums["malformed"].add(percent(symbolic.find_malformed(programs)), count)
    if dataset.scene_arrays is not None and dataset.rows.answers is not None:
        found = symbolic(programs, dataset.scene_arrays, dataset.rows.image_idxs[batch.rows])
        sums["executed"].add(percent(found == batch.answers), count)


def percent(flags: Tensor) -> Tensor:
    """Share of the true ones in percent."""
    return 100 * flags.float().mean()


def evaluate_sets(network: Network, cfg: Config, sets: dict[str, Questions]) -> dict[str, float]:
    """Metrics of several splits, all but the first's behind the name of their split."""
    found: dict[str, float] = {}
    for number, (split, dataset) in enumerate(sets.items()):
        prefix = f"{data.label(split)}_" if number else ""
        found |= {prefix + name: v for name, v in evaluate(network, cfg, dataset).items()}
    return found


def brief(found: dict[str, float]) -> dict[str, float]:
    """The metrics that are shown while a run learns; result.json has those of every type.

    They are of fewer questions, perhaps of another split, and not of the best weights: as `val_`.
    """
    return {f"val_{n}": found[n] for n in (*ANSWERS, *PROGRAMS, "executed") if n in found}


def columns(cfg: Config) -> tuple[str, ...]:
    """The metrics that a run of this stage is summed up by."""
    return PROGRAMS if cfg.stage == "pg" else ANSWERS
