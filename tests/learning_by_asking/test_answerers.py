"""The answerers: sizes, attention, coordinates, FiLM, modes, weights of other people."""

import pytest
import torch
from torch import nn

from learning_by_asking.model import ANSWERERS, Answerer, build_answerer, build_relevance, load_iep
from learning_by_asking.net.attention import QTypeMode, StackedAttention
from learning_by_asking.net.encoder import build_head, coordinates

SIZE = (9, 4, 6)
ARITY = [-1, -1, -1, -1, 0, 1, 1, 2, 1, 2]
SMALL = {"embed": 6, "hidden": 8, "attention": 5, "fc": [10], "cnn_width": 8, "film_width": 8}
QUESTIONS = torch.tensor([[1, 5, 6, 4, 2], [1, 7, 4, 4, 2], [1, 5, 4, 2, 0], [1, 6, 4, 2, 0]])
IMAGE_OF = torch.tensor([0, 1, 1, 0])


def build(name="sa", **options):
    torch.manual_seed(0)
    options = Answerer(name=name, **SMALL | options)
    return build_answerer(options, tokens=10, answers=12, feature_size=SIZE, arity=ARITY)


def features():
    return torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "count"), [("lstm", 1_421_596), ("cnn_lstm", 27_636_508), ("sa", 2_211_358)]
)
def test_the_defaults_have_the_public_numbers_of_parameters(name, count):
    options = Answerer(name=name, coordinates=False)
    with torch.device("meta"):
        model = build_answerer(options, tokens=93, feature_size=(1024, 14, 14))
    assert sum(p.numel() for p in model.parameters()) == count


def test_coordinates_add_two_channels_and_keep_the_public_names():
    with torch.device("meta"):
        model = build_answerer(Answerer(), tokens=44, feature_size=(1024, 14, 14))
    state = model.state_dict()
    assert state["image_proj.weight"].shape == (256, 1026, 1, 1)
    assert state["rnn.embed.weight"].shape == (44, 300)
    heads = {f"classifier.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    rounds = {
        f"stacked-attn-{i}.{layer}.{part}"
        for i in (0, 1)
        for layer in ("Wv", "Wu", "Wp")
        for part in ("weight", "bias")
    }
    others = {"image_proj.weight", "image_proj.bias"}
    assert {key for key in state if not key.startswith("rnn.")} == heads | rounds | others


def test_coordinates_run_from_minus_one_to_one_with_exact_corners():
    xy = coordinates(3, 5)
    assert xy.shape == (2, 3, 5)
    assert xy[:, 0, 0].tolist() == [-1, -1]
    assert xy[:, 0, 4].tolist() == [1, -1]
    assert xy[:, 2, 0].tolist() == [-1, 1]
    assert xy[:, 1, 2].tolist() == [0, 0]
    assert xy[0, 1].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert coordinates(1, 2)[1].tolist() == [[0, 0]]


def test_with_zero_weights_of_the_coordinates_the_network_is_the_plain_one():
    plain, placed = build(coordinates=False), build()
    state = plain.state_dict()
    wide = torch.zeros(8, 11, 1, 1)
    wide[:, :9] = state["image_proj.weight"]
    placed.load_state_dict({**state, "image_proj.weight": wide})
    expected = plain(QUESTIONS, features(), IMAGE_OF)
    assert torch.allclose(placed(QUESTIONS, features(), IMAGE_OF), expected, atol=1e-6)
    placed.image_proj.weight.data[:, 9] = 1
    assert not torch.allclose(placed(QUESTIONS, features(), IMAGE_OF), expected, atol=1e-3)


