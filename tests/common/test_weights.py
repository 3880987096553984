"""Tensors by name come out of a file whatever wraps them; what does not fit is listed."""

import pytest
import torch

from common.weights import formats

STATE = {"conv1.weight": torch.ones(2, 3), "bn1.num_batches_tracked": torch.tensor(3)}


def prefixed(prefix: str) -> dict:
    return {f"{prefix}{name}": value for name, value in STATE.items()}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"parts": {"model": STATE, "step": 3}, "meta": {}},
        *({key: STATE, "epoch": 3, "optimizer": {"a": torch.ones(1)}} for key in formats.WRAPPERS),
        {"state_dict": prefixed("model."), "hyper_parameters": {"lr": 0.1}},
        {"student": prefixed("module."), "teacher": prefixed("module.")},
        {"model": {"state_dict": prefixed("module._orig_mod.")}},
        prefixed("_orig_mod."),
        prefixed("module.model."),
        prefixed("state_dict."),
        prefixed("gpu_0/"),
        {"conv1._orig_mod.weight": STATE["conv1.weight"]}
        | {k: v for k, v in STATE.items() if "bn" in k},
        {f"student.{k}": -v for k, v in STATE.items()} | prefixed("teacher."),
        {f"model.student.{k}": -v for k, v in STATE.items()} | prefixed("model.teacher."),
    ],
)
def test_names_are_plain_whatever_wraps_them(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    found = formats.read(tmp_path / "a.pt")
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], value) for name, value in STATE.items())


def test_a_file_without_tensors_names_what_it_has(tmp_path):
    torch.save({"epoch": 3, "net": {"a": torch.ones(1)}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt holds no tensors by name, only epoch, net: give"):
        formats.read(tmp_path / "a.pt")


def test_the_first_ten_of_each_kind_that_does_not_fit_are_listed():
    own = {f"own{i}": torch.zeros(1) for i in range(12)} | {"a": torch.zeros(2, 3)}
    given = {"b.num_batches_tracked": torch.zeros(()), "a": torch.zeros(3)}
    names = ", ".join(f"own{i}" for i in range(10))
    assert formats.misfits(own, given) == (
        f"12 missing: {names}, ...; 1 unknown: b.num_batches_tracked; "
        "1 of another shape: a (3,) for (2, 3)"
    )
    counters = {"b.num_batches_tracked": torch.zeros(())}
    assert formats.misfits(STATE | counters, STATE) == ""
