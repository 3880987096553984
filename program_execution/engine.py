"""The execution engine: a program assembles a network of modules that answers (Sec. 3.3, Fig. 3).

    engine = ExecutionEngine(tokens=vocabulary, feature_size=(1024, 14, 14))
    logits = engine(features, programs, image_of=image_of)      # (I, 1024, 14, 14), (B, L), (B,)

I images, B questions, L tokens of a program, D module channels, A answers.

Every program token has a module of its own, and all have one generic form: a residual block of two
3 x 3 convolutions; tokens of two inputs join them by a 1 x 1 convolution first. `scene`, the leaf
of all programs, runs on the stem's map of the image. The root's output goes to the classifier.
Parameters have the public code's names (`filter_color[red].conv1.weight`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .execution.executors import ModuleOutput, run_by_module, run_fused, run_per_sample
from .execution.schedule import Language, parse, schedule, well_formed
from .net.options import EXECUTIONS, INITIALISATIONS, MALFORMED, EngineOptions


class ResidualBlock(nn.Module):
    """A module of one input: ReLU(x + conv(ReLU(conv(x))))."""

    def __init__(self, dim: int, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(dim) if batch_norm else nn.Identity()
        self.bn2 = nn.BatchNorm2d(dim) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(n, D, H, W) -> (n, D, H, W)."""
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(h)))


