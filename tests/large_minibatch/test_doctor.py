"""The doctor on learning rates, sampling and evaluation, and its command."""

import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import LinearLR, MultiStepLR, SequentialLR
from torch.utils.data import DistributedSampler

from common.config import run as run_command
from large_minibatch import doctor
from large_minibatch.checks.subject import FileBuild, LoopError
from large_minibatch.doctor import Finding, Subject, examine
from large_minibatch.recipe import Schedule, reference_lr

STEPS = 10  # per epoch
RATES = ["linear scaling rule", "gradual warm-up", "schedule from the start"]
SHUFFLES = ["new order every epoch", "one shuffle for all workers", "each image once an epoch"]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for one another cost more than such small tensors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rates(lr: Callable[[int, int], float], **parts) -> Callable[[], Subject]:
    """`build` of a loop whose rate is `lr(epoch, iteration)`, by default of kn = 8192."""

    def build() -> Subject:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)

        def before_step(epoch: int, iteration: int) -> None:
            optimizer.param_groups[0]["lr"] = lr(epoch, iteration)

        subject = Subject(
            optimizer=optimizer, batch_size=8192, steps_per_epoch=STEPS, before_step=before_step
        )
        return replace(subject, **parts)

    return build


def planned(epoch: int, iteration: int, **changes) -> float:
    """The paper's rate for kn = 8192; `changes` of the schedule."""
    return Schedule(**({"peak": 3.2, "steps_per_epoch": STEPS} | changes)).lr(
        epoch * STEPS + iteration
    )


def found(build: Callable[..., Subject], only: list[str]) -> dict[str, str]:
    """Sentences of the findings by check; all others must be ok."""
    findings = examine(build, only=only)
    assert {f.status for f in findings} <= {"ok", "found"}, findings
    return {f.check: f.text for f in findings if f.status == "found"}


def test_the_papers_rates_are_clean():
    assert not found(rates(planned), RATES)


def test_a_torch_schedule_per_iteration_is_clean():
    def build():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 3.2)
        warm = LinearLR(optimizer, start_factor=1 / 32, total_iters=5 * STEPS)
        drops = MultiStepLR(optimizer, [25 * STEPS, 55 * STEPS, 75 * STEPS])  # from the switch
        both = SequentialLR(optimizer, [warm, drops], [5 * STEPS])
        return Subject(
            optimizer=optimizer, batch_size=8192, steps_per_epoch=STEPS, after_step=both.step
        )

    assert not found(build, RATES)


def test_a_small_batch_needs_no_warm_up():
    assert not found(rates(lambda e, i: planned(e, i, peak=0.05), batch_size=128), RATES)
    text = found(rates(lambda e, i: min(0.1, 0.01 * (e + 1)), batch_size=256), RATES[1:2])
    assert "a rate is 0.01, 0.1 expected" in text["gradual warm-up"]


def test_cosine_after_the_warm_up_is_clean_if_it_is_meant():
    build = rates(lambda e, i: planned(e, i, kind="cosine"), kind="cosine")
    assert not found(build, RATES)
    late = rates(lambda e, i: planned(e, i, kind="cosine", epochs=95), kind="cosine")
    assert list(found(late, RATES)) == ["schedule from the start"]


