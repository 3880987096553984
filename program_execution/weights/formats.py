"""The released checkpoints, and our own, as networks that are ready to use.

    models = load("execution_engine_18k.pt")         # the public code's file, or a converted one
    models.engine, models.generator, models.baseline, models.vocabulary

A file of the public code is a dictionary: `program_generator_kwargs` and `_state`, the same of
`execution_engine` and `baseline`, `baseline_type`, `vocab`, options and histories; each network may
be absent. Our networks have its tensors' names, so only the options need translation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.run.sealed import write
from common.weights import pickles
from common.weights.formats import State, misfits, tensors_by_name

from ..engine import EngineOptions, ExecutionEngine
from ..net.baselines import CnnLstm, CnnLstmSA, EncoderOptions, Lstm
from ..net.seq2seq import ProgramGenerator

FORMAT = "program_execution"  # of converted files
Network = Lstm | CnnLstm | CnnLstmSA
BASELINES: dict[str, Callable[..., Network]] = {
    "LSTM": Lstm,
    "CNN+LSTM": CnnLstm,
    "CNN+LSTM+SA": CnnLstmSA,
}
NETWORKS = {"generator", "engine", "baseline"}
VOCABULARIES = ("question_token_to_idx", "program_token_to_idx", "answer_token_to_idx")


@dataclass
class Models:
    """What a file holds, in eval mode.

    options: the constructor's arguments of each network. vocabulary: a table of token -> id for
    each of `VOCABULARIES`; empty where the file has none.
    """

    generator: ProgramGenerator | None = None
    engine: ExecutionEngine | None = None
    baseline: Network | None = None
    vocabulary: dict[str, dict[str, int]] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)


def load(path: str | Path) -> Models:
    """Networks of a checkpoint of the public code, or of a file that `save` wrote.

    ValueError, in one sentence, where the file is damaged or not safe to read, or where a network
    in it has a part that ours do not have.
    """
    content = pickles.read(path)
    try:
        if isinstance(content, dict) and content.get("format") == FORMAT:
            options, states = content["options"], content["states"]
            vocabulary = content["vocabulary"]
        else:
            options, states = _translate(content, str(path))
            vocabulary = _vocabulary(content)
        models = Models(vocabulary=vocabulary, options=options)
        for name in NETWORKS & states.keys():
            setattr(models, name, _build(name, options[name], states[name], f"{path} ({name})"))
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{path} cannot be loaded, its options make no network: {type(error).__name__} {error}."
        ) from error
    return models


def save(models: Models, path: str | Path) -> None:
    """Write networks, options and vocabulary as one file of plain values and tensors."""
    states = {name: getattr(models, name).state_dict() for name in models.options}
    content = {
        "format": FORMAT,
        "options": models.options,
        "states": {name: dict(state) for name, state in states.items()},
        "vocabulary": models.vocabulary,
    }
    write(Path(path), lambda file: torch.save(content, file))


def _require_fit(network: nn.Module, state: State, where: str) -> None:
    """Stop where the network's tensors and the file's differ in name or shape."""
    if found := misfits(network.state_dict(), state):
        raise ValueError(
            f"{where} does not fit the network, {found}: were they built for other vocabularies, "
            "features or sizes?"
        )


def _build(name: str, options: dict[str, Any], state: State, where: str) -> nn.Module:
    """The network in eval mode; first without memory, as options may name any size."""
    if max(options.get(key, 1) for key in ("layers", "stem_layers", "rounds")) > len(state):
        raise ValueError(f"{where} has fewer tensors than its options have layers.")
    try:
        with torch.device("meta"):
            without_memory = _network(name, options)
    except ValueError as error:
        raise ValueError(f"{where} cannot be loaded: {error}") from None
    _require_fit(without_memory, state, where)
    network = _network(name, options)
    network.load_state_dict(state, strict=False)
    return network.eval()


def _network(name: str, options: dict[str, Any]) -> nn.Module:
    if name == "generator":
        return ProgramGenerator(**options)
    given = dict(options)
    if name == "engine":
        return ExecutionEngine(options=_take(given, EngineOptions), **given)
    return BASELINES[given.pop("kind")](encoder=_take(given, EncoderOptions), **given)


def _take(given: dict[str, Any], kind: type) -> Any:
    """A dataclass of options, whose fields are taken out of `given`."""
    return kind(**{each.name: given.pop(each.name) for each in fields(kind) if each.name in given})


def _vocabulary(content: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """The tables token -> id; the inverse ones are not kept."""
    engine = content.get("execution_engine_kwargs") or {}
    tables = content.get("vocab") or engine.get("vocab") or {}
    return {name: dict(tables[name]) for name in VOCABULARIES if name in tables}


def _translate(content: Any, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and states of the networks in a file of the public code, by our names."""
    translators = {
        "program_generator": ("generator", _generator_options),
        "execution_engine": ("engine", _engine_options),
        "baseline": ("baseline", _baseline_options),
    }
    options, states = {}, {}
    for theirs, (ours, translate) in translators.items():
        state = content.get(f"{theirs}_state") if isinstance(content, dict) else None
        if state is None:
            continue
        given = dict(content.get(f"{theirs}_kwargs") or {})
        given["kind"] = content.get("baseline_type")
        given.setdefault("vocab", content.get("vocab"))
        try:
            options[ours] = translate(given)
        except KeyError as error:
            raise ValueError(f"{where} lacks {error} of the {theirs}'s options.") from error
        except ValueError as error:
            raise ValueError(f"{where} cannot be loaded, its {theirs} {error}.") from error
        states[ours] = tensors_by_name(state)
    if not states:
        raise ValueError(
            f"{where} is no checkpoint of program generator, execution engine or baseline."
        )
    return options, states


