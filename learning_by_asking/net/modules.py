"""A program run on objects: one small module, shared by all tokens, on a stack.

B programs, L tokens, I images, C x H x W features, K objects, S state, H hidden, A answers.

The objects are the K positions of the map whose features are largest. A value on the stack is a
set, how far each object belongs to it (K,), and a vector (S,) for what is no set: a number, an
attribute, yes or no. The module computes both from the values that a token takes, the token scaling
and shifting its hidden layers. Each token learns how far its set lies inside the one it takes, as
that of a filter does, and which objects its word fits. Tokens are read from the right, so that in a
program in prefix order operands stand on the stack before the function that takes them.

This is ours, not the paper's: it learns from fewer answers than stacked attention, but it reads
programs alone.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import AddCoordinates, build_head, mask_special

NO_FUNCTION = -1  # arity of a token that the machine skips


class Objects(nn.Module):
    """The K positions with the largest features: how present each is, 0..1, and a vector."""

    def __init__(self, feature_size: tuple[int, int, int], count: int, size: int) -> None:
        super().__init__()
        channels, height, width = feature_size
        self.count = min(count, height * width)
        self.place = AddCoordinates(height, width)
        self.embed = nn.Linear(channels + 2, size)

    def forward(self, features: Tensor) -> Tensor:
        """Features (I, C, H, W) -> (I, K, 1 + S), presence first: the norm, largest = 1."""
        cells = self.place(features).flatten(2).transpose(1, 2)  # (I, H W, C + 2)
        norms = features.flatten(2).norm(dim=1)  # (I, H W)
        top, where = norms.topk(self.count, 1)
        chosen = cells.gather(1, where[..., None].expand(-1, -1, cells.shape[2]))
        presence = top / top.amax(1, keepdim=True).clamp(min=1e-6)
        return torch.cat([presence[..., None], self.embed(chosen)], 2)


class Module(nn.Module):
    """The function of a token: from two values of the stack to one."""

    def __init__(self, tokens: int, state: int, hidden: int) -> None:
        super().__init__()
        self.film = nn.Embedding(tokens, 4 * hidden)
        nn.init.normal_(self.film.weight, std=0.5)
        self.inside = nn.Embedding(tokens, 1)  # logit: the new set is a part of the left one
        nn.init.zeros_(self.inside.weight)
        self.word = nn.Embedding(tokens, state)  # which objects fit the token, by their vectors
        nn.init.normal_(self.word.weight, std=0.1)
        self.of_object = nn.Linear(2 * state + 2, hidden)
        self.of_value = nn.Linear(2 * state, hidden)
        self.member = nn.Linear(hidden, 1)
        nn.init.constant_(self.member.bias, 2.0)  # a set begins as all objects
        self.joined = nn.Linear(6 * state + 2, hidden)
        self.result = nn.Linear(hidden, state)

    def forward(
        self, tokens: Tensor, objects: Tensor, present: Tensor, left: Tensor, right: Tensor
    ) -> Tensor:
        """Values (B, K + S) of tokens (B,) on objects (B, K, S), present (B, K), from operands."""
        K = present.shape[1]
        scale, shift, scale_v, shift_v = self.film(tokens).chunk(4, 1)  # (B, H) each
        (m, v), (m_r, v_r) = (value.split([K, value.shape[1] - K], 1) for value in (left, right))
        seen = torch.einsum("bk,bks->bs", m, objects)  # the objects of the set, summed
        seen_r = torch.einsum("bk,bks->bs", m_r, objects)

        each = [objects, objects * seen[:, None], m[..., None], m_r[..., None]]
        h = self.of_object(torch.cat(each, 2)) + self.of_value(torch.cat([seen, v], 1))[:, None]
        h = F.relu((1 + scale)[:, None] * h + shift[:, None])
        test = self.member(h)[..., 0] + torch.einsum("bs,bks->bk", self.word(tokens), objects)
        inside = torch.sigmoid(self.inside(tokens))
        members = present * (1 - inside + inside * m) * torch.sigmoid(test)

        sizes = [m.sum(1, keepdim=True), m_r.sum(1, keepdim=True)]
        joined = self.joined(torch.cat([seen, seen_r, seen * seen_r, v, v_r, v * v_r, *sizes], 1))
        result = self.result(F.relu((1 + scale_v) * joined + shift_v))
        return torch.cat([members, result], 1)


class ModuleNet(nn.Module):
    """Answers programs in prefix order by running them; see the module docstring.

    arity: how many values each token takes, 0 to 2, and -1 of a token that is no function. A
    program that takes more than there is gets zeros; of one that leaves more, the top answers.
    """

    def __init__(
        self,
        *,
        arity: Sequence[int],
        feature_size: tuple[int, int, int],
        objects: int = 6,
        state: int = 48,
        hidden: int = 96,
        fc: Sequence[int] = (1024,),
        outputs: int = 32,
    ) -> None:
        super().__init__()
        if not all(NO_FUNCTION <= count <= 2 for count in arity):
            raise ValueError(f"a token takes 0 to 2 values, or is no function (-1), not {arity}")
        self.register_buffer("arity", torch.tensor(arity), persistent=False)
        self.objects = Objects(feature_size, objects, state)
        self.module = Module(len(arity), state, hidden)
        self.classifier = build_head(state, fc, outputs)
        self.state = state

    def project(self, features: Tensor) -> Tensor:
        """Features (I, C, H, W) -> objects (I, K, 1 + S)."""
        return self.objects(features)

    def answer(self, questions: Tensor, image: Tensor, image_of: Tensor) -> Tensor:
        """Programs (B, L), objects of `project`, image of each (B,) -> logits (B, A)."""
        value = self.run(questions, image[image_of])
        return mask_special(self.classifier(value[:, -self.state :]))

    def forward(self, questions: Tensor, features: Tensor, image_of: Tensor) -> Tensor:
        """Programs (B, L), features (I, C, H, W), image of each (B,) -> logits (B, A)."""
        return self.answer(questions, self.project(features), image_of)

    def run(self, programs: Tensor, objects: Tensor) -> Tensor:
        """Value (B, K + S) of programs (B, L) on objects (B, K, 1 + S); zeros where it is empty."""
        arity = self.get_buffer("arity")[programs]  # (B, L)
        present, vectors = objects[..., 0], objects[..., 1:]
        zero = objects.new_zeros(len(objects), present.shape[1] + self.state)
        stack = [zero] * (deepest(arity) + 1)  # the top first, zeros where there is nothing
        for i in reversed((arity >= 0).any(0).nonzero()[:, 0].tolist()):
            takes = arity[:, i, None]
            left = torch.where(takes > 0, stack[0], zero)
            right = torch.where(takes > 1, stack[1], zero)
            new = self.module(programs[:, i], vectors, present, left, right)
            after = [torch.where(takes == NO_FUNCTION, stack[0], new)]
            for above, here, below in zip(stack[:-1], stack[1:], [*stack[2:], zero], strict=True):
                moved = torch.where(takes == 2, below, here)
                after.append(torch.where(takes == 0, above, moved))
            stack = after
        return stack[0]


def deepest(arity: Tensor) -> int:
    """Most values on the stack at once, of any program; arity (B, L), read from the right."""
    depth = torch.zeros_like(arity[:, 0])
    most = depth
    for takes in arity.flip(1).unbind(1):
        depth = torch.where(takes < 0, depth, (depth - takes).clamp(min=0) + 1)
        most = torch.maximum(most, depth)
    return max(1, int(most.max()))
