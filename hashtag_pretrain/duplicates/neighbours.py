"""Exact nearest neighbours in blocks: no index to train, and memory for two blocks alone.

N queries, M descriptors to search, D numbers each.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

K = 21  # neighbours that the paper looks at
SPARE = 16  # neighbours more that float32 may put in a wrong order


def find_neighbours(
    queries: Tensor,
    database: Tensor | np.ndarray,
    k: int = K,
    *,
    block: int = 4096,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """L2 distances float64 (N, k) of the k nearest, ascending, and their rows int64 (N, k).

    queries: (N, D). database: (M, D), for instance a memory-mapped array, which is read once, a
    block at a time, and then the rows found. k is M where that is less. Of equal distances the
    lower row comes first. device: where products are computed, by default where the queries are.

    Candidates, `SPARE` more than k, are found by matrix products in float32; their distances are
    then computed from the differences in float64, so that an equal descriptor is at 0 and not at
    the square root of a rounding error.
    """
    if queries.ndim != 2 or database.ndim != 2 or queries.shape[1] != database.shape[1]:
        raise ValueError(
            f"descriptors of the shapes {tuple(queries.shape)} and {tuple(database.shape)} cannot "
            "be compared: give (N, D) and (M, D), both made by one network"
        )
    if k < 1:
        raise ValueError(f"k={k}: give 1 or more neighbours")
    require_finite(queries, 0, "query")
    rows = find_candidates(queries, database, k + SPARE, block, device)
    distances = torch.empty(len(queries), min(k, len(database)), dtype=torch.float64)
    found = torch.empty(distances.shape, dtype=torch.int64)
    step = max(1, block // max(1, rows.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        exact = measure(queries[part], database, rows[part])
        # The candidates' rows ascend, and a stable sort keeps them so where distances are equal.
        exact, order = exact.sort(dim=1, stable=True)
        distances[part] = exact[:, : distances.shape[1]]
        found[part] = rows[part].gather(1, order)[:, : distances.shape[1]]
    return distances, found


def find_candidates(
    queries: Tensor,
    database: Tensor | np.ndarray,
    k: int,
    block: int,
    device: torch.device | str | None,
) -> Tensor:
    """Rows (N, k) nearest by float32, ascending; k is M where that is less."""
    device = torch.device(device or queries.device)
    scores = torch.empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.int64)
    for start, part in read_blocks(database, block, device):
        squares = part.square().sum(1)  # (B,)
        kept = min(k, rows.shape[1] + len(part))
        best = torch.empty(len(queries), kept)
        best_rows = torch.empty(len(queries), kept, dtype=torch.int64)
        for first in range(0, len(queries), block):
            some = slice(first, first + block)
            query = queries[some].to(device, torch.float32)
            # -|q - x|^2 + |q|^2, the greatest for the nearest x
            near, places = (2 * query @ part.T - squares).topk(min(k, len(part)))
            near = torch.cat([scores[some], near.cpu()], 1)
            places = torch.cat([rows[some], places.cpu() + start], 1)
            best[some], order = near.topk(kept)
            best_rows[some] = places.gather(1, order)
        scores, rows = best, best_rows
    return rows.sort(1).values


def measure(queries: Tensor, database: Tensor | np.ndarray, rows: Tensor) -> Tensor:
    """Distances float64 (n, k) of queries (n, D) to the rows (n, k) of the database."""
    if isinstance(database, np.ndarray):
        near = torch.from_numpy(database[rows.numpy()])
    else:
        near = database[rows.to(database.device)].cpu()  # (n, k, D)
    return (near.double() - queries[:, None].cpu().double()).square().sum(2).sqrt()


def read_blocks(
    database: Tensor | np.ndarray, block: int, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """First row and descriptors, float32 (<= block, D), of each block."""
    for start in range(0, len(database), block):
        rows = database[start : start + block]
        # A memory-mapped array may be read-only, which torch warns of: a copy is not.
        part = torch.from_numpy(np.array(rows)) if isinstance(rows, np.ndarray) else rows
        require_finite(part, start, "descriptor")
        yield start, part.to(device, torch.float32)


def require_finite(descriptors: Tensor, start: int, what: str) -> None:
    """ValueError naming the first row that is not finite: it would be no one's neighbour."""
    good = descriptors.isfinite().all(1)
    if not good.all():
        row = start + int((~good).nonzero()[0, 0])
        raise ValueError(
            f"{what} {row} is not finite: is the network trained, and the image sound?"
        )
