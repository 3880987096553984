import itertools
import pickle
import random

import pytest

from common.clevr.functions import (
    ANSWERS,
    ATTRIBUTES,
    END,
    FUNCTIONS,
    NULL,
    SPECIAL,
    START,
    TOKENS,
    Kind,
    parse_token,
    signature,
    token,
)
from common.clevr.programs import (
    MOST_FUNCTIONS,
    Node,
    ProgramError,
    Tree,
    canonical,
    check_nodes,
    from_prefix,
    to_list,
    to_prefix,
    to_tree,
)

# "Are there fewer cubes than spheres?", interleaved as some of CLEVR's lists are.
INTERLEAVED = (
    Node("scene"),
    Node("scene"),
    Node("filter_shape", (0,), ("cube",)),
    Node("filter_shape", (1,), ("sphere",)),
    Node("count", (2,)),
    Node("count", (3,)),
    Node("less_than", (4, 5)),
)
FEWER = ["less_than", "count", "filter_shape[cube]", "scene", "count", "filter_shape[sphere]"]


def random_tree(kind: Kind | None, depth: int, draw: random.Random) -> Tree:
    """A tree that gives `kind` (None: an answer), about `depth` functions deep."""
    fitting = [
        text
        for text in TOKENS
        if signature(text).output in ((kind,) if kind else set(Kind) - {Kind.OBJECT, Kind.OBJECTS})
    ]
    if depth <= 0 and kind is Kind.OBJECTS:
        fitting = ["scene"]
    text = draw.choice(fitting)
    inputs = signature(text).inputs
    return Tree(text, tuple(random_tree(each, depth - 1, draw) for each in inputs))


def random_trees(count: int) -> list[Tree]:
    draw = random.Random(0)
    trees = [random_tree(None, draw.randrange(6), draw) for _ in range(count)]
    return [tree for tree in trees if len(to_prefix(tree)) <= MOST_FUNCTIONS]


def test_the_data_has_forty_program_tokens_and_twenty_eight_answers_in_order():
    assert len(TOKENS) == 40
    assert len(ANSWERS) == 28
    assert list(TOKENS) == sorted(TOKENS)
    assert list(ANSWERS) == sorted(ANSWERS)
    assert TOKENS[0] == "count"
    assert TOKENS[6:9] == ("exist", "filter_color[blue]", "filter_color[brown]")
    assert TOKENS[-3:] == ("scene", "union", "unique")
    assert ANSWERS[:4] == ("0", "1", "10", "2")
    assert ANSWERS[-3:] == ("sphere", "yellow", "yes")
    assert SPECIAL == ("<NULL>", "<START>", "<END>", "<UNK>")


def test_the_token_counts_per_function_are_those_of_the_catalogue():
    names = [parse_token(text)[0] for text in TOKENS]
    assert sum(name.startswith("filter_") for name in names) == 15
    assert names.count("relate") == 4
    for verb in ("same_", "query_"):
        assert sum(name.startswith(verb) for name in names) == 4
    assert [f"equal_{each}" in names for each in ATTRIBUTES] == [True] * 4
    assert set(FUNCTIONS) - set(names) == {"equal_object"}


def test_a_token_is_split_and_joined_without_loss():
    assert token("filter_color", ("red",)) == "filter_color[red]"
    assert parse_token("relate[left]") == ("relate", ("left",))
    assert all(token(*parse_token(text)) == text for text in (*TOKENS, *SPECIAL, "odd[", "a]b"))


@pytest.mark.parametrize(
    "text", ["<END>", "filter_color", "filter_color[pink]", "scene[red]", "relate[left,right]", ""]
)
def test_a_token_that_clevr_lacks_has_no_signature(text: str):
    with pytest.raises(ValueError, match="no program token of CLEVR"):
        signature(text)


def test_random_trees_survive_prefix_and_list():
    for tree in random_trees(300):
        assert from_prefix(to_prefix(tree)) == tree
        nodes = to_list(tree)
        assert to_tree(nodes) == tree
        check_nodes(nodes, "question 0")
        # The layout of the list: left subtree, right subtree, root.
        assert [token(node.function, node.values) for node in nodes] == postfix(tree)


def postfix(tree: Tree) -> list[str]:
    return [*itertools.chain(*map(postfix, tree.children)), tree.token]


def test_an_interleaved_list_has_the_tree_of_its_canonical_order():
    tree = to_tree(INTERLEAVED)
    assert to_prefix(tree) == [*FEWER, "scene"]
    nodes = to_list(tree)
    assert nodes != list(INTERLEAVED)
    assert to_tree(nodes) == tree
    assert nodes[-1] == Node("less_than", (2, 5))


def test_a_shared_node_is_repeated_and_an_unreachable_one_vanishes():
    nodes = [
        Node("scene"),
        Node("filter_color", (0,), ("red",)),
        Node("count", (0,)),
        Node("union", (1, 1)),
        Node("count", (3,)),
    ]
    red = ["filter_color[red]", "scene"]
    assert to_prefix(to_tree(nodes)) == ["count", "union", *red, *red]


def test_special_tokens_around_a_program_do_not_matter():
    tree = from_prefix(["count", "scene"])
    assert from_prefix(["<START>", "count", "scene", "<END>", "<NULL>", "<NULL>"]) == tree


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        ([], "empty"),
        (["<END>", "scene"], "empty"),
        (["count"], "underflow"),
        (["union", "scene"], "underflow"),
        (["scene", "scene"], "trailing"),
        (["count", "<UNK>", "scene"], "unknown"),
        (["count", "<START>", "scene"], "unknown"),
        (["count", "filter_color[pink]", "scene"], "unknown"),
    ],
)
def test_a_malformed_sequence_says_what_is_wrong(tokens: list[str], reason: str):
    with pytest.raises(ProgramError) as error:
        from_prefix(tokens)
    assert error.value.reason == reason


