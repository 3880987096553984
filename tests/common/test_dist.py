"""Processes: collectives, death of a worker, stopping on request; scripts run as users run them."""

import os
import signal
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from common import dist, spawn
from common.errors import UserError, last_words, sentence, status
from tests.commands import Commands, Run

HEAD = """
import os, signal, sys, time
from dataclasses import dataclass
import torch
from common import dist

@dataclass
class Config:
    output_dir: str = ""
    processes: int = 2
"""


def write(folder: Path, body: str) -> None:
    """Write a script whose function `train(cfg)` is `body`."""
    lines = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    call = "print(dist.launch(train, Config(sys.argv[1]), 2), flush=True)"
    (folder / "train.py").write_text(
        f"{HEAD}\ndef train(cfg):\n{lines}\n\nif __name__ == '__main__':\n    {call}\n"
    )


def start(commands: Commands, folder: Path, body: str, how: str = "forked", **env: str) -> Run:
    """Start such a script. The workers of "spawned" and "torchrun" are interpreters of their own.

    With "restarted" torchrun restarts them once.
    """
    write(folder, body)
    if how in ("forked", "spawned"):
        return commands.start(folder, str(folder), forking=how == "forked", **env)
    words = ["--standalone", "--nproc-per-node=2", f"--max-restarts={int(how == 'restarted')}"]
    words += [str(folder / "train.py"), str(folder)]
    launcher = Path(torch.distributed.__file__).with_name("run.py")
    return commands.start(folder, *words, script=str(launcher), **env)


def end(run: Run) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    done = run.completed()
    return done.returncode, done.stdout, done.stderr


def wait_for(*paths: Path, seconds: float = 300) -> None:
    """Until all `paths` exist."""
    limit = time.monotonic() + seconds
    while not all(path.exists() for path in paths):
        assert time.monotonic() < limit, f"{paths} did not appear in {seconds} s"
        time.sleep(0.02)


def test_one_process_needs_no_group() -> None:
    value = torch.tensor([1.0, 2.0])
    assert (dist.rank(), dist.world_size(), dist.is_main()) == (0, 1, True)
    assert torch.equal(dist.mean(value), value)
    assert torch.equal(dist.total(value), value)
    assert dist.gather("x") == ["x"]
    model = torch.nn.Linear(1, 1)
    assert dist.wrap(model) is model


def test_launch_in_one_process_returns_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = signal.getsignal(signal.SIGTERM)
    assert dist.launch(lambda cfg: cfg + 1, 1, 1) == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_asks_one_process_to_stop() -> None:
    def train(cfg: int) -> bool:
        assert not dist.stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        if dist.stop_requested():
            dist.exit_preempted(3)
        return False

    with pytest.raises(SystemExit) as stop:
        dist.launch(train, 0, 1)
    assert stop.value.code == dist.PREEMPTED == 75


COLLECTIVES = """
from common.run.log import Diverged, Log, require_finite
r = dist.rank()
Log(cfg.output_dir, 10, every=1)(1, loss=torch.tensor(1.0))
try:
    require_finite({"box": torch.tensor([1.0, float("nan")][r])}, 2, [f"{r}.jpg"])
except Diverged as stop:
    bad = [stop.step, stop.part, stop.files, stop.rank]
mean = dist.mean(torch.tensor([1.0, 3.0 * r]))
total = dist.total(torch.tensor([r + 1]))
found = dist.gather({"rank": r, "name": "x" * (r + 1)})
model = torch.nn.Linear(2, 1, bias=False)
torch.nn.init.ones_(model.weight)
network = dist.wrap(model)
network(torch.full((1, 2), float(r))).sum().backward()
dist.barrier()
return [mean.tolist(), total.tolist(), found,
        model.weight.grad.tolist(), type(network).__name__, str(dist.device()),
        torch.get_num_threads(), dist.world_size(), bad]
"""


