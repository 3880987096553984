"""Shared fixtures: the small real data sets, and a guard against testing another checkout."""

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

import common
from tests.commands import Commands, run_alone

pytest.register_assert_rewrite("tests.train_scripts")

REPOSITORY = Path(__file__).resolve().parent.parent

if Path(common.__file__).resolve().parent.parent != REPOSITORY:
    raise SystemExit(
        f"These tests are in {REPOSITORY}, but `common` is imported from "
        f"{Path(common.__file__).resolve().parent.parent}: run `pip install -e .` in {REPOSITORY}."
    )

# Under pytest-xdist the cores are taken by the other workers: one thread for each of them.
THREADS = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", THREADS)))

RUNNING: dict[str, None] = {}  # tests that have begun and not ended, on all workers


def note_running() -> None:
    """Write them where `.ci/run` finds them after a hang."""
    if "RUNNING_TESTS" in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        Path(os.environ["RUNNING_TESTS"]).write_text("".join(f"{test}\n" for test in RUNNING))


def pytest_runtest_logstart(nodeid: str) -> None:
    RUNNING[nodeid] = None
    note_running()


def pytest_runtest_logfinish(nodeid: str) -> None:
    RUNNING.pop(nodeid, None)
    note_running()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the small real data sets; skips where they are absent."""
    folder = Path(os.environ.get("SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the real samples are not at {folder} (set SHARED_DATA to their folder)")
    return folder


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Runs scripts in forks of a process that has imported torch."""
    made = Commands(tmp_path_factory.mktemp("printed"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a project's `experiment=smoke`, run once; no test may change it."""

    @cache
    def run(project: str) -> Path:
        folder = tmp_path_factory.mktemp(project) / "run"
        done = run_alone(project, "experiment=smoke", f"hydra.run.dir={folder}")
        assert done.returncode == 0, done.stderr
        return folder

    return run
