"""The question generator against sums over all programs of a toy vocabulary."""

import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor

from common.clevr.execute import check_program
from common.clevr.grammar import Grammar
from common.clevr.vocabulary import standard
from learning_by_asking.net.generator import END, NULL, START, ProgramLSTM, sample_uniform

WORDS = standard()


def build(condition: str = "image_type", tokens: int = 44, *, sharp: float = 1.0) -> ProgramLSTM:
    torch.manual_seed(0)
    model = ProgramLSTM(
        tokens=tokens, types=13, channels=5, embed=6, hidden=8, condition=condition
    ).double()
    with torch.no_grad():
        model.head.weight *= sharp
        model.embed.weight *= sharp
    return model


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_programs(tokens: int, length: int) -> Tensor:
    """Every row that `length` allows: ended by END and padded, or cut off without one."""
    words = [END, *range(4, tokens)]
    rows = []
    for row in itertools.product(words, repeat=length - 1):
        stop = row.index(END) + 1 if END in row else len(row)
        if all(text == END for text in row[stop:]):  # each once
            rows.append([START, *row[:stop], *[NULL] * (len(row) - stop)])
    return torch.tensor(rows)


@pytest.mark.parametrize("condition", ["image_type", "image", "type", "none"])
def test_the_likelihood_of_a_sample_is_the_product_of_its_draws(condition: str):
    model = build(condition, sharp=4.0)
    features = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    types = torch.arange(26).view(2, 13) % 13
    programs, log_p = model.sample(features, types, generator=dice(), length=9)
    assert programs.shape == (2, 13, 9)
    assert (programs[..., 0] == START).all()
    again = model.log_likelihood(
        programs.flatten(0, 1), types.flatten(), features, torch.arange(2).repeat_interleave(13)
    )
    torch.testing.assert_close(again.view(2, 13), log_p, atol=1e-9, rtol=0)


def test_the_probabilities_of_all_programs_sum_to_one_and_samples_follow_them():
    model = build(tokens=7, sharp=3.0)
    features = torch.randn(1, 5, 2, 2, dtype=torch.float64)
    rows = all_programs(7, 4)
    assert len(rows) == 1 + 3 + 9 + 27
    types = torch.full((len(rows),), 3)
    with torch.no_grad():
        p = model.log_likelihood(rows, types, features.expand(len(rows), -1, -1, -1)).exp()
    torch.testing.assert_close(p.sum(), torch.ones((), dtype=torch.float64))

    count = 20_000
    drawn, _ = model.sample(features, torch.full((1, count), 3), generator=dice(), length=4)
    seen = (drawn[0][:, None] == rows).all(2).sum(0)
    assert seen.sum() == count
    assert stats.chisquare(seen.numpy(), (p * count).numpy()).pvalue > 0.001


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.5, 1.3])
def test_temperature_divides_the_logits_of_every_step(temperature: float):
    model = build("none", tokens=7, sharp=3.0)
    drawn, log_p = model.sample(
        None, torch.zeros(1, 50, dtype=torch.int64),
        generator=dice(), length=4, temperature=temperature,
    )  # fmt: skip
    for row, value in zip(drawn[0], log_p[0], strict=True):
        expected, state = 0.0, None
        for last, token in itertools.pairwise(row.tolist()):
            if token == NULL:
                break
            out, state = model.rnn(model.embed(torch.tensor([[last]])), state)
            logits = model.head(out)[0, 0, [END, 4, 5, 6]] / temperature
            expected += float(logits.log_softmax(0)[[END, 4, 5, 6].index(token)])
        assert float(value) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("level", ["types", "canonical", "template"])
def test_under_the_grammar_every_program_is_one_that_the_oracle_can_read(level: str):
    grammar = Grammar(WORDS.tokens, level=level)
    programs, log_p = build(sharp=2.0).sample(
        torch.randn(3, 5, 2, 2, dtype=torch.float64), torch.arange(120).view(3, 40) % 13,
        generator=dice(), grammar=grammar, temperature=1.3,
    )  # fmt: skip
    assert log_p.isfinite().all()
    for row in programs.flatten(0, 1).tolist():
        tokens = [WORDS.tokens[number] for number in row]
        assert isinstance(check_program(tokens, require_end=True), list)
        assert grammar.accepts(tokens)


class TwoWords:
    """A grammar of which the first token is 4 or 6, and the second END."""

    def start(self, batch: int, *, device: object = None) -> Tensor:
        return torch.zeros(batch, dtype=torch.int64)

    def mask(self, state: Tensor) -> Tensor:
        table = torch.zeros(2, 7, dtype=torch.bool)
        table[0, [4, 6]] = table[1, END] = True
        return table[state]

    def advance(self, state: Tensor, ids: Tensor) -> Tensor:
        return torch.ones_like(state)


