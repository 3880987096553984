"""Logs: the right numbers once each, after a resume too; a full disk does not end a run."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.run import log as log_module
from common.run.log import Diverged, Log, note_changes, read, require_finite


def lines(folder: Path) -> list[dict]:
    """What `metrics.jsonl` holds, without times."""
    texts = (folder / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(text) for text in texts]
    assert all(line.pop("seconds") >= 0 for line in found)
    return found


def train(folder: Path, start: int, stop: int) -> Log:
    """Log ten steps' loss (the step itself) as a loop does."""
    log = Log(folder, 10, every=2, start=start)
    for step in range(start + 1, stop + 1):
        log(step, loss=torch.tensor(float(step)), lr=0.1 * step)
    return log


def test_tensors_are_averaged_and_numbers_shown_as_last_given(tmp_path: Path) -> None:
    log = train(tmp_path, 0, 5)
    log(5, force=True, AP=31.5)
    log.close()
    assert lines(tmp_path) == [
        {"step": 2, "loss": 1.5, "lr": 0.2},
        {"step": 4, "loss": 3.5, "lr": 0.4},
        {"step": 5, "AP": 31.5},
        {"step": 5, "loss": 5.0, "lr": 0.5},
    ]


def test_tensors_are_read_only_at_the_end_of_an_interval(tmp_path: Path) -> None:
    class Watched(torch.Tensor):
        """Counts how often its value is asked for."""

        read = 0

        def __float__(self) -> float:
            Watched.read += 1
            return super().__float__()

    log = Log(tmp_path, 100, every=10)
    for step in range(1, 10):
        log(step, loss=torch.tensor(1.0).as_subclass(Watched))
    assert Watched.read == 0
    log(10, loss=torch.tensor(1.0).as_subclass(Watched))
    assert Watched.read == 1


def test_resuming_removes_the_lines_after_the_resumed_step(tmp_path: Path) -> None:
    train(tmp_path, 0, 8).close()  # killed after step 8, the last checkpoint is that of step 4
    train(tmp_path, 4, 10).close()
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 8, 10]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 8, 10]


def test_a_finished_run_that_is_evaluated_again_has_one_line_of_metrics(tmp_path: Path) -> None:
    log = train(tmp_path, 0, 10)
    log(10, force=True, AP=1.0, AP_small=math.nan)
    log.close()
    for _ in range(2):
        again = Log(tmp_path, 10, every=2, start=10)
        again(10, force=True, AP=2.0, AP_small=math.nan)
        again.close()
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [2, 4, 6, 8, 10, 10]
    assert found[-2:] == [{"step": 10, "loss": 9.5, "lr": 1.0}, {"step": 10, "AP": 2.0}]


def test_a_line_cut_off_by_a_kill_is_left_out_and_removed(tmp_path: Path) -> None:
    train(tmp_path, 0, 4).close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    assert [line["step"] for line in read(tmp_path)] == [2, 4]
    train(tmp_path, 4, 10).close()
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 8, 10]


def test_damaged_lines_do_not_keep_a_run_from_resuming(tmp_path: Path) -> None:
    train(tmp_path, 0, 4).close()
    damaged = [
        b"\xff\xfe\x00",
        b'{"step": 4, "loss": \xff}',
        b"[" * 100_000,
        b'{"step": 3, "loss": ' + b"9" * 5000 + b"}",
        b'{"step": 3, "loss": ' + b"9" * 400 + b"}",
        b'{"step": 3, "loss": "none"}',
        b'{"step": "3"}',
        b"[3]",
    ]
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b"\n".join(damaged))
    (tmp_path / "run.json").write_bytes(b'{"changed": \xff')
    note_changes(tmp_path, 4, {"every": [2, 1]})
    train(tmp_path, 4, 6).close()
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6]
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["changed"] == [{"step": 4, "options": {"every": [2, 1]}}]
    assert not list(tmp_path.glob(".*"))


def test_nan_is_left_out_and_infinity_is_null_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    log = Log(tmp_path, 1)
    log(1, force=True, AP_small=math.nan, norm=math.inf, AP=3.0)
    log.close()
    assert lines(tmp_path) == [{"step": 1, "norm": None, "AP": 3.0}]
    assert "nan" not in capsys.readouterr().out


