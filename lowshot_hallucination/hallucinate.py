"""Imaginary data: a generator of examples that is trained by the learner which uses them, Sec. 4.

    seed x     a real example of the class, at random with replacement
    example    G(x, z),  z ~ N(0, I)
    support    S_aug = S and examples until every class has n_aug of them
    loss       cross entropy of h(query; S_aug), minimised over h and G together

No other loss asks of the examples that they look real. G starts as a copy of its seed:

    generator = build_generator(Hallucination(n_aug=5), width=512)
    loss = joint_loss(learner, generator, support, queries, labels, 5)    # learner: h(S, queries)
    loss.backward()

Sections are those of arXiv 1801.05401. The paper's ablation puts simpler generators in the place
of G: noise, dropout, random averages of the class's real examples.

Shapes: m classes of an episode, N slots of a class, d width of a feature, dz that of the noise,
R imagined examples. Features are activations of a ReLU, so at least 0. This file imports torch
alone and is copied alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHOICES = {
    "kind": ("none", "learned", "gaussian", "dropout", "weighted", "analogies", "views"),
    "seeds": ("example", "mean"),
    "init": ("identity", "identity_noise", "gaussian"),
    "noise_in": ("always", "training", "test", "never"),
}


class Support(NamedTuple):
    """The labelled examples of an episode, class by class."""

    features: Tensor  # (m, N, d); slots at and beyond counts[k] are padding, which nothing reads
    counts: Tensor  # (m,) int64, examples of each class, 1..N

    @property
    def mask(self) -> Tensor:
        """Which slots hold an example; (m, N) bool."""
        slots = torch.arange(self.features.shape[1], device=self.counts.device)
        return slots < self.counts[:, None]


# (seeds (R, d), real support, class of each seed (R,) int64 in 0..m-1) -> examples (R, d)
Generate = Callable[[Tensor, Support, Tensor], Tensor]


@dataclass
class Hallucination:
    """What examples are imagined, and how G is trained."""

    # | none | gaussian | dropout | weighted | analogies (of baselines/)
    # | views (features of random views of the real images, data.views; in tests alone)
    kind: str = "learned"
    n_aug: int = 5  # Unstated: examples of a class, real and imagined; chosen on other classes
    layers: int = 3  # as in the paper: linear, with a ReLU after each
    noise: int = 0  # width of z; 0: that of a feature
    init: str = "identity"  # | identity_noise | gaussian; the paper's: block diagonal identity
    seeds: str = "example"  # | mean: G of the mean of the class's real examples, a control
    noise_in: str = "always"  # | training | test | never: where z is drawn; it is 0 elsewhere
    trained: str = "jointly"  # | never (left at its first weights) | folder of a run to take G from
    std: float = 0.5  # Unstated: of gaussian, in standard deviations of the features
    rate: float = 0.5  # Unstated: share that dropout sets to 0

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                value = getattr(self, name)
                raise ValueError(f"hallucination.{name}={value} must be one of {choices}.")
        if self.seeds == "mean" and self.kind != "learned":
            raise ValueError(
                f"hallucination.seeds=mean has no effect with hallucination.kind={self.kind}: "
                "leave it out."
            )
        if self.n_aug < 2:
            raise ValueError(
                f"hallucination.n_aug={self.n_aug} must be 2 or more, as a class has a real "
                "example already. hallucination.kind=none imagines none."
            )
        for name, least in {"layers": 1, "noise": 0, "std": 0}.items():
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"hallucination.{name}={value} must be at least {least}.")
        if not 0 <= self.rate < 1:
            raise ValueError(f"hallucination.rate={self.rate} must be at least 0 and below 1.")
        if not self.trained:
            raise ValueError(
                "hallucination.trained is empty: give jointly, never or the folder of a run."
            )

    @property
    def fill_to(self) -> int:
        """Examples that `augment_support` is to give every class; 0 where none are imagined."""
        return 0 if self.kind == "none" else self.n_aug

    @property
    def fill_in_training(self) -> int:
        """`fill_to` of meta-training, which views have no part in."""
        return 0 if self.kind == "views" else self.fill_to


class Hallucinator(nn.Module):
    """G(x, z), Sec. 4: linear layers over [x; z], a ReLU after each, the last one too.

    width: d. noise: dz, 0 for d. init: "identity" copies the seed, the first layer being [I | 0]
    and the others I; "identity_noise" adds a tenth of "gaussian", which is N(0, 2 / inputs).
    """

    def __init__(
        self, width: int, *, noise: int = 0, layers: int = 3, init: str = "identity"
    ) -> None:
        super().__init__()
        self.noise = noise or width
        inputs = [width + self.noise] + [width] * (layers - 1)
        self.layers = nn.ModuleList(nn.Linear(each, width) for each in inputs)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.bias)
            if init == "gaussian":
                nn.init.kaiming_normal_(layer.weight)
                continue
            nn.init.eye_(layer.weight)  # [I | 0] where wide; x comes first, so z has no effect yet
            if init == "identity_noise":
                with torch.no_grad():
                    layer.weight += 0.1 * nn.init.kaiming_normal_(torch.empty_like(layer.weight))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Examples (R, d) from seeds x (R, d) and noise z (R, dz)."""
        result = torch.cat([x, z], dim=1)
        for layer in self.layers:
            result = F.relu(layer(result))
        return result


