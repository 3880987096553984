"""What a user copies away works there: the project beside `common`, or its library files alone."""

from tests.copied import CopiedAway

# What a user does with the files of each row of the README, the first of which names it.
USES = {
    "hashtags.py": """
import torch
from mypkg.hashtags import hashtag_loss, image_factors, tag_factors
logits = torch.tensor([[1.0, 2, 3, 0], [0.5, -1, 2, 0]], requires_grad=True)
loss = hashtag_loss(logits, torch.tensor([[0, 2], [3, -1]]))
loss.backward()
factors = tag_factors([0.5, 0.1, 0.01, 0.001], 0.1, "square_root")
import numpy as np
ids, offsets = np.array([0, 3, 1]), np.array([0, 2, 3])
print(round(loss.item(), 5), image_factors(factors, (ids, offsets)).round(4).tolist())
""",
    "shards/": """
import io, numpy as np
from PIL import Image
from mypkg.shards.archive import Shards
from mypkg.shards.order import ReplicationStream
from mypkg.shards.writer import Sample, write_shards
from mypkg.words.vocabulary import build
file = io.BytesIO()
Image.new("RGB", (8, 8)).save(file, "PNG")
tags = [["#Cat"], ["cat"], ["dog", "Cat"], ["C-A-T"], ["cat"], ["cat"], ["cat"], ["cat"]]
samples = [Sample(f"{i:03d}", file.getvalue(), "png", t) for i, t in enumerate(tags)]
write_shards(samples, f"{folder}/tars", per_shard=4)
counts = Shards(f"{folder}/tars").count_tags()
vocabulary, _ = build(counts, None, rule="none")
shards = Shards(f"{folder}/tars", vocabulary)
r = np.array([1.0, 8**0.5])
factors = lambda s: np.maximum.reduceat(r[shards.tags(s).ids], shards.tags(s).offsets[:-1])
totals = np.array([factors(s).sum() for s in range(2)])
stream = ReplicationStream(shards.counts, totals, factors, 1, seed=0, window=2)
drawn = [stream.share(step, 0, 1)[0][1] for step in range(stream.steps_per_epoch)]
print(vocabulary.names, len(drawn), drawn.count(2), shards.read(3)[1:4])
""",
    "words/": """
from mypkg.words.tags import normalise
from mypkg.words.vocabulary import Vocabulary, build
vocabulary, report = build({"#Brown_Bear": 3, "brownbear": 2, "cat": 4}, None, rule="none")
vocabulary.write(f"{folder}/vocabulary.json")
again = Vocabulary.read(f"{folder}/vocabulary.json")
print(again == vocabulary, again.look_up(["BROWN-bear", "what"]), normalise("#A_b c"))
""",
    "duplicates/": """
import torch
from mypkg.duplicates.report import find_duplicates, lower_bound
from mypkg.duplicates.rmac import regions, rmac
train = rmac(torch.randn(20, 16, 8, 8, generator=torch.Generator().manual_seed(0)))
pairs = find_duplicates(train, train[[4, 7]], 0.05)
print(len(regions(8, 8)), sorted(pairs.test.tolist()), sorted(pairs.train.tolist()),
      lower_bound(torch.tensor([True, True]), [0]))
""",
    "model.py": """
import torch
from mypkg.model import Network, build_model, normalise
torch.manual_seed(0)
network = Network("small", width=8)
model = build_model(network, 3)
images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
labels = torch.tensor([0, 1, 2, 0, 1, 2])
optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9, nesterov=True)
losses = []
for _ in range(10):
    logits = model(normalise(images, network.mean, network.std))
    loss = torch.nn.functional.cross_entropy(logits, labels)
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(losses[-1] < 0.5 * losses[0])
""",
}
PRINTED = {
    "hashtags.py": "1.89127 [10.0, 1.0]",
    "shards/": "['cat', 'dog'] 9 3 b'PNG'",
    "words/": "True [0] abc",
    "duplicates/": "14 [0, 1] [4, 7] 50.0",
    "model.py": "True",
}


class TestCopiedHashtagPretrain(CopiedAway):
    project = "hashtag_pretrain"
    uses = USES
    printed = PRINTED
    without = dict.fromkeys(set(USES) - {"model.py"}, ("torchvision",))
    short = ("images=32",)
