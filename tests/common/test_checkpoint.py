"""Checkpoints: damage, malice, full disks and kills are met by one sentence and the old file."""

import copy
import json
import os
import pickle
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.optim import parameter_groups, warmup_multistep
from common.run import checkpoint, lock
from common.run.checkpoint import CheckpointError, load, load_matching, resume, save
from common.run.log import Log
from common.run.options import Options
from tests.commands import Commands, Run, environment

MIB = 1 << 20


@pytest.fixture(autouse=True)
def unlocked(tmp_path: Path) -> Iterator[None]:
    """Gives the locks of a test's folders back."""
    yield
    for folder in [tmp_path, *tmp_path.iterdir()]:
        checkpoint.unlock(folder)


def parts(seed: int = 0) -> dict[str, Any]:
    """A small model with dropout and batch norm, its optimizer and schedule."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(parameter_groups(model, weight_decay=1e-4), 0.1, 0.9)
    schedule = warmup_multistep(optimizer, milestones=[6], warmup=4)
    return {"model": model, "optimizer": optimizer, "schedule": schedule}


def train(state: dict[str, Any], start: int, stop: int) -> list[float]:
    """Steps that draw from all three generators; their losses."""
    losses = []
    for _ in range(start, stop):
        x = torch.randn(6, 4) * random.random() + float(np.random.normal())
        loss = state["model"](x).square().mean()
        state["optimizer"].zero_grad()
        loss.backward()
        state["optimizer"].step()
        state["schedule"].step()
        losses.append(loss.item())
    return losses


def same(a: Any, b: Any) -> bool:
    """Equality of nested states, to the bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def states(state: dict[str, Any]) -> dict[str, Any]:
    return {name: copy.deepcopy(part.state_dict()) for name, part in state.items()}


def flip(path: Path, offset: int) -> None:
    """Change one byte."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 + offset % 255
    path.write_bytes(content)


def test_ten_steps_equal_five_and_five_to_the_bit(tmp_path: Path) -> None:
    whole = parts()
    random.seed(1)
    np.random.seed(1)
    np.random.normal()  # leaves a second normal number in NumPy's state
    losses = train(whole, 0, 5)
    save(tmp_path, 5, **whole)
    losses += train(whole, 5, 10)
    again = parts(seed=7)
    random.seed(5)
    assert resume(tmp_path, **again) == 5
    assert train(again, 5, 10) == losses[5:]
    assert same(states(whole), states(again))


def test_an_empty_folder_starts_at_zero(tmp_path: Path) -> None:
    assert resume(tmp_path / "new", **parts()) == 0


def test_plain_torch_load_opens_a_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 3, weight=torch.arange(3), batch_size=16)
    assert path.name == "checkpoint-00000003.pt"
    content = torch.load(path, weights_only=True)
    assert content["meta"]["step"] == 3
    assert content["parts"]["batch_size"] == 16
    assert torch.equal(content["parts"]["weight"], torch.arange(3))


def test_wrapped_and_compiled_modules_are_saved_unwrapped(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    save(tmp_path, 1, model=torch.compile(model))
    assert load(tmp_path / "checkpoint-00000001.pt")["parts"]["model"].keys() == {"weight", "bias"}
    assert resume(tmp_path, model=torch.compile(nn.Linear(2, 2))) == 1


def test_a_view_is_saved_without_the_storage_behind_it(tmp_path: Path) -> None:
    path = save(tmp_path, 1, row=torch.zeros(1000, 1000)[0])
    assert path.stat().st_size < 100_000


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, quality in enumerate([10.0, 30.0, 20.0, float("nan"), 30.0], 1):
        save(tmp_path, step, best={"AP": quality}, weight=torch.tensor(step))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best.pt", "checkpoint-00000004.pt", "checkpoint-00000005.pt"]
    assert load(tmp_path / "best.pt")["meta"]["best"] == {"AP": 30.0}
    assert load(tmp_path / "best.pt")["parts"]["weight"] == 2


def test_a_damaged_best_file_is_named_and_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "best.pt").write_bytes(b"x" * 1000)
    save(tmp_path, 1, best={"AP": 1.0}, weight=torch.ones(1))
    assert "best.pt is damaged" in capsys.readouterr().err
    assert load(tmp_path / "best.pt")["meta"]["step"] == 1


@pytest.mark.parametrize("length", [0, 10, 0.5, -1], ids=["empty", "10 bytes", "half", "all but 1"])
def test_a_truncated_file_is_named_and_the_one_before_it_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture, length: float
) -> None:
    state = parts()
    save(tmp_path, 1, **state)
    train(state, 1, 2)
    path = save(tmp_path, 2, **state)
    content = path.read_bytes()
    size = len(content) // 2 if length == 0.5 else int(length)
    path.write_bytes(content[:size])
    assert resume(tmp_path, **parts()) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert f"{path} is damaged" in err
    with pytest.raises(CheckpointError, match=r"checkpoint-00000002\.pt is damaged") as refusal:
        load(path)
    assert "\n" not in str(refusal.value)


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, 1, **parts(), batch_size=8)
    content = path.read_bytes()
    load(path)
    chance = random.Random(0)
    offsets = {chance.randrange(len(content)) for _ in range(400)}
    offsets |= {*range(40), *range(len(content) - 200, len(content))}  # both ends of the zip
    for offset in offsets:
        flip(path, offset)
        with pytest.raises(CheckpointError, match="damaged"):
            load(path)
        path.write_bytes(content)


def test_where_all_are_damaged_the_run_does_not_start_afresh(tmp_path: Path) -> None:
    for step in (1, 2):
        flip(save(tmp_path, step, **parts()), 1000)
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        resume(tmp_path, **parts())


def test_a_run_that_went_back_goes_on_over_the_damaged_file(tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, step, **parts())
    flip(tmp_path / "checkpoint-00000020.pt", 500)
    assert resume(tmp_path, **parts()) == 10
    save(tmp_path, 15, **parts())
    assert resume(tmp_path, **parts()) == 15
    save(tmp_path, 20, **parts())
    assert resume(tmp_path, **parts()) == 20
    assert len(list(tmp_path.glob("*.pt"))) == 2


class Evil:
    """Creates a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["pickle", "zip", "sealed"])
