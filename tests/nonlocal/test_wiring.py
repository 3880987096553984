"""`train.py` passes every option on: three of its steps are those of a loop written out by hand."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common import dist
from common.data import seed_everything, seed_of
from common.optim import one_cycle
from nonlocal_ import data, train
from nonlocal_.block import Block
from nonlocal_.config import Config
from nonlocal_.evaluate import columns
from nonlocal_.model import Network, build_network
from nonlocal_.net.detectors import build_detector
from nonlocal_.net.norm import FrozenNorm

from .small import lines, photos, run, saved, settings, videos, write_list, write_photos

pytestmark = pytest.mark.filterwarnings("ignore:A non-local block sees a map")
CPU = torch.device("cpu")
State = dict[str, Tensor]
LIMIT = 1.1  # some gradients are larger


@pytest.fixture
def _not_evaluated(monkeypatch):
    monkeypatch.setattr(
        train, "evaluate", lambda model, cfg, *_, **__: dict.fromkeys(columns(cfg), 1.0)
    )


def options(folder: Path) -> Config:
    """Two pieces of two clips a step, and every option that the loop reads."""
    return settings(
        folder,
        seed=3,
        lr=0.2,
        momentum=0.8,
        weight_decay=0.01,
        warmup=2,
        warmup_start=0.25,
        milestones=[0.7],
        clip_norm=LIMIT,
        precise_norm=2,
        network=Network(depth="small", at=["res3.0", "res2.0"], dropout=0.5, inflate="3x1x1"),
        block=Block(mode="dot_product", init="he"),
    )


def pieces_of(cfg: Config, stop: int) -> list[list[tuple[Tensor, Tensor]]]:
    steps = list(data.batches(data.build(cfg, training=True), cfg, 0, stop))
    assert all(len(step) == cfg.batch_size // cfg.per_gpu for step in steps)
    return [[piece.to(CPU) for piece in step] for step in steps]  # type: ignore[misc]


def start(cfg: Config, classes: int = 2) -> nn.Module:
    seed_everything(cfg.seed)
    return build_network(cfg.network, cfg.block, classes).train()


def step_loss(model: nn.Module, pieces: list[tuple[Tensor, Tensor]], step: int) -> Tensor:
    """The mean over pieces, each with batch norm and dropout of its own."""
    total = torch.zeros(())
    for number, (clips, labels) in enumerate(pieces):
        seed_everything(seed_of(3, step, number))
        chosen = model(clips).float().log_softmax(1).gather(1, labels[:, None])
        total = total - chosen.mean() / len(pieces)
    return total


def norms_of(model: nn.Module) -> dict[str, _BatchNorm]:
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}


def measure(model: nn.Module, pieces: list[tuple[Tensor, Tensor]]) -> State:
    """Mean and variance of all that each batch norm sees."""
    seen: dict[str, list[Tensor]] = {}
    handles = [
        norm.register_forward_hook(
            lambda _, inputs, __, name=name: seen.setdefault(name, []).append(
                inputs[0].transpose(0, 1).flatten(1)
            )
        )
        for name, norm in norms_of(model).items()
    ]
    with torch.no_grad():
        for clips, _ in pieces:
            model(clips)
    for handle in handles:
        handle.remove()
    joined = {name: torch.cat(parts, 1) for name, parts in seen.items()}
    means = {f"{name}.running_mean": x.mean(1) for name, x in joined.items()}
    return means | {f"{n}.running_var": x.var(1, unbiased=False) for n, x in joined.items()}


@pytest.mark.usefixtures("_not_evaluated")
def test_three_steps_with_every_option_are_those_of_a_loop_by_hand(tmp_path):
    cfg = options(tmp_path)
    model, steps = start(cfg), pieces_of(cfg, 3)
    assert [len(labels) for _, labels in steps[0]] == [2, 2]
    trained, velocity, clipped = dict(model.named_parameters()), {}, []
    norms = {f"{name}.{part}" for name in norms_of(model) for part in ("weight", "bias")}
    for step, (pieces, factor) in enumerate(zip(steps, (0.25, 0.625, 0.1), strict=True), 1):
        found = torch.autograd.grad(step_loss(model, pieces, step), list(trained.values()))
        norm = float(torch.stack([g.square().sum() for g in found]).sum().sqrt())
        clipped.append(norm > LIMIT)
        for (name, parameter), gradient in zip(trained.items(), found, strict=True):
            slope = min(1.0, LIMIT / (norm + 1e-6)) * gradient
            slope = slope + (0.0 if name in norms else 0.01) * parameter.detach()
            velocity[name] = 0.8 * velocity.get(name, torch.zeros(())) + slope
            parameter.data -= 0.2 * factor * (slope + 0.8 * velocity[name])  # Nesterov
    assert set(clipped) == {False, True}
    run(cfg)
    expected = {name: value.detach() for name, value in trained.items()}
    expected |= measure(model, [piece for step in steps[:2] for piece in step])
    state = {n: v for n, v in saved(cfg)["model"].items() if not n.endswith("batches_tracked")}
    torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-6)
    rates = {row["step"]: row["lr"] for row in lines(tmp_path) if "lr" in row}
    assert rates == pytest.approx({1: 0.05, 2: 0.125, 3: 0.02})


@pytest.mark.usefixtures("_not_evaluated")
def test_adamw_with_one_cycle_on_the_running_means_is_torchs(tmp_path):
    plain = {"warmup": 0, "clip_norm": 0.0, "precise_norm": 0}
    cfg = replace(options(tmp_path), optimizer="adamw", schedule="one_cycle", lr=0.01, **plain)
    model, steps = start(cfg), pieces_of(cfg, 3)
    normal = [p for norm in norms_of(model).values() for p in norm.parameters()]
    ids = {id(p) for p in normal}
    rest = [p for p in model.parameters() if id(p) not in ids]
    groups = [{"params": rest}, {"params": normal, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 0.01, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.01, total_steps=3, cycle_momentum=False
    )
    for step, pieces in enumerate(steps, 1):
        optimizer.zero_grad()
        step_loss(model, pieces, step).backward()
        optimizer.step()
        if step < 3:
            schedule.step()
    run(cfg)
    torch.testing.assert_close(saved(cfg)["model"], model.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_not_evaluated")
def test_half_precision_is_autocasts(tmp_path):
    cfg = replace(options(tmp_path), amp=True, steps=1, precise_norm=0)
    model, (pieces,) = start(cfg), pieces_of(cfg, 1)
    with torch.autocast("cpu", torch.bfloat16):
        expected = step_loss(model, pieces, 1).item()
    run(cfg)
    assert lines(tmp_path)[0]["loss"] == pytest.approx(expected, rel=1e-3)
    assert step_loss(start(cfg), pieces, 1).item() != pytest.approx(expected, rel=1e-5)


def test_the_pieces_of_two_processes_are_those_of_one(tmp_path, monkeypatch):
    """Each computes half of the pieces, whose gradients average to those of one process."""
    cfg = replace(options(tmp_path), batch_size=8)
    training = data.build(cfg, training=True)
    (whole,) = data.batches(training, cfg, 0, 1)
    monkeypatch.setattr("common.dist.world_size", lambda: 2)
    halves = []
    for rank in range(2):
        monkeypatch.setattr("common.dist.rank", lambda rank=rank: rank)
        (half,) = data.batches(training, cfg, 0, 1)
        # The seed of a piece: that of its number in the whole step.
        assert [dist.rank() * len(half) + n for n in range(len(half))] == [2 * rank, 2 * rank + 1]
        halves += half
    assert [piece.files for piece in whole] == [piece.files for piece in halves]
    for one, other in zip(whole, halves, strict=True):
        assert torch.equal(one.clips, other.clips)
        assert torch.equal(one.labels, other.labels)
    cfg = replace(cfg, per_gpu=8)
    with pytest.raises(ValueError, match=r"batch_size=8 is no multiple of per_gpu=8 times 2"):
        next(data.batches(training, cfg, 0, 1))
    assert not list(data.batches(training, cfg, 3, 3))  # of an evaluation
    cfg = replace(cfg, data=replace(cfg.data, name="videos", root="/none"))
    with pytest.raises(ValueError, match=r"give processes=1 or per_gpu=4 or batch_size=16\."):
        train.train(cfg)  # before it looks for data


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Config, dict[str, float]]:
    """Four steps without a stop, evaluated after two and at the end."""
    cfg = replace(options(tmp_path_factory.mktemp("whole")), steps=4, save_every=2)
    cfg = replace(cfg, evaluate_every=2)
    return cfg, run(cfg)


def test_a_run_resumed_in_the_middle_equals_never_stopping(whole, tmp_path):
    cfg, metrics = whole
    shutil.copy(Path(cfg.output_dir, "checkpoint-00000002.pt"), tmp_path)
    again = replace(cfg, output_dir=str(tmp_path))
    assert run(again) == metrics
    assert [row["step"] for row in lines(tmp_path) if "lr" in row] == [3, 4]
    before, after = saved(cfg), saved(again)
    for name in ("model", "optimizer", "schedule"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)


def test_a_stop_that_comes_in_the_last_step_leaves_measured_norms(whole, tmp_path, monkeypatch):
    cfg, metrics = whole
    shutil.copy(Path(cfg.output_dir, "checkpoint-00000002.pt"), tmp_path)
    again = replace(cfg, output_dir=str(tmp_path))
    answers: Iterator[bool] = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr("common.dist.stop_requested", lambda: next(answers))
        with pytest.raises(SystemExit) as stop:
            run(again)
    assert stop.value.code == 75
    torch.testing.assert_close(saved(again)["model"], saved(cfg)["model"], rtol=0, atol=0)
    assert run(again) == metrics


def test_a_run_is_evaluated_alone_from_its_folder(whole, tmp_path):
    cfg, metrics = whole
    alone = replace(cfg, init=cfg.output_dir, only_evaluate=True, output_dir=str(tmp_path))
    assert run(alone) == metrics
    assert not list(tmp_path.glob("checkpoint-*"))
    for name in ("weights.pth", "weights.txt"):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(ValueError, match=name):
            run(replace(alone, init=str(tmp_path / name)))


@pytest.mark.usefixtures("_not_evaluated")
def test_several_labels_are_learned_by_binary_cross_entropy(tmp_path):
    write_list(tmp_path, "train", ["0,2", "1", "2", "0,1,2"])
    write_list(tmp_path, "val", ["0"])
    cfg = replace(
        options(tmp_path / "run"), task="multi_label", data=videos(tmp_path), steps=1, clip_norm=0
    )
    (pieces,) = pieces_of(cfg, 1)
    model, total = start(cfg, 3), torch.zeros(())
    for number, (clips, labels) in enumerate(pieces):
        assert labels.shape == (2, 3)
        seed_everything(seed_of(3, 1, number))
        p = model(clips).sigmoid()
        total = total - (labels * p.log() + (1 - labels) * (1 - p).log()).mean() / len(pieces)
    run(cfg)
    assert lines(tmp_path / "run")[0]["loss"] == pytest.approx(total.item(), rel=1e-5)
    assert saved(cfg)["classes"] == ["0", "1", "2"]


def test_a_clip_of_a_video_has_the_options_frames_and_size(tmp_path):
    write_list(tmp_path, "train", ["cat", "dog", "dog", "cat"])
    (tmp_path / "names").write_text("cat\ndog\n")
    cfg = settings(tmp_path, data=videos(tmp_path, classes="names", limit=2))
    cfg.clip.resample, cfg.clip.frames = 24, 3
    training = data.build(cfg, training=True)
    assert (training.names, len(training.dataset)) == (["cat", "dog"], 2)
    (step,) = data.batches(training, cfg, 0, 1)
    assert [piece.clips.shape for piece in step] == [(2, 3, 3, 24, 24)] * 2
    assert {
        (Path(f).name, int(k)) for p in step for f, k in zip(p.files, p.labels, strict=True)
    } == {
        ("train0.npy", 0),
        ("train1.npy", 1),
    }


@pytest.mark.usefixtures("_not_evaluated")
def test_bad_videos_stop_or_are_replaced_as_the_option_says(tmp_path):
    write_list(tmp_path, "train", ["0", "1", "1", "0"])
    write_list(tmp_path, "val", ["0"])
    (tmp_path / "train1.npy").write_bytes(b"no array")
    cfg = settings(tmp_path / "run", data=videos(tmp_path), steps=1)
    with pytest.raises(ValueError, match=r"train1\.npy .*set data\.bad_videos=skip"):
        run(cfg)
    cfg = replace(cfg, data=videos(tmp_path, bad_videos="skip"))
    with pytest.warns(UserWarning, match=r"1 skipped: .*train1\.npy"):
        run(cfg)
    write_list(tmp_path, "val", ["0", "1"])
    (tmp_path / "val1.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"val1\.npy"):  # before a step is done
        run(replace(cfg, output_dir=str(tmp_path / "other")))
    assert not (tmp_path / "other" / "metrics.jsonl").exists()


@pytest.mark.usefixtures("_not_evaluated")
def test_a_step_of_a_detector_is_that_of_a_loop_by_hand(tmp_path):
    root = write_photos(tmp_path / "coco")
    cfg = photos(root, tmp_path / "run", seed=3, steps=1, lr=0.01, weight_decay=0.1, nesterov=False)
    cfg.detector.at = ["1-block"]
    cfg = replace(cfg, block=Block(norm="none"))
    training = data.build(cfg, training=True)
    (pieces,) = data.batches(training, cfg, 0, 1)
    seed_everything(3)
    model = build_detector(cfg.detector, cfg.block, 1).train()
    total, sums = torch.zeros(()), {}
    for number, piece in enumerate(pieces):
        seed_everything(seed_of(3, 1, number))
        for name, loss in model(*piece.to(CPU)).items():
            total = total + loss / 2
            sums[name] = sums.get(name, 0.0) + loss.item() / 2
    total.backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.data -= 0.01 * (parameter.grad + 0.1 * parameter.detach())
    run(cfg)
    torch.testing.assert_close(saved(cfg)["model"], model.state_dict(), rtol=1e-5, atol=1e-6)
    (first, *_) = lines(tmp_path / "run")
    assert {name: first[name] for name in sums} == pytest.approx(sums, rel=1e-5)
    assert len(sums) == 5


def test_a_network_starts_at_random_from_a_run_or_a_file_and_may_have_frozen_norms(whole, tmp_path):
    cfg, _ = whole
    training = data.build(cfg, training=True)

    def begin(**changed: object) -> nn.Module:
        seed_everything(3)
        return train.build(replace(cfg, **changed), training)  # type: ignore[arg-type]

    random, expected = begin().state_dict(), start(cfg).state_dict()
    assert all(torch.equal(random[name], value) for name, value in expected.items())
    trained = saved(cfg)["model"]
    found = begin(init=cfg.output_dir).state_dict()
    counted = {n for n in trained if n.endswith("batches_tracked")}
    assert all(torch.equal(found[n], v) for n, v in trained.items() if n not in counted)
    anew = begin(init=f"{cfg.output_dir}/checkpoint-00000004.pt", new_classifier=True).state_dict()
    assert torch.equal(anew["fc.weight"], expected["fc.weight"])
    assert torch.equal(anew["conv1.weight"], trained["conv1.weight"])
    frozen = begin(init=cfg.output_dir, network=replace(cfg.network, norm="frozen"))
    kinds = {type(m) for n, m in frozen.named_modules() if n.endswith(("bn1", "bn2", "bn3"))}
    assert kinds == {FrozenNorm}
    assert torch.equal(frozen.state_dict()["bn1.running_var"], trained["bn1.running_var"])


def test_a_longer_resumed_run_goes_on_with_the_rates_of_its_new_length(tmp_path):
    cfg = settings(tmp_path, steps=2, optimizer="adamw", schedule="one_cycle", log_every=1)
    run(cfg)
    run(replace(cfg, steps=5))
    logged = {line["step"]: line["lr"] for line in lines(cfg.output_dir) if "lr" in line}
    parameter = torch.nn.Parameter(torch.zeros(1))
    schedule = one_cycle(torch.optim.SGD([parameter], cfg.lr), 5)
    for done in range(5):
        if done >= 2:
            assert logged[done + 1] == pytest.approx(schedule.get_last_lr()[0], rel=1e-5)
        schedule.optimizer.step()
        schedule.step()


def test_amp_runs_the_network_in_bfloat16(tmp_path, monkeypatch):
    seen = []
    original = train.compute_losses

    def watch(*args):
        seen.append(torch.is_autocast_enabled("cpu"))
        return original(*args)

    monkeypatch.setattr(train, "compute_losses", watch)
    for amp in (False, True):
        run(settings(tmp_path / str(amp), steps=1, amp=amp))
    assert len(seen) > 1
    assert seen == [False] * (len(seen) // 2) + [True] * (len(seen) // 2)