@pytest.mark.parametrize("how", ["spawned", "torchrun"])
def test_two_processes_average_gather_and_stop_at_a_bad_loss_together(
    commands: Commands, tmp_path: Path, how: str
) -> None:
    code, out, err = end(start(commands, tmp_path, COLLECTIVES, how))
    assert code == 0, err
    expected = [
        [1.0, 1.5],
        [3],
        [{"rank": 0, "name": "x"}, {"rank": 1, "name": "xx"}],
        [[0.5, 0.5]],
        "DistributedDataParallel",
        "cpu",
        1,
        2,
        [2, "box", ["1.jpg"], 1],
    ]
    assert out.count(str(expected)) == (2 if how == "torchrun" else 1), out
    assert out.count("step 1/10") == 1, "rank 1 is quiet"
    assert "Warning" not in err, err


def test_slurm_tasks_find_each_other(commands: Commands, tmp_path: Path) -> None:
    job = {
        "SLURM_NTASKS": "2",
        "SLURM_JOB_NODELIST": "localhost,gpu[1-3]",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_TASKS_PER_NODE": "2",
    }
    body = "return dist.total(torch.tensor(dist.rank() + 1)).item(), cfg.output_dir"
    folders = [tmp_path / "a", tmp_path / "b"]
    tasks = []
    for number, folder in enumerate(folders):
        folder.mkdir()
        place = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
        tasks.append(start(commands, folder, body, **job, **place))
    for task in tasks:
        code, out, err = end(task)
        assert code == 0, err
        assert out.strip() == str((3, str(folders[0]))), "all write where rank 0 does"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("tux", "tux"),
        ("tux1,tux2", "tux1"),
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("gpu[7,9-12]-ib.cluster", "gpu7-ib.cluster"),
        ("rack[1-2]node[001-004]", "rack1node001"),
        ("a-b[3],c[1-2]", "a-b3"),
    ],
)
def test_the_first_host_of_a_slurm_list(nodes: str, first: str) -> None:
    assert spawn.first_host(nodes) == first


def test_an_empty_slurm_list_is_refused() -> None:
    with pytest.raises(ValueError, match="SLURM_JOB_NODELIST"):
        spawn.first_host("")


def test_a_failing_worker_ends_the_run_with_its_own_message(
    commands: Commands, tmp_path: Path
) -> None:
    body = """
    dist.note_step(7)
    if dist.rank() == 1:
        raise KeyError("bad sample 000139.jpg")
    dist.barrier()
    """
    code, _, err = end(start(commands, tmp_path, body, FAIR_VISION_TIMEOUT="100000"))
    assert code == 1
    assert err.strip().splitlines()[-1] == (
        "rank 1 stopped after step 7: KeyError: 'bad sample 000139.jpg'"
    )
    assert 'train.py", line' in err, "the traceback is shown"


def conclusion(*outcomes: tuple[int, float, str, object], asked: bool = False) -> SystemExit:
    """How a run of two workers ends after these outcomes: number, time, kind and value."""
    found = {outcome[0]: spawn.Outcome(*outcome) for outcome in outcomes}
    with pytest.raises(SystemExit) as stop:
        spawn._conclude(found, [-1, 4], asked)
    return stop.value


def test_the_worker_that_failed_first_is_to_blame() -> None:
    later = (0, 2.0, "failed", ("rank 0: connection closed", 1))
    assert conclusion(later, (1, 1.0, "exit", 2)).code == 2
    assert str(conclusion(later, (1, 1.0, "failed", ("rank 1: bad", 2)))) == "rank 1: bad"
    killed = str(conclusion((0, 1.0, "failed", ("connection closed", 1)), (1, 2.0, "died", -9)))
    assert killed == "rank 1 was killed by SIGKILL after step 4 (out of memory?)."