class Learned(nn.Module):
    """Examples by G, with noise where `noise_in` says so, of `seeds` or of the classes' means."""

    def __init__(self, network: Hallucinator, noise_in: str, seeds: str = "example") -> None:
        super().__init__()
        self.network = network
        self.noise_in = noise_in
        self.of_mean = seeds == "mean"

    def forward(self, seeds: Tensor, real: Support, owner: Tensor) -> Tensor:
        """Examples (R, d)."""
        if self.of_mean:
            sums = real.features.masked_fill(~real.mask[..., None], 0).sum(1)
            seeds = (sums / real.counts[:, None])[owner]
        z = seeds.new_zeros(len(seeds), self.network.noise)
        if self.noise_in in ("always", "training" if self.training else "test"):
            z.normal_()
        return self.network(seeds, z)


class Gaussian(nn.Module):
    """Seeds with noise of the covariance std^2 `spread` @ `spread`, spread (d, d) symmetric."""

    def __init__(self, std: float, spread: Tensor) -> None:
        super().__init__()
        self.std = std
        self.spread: Tensor
        self.register_buffer("spread", spread)

    def forward(self, seeds: Tensor, real: Support, owner: Tensor) -> Tensor:
        """Examples (R, d). # Unstated: they are not cut at 0, which would shift their mean."""
        return seeds + self.std * torch.randn_like(seeds) @ self.spread.to(seeds.dtype)


class Dropout(nn.Module):
    """Seeds of which a share of the features is 0 and the others larger, in tests too."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, seeds: Tensor, real: Support, owner: Tensor) -> Tensor:
        """Examples (R, d)."""
        return F.dropout(seeds, self.rate, training=True)


class Weighted(nn.Module):
    """Averages of a class's real examples, by weights that are uniform over all that sum to 1."""

    def forward(self, seeds: Tensor, real: Support, owner: Tensor) -> Tensor:
        """Examples (R, d); those of a class with one real example are copies of it."""
        counts = real.counts[owner]  # (R,)
        slots = torch.arange(max(counts.tolist(), default=0), device=owner.device)
        # Normalised exponentials are uniform on the simplex (a flat Dirichlet distribution).
        weights = seeds.new_empty(len(owner), len(slots)).exponential_()
        weights = F.normalize(weights * (slots < counts[:, None]), p=1, dim=1)
        result = torch.zeros_like(seeds)
        for slot, weight in enumerate(weights.unbind(1)):
            examples = real.features[owner, (counts - 1).clamp(max=slot)]  # a real one throughout
            result = result + weight[:, None] * examples.to(seeds.dtype)
        return result


class Copy(nn.Module):
    """The seeds themselves, for where nothing is imagined."""

    def forward(self, seeds: Tensor, real: Support, owner: Tensor) -> Tensor:
        """Examples (R, d)."""
        return seeds