@pytest.mark.parametrize(
    ("lr", "measured"),
    [
        (lambda e, i: planned(e, i, warmup="none"), "first rate is 3.2, 0.1 expected"),
        (lambda e, i: planned(e, i, warmup="constant"), "0.1 for 50 steps"),
        (lambda e, i: planned(e, 0), "changes 5 times in the warm-up, 50 expected"),
        (
            lambda e, i: planned(e, i, start=0.0125),
            "first rate is 0.0125, that of one GPU with 32 images, 0.1 expected",
        ),
        (
            lambda e, i: planned(0, e * STEPS + i + 1) if e < 5 else planned(e, i),
            "first rate is 0.162, 0.1 expected; the rate reaches 3.2 at step 49, 50 expected",
        ),
        (
            lambda e, i: planned(0, max(0, e * STEPS + i - 1)) if e < 6 else planned(e, i),
            "rate reaches 3.2 at step 51, 50 expected",
        ),
        (lambda e, i: planned(e, i, warmup_epochs=3), "3.2 at step 30, 50 expected"),
        (
            lambda e, i: 0.1 * 32 ** min(1, (e * STEPS + i) / 50) if e < 9 else planned(e, i),
            "has rate",  # exponential
        ),
    ],
)
def test_a_warm_up_that_is_not_the_papers_is_found(lr, measured):
    texts = found(rates(lr), RATES)
    assert list(texts) == ["gradual warm-up"]
    assert measured in texts["gradual warm-up"]


@pytest.mark.parametrize(
    ("changes", "measured"),
    [
        ({"milestones": (35, 65, 85)}, "35, 65, 85; 30, 60, 80 expected: counted from the end"),
        ({"milestones": (30, 60)}, "at epochs 30, 60; 30, 60, 80 expected"),
        ({"milestones": ()}, "at epochs none; 30, 60, 80 expected"),
        ({"factor": 0.2}, "by 0.2, 0.1 expected"),
        ({"kind": "cosine"}, "...; 30, 60, 80 expected"),
    ],
)
def test_milestones_not_counted_from_the_start_are_found(changes, measured):
    texts = found(rates(lambda e, i: planned(e, i, **changes)), RATES)
    assert list(texts) == ["schedule from the start"]
    assert measured in texts["schedule from the start"]


def test_a_rate_that_follows_the_root_of_the_batch_is_found():
    wrong = reference_lr(8192, rule="sqrt")
    text = found(rates(lambda e, i: planned(e, i, peak=wrong)), RATES)
    assert list(text) == ["linear scaling rule"]
    assert "0.5657 at kn = 8192 (3.2 expected)" in text["linear scaling rule"]


def test_a_rate_that_does_not_follow_the_batch_is_found_and_its_warm_up_not_passed():
    findings = examine(rates(lambda e, i: planned(e, i, peak=0.1)), only=RATES)
    assert [f.status for f in findings] == ["found", "not examined", "ok"]
    assert "0.1 at kn = 8192 (3.2 expected)" in findings[0].text


def test_a_build_that_takes_the_batch_size_is_examined_at_several():
    def build(rule, batch_size=256):
        optimizer = torch.optim.SGD([torch.zeros(1)], reference_lr(batch_size, rule=rule))
        return Subject(optimizer=optimizer, batch_size=batch_size)

    assert not found(lambda batch_size=256: build("linear", batch_size), RATES[:1])
    text = found(lambda batch_size=256: build("fixed", batch_size), RATES[:1])
    assert "0.1 at kn = 2048 (0.8 expected)" in text["linear scaling rule"]
    with pytest.raises(LoopError, match=r"batch_size=512\) returned batch_size=256"):
        examine(lambda batch_size=256: build("linear", 256), only=RATES[:1])
    unsized = examine(lambda: build("linear"), only=RATES[:1])[0]
    assert unsized.status == "not examined"


def sampler(*, epochs: bool = True, drop_last: bool = True, size: int = 1003):
    """`build` of a loop on torch's DistributedSampler."""

    def indices(rank, world, epoch):
        sampler = DistributedSampler(range(size), world, rank, drop_last=drop_last)
        if epochs:
            sampler.set_epoch(epoch)
        return sampler

    return lambda: Subject(indices=indices, examples=size)


def shuffled(values: list[int], number: int) -> list[int]:
    return random.Random(number).sample(values, len(values))


def test_torchs_sampler_with_set_epoch_and_drop_last_is_clean():
    assert not found(sampler(), SHUFFLES)


