"""Configuration: every mistake is one sentence with the nearest name, before any data is read."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from common.config import explain, require_choice, require_range, run, to_dataclass
from common.errors import UserError
from common.optim import follow, parameter_groups, warmup_multistep
from tests.commands import Commands

APP = """
import os
from dataclasses import dataclass, field
import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig
from common import dist
from common.config import require_choice, require_range, run, to_dataclass

@dataclass
class Loss:
    gamma: float = 2.0
    kind: str = "focal"
    def __post_init__(self) -> None:
        require_range("loss.gamma", self.gamma, 0, 10)
        require_choice("loss.kind", self.kind, ["focal", "cross_entropy"])

@dataclass
class Data:
    name: str = MISSING
    root: str = ""

@dataclass
class Config:
    loss: Loss = field(default_factory=Loss)
    data: Data = field(default_factory=Data)
    lr: float = 0.01
    steps: int = 10
    amp: bool = False
    milestones: list[int] = field(default_factory=lambda: [6, 8])
    processes: int = 1

ConfigStore.instance().store("schema", Config)

def train(cfg: Config) -> None:
    if cfg.steps == 13:
        from common.spawn import first_host
        first_host("")
    if cfg.steps == 14:
        int("x")
    line = f"trained {cfg.data.name} {cfg.loss.gamma} {cfg.steps}" + chr(10)
    os.write(1, line.encode())  # in one piece, whoever else is printing

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    config: Config = to_dataclass(cfg)
    dist.launch(train, config, config.processes)

if __name__ == "__main__":
    run(main)
"""

FILES = {
    "config.yaml": "defaults: [schema, {data: scenes}, _self_, {experiment: demo}]\n"
    "hydra: {run: {dir: outputs/run}, sweep: {dir: outputs/sweep}}\n",
    "data/scenes.yaml": "name: scenes\n",
    "data/coco.yaml": "name: coco\nroot: ???\n",
    "experiment/demo.yaml": "# @package _global_\nsteps: 5\n",
    "experiment/key.yaml": "# @package _global_\nstesp: 5\n",
    "experiment/inner.yaml": "# @package _global_\nloss: {gama: 5}\n",
    "experiment/type.yaml": "# @package _global_\nsteps: many\n",
}


@dataclass
class Loss:
    gamma: float = 2.0
    kind: str = "focal"

    def __post_init__(self) -> None:
        require_range("loss.gamma", self.gamma, 0, 10)
        require_choice("loss.kind", self.kind, ["focal", "cross_entropy"])


@dataclass
class Data:
    name: str = MISSING
    root: str = MISSING


@dataclass
class Config:
    loss: Loss = field(default_factory=Loss)
    data: Data = field(default_factory=Data)
    lr: float = 0.01
    steps: int = 10
    amp: bool = False
    milestones: list[int] = field(default_factory=lambda: [6, 8])
    versus: dict[str, list[str]] = field(default_factory=dict)


Compose = Callable[..., DictConfig]


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A folder of configuration files."""
    for name, text in FILES.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)
    return tmp_path / "conf"


@pytest.fixture
def composed(conf: Path) -> Compose:
    """Compose the configuration with overrides, as the command line does."""
    ConfigStore.instance().store("schema", Config)

    def composed(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(conf), version_base="1.3"):
            return compose("config", list(overrides))

    return composed


def complaint(composed: Compose, *overrides: str) -> str:
    """The sentence that a user reads."""
    with pytest.raises((HydraException, OmegaConfBaseException, UserError)) as stop:
        to_dataclass(composed(*overrides))
    text = stop.value if isinstance(stop.value, UserError) else explain(stop.value, ["experiment"])
    return str(text)


