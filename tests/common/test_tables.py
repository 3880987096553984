"""The tables against a stand-in for train.py: a real process that writes what train.py writes."""

import csv
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from common.tables import Beside, Gap, Near, Row, Table, main
from common.tables.claims import mean_std
from common.tables.markdown import markdown
from common.tables.plan import Request, compose_rows, plan
from common.tables.runs import duration, read_result

REPOSITORY = Path(__file__).resolve().parents[2]

# AP = 30 + 2 gamma - 100 |lr - 0.02| + seed; it notes each start beside itself in calls.txt.
TRAIN = """
import json, os, pathlib, signal, sys, time
options = dict(word.split("=", 1) for word in sys.argv[1:])
here, folder = pathlib.Path(__file__).parent, pathlib.Path(options["hydra.run.dir"].strip("'"))
machine = [os.environ.get("CUDA_VISIBLE_DEVICES"), "OMP=" + os.environ["OMP_NUM_THREADS"]]
with (here / "calls.txt").open("a") as file:
    file.write(json.dumps(sys.argv[1:] + machine) + "\\n")
checkpoint = folder / "checkpoint.txt"
start = int(checkpoint.read_text()) if checkpoint.exists() else 0
print("starting at step", start)
gamma, lr = float(options.get("gamma", 0)), float(options.get("lr", 0.02))
mode = options.get("mode", "")
if mode == "fail" and not (here / "repaired").exists():
    raise SystemExit("data.root: no such folder")
if mode == "preempted" and start == 0:
    checkpoint.write_text("5")
    raise SystemExit(75)
if mode == "slow" and start == 0:
    def stop(*_):
        checkpoint.write_text("7")
        raise SystemExit(75)
    signal.signal(signal.SIGTERM, stop)
    (folder / "started").touch()
    time.sleep(60)
seed = int(options["seed"])
ap = 30 + 2 * gamma - 100 * abs(lr - 0.02) + seed
lost = mode == "diverge" or mode == "diverge_late" and seed == 1 or lr > 0.05
result = {"metrics": {"AP": ap, "AP50": ap + 10}, "seconds": 75.0, "steps": 10, "device": "cpu",
          "diverged": {"step": 12, "part": "classification"} if lost else None, "start": start}
(folder / "run.json").write_text(json.dumps({"cpu": "Abacus 3000", "device": "cpu"}))
(folder / "result.json").write_text(json.dumps(result))
"""


