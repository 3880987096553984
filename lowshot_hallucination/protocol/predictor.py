"""A classifier of base and novel classes that learns a further class without training.

C classes, d feature width, d' width of an embedding, Q queries.
"""

import hashlib
import io
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import files
from common.run import sealed
from common.run.checkpoint import load_matching

from ..hallucinate import Support, augment_support
from .prior import with_prior


class Predictor:
    """A learner and a generator, both trained, with the real rows of the classes to tell apart.

    What is imagined for a class depends on its name and its real rows alone, so that a class
    added later leaves the rows of all others as they are.

    learner, generate: of `build_learner` and `build_generator`. n_aug: examples that a class has at
    least, real and imagined. mu: the share of the novel classes in the prior, 0..1, as it was
    chosen for the smallest n; None: probabilities as the learner gives them.
    """

    def __init__(
        self, learner: nn.Module, generate: nn.Module, n_aug: int, mu: float | None = None
    ) -> None:
        if mu is not None and not 0 <= mu <= 1:
            raise ValueError(f"mu={mu}: give a share of the novel classes from 0 to 1, or none.")
        self.learner, self.generate = learner.eval(), generate.eval()
        self.n_aug, self.mu = n_aug, mu
        self.names: list[str] = []
        self.novel: list[bool] = []
        self.real: list[Tensor] = []  # (n_k, d) of each class
        self.rows: list[Tensor] = []  # (max(n_k, n_aug), d): the real ones first
        first = next(chain(learner.parameters(), learner.buffers(), generate.parameters()), None)
        self.device = torch.device("cpu") if first is None else first.device

    def add(self, name: str, features: Tensor, *, novel: bool = True) -> None:
        """Learn the class `name` from the features (n, d) of its examples, n at least 1.

        Raises ValueError: the name is taken, or the features are none, not finite or of another
        width than those of the other classes.
        """
        if name in self.names:
            raise ValueError(f"class {name!r} is there already: give another name.")
        if features.ndim != 2 or not len(features):
            raise ValueError(
                f"class {name!r} has features of shape {tuple(features.shape)}: give (n, d), a row "
                "for each of at least one example."
            )
        self._require_width(features, f"class {name!r}")
        real = features.to(self.device, torch.float32)
        self.rows.append(self._imagine(name, real))
        self.real.append(real)
        self.names.append(name)
        self.novel.append(novel)

    @torch.no_grad()
    def predict(self, queries: Tensor) -> tuple[list[str], Tensor]:
        """The likeliest class of each query (Q, d), and the probabilities (Q, C) of `names`."""
        if not self.names:
            raise ValueError("the predictor knows no class: add one.")
        self._require_width(queries, "the queries")
        logits = self.learner(self.support(), queries.to(self.device, torch.float32)).float()
        novel = torch.tensor(self.novel, device=self.device)
        if self.mu is None or bool(novel.all()) or not bool(novel.any()):
            probabilities = logits.softmax(1)
        else:
            probabilities = with_prior(logits, novel, self.mu)
        best = probabilities.argmax(1).tolist()
        return [self.names[k] for k in best], probabilities

    def support(self) -> Support:
        """The real and imagined rows of all classes, (C, N, d), zeros where a class has fewer."""
        counts = torch.tensor([len(rows) for rows in self.rows], device=self.device)
        return Support(nn.utils.rnn.pad_sequence(self.rows, batch_first=True), counts)

    @torch.no_grad()
    def _imagine(self, name: str, real: Tensor) -> Tensor:
        """The rows of a class with those that are imagined; the global generator is left alone."""
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        counts = torch.tensor([len(real)], device=self.device)
        on_gpu = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=on_gpu):
            torch.manual_seed(seed)
            augmented = augment_support(Support(real[None], counts), self.n_aug, self.generate)
        return augmented.features[0, : int(augmented.counts)]

    def _require_width(self, features: Tensor, what: str) -> None:
        """Raise ValueError for features that are not finite or of another width."""
        if self.real and features.shape[-1] != self.real[0].shape[1]:
            raise ValueError(
                f"{what}: features of width {features.shape[-1]}, while those of "
                f"{self.names[0]!r} have {self.real[0].shape[1]}; use the same trunk for all."
            )
        if not bool(features.isfinite().all()):
            raise ValueError(f"{what}: features that are not finite (NaN or infinite).")

    def save(self, path: Path) -> None:
        """Write classes, weights and settings to a file that `load` checks and reads."""
        content: dict[str, Any] = {
            "classes": {"names": self.names, "novel": self.novel, "real": self.real},
            "settings": {"n_aug": self.n_aug, "mu": self.mu, "shrink": shrink_of(self.learner)},
            "learner": dict(self.learner.state_dict()),
            "generator": dict(self.generate.state_dict()),
        }
        whole = sealed.plain(content, "predictor")
        sealed.write(path, lambda file: sealed.seal(whole, file))

    @classmethod
    def load(cls, path: Path, learner: nn.Module, generate: nn.Module) -> "Predictor":
        """What `save` wrote; its weights are loaded into nets that are built with its options.

        Raises CheckpointError: the file is damaged, or of other nets.
        """
        content = sealed.load(path)
        parts = ("classes", "settings", "learner", "generator")
        if not isinstance(content, dict) or any(name not in content for name in parts):
            raise sealed.CheckpointError(f"{path} is no file of a predictor: give what save wrote.")
        classes, settings = content["classes"], content["settings"]
        for net, name in ((learner, "learner"), (generate, "generator")):
            try:
                load_matching(net, content[name])
            except sealed.CheckpointError as error:
                raise sealed.CheckpointError(f"{path}, {name}: {error}") from None
        if shrink_of(learner) is not None:
            learner.shrink = settings["shrink"]  # type: ignore[assignment]
        predictor = cls(learner, generate, settings["n_aug"], settings["mu"])
        for name, novel, real in zip(*classes.values(), strict=True):
            predictor.add(name, real, novel=novel)
        return predictor

    @torch.no_grad()
    def export(self, path: Path) -> None:
        """Write an .npz for other programs: classes, their means and the imagined rows.

        names, novel, counts (C,); means (C, d) of the real rows and augmented_means (C, d) with the
        imagined ones; imagined (G, d) and the class of each, owner (G,); where the learner has
        prototypes, these as well, (C, d').
        """
        counts = [len(real) for real in self.real]
        made = [rows[count:] for rows, count in zip(self.rows, counts, strict=True)]
        arrays: dict[str, Any] = {
            "names": np.array(self.names),
            "novel": np.array(self.novel),
            "counts": np.array(counts),
            "means": stack_means(self.real),
            "augmented_means": stack_means(self.rows),
            "imagined": torch.cat(made).cpu().numpy(),
            "owner": np.repeat(np.arange(len(made)), [len(rows) for rows in made]),
        }
        learner: Any = self.learner
        if shrink_of(learner) is not None:
            arrays["prototypes"] = learner.prototypes(self.support()).cpu().numpy()
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, lambda file: file.write(buffer.getvalue()))


def shrink_of(learner: nn.Module) -> float | None:
    """The factor by which a learner draws its prototypes to the centre; None: it has none."""
    shrink = getattr(learner, "shrink", None)
    return None if shrink is None else float(shrink)


def stack_means(rows: Iterable[Tensor]) -> np.ndarray:
    """The mean of the rows of each class, (C, d)."""
    return torch.stack([each.mean(0) for each in rows]).cpu().numpy()