def test_a_good_configuration_becomes_plain_dataclasses(composed: Compose) -> None:
    cfg = to_dataclass(composed("data.root=/data", "loss.gamma=1", "milestones=[3]"))
    assert type(cfg) is Config
    assert cfg == Config(Loss(1.0), Data("scenes", "/data"), steps=5, milestones=[3])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("los.gamma=1", "Unknown option 'los.gamma'. Did you mean 'loss.gamma'?"),
        ("loss.gama=1", "Unknown option 'loss.gama'. Did you mean 'loss.gamma'?"),
        ("gamma=1", "Unknown option 'gamma'. Did you mean 'loss.gamma'?"),
        ("data.gamma=1", "Unknown option 'data.gamma'. Did you mean 'loss.gamma'?"),
        ("loss={gama:1}", "Unknown option 'loss.gama'. Did you mean 'loss.gamma'?"),
        ("versus={a:[x]}", "versus has no 'a': add it by a + before versus."),
        ("versus.a=[x]", "versus has no 'a': add it by a + before versus."),
        ("stesp=1", "Unknown option 'stesp'. Did you mean 'steps'?"),
        ("experimant=demo", "Unknown option 'experimant'. Did you mean 'experiment'?"),
        ("+stesp=1", "Unknown option 'stesp'. Did you mean 'steps'?"),
        ("+loss.gama=1", "Unknown option 'loss.gama'. Did you mean 'loss.gamma'?"),
        ("hydra.run.dri=x", "Unknown option 'hydra.run.dri'. Did you mean 'hydra.run.dir'?"),
        ("data=cocoo", "Unknown choice 'data=cocoo'. Did you mean 'data=coco'?"),
        ("experiment=dmo", "Unknown choice 'experiment=dmo'. Did you mean 'experiment=demo'?"),
        ("data=imagenet", "Unknown choice 'data=imagenet'. There are: coco, scenes."),
        ("lr=abc", "lr=abc: a number is expected."),
        ("steps=1.5", "steps=1.5: a whole number is expected."),
        ("amp=maybe", "amp=maybe: true or false is expected."),
        ("milestones=[1,x]", "milestones[1]=x: a whole number is expected."),
        ("milestones=3", "milestones=3: a list, such as [1,2], is expected."),
        ("loss=3", "loss=3: a group of options, not a value, is expected."),
        (
            "experiment=key",
            "Unknown option 'stesp' in conf/experiment/key.yaml. Did you mean 'steps'?",
        ),
        (
            "experiment=inner",
            "Unknown option 'loss.gama' in conf/experiment/inner.yaml. Did you mean 'loss.gamma'?",
        ),
        ("experiment=type", "steps=many in conf/experiment/type.yaml: a whole number is expected."),
        ("loss.gamma", "Error parsing override 'loss.gamma' missing EQUAL at '<EOF>'"),
        ("loss.gamma=-1", "loss.gamma=-1.0 is out of range: it must be within 0 to 10."),
        ("loss.gamma=nan", "loss.gamma=nan is out of range: it must be within 0 to 10."),
        ("loss.kind=fokal", "loss.kind=fokal is unknown. Did you mean 'loss.kind=focal'?"),
        ("data=coco", "data.root is not set: give data.root=/path."),
        ("data.root=${nope}", "data.root: Interpolation key 'nope' not found."),
    ],
)
def test_a_mistake_is_one_sentence_with_the_nearest_name(
    composed: Compose, override: str, sentence: str
) -> None:
    others = [] if override.startswith("data") else ["data.root=/data"]
    assert complaint(composed, *others, override) == sentence


def test_ranges_may_be_open() -> None:
    require_range("lr", 5.0, low=0)
    require_range("lr", -5.0, high=0)
    with pytest.raises(ValueError, match="lr=-1 is out of range: it must be at least 0"):
        require_range("lr", -1, low=0)
    with pytest.raises(ValueError, match="lr=2 is out of range: it must be at most 1"):
        require_range("lr", 2, high=1)


def test_an_unknown_choice_without_a_near_name_lists_all() -> None:
    with pytest.raises(ValueError, match=r"x=42 is unknown\. There are: focal, softmax\."):
        require_choice("x", "42", ["softmax", "focal"])


def test_a_script_of_another_checkout_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    for name in ("common/config.py", "focal_loss/train.py"):
        (other / name).parent.mkdir(parents=True)
        (other / name).write_text("")
    script = ModuleType("__main__")
    script.__file__ = str(other / "focal_loss/train.py")
    monkeypatch.setitem(sys.modules, "__main__", script)
    with pytest.raises(UserError, match=f"run 'pip install -e .' in {other}"):
        to_dataclass(OmegaConf.structured(Config))


def test_a_project_copied_without_common_does_not_run_another_ones_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "focal_loss"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    script = ModuleType("__main__")
    script.__file__ = str(folder / "train.py")
    monkeypatch.setitem(sys.modules, "__main__", script)
    with pytest.raises(UserError, match=r"instead of its own: .* 'python -m focal_loss.train'"):
        to_dataclass(OmegaConf.structured(Config))