class BinaryBlock(nn.Module):
    """A module of two inputs: a 1 x 1 convolution of both, ReLU, and a residual block."""

    def __init__(self, dim: int, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.proj = nn.Conv2d(2 * dim, dim, 1)
        self.res_block = ResidualBlock(dim, batch_norm=batch_norm)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Two of (n, D, H, W), the left operand first -> (n, D, H, W)."""
        return self.res_block(F.relu(self.proj(torch.cat([x, y], 1))))


def build_stem(channels: int, dim: int, layers: int, batch_norm: bool) -> nn.Sequential:
    """3 x 3 convolutions with ReLU: image features (I, channels, H, W) -> (I, dim, H, W)."""
    parts: list[nn.Module] = []
    for layer in range(layers):
        parts.append(nn.Conv2d(channels if layer == 0 else dim, dim, 3, padding=1))
        parts += [nn.BatchNorm2d(dim)] if batch_norm else []
        parts.append(nn.ReLU())
    return nn.Sequential(*parts)


def build_classifier(
    size: tuple[int, int, int], answers: int, options: EngineOptions
) -> nn.Sequential:
    """1 x 1 convolution, 2 x 2 max pooling, linear layers: (B, *size) -> (B, answers)."""
    channels, height, width = size
    proj, batch_norm = options.classifier_proj, options.batch_norm
    parts: list[nn.Module] = []
    if proj:
        parts.append(nn.Conv2d(channels, proj, 1))
        parts += [nn.BatchNorm2d(proj)] if batch_norm else []
        parts.append(nn.ReLU())
    parts += [nn.MaxPool2d(2), nn.Flatten()]
    inputs = (proj or channels) * (height // 2) * (width // 2)
    for outputs in options.classifier_fc:
        parts.append(nn.Linear(inputs, outputs))
        parts += [nn.BatchNorm1d(outputs)] if batch_norm else []
        parts.append(nn.ReLU())
        inputs = outputs
    return nn.Sequential(*parts, nn.Linear(inputs, answers))


class ExecutionEngine(nn.Module):
    """Stem, a module for each program token, classifier.

    tokens: the program vocabulary in its order, `<NULL>` first. arities: the number of inputs (0, 1
        or 2) of each, for your own functions; None: by the public code's rule.

    Of the options, batch_norm in training takes its statistics from the maps that run together, so
    executions differ; in eval mode they agree. malformed: "complete" completes a sequence with
    `scene` leaves and ignores what follows the first tree (the public code); "invalid" gives
    programs that are not well formed constant zeros as logits: no gradient, and the answer <NULL>,
    never right. execution and share do not change results: "grouped" is a call for all nodes of a
    token whose inputs are there; "bmm" a call for every level, a weight for each node, fewer and
    larger launches for a GPU. `malformed`, `execution` and `share` may be set on an engine later.
    """

    def __init__(
        self,
        *,
        tokens: Sequence[str],
        arities: Sequence[int] | None = None,
        answers: int = 32,
        feature_size: tuple[int, int, int] = (1024, 14, 14),
        options: EngineOptions | None = None,
    ) -> None:
        super().__init__()
        options = options or EngineOptions()
        dim, batch_norm = options.module_dim, options.batch_norm
        if options.stem_layers == 0 and feature_size[0] != dim:
            raise ValueError(
                f"without a stem the features' {feature_size[0]} channels go to the modules: set "
                f"module_dim={feature_size[0]}, not {dim}."
            )
        for name, count in (("answers", answers), ("module_dim", dim)):
            if count < 1:
                raise ValueError(f"{name}={count}: give 1 or more.")
        self.language = Language(tokens, arities)
        self.feature_size = tuple(feature_size)
        self.batch_norm, self.initialisation = batch_norm, options.initialisation
        self.malformed, self.execution = options.malformed, options.execution
        self.share = options.share
        self._require_options()
        self.stem = build_stem(feature_size[0], dim, options.stem_layers, batch_norm)
        self.classifier = build_classifier((dim, *feature_size[1:]), answers, options)
        self._names: dict[str, str] = {}  # of each token's module
        for token, inputs in zip(self.language.tokens, self.language.arities, strict=True):
            if "." in token or not token:
                raise ValueError(
                    f"program token {token!r} cannot name a module: choose a name without dots."
                )
            name = token
            while hasattr(self, name):  # as `double` is a method of all modules
                name += "_"
            self._names[token] = name
            block = BinaryBlock if inputs == 2 else ResidualBlock
            self.add_module(name, block(dim, batch_norm=batch_norm))
        if self.initialisation == "he":
            self._start_wide()

    def forward(
        self,
        features: Tensor,
        programs: Tensor,
        *,
        image_of: Tensor | None = None,
        return_intermediates: bool = False,
    ) -> Any:
        """Logits (B, A); with `return_intermediates` also the `ModuleOutput`s of each question.

        features: (I, *feature_size). programs: token ids (B, L) in prefix order, <NULL> behind.
        image_of: the image of each question, int (B,), so that features are given, and the stem is
            run, once an image; None: I = B, one question for each.
        return_intermediates: run as the reference does, whose outputs know their gradients.

        ValueError names the question whose program or image does not exist.
        """
        self._require_options()
        rows = self.language.rows(programs)
        images = self._images(features, len(rows), image_of)
        maps = self.stem(features)
        if return_intermediates or self.execution == "reference":
            valid = [b for b in range(len(rows)) if self._runs(rows[b])]
            outputs, ran = run_per_sample(
                self.by_token,
                self.language,
                maps,
                [rows[b] for b in valid],
                [images[b] for b in valid],
            )
            executed = torch.tensor(valid, dtype=torch.int64, device=maps.device)
            steps: list[list[ModuleOutput]] = [[] for _ in rows]
            for b, each in zip(valid, ran, strict=True):
                steps[b] = each
            logits = self._classify(outputs, executed, len(rows))
            return (logits, steps) if return_intermediates else logits
        nodes = parse(rows, self.language, images, share=self.share, malformed=self.malformed)
        plan = schedule(nodes, "levels" if self.execution == "bmm" else "agenda", maps.device)
        run = run_by_module if self.batch_norm else run_fused
        outputs = run(self.by_token, self.language, maps, plan)
        return self._classify(outputs, plan.executed, len(rows))

    @property
    def by_token(self) -> Mapping[str, Any]:
        """The module of each token, in the state dict under that name, or `double_` where taken."""
        return {token: self._modules[name] for token, name in self._names.items()}

    def _require_options(self) -> None:
        """Raise ValueError for options that do not exist, or do not go together.

        Checked with every batch, as they can be set on a finished engine too.
        """
        for name, choices in (
            ("initialisation", INITIALISATIONS),
            ("malformed", MALFORMED),
            ("execution", EXECUTIONS),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; it can be {', '.join(choices)}.")
        if self.batch_norm and self.execution == "bmm":
            raise ValueError('batch_norm needs execution "grouped" or "reference", not "bmm".')

    @torch.no_grad()
    def _start_wide(self) -> None:
        """N(0, 2 / fan in), no biases, a module's second convolution 0.3 of that.

        So long programs neither fade nor explode: small engines leave the plateau of the first
        hundreds of steps much sooner.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
                module.weight.mul_(0.3 if name.endswith("conv2") else 1.0)

    def _runs(self, row: list[int]) -> bool:
        return self.malformed == "complete" or well_formed(row, self.language)

    def _images(self, features: Tensor, questions: int, image_of: Tensor | None) -> list[int]:
        """The image of each question; ValueError where features or images do not fit."""
        if features.dim() != 4 or tuple(features.shape[1:]) != self.feature_size:
            raise ValueError(
                f"features are {tuple(features.shape)}, the engine takes (images, "
                f"{', '.join(map(str, self.feature_size))}): set feature_size to theirs."
            )
        if not features.is_floating_point():
            raise ValueError(f"features are {features.dtype}: give floating point numbers.")
        images = len(features)
        if image_of is None:
            if images != questions:
                raise ValueError(
                    f"{questions} programs came with {images} images: give image_of, the image of "
                    "each program."
                )
            return list(range(images))
        kind = image_of.dtype
        if image_of.dim() != 1 or kind.is_floating_point or kind.is_complex or kind == torch.bool:
            raise ValueError(
                f"image_of is {kind} of shape {tuple(image_of.shape)}: give whole numbers, one for "
                "each program."
            )
        chosen: list[int] = image_of.tolist()
        if len(chosen) != questions:
            raise ValueError(f"image_of has {len(chosen)} entries for {questions} programs.")
        for question, image in enumerate(chosen):
            if not 0 <= image < images:
                raise ValueError(
                    f"question {question} of the batch is about image {image}, but there are "
                    f"features of {images} images."
                )
        return chosen

    def _classify(self, outputs: Tensor, executed: Tensor, questions: int) -> Tensor:
        """Logits (B, A) from the roots' outputs of the executed programs; zeros for the others."""
        logits = self.classifier(outputs)
        if len(executed) == questions:
            return logits
        return logits.new_zeros(questions, logits.shape[1]).index_copy(0, executed, logits)