def test_the_error_of_a_sequence_names_the_token():
    with pytest.raises(ProgramError, match=r"complete before token 2 \(exist\).* 4 tokens"):
        from_prefix(["count", "scene", "exist", "scene"])
    with pytest.raises(ProgramError, match="lacks 1 subtree at scene, its last token"):
        from_prefix(["union", "scene"])


@pytest.mark.parametrize(
    ("nodes", "reason", "message"),
    [
        ([], "empty", "the program has no functions"),
        ([Node("scenes")], "unknown", r"node 0 \(scenes\) is no function"),
        (
            [Node("scene"), Node("count")],
            "arity",
            r"node 1 \(count\) has no inputs, but .* 1 input",
        ),
        ([Node("scene"), Node("count", (0, 0))], "arity", "has 2 inputs, but .* 1 input"),
        ([Node("scene"), Node("filter_size", (0,))], "arity", "has no values, but .* 1 value"),
        ([Node("scene", (), ("red",))], "arity", "has 1 value, but .* no values"),
        ([Node("scene"), Node("filter_size", (0,), ("big",))], "unknown", "'big', .* small, large"),
        ([Node("scene"), Node("count", (3,))], "underflow", "takes node 3 .* 0 to 1"),
        ([Node("scene"), Node("count", (-1,))], "underflow", "takes node -1 "),
        ([Node("scene"), Node("count", (1,))], "cycle", "takes node 1 .* cycle"),
        ([Node("count", (1,)), Node("scene")], "cycle", "takes node 1 .* out of order"),
    ],
)
def test_a_broken_list_is_named_in_one_sentence(nodes: list[Node], reason: str, message: str):
    with pytest.raises(ProgramError, match=f"^questions.json: question 7: .*{message}") as error:
        check_nodes(nodes, "questions.json: question 7")
    assert error.value.reason == reason
    assert "\n" not in str(error.value)


def test_a_program_too_deep_is_refused_even_where_shared_nodes_hide_it():
    deep = [Node("scene"), *(Node("filter_color", (i,), ("red",)) for i in range(MOST_FUNCTIONS))]
    with pytest.raises(ProgramError, match=f"question 7: .* more than {MOST_FUNCTIONS} ") as error:
        check_nodes(deep, "question 7")
    assert error.value.reason == "deep"
    check_nodes(deep[:-1], "question 7")
    # 2^60 functions when written out.
    shared = [Node("scene"), *(Node("union", (i, i)) for i in range(60))]
    for refuse in (to_tree, lambda nodes: check_nodes(nodes, "question 7")):
        with pytest.raises(ProgramError, match="more than"):
            refuse(shared)


def test_a_program_error_keeps_its_reason_between_processes():
    error = pickle.loads(pickle.dumps(ProgramError("no", "deep")))
    assert (str(error), error.reason) == ("no", "deep")


def shuffle(tree: Tree, draw: random.Random) -> Tree:
    """The same question written otherwise: filters of a run and symmetric operands mixed."""
    run = []
    while tree.token.startswith("filter_"):
        run += [tree.token] * draw.randint(1, 2)
        (tree,) = tree.children
    children = [shuffle(child, draw) for child in tree.children]
    name = parse_token(tree.token)[0]
    if name in ("union", "intersect") or name.startswith("equal_"):
        draw.shuffle(children)
    out = Tree(tree.token, tuple(children))
    draw.shuffle(run)
    for text in run:
        out = Tree(text, (out,))
    return out


def test_programs_that_differ_in_order_and_repetition_alone_have_one_canonical_form():
    draw = random.Random(1)
    for tree in random_trees(300):
        form = canonical(to_prefix(tree))
        assert canonical(form) == form
        for _ in range(3):
            other = to_prefix(shuffle(tree, draw))
            assert canonical([START, *other, END, NULL]) == form


@pytest.mark.parametrize(
    ("program", "form"),
    [
        (  # the order of the data, a repetition merged, two colours kept
            "count filter_size[large] filter_color[red] filter_color[blue] filter_shape[cube] "
            "filter_color[red] scene",
            "count filter_shape[cube] filter_color[blue] filter_color[red] filter_size[large] "
            "scene",
        ),
        (  # a relation ends the run
            "count filter_size[small] relate[left] unique filter_shape[cube] scene",
            "count filter_size[small] relate[left] unique filter_shape[cube] scene",
        ),
        (
            "count union filter_shape[cube] scene filter_color[red] scene",
            "count union filter_color[red] scene filter_shape[cube] scene",
        ),
        (
            "equal_integer count filter_shape[cube] scene count filter_color[red] scene",
            "equal_integer count filter_color[red] scene count filter_shape[cube] scene",
        ),
        (  # not symmetric
            "less_than count filter_shape[cube] scene count filter_color[red] scene",
            "less_than count filter_shape[cube] scene count filter_color[red] scene",
        ),
        (  # malformed: kept in its order
            "count filter_size[large] filter_shape[cube]",
            "count filter_size[large] filter_shape[cube]",
        ),
        ("count filter_color[pink] filter_shape[cube] scene", None),
        ("<START> <START> count scene", "<START> count scene"),
        ("<START> <END> count scene", ""),
    ],
)
def test_the_canonical_form_of_a_program_is_as_worked_out_by_hand(program: str, form: str | None):
    expected = program if form is None else form
    assert canonical(program.split()) == tuple(expected.split())


def test_the_canonical_form_of_a_very_long_program_is_found_without_recursion():
    program = ["count", *["filter_color[red]", "relate[left]", "unique"] * 700, "scene"]
    assert canonical(program) == tuple(program)