def test_a_malicious_file_is_refused_and_nothing_in_it_is_run(tmp_path: Path, form: str) -> None:
    target = tmp_path / "executed"
    path = tmp_path / "weights.pt"
    with open(path, "w+b") as file:
        if form == "pickle":
            pickle.dump({"model": Evil(target)}, file, protocol=2)
        elif form == "zip":
            torch.save({"model": Evil(target)}, file)
        else:
            checkpoint.seal({"model": Evil(target)}, file)
    with pytest.raises(CheckpointError, match="nothing in it was run") as refusal:
        load(path)
    assert "\n" not in str(refusal.value)
    assert not target.exists()


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    class Counter:
        def state_dict(self) -> dict:
            return {"seen": [1, np.float64(2.0)]}

    with pytest.raises(ValueError, match=r"counter\.seen\[1\] is a numpy\.float64"):
        save(tmp_path, 1, counter=Counter())
    assert list(tmp_path.iterdir()) == []


def test_files_of_other_makers_are_loaded(tmp_path: Path) -> None:
    state = nn.Linear(2, 2).state_dict()
    torch.save(state, tmp_path / "zip.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("zip.pth", "old.pth"):
        assert same(load(tmp_path / name), dict(state))
    with pytest.raises(CheckpointError, match=r"absent\.pt cannot be read"):
        load(tmp_path / "absent.pt")


def test_a_model_of_another_size_is_refused_with_names_and_shapes() -> None:
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(8)])
    other = nn.Sequential(nn.Linear(3, 5), *[nn.Identity() for _ in range(8)], nn.Linear(1, 1))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError) as refusal:
        load_matching(model, other.state_dict())
    text = str(refusal.value)
    assert "14 missing: 1.weight (3, 3)" in text
    assert "and 4 more" in text
    assert "2 unexpected: 9.weight (1, 1), 9.bias (1,)" in text
    assert "2 of another shape: 0.weight (5, 3) for (3, 3), 0.bias (5,) for (3,)" in text
    assert same(before, model.state_dict())


def test_weights_that_fit_are_loaded_and_counted() -> None:
    model, other = nn.Linear(2, 3), nn.Linear(2, 3)
    assert load_matching(model, other.state_dict()) == "2 of 2 tensors loaded"
    assert same(model.state_dict(), other.state_dict())