def test_stacked_attention_equals_its_formula_question_by_question():
    torch.manual_seed(0)
    layer = StackedAttention(8, 5).double()
    image = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    query = torch.randn(4, 8, dtype=torch.float64)
    wv, wp = layer.Wv.weight[:, :, 0, 0], layer.Wp.weight[0, :, 0, 0]
    after = layer(image, query, IMAGE_OF)
    shares = layer.weights(image, query, IMAGE_OF)
    for b, i in enumerate(IMAGE_OF.tolist()):
        pixels = image[i].flatten(1).T  # (N, D)
        h = torch.tanh(pixels @ wv.T + layer.Wv.bias + layer.Wu(query[b]))
        p = torch.softmax(h @ wp + layer.Wp.bias, 0)
        assert torch.allclose(shares[b].flatten(), p)
        assert torch.allclose(after[b], query[b] + p @ pixels)
    assert torch.allclose(shares.sum((1, 2)), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("name", ANSWERERS)
def test_special_ids_are_never_answered_and_all_weights_learn(name):
    model = build(name)
    logits = model(QUESTIONS, features(), IMAGE_OF)
    assert logits.shape == (4, 12)
    assert (logits[:, :4] == -torch.inf).all()
    assert logits[:, 4:].isfinite().all()
    nn.functional.cross_entropy(logits, torch.tensor([4, 6, 8, 11])).backward()
    for key, weight in model.named_parameters():
        assert weight.grad is not None, key
        assert weight.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ANSWERERS)
def test_rows_of_a_batch_do_not_see_each_other_nor_the_padding(name):
    model = build(name).eval()
    whole = model(QUESTIONS, features(), IMAGE_OF)
    order = torch.tensor([3, 1, 0, 2])
    shuffled = model(QUESTIONS[order], features(), IMAGE_OF[order])
    assert torch.allclose(shuffled, whole[order], atol=1e-6)
    for b, i in enumerate(IMAGE_OF.tolist()):
        row = QUESTIONS[b : b + 1, : int((QUESTIONS[b] != 0).sum())]
        alone = model(row, features()[i : i + 1], torch.tensor([0]))
        assert torch.allclose(alone, whole[b : b + 1], atol=1e-6)


@pytest.mark.parametrize("name", ANSWERERS)
def test_images_projected_once_give_the_logits_of_forward(name):
    model = build(name).eval()
    image = model.project(features())
    assert torch.equal(
        model.answer(QUESTIONS, image, IMAGE_OF), model(QUESTIONS, features(), IMAGE_OF)
    )


def test_only_the_lstm_gives_the_same_answer_for_another_image():
    for name in ANSWERERS:
        model = build(name).eval()
        change = model(QUESTIONS, features(), IMAGE_OF) - model(QUESTIONS, -features(), IMAGE_OF)
        assert (change[:, 4:].abs().max() == 0) == (name == "lstm"), name


def test_relevance_is_the_trunk_with_one_logit_and_weights_of_its_own():
    torch.manual_seed(0)
    options = Answerer(**SMALL)
    answerer = build_answerer(options, tokens=10, answers=12, feature_size=SIZE)
    relevance = build_relevance(options, tokens=10, feature_size=SIZE)
    assert relevance(QUESTIONS, features(), IMAGE_OF).shape == (4,)
    ours, theirs = answerer.state_dict(), relevance.state_dict()
    head = {"classifier.2.weight", "classifier.2.bias"}
    assert {key for key in ours if ours[key].shape != theirs[key].shape} == head
    assert not torch.equal(ours["image_proj.weight"], theirs["image_proj.weight"])


