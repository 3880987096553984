"""The module network: its objects, its stack, and that a program says what it computes."""

import numpy as np
import pytest
import torch

from common.clevr import builtin
from common.clevr.arrays.grid import channels
from common.clevr.functions import SPECIAL, TOKENS, signature
from learning_by_asking.net.modules import ModuleNet, Objects, deepest

NAMES = [*SPECIAL, *TOKENS]
ARITY = [-1 if name in SPECIAL else len(signature(name).inputs) for name in NAMES]
PROGRAMS = [
    "count filter_color[red] scene",
    "less_than count scene count filter_shape[cube] scene",
    "equal_color query_color unique filter_size[large] scene query_color unique relate[left] "
    "unique filter_shape[cube] scene",
    "exist intersect union scene filter_size[small] scene scene",
]


def encode(texts):
    rows = [[1, *(NAMES.index(name) for name in text.split()), 2] for text in texts]
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def build(**options):
    torch.manual_seed(0)
    sizes = {"objects": 3, "state": 6, "hidden": 5, "fc": [7]}
    return ModuleNet(arity=ARITY, feature_size=(10, 4, 4), **sizes | options).double().eval()


def evaluate(model, names, objects):
    """Value (K + S) of a program, by recursion from the root, and the tokens that follow it."""
    name, *rest = names
    values = []
    for _ in range(len(signature(name).inputs)):
        value, rest = evaluate(model, rest, objects)
        values.append(value)
    empty = torch.zeros(1, model.objects.count + model.state, dtype=torch.float64)
    left, right = [*values, empty, empty][:2]
    token = torch.tensor([NAMES.index(name)])
    return model.module(token, objects[..., 1:], objects[..., 0], left, right), rest


def test_the_stack_equals_the_recursion_over_each_program():
    model = build()
    features = torch.randn(2, 10, 4, 4, dtype=torch.float64)
    image_of = torch.tensor([0, 1, 1, 0])
    objects = model.project(features)[image_of]
    values = model.run(encode(PROGRAMS), objects)
    for b, text in enumerate(PROGRAMS):
        expected, rest = evaluate(model, text.split(), objects[b : b + 1])
        assert rest == []
        assert torch.allclose(values[b : b + 1], expected, atol=1e-12)
    logits = model(encode(PROGRAMS), features, image_of)
    assert torch.allclose(logits[:, 4:], model.classifier(values[:, 3:])[:, 4:])


def test_the_operands_of_less_than_are_told_apart():
    model = build()
    features = torch.randn(1, 10, 4, 4, dtype=torch.float64)
    swapped = "less_than count filter_shape[cube] scene count scene"
    logits = model(encode([PROGRAMS[1], swapped]), features, torch.tensor([0, 0]))[:, 4:]
    assert (logits[0] - logits[1]).abs().max() > 1e-5


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        (PROGRAMS[0], 1),
        (PROGRAMS[1], 2),
        ("equal_integer less_than count scene count scene count scene", 3),
        ("union union union", 1),
        ("scene scene scene scene", 4),
        ("", 1),
    ],
)
def test_the_stack_is_as_deep_as_the_program(text, depth):
    assert deepest(torch.tensor(ARITY)[encode([text])]) == depth


@pytest.mark.parametrize("text", ["", "union scene", "count", "scene scene unique", "count <UNK>"])
def test_programs_that_are_no_tree_get_finite_answers(text):
    model = build()
    features = torch.randn(1, 10, 4, 4, dtype=torch.float64)
    assert model(encode([text]), features, torch.tensor([0]))[:, 4:].isfinite().all()


def test_objects_are_the_occupied_cells_and_the_others_are_absent():
    options = builtin.Options(objects=(1, 4))
    world = options.world(64, 64, rendered=False)
    features = np.zeros((2, len(channels(world)), 5, 5), np.float32)
    features[0, :3, 1, 2] = features[0, :3, 4, 0] = 1
    objects = Objects(features.shape[1:], 6, 4)
    found = objects(torch.from_numpy(features))
    assert found.shape == (2, 6, 5)
    assert found[0, :, 0].tolist() == [1, 1, 0, 0, 0, 0]
    assert found[1, :, 0].tolist() == [0] * 6
    cell = torch.cat([torch.from_numpy(features[0, :, 1, 2]), torch.tensor([0.0, -0.5])])
    assert any(torch.allclose(each, objects.embed(cell)) for each in found[0, :2, 1:])


def test_a_map_of_fewer_cells_than_objects_gives_all_its_cells():
    assert Objects((3, 1, 2), 6, 4)(torch.rand(2, 3, 1, 2)).shape == (2, 2, 5)


def test_an_absent_object_is_in_no_set():
    model = build()
    objects = model.project(torch.rand(1, 10, 4, 4, dtype=torch.float64))
    objects[0, 2, 0] = 0
    for text in PROGRAMS:
        value = model.run(encode([text]), objects)
        assert value[0, 2] == 0
        objects[0, 2, 1:] += 1
        assert torch.equal(model.run(encode([text]), objects), value)


def test_gradients_are_those_of_finite_differences():
    model = build(objects=2, state=3, hidden=4)
    objects = torch.rand(4, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: model.run(encode(PROGRAMS), given), objects)


def draw_world(count, seed):
    """Maps of 3 objects of 3 shapes, and a program about each with the true answer."""
    random = np.random.default_rng(seed)
    features = np.zeros((count, 10, 4, 4), np.float32)
    shapes = random.integers(3, size=(count, 3))
    for i in range(count):
        cells = random.choice(16, 3, replace=False)
        features[i, 0].flat[cells] = 1
        features[i, 1 + shapes[i], cells // 4, cells % 4] = 1
    asked, kind = random.integers(3, size=count), random.integers(2, size=count)
    found = (shapes == asked[:, None]).sum(1)
    names = ("cube", "cylinder", "sphere")
    roots = ("exist", "count")
    programs = [
        f"{roots[k]} filter_shape[{names[a]}] scene" for k, a in zip(kind, asked, strict=True)
    ]
    answers = np.where(kind == 1, 4 + found, 8 + (found > 0))  # 4..7: 0 to 3; 8 no, 9 yes
    return encode(programs), torch.from_numpy(features), torch.from_numpy(answers)


def test_it_learns_to_filter_and_count_from_some_hundred_answers():
    model = build(state=16, hidden=24, fc=[16]).float().train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    programs, features, answers = draw_world(400, 0)
    for step in range(200):
        rows = torch.arange(40) + step * 40 % 400
        logits = model(programs[rows], features[rows], torch.arange(40))
        loss = torch.nn.functional.cross_entropy(logits, answers[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    programs, features, answers = draw_world(200, 1)
    right = model(programs, features, torch.arange(200)).argmax(1) == answers
    assert right.float().mean() > 0.9
