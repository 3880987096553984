"""What a user copies away works there: the project beside `common`, or its library files alone."""

from tests.copied import CopiedAway

# What a user does with the files of each row of the README, the first of which names it.
USES = {
    "hallucinate.py": """
import torch
from mypkg.hallucinate import Hallucination, Support, augment_support, build_generator, joint_loss
torch.manual_seed(0)
generate = build_generator(Hallucination(n_aug=4), width=6)
real = Support(torch.rand(3, 2, 6), torch.tensor([1, 2, 1]))
full = augment_support(real, 4, generate)
learner = lambda support, queries: queries @ support.features.mean(1).T
joint_loss(learner, generate, real, torch.rand(5, 6), torch.tensor([0, 1, 2, 0, 1]), 4).backward()
reached = all(p.grad is not None for p in generate.parameters())
print(tuple(full.features.shape), full.counts.tolist(), reached)
""",
    "model.py": """
import torch
from mypkg.hallucinate import Support
from mypkg.model import Learner, build_learner
torch.manual_seed(0)
features = torch.tensor([[[0.0, 0], [2, 0]], [[0, 4], [0, 2]]])
support, queries = Support(features, torch.tensor([2, 2])), torch.tensor([[1.0, 1]])
nearest = build_learner(Learner("nearest"), 2)
print([round(p, 4) for p in nearest(support, queries).softmax(1)[0].tolist()])
for method in ("pn", "mn", "pmn"):
    learner = build_learner(Learner(method), 2)
    assert learner(support, queries).shape == (1, 2)
""",
}
PRINTED = {
    "hallucinate.py": "(3, 4, 6) [4, 4, 4] True",
    "model.py": "[0.982, 0.018]",
}

WITHOUT = {"hallucinate.py": ("torchvision", "numpy")}


class TestCopiedLowshotHallucination(CopiedAway):
    project = "lowshot_hallucination"
    uses = USES
    printed = PRINTED
    without = WITHOUT
    short = ("steps=2",)