def test_another_batch_size_stops_with_both_numbers(tmp_path: Path) -> None:
    save(tmp_path, 1, **parts(), batch_size=16)
    with pytest.raises(CheckpointError, match=r"batch_size=16, this run has batch_size=8"):
        resume(tmp_path, **parts(), batch_size=8)
    assert resume(tmp_path, **parts(), batch_size=16) == 1


def test_a_run_that_is_past_its_end_stops_but_may_be_evaluated(tmp_path: Path) -> None:
    save(tmp_path, 8, **parts())
    with pytest.raises(CheckpointError, match="has already 8 steps, more than the 4 of this run"):
        resume(tmp_path, steps=4, **parts())
    assert [resume(tmp_path, steps=steps, **parts()) for steps in (8, 9, None)] == [8, 8, 8]


@dataclass
class Data:
    root: str = "/a"
    flip: float = 0.5


@dataclass
class Config:
    lr: float = 0.1
    steps: int = 2
    drops: list[float] = field(default_factory=lambda: [0.5])
    output_dir: str = ""
    data: Data = field(default_factory=Data)


def test_options_that_shape_the_result_stop_with_both_values_and_others_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def options(**changed: Any) -> Options:
        return Options(Config(**changed), ("steps", "data.root", "test"))

    torch.manual_seed(0)
    state = {"model": nn.Linear(1, 1)}
    save(tmp_path, 2, **state, options=options())
    plain_torch = torch.load(tmp_path / "checkpoint-00000002.pt", weights_only=True)
    assert plain_torch["parts"]["options"]["data.flip"] == 0.5
    torch.nn.init.zeros_(state["model"].weight)
    changed = {"lr": 0.2, "drops": [0.7], "data": Data("/b", 0.0)}
    with pytest.raises(CheckpointError) as refusal:
        resume(tmp_path, **state, options=options(**changed))
    for words in ("lr=0.1", "lr=0.2", "drops=[0.5]", "drops=[0.7]", "data.flip=0.5", "flip=0.0"):
        assert words in str(refusal.value)
    assert "data.root" not in str(refusal.value)
    assert state["model"].weight == 0  # nothing was loaded
    assert not (tmp_path / "run.json").exists()

    free = options(steps=4, data=Data("/b"), output_dir="elsewhere")
    assert resume(tmp_path, **state, options=free) == 2
    assert "steps=4 from step 2 on; it was 2" in capsys.readouterr().err
    save(tmp_path, 3, **state, options=free)
    assert resume(tmp_path, **state, options=free) == 3
    Log(tmp_path, 4).close()
    notes = json.loads((tmp_path / "run.json").read_text())["changed"]
    assert notes == [{"step": 2, "options": {"steps": [2, 4], "data.root": ["/a", "/b"]}}]


@pytest.mark.parametrize(
    ("before", "now", "stops"), [(2, 2, False), (2, 4, True), (0, 4, False), (2, 0, False)]
)
def test_the_number_of_processes_stays_where_it_shapes_the_result(
    before: int, now: int, stops: bool, tmp_path: Path
) -> None:
    cfg = Config()
    save(tmp_path, 1, weight=torch.ones(1), options=Options(cfg, (), processes=before))
    options = Options(cfg, (), processes=now)
    if not stops:
        assert resume(tmp_path, weight=torch.ones(1), options=options) == 1
        return
    with pytest.raises(CheckpointError, match="processes=2, this run has number of processes=4"):
        resume(tmp_path, weight=torch.ones(1), options=options)


def test_a_checkpoint_from_before_options_were_kept_resumes(tmp_path: Path) -> None:
    save(tmp_path, 1, weight=torch.ones(1))
    assert resume(tmp_path, weight=torch.ones(1), options=Options(Config(), ())) == 1


def test_another_category_map_stops(tmp_path: Path) -> None:
    save(tmp_path, 1, classes={"1": "cat"}, ids=torch.tensor([1]))
    assert resume(tmp_path, classes={"1": "cat"}, ids=torch.tensor([1])) == 1
    with pytest.raises(CheckpointError, match="classes="):
        resume(tmp_path, classes={"1": "dog"})
    with pytest.raises(CheckpointError, match="ids="):
        resume(tmp_path, ids=torch.tensor([2]))
    with pytest.raises(CheckpointError, match="holds no 'names', only: classes, ids"):
        resume(tmp_path, names=[])


