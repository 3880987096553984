"""Shared fixtures: the small real data sets, and a guard against testing another checkout."""

import os
from pathlib import Path

import pytest
import torch

import common

REPOSITORY = Path(__file__).resolve().parent.parent

if Path(common.__file__).resolve().parent.parent != REPOSITORY:
    raise SystemExit(
        f"These tests are in {REPOSITORY}, but `common` is imported from "
        f"{Path(common.__file__).resolve().parent.parent}: run `pip install -e .` in {REPOSITORY}."
    )

# Under pytest-xdist the cores are taken by the other workers: one thread for each of them.
THREADS = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", THREADS)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the small real data sets; skips where they are absent."""
    folder = Path(os.environ.get("SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the real samples are not at {folder} (set SHARED_DATA to their folder)")
    return folder