def test_a_forgotten_set_epoch_is_found():
    findings = {f.check: f for f in examine(sampler(epochs=False), only=SHUFFLES)}
    assert findings["new order every epoch"].status == "found"
    assert "agree in 100 %" in findings["new order every epoch"].text
    assert findings["one shuffle for all workers"].status == "not examined"
    assert findings["each image once an epoch"].status == "ok"


def test_padding_is_found_with_its_number():
    text = found(sampler(drop_last=False), SHUFFLES)
    assert list(text) == ["each image once an epoch"]
    assert "1 of 1003 reads are repeated, 0 expected: padding" in text["each image once an epoch"]
    even = found(sampler(drop_last=False, size=1000), SHUFFLES)  # 4 workers divide it, 3 do not
    assert "an epoch of 3 workers 2 of 1000" in even["each image once an epoch"]


def test_fixed_shards_are_found():
    def indices(rank, world, epoch):
        return shuffled(list(range(rank, 1000 // world * world, world)), epoch)

    text = found(lambda: Subject(indices=indices, examples=1000), SHUFFLES)
    assert list(text) == ["one shuffle for all workers"]
    assert "100 % of a worker's images" in text["one shuffle for all workers"]


def test_workers_that_draw_independently_are_found():
    def indices(rank, world, epoch):
        return shuffled(list(range(1000)), 1000 * rank + epoch)[: 1000 // world]

    text = found(lambda: Subject(indices=indices, examples=1000), SHUFFLES)
    assert list(text) == ["each image once an epoch"]
    assert "the workers draw by themselves" in text["each image once an epoch"]


def test_workers_that_all_read_everything_are_found():
    def indices(rank, world, epoch):
        return shuffled(list(range(1000)), epoch)

    text = found(lambda: Subject(indices=indices, examples=1000), SHUFFLES)
    assert list(text) == ["each image once an epoch"]
    assert "3000 of 1000" in text["each image once an epoch"]


def test_left_out_images_are_found_unless_they_are_less_than_a_batch():
    def indices(rank, world, epoch):
        return shuffled(list(range(1000)), epoch)[: 950 // world * world][rank::world]

    subject = Subject(indices=indices, examples=1000)
    text = found(lambda: subject, SHUFFLES[2:])
    assert "leaves out 52 of 1000 images, less than 8 expected" in text["each image once an epoch"]
    assert not found(lambda: replace(subject, batch_size=64), SHUFFLES[2:])


@pytest.mark.parametrize(
    ("indices", "measured"),
    [
        (lambda rank, world: range(rank, 1003, world), None),
        (lambda rank, world: range(rank, 1003 // world * world, world), "0 of 1003 .* 3 left out"),
        (
            lambda rank, world: DistributedSampler(range(1003), world, rank, shuffle=False),
            "1 of 1003 validation images are counted again and 0 left out",
        ),
        (lambda rank, world: range(1003), "3009 of 1003 .* again"),
    ],
)
def test_an_evaluation_that_counts_images_twice_or_not_is_found(indices, measured):
    build = lambda: Subject(eval_indices=indices, eval_examples=1003)  # noqa: E731
    text = found(build, ["evaluation, images once"])
    assert (measured is None) == (not text)
    if measured:
        assert re.search(measured, text["evaluation, images once"])


def right(logits, labels):
    return (logits.argmax(1) == labels).float()


@pytest.mark.parametrize("percent", [1, 100])
def test_a_mean_of_batch_means_is_found_and_one_over_images_is_clean(percent):
    def images(batches):
        return percent * torch.cat([right(*batch) for batch in batches]).mean()

    def means(batches):
        return percent * sum(right(*batch).mean() for batch in batches) / len(batches)

    check = ["evaluation, mean of images"]
    assert not found(lambda: Subject(score=images), check)
    assert not found(lambda: Subject(score=lambda batches: percent - images(batches)), check)
    text = found(lambda: Subject(score=means), check)
    assert f"score {percent * 0.5:.4g}, 80 %" in text["evaluation, mean of images"]


def test_an_empty_subject_is_not_examined_and_never_ok():
    assert {f.status for f in examine(Subject)} == {"not examined"}


def test_random_states_are_put_back():
    state, mine = torch.get_rng_state(), random.getstate()
    examine(lambda: replace(sampler()(), model=torch.nn.Linear(2, 2)))
    assert torch.equal(state, torch.get_rng_state())
    assert mine == random.getstate()


def test_unknown_checks_are_refused():
    with pytest.raises(ValueError, match="are no checks: choose from"):
        examine(Subject, only=["warm up"])


def test_the_table_has_each_check_the_remedies_of_findings_and_the_counts():
    findings = [
        Finding("a", "ok", "Fine.", "Sec. 1", "remedy of a"),
        Finding("b", "found", "Wrong.", "Sec. 2", "remedy of b"),
        Finding("c", "not examined", "No `step`.", "Sec. 3", "remedy of c"),
    ]
    text = doctor.table(findings)
    assert "Remedy: remedy of b" in text
    assert "remedy of a" not in text
    assert text.endswith("1 found, 0 advice, 1 ok, 1 not examined")
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "There is no file"),
        ("x = 1\n", "defines no function build"),
        ("def build(:\n", "raised SyntaxError"),
        ("import no_such_thing\ndef build(): pass\n", "raised ModuleNotFoundError: No module"),
        ("def build():\n    return 3\n", "returned int: let it return"),
        ("def build():\n    return [][1]\n", r"build\(\) raised IndexError: .* \(line 2 of "),
        ("def build(size):\n    return size\n", "raised TypeError: .*missing 1 required"),
        ("raise SystemExit(3)\n", "raised SystemExit: 3"),
    ],
)
def test_a_file_that_cannot_be_used_gets_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "my_loop.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(LoopError, match=sentence) as error:
        examine(FileBuild(path))
    assert "\n" not in str(error.value)


def test_an_error_in_a_part_names_the_part_file_and_line(tmp_path):
    path = tmp_path / "my_loop.py"
    path.write_text(
        "from large_minibatch.doctor import Subject\n"
        "def indices(rank, world, epoch):\n"
        "    return 1 / 0\n"
        "def build():\n"
        "    return Subject(indices=indices, examples=10)\n"
    )
    with pytest.raises(LoopError, match=r"indices\(\) raised ZeroDivisionError: .*line 3 of "):
        examine(FileBuild(path))


def command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = Path(doctor.__file__)
    return subprocess.run(
        [sys.executable, str(script), *words], capture_output=True, text=True, cwd=folder
    )


def test_the_command_tells_by_its_exit_code_and_finds_neighbours_of_the_file(tmp_path):
    tmp_path.joinpath("data.py").write_text("ORDER = [3, 1, 0, 2, 4, 5, 6, 7]\n")
    path = tmp_path / "my_loop.py"
    path.write_text(
        "from data import ORDER\n"
        "from large_minibatch.doctor import Subject\n"
        "def build():\n"
        "    return Subject(indices=lambda r, k, e: ORDER[r::k], examples=8)\n"
    )
    done = command(str(path), folder=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "found        new order every epoch" in done.stdout
    assert "Remedy: Shuffle, and call sampler.set_epoch" in done.stdout


def test_a_file_that_does_not_exist_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["doctor.py", str(tmp_path / "nothing.py")])
    with pytest.raises(SystemExit) as stop:
        run_command(doctor.main)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_without_an_argument_the_interface_and_a_complete_file_are_printed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["doctor.py"])
    doctor.main()
    printed = capsys.readouterr().out
    assert "python doctor.py my_loop.py" in printed
    assert "class Subject:" in printed
    assert "def build(batch_size: int = 1024) -> Subject:" in printed


def test_the_example_passes_every_check(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["doctor.py", "example"])
    doctor.main()
    assert "0 found, 0 advice, 18 ok, 0 not examined" in capsys.readouterr().out