def build_generator(
    options: Hallucination, width: int, *, spread: Tensor | None = None
) -> nn.Module:
    """The generator that `options` names: a `Generate`, with parameters if its kind is learned.

    spread: square root of a covariance, (d, d), or standard deviations (d,), for gaussian; see
    `shared_spread`. Without it every feature has noise of its own, of `options.std`. G from a
    run's folder has its first weights here, without gradients: the caller loads the others.
    """
    match options.kind:
        case "learned":
            network = Hallucinator(
                width, noise=options.noise, layers=options.layers, init=options.init
            )
            learned = Learned(network, options.noise_in, options.seeds)
            return learned.requires_grad_(options.trained == "jointly")
        case "gaussian":
            matrix = torch.ones(width) if spread is None else spread
            return Gaussian(options.std, matrix if matrix.dim() == 2 else matrix.diag())
        case "dropout":
            return Dropout(options.rate)
        case "weighted":
            return Weighted()
        case "none" | "views":  # the test puts views in its place
            return Copy()
    raise ValueError("hallucination.kind=analogies is trained by baselines/analogies.py.")


def shared_spread(features: Tensor, labels: Tensor) -> Tensor:
    """Square root (d, d), symmetric, of the covariance within a class that all classes share.

    features: (n, d). labels: (n,) int64. Computed in float64, returned as float32.
    """
    rows, group = features.double(), labels.unique(return_inverse=True)[1]
    sums = rows.new_zeros(int(group.max()) + 1, rows.shape[1]).index_add_(0, group, rows)
    rows = rows - (sums / group.bincount()[:, None])[group]
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    return (vectors * values.clamp(min=0).sqrt() @ vectors.T).float()


def augment_support(real: Support, n_aug: int, generate: Generate) -> Support:
    """The support with examples imagined until a class has n_aug; (m, max(N, n_aug), d), Sec. 4.

    Classes that have n_aug real ones stay as they are, and nothing is generated for them. The R
    empty slots are filled class by class in one call of `generate`. Randomness is that of the
    device's global generator: R uniform numbers in float64, each of which picks a seed as
    floor(u n_k), then what `generate` draws. Half precision becomes float32.
    """
    features, counts = real
    if features.dim() != 3 or counts.shape != features.shape[:1]:
        shapes = f"{tuple(features.shape)} and counts {tuple(counts.shape)}"
        raise ValueError(f"features {shapes} of a support must be (m, N, d) and (m,).")
    if counts.device.type == "cpu" and ((counts < 1) | (counts > features.shape[1])).any():
        raise ValueError(f"counts {counts.tolist()} must be 1 to {features.shape[1]} per class.")
    if n_aug < 2:
        return real
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    slots = torch.arange(n_aug, device=counts.device)
    owner, slot = (slots >= counts[:, None]).nonzero(as_tuple=True)  # (R,), (R,)
    drawn = torch.rand(len(owner), dtype=torch.float64, device=features.device)
    seeds = features[owner, (drawn * counts[owner]).long()]  # (R, d)
    imagined = generate(seeds, Support(features, counts), owner).to(features.dtype)
    features = F.pad(features, (0, 0, 0, max(0, n_aug - features.shape[1])))
    return Support(features.index_put((owner, slot), imagined), counts.clamp(min=n_aug))


def joint_loss(
    learner: Callable[[Support, Tensor], Tensor],
    generate: Generate,
    real: Support,
    queries: Tensor,
    labels: Tensor,
    n_aug: int,
) -> Tensor:
    """Cross entropy of queries (Q, d) with labels (Q,), by the augmented support; a scalar, Sec. 4.

    learner: (support, queries) -> logits (Q, m). The gradient reaches G through the learner, which
    sees the augmented support alone. Queries are real. n_aug below 2 imagines nothing.
    """
    logits = learner(augment_support(real, n_aug, generate), queries)
    return F.cross_entropy(logits.float() if logits.dtype != torch.float64 else logits, labels)