def test_the_curves_are_an_image(tmp_path: Path) -> None:
    log = train(tmp_path, 0, 10)
    log(10, force=True, AP=1.0)
    log.close()
    with Image.open(tmp_path / "curves.png") as image:
        image.load()
        assert image.format == "PNG"
        assert image.width >= 600
        assert len(set(image.convert("L").tobytes())) > 3, "not blank"


def test_values_that_never_change_are_left_out_of_the_curves(tmp_path: Path) -> None:
    heights = []
    for changing in ("abc", "abcd"):
        lines_ = [{"step": s, "flat": 1.0, **dict.fromkeys(changing, 0.5 * s)} for s in (1, 2)]
        log_module.draw(lines_, tmp_path / "x.png")
        with Image.open(tmp_path / "x.png") as image:
            heights.append(image.height)
    assert heights == [300, 600]  # three plots in a row


def test_a_run_that_logged_nothing_has_a_figure_too(tmp_path: Path) -> None:
    Log(tmp_path, 10).close()
    with Image.open(tmp_path / "curves.png") as image:
        image.verify()
        assert min(image.size) > 0


def test_run_json_tells_how_to_repeat_the_run(tmp_path: Path) -> None:
    log = train(tmp_path, 0, 2)
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["command"]
    assert facts["cpu"]
    assert facts["world_size"] == 1
    assert facts["commit"] is None or len(facts["commit"].rstrip("+")) == 40
    assert facts["seconds"] is None, "still under way"
    log.close()
    log.close()
    assert json.loads((tmp_path / "run.json").read_text())["seconds"] >= 0


def test_time_adds_up_over_interruptions(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "seconds": 1000.0, "loss": 1.0}\n')
    train(tmp_path, 4, 10).close()
    assert [line["seconds"] >= 1000 for line in read(tmp_path)] == [True] * 4
    assert json.loads((tmp_path / "run.json").read_text())["seconds"] >= 1000


def test_without_a_terminal_each_interval_is_a_plain_line(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train(tmp_path, 0, 4).close()
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith("step 2/10  loss 1.5  lr 0.2  (")
    assert len(out.splitlines()) == 2
    assert err == ""


def test_a_full_disk_is_told_once_and_the_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    train(tmp_path, 0, 10).close()
    out, err = capsys.readouterr()
    assert err.count("WARNING") == 1
    assert "No space left on device" in err
    assert len(out.splitlines()) == 5, "the console still shows all"


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_folder_that_is_removed_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    log = train(tmp_path / "run", 0, 4)
    shutil.rmtree(tmp_path / "run")
    for step in range(5, 11):
        log(step, loss=torch.tensor(1.0))
    log.close()
    assert capsys.readouterr().err.splitlines() == [
        f"WARNING: the log in {tmp_path}/run cannot be written (No such file or directory); the "
        "training goes on without it."
    ]


def test_a_resumed_run_keeps_its_command_and_its_start(tmp_path: Path) -> None:
    first = {"command": ["train.py", "lr=1"], "start": "2026-01-01T00:00:00+0000"}
    for start, kept in ((10, True), (0, False)):
        (tmp_path / "run.json").write_text(json.dumps(first))
        train(tmp_path, start, 10).close()
        run = json.loads((tmp_path / "run.json").read_text())
        assert [run[key] == value for key, value in first.items()] == [kept, kept]


def test_an_interval_below_one_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every=0"):
        Log(tmp_path, 10, every=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_step_part_and_images(value: float) -> None:
    losses = {"box": torch.tensor(1.0), "classification": torch.tensor(value)}
    require_finite({"box": torch.tensor(1.0)}, 7, ["a.jpg"])
    require_finite({}, 7, [])
    with pytest.raises(Diverged) as stop:
        require_finite(losses, 7, ["a.jpg", "b.jpg"])
    assert (stop.value.step, stop.value.part) == (7, "classification")
    assert stop.value.files == ["a.jpg", "b.jpg"]
    assert str(stop.value).startswith("the classification loss is not finite in step 7 on rank 0")
    assert str(stop.value).endswith("whose images were: a.jpg, b.jpg.")
    assert isinstance(stop.value, FloatingPointError)


def test_drawing_does_not_touch_the_callers_matplotlib(tmp_path: Path) -> None:
    import matplotlib

    before = matplotlib.get_backend(auto_select=False)
    log_module.draw([{"step": 1, "a": 1.0}], tmp_path / "x.png")
    assert matplotlib.get_backend(auto_select=False) == before
