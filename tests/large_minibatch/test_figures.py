"""The curve distance, the choice of runs for a figure, and the figures themselves."""

import json
import math
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from large_minibatch.analysis import finished
from large_minibatch.config import Config, Data
from large_minibatch.figures import MEASURED, parse

EPOCHS = 12


def leave(folder: Path, shift: float = 0.0, seed: int = 0, **options) -> Path:
    """A finished run of the miniature whose errors are 60 / epoch, and `shift` after epoch 2."""
    settings = OmegaConf.structured(Config(data=Data(name="scenes", root="")))
    words = [f"{key.replace('__', '.')}={value}" for key, value in options.items()]
    mini = ["rate.base=0.05", "rate.base_batch=32", "rate.start=0.05", "rate.warmup_epochs=2"]
    dots = OmegaConf.from_dotlist(["batch_size=32", *mini, *words, f"seed={seed}"])
    settings = OmegaConf.merge(settings, dots, {"output_dir": str(folder)})
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(settings, folder / ".hydra" / "config.yaml")
    lines: list[dict] = [{"step": 1, "loss": 2.7, "lr": 0.05}]
    for epoch in range(1, EPOCHS + 1):
        error = 60 / epoch + (shift + seed if epoch > 2 else 0)
        measured = {"train_error": error, "val_error": error + 1}
        lines.append({"step": 100 * epoch, "epoch": float(epoch), **measured})
    lines.append(lines[-1] | {"error": 5.0})  # as the last line of a run
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text(json.dumps({"metrics": {"error": 5.0}, "diverged": None}))
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folders as tables.py leaves them: Tables 1 and 2a, 2b and the minibatches of Fig. 1."""
    home = tmp_path_factory.mktemp("tables")
    leave(home / "batch_size=32" / "seed0")
    leave(home / "batch_size=32" / "seed1", seed=1)
    leave(home / "batch_size=64" / "seed0", 0.25, batch_size=64)
    leave(home / "batch_size=512,x" / "seed0", 0.5, batch_size=512)
    leave(home / "none" / "seed0", 4.0, batch_size=512, rate__warmup="none")
    leave(home / "constant" / "seed0", 2.0, batch_size=512, rate__warmup="constant")
    leave(home / "double" / "seed0", 3.0, rate__base=0.1, rate__start=0.1)
    leave(home / "wide" / "seed0", model__width=16)
    leave(home / "wide, large" / "seed0", batch_size=512, model__width=16)
    return home


@pytest.fixture
def runs(written, tmp_path):
    """The test's own copy."""
    return shutil.copytree(written, tmp_path / "tables")


def test_identical_logs_have_distance_0(tmp_path):
    a, b = (leave(tmp_path / name) for name in "ab")
    first, second = (
        finished.curve(map(json.loads, (f / "metrics.jsonl").open()), "train_error") for f in (a, b)
    )
    assert len(first) == EPOCHS
    assert finished.distance(first, second, after=2) == 0


def test_the_distance_is_the_mean_absolute_difference_after_the_warm_up():
    a = {1.0: 90.0, 2.0: 50.0, 3.0: 30.0, 4.0: 20.0}
    b = {1.0: 10.0, 2.0: 52.0, 3.0: 29.0, 4.0: 23.0}
    assert finished.distance(a, b, after=1) == (2 + 1 + 3) / 3
    assert finished.distance(a, b, after=2) == finished.distance(b, a, after=2) == 2


def test_the_distance_uses_the_epochs_that_both_have():
    assert finished.distance({1.0: 5.0, 2.0: 5.0, 2.5: 9.0}, {2.0: 6.0, 3.0: 0.0}, after=0) == 1
    with pytest.raises(ValueError, match="none in common after epoch 2"):
        finished.distance({1.0: 5.0, 3.0: 1.0}, {1.0: 6.0, 4.0: 0.0}, after=2)


def test_curves_are_averaged_over_seeds():
    means, stds = finished.mean_curve([{1.0: 10.0, 2.0: 4.0}, {1.0: 14.0}])
    assert means == {1.0: 12.0}
    assert stds == {1.0: pytest.approx(math.sqrt(8))}
    assert finished.mean_curve([{1.0: 3.0}]) == ({1.0: 3.0}, {1.0: 0.0})


def test_runs_that_differ_in_their_seed_are_one_group(runs):
    found = finished.collect([runs, runs])  # each once
    assert len(found) == 8
    assert sorted(len(group.runs) for group in found) == [1] * 7 + [2]