def test_workers_stopped_before_they_could_listen_count_as_preempted() -> None:
    assert conclusion((1, 1.0, "died", -signal.SIGTERM), asked=True).code == dist.PREEMPTED
    assert conclusion((1, 1.0, "died", -signal.SIGTERM)).status == 1  # type: ignore[attr-defined]


LOOP = """
for step in range(1, 10**6):
    time.sleep(0.01)
    dist.barrier()
    dist.note_step(step)
    if step == 3:
        open(f"{cfg.output_dir}/{dist.rank()}.tmp", "w").write(str(os.getpid()))
        os.rename(f"{cfg.output_dir}/{dist.rank()}.tmp", f"{cfg.output_dir}/{dist.rank()}.pid")
    if dist.stop_requested():
        print(f"rank {dist.rank()} saves step {step}", flush=True)
        dist.exit_preempted(step)
"""


def workers(folder: Path) -> list[int]:
    """Process ids of both ranks, once both have done three steps."""
    paths = [folder / "0.pid", folder / "1.pid"]
    wait_for(*paths)
    return [int(path.read_text()) for path in paths]


def alive(pid: int) -> bool:
    """Whether the process runs, zombies excluded."""
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_killed_worker_ends_the_run_promptly_and_is_named(
    commands: Commands, tmp_path: Path
) -> None:
    run = start(commands, tmp_path, LOOP, FAIR_VISION_TIMEOUT="100000")
    pids = workers(tmp_path)
    os.kill(pids[1], signal.SIGKILL)
    code, _, err = end(run)
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("rank 1 was killed by SIGKILL after step ")
    assert not any(map(alive, pids))


def test_workers_end_with_a_killed_parent(commands: Commands, tmp_path: Path) -> None:
    run = start(commands, tmp_path, LOOP)
    pids = workers(tmp_path)
    run.kill()
    while any(map(alive, pids)):
        time.sleep(0.05)
    assert len(pids) == 2  # the suite's time limit ends the wait for one that stays


RESTART = """
from common.run import checkpoint
model = torch.nn.Linear(1, 1, bias=False)
torch.nn.init.zeros_(model.weight)
torch.manual_seed(dist.rank())
optimizer = torch.optim.SGD(model.parameters(), 1.0)
state = {"model": model, "optimizer": optimizer}
begun = checkpoint.resume(cfg.output_dir, **state)
network = dist.wrap(model)
for step in range(begun + 1, 21):
    optimizer.zero_grad()
    network(torch.rand(1, 1)).sum().backward()
    optimizer.step()
    dist.note_step(step)
    if step % 5 == 0:
        checkpoint.save(cfg.output_dir, step, **state)
    if step == 13 and not begun and dist.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
return begun, model.weight.item()
"""


@pytest.mark.slow
def test_a_killed_worker_under_torchrun_ends_the_other_and_a_restart_resumes(
    commands: Commands,
    tmp_path: Path,
) -> None:
    code, out, err = end(start(commands, tmp_path, RESTART, "restarted"))
    assert code == 0, err
    assert "rank 0 stopped after step 13: " in err
    draws = [torch.rand(20, generator=torch.Generator().manual_seed(rank)) for rank in (0, 1)]
    weight = -torch.stack(draws).mean(0).sum().item()
    begun, found = eval(out[: out.index(")") + 1])
    assert begun == 10
    assert found == pytest.approx(weight, abs=1e-5)


@pytest.mark.parametrize("end_of_run", ["return begun", "dist.exit_preempted(begun)"])
def test_the_threads_of_a_group_end_with_it(
    commands: Commands, tmp_path: Path, end_of_run: str
) -> None:
    body = f"""
    def threads():
        tasks = os.listdir("/proc/self/task")
        return sum("gloo" in open(f"/proc/self/task/{{task}}/comm").read() for task in tasks)
    def report():
        print("threads", threads(), flush=True)
    import atexit
    atexit.register(report)
    network = dist.wrap(torch.nn.Linear(1, 1))
    network(torch.rand(1, 1)).sum().backward()
    begun = 0
    assert threads() > 0
    {end_of_run}
    """
    write(tmp_path, body)
    for rank in commands.start_ranks(tmp_path, str(tmp_path)):
        _, out, err = end(rank)
        assert out.count("threads 0") == 1, out + err