class Bench:
    """A folder with the stand-in, in which tables.py is used."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys = folder, capsys
        self.script = folder / "train.py"
        self.script.write_text(TRAIN)

    def __call__(self, tables, words, code=0):
        tables = tables if isinstance(tables, list) else [tables]
        self.capsys.readouterr()
        if code:
            with pytest.raises(SystemExit) as stop:
                main(tables, script=self.script, words=words.split())
            assert stop.value.code == code
        else:
            main(tables, script=self.script, words=words.split())
        self.out, self.err = self.capsys.readouterr()
        return self.out

    def calls(self):
        path = self.folder / "calls.txt"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def cells(self, row):
        line = next(line for line in self.out.splitlines() if line.startswith(f"| {row} "))
        head = next(line for line in self.out.splitlines() if line.startswith("| table"))
        split = [[cell.strip() for cell in text.strip("| ").split(" | ")] for text in (head, line)]
        return dict(zip(*split, strict=True))

    def below(self, row=""):
        """What stands below the table of a row, or of all rows in common."""
        start = f"- {row}" if row else r"\d.* seeds?\b.*\."
        return next(line for line in self.out.splitlines() if re.match(start, line))


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return Bench(tmp_path, capsys)


def table(rows, name="table1", **more):
    options = {"columns": ("AP", "AP50"), "scales": {"mini": ["steps=10"], "paper": []}} | more
    return Table(name, "A table", rows=rows, **options)


TWO = [Row("low", ["gamma=0"], AP=31.1, AP50=49.4), Row("high", ["gamma=2"], AP=34.0)]


def test_missing_runs_are_trained_once_and_shown_beside_the_paper(bench):
    bench(table(TWO), "table1 seeds=2")
    assert bench.cells("high") == {
        "table1": "high", "AP": "34.0 → 34.5 ± 0.7", "AP50": "– → 44.5 ± 0.7",
    }  # fmt: skip
    assert "\npaper → ours, mean ± std over 2 seeds.\n" in bench.out
    everywhere = "2 seeds each; Abacus 3000, 1 min 15 s a run; every run with `steps=10`."
    assert bench.below() == everywhere
    assert bench.below("high") == "- high: `gamma=2`"
    assert len(bench.calls()) == 4
    assert [call[2] for call in bench.calls()] == ["seed=0"] * 2 + ["seed=1"] * 2
    first = bench.out[bench.out.index("**table1") :]
    bench(table(TWO), "table1 seeds=2")
    assert bench.out[bench.out.index("**table1") :] == first
    bench(table(TWO), "table1 seeds=3")
    assert len(bench.calls()) == 6


def test_a_single_seed_has_no_spread_and_what_was_not_measured_is_a_dash(bench):
    bench(table(TWO), "table1 run=false")
    assert bench.cells("low")["AP"] == "31.1 → –"
    assert bench.cells("high")["AP50"] == "–"
    assert bench.below() == "0 of 1 seed each; every run with `steps=10`."
    assert not bench.calls()
    assert not list(bench.folder.rglob("*.png"))
    bench(table(TWO), "table1")
    assert bench.cells("low")["AP"] == "31.1 → 30.0"
    assert "\npaper → ours.\n" in bench.out
    bench(table(TWO), "table1 run=false seeds=3")
    assert bench.below().startswith("1 of 3 seeds each; ")
    bench(table(TWO), "table1 rows=high seeds=3")
    assert bench.below("low") == "- low (1 of 3 seeds): `gamma=0`"
    assert bench.below("high") == "- high (3 seeds): `gamma=2`"


def test_mean_and_sample_deviation_by_hand():
    assert mean_std([1.0, 2.0, 4.5]) == "2.5 ± 1.8"  # squares 2.25 + 0.25 + 4 over n - 1 = 2
    assert mean_std([33.06]) == "33.1"
    assert mean_std([0.5, 0.5], 3) == "0.500 ± 0.000"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "–"), (59.4, "59 s"), (59.6, "1 min 00 s"), (312, "5 min 12 s"), (7501, "2 h 05 min")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_a_row_of_two_tables_is_trained_once_whatever_the_order_of_its_overrides(bench):
    one = table([Row("a", ["gamma=2", "alpha=0.25"])], name="one")
    two = table([Row("b", ["alpha=0.25", "gamma=2"]), Row("c", ["gamma=1"])], name="two")
    bench([one, two], "one two")
    assert len(bench.calls()) == 2
    assert bench.out.index("**one") < bench.out.index("**two")


def test_the_folder_is_readable_and_depends_on_every_override_but_the_neutral(bench):
    bench(table(TWO[:1]), "table1 data.root=/data/a workers=2 run=false")
    bench(table(TWO[:1]), "table1 data.root=/data/b")
    bench(table(TWO[:1]), "table1 workers=1")
    assert len(bench.calls()) == 1
    assert "data.root=/data/b" in bench.calls()[0]
    bench(table(TWO[:1]), "table1 alpha=0.5")
    assert len(bench.calls()) == 2
    folders = sorted(path.name for path in Path("outputs/tables/mini").iterdir() if path.is_dir())
    assert [re.sub("-[0-9a-f]{8}$", "", name) for name in folders] == [
        "alpha=0.5,gamma=0,steps=10",
        "gamma=0,steps=10",
    ]
    assert Path("outputs/tables/mini/table1,alpha=0.5.md").exists()  # no mix-up with table1.md


def test_later_overrides_win_and_appear_once(bench):
    bench(table([Row("a", ["gamma=1"])]), "table1 steps=3")
    assert bench.calls()[0][:2] == ["steps=3", "gamma=1"]


def test_a_table_may_run_another_script_with_a_configuration_of_its_name(bench):
    (bench.folder / "tune.py").write_text(TRAIN)
    bench.script.unlink()
    tuned = table(TWO, script="tune.py")
    assert (table(TWO).config, tuned.config) == ("config", "tune")
    bench(tuned, "table1")
    assert bench.cells("high")["AP"] == "34.0 → 34.0"


def test_composed_rows_are_the_overrides_of_every_scale():
    assert list(compose_rows([table(TWO)])) == [
        ("table1 mini: low, seed 0", ["steps=10", "gamma=0"]),
        ("table1 mini: high, seed 0", ["steps=10", "gamma=2"]),
        ("table1 paper: low, seed 0", ["gamma=0"]),
        ("table1 paper: high, seed 0", ["gamma=2"]),
    ]


def test_a_diverged_run_is_shown_and_counts_as_zero(bench):
    rows = [Row("fine", []), Row("lost", ["mode=diverge"]), Row("half", ["mode=diverge_late"])]
    claims = [
        Gap(better="fine", than=["lost"], column="AP", at_least=2),
        Gap(better="half", than=["fine"], column="AP"),
    ]
    bench(table(rows, claims=claims), "table1 seeds=3")
    assert bench.cells("lost")["AP"] == "diverged"
    assert bench.cells("half")["AP"] == "31.0 ± 1.4 (1 of 3 diverged)"
    assert (
        '- held: "fine" at least 2 AP ahead of "lost"; ours: 31.0 ± 1.0 ahead of "lost"'
        in bench.out
    )
    assert '- did not hold: "half" at least 0 AP ahead of "fine"; ours: -10.3 ± 17.9' in bench.out
    assert Path("outputs/tables/mini/table1.png").exists()
    with Path("outputs/tables/mini/table1.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["row"], line["seed"]) for line in lines[:2]] == [("fine", "0"), ("fine", "1")]
    assert lines[3]["status"] == "diverged at step 12 (classification)"


def test_a_claim_takes_the_best_rival_seed_by_seed_and_waits_for_all_rows(bench):
    rows = [Row("one", ["gamma=1"]), *TWO]
    gap = Gap(better="high", than=["low", "one"], column="AP", at_least=2.0, paper=2.9)
    claimed = table(rows, claims=[gap])
    bench(claimed, "table1 run=false")
    assert '- not measured: "high" at least 2 AP ahead of "low" and "one" (paper: 2.9)' in bench.out
    assert 'lacking "high", "low", "one"' in bench.out
    bench(claimed, "table1 seeds=2")
    assert (
        '- held: "high" at least 2 AP ahead of "low" and "one" (paper: 2.9); '
        'ours: 2.0 ± 0.0 ahead of "one", n = 2' in bench.out
    )


def test_a_claim_of_nearness_holds_within_its_margin_or_one_std(bench):
    rows = [Row("one", ["gamma=1"]), *TWO]
    claims = [
        Near(row="one", to="high", column="AP", within=2.0, paper=-0.3),
        Near(row="one", to="high", column="AP", within=1.0),
    ]
    bench(table(rows, claims=claims), "table1 seeds=2")
    assert '- held: "one" within 2 AP or one std of "high" (paper: -0.3); ours: -2.0' in bench.out
    assert '- did not hold: "one" within 1 AP or one std of "high"; ours: -2.0 ± 0.0' in bench.out


def test_a_claim_may_compare_two_columns_of_a_row(bench):
    claims = [
        Beside(row="low", column="AP50", other="AP", low=10, high=10, paper=18.3),
        Beside(row="high", column="AP", other="AP50", low=0),
        Beside(row="high", column="AP", other="AP50", high=0.5),
    ]
    bench(table(TWO, claims=claims), "table1 run=false")
    assert '- not measured: "low": AP50 less AP is 10 (paper: 18.3); lacking' in bench.out
    bench(table(TWO, claims=claims), "table1 seeds=2")
    assert '- held: "low": AP50 less AP is 10 (paper: 18.3); ours: 10.0 ± 0.0, n = 2' in bench.out
    assert '- did not hold: "high": AP less AP50 at least 0; ours: -10.0' in bench.out
    assert '- held: "high": AP less AP50 at most 0.5' in bench.out


def test_a_failing_row_is_reported_with_its_last_words_and_the_others_go_on(bench):
    rows = [Row("broken", ["mode=fail"]), Row("too", ["mode=fail", "gamma=1"]), *TWO]
    bench(table(rows), "table1", code=1)
    assert bench.cells("broken")["AP"] == "–"
    assert bench.cells("high")["AP"] == "34.0 → 34.0"
    assert "2 runs failed" in bench.err
    assert "broken, seed 0: exit code 1" in bench.err
    assert bench.err.count("data.root: no such folder") == 1  # said once for both
    (bench.folder / "repaired").touch()
    bench(table(rows), "table1")
    assert bench.cells("broken")["AP"] == "– → 30.0"
    assert len(bench.calls()) == 6


def test_a_preempted_run_is_not_finished_and_resumes_in_its_folder(bench):
    rows = [Row("a", ["mode=preempted"]), *TWO]
    bench(table(rows), "table1", code=75)
    assert bench.cells("a")["AP"] == "–"
    assert "1 run pre-empted" in bench.out
    bench(table(rows), "table1")
    assert len(bench.calls()) == 4
    folder = Path(next(word for word in bench.calls()[0] if "run.dir" in word).split("'")[1])
    assert read_result(folder)["start"] == 5
    assert "starting at step 0\nstarting at step 5" in (folder / "console.txt").read_text()


def test_a_result_that_is_cut_short_is_no_result(bench):
    bench(table(TWO[:1]), "table1")
    path = next(bench.folder.rglob("result.json"))
    path.write_text(path.read_text()[:20])
    bench(table(TWO[:1]), "table1")
    assert len(bench.calls()) == 2


def test_a_run_without_a_result_has_failed_even_with_exit_code_0(bench):
    bench.script.write_text("print('nothing to do')")
    bench(table(TWO[:1]), "table1", code=1)
    assert "it ended without a result.json" in bench.err
    assert "nothing to do" in bench.err


def test_a_run_that_was_killed_says_so(bench):
    bench.script.write_text("import os; os.kill(os.getpid(), 9)")
    bench(table(TWO[:1]), "table1", code=1)
    assert "low, seed 0: killed by signal 9" in bench.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_children_cleanly_and_the_same_command_goes_on(bench, number):
    project = bench.folder / "tables.py"
    project.write_text(
        "from common.tables import Row, Table, main\n"
        "rows = [Row('a', ['mode=slow']), Row('b', ['gamma=1', 'mode=slow'])]\n"
        "tables = [Table('t', 'T', rows=rows, columns=['AP'], scales={'mini': []})]\n"
        "if __name__ == '__main__':\n"
        "    main(tables, script='train.py')\n"
    )
    command = [sys.executable, str(project), "t", "jobs=2"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, and so the tests in them, may be deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 240
    while len(list(bench.folder.rglob("started"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    errors = process.communicate(timeout=240)[1]
    assert process.returncode == 128 + number
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    assert len(list(bench.folder.rglob("checkpoint.txt"))) == 2
    tables = runpy.run_path(str(project))["tables"]
    assert bench(tables, "t").count("\nfinished ") == 2
    assert {json.loads(p.read_text())["start"] for p in bench.folder.rglob("result.json")} == {7}


def test_runs_side_by_side_share_the_cores(bench):
    cores = len(os.sched_getaffinity(0))
    bench(table(TWO), "table1")
    assert bench.calls()[0][-1] == f"OMP={cores}"
    bench(table(TWO), "table1 seeds=2 jobs=2")
    assert bench.calls()[-1][-1] == f"OMP={max(1, cores // 2)}"


def test_runs_side_by_side_share_the_gpus(bench, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    bench(table(TWO), "table1")
    assert {call[-2] for call in bench.calls()} == {"4,5,6"}
    bench(table(TWO), "table1 seeds=2 jobs=2")
    assert {call[-2] for call in bench.calls()[2:]} == {"4,6", "5"}
    bench(table(TWO), "table1 seeds=4 jobs=4")
    assert {call[-2] for call in bench.calls()[4:]} == {"4", "5", "6"}


def test_a_resumed_run_shows_the_time_of_all_its_parts(bench):
    bench(table(TWO[:1]), "table1")
    facts = next(bench.folder.rglob("run.json"))
    facts.write_text(json.dumps({"cpu": "Abacus", "device": "cpu", "seconds": 7501.0}))
    bench(table(TWO[:1]), "table1 run=false")
    assert "; Abacus, 2 h 05 min a run; " in bench.below()
    facts.unlink()
    bench(table(TWO[:1]), "table1 run=false")
    assert "; cpu, 1 min 15 s a run; " in bench.below()


def test_each_start_and_end_is_told_with_the_time_left(bench):
    bench(table(TWO), "table1")
    lines = bench.out.splitlines()
    assert lines[0] == "0 of 2 runs finished before."
    assert lines[1].startswith("started  low, seed 0: outputs/tables/mini/gamma=0,steps=10-")
    pattern = (
        r"finished low, seed 0: AP 30, AP50 40, 1 min 15 s \[1/2, \d s so far, about \d s left\]"
    )
    assert re.fullmatch(pattern, lines[2])


def test_markdown_csv_and_chart_are_written(bench):
    columns = ("AP", "AP50", "AP_small")  # the last is neither in the paper nor in the data
    noted = table(TWO, columns=columns, note="Reduced: 10 steps.", claims=[])
    bench(noted, "table1 seeds=2")
    stem = Path("outputs/tables/mini/table1")
    text = stem.with_suffix(".md").read_text()
    assert text.rstrip() == bench.out[bench.out.index("**table1") :].rstrip()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1  # flush
    assert lines[1].split("|")[2].strip().endswith("-:")
    assert "\nReduced: 10 steps.\n" in text
    assert "AP_small" not in text
    with stem.with_suffix(".csv").open() as file:
        assert [line["AP"] for line in csv.DictReader(file)] == ["30.0", "31.0", "34.0", "35.0"]
    with Image.open(stem.with_suffix(".png")) as image:
        image.load()
        assert image.format == "PNG"
    assert not list(Path("outputs/tables/mini").glob(".*"))


def test_recalled_figures_are_marked(bench):
    bench(table([Row("a", [], AP=28.0, AP50=1.0, memory={"AP"})]), "table1 run=false")
    assert bench.cells("a")["AP"] == "28.0† → –"
    assert bench.cells("a")["AP50"] == "1.0 → –"
    assert "; † recalled, not checked against the paper.\n" in bench.out
    bench(table(TWO), "table1 run=false")
    assert "recalled" not in bench.out


def test_a_wide_table_is_printed_in_blocks_of_columns(bench):
    names = [f"a_metric_with_a_long_name_{i}" for i in range(5)]
    rows = [Row(f"row {i}", [f"gamma={i}"], **dict.fromkeys(names, 1.0)) for i in range(3)]
    bench(table(rows, columns=names), "table1 run=false")
    heads = [line for line in bench.out.splitlines() if line.startswith("| table1")]
    assert [line.count("long_name") for line in heads] == [3, 2]
    assert bench.out.count("\n| row 2 ") == 2
    assert max(map(len, bench.out[: bench.out.index("\npaper →")].splitlines())) <= 110


def test_the_metrics_of_one_or_two_rows_stand_below_each_other(bench):
    bench(table(TWO, columns=("AP", "AP50", "AP75")), "table1 run=false")
    assert bench.cells("AP") == {"table1": "AP", "low": "31.1 → –", "high": "34.0 → –"}
    bench(table(TWO, columns=("AP", "AP50", "AP75")), "table1 seeds=2")
    assert Path("outputs/tables/mini/table1.png").exists()


def test_rows_of_different_machines_say_theirs(bench):
    bench(table(TWO), "table1")
    facts = next(path for path in bench.folder.rglob("run.json") if "gamma=2" in str(path))
    facts.write_text(json.dumps({"cpu": "Slide rule", "device": "cpu", "seconds": 7501.0}))
    bench(table(TWO), "table1 run=false")
    assert bench.below("low") == "- low (Abacus 3000, 1 min 15 s): `gamma=0`"
    assert bench.below("high") == "- high (Slide rule, 2 h 05 min): `gamma=2`"


def test_a_markdown_table_is_flush_and_escapes_its_bars():
    assert markdown(["", "AP"], [["a|b", "3.0"], ["c", "12.0"]]).splitlines() == [
        "|      |   AP |",
        "| :--- | ---: |",
        "| a\\|b |  3.0 |",
        "| c    | 12.0 |",
    ]


def test_without_words_the_tables_are_listed(bench):
    listed = bench(table(TWO), "")
    assert listed.startswith("table1       A table (2 rows, scale=mini|paper)\n")
    assert listed == bench(table(TWO), "--help")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("tabel1", "'tabel1' is unknown; did you mean table1?"),
        ("table1 scal=mini", "scal is unknown; did you mean scale?"),
        ("table1 seed=3", "seed is unknown; did you mean seeds?"),
        ("table1 -- seed=3", "seed=3: tables.py sets seed itself"),
        ("table1 scale=mni", "scale: 'mni' is unknown; did you mean mini?"),
        ("table1 run=flase", "run: 'flase' is unknown; did you mean false?"),
        ("table1 seeds=0", "seeds=0: a whole number from 1 up is needed"),
        ("table1 seeds=3-1", "seeds=3-1: the first is above the last"),
        ("table1 jobs=many", "jobs=many: a whole number from 1 up is needed"),
        ("table1 gamma=3", "gamma=3: table1 itself sets gamma, in low"),
        ("scale=mini", "Which table? Name one of table1."),
    ],
)
def test_a_slip_on_the_command_line_stops_with_one_sentence(bench, words, sentence):
    bench(table(TWO), words, code=2)
    assert bench.err.startswith(sentence)
    assert len(bench.err.splitlines()) == 1
    assert not bench.calls()


def test_behind_two_dashes_every_key_belongs_to_the_training(bench):
    bench(table(TWO[:1]), "table1 -- scale=2")
    assert "scale=2" in bench.calls()[0]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([Row("a", [], AP55=1.0)], {}, "'AP55' is unknown; did you mean AP50?"),
        ([Row("a", []), Row("a", [])], {}, "rows need different names"),
        (TWO, {"claims": [Gap(better="hihg", than=["low"], column="AP")]}, "did you mean high?"),
        (TWO, {"claims": [Gap(better="high", than=[], column="AP")]}, "rows to compare with"),
        (TWO, {"claims": [Beside(row="low", column="AP", other="AP5")]}, "did you mean AP50?"),
        ([Row("a", [], only="mimi")], {}, "did you mean mini?"),
    ],
)
def test_a_slip_in_a_declaration_is_named(rows, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        table(rows, **options)


def test_seeds_may_begin_elsewhere(bench):
    bench(table(TWO), "table1 rows=high seeds=1")
    bench(table(TWO), "table1 rows=high seeds=1-2")
    assert [call[2] for call in bench.calls()] == ["seed=0", "seed=1", "seed=2"]
    assert ", mean ± std over the seeds 1 to 2." in bench.out
    assert bench.below("high") == "- high (2 seeds): `gamma=2`"


def test_rows_runs_only_what_it_names_and_prints_all(bench):
    bench(table(TWO), "table1 rows=hig")
    assert len(bench.calls()) == 1
    assert bench.cells("low")["AP"] == "31.1 → –"
    bench(table(TWO), "table1 rows=nothing", code=2)


def test_a_row_of_one_scale_and_the_claims_about_it_are_absent_in_the_others(bench):
    rows = [*TWO, Row("tiny", ["gamma=1"], only="mini")]
    claims = [Gap(better=name, than=["low"], column="AP") for name in ("high", "tiny")]
    bench(table(rows, claims=claims), "table1 scale=paper")
    assert len(bench.calls()) == 2
    assert "tiny" not in bench.out
    assert bench.out.count("held") == 1
    bench(table(rows, claims=claims), "table1 scale=mini")
    assert bench.cells("tiny")["AP50"] != "–"
    assert bench.out.count("held") == 2
    labels = [label for label, _ in compose_rows([table(rows)])]
    assert [label for label in labels if "tiny" in label] == ["table1 mini: tiny, seed 0"]


def test_an_option_that_must_be_given_is_told_before_the_first_run(bench):
    (bench.folder / "conf").mkdir()
    config = "gamma: 0\nsteps: 10\nseed: 0\ndata:\n  name: coco\n  root: ???\n"
    (bench.folder / "conf" / "config.yaml").write_text(config)
    bench(table(TWO), "table1", code=2)
    assert bench.err == "data.root is not set: give data.root= behind the table's name.\n"
    assert not bench.calls()
    assert "– " in bench(table(TWO), "table1 run=false")  # to print needs nothing
    bench(table(TWO), "table1 data.root=here")
    assert len(bench.calls()) == 2


def test_a_changed_default_makes_another_run(tmp_path):
    conf = tmp_path / "conf"
    conf.mkdir()
    request = Request([table(TWO)], "paper")

    def folders(text: str) -> set[Path]:
        (conf / "config.yaml").write_text(text)
        rows = plan(table(TWO), request, conf=conf)
        return {run.folder for runs in rows for run in runs}

    first = folders("gamma: 1\nlr: 0.1\nprocesses: 0\n")
    assert folders("gamma: 1\nlr: 0.1\nprocesses: 8\n") == first  # neutral
    assert not folders("gamma: 1\nlr: 0.2\nprocesses: 0\n") & first