def test_a_resumed_model_of_another_size_names_the_file(tmp_path: Path) -> None:
    save(tmp_path, 1, model=nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"checkpoint-00000001\.pt: .* of another shape"):
        resume(tmp_path, model=nn.Linear(2, 3))


def test_another_host_torch_or_world_size_is_only_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = save(tmp_path, 4, **parts(), batch_size=16)
    content = load(path)
    content["meta"] |= {"torch": "1.0.0", "host": "elsewhere", "world_size": 8}
    with open(path, "w+b") as file:
        checkpoint.seal(content, file)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert resume(tmp_path, **parts(seed=3), batch_size=16) == 4
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2
    assert "torch 1.0.0" in err[0]
    assert "host elsewhere" in err[1]
    assert state.shape == torch.get_rng_state().shape


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes meanwhile, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [100, 10_000, 300_000, -40], ids=str)
def test_a_full_disk_keeps_the_old_checkpoint_and_no_half_file(tmp_path: Path, size: int) -> None:
    old = save(tmp_path, 1, weight=torch.ones(100_000))
    before = old.read_bytes()
    with file_limit(size % len(before)), pytest.raises(CheckpointError, match="could not be writ"):
        save(tmp_path, 2, weight=torch.ones(100_000))
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    assert old.read_bytes() == before
    assert load(old)["meta"]["step"] == 1


def test_a_full_file_system_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        save(disk, 1, weight=torch.ones(100_000))
        with pytest.raises(CheckpointError, match="No space left on device"):
            save(disk, 2, weight=torch.ones(100_000))
        assert [path.name for path in disk.iterdir()] == ["checkpoint-00000001.pt"]
        weight = torch.zeros(100_000)
        assert torch.equal(load(disk / "checkpoint-00000001.pt")["parts"]["weight"], weight + 1)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, bool, int]] = []  # function, whether of a folder, its size

    def note(name: str) -> None:
        original = getattr(os, name)

        def noted(file: Any, *more: Any) -> None:
            status = os.stat(file)
            calls.append((name, stat.S_ISDIR(status.st_mode), status.st_size))
            original(file, *more)

        monkeypatch.setattr(os, name, noted)

    note("fsync")
    note("replace")
    size = save(tmp_path, 1, weight=torch.ones(1000)).stat().st_size
    assert [(name, folder) for name, folder, _ in calls] == [
        ("fsync", False),
        ("replace", False),
        ("fsync", True),
    ]
    assert calls[0][2] == size  # all of it


def write(folder: Path, body: str) -> Path:
    """Write a script of `body`."""
    text = (
        "import os, sys, time, torch\nfrom common import dist\nfrom common.run import checkpoint\n"
    )
    path = folder / "script.py"
    path.write_text(text + textwrap.dedent(body))
    return path


def script(commands: Commands, folder: Path, body: str, *arguments: object) -> Run:
    """Start `body` in another process."""
    path = write(folder, body)
    return commands.start(folder, *map(str, arguments), script=path.name, forking=True)


