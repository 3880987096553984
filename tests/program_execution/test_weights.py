"""Checkpoints of the public code: read without running them, as networks with their tensors."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.clevr.functions import ANSWERS, SPECIAL, TOKENS
from common.clevr.vocabulary import Vocabulary
from program_execution import convert
from program_execution.engine import EngineOptions, ExecutionEngine
from program_execution.net.baselines import CnnLstmSA, EncoderOptions
from program_execution.net.seq2seq import ProgramGenerator
from program_execution.weights import formats, initialise

WORDS = (*SPECIAL, "What", "is", "it")
VOCABULARY = {
    "question_token_to_idx": {word: i for i, word in enumerate(WORDS)},
    "program_token_to_idx": {token: i for i, token in enumerate((*SPECIAL, *TOKENS))},
    "answer_token_to_idx": {answer: i for i, answer in enumerate((*SPECIAL, *ANSWERS))},
}
INVERSE = {"program_idx_to_token": {i: t for t, i in VOCABULARY["program_token_to_idx"].items()}}


def networks() -> tuple[ProgramGenerator, ExecutionEngine, CnnLstmSA]:
    torch.manual_seed(0)
    generator = ProgramGenerator(question_words=7, program_tokens=44, embedding=5, hidden=6)
    engine = ExecutionEngine(
        tokens=tuple(VOCABULARY["program_token_to_idx"]),
        feature_size=(3, 4, 4),
        options=EngineOptions(module_dim=4, classifier_proj=5, classifier_fc=[6]),
    )
    baseline = CnnLstmSA(
        question_words=7,
        feature_size=(3, 4, 4),
        attention=5,
        fc=(4,),
        encoder=EncoderOptions(embedding=5, hidden=6),
    )
    return generator.eval(), engine.eval(), baseline.eval()


def public_checkpoint() -> dict:
    """A file as the public code saves it, with all networks in it."""
    generator, engine, baseline = networks()
    return {
        "args": {"model_type": "PG+EE", "learning_rate": 5e-4, "feature_dim": "3,4,4"},
        "program_generator_kwargs": {
            "encoder_vocab_size": 7,
            "decoder_vocab_size": 44,
            "wordvec_dim": 5,
            "hidden_dim": 6,
            "rnn_num_layers": 2,
            "rnn_dropout": 0,
        },
        "program_generator_state": dict(generator.state_dict()),
        "execution_engine_kwargs": {
            "vocab": VOCABULARY | INVERSE,
            "feature_dim": (3, 4, 4),
            "stem_batchnorm": False,
            "stem_num_layers": 2,
            "module_dim": 4,
            "module_residual": True,
            "module_batchnorm": False,
            "classifier_proj_dim": 5,
            "classifier_downsample": "maxpool2",
            "classifier_fc_layers": (6,),
            "classifier_batchnorm": False,
            "classifier_dropout": 0,
        },
        "execution_engine_state": dict(engine.state_dict()),
        "baseline_type": "CNN+LSTM+SA",
        "baseline_kwargs": {
            "vocab": VOCABULARY | INVERSE,
            "rnn_wordvec_dim": 5,
            "rnn_dim": 6,
            "rnn_num_layers": 2,
            "rnn_dropout": 0,
            "cnn_feat_dim": (3, 4, 4),
            "stacked_attn_dim": 5,
            "num_stacked_attn": 2,
            "fc_dims": (4,),
            "fc_use_batchnorm": False,
            "fc_dropout": 0,
        },
        "baseline_state": dict(baseline.state_dict()),
        "vocab": VOCABULARY | INVERSE,
        "val_accs": [0.5, 0.9],
        "best_val_acc": 0.9,
    }


def write(path: Path, content: dict, *, old: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


def assert_same_networks(models: formats.Models) -> None:
    for ours, theirs in zip(
        (models.generator, models.engine, models.baseline), networks(), strict=True
    ):
        assert ours is not None
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), name


@pytest.mark.parametrize("old", [True, False], ids=["as before 1.6", "zip"])
def test_a_public_checkpoint_loads_with_every_tensor_and_its_vocabulary(tmp_path, old):
    models = formats.load(write(tmp_path / "a.pt", public_checkpoint(), old=old))
    assert_same_networks(models)
    assert models.vocabulary == VOCABULARY


@pytest.mark.parametrize("old", [True, False], ids=["as before 1.6", "zip"])
def test_numpy_numbers_and_a_namespace_do_not_keep_a_file_from_loading(tmp_path, old):
    content = public_checkpoint()
    content["best_val_acc"] = np.float64(0.9)
    content["args"] = argparse.Namespace(model_type="EE", checkpoint=np.int64(7))
    assert_same_networks(formats.load(write(tmp_path / "a.pt", content, old=old)))


@pytest.mark.parametrize("old", [True, False], ids=["as before 1.6", "zip"])
@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_a_cut_file_is_refused_in_a_sentence(tmp_path, old, kept):
    path = write(tmp_path / "a.pt", public_checkpoint(), old=old)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else kept])
    with pytest.raises(ValueError, match=r"a\.pt was refused, it is damaged"):
        formats.load(path)


def test_other_files_are_told_from_checkpoints(tmp_path):
    path = tmp_path / "a.pt"
    write(path, {"epoch": 3})
    with pytest.raises(ValueError, match="no checkpoint of program generator"):
        formats.load(path)
    with pytest.raises(ValueError, match=r"none\.pt is not a file"):
        formats.load(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("part", "option", "value", "message"),
    [
        ("execution_engine", "module_residual", False, "module_residual=False"),
        ("execution_engine", "classifier_downsample", "maxpool4", "classifier_downsample=maxpool4"),
        ("execution_engine", "module_batchnorm", True, "batch normalisation in some parts"),
        ("execution_engine", "module_dim", 8, r"of another shape: stem\.0\.weight"),
        ("execution_engine", "module_dim", 10**6, r"of another shape: stem\.0\.weight"),
        ("execution_engine", "module_dim", -1, r"a\.pt .* cannot be loaded: module_dim=-1: give 1"),
        (
            "execution_engine",
            "stem_num_layers",
            10**12,
            "fewer tensors than its options have layers",
        ),
        ("program_generator", "rnn_num_layers", 10**12, "fewer tensors than its options"),
        ("program_generator", "hidden_dim", "8", "its options make no network"),
        ("baseline", "vocab", [], "its options make no network"),
        ("program_generator", "hidden_dim", 8, "does not fit the network"),
        ("baseline", "fc_dropout", 0.5, r"fc_dropout=0\.5"),
    ],
)
def test_networks_that_ours_are_not_are_refused_in_a_sentence(
    tmp_path, part, option, value, message
):
    content = public_checkpoint()
    content[f"{part}_kwargs"][option] = value
    with pytest.raises(ValueError, match=message):
        formats.load(write(tmp_path / "a.pt", content))


def test_a_file_may_hold_one_network(tmp_path):
    content = {k: v for k, v in public_checkpoint().items() if not k.startswith("program")}
    content["baseline_state"] = None
    models = formats.load(write(tmp_path / "a.pt", content))
    assert models.generator is None
    assert models.baseline is None
    assert models.engine is not None


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "parts"])
def test_a_stage_starts_from_tensors_in_any_wrapping(tmp_path, prefix, wrapper):
    _, engine, _ = networks()
    state = {f"{prefix}engine.{name}": value for name, value in engine.state_dict().items()}
    content = {"epoch": 3, wrapper: {"model": state} if wrapper == "parts" else state}
    path = write(tmp_path / "a.pt", content if wrapper else state)
    found, words = initialise.read(path)
    assert words is None
    assert found.keys() == {f"engine.{name}" for name in engine.state_dict()}
    (tmp_path / "vocab.json").write_text(json.dumps(VOCABULARY))
    assert initialise.read(path)[1] == Vocabulary.load(tmp_path / "vocab.json")


def test_convert_writes_a_plain_file_and_the_vocabulary(tmp_path):
    path = write(tmp_path / "a.pt", public_checkpoint())
    out, words = tmp_path / "b.pt", tmp_path / "vocab.json"
    convert.main([str(path), str(out), "--vocabulary", str(words)])
    torch.load(out, weights_only=True)
    assert_same_networks(formats.load(out))
    assert json.loads(words.read_text()) == VOCABULARY


def test_convert_refuses_a_damaged_file_in_a_sentence(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"a\.pt was refused"):
        convert.main([str(path), str(tmp_path / "b.pt")])
    assert not (tmp_path / "b.pt").exists()