def _require_known(given: Mapping[str, Any], **wanted: Any) -> None:
    """Options of the public code that change a network in ways ours does not know."""
    for name, value in wanted.items():
        if given.get(name, value) != value:
            raise ValueError(f"has {name}={given[name]}, and only {value} is known here")


def _generator_options(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "question_words": given["encoder_vocab_size"],
        "program_tokens": given["decoder_vocab_size"],
        "embedding": given.get("wordvec_dim", 300),
        "hidden": given.get("hidden_dim", 256),
        "layers": given.get("rnn_num_layers", 2),
        "dropout": float(given.get("rnn_dropout", 0)),
    }


def _engine_options(given: Mapping[str, Any]) -> dict[str, Any]:
    norms = [given.get(f"{part}_batchnorm", False) for part in ("stem", "module", "classifier")]
    if len({bool(norm) for norm in norms}) > 1:
        raise ValueError("has batch normalisation in some parts only, here it is in all or none")
    _require_known(
        given, module_residual=True, classifier_downsample="maxpool2", classifier_dropout=0
    )
    program = given["vocab"]["program_token_to_idx"]
    return {
        "tokens": sorted(program, key=program.__getitem__),
        "answers": len(given["vocab"]["answer_token_to_idx"]),
        "feature_size": tuple(given.get("feature_dim", (1024, 14, 14))),
        "stem_layers": given.get("stem_num_layers", 2),
        "module_dim": given.get("module_dim", 128),
        "classifier_proj": given.get("classifier_proj_dim", 512) or 0,
        "classifier_fc": tuple(given.get("classifier_fc_layers", (1024,))),
        "batch_norm": bool(norms[0]),
    }


def _baseline_options(given: Mapping[str, Any]) -> dict[str, Any]:
    if given["kind"] not in BASELINES:
        raise ValueError(f"is of type {given['kind']!r}, and {', '.join(BASELINES)} are known")
    _require_known(
        given, fc_use_batchnorm=False, fc_dropout=0, cnn_num_res_blocks=0, cnn_pooling="maxpool2"
    )
    options = {
        "kind": given["kind"],
        "question_words": len(given["vocab"]["question_token_to_idx"]),
        "answers": len(given["vocab"]["answer_token_to_idx"]),
        "embedding": given.get("rnn_wordvec_dim", 300),
        "hidden": given.get("rnn_dim", 256),
        "layers": given.get("rnn_num_layers", 2),
        "dropout": float(given.get("rnn_dropout", 0)),
        "fc": tuple(given.get("fc_dims", (1024,))),
    }
    if given["kind"] != "LSTM":
        options["feature_size"] = tuple(given.get("cnn_feat_dim", (1024, 14, 14)))
    if given["kind"] == "CNN+LSTM":
        options["cnn_proj"] = given.get("cnn_proj_dim", 512)
    if given["kind"] == "CNN+LSTM+SA":
        options["attention"] = given.get("stacked_attn_dim", 512)
        options["rounds"] = given.get("num_stacked_attn", 2)
    return options