@torch.no_grad()
def test_the_grammar_leaves_probabilities_proportional():
    model = build("none", tokens=7, sharp=3.0)
    rows = torch.tensor([[START, 4, END], [START, 6, END]])
    out, _ = model.rnn(model.embed(rows[:1, :1]))
    free = model.head(out)[0, 0].softmax(0)
    drawn, log_p = model.sample(
        None, torch.zeros(1, 400, dtype=torch.int64), generator=dice(), length=4, grammar=TwoWords()
    )
    for row, token in zip(rows, (4, 6), strict=True):
        here = (drawn[0, :, :3] == row).all(1)
        share = free[token] / (free[4] + free[6])
        torch.testing.assert_close(log_p[0, here], share.log().expand(int(here.sum())))
        test = stats.binomtest(int(here.sum()), 400, float(share))
        assert test.pvalue > 0.001


def test_many_rows_are_decoded_in_parts_without_a_difference(monkeypatch: pytest.MonkeyPatch):
    model, types = build("type", sharp=4.0), torch.arange(60).view(3, 20) % 13
    whole = model.sample(None, types, generator=dice(), length=9)
    monkeypatch.setattr("learning_by_asking.net.generator.ROWS_CPU", 7)
    parts = model.sample(None, types, generator=dice(), length=9)
    assert torch.equal(whole[0], parts[0])
    torch.testing.assert_close(whole[1], parts[1])


def test_a_row_draws_the_same_whenever_the_others_end():
    model = build("type", sharp=4.0)
    types = torch.arange(13)[None]
    together, _ = model.sample(None, types, generator=dice(), length=12)
    draws = torch.rand(13, 12, generator=dice(), dtype=torch.float64)
    lengths = (together[0] != NULL).sum(1)
    assert len(lengths.unique()) > 1
    for row in (0, 5, 12):
        ids, (h, c) = [START], model._start(types[0, row : row + 1], None, None)
        state = h[None], c[None]
        while ids[-1] != END and len(ids) < 12:
            out, state = model.rnn(model.embed(torch.tensor([[ids[-1]]])), state)
            p = model.head(out)[0, 0].masked_fill(
                torch.isin(torch.arange(44), torch.tensor([NULL, START, 3])), -torch.inf
            )
            ids.append(int((p.softmax(0).cumsum(0) <= draws[row, len(ids)]).sum()))
        assert together[0, row, : len(ids)].tolist() == ids


@torch.no_grad()
def test_the_image_and_the_type_matter_only_where_the_condition_names_them():
    rows = torch.tensor([[START, 9, 10, END]])
    maps = torch.randn(2, 5, 2, 2, dtype=torch.float64)
    for condition in ("image_type", "image", "type", "none"):
        model = build(condition)
        values = [
            float(
                model.log_likelihood(rows, torch.tensor([kind]), maps[place : place + 1]).detach()
            )
            for kind, place in ((0, 0), (1, 0), (0, 1))
        ]
        assert (values[0] != values[1]) == ("type" in condition)
        assert (values[0] != values[2]) == ("image" in condition)
        with torch.enable_grad():
            model.log_likelihood(rows, torch.tensor([0]), maps[:1]).sum().backward()
        assert all(value.grad is not None for value in model.parameters())


def test_the_gradient_is_that_of_the_likelihood():
    model = build("image", tokens=7)
    rows = torch.tensor([[START, 4, 6, END], [START, END, NULL, NULL]])
    maps = torch.randn(2, 5, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda maps: model.log_likelihood(rows, torch.zeros(2, dtype=torch.int64), maps), maps
    )


def test_random_typed_programs_have_the_probability_of_their_choices():
    grammar = Grammar(WORDS.tokens)
    programs, log_p = sample_uniform(grammar, 30, tokens=44, generator=dice())
    for row, value in zip(programs.tolist(), log_p.tolist(), strict=True):
        state, expected = grammar.start(1), 0.0
        for token in row[1:]:
            mask = grammar.mask(state)
            expected -= float(mask.sum().double().log())
            state = grammar.advance(state, torch.tensor([token]))
        assert value == pytest.approx(expected, rel=1e-6)


def test_an_unknown_condition_and_a_missing_image_are_named():
    with pytest.raises(ValueError, match="condition is 'words': choose image_type"):
        build("words")
    with pytest.raises(ValueError, match="give the features"):
        build("image").sample(None, torch.zeros(1, 2, dtype=torch.int64), generator=dice())
