"""Names of the benchmark's, torchvision's and our tensors of a trunk.

Benchmark, "89.tar": {"epoch", "state"}, `module.trunk.0` stem, `trunk.1` its norm, `trunk.4` ...
the blocks one after another with C1, BN1, ..., shortcut, BNshortcut; `classifier.weight`. Ours:
torchvision's names of a ResNet after `body.`, and `head.weight`.
"""

import re
from pathlib import Path
from typing import Any

import torch

from common.weights.formats import State, converting, few, tensors_by_name

BLOCK = re.compile(r"trunk\.(\d+)\.(C|BN|shortcut|BNshortcut)(\d?)\.(\w+)")
FIRST = 4  # of the benchmark's blocks: stem, norm, ReLU and pooling come before
COUNTER = "num_batches_tracked"  # of batch norms: files of before 2018 have none


def find_state(content: Any, source: str | Path) -> State:
    """The tensors of a file's content by our names, whichever of the three it is.

    Raises ValueError, naming the source, where there are none.
    """
    if isinstance(content, dict) and isinstance(content.get("state"), dict):  # the benchmark's
        content = content["state"]
    state = tensors_by_name(content)
    if "head.weight" in state and "body.conv1.weight" in state:
        return state
    if "trunk.0.weight" in state:
        with converting(source):
            return from_benchmark(state)
    if not state:
        raise ValueError(f"{source} holds no tensors by name: give a file of weights.")
    return from_torchvision(state)


def from_benchmark(state: State) -> State:
    """The benchmark's tensors by our names; a stage ends where the number of channels changes."""
    stages: dict[str, tuple[int, int]] = {}  # of block "4", "5", ...: stage, number in it
    stage, number, before = 1, -1, 0
    blocks = {found[1] for name in state if (found := BLOCK.fullmatch(name))}
    for block in sorted(blocks, key=int):
        last = f"trunk.{block}.C3.weight"
        width = len(state[last if last in state else f"trunk.{block}.C2.weight"])
        stage, number = (stage, number + 1) if width == before or not before else (stage + 1, 0)
        stages[block] = stage, number
        before = width
    return {rename(name, stages): value for name, value in state.items()}


def rename(name: str, stages: dict[str, tuple[int, int]]) -> str:
    """trunk.5.BN1.bias -> body.layer2.0.bn1.bias."""
    found = BLOCK.fullmatch(name)
    if found is None:
        layer, _, tensor = name.rpartition(".")
        stem = {"trunk.0": "body.conv1", "trunk.1": "body.bn1", "classifier": "head"}
        return f"{stem.get(layer, layer)}.{tensor}"
    block, kind, count, tensor = found.groups()
    layers = {"C": "conv", "BN": "bn", "shortcut": "downsample.0", "BNshortcut": "downsample.1"}
    stage, number = stages[block]
    return f"body.layer{stage}.{number}.{layers[kind]}{count}.{tensor}"


def from_torchvision(state: State) -> State:
    """Tensors of torchvision's classifiers by our names: `fc` is the head, all else the body."""
    heads = {"fc.weight": "head.weight", "fc.bias": "head.bias"}
    return {heads.get(name, f"body.{name}"): value for name, value in state.items()}


def to_torchvision(state: State) -> State:
    """Our tensors by torchvision's names, the head with a bias of zeros.

    Those of ResNet-10 load into `torchvision.models.resnet.ResNet(BasicBlock, [1, 1, 1, 1])`.
    """
    named = {n.removeprefix("body."): v for n, v in state.items() if n.startswith("body.")}
    weight = state["head.weight"]
    return named | {"fc.weight": weight, "fc.bias": torch.zeros(len(weight))}


def find_name(state: State) -> str:
    """The `trunk.name` that makes the network of these tensors of ours; empty where none does."""
    depths = [
        len({name.split(".")[2] for name in state if name.startswith(f"body.layer{stage}.")})
        for stage in (1, 2, 3, 4)
    ]
    bottleneck = "body.layer1.0.conv3.weight" in state
    if depths == [1, 1, 1, 0]:
        return "small"
    if depths == [1, 1, 1, 1] and not bottleneck:
        return "resnet10"
    if depths == [3, 4, 6, 3] and bottleneck:
        biased = "body.layer1.0.conv2.bias" in state
        return "resnet50" if biased else "torchvision/resnet50"
    return ""


def describe(state: State) -> str:
    """The remedy where a file is of another network, by what it holds."""
    name = find_name(state)
    return f"set trunk.name={name}" if name else f"give weights of this one, not {few(state, 3)}"
