"""What G does to a prototype: real and imagined features of a few classes in two dimensions."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common import files
from common.draw import palette, save_figure

from ..hallucinate import Support

COLUMNS = 3  # panels in a row


@dataclass(frozen=True)
class Shift:
    """Features of m classes as a learner sees them, width d, and how their prototypes move."""

    real: Tensor  # (R, d) rows of the support
    real_owner: Tensor  # (R,) int64, class of each
    imagined: Tensor  # (G, d)
    imagined_owner: Tensor  # (G,)
    queries: Tensor  # (Q, d)
    labels: Tensor  # (Q,)
    true_means: Tensor  # (m, d) of the queries
    before: Tensor  # (m, d) prototypes of the real rows
    after: Tensor  # (m, d) of real and imagined ones

    @property
    def nearer(self) -> Tensor:
        """The share of its distance to the true mean that each prototype gained, (m,), up to 1."""
        distance = (self.before - self.true_means).norm(dim=1)
        left = (self.after - self.true_means).norm(dim=1)
        return 1 - left / distance.clamp_min(1e-12)


def shift_cosine(real: Support, augmented: Support, true_means: Tensor) -> Tensor:
    """The cosine (m,) between the way G moves a mean and the way to the true mean, (m, d).

    1: straight towards it; 0: across, or not moved at all.
    """
    before = class_means(real)
    return F.cosine_similarity(class_means(augmented) - before, true_means - before, dim=1)


def class_means(support: Support) -> Tensor:
    """The mean (m, d) of the rows of each class, padding left out."""
    rows = torch.where(support.mask[..., None], support.features, 0).float()
    return rows.sum(1) / support.counts[:, None]


def measure_shift(
    real: Support,
    augmented: Support,
    queries: Tensor,
    labels: Tensor,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> Shift:
    """What G does to the prototypes of m classes, in the space of `embed`, by default of features.

    augmented: what `augment_support` made of `real`: rows at and beyond real.counts are imagined.
    queries (Q, d), labels (Q,) in 0..m-1: the rows that are to stand for the true classes, at least
    one of each.
    """
    counts = torch.bincount(labels, minlength=len(real.counts))
    if len(counts) != len(real.counts) or bool((counts == 0).any()):
        raise ValueError(
            f"the {len(labels)} queries are not of all {len(real.counts)} classes: give queries of "
            "each class that is drawn, and no others."
        )
    slots = torch.arange(augmented.features.shape[1], device=labels.device)
    made = augmented.mask & (slots >= real.counts[:, None])
    owners = torch.arange(len(counts), device=labels.device)
    with torch.no_grad():
        see = embed or torch.nn.Identity()
        rows = see(real.features[real.mask].float()).float()
        imagined = see(augmented.features[made].float()).float()
        seen = see(queries.float()).float()
    row_owner = owners.repeat_interleave(real.counts)
    imagined_owner = owners.repeat_interleave(made.sum(1))
    everything = torch.cat([rows, imagined]), torch.cat([row_owner, imagined_owner])
    return Shift(
        rows,
        row_owner,
        imagined,
        imagined_owner,
        seen,
        labels,
        true_means=means_by(seen, labels, len(counts)),
        before=means_by(rows, row_owner, len(counts)),
        after=means_by(*everything, len(counts)),
    )


def means_by(rows: Tensor, owner: Tensor, classes: int) -> Tensor:
    """The mean (classes, d) of the rows (R, d) of each owner (R,)."""
    sums = rows.new_zeros(classes, rows.shape[1]).index_add(0, owner, rows)
    return sums / torch.bincount(owner, minlength=classes)[:, None]


def principal_axes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (d,) of rows (N, d), N and d at least 2, and their two principal axes (d, 2).

    Each axis points where its largest entry is positive, so that pictures are not mirrored.
    """
    if min(rows.shape) < 2:
        raise ValueError(f"features of shape {tuple(rows.shape)} have no two principal axes.")
    centre = rows.mean(0)
    axes = torch.linalg.svd(rows - centre, full_matrices=False).Vh[:2].T
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return centre, axes * torch.where(largest < 0, -1.0, 1.0)


def draw_features(path: Path, shift: Shift, names: Sequence[str]) -> None:
    """Write a PNG, one panel per class, and all that is in it as `path` with .npz.

    A panel looks at one class: its queries, pale, with their mean, those of other classes in grey,
    the real examples, those that G imagined, and an arrow from the prototype before to the one
    after. The axes are the principal ones of all queries. The file holds the features, too: its
    keys are those of `Shift`, `names`, and `centre`, `axes`, which project x to (x - centre) axes.
    """
    from matplotlib.figure import Figure  # half a second: only who draws pays for it

    centre, axes = principal_axes(shift.queries)
    columns = min(COLUMNS, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.7 * lines + 0.5), dpi=110, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False)
    flat = {
        name: ((value - centre) @ axes).cpu().numpy() if value.is_floating_point() else value.cpu()
        for name, value in vars(shift).items()
    }
    for panel in panels.flat[len(names) :]:
        panel.set_axis_off()
    shades = palette(len(names))
    for label, (name, nearer) in enumerate(zip(names, shift.nearer.tolist(), strict=True)):
        panel = panels.flat[label]
        draw_class(panel, flat, label, [channel / 255 for channel in shades[label]])
        word = "nearer" if nearer >= 0 else "farther"
        panel.set_title(f"{name}: prototype {abs(nearer):.0%} {word}", fontsize=9)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    save_figure(figure, path)
    arrays = {name: value.cpu().numpy() for name, value in vars(shift).items()}
    arrays |= {"names": np.array(names), "centre": centre.cpu().numpy(), "axes": axes.cpu().numpy()}
    write_npz(path.with_suffix(".npz"), arrays)


def draw_class(panel: Any, flat: dict[str, Any], label: int, color: list[float]) -> None:
    """One class in its panel; flat: the tensors of `Shift`, features projected to (., 2)."""
    own = flat["labels"] == label
    imagined = flat["imagined"][flat["imagined_owner"] == label]
    real = flat["real"][flat["real_owner"] == label]
    mean, before, after = (flat[name][label] for name in ("true_means", "before", "after"))
    panel.scatter(*flat["queries"][~own].T, s=7, color="0.88", label="other classes")
    panel.scatter(*flat["queries"][own].T, s=16, color=color, alpha=0.35, label="its queries")
    panel.scatter(*mean, s=150, color="gold", edgecolor="black", marker="*", label="their mean")
    panel.scatter(*real.T, s=60, color=color, edgecolor="black", label="real example")
    panel.scatter(*imagined.T, s=46, color="black", marker="x", label="imagined")
    style = {"color": "white", "edgecolor": "black", "marker": "D", "zorder": 4}
    panel.scatter(*after, s=44, label="prototype with imagined", **style)
    arrow = {"arrowstyle": "->", "linewidth": 1.5, "shrinkA": 4, "shrinkB": 4}
    panel.annotate("", xy=after, xytext=before, arrowprops=arrow, zorder=5)
    shown = np.concatenate([flat["queries"][own], imagined, real])
    half = 1.1 * abs(shown - mean).max()
    panel.set(xlim=(mean[0] - half, mean[0] + half), ylim=(mean[1] - half, mean[1] + half))
    panel.set(xticks=[], yticks=[], aspect="equal")


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write arrays by name as an .npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, lambda file: file.write(buffer.getvalue()))
