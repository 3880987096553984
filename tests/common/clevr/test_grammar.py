"""Masks of the type grammar against brute force, the executor and the templates."""

import itertools
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from common.clevr.execute import Failure, check_program, execute
from common.clevr.functions import (
    ANSWERS,
    ATTRIBUTES,
    END,
    NULL,
    RELATIONS,
    SPECIAL,
    START,
    TOKENS,
    UNK,
)
from common.clevr.generation.catalogue import templates
from common.clevr.generation.template import Values, program
from common.clevr.grammar import Grammar
from common.clevr.programs import from_prefix, to_prefix, to_tree
from common.clevr.questions import read_questions
from common.clevr.scene_graph import read_scenes

VOCABULARY = (*SPECIAL, *TOKENS)
LEVELS = ("types", "canonical", "template")


def tokens_like(*starts: str) -> set[str]:
    return {text for text in TOKENS if text.startswith(starts)}


def sample(grammar: Grammar, count: int, seed: int = 0) -> list[list[str]]:
    """Programs drawn token by token under the masks, without END; leaves come up often."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor([10.0 if t == "scene" else 1.0 for t in grammar.tokens])
    state, columns = grammar.start(count), []
    for _ in range(grammar.limit + 1):
        ids = torch.multinomial(weights * grammar.mask(state), 1, generator=generator)[:, 0]
        state = grammar.advance(state, ids)
        columns.append(ids)
    assert (state == Grammar.ENDED).all()
    rows = torch.stack(columns, 1).tolist()
    rows = [[grammar.tokens[i] for i in row] for row in rows]
    return [row[: row.index(END)] for row in rows]


def mutate(tokens: Sequence[str], random: np.random.Generator) -> list[str]:
    """One token replaced, taken out or put in."""
    tokens, at = list(tokens), int(random.integers(len(tokens)))
    text = VOCABULARY[random.integers(len(VOCABULARY))]
    match random.integers(3):
        case 0:
            tokens[at] = text
        case 1:
            del tokens[at]
        case _:
            tokens.insert(at, text)
    return tokens


def test_what_may_follow_is_the_table_of_the_grammar():
    follow = Grammar(VOCABULARY).next_valid_tokens
    sets = {"scene", "union", "intersect"} | tokens_like("filter_", "relate[", "same_")
    assert len(sets) == 26
    numbers = {"equal_integer", "less_than", "greater_than"}
    roots = {"count", "exist"} | tokens_like("query_", "equal_") | numbers
    assert follow([]) == follow([START]) == roots
    assert follow(["count"]) == follow(["exist"]) == sets
    assert follow(["query_size"]) == {"unique"}
    assert follow(["query_size", "unique"]) == sets
    for attribute in ATTRIBUTES:
        assert follow([f"equal_{attribute}"]) == {f"query_{attribute}"}
        assert follow(["count", f"same_{attribute}"]) == {"unique"}
    assert all(follow(["count", f"relate[{relation}]"]) == {"unique"} for relation in RELATIONS)
    assert all(follow([name]) == {"count"} for name in numbers)
    assert follow(["less_than", "count", "scene"]) == {"count"}
    assert follow(["count", "scene"]) == {END}
    assert follow(["count", "scene", END]) == {NULL}


SMALL = ("scene", "union", "filter_size[large]", "unique", "same_size", "count", "equal_integer")


@pytest.mark.parametrize("limit", [2, 3, 5])
def test_allowed_are_exactly_the_beginnings_of_programs_within_the_limit(limit):
    """Against the list of all sequences of seven functions, up to the limit."""
    programs = [
        sequence
        for length in range(1, limit + 1)
        for sequence in itertools.product(SMALL, repeat=length)
        if isinstance(check_program(sequence), list)
    ]
    wanted: dict[tuple[str, ...], set[str]] = {}
    for sequence in programs:
        for at, text in enumerate((*sequence, END)):
            wanted.setdefault(sequence[:at], set()).add(text)
    grammar = Grammar((*SPECIAL, *SMALL), limit=limit)
    assert {prefix: grammar.next_valid_tokens(prefix) for prefix in wanted} == wanted
    assert all(grammar.accepts(sequence) for sequence in programs)


@pytest.mark.parametrize("level", LEVELS)
def test_programs_drawn_under_the_masks_are_well_formed_and_no_longer_than_the_limit(level):
    for limit in (2, 6, 25):
        programs = sample(Grammar(VOCABULARY, limit=limit, level=level), 300)
        assert max(map(len, programs)) <= limit
        assert all(isinstance(check_program(tokens), list) for tokens in programs)
        assert all(to_prefix(from_prefix(tokens)) == tokens for tokens in programs)


def test_each_level_is_within_the_one_before():
    grammars = [Grammar(VOCABULARY, level=level) for level in LEVELS]
    drawn = [sample(grammar, 300) for grammar in grammars]
    accepted = [[all(map(g.accepts, programs)) for g in grammars] for programs in drawn]
    assert accepted == [[True, False, False], [True, True, False], [True, True, True]]


def test_the_grammar_and_the_executor_accept_the_same_of_mutated_programs():
    random = np.random.default_rng(0)
    programs = sample(Grammar(VOCABULARY, limit=12), 500)
    long = Grammar(VOCABULARY, limit=40)
    found = []
    for tokens in programs * 4:
        changed = mutate(tokens, random)
        outcome = check_program(changed)
        assert long.accepts(changed) == isinstance(outcome, list), changed
        found.append(outcome if isinstance(outcome, Failure) else None)
    seen = {Failure.UNDERFLOW, Failure.TRAILING, Failure.TYPE_ERROR, Failure.UNKNOWN, None}
    assert set(found) == seen


def test_canonical_filters_come_once_per_attribute_and_from_shape_to_size():
    canonical = Grammar(VOCABULARY, level="canonical")
    names = {"shape": "cube", "material": "metal", "color": "red", "size": "large"}
    run = [f"filter_{attribute}[{value}]" for attribute, value in names.items()]
    for length in range(5):
        for filters in itertools.permutations(run, length):
            in_order = list(filters) == [text for text in run if text in filters]
            for head in (["count"], ["query_size", "unique"], ["exist", "same_size", "unique"]):
                assert canonical.accepts([*head, *filters, "scene"]) == in_order
    assert not canonical.accepts(["count", run[0], "filter_shape[sphere]", "scene"])


def programs_of_templates(share: float, profile: str = "fixed") -> list[list[str]]:
    """One program of each; its noun phrases mention that share of what they may mention."""
    random, out = np.random.default_rng(0), []
    for template in templates(profile):
        combos: dict[int, tuple] = {}
        for step in template.steps:
            asked = step.function.removeprefix("filter_")  # a filter by itself has a value
            if step.noun:
                combos[step.noun] = tuple(
                    str(random.choice(values))
                    if (asked == name if asked in ATTRIBUTES else random.random() < share)
                    and name not in template.exclusions(step.noun)
                    else None
                    for name, values in ATTRIBUTES.items()
                )
        relations = {s.relation: str(random.choice(RELATIONS)) for s in template.steps}
        out.append(to_prefix(to_tree(program(template, Values(combos, relations)))))
    return out


@pytest.mark.parametrize("profile", ["fixed", "v1_0"])
def test_every_template_is_accepted_at_the_strictest_level(profile):
    strict = Grammar(VOCABULARY, level="template")
    for share in (0, 0.5, 1):
        programs = programs_of_templates(share, profile)
        assert len(programs) == 90
        assert [tokens for tokens in programs if not strict.accepts(tokens)] == []
    assert max(map(len, programs)) == 25


def skeleton(tokens: Sequence[str]) -> tuple[str, ...]:
    """Names of the functions without filters, but for those of a union."""
    names = [text.partition("[")[0] for text in tokens]
    return tuple(
        name
        for at, name in enumerate(names)
        if "filter" not in name or next(n for n in names[at:] if "filter" not in n) == "union"
    )


def test_the_strictest_level_is_exactly_the_skeletons_of_the_templates():
    strict = Grammar(VOCABULARY, level="template")
    skeletons = {skeleton(tokens) for tokens in programs_of_templates(0)}
    # Four pairs become one: same_relate with or without a filter, exist and count.
    assert len(skeletons) == 90 - 8
    for level in ("template", "canonical"):
        programs = sample(Grammar(VOCABULARY, level=level, limit=14), 2000, seed=1)
        fits = [skeleton(tokens) in skeletons for tokens in programs]
        assert [strict.accepts(tokens) for tokens in programs] == fits
        assert any(fits)
    assert not all(fits)


def test_every_program_of_the_real_sample_is_accepted_at_the_strictest_level(shared_data: Path):
    strict = Grammar(VOCABULARY, level="template")
    folder = shared_data / "clevr_small" / "questions"
    questions = [q for file in sorted(folder.glob("CLEVR_*.json")) for q in read_questions(file)]
    programs = [to_prefix(to_tree(q.program)) for q in questions if q.program]
    assert len(programs) == 116
    assert [tokens for tokens in programs if not strict.accepts(tokens)] == []


def test_well_typed_programs_fail_at_unique_only(shared_data: Path):
    scenes = read_scenes(shared_data / "clevr_small" / "scenes" / "CLEVR_val_scenes.json")
    programs = sample(Grammar(VOCABULARY, limit=6), 100)
    outcomes = [execute(tokens, scene) for tokens in programs for scene in scenes]
    assert {r.failure for r in outcomes} <= {None, Failure.UNIQUE_EMPTY, Failure.UNIQUE_MANY}
    assert all(r.answer in ANSWERS for r in outcomes if r.failure is None)


def test_masks_of_a_batch_are_those_of_its_rows_and_keep_their_shape():
    grammar = Grammar(VOCABULARY, level="canonical")
    programs = sample(grammar, 6)
    for tokens in programs:
        state = grammar.start(1)
        for at, text in enumerate([*tokens, END]):
            allowed = {VOCABULARY[i] for i in grammar.mask(state)[0].nonzero()[:, 0].tolist()}
            assert allowed == grammar.next_valid_tokens(tokens[:at])
            state = grammar.advance(state, torch.tensor([VOCABULARY.index(text)]))
    beams = grammar.start(6).reshape(2, 3)
    assert grammar.mask(beams).shape == (2, 3, len(VOCABULARY))
    ids = torch.full((2, 3), VOCABULARY.index("count"), dtype=torch.int32)
    assert grammar.advance(beams, ids).shape == (2, 3)
    assert grammar.advance(grammar.start(0), ids[:0, 0]).shape == (0,)


def test_a_grammar_survives_a_pickle_with_its_states():
    grammar = Grammar(VOCABULARY)
    state = grammar.advance(grammar.start(1), torch.tensor([VOCABULARY.index("count")]))
    copy = pickle.loads(pickle.dumps(grammar))
    assert torch.equal(copy.mask(state), grammar.mask(state))


def test_a_grammar_that_met_states_in_inference_mode_serves_training():
    grammar = Grammar(VOCABULARY)
    with torch.inference_mode():
        sample(grammar, 50)
    logits = torch.zeros(50, len(VOCABULARY), requires_grad=True)
    state = grammar.start(50)
    sample(grammar, 50, seed=1)
    logits.masked_fill(~grammar.mask(state), -torch.inf).log_softmax(1)[:, 4].sum().backward()
    assert logits.grad is not None
    assert (logits.grad == 0).equal(~grammar.mask(state))


@pytest.mark.gpu
def test_masks_on_the_gpu_are_those_of_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    grammar, state = Grammar(VOCABULARY), Grammar(VOCABULARY).start(3, device="cuda")
    for text in ("less_than", "count", "scene", "count"):
        state = grammar.advance(state, torch.full((3,), VOCABULARY.index(text), device="cuda"))
        assert grammar.mask(state).device == state.device
        assert torch.equal(grammar.mask(state).cpu(), grammar.mask(state.cpu()))


def test_a_token_that_is_not_allowed_is_refused_with_those_that_are():
    grammar = Grammar(VOCABULARY)
    ids = torch.tensor([VOCABULARY.index("count"), VOCABULARY.index("scene")])
    with pytest.raises(ValueError, match=r"program 1: scene may not come next.*count, .*exist"):
        grammar.advance(grammar.start(2), ids)
    with pytest.raises(ValueError, match=r"token 1, '<UNK>', may not come here.*scene"):
        grammar.next_valid_tokens(["count", UNK])


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (TOKENS, {}, "must have <NULL> and <END>"),
        ((*VOCABULARY, "scene"), {}, "every token once"),
        ((*VOCABULARY, "jump"), {}, "'jump' is no program token"),
        (VOCABULARY, {"limit": 1}, "no program of up to 1 functions"),
        ((*SPECIAL, "count", "unique"), {}, "complete the vocabulary"),
        (VOCABULARY, {"level": "strict"}, "types, canonical or template"),
    ],
)
def test_a_vocabulary_or_option_of_no_use_is_refused(tokens, options, message):
    with pytest.raises(ValueError, match=message):
        Grammar(tokens, **options)
