"""The commands of hashtag_pretrain as a user types them."""

import json
from pathlib import Path

import pytest

from tests.commands import Commands
from tests.train_scripts import TrainScript, lines

SMALL = [
    "images=16",
    "batch_size=8",
    "per_gpu=8",
    "network.width=8",
    "network.memory_format=contiguous",
    "data.builtin={images: 320, per_shard: 100, target_train: 2, target_test: 2}",  # of the smoke
    "data.held_out=0.1",
    "probe={decays: [0.001], splits: 1, held_out: 0.5}",
]


class TestHashtagPretrain(TrainScript):
    project = "hashtag_pretrain"
    figure = "predictions.png"
    metrics = ("hit1", "hit5", "probe", "probe5")
    typos = (("sampling.rul=natural", "sampling.rule"), ("vocabulary=x.json", "data.vocabulary"))
    missing = ("data=shards",)
    batch = ("batch_size", 16, 8)

    def test_the_run_says_what_it_trains_on_and_scores_each_tag(self, smoke):
        folder = smoke(self.project)
        rows = (folder / "tags.csv").read_text().splitlines()
        assert rows[0] == "tag,images,frequency,factor,seen,AP"
        assert len(rows) == 37
        classes = (folder / "probe.csv").read_text().splitlines()
        assert len(classes) == 37
        assert (folder / "tags.png").exists()
        logged = [line for line in lines(folder) if "lr" in line]
        rates = [line["lr"] / logged[0]["lr"] for line in logged]
        assert rates == pytest.approx([1 / 2**k for k in range(6)], rel=1e-3)

    def test_a_target_that_is_missing_is_one_sentence(self, commands, tmp_path):
        done = self.run(commands, tmp_path, "target={name: folder, root: /no/such/folder}")
        assert done.returncode == 2
        assert "target.root=/no/such/folder" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "metrics.jsonl").exists()


def test_the_demo_compares_no_pretraining_natural_and_square_root_sampling(
    commands: Commands, tmp_path: Path
) -> None:
    done = commands.run(
        "hashtag_pretrain", *SMALL, f"hydra.run.dir={tmp_path / 'run'}", forking=True
    )
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "run" / "versus.md").read_text()
    rows = ("| no pretraining ", "| natural sampling ", "| square root ")
    assert [row in table for row in rows] == [True] * 3
    assert "probe" in table
    for name in ("versus.png", "sampling.png"):
        assert (tmp_path / "run" / name).exists()
    steps = {
        json.loads(path.read_text())["steps"] for path in (tmp_path / "run").glob("*/result.json")
    }
    assert steps == {0, 2}


@pytest.mark.slow
def test_a_table_runs_its_rows_and_prints_them(commands, tmp_path):
    words = ["fig4", "scale=mini", "rows=natural", *SMALL]
    script = Path(__file__).resolve().parents[2] / "hashtag_pretrain" / "tables.py"
    done = commands.run(tmp_path, *words, script=str(script), forking=True)
    assert done.returncode == 0, done.stderr
    assert "| natural" in done.stdout


@pytest.mark.slow
def test_real_photos_with_the_words_of_their_captions_as_tags_are_trained_on(
    shared_data, commands, tmp_path
):
    coco = shared_data / "coco_mini"
    for words in (
        ["shards", "source=coco", f"root={coco}", f"out={tmp_path / 'shards'}", "processes=0"],
        [
            "vocabulary",
            f"shards={tmp_path / 'shards'}",
            "rule=none",
            f"out={tmp_path / 'vocabulary.json'}",
        ],
    ):
        done = commands.run("hashtag_pretrain", *words, script="prepare.py")
        assert done.returncode == 0, done.stderr
    words = ["experiment=smoke", "data=shards", f"data.root={tmp_path}", "data.held_out=0.2"]
    words += ["data.vocabulary=vocabulary.json", "target.name=''", "protocols=[]", "images=16"]
    words += ["data.workers=0", "augment={size: 64, resize: 64, crop: random}"]
    done = commands.run("hashtag_pretrain", *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 1
