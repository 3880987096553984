"""How commands end: stop signals, faults, lost folders; one line, no child left, the right code."""

import errno
import functools
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import config
from common.errors import UserError
from tests.commands import Commands, Run

APP = """
import os, shutil, sys, time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
import hydra, torch
from hydra.core.config_store import ConfigStore
from common import config, dist
from common.errors import UserError
from common.run import checkpoint, result, versus
from common.run.options import Options

@dataclass
class Config:
    work: str = "stop"
    lr: float = 0.1
    threads: int = 0
    versus: dict[str, list[str]] = field(default_factory=dict)
    output_dir: str = "${hydra:runtime.output_dir}"

ConfigStore.instance().store("schema", Config)

def wait(_=None):
    with open("pids", "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(1000)

def refuse(cfg):
    raise UserError(f"{cfg.lr} is refused.")

def train(cfg):
    start = checkpoint.resume(cfg.output_dir, options=Options(cfg, ("work",)))
    print("goes on from", start)
    if cfg.work == "pool":
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(wait, range(2)))
    elif cfg.work == "loader":
        list(torch.utils.data.DataLoader(Waits(), num_workers=2))
    elif cfg.work == "steps":
        for step in range(start + 1, 10**6):
            dist.note_step(step)
            print("step", step, flush=True)
            time.sleep(0.01)
            if dist.stop_requested():
                checkpoint.save(cfg.output_dir, step, options=Options(cfg, ()))
                dist.exit_preempted(step)
    elif cfg.work == "gone":
        shutil.rmtree(cfg.output_dir)
        os.mkdir(cfg.output_dir)
        result.write(cfg.output_dir, {}, steps=1, seconds=1, columns=())
    checkpoint.save(cfg.output_dir, start + 1, options=Options(cfg, ()))
    if cfg.work == "fail":
        int("x")
    if cfg.work == "stop":
        dist.exit_preempted(start + 1)

class Waits:
    def __len__(self):
        return 9
    def __getitem__(self, index):
        wait()

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    settings = config.to_dataclass(cfg)
    if settings.work == "main pool":
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(wait, range(2)))
    if settings.versus:
        work = refuse if settings.work == "refuse" else train
        versus.run_all(work, cfg, columns=(), curve="AP")
    else:
        dist.launch(train, settings, 1)

if __name__ == "__main__":
    config.run(main)
"""
CONF = "defaults: [schema, _self_]\nhydra: {run: {dir: 'outs, here/${now:%H%M%S%f}'}}\n"


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """Folder of a small application whose output folders have the time in their names."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/config.yaml").write_text(CONF)
    (tmp_path / "train.py").write_text(APP)
    return tmp_path


def pids(app: Path, count: int) -> list[int]:
    """Processes that wait for the end, once there are so many."""
    limit = time.monotonic() + 60
    while not (app / "pids").exists() or (app / "pids").read_text().count("\n") < count:
        assert time.monotonic() < limit
        time.sleep(0.01)
    return [int(line) for line in (app / "pids").read_text().split()]


def ended(pid: int, seconds: float = 30) -> bool:
    """Whether the process comes to its end; one that nobody has waited for counts."""
    limit = time.monotonic() + seconds
    stat = Path(f"/proc/{pid}/stat")
    while stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        if time.monotonic() > limit:
            return False
        time.sleep(0.01)
    return True


def errors(run: Run) -> list[str]:
    return run.errors.read_text().splitlines()


@pytest.mark.parametrize(("work", "code"), [("stop", 75), ("fail", 1)])
def test_the_command_that_is_printed_goes_on_in_the_same_folder(
    commands: Commands, app: Path, work: str, code: int
) -> None:
    first = commands.run(app, f"work={work}", "lr=0.2")
    assert first.returncode == code
    words = shlex.split(first.stderr.splitlines()[-1].partition(": ")[2])
    assert words[:4] == ["python", "train.py", f"work={work}", "lr=0.2"]
    again = commands.run(app, *words[2:])
    assert "goes on from 1" in again.stdout
    assert len(list((app / "outs, here").iterdir())) == 1


def test_a_refused_run_leaves_the_record_of_its_folder(commands: Commands, app: Path) -> None:
    assert commands.run(app, "hydra.run.dir=run", "lr=0.2").returncode == 75
    record = {path: path.read_text() for path in (app / "run/.hydra").iterdir()}
    refused = commands.run(app, "hydra.run.dir=run", "lr=0.3")
    assert refused.returncode == 2
    assert "lr=0.2, this run has lr=0.3" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert record == {path: path.read_text() for path in (app / "run/.hydra").iterdir()}


@pytest.mark.parametrize(
    ("work", "sign", "code"),
    [
        ("main pool", signal.SIGINT, 130),
        ("main pool", signal.SIGTERM, 143),
        ("pool", signal.SIGINT, 75),
        ("loader", signal.SIGINT, 75),
        ("loader", signal.SIGTERM, 75),
    ],
)
def test_a_stop_signal_ends_all_processes_with_one_line(
    commands: Commands, app: Path, work: str, sign: int, code: int
) -> None:
    run = commands.start(app, f"work='{work}'")
    children = pids(app, 2)
    for pid in [run.pid, *(children if sign == signal.SIGINT else [])]:  # as a terminal does
        os.kill(pid, sign)
    assert run.wait() == code, run.text
    assert len(errors(run)) == 1, run.text
    assert all(map(ended, children))


def test_settings_side_by_side_have_names_and_stop_together(commands: Commands, app: Path) -> None:
    words = ("work=steps", "threads=1", "+versus.a=[]", "+versus.long=['lr=0.2']")
    run = commands.start(app, *words, forking=True)
    for name in ("a    | step", "long | step"):
        run.until(3, name)
    os.kill(run.pid, signal.SIGINT)
    assert run.wait() == 75, run.text
    stop, command = errors(run)
    assert stop.startswith("SIGINT: ")
    assert "hydra.run.dir=" in command
    lines = run.output.read_text().splitlines()
    assert all(line.startswith(("a    | ", "long | ")) for line in lines)


def test_settings_that_all_fail_alike_say_so_once(commands: Commands, app: Path) -> None:
    words = ("work=refuse", "threads=1", "+versus.a=[]", "+versus.b=[]")
    done = commands.run(app, *words, forking=True)
    assert (done.returncode, done.stderr) == (2, "0.1 is refused.\n")


@pytest.mark.parametrize("place", ["file/run", "file"])
def test_a_folder_that_cannot_be_written_is_one_sentence(
    commands: Commands, app: Path, place: str
) -> None:
    (app / "file").write_text("")
    done = commands.run(app, f"hydra.run.dir={place}")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be written to" in done.stderr


def test_a_full_disk_below_the_output_folder_is_one_sentence() -> None:
    def main() -> None:
        """What hydra.main wraps."""

    fault = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # of a write, it has no file name
    text = config._no_folder(fault, functools.wraps(main)(lambda: None))
    assert text is not None
    assert text.startswith("the output folder cannot be written to (No space left on device)")


def test_what_an_earlier_run_left_is_written_back_only_if_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, changed = tmp_path / "kept.yaml", tmp_path / "changed.yaml"
    for path in (kept, changed):
        path.write_text("seed: 1")
    record = {path: path.read_bytes() for path in (kept, changed)}
    changed.write_text("seed: 2")
    written = []
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: written.append((path, content)))
    with pytest.raises(SystemExit):  # a read-only disk would refuse to have `kept` written again
        config._end(UserError("no", 2), record)
    assert written == [(changed, b"seed: 1")]


def test_a_folder_that_is_removed_under_way_ends_the_run(commands: Commands, app: Path) -> None:
    done = commands.run(app, "work=gone", "hydra.run.dir=run")
    assert done.returncode == 2
    assert "run was removed while its run was under way" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_during_the_imports_is_one_line() -> None:
    code = "import common.run.interrupt; raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "Stopped by SIGINT.\n")
