"""Sec. 3.2 of the paper: the program generator and its decoding."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from common.clevr.grammar import Grammar
from common.clevr.vocabulary import standard
from program_execution.decoding import sample
from program_execution.decoding.beam import beam_search
from program_execution.net.seq2seq import END, NULL, START, ProgramGenerator

ATTENTIONS = ("none", "dot")
TOKENS = ("<NULL>", "<START>", "<END>", "<UNK>", "scene", "unique", "count")


def some_model(*, dtype: torch.dtype = torch.float64, **sizes) -> ProgramGenerator:
    torch.manual_seed(0)
    sizes = {"question_words": 20, "program_tokens": 12, "embedding": 5, "hidden": 6} | sizes
    model = ProgramGenerator(**sizes).to(dtype)
    nn.init.normal_(model.decoder_linear.weight, std=2.0)  # so that tokens differ
    return model


def some_ids(lengths: list[int], size: int, *, width: int, seed: int = 1) -> Tensor:
    """Rows START, ..., END of these lengths, padded with NULL to `width`."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), width), NULL)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = torch.randint(4, size, (length,), generator=generator)
        row[0], row[length - 1] = START, END
    return ids


QUESTIONS = some_ids([9, 2, 5, 7, 5], 20, width=9)  # a full row, and one of length 2
PROGRAMS = some_ids([4, 8, 2, 3, 7], 12, width=8, seed=2)


def cells(rnn: nn.LSTM) -> list[nn.LSTMCell]:
    """The layers as cells that share the parameters."""
    found = []
    for layer in range(rnn.num_layers):
        inputs = rnn.input_size if layer == 0 else rnn.hidden_size
        cell = nn.LSTMCell(inputs, rnn.hidden_size, dtype=torch.float64)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(cell, name, getattr(rnn, f"{name}_l{layer}"))
        found.append(cell)
    return found


def advance(layers: list[nn.LSTMCell], x: Tensor, states: list) -> list:
    after = []
    for cell, state in zip(layers, states, strict=True):
        after.append(cell(x, state))
        x = after[-1][0]
    return after


def loss_step_by_step(model: ProgramGenerator, questions: Tensor, programs: Tensor) -> Tensor:
    """Row by row and word by word, with nothing of the model but its parameters."""
    losses = []
    for question, program in zip(questions, programs, strict=True):
        layers, states, words = cells(model.encoder_rnn), [None] * model.encoder_rnn.num_layers, []
        for word in question[question != NULL]:
            states = advance(layers, model.encoder_embed.weight[word][None], states)
            words.append(states[-1][0])
        code, heard = words[-1], torch.cat(words)
        layers, states = cells(model.decoder_rnn), [None] * model.decoder_rnn.num_layers
        program = program[program != NULL]
        for token, target in itertools.pairwise(program):
            x = torch.cat([code, model.decoder_embed.weight[token][None]], dim=1)
            states = advance(layers, x, states)
            top = states[-1][0]
            if model.attention_mix is not None:
                context = (top @ heard.T).softmax(1) @ heard
                top = torch.tanh(torch.cat([context, top], 1) @ model.attention_mix.weight.T)
            logits = top @ model.decoder_linear.weight.T + model.decoder_linear.bias
            losses.append(F.cross_entropy(logits, target[None]))
    return torch.stack(losses).mean()


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def test_the_default_sizes_have_2_510_008_parameters_under_the_public_names():
    model = ProgramGenerator()
    assert sum(each.numel() for each in model.parameters()) == 2_510_008
    lstm = [f"{name}_l{i}" for i in (0, 1) for name in ("weight_ih", "weight_hh")]
    lstm += [f"{name}_l{i}" for i in (0, 1) for name in ("bias_ih", "bias_hh")]
    names = {f"{part}_rnn.{name}" for part in ("encoder", "decoder") for name in lstm}
    names |= {"encoder_embed.weight", "decoder_embed.weight"}
    assert set(model.state_dict()) == names | {"decoder_linear.weight", "decoder_linear.bias"}


@pytest.mark.parametrize(
    ("attention", "layers"), [("none", 2), ("dot", 2), ("none", 1), ("none", 3)]
)
def test_loss_and_all_gradients_equal_a_loop_of_lstm_cells(attention, layers):
    model = some_model(attention=attention, layers=layers)
    ours = model.loss(QUESTIONS, PROGRAMS)
    theirs = loss_step_by_step(model, QUESTIONS, PROGRAMS)
    assert (ours - theirs).abs() < 1e-10
    assert largest_difference(gradients(ours, model), gradients(theirs, model)) < 1e-10
    with torch.no_grad():  # another path through the code
        assert (model.loss(QUESTIONS, PROGRAMS) - theirs).abs() < 1e-10