def test_a_silent_worker_ends_the_run_within_the_timeout(
    commands: Commands, tmp_path: Path
) -> None:
    body = """
    dist.note_step(5)
    time.sleep(100000) if dist.rank() else dist.barrier()
    """
    code, _, err = end(start(commands, tmp_path, body, FAIR_VISION_TIMEOUT="4.321"))
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("rank 0 stopped after step 5: ")
    assert "4321ms" in last


@pytest.mark.parametrize(
    "how", ["parent", "terminal", "worker", pytest.param("torchrun", marks=pytest.mark.slow)]
)
def test_all_ranks_stop_after_the_same_step(commands: Commands, tmp_path: Path, how: str) -> None:
    run = start(commands, tmp_path, LOOP, "torchrun" if how == "torchrun" else "forked")
    pids = workers(tmp_path)
    if how == "parent":
        os.kill(run.pid, signal.SIGTERM)
    elif how == "terminal":  # Ctrl-C reaches parent and workers alike
        for pid in (run.pid, *pids):
            os.kill(pid, signal.SIGINT)
    else:
        os.kill(pids[1], signal.SIGUSR1)
    code, out, err = end(run)
    assert code == (1 if how == "torchrun" else dist.PREEMPTED), err  # torchrun has its own
    steps = {line.split()[-1] for line in out.splitlines() if " saves step " in line}
    assert len(steps) == 1, out
    assert out.count(" saves step ") == 2
    assert "Stopped on request after step" in out
    assert "Traceback" not in err.split("ChildFailedError")[0].split("elastic")[0]


def test_a_second_interrupt_exits_at_once(commands: Commands, tmp_path: Path) -> None:
    body = """
    dist.note_step(1)
    open(f"{cfg.output_dir}/{dist.rank()}.pid", "w").write(str(os.getpid()))
    for _ in range(6000):
        time.sleep(0.01)
    """
    run = start(commands, tmp_path, body)
    wait_for(tmp_path / "0.pid", tmp_path / "1.pid")
    os.kill(run.pid, signal.SIGINT)
    time.sleep(0.5)
    assert run.ended() is None
    os.kill(run.pid, signal.SIGINT)
    assert end(run)[0] == 130


def test_an_error_that_we_raise_explains_itself_and_others_keep_their_traceback() -> None:
    def caught(work: Callable, argument: str) -> Exception:
        try:
            work(argument)
        except Exception as error:
            return error
        raise AssertionError("nothing was raised")

    ours = caught(spawn.first_host, "")
    assert sentence(ours) == str(ours)
    assert status(ours) == 2
    assert last_words(ours, "rank 0") == f"rank 0: {ours}"
    foreign = caught(int, "x")
    assert sentence(foreign) is None
    assert status(foreign) == 1
    assert last_words(foreign, "rank 0").startswith("Traceback")
    assert last_words(foreign, "rank 0").splitlines()[-1].startswith("rank 0: ValueError: ")
    offline = URLError("Name or service not known")
    assert "Name or service not known" in str(sentence(offline))
    assert status(offline) == 2
    loader = RuntimeError("Caught it.\nOriginal Traceback (most recent ...\nValueError: a.jpg")
    assert last_words(loader, "rank 0").endswith("rank 0: RuntimeError: ValueError: a.jpg")


def test_launch_turns_our_errors_into_a_sentence_and_exit_code_2() -> None:
    with pytest.raises(UserError, match="SLURM_JOB_NODELIST") as stop:
        dist.launch(spawn.first_host, "", 1)
    assert stop.value.status == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(UserError, match="GPUs are visible"):
        dist.launch(print, 0, torch.cuda.device_count() + 1)