@pytest.fixture
def command(conf: Path, commands: Commands) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the example application."""
    (conf.parent / "train.py").write_text(APP)
    return partial(commands.run, conf.parent, HYDRA_FULL_ERROR="0")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("los.gamma=1", "Unknown option 'los.gamma'. Did you mean 'loss.gamma'?"),
        ("loss.gamma=11", "loss.gamma=11.0 is out of range: it must be within 0 to 10."),
        ("steps=13", "'' is no list of Slurm hosts (SLURM_JOB_NODELIST)."),
    ],
    ids=["composing", "filling in", "training"],
)
def test_the_command_prints_one_sentence_and_exits_with_2(
    command: Callable, override: str, sentence: str
) -> None:
    done = command(override)
    assert (done.returncode, done.stderr) == (2, sentence + "\n")
    assert "trained" not in done.stdout


def test_a_fault_of_the_code_keeps_its_traceback(command: Callable) -> None:
    done = command("steps=14")
    assert done.returncode == 1
    assert "invalid literal for int" in done.stderr
    assert "Traceback" in done.stderr
    assert 'int("x")' in done.stderr


def test_several_runs_in_one_command_also_with_two_processes(command: Callable, conf: Path) -> None:
    done = command("-m", "processes=1,2", forking=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("trained")]
    assert lines == ["trained scenes 2.0 5"] * 3
    assert sorted(p.name for p in (conf.parent / "outputs/sweep").iterdir() if p.is_dir()) == [
        "0",
        "1",
    ]


def test_the_schedule_warms_up_and_drops() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = SGD([weight], 0.3)
    schedule = warmup_multistep(optimizer, milestones=[6, 8], warmup=4, warmup_start=0.5)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    factors = [0.5, 0.625, 0.75, 0.875, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert rates == pytest.approx([0.3 * factor for factor in factors])


@pytest.mark.parametrize("done", [2, 3, 6])  # in the warm-up, at the old drop, behind it
def test_a_resumed_schedule_has_the_rates_of_one_that_was_as_long_from_the_start(done: int) -> None:
    def schedule(milestone: int) -> LambdaLR:
        optimizer = SGD([nn.Parameter(torch.zeros(1))], 0.3)
        return warmup_multistep(optimizer, milestones=[milestone], warmup=3)

    def rates(schedule: LambdaLR, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            found.append(schedule.optimizer.param_groups[0]["lr"])
            assert schedule.get_last_lr() == found[-1:]
            schedule.optimizer.step()
            schedule.step()
        return found

    old, new = schedule(3), schedule(8)
    rates(old, done)
    new.optimizer.load_state_dict(old.optimizer.state_dict())
    new.load_state_dict(old.state_dict())
    follow(new)
    assert rates(new, 10 - done) == rates(schedule(8), 10)[done:]


@pytest.mark.parametrize(
    "options",
    [{"milestones": [8, 6]}, {"milestones": [0]}, {"milestones": [], "warmup": -1}],
)
def test_a_schedule_out_of_order_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"(milestones|warmup)="):
        warmup_multistep(SGD([nn.Parameter(torch.zeros(1))], 1.0), **options)


def test_norms_and_biases_have_groups_of_their_own() -> None:
    conv, frozen = nn.Conv2d(3, 4, 1), nn.Linear(2, 2).requires_grad_(False)
    norms = [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4)]
    model = nn.Sequential(conv, frozen, *norms, conv)
    groups = parameter_groups(model, weight_decay=0.1, decay_bias=False, lr=0.5, bias_lr=2.0)
    weights, biases, rest = groups
    assert [p.shape for p in weights["params"]] == [conv.weight.shape]
    assert weights["params"][0] is conv.weight
    assert biases["params"][0] is conv.bias
    assert len(rest["params"]) == 6
    assert [(g["weight_decay"], g["lr"]) for g in groups] == [(0.1, 0.5), (0.0, 1.0), (0.0, 0.5)]
    assert len(SGD(groups, 0.5).param_groups) == 3
    plain = parameter_groups(model, weight_decay=0.1, decay_norm=True)
    assert [group["weight_decay"] for group in plain] == [0.1, 0.1, 0.1]
    assert all("lr" not in group for group in plain)
    with pytest.raises(ValueError, match="bias_lr=2"):
        parameter_groups(model, weight_decay=0.1, bias_lr=2.0)


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_a_command_leaves_the_environment_as_it_was(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if before is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", before)
    seen = []
    run(lambda: seen.append(os.environ["HYDRA_FULL_ERROR"]))
    assert seen == ["1"]
    assert os.environ.get("HYDRA_FULL_ERROR") == before