def test_autocast_leaves_the_loss_and_the_decoding_of_float32():
    model = some_model(dtype=torch.float32)
    exact, best = model.loss(QUESTIONS, PROGRAMS), sample.greedy(model, QUESTIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, found = model.loss(QUESTIONS, PROGRAMS), sample.greedy(model, QUESTIONS)
    assert loss.dtype == torch.float32
    assert (loss - exact).abs() < 0.05
    assert torch.equal(found.log_probs, best.log_probs)


def test_padding_gets_no_gradient_and_its_length_changes_nothing():
    model = some_model()
    logits = model(QUESTIONS, PROGRAMS)
    targets = PROGRAMS[:, 1:]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NULL)
    assert torch.equal(loss, model.loss(QUESTIONS, PROGRAMS))
    (slope,) = torch.autograd.grad(loss, logits)
    assert (slope[targets == NULL] == 0).all()
    assert (slope[targets != NULL] != 0).any(-1).all()
    wide = model.loss(F.pad(QUESTIONS, (0, 4)), F.pad(PROGRAMS, (0, 3)))
    assert (wide - loss).abs() < 1e-14


@pytest.mark.parametrize("seed", range(3))
def test_the_code_is_bit_for_bit_the_final_state_of_a_packed_lstm(seed):
    model = some_model(embedding=30, hidden=40)
    questions = some_ids([12, 2, 7, 3, 12, 9], 20, width=12, seed=seed)
    with torch.no_grad():
        lengths = (questions != NULL).sum(1)
        vectors = pack_padded_sequence(
            model.encoder_embed(questions), lengths, batch_first=True, enforce_sorted=False
        )
        _, (final, _) = model.encoder_rnn(vectors)
        assert torch.equal(model.encode(questions).code, final[-1])
    assert (model.encode(questions).code - final[-1]).abs().max() < 1e-14


def test_one_program_is_learnt_by_heart():
    model = some_model(dtype=torch.float32, hidden=24)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(50):
        optimizer.zero_grad()
        model.loss(QUESTIONS, PROGRAMS).backward()
        optimizer.step()
    decoded = sample.greedy(model, QUESTIONS)
    assert torch.equal(decoded.programs, PROGRAMS[:, 1:])
    assert torch.equal(decoded.mask, PROGRAMS[:, 1:] != NULL)
    assert decoded.log_probs.sum(1).min() > -1


