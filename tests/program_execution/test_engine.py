"""The execution engine: every executor against the recursive reference and a hand-built network."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.clevr.functions import SPECIAL, TOKENS, signature
from program_execution.engine import BinaryBlock, EngineOptions, ExecutionEngine, ResidualBlock
from program_execution.execution import executors
from program_execution.execution.schedule import Language, agenda, arity, levels, parse
from program_execution.execution.schedule import well_formed as is_well_formed
from program_execution.figures.module_maps import module_maps

VOCABULARY = (*SPECIAL, *TOKENS)
IDS = {token: i for i, token in enumerate(VOCABULARY)}
NULL, START, END, UNK = range(4)


def engine(**options) -> ExecutionEngine:
    torch.manual_seed(0)
    small = {"module_dim": 4, "classifier_proj": 6, "classifier_fc": [8]}
    data = {"tokens": VOCABULARY, "arities": None, "answers": 7, "feature_size": (5, 6, 4)}
    data |= {name: options.pop(name) for name in data.keys() & options.keys()}
    return ExecutionEngine(**data, options=EngineOptions(**(small | options)))


def random_program(generator: random.Random, depth: int = 0) -> list[int]:
    token = "scene" if depth > 8 or generator.random() < 0.1 else generator.choice(TOKENS)
    step = 4 if arity(token) == 2 else 1
    below = [t for _ in range(arity(token)) for t in random_program(generator, depth + step)]
    return [IDS[token], *below]


def padded(rows: list[list[int]]) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [NULL] * (length - len(row)) for row in rows])


def well_formed(count: int, seed: int = 0) -> Tensor:
    generator = random.Random(seed)
    return padded([[START, *random_program(generator), END] for _ in range(count)])


MALFORMED = padded(
    [
        [],
        [END],
        [NULL, IDS["count"], IDS["scene"]],
        [IDS["count"], IDS["unique"]],
        [IDS["union"], IDS["scene"]],
        [IDS["less_than"], IDS["count"], END, START, IDS["scene"]],
        [START, START, IDS["exist"], UNK, IDS["scene"], IDS["scene"], IDS["count"]],
        [IDS["scene"], IDS["count"], IDS["scene"], END, END],
        [IDS["equal_color"]] * 12,
    ]
)


def results(model: ExecutionEngine, features: Tensor, programs: Tensor, images: Tensor) -> list:
    """Logits, gradient of the features and of every parameter (None where there is none)."""
    model.zero_grad()
    features = features.clone().requires_grad_()
    logits = model(features, programs, image_of=images)
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    (logits * weights).sum().backward()
    return [logits.detach(), features.grad, *(p.grad for p in model.parameters())]


def assert_same(ours: list, theirs: list, tolerance: float) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


def test_the_default_engine_has_the_papers_number_of_parameters():
    with torch.device("meta"):
        whole = ExecutionEngine(tokens=VOCABULARY)
    count = sum(p.numel() for p in whole.parameters())
    assert count == 40_400_800
    assert sum(p.numel() for p in ResidualBlock(128).parameters()) == 295_168
    assert sum(p.numel() for p in BinaryBlock(128).parameters()) == 328_064
    assert sum(p.numel() for p in whole.stem.parameters()) == 1_327_360
    assert sum(p.numel() for p in whole.classifier.parameters()) == 25_789_984


def test_parameters_have_the_public_names():
    names = set(engine().state_dict())
    assert names >= {"stem.0.weight", "stem.2.bias", "classifier.0.weight", "classifier.4.weight"}
    assert names >= {"classifier.6.bias", "filter_color[red].conv1.weight", "scene.conv2.bias"}
    assert names >= {"union.proj.weight", "union.res_block.conv1.weight", "<END>.conv1.bias"}


def test_the_arity_rule_is_that_of_clevr():
    assert all(arity(token) == len(signature(token).inputs) for token in TOKENS)
    assert {arity(token) for token in (*SPECIAL, "anything")} == {1}


@pytest.fixture(scope="module")
def oracle() -> tuple[tuple[Tensor, Tensor, Tensor], list]:
    """Features, 200 random and all malformed programs, images; what the reference makes of them."""
    torch.manual_seed(1)
    good = well_formed(200)
    programs = torch.cat([good, F.pad(MALFORMED, (0, good.shape[1] - MALFORMED.shape[1]))])
    features = torch.randn(30, 5, 6, 4, dtype=torch.float64)
    arguments = (features, programs, torch.randint(0, 30, (len(programs),)))
    return arguments, results(engine(execution="reference").double(), *arguments)


@pytest.mark.parametrize("limit", [0.0, 30_000.0, 1e12], ids=["convolve", "both", "multiply"])
@pytest.mark.parametrize(
    ("execution", "share"), [("grouped", True), ("grouped", False), ("bmm", True), ("bmm", False)]
)
def test_executors_equal_the_reference_in_logits_and_all_gradients(
    execution, share, limit, oracle, monkeypatch
):
    monkeypatch.setattr(executors, "SMALL", limit)  # which groups are products, which convolutions
    arguments, expected = oracle
    ours = engine(execution=execution, share=share).double()
    assert_same(results(ours, *arguments), expected, 1e-10)


@pytest.mark.parametrize("execution", ["grouped", "bmm"])
def test_executors_equal_the_reference_in_float32(execution):
    arguments = (torch.randn(4, 5, 6, 4), well_formed(24), torch.arange(24) % 4)
    ours = results(engine(execution=execution), *arguments)
    assert_same(ours, results(engine(execution="reference"), *arguments), 1e-5)


def hand_assembled(model: ExecutionEngine, which: int) -> nn.Module:
    """The networks of three programs, put together from the engine's layers by hand."""
    layers = dict(model.named_modules())

    def block(name: str):
        first, second = layers[f"{name}.conv1"], layers[f"{name}.conv2"]
        return lambda x: torch.relu(second(torch.relu(first(x))) + x)

    def join(name: str, x: Tensor, y: Tensor) -> Tensor:
        proj = layers[f"{name}.proj"]
        return block(f"{name}.res_block")(torch.relu(proj(torch.cat((x, y), dim=1))))

    def network(features: Tensor) -> Tensor:
        stem = torch.relu(layers["stem.2"](torch.relu(layers["stem.0"](features))))
        scene = block("scene")(stem)
        if which == 0:
            return block("exist")(scene)
        red = block("count")(block("filter_color[red]")(scene))
        if which == 1:
            return join("less_than", red, block("count")(scene))
        left = block("relate[left]")(block("unique")(block("filter_color[red]")(scene)))
        return block("count")(join("union", left, block("filter_color[red]")(scene)))

    class Whole(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            out = network(features)
            for layer in model.classifier:
                out = layer(out)
            return out

    return Whole()


RED = ["filter_color[red]", "scene"]
PROGRAMS = (
    ["exist", "scene"],
    ["less_than", "count", *RED, "count", "scene"],
    ["count", "union", "relate[left]", "unique", *RED, *RED],
)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("execution", ["grouped", "bmm", "reference"])
def test_an_executor_equals_a_network_assembled_by_hand(execution, which):
    model = engine(execution=execution).double()
    features = torch.randn(2, 5, 6, 4, dtype=torch.float64)
    row = [START, *(IDS[token] for token in PROGRAMS[which]), END]
    programs, images = torch.tensor([row, row]), torch.arange(2)
    ours = results(model, features, programs, images)
    model.zero_grad()
    given = features.clone().requires_grad_()
    logits = hand_assembled(model, which)(given)
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    (logits * weights).sum().backward()
    theirs = [logits.detach(), given.grad, *(p.grad for p in model.parameters())]
    assert_same(ours, theirs, 1e-10)


def test_shuffling_the_batch_permutes_the_logits():
    model, programs = engine().double(), well_formed(20)
    features = torch.randn(20, 5, 6, 4, dtype=torch.float64)
    order = torch.randperm(20)
    with torch.no_grad():
        straight = model(features, programs)
        shuffled = model(features[order], programs[order])
    torch.testing.assert_close(shuffled, straight[order], rtol=1e-12, atol=1e-12)


def test_image_of_equals_repeated_features():
    model, programs = engine().double(), well_formed(12)
    features, images = torch.randn(3, 5, 6, 4, dtype=torch.float64), torch.arange(12) % 3
    with torch.no_grad():
        torch.testing.assert_close(
            model(features, programs, image_of=images), model(features[images], programs)
        )


def test_the_order_of_a_binary_modules_inputs_matters_as_its_halves_do():
    model = engine().double()
    count, scene = IDS["count"], IDS["scene"]
    programs = torch.tensor(
        [
            [IDS["less_than"], count, IDS["unique"], scene, scene],
            [IDS["less_than"], scene, count, IDS["unique"], scene],
        ]
    )
    features = torch.randn(1, 5, 6, 4, dtype=torch.float64)
    images = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        one, other = model(features, programs, image_of=images)
        assert not torch.allclose(one, other)
        swapped = copy.deepcopy(model)
        proj = swapped.get_submodule("less_than.proj")
        assert isinstance(proj, nn.Conv2d)
        proj.weight.copy_(proj.weight.roll(4, dims=1))
        turned = swapped(features, programs[1:], image_of=images[1:])[0]
    torch.testing.assert_close(turned, one, rtol=1e-12, atol=1e-12)


def test_invalid_programs_get_constant_zeros_and_no_gradient():
    good = [START, IDS["exist"], IDS["scene"], END]
    bad = [START, IDS["exist"], IDS["unique"], END]
    programs = torch.tensor([bad, good, bad])
    features = torch.randn(3, 5, 6, 4)
    for execution in ("grouped", "bmm", "reference"):
        model = engine(malformed="invalid", execution=execution)
        logits = model(features, programs)
        assert logits[0].eq(0).all()
        assert logits[1].ne(0).any()
        torch.testing.assert_close(logits[1:2], engine()(features[1:2], programs[1:2]))
        F.cross_entropy(logits, torch.ones(3, dtype=torch.int64)).backward()
        assert model.get_submodule("unique").conv1.weight.grad is None
        assert model(features, programs[[0, 0, 0]]).eq(0).all()


def test_every_malformed_program_is_told_from_a_well_formed_one():
    language = Language(VOCABULARY)
    assert not any(is_well_formed(row, language) for row in MALFORMED.tolist())
    good = [*well_formed(30).tolist(), [IDS["scene"]]]
    assert all(is_well_formed(row, language) for row in good)


def test_sharing_runs_the_same_subtree_of_an_image_once():
    language = Language(VOCABULARY)
    program = [IDS["union"], IDS["unique"], IDS["scene"], IDS["unique"], IDS["scene"]]
    assert len(parse([program] * 3, language, [0, 0, 1]).tokens) == 6
    assert len(parse([program] * 3, language, [0, 0, 1], share=False).tokens) == 15


def test_both_plans_run_every_node_once_and_after_its_children():
    nodes = parse(well_formed(60).tolist(), Language(VOCABULARY), [0] * 30 + [1] * 30)
    for plan in (agenda, levels):
        ran: set[int] = set()
        for group in plan(nodes):
            for node in group:
                assert all(child < 0 or child in ran for child in nodes.children[node])
            ran |= set(group)
        assert ran == set(range(len(nodes.tokens)))
    by_token_and_height = {(nodes.tokens[n], h) for h, g in enumerate(levels(nodes)) for n in g}
    assert len(agenda(nodes)) < len(by_token_and_height)


def test_tokens_that_no_program_has_get_no_gradient():
    model = engine()
    programs = torch.tensor([[IDS["exist"], IDS["scene"]]])
    model(torch.randn(1, 5, 6, 4), programs).sum().backward()
    touched = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert touched == {"stem", "classifier", "exist", "scene"}


def test_intermediates_are_the_modules_outputs_in_the_order_they_ran():
    model = engine(execution="grouped")
    program = torch.tensor([START, IDS["count"], IDS["union"], IDS["scene"]])
    features = torch.randn(1, 5, 6, 4)
    logits, steps = model(features, program[None], return_intermediates=True)
    torch.testing.assert_close(logits, model(features, program[None]))
    ran = [(s.position, s.token) for s in steps[0]]
    assert ran == [(3, "scene"), (-1, "scene"), (2, "union"), (1, "count")]
    torch.testing.assert_close(model.classifier(steps[0][-1].output), logits)
    maps = module_maps(model, features, program)
    assert [m.token for m in maps] == ["scene", "scene", "union", "count"]
    assert all(m.map.shape == (6, 4) and m.map.ge(0).all() and m.map.any() for m in maps)


def test_batch_normalised_engines_agree_in_eval_mode_and_train_when_grouped():
    features, programs = torch.randn(3, 5, 6, 4), well_formed(9)
    images = torch.arange(9) % 3
    model = engine(batch_norm=True)
    model(features, programs, image_of=images).sum().backward()
    assert model.get_submodule("scene").bn1.running_mean.ne(0).any()
    model.eval()
    reference = engine(batch_norm=True, execution="reference").eval()
    reference.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(
            model(features, programs, image_of=images),
            reference(features, programs, image_of=images),
        )


def test_a_vocabulary_of_ones_own_runs_with_its_arities():
    tokens, arities = ["<NULL>", "image", "twice", "plus"], [1, 0, 1, 2]
    model = engine(tokens=tokens, arities=arities)
    programs = torch.tensor([[3, 2, 1, 1], [1, 0, 0, 0], [3, 0, 0, 0]])
    features = torch.randn(3, 5, 6, 4)
    reference = engine(tokens=tokens, arities=arities, execution="reference")
    torch.testing.assert_close(model(features, programs), reference(features, programs))


def test_tokens_may_have_the_names_of_methods_and_of_other_parts():
    tokens = ["<NULL>", "image", "double", "forward", "stem", "double_", "training"]
    arities = [1, 0, 1, 2, 1, 1, 1]
    plain = ["<NULL>", "image", "a", "b", "c", "d", "e"]
    features, programs = torch.randn(2, 5, 6, 4), torch.tensor([[3, 2, 1, 5, 1], [4, 6, 1, 0, 0]])
    model, other = engine(tokens=tokens, arities=arities), engine(tokens=plain, arities=arities)
    for token, name in zip(tokens, plain, strict=True):  # equal: made from one seed in one order
        torch.testing.assert_close(
            model.by_token[token].state_dict(), other.by_token[name].state_dict()
        )
    torch.testing.assert_close(model(features, programs), other(features, programs))
    names = {name.split(".")[0] for name in model.state_dict()} - {"stem", "classifier"}
    assert names == {"<NULL>", "image", "double_", "forward_", "stem_", "double__", "training_"}
    assert {p.dtype for p in model.double().parameters()} == {torch.float64}


def test_an_option_set_later_holds_or_is_refused_in_a_sentence():
    features, programs = torch.randn(3, 5, 6, 4), well_formed(3)
    model = engine()
    expected = model(features, programs)
    for execution in ("bmm", "reference", "grouped"):
        model.execution = execution
        torch.testing.assert_close(model(features, programs), expected)
    for model, option, value, message in (
        (engine(), "execution", "fast", "execution is 'fast'"),
        (engine(), "malformed", "drop", "malformed is 'drop'"),
        (engine(batch_norm=True), "execution", "bmm", "batch_norm needs execution"),
    ):
        setattr(model, option, value)
        with pytest.raises(ValueError, match=message):
            model(features, programs)


@pytest.mark.parametrize(
    ("programs", "features", "images", "message"),
    [
        ([[4, 44]], (1, 5, 6, 4), None, "question 0 of the batch holds id 44"),
        ([[4], [-1]], (2, 5, 6, 4), None, "question 1 of the batch holds id -1"),
        ([[4]], (1, 5, 4, 6), None, r"features are \(1, 5, 4, 6\)"),
        ([[4], [4]], (1, 5, 6, 4), None, "give image_of"),
        ([[4], [4]], (1, 5, 6, 4), [0, 1], "question 1 of the batch is about image 1"),
        ([[4], [4]], (1, 5, 6, 4), [0], "1 entries for 2 programs"),
        ([[4], [4]], (1, 5, 6, 4), [0.0, 0.5], r"image_of is torch.float32 of shape \(2,\): give"),
        ([[4]], (1, 5, 6, 4), [True], "image_of is torch.bool"),
        ([[4]], (1, 5, 6, 4), [[0]], r"of shape \(1, 1\): give whole numbers"),
    ],
)
def test_bad_input_is_named_with_its_question(programs, features, images, message):
    image_of = None if images is None else torch.tensor(images)
    with pytest.raises(ValueError, match=message):
        engine()(torch.zeros(features), torch.tensor(programs), image_of=image_of)


def test_features_have_to_be_floating_point():
    with pytest.raises(ValueError, match=r"features are torch.int64: give floating"):
        engine()(torch.zeros(1, 5, 6, 4, dtype=torch.int64), torch.tensor([[4]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execution": "fast"}, "execution is 'fast'"),
        ({"malformed": "drop"}, "malformed is 'drop'"),
        ({"tokens": ["<NULL>", "scene", ""]}, "'' cannot name a module"),
        ({"tokens": ["<NULL>", "scene", "a.b"]}, "'a.b' cannot name a module"),
        ({"tokens": ["scene"]}, "first program token has to be <NULL>"),
        ({"tokens": ["<NULL>", "count"]}, "no program token has arity 0"),
        ({"tokens": ["<NULL>", "scene", "scene"]}, "has 'scene' twice"),
        ({"tokens": ["<NULL>", "scene"], "arities": [0]}, "1 arities were given for 2"),
        ({"tokens": ["<NULL>", "scene"], "arities": [1, 3]}, "'scene' has arity 3"),
        ({"stem_layers": 0}, "set module_dim=5"),
        ({"answers": 0}, "answers=0: give 1 or more"),
        ({"module_dim": -1}, "module_dim=-1: give 1 or more"),
    ],
)
def test_options_that_make_no_engine_are_refused_in_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        engine(**options)
