"""The loop that an answerer learns in, and how its accuracy is counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.clevr import builtin, vocabulary
from common.clevr.accuracy import TYPES
from common.clevr.arrays.encode import encode
from common.clevr.arrays.features import Features
from common.clevr.dataset import Questions, training_batches
from common.run.log import Diverged
from learning_by_asking.asking.learn import accuracy, losses_by_type, train_answerer
from learning_by_asking.model import Answerer, build_answerer

SIZES = {"embed": 8, "hidden": 8, "layers": 1, "attention": 8, "fc": [8]}


@pytest.fixture(scope="module")
def questions():
    made = builtin.build(split="val", images=20, per_image=5)
    words = vocabulary.build(made.questions)
    return Questions("val", encode(made.questions, words), words, Features(made.features))


def build(questions, form="program", seed=0):
    torch.manual_seed(seed)
    words = questions.words
    return build_answerer(
        Answerer(**SIZES),
        tokens=len(words.tokens if form == "program" else words.words),
        feature_size=questions.features.shape[1:],
    )


@pytest.mark.parametrize("form", ["program", "text"])
def test_training_takes_the_steps_of_a_hand_written_loop(questions, form):
    model, plain = build(questions, form), build(questions, form)
    mean = train_answerer(
        model,
        questions,
        steps=3,
        lr=0.01,
        batch_size=16,
        seed=4,
        weight_decay=0.1,
        form=form,
    )
    optimizer = torch.optim.Adam(plain.parameters(), 0.01, weight_decay=0.1)
    losses = []
    for batch in training_batches(questions, batch_size=16, seed=4, start=0, stop=3):
        rows = batch.programs if form == "program" else batch.questions
        logits = plain(rows, batch.features, batch.image_of)
        chances = logits.softmax(1)[torch.arange(16), batch.answers]
        loss = -chances.log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert mean == pytest.approx(losses[-1], rel=1e-5)  # a tenth of three steps is the last


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before(questions):
    models = [build(questions), build(questions)]
    for model in models:
        torch.rand(3)
        train_answerer(model, questions, steps=2, lr=0.01, batch_size=8, seed=1)
    for first, second in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(first, second)


def test_no_step_leaves_the_weights(questions):
    model, plain = build(questions), build(questions)
    assert np.isnan(train_answerer(model, questions, steps=0, lr=1.0, batch_size=8, seed=0))
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_accuracy_and_losses_equal_a_count_question_by_question(questions):
    model = build(questions, seed=2)
    right, losses = {kind: [] for kind in TYPES}, {kind: [] for kind in TYPES}
    rows = questions.rows
    with torch.no_grad():
        for n in range(len(rows)):
            program = torch.from_numpy(rows.programs[n : n + 1].astype(np.int64))
            maps = questions.features[rows.image_idxs[n : n + 1]]
            logits = model(program, maps, torch.tensor([0]))
            kind = TYPES[rows.types[n]]
            right[kind].append(int(logits.argmax()) == rows.answers[n])
            losses[kind].append(F.cross_entropy(logits, torch.tensor(rows.answers[n : n + 1])))
    model.train()
    found = accuracy(model, questions, batch_size=7)
    assert model.training
    by_type = {kind: 100 * np.mean(hits) for kind, hits in right.items() if hits}
    assert found["accuracy"] == pytest.approx(
        100 * np.mean([hit for hits in right.values() for hit in hits])
    )
    assert found["macro"] == pytest.approx(np.mean(list(by_type.values())))
    assert {kind: found[kind] for kind in by_type} == pytest.approx(by_type)
    means = losses_by_type(model, questions, batch_size=7)
    for kind, values in losses.items():
        expected = np.mean(values) if values else np.nan
        assert means[kind] == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_without_types_there_is_an_accuracy_and_no_mean_over_types(questions):
    people = Questions(
        "humans_val",
        replace(questions.rows, programs=None, types=None),
        questions.words,
        questions.features,
    )
    found = accuracy(build(questions, "text"), people, form="text")
    assert 0 <= found["accuracy"] <= 100
    assert np.isnan(found["macro"])


def test_questions_that_cannot_be_learned_from_are_named(questions):
    model = build(questions)

    def learn(form="program", **parts):
        other = Questions(
            "val", replace(questions.rows, **parts), questions.words, questions.features
        )
        train_answerer(model, other, steps=1, lr=0.1, batch_size=4, seed=0, form=form)

    with pytest.raises(ValueError, match="question_form=speech is not one of program, text"):
        learn("speech")
    with pytest.raises(ValueError, match="the split 'val' has no answers"):
        learn(answers=None)
    with pytest.raises(ValueError, match="the split 'val' has no programs"):
        learn(programs=None)
    answers = questions.rows.answers.copy()
    answers[6] = -1
    with pytest.raises(ValueError, match="question 6 of the split 'val' has the answer -1"):
        learn(answers=answers)


def test_a_loss_that_is_not_finite_stops_and_names_its_questions(questions):
    model = build(questions)
    with torch.no_grad():
        model.classifier[0].weight.fill_(torch.nan)
    with pytest.raises(Diverged, match=r"answer loss is not finite in step 1.*val question"):
        train_answerer(model, questions, steps=2, lr=0.1, batch_size=4, seed=0)
