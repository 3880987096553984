"""The networks without programs: sizes, attention, and the mode of each type."""

import pytest
import torch

from program_execution.net.baselines import (
    CnnLstm,
    CnnLstmSA,
    EncoderOptions,
    Lstm,
    QTypeMode,
    StackedAttention,
)

ENCODER = EncoderOptions(embedding=6, hidden=8)
SMALL = {"question_words": 12, "answers": 5, "encoder": ENCODER, "fc": (10,)}
SIZE = (3, 4, 6)
QUESTIONS = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0], [1, 2, 0, 0]])


@pytest.mark.parametrize(
    ("network", "count"), [(Lstm, 1_421_596), (CnnLstm, 27_636_508), (CnnLstmSA, 2_211_358)]
)
def test_the_defaults_have_the_public_numbers_of_parameters(network, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in network().parameters()) == count


def test_parameters_have_the_public_names():
    with torch.device("meta"):
        names = set(CnnLstmSA().state_dict()) | set(CnnLstm().state_dict())
    assert names >= {"rnn.embed.weight", "rnn.rnn.weight_ih_l1", "cnn.0.weight", "image_proj.bias"}
    assert names >= {"stacked-attn-0.Wv.weight", "stacked-attn-1.Wu.bias"}
    assert names >= {"stacked-attn-1.Wp.weight", "classifier.0.weight", "classifier.2.bias"}


def test_stacked_attention_equals_its_formula_and_sums_to_one():
    torch.manual_seed(0)
    layer = StackedAttention(8, 16).double()
    image = torch.randn(3, 8, 4, 6, dtype=torch.float64)
    query = torch.randn(3, 8, dtype=torch.float64)
    v = image.flatten(2).transpose(1, 2)  # (B, pixels, D)
    h = torch.tanh(v @ layer.Wv.weight.flatten(1).T + layer.Wv.bias + layer.Wu(query)[:, None])
    p = torch.softmax(h @ layer.Wp.weight.flatten() + layer.Wp.bias, dim=1)
    expected = query + torch.einsum("bp,bpd->bd", p, v)
    torch.testing.assert_close(layer(image, query), expected, rtol=1e-10, atol=1e-10)
    shares = layer.weights(image, query)
    torch.testing.assert_close(shares.flatten(1), p, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(shares.sum((1, 2)), torch.ones(3, dtype=torch.float64))


def test_a_head_without_hidden_layer_is_one_linear_layer():
    model = CnnLstmSA(**(SMALL | {"fc": ()}), feature_size=SIZE)
    assert [type(layer).__name__ for layer in model.classifier] == ["Linear"]


@pytest.mark.parametrize("network", [CnnLstm, CnnLstmSA])
def test_image_of_equals_repeated_features(network):
    torch.manual_seed(0)
    model = network(**SMALL, feature_size=SIZE).double()
    features, images = torch.randn(2, *SIZE, dtype=torch.float64), torch.tensor([1, 0, 1])
    once = model(QUESTIONS, features, images)
    torch.testing.assert_close(once, model(QUESTIONS, features[images]))
    with pytest.raises(ValueError, match="give image_of"):
        model(QUESTIONS, features)


@pytest.mark.parametrize("network", [Lstm, CnnLstm, CnnLstmSA])
def test_padding_behind_a_question_changes_nothing(network):
    torch.manual_seed(0)
    model = network(**SMALL) if network is Lstm else network(**SMALL, feature_size=SIZE)
    features = torch.randn(3, *SIZE)
    longer = torch.nn.functional.pad(QUESTIONS, (0, 3))
    torch.testing.assert_close(model(longer, features), model(QUESTIONS, features))


def test_the_mode_of_a_type_is_its_most_frequent_answer():
    types = torch.tensor([0, 0, 0, 2, 2, 2, 2])
    mode = QTypeMode(types, torch.tensor([4, 5, 5, 6, 6, 6, 7]))
    assert mode(torch.tensor([0, 1, 2, 9, -1])).tolist() == [5, 6, 6, 6, 6]
    with pytest.raises(ValueError, match="question 1 has no type"):
        QTypeMode(torch.tensor([0, -1]), torch.tensor([4, 4]))