def test_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    body = """
    folder, weight = sys.argv[1], torch.ones(10_000_000)
    for step in range(1, 1000):
        checkpoint.save(folder, step, weight=weight * step)
    """
    folder.mkdir()
    command = [sys.executable, str(write(tmp_path, body)), str(folder)]
    writer = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE)
    try:
        while True:  # stop it in the midst of a file after the first
            assert writer.poll() is None, writer.communicate()
            half = [p for p in folder.glob(".*.tmp") if "00000001" not in p.name]
            if half and half[0].exists() and half[0].stat().st_size > MIB:
                os.kill(writer.pid, signal.SIGSTOP)
                os.waitpid(writer.pid, os.WUNTRACED)
                if list(folder.glob(".*.tmp")):
                    break
                os.kill(writer.pid, signal.SIGCONT)
            time.sleep(0.002)
    finally:
        writer.kill()
        writer.communicate()
    (leftover,) = folder.glob(".*.tmp")
    last = int(leftover.name.split("-")[1].split(".")[0]) - 1
    content = load(folder / f"checkpoint-{last:08d}.pt")
    assert content["parts"]["weight"].unique().tolist() == [last]
    assert resume(folder) == last
    assert not list(folder.glob(".*.tmp"))


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_ends(
    commands: Commands, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    body = """
    checkpoint.resume(sys.argv[1])
    if os.fork() == 0:  # like a loader process, which may outlive its parent
        sys.stdout.close()
        time.sleep(30)
    print("locked", flush=True)
    time.sleep(100)
    """
    first = script(commands, tmp_path, body, folder)
    first.until(1, "locked")
    with pytest.raises(CheckpointError, match=f"in use by process {first.pid} on .*hydra.run.dir"):
        resume(folder)
    first.kill()
    assert resume(folder) == 0
    assert resume(folder) == 0, "the same process may ask again"


def test_nothing_is_saved_where_the_folder_of_a_run_was_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    checkpoint.lock(folder)
    shutil.rmtree(folder)
    for _ in range(2):  # gone, and made again by somebody else
        with pytest.raises(CheckpointError, match="run was removed while its run was under way"):
            save(folder, 1, weight=torch.ones(1))
        assert not list(tmp_path.glob("run/*"))
        folder.mkdir(exist_ok=True)


def test_a_strange_lock_is_quoted_in_one_short_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Any) -> None:
        raise OSError

    monkeypatch.setattr(lock, "_claim", refuse)
    (tmp_path / ".lock").write_bytes(b"\xff" * 10_000 + b"\n\n")
    with pytest.raises(CheckpointError, match="is in use by") as refusal:
        checkpoint.lock(tmp_path)
    assert len(str(refusal.value)) < 500
    assert "\n" not in str(refusal.value)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/run cannot be written to: Not a directory"):
        resume(tmp_path / "file" / "run")
    if os.geteuid():
        (tmp_path / "readonly").mkdir(mode=0o500)
        with pytest.raises(CheckpointError, match="cannot be written to: Permission denied"):
            checkpoint.lock(tmp_path / "readonly")


def test_two_ranks_resume_their_own_random_states_and_share_failures(
    commands: Commands, tmp_path: Path
) -> None:
    body = """
    import resource

    def train(folder):
        model = torch.nn.Linear(2, 2)
        torch.manual_seed(dist.rank())
        assert checkpoint.resume(folder, model=model, batch_size=4) == 0
        checkpoint.save(folder, 1, model=dist.wrap(model), batch_size=4)
        drawn = torch.rand(3)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        try:
            checkpoint.save(folder, 2, model=model)
        except checkpoint.CheckpointError as error:
            told = "could not be written" in str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        other = torch.nn.Linear(2, 2)
        step = checkpoint.resume(folder, model=other, batch_size=4)
        equal = torch.equal(drawn, torch.rand(3)) and torch.equal(model.weight, other.weight)
        return dist.gather((step, told, equal, drawn.tolist()))

    if __name__ == "__main__":
        found = dist.launch(train, sys.argv[1], 2)
        assert found[0][3] != found[1][3]
        print([report[:3] for report in found])
    """
    done = script(commands, tmp_path, body, tmp_path / "run").completed()
    assert done.stdout.strip() == "[(1, True, True), (1, True, True)]", done.stderr


def test_a_killed_run_that_is_repeated_ends_as_an_uninterrupted_one(
    commands: Commands, tmp_path: Path
) -> None:
    body = """
    def train(folder, steps=40):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.2))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
        state = {"model": model, "optimizer": optimizer}
        for step in range(checkpoint.resume(folder, **state) + 1, steps + 1):
            optimizer.zero_grad()
            model(torch.randn(5, 3)).square().mean().backward()
            optimizer.step()
            if step % 7 == 0 or step == steps:
                checkpoint.save(folder, step, **state)
            if len(sys.argv) > 1 and step == 31:
                os.kill(os.getpid(), 9)
        return model.state_dict() | {"momentum": optimizer.state_dict()["state"]}

    if __name__ == "__main__":
        train(sys.argv[1])
    """
    assert script(commands, tmp_path, body, tmp_path / "a").wait() == -signal.SIGKILL
    names: dict[str, Any] = {"__name__": "script"}
    exec((tmp_path / "script.py").read_text(), names)
    names["sys"] = type("NoArguments", (), {"argv": []})
    assert same(names["train"](tmp_path / "a"), names["train"](tmp_path / "b"))
