"""What a user copies away works there: the project beside `common`, or its library files alone."""

from tests.copied import CopiedAway

# What a user does with the files of each row of the README, the first of which names it.
USES = {
    "ask.py": """
import torch
from mypkg.ask import Policy, Progress, choose, score_proposals
policy = Policy(epsilon=0.0, rate=0.5, refresh=4)
progress = Progress(policy, budget=8)
for right in (0.0, 1.0):  # answer 3 improves, answer 5 is mastered no further
    progress.update(torch.tensor([3, 5, 3, 5]), torch.tensor([right, 1, right, 1]), torch.zeros(4))
chances = torch.full((1, 2, 28), 0.01)
chances[0, 0, 5], chances[0, 1, 3] = 0.7, 0.7
types, dice = torch.zeros(1, 2, dtype=torch.int64), torch.Generator().manual_seed(0)
scores = score_proposals(chances, types, policy, progress, generator=dice)
picks, explored = choose(scores, torch.ones(1, 2, dtype=torch.bool), policy.epsilon, dice)
print(picks.tolist(), explored.tolist())
""",
    "model.py": """
import torch
from mypkg.model import ANSWERERS, Answerer, build_answerer, build_relevance
from mypkg.net.generator import ProgramLSTM
torch.manual_seed(0)
questions, maps = torch.randint(4, 9, (5, 6)), torch.rand(2, 8, 3, 3)
questions[:, 0], image_of = 1, torch.tensor([0, 0, 1, 1, 1])
sizes = dict(tokens=9, feature_size=(8, 3, 3))
arity = [-1] * 4 + [0, 1, 1, 1, 2]
options = lambda name: Answerer(name, 8, 8, 1, 8, fc=[8], cnn_width=8, film_blocks=1, film_width=8)
for name in ANSWERERS:
    answerer = build_answerer(options(name), arity=arity, **sizes)
    chances = answerer(questions, maps, image_of).softmax(1)
    assert chances.shape == (5, 32) and (chances[:, :4] == 0).all(), name
relevant = build_relevance(options("sa"), **sizes)(questions, maps, image_of)
generator = ProgramLSTM(tokens=9, types=13, channels=8, embed=8, hidden=8)
types = torch.tensor([0, 1, 2, 3, 4])
log_p = generator.log_likelihood(questions, types, maps, image_of)
print(tuple(relevant.shape), tuple(log_p.shape))
""",
}
PRINTED = {"ask.py": "[1] [False]", "model.py": "(5,) (5,)"}


class TestCopiedLearningByAsking(CopiedAway):
    project = "learning_by_asking"
    uses = USES
    printed = PRINTED
    without = dict.fromkeys(USES, ("torchvision", "numpy"))
    short = ("budget=20", "offline_at=[]")
