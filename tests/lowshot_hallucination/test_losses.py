"""Auxiliary losses of the trunk against the gradients they stand for, and values by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from lowshot_hallucination.backbone.losses import auxiliary, batch_sgm, l2, sgm

LOGITS = torch.tensor([[2.0, 1, 0], [0, 0, 1]])
FEATURES = torch.tensor([[1.0, 2], [3, 0]])
LABELS = torch.tensor([0, 2])


def test_values_by_hand():
    each = [sgm(LOGITS[i : i + 1], LABELS[i : i + 1], FEATURES[i : i + 1]) for i in (0, 1)]
    assert torch.stack(each).tolist() == pytest.approx([0.9003057, 2.4256382])
    assert sgm(LOGITS, LABELS, FEATURES).item() == pytest.approx(1.6629720)
    assert batch_sgm(LOGITS, LABELS, FEATURES).item() == pytest.approx(0.7456205)
    assert l2(LOGITS, LABELS, FEATURES).item() == pytest.approx(3.5)


def classifier_loss(weight: Tensor, x: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(x @ weight.T, label)


def test_they_are_squared_gradients_of_the_classifier():
    torch.manual_seed(0)
    weight, x = torch.randn(5, 4), torch.randn(6, 4)
    labels = torch.randint(0, 5, (6,))
    each = vmap(grad(classifier_loss), (None, 0, 0))(weight, x, labels)  # (6, 5, 4)
    squares = each.square().sum((1, 2)).mean()
    torch.testing.assert_close(sgm(x @ weight.T, labels, x), squares)
    whole = grad(classifier_loss)(weight, x, labels)
    torch.testing.assert_close(batch_sgm(x @ weight.T, labels, x), whole.square().sum())


@pytest.mark.parametrize("loss", [sgm, batch_sgm, l2])
def test_their_gradients_are_right(loss):
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    features = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda s, x: loss(s, labels, x), (logits, features))


@pytest.mark.parametrize(("kind", "loss"), [("sgm", sgm), ("batch_sgm", batch_sgm), ("l2", l2)])
def test_each_is_found_by_its_name_and_computed_in_float32(kind, loss):
    half = auxiliary(kind, LOGITS.bfloat16(), LABELS, FEATURES.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss(LOGITS, LABELS, FEATURES))
