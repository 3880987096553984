"""Parameters and multiply-adds, against counts made by two other programs (and the paper's)."""

import pytest
import torch

from nonlocal_.block import Block
from nonlocal_.model import Network, build_network
from nonlocal_.net.count import count

I3D, R101 = {"inflate": "3x1x1"}, {"depth": "resnet101"}
PARAMETERS = [  # of the network, of the blocks
    ({}, {}, 24_327_632),
    ({"at": ["1-block"]}, {}, 26_429_392),
    ({"at": ["5-block"]}, {}, 31_686_096),
    ({"at": ["10-block"]}, {}, 39_044_560),
    ({"at": ["1-block"]}, {"mode": "gaussian"}, 25_379_792),
    ({"at": ["1-block"]}, {"mode": "dot_product"}, 26_429_392),
    ({"at": ["1-block"]}, {"mode": "concatenation"}, 26_430_416),
    (I3D, {}, 28_043_472),
    ({"inflate": "3x3x3"}, {}, 33_433_808),
    (I3D | {"at": ["5-block"]}, {}, 35_401_936),
    (I3D | {"at": ["5-block"]}, {"mode": "gaussian"}, 31_727_824),
    (I3D | {"at": ["5-block"]}, {"mode": "concatenation"}, 35_406_032),
    (R101, {}, 43_319_760),
    (R101 | {"at": ["5-block"]}, {}, 50_678_224),
    (R101 | I3D, {}, 51_754_192),
    (R101 | {"inflate": "3x3x3"}, {}, 63_042_768),
    (R101 | I3D | {"at": ["5-block"]}, {}, 59_112_656),
]
FAST = {"variant": "fast"}
MULTIPLY_ADDS = [  # of the network, frames, side, billions
    (I3D | {"at": ["5-block"]}, 32, 224, 41.0),
    (FAST | I3D | {"at": ["5-block"]}, 8, 224, 36.2),
]
MORE = [
    ({}, 32, 224, 20.2),
    (I3D | {"at": ["5-block"]}, 128, 224, 199.7),
    (FAST, 8, 224, 19.3),
    ({"at": ["5-block"]}, 32, 224, 28.4),
    ({"at": ["1-block"]}, 32, 224, 21.4),
    ({"at": ["10-block"]}, 32, 224, 36.5),
    (I3D, 32, 224, 32.8),
    (R101, 32, 224, 35.1),
    (R101 | {"at": ["5-block"]}, 32, 224, 43.2),
    (R101 | I3D, 32, 224, 51.4),
    (R101 | {"inflate": "3x3x3"}, 32, 224, 61.9),
    (R101 | I3D | {"at": ["5-block"]}, 32, 224, 59.5),
    (FAST | {"at": ["5-block"]}, 8, 224, 27.4),
    (FAST | I3D, 8, 224, 28.1),
    (FAST | I3D | {"at": ["5-block"]}, 8, 256, 48.6),
    ({}, 128, 224, 80.9),
    (I3D, 128, 224, 131.3),
    (R101 | I3D | {"at": ["5-block"]}, 128, 224, 273.9),
    ({"pool1_pad": 1, "variant": "mmaction2"} | I3D, 32, 256, 43.3),
]
MULTIPLY_ADDS += [pytest.param(*each, marks=pytest.mark.slow) for each in MORE]


def build(network, block=None):
    with torch.device("meta"):
        return build_network(Network(**network), Block(**(block or {})), 400)


@pytest.mark.parametrize(("network", "block", "parameters"), PARAMETERS)
def test_parameters_are_those_of_the_paper(network, block, parameters):
    assert sum(value.numel() for value in build(network, block).parameters()) == parameters


@pytest.mark.parametrize(("network", "frames", "side", "billions"), MULTIPLY_ADDS)
def test_multiply_adds_are_those_of_the_paper(network, frames, side, billions):
    found = count(build(network), frames, side, side)
    assert found.multiply_adds / 1e9 == pytest.approx(billions, abs=0.06)


@pytest.mark.slow
def test_a_pool_after_phi_and_g_costs_four_billion_more():
    """mmaction2's 59.3 billion for its non-local I3D."""
    network = {"pool1_pad": 1, "variant": "mmaction2", "at": ["5-block"]} | I3D
    found = [count(build(network, {"pool_first": each}), 32, 256, 256) for each in (True, False)]
    billions = [each.multiply_adds / 1e9 for each in found]
    assert billions == pytest.approx([55.1, 59.1], abs=0.06)


def test_counting_leaves_the_network_as_it_is_and_prints_a_sentence():
    torch.manual_seed(0)
    model = build_network(Network(depth="small", at=["res3.0"]), Block(mode="concatenation"), 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    found = count(model, 8, 32, 32)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.training
    assert model.layer2[0].nl.block.algorithm == "auto"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    millions, billions = found.parameters / 1e6, found.multiply_adds / 1e9
    assert str(found) == f"{millions:.3g} M parameters, {billions:.3g} G multiply-adds a clip"
    assert found == count(model, 8, 32, 32)