def test_the_error_of_a_run_is_the_median_of_its_last_five(runs):
    chosen = finished.family(finished.collect([runs]), {"batch_size"}, "fig1")
    base = finished.reference(chosen, "fig1")
    assert base.errors() == [60 / 10 + 1, 60 / 10 + 2]


def test_a_figure_takes_the_runs_that_differ_in_what_it_shows(runs):
    found = finished.collect([runs])
    chosen = finished.family(found, {"batch_size"}, "fig1")
    assert [group.kn for group in chosen] == [32, 64, 512]
    assert {group.settings["rate.warmup"] for group in chosen} == {"gradual"}
    assert {group.settings["model.width"] for group in chosen} == {8}


def test_of_equally_large_sets_the_one_that_others_vary_is_taken(runs):
    (runs / "batch_size=64" / "seed0" / "metrics.jsonl").unlink()
    chosen = finished.family(finished.collect([runs]), {"batch_size"}, "fig1")
    assert [group.settings["model.width"] for group in chosen] == [8, 8]


def test_sets_that_fit_alike_are_named(tmp_path):
    for width in (8, 16):
        for size in (32, 64):
            leave(tmp_path / f"{width}-{size}", batch_size=size, model__width=width)
    with pytest.raises(ValueError, match=r"model\.width"):
        finished.family(finished.collect([tmp_path]), {"batch_size"}, "fig1")


def test_unfinished_and_diverged_runs_are_left_out_and_named(runs, capsys):
    (runs / "batch_size=64" / "seed0" / "result.json").unlink()
    diverged = {"metrics": {}, "diverged": {"step": 3, "part": "classification"}}
    (runs / "none" / "seed0" / "result.json").write_text(json.dumps(diverged))
    assert len(finished.collect([runs])) == 6
    said = capsys.readouterr().out
    assert "not finished: " in said
    assert "diverged: " in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fig1", "kn = 32: 7.50 ± 0.71 %, 2 runs"),
        ("fig2", "no warm-up: curve distance to kn = 32, eta = 0.05: 3.50 points"),
        ("fig2", "gradual warm-up: curve distance to kn = 32, eta = 0.05: 0.00 points"),
        ("fig3", "kn = 64: curve distance to kn = 32, eta = 0.05: 0.25 points"),
        ("fig4", "training and validation: curve distance to kn = 32, eta = 0.05: 0.00 points"),
        ("fig5", "kn = 32: curve distance to eta = 0.05: 2.50 points"),
    ],
)
def test_each_figure_shows_its_runs(runs, capsys, name, said):
    figure = MEASURED[name](finished.collect([runs]), None)
    assert said in capsys.readouterr().out
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == {"fig2": 3, "fig3": 2}.get(name, 1)


def test_the_bars_of_fig1_are_two_standard_deviations(runs):
    axes = MEASURED["fig1"](finished.collect([runs]), None).axes[0]
    bars = axes.containers[0].lines[2][0].get_segments()
    low, high = bars[0][:, 1]
    assert high - low == pytest.approx(4 * math.sqrt(0.5))


def test_fig4_without_the_large_minibatch_says_which_there_are(runs):
    with pytest.raises(ValueError, match="kn= one of 64, 512"):
        MEASURED["fig4"](finished.collect([runs]), 128)


def test_folders_may_hold_commas_and_equal_signs(runs):
    folder = str(runs / "batch_size=512,x")
    request = parse(["fig2", f"runs={runs}", folder, "kn=512", "out=there"])
    assert (request.names, request.kn, request.out) == (["fig2"], 512, Path("there"))
    assert request.folders == [runs, Path(folder)]


@pytest.mark.parametrize("words", [[], ["fig1"], ["fig9"], ["fig1", "runs=x", "size=3"]])
def test_other_words_are_refused_with_the_usage(words):
    with pytest.raises(ValueError, match="usage: python figures"):
        parse(words)


def test_the_command_draws_predicted_and_measured_figures(runs, commands, tmp_path):
    words = ("fig3", "fig7", "fig8", f"runs={runs}", f"out={tmp_path}")
    done = commands.run("large_minibatch", *words, script="figures.py")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for name in ("fig3", "fig7", "fig8"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert "(model" in done.stdout
    wrong = commands.run("large_minibatch", "fig3", f"runs={tmp_path}/none", script="figures.py")
    assert wrong.returncode == 2
    assert "is not a folder" in wrong.stderr
    assert "Traceback" not in wrong.stderr