@pytest.mark.parametrize("name", ANSWERERS)
def test_on_images_a_network_reads_the_maps_that_convolutions_make_of_them(name):
    torch.manual_seed(0)
    options = Answerer(name=name, **SMALL, image_width=7)
    sizes = {"tokens": 10, "answers": 12, "feature_size": (3, 19, 24), "arity": ARITY}
    model = build_answerer(options, images=True, **sizes)
    images = torch.rand(2, 3, 19, 24)
    logits = model(QUESTIONS, images, IMAGE_OF)
    assert logits.shape == (4, 12)
    logits[:, 4:].sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    if name == "lstm":  # which is told nothing of them
        assert not any("conv" in key for key in model.state_dict())
        return
    maps = 2 * images - 1
    for i, side in ((0, 5), (2, 3), (4, 3)):
        weight, bias = model.convolutions[i].parameters()
        maps = nn.functional.conv2d(maps, weight, bias, stride=2, padding=side // 2).relu()
    assert maps.shape == (2, 7, 3, 3)
    assert torch.allclose(model.network(QUESTIONS, maps, IMAGE_OF), logits)
    assert torch.equal(model.answer(QUESTIONS, model.project(images), IMAGE_OF), logits)


def test_relevance_reads_images_too_and_maps_are_none():
    options, sizes = Answerer(**SMALL), {"tokens": 10, "feature_size": (3, 16, 16)}
    relevance = build_relevance(options, images=True, **sizes)
    assert relevance(QUESTIONS, torch.rand(2, 3, 16, 16), IMAGE_OF).shape == (4,)
    with pytest.raises(ValueError, match="images have 3 channels, not 9"):
        build_answerer(options, images=True, **sizes | {"feature_size": SIZE})


def test_film_equals_its_formula_in_a_block():
    block = build("film").blocks[0].double().eval()
    x = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    scale, shift = torch.randn(2, 2, 8, dtype=torch.float64)
    xy = coordinates(4, 6).double().expand(2, -1, -1, -1)
    y = torch.relu(nn.functional.conv2d(torch.cat([x, xy], 1), *block.first.parameters()))
    normed = nn.functional.conv2d(y, block.second.weight, padding=1) / (1 + 1e-5) ** 0.5
    change = torch.einsum("bc,bchw->bchw", scale, normed) + shift.view(2, 8, 1, 1)
    assert torch.allclose(block(x, scale, shift), y + change.clamp(min=0))


def test_the_mode_of_each_type_is_its_commonest_answer():
    mode = QTypeMode(torch.tensor([0, 0, 0, 2, 2]), torch.tensor([9, 7, 9, 8, 5]))
    assert mode(torch.tensor([0, 2, 1, -1])).tolist() == [9, 5, 9, 9]
    with pytest.raises(ValueError, match="question 1 has the type -1"):
        QTypeMode(torch.tensor([0, -1]), torch.tensor([9, 9]))
    with pytest.raises(ValueError, match="0 types came with 0 answers"):
        QTypeMode(torch.tensor([]), torch.tensor([]))


def test_a_head_without_hidden_layers_is_linear():
    assert [type(part) for part in build_head(3, [], 2)] == [nn.Linear]


def test_public_weights_of_words_and_maps_are_taken_where_they_mean_the_same():
    given = build(coordinates=False).state_dict()
    same = build(coordinates=False)
    nn.init.zeros_(same.image_proj.weight)
    report = load_iep(same, {**given, "extra": torch.zeros(1)})
    assert report.left == {"extra": "the model has no such weight"}
    assert all(torch.equal(same.state_dict()[key], weight) for key, weight in given.items())

    placed = build()
    before = placed.image_proj.weight.clone()
    words = {**given, "rnn.embed.weight": torch.zeros(93, 6)}
    report = load_iep(placed, words)
    assert torch.equal(placed.image_proj.weight, before)
    assert {key.split(".")[0] for key in report.left} == {"rnn", "image_proj"}
    assert {key.split(".")[0] for key in report.taken} == {
        "stacked-attn-0",
        "stacked-attn-1",
        "classifier",
    }
    assert torch.equal(placed.state_dict()["classifier.2.bias"], given["classifier.2.bias"])


def test_public_weights_of_another_size_change_nothing():
    model = build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    given = build(attention=7).state_dict()
    with pytest.raises(ValueError, match=r"stacked-attn-0.Wv.weight has \(7, 8, 1, 1\)"):
        load_iep(model, given)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "san"}, r"answerer.name='san' is not one of sa, cnn_lstm"),
        ({"rounds": 0}, r"answerer.rounds=0: give a whole number of 1 or more"),
        ({"fc": [64, 0]}, r"answerer.fc=\[64, 0\]"),
    ],
)
def test_options_that_make_no_network_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Answerer(**options)


def test_modules_and_pooling_say_what_they_cannot_read():
    with pytest.raises(ValueError, match="set question_form=program"):
        build_answerer(Answerer(name="modules"), tokens=93, feature_size=SIZE)
    with pytest.raises(ValueError, match="1 x 6 positions cannot be pooled"):
        build_answerer(Answerer(name="cnn_lstm"), tokens=9, feature_size=(9, 1, 6))