def log_probs_of(model: ProgramGenerator, questions: Tensor, programs: Tensor) -> Tensor:
    """By teacher forcing: log p (B, T) of programs without START, and without inner NULL."""
    fed = torch.cat([torch.full_like(programs[:, :1], START), programs], dim=1)
    log_p = model(questions, fed).log_softmax(-1)
    return log_p.gather(2, programs.unsqueeze(2)).squeeze(2)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_way_of_decoding_reports_the_log_probabilities_of_teacher_forcing(attention):
    model = some_model(attention=attention)
    with torch.no_grad():
        model.decoder_linear.bias[NULL] = -1e3  # so that NULL is padding alone
        ways = [sample.greedy(model, QUESTIONS), beam_search(model, QUESTIONS, width=3)]
    ways += [sample.sample(model, QUESTIONS, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        ways += [sample.sample(model, QUESTIONS, generator=torch.Generator().manual_seed(0))]
    assert torch.equal(ways[2].programs, ways[3].programs)
    for programs, log_probs, mask, _ in ways:
        assert torch.equal(mask, programs != NULL)
        assert (((programs == END).cumsum(1) - (programs == END).long() == 0) == mask).all()
        expected = log_probs_of(model, QUESTIONS, programs) * mask
        assert (log_probs - expected).abs().max() < 1e-10


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("constrained", [False, True])
def test_a_beam_of_one_is_greedy(attention, constrained):
    model = some_model(attention=attention, program_tokens=7)
    grammar = Grammar(TOKENS, limit=6) if constrained else None
    ours = beam_search(model, QUESTIONS, width=1, grammar=grammar)
    theirs = sample.greedy(model, QUESTIONS, grammar=grammar)
    assert torch.equal(ours.programs, theirs.programs)
    assert torch.equal(ours.mask, theirs.mask)
    assert (ours.log_probs - theirs.log_probs).abs().max() < 1e-10


def test_a_beam_as_wide_as_the_language_finds_its_best_program():
    model, V, longest = some_model(program_tokens=4), 4, 3
    found = beam_search(model, QUESTIONS, width=80, max_length=longest)
    totals = found.log_probs.sum(1)
    for row, question in enumerate(QUESTIONS):
        programs = []
        for ids in itertools.product(range(V), repeat=longest):
            end = ids.index(END) if END in ids else longest
            programs.append(ids[: end + 1] + (NULL,) * (longest - end - 1))
        scores = {}
        encoded = model.encode(question[None])
        for ids in set(programs):
            fed = torch.tensor([(START, *ids[:-1])])
            log_p = model.decode(encoded, fed, torch.tensor([longest])).log_softmax(-1)[0].detach()
            last = ids.index(END) if END in ids else longest
            scores[ids] = sum(float(log_p[t, ids[t]]) for t in range(min(last + 1, longest)))
        best = sorted(scores.values(), reverse=True)
        assert len(best) == 1 + 3 + 9 * 4
        program = found.programs[row].tolist()
        assert scores[tuple(program + [NULL] * (longest - len(program)))] == pytest.approx(best[0])
        assert float(totals[row]) == pytest.approx(best[0])


@pytest.mark.parametrize("level", ["types", "template"])
def test_constrained_decoding_gives_well_formed_programs_only(level):
    tokens = list(standard().program)
    grammar = Grammar(tokens, level=level)
    torch.manual_seed(0)
    model = ProgramGenerator(embedding=16, hidden=16, attention="dot")
    questions = some_ids([5 + i % 9 for i in range(64)], 93, width=14)
    free = sample.sample(model, questions)
    ways = [
        sample.sample(model, questions, grammar=grammar),
        sample.sample(model, questions, grammar=grammar, temperature=3.0),
        sample.greedy(model, questions, grammar=grammar),
        beam_search(model, questions, width=4, grammar=grammar),
    ]
    programs = [program for way in ways for program in way.programs.tolist()]
    assert all(grammar.accepts([tokens[i] for i in ids]) for ids in programs)
    assert all(END in ids for ids in programs)
    assert not all(grammar.accepts([tokens[i] for i in ids]) for ids in free.programs.tolist())
    ways[0].log_probs.sum().backward()
    assert all(each.grad.isfinite().all() for each in model.parameters())
    assert ways[0].log_probs.isfinite().all()
    assert ways[0].entropy.isfinite().all()


def test_a_constrained_sample_has_the_restricted_distribution():
    model = some_model(program_tokens=7)
    grammar = Grammar(TOKENS, limit=2)
    questions = QUESTIONS[:1].expand(64, -1)
    # Two functions: `count scene` is the only program, so it is certain.
    decoded = sample.sample(model, questions, grammar=grammar)
    count, scene = TOKENS.index("count"), TOKENS.index("scene")
    assert (decoded.programs == torch.tensor([count, scene, END])).all()
    assert (decoded.log_probs == 0).all()
    assert (decoded.entropy == 0).all()


def test_samples_are_repeatable_and_do_not_depend_on_the_rows_beside_them():
    model = some_model()
    rows = QUESTIONS.repeat(4, 1)
    one = sample.sample(model, rows, generator=torch.Generator().manual_seed(5))
    two = sample.sample(model, rows, generator=torch.Generator().manual_seed(5))
    assert torch.equal(one.programs, two.programs)
    beside = rows.clone()
    beside[1:] = QUESTIONS[1]
    three = sample.sample(model, beside, generator=torch.Generator().manual_seed(5))
    T = int(one.mask[0].sum())
    assert torch.equal(three.programs[0, :T], one.programs[0, :T])


def test_dropout_acts_in_training_and_never_while_decoding():
    model = some_model(dropout=0.5)
    assert not torch.equal(model.loss(QUESTIONS, PROGRAMS), model.loss(QUESTIONS, PROGRAMS))
    generator = torch.Generator().manual_seed(0)
    trained = sample.sample(model, QUESTIONS, generator=generator)
    assert model.encoder_rnn.dropout == model.decoder_rnn.dropout == 0.5
    model.eval()
    assert torch.equal(model.loss(QUESTIONS, PROGRAMS), model.loss(QUESTIONS, PROGRAMS))
    tested = sample.sample(model, QUESTIONS, generator=generator.manual_seed(0))
    assert torch.equal(trained.programs, tested.programs)
    assert torch.equal(trained.log_probs, tested.log_probs)


@pytest.mark.parametrize(
    ("questions", "programs", "message"),
    [
        (QUESTIONS.where(QUESTIONS != 15, 20), PROGRAMS, "the question in row 0 holds the id 20"),
        (QUESTIONS, PROGRAMS.where(PROGRAMS != END, -1), "the program in row 0 holds the id -1"),
        (QUESTIONS * torch.tensor([[1], [0], [1], [1], [1]]), PROGRAMS, "question in row 1 is emp"),
        (QUESTIONS, PROGRAMS * torch.tensor([[1], [1], [1], [0], [1]]), "program in row 3 is emp"),
        (QUESTIONS, PROGRAMS[:, :1], "the program in row 0 is empty"),
        (QUESTIONS, PROGRAMS[1:], "one row per question"),
        (QUESTIONS.double(), PROGRAMS, "integer ids"),
    ],
)
def test_ids_that_do_not_fit_the_model_are_refused_with_their_row(questions, programs, message):
    with pytest.raises(ValueError, match=message):
        some_model().loss(questions, programs)


def test_options_out_of_range_are_refused():
    model = some_model()
    with pytest.raises(ValueError, match="attention is 'both'; choose one of none, dot"):
        ProgramGenerator(attention="both")
    with pytest.raises(ValueError, match=r"dropout is 0\.5 with layers = 1"):
        ProgramGenerator(dropout=0.5, layers=1)
    with pytest.raises(ValueError, match="temperature is 0"):
        sample.sample(model, QUESTIONS, temperature=0.0)
    with pytest.raises(ValueError, match="width = 0"):
        beam_search(model, QUESTIONS, width=0)
    with pytest.raises(ValueError, match="max_length is 0"):
        sample.greedy(model, QUESTIONS, max_length=0)
    with pytest.raises(ValueError, match="knows 7 tokens, but the program generator has 12"):
        sample.greedy(model, QUESTIONS, grammar=Grammar(TOKENS))
