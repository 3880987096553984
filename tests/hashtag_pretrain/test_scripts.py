"""The commands of hashtag_pretrain as a user types them."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.commands import Commands
from tests.hashtag_pretrain.wordnets import find_whole
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
    words = ["fig3", "scale=mini", "rows=10%", *SMALL]
    script = Path(__file__).resolve().parents[2] / "hashtag_pretrain" / "tables.py"
    done = commands.run(tmp_path, *words, script=str(script), forking=True)
    assert done.returncode == 0, done.stderr
    assert "| 10% of the tags" in done.stdout


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


def do(commands: Commands, *words: str, script: str = "train.py") -> str:
    """What a command prints that must succeed."""
    done = commands.run("hashtag_pretrain", *words, script=script, forking=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def prepare(commands: Commands, *words: str) -> str:
    return do(commands, *words, "processes=0", script="prepare.py")


@pytest.mark.slow
def test_captions_become_labels_by_wordnet_and_200_steps_learn_them(
    shared_data, commands, tmp_path
):
    wordnet, out = find_whole(), tmp_path / "shards"
    prepare(
        commands, "shards", "source=coco", f"root={shared_data / 'coco_mini'}", f"out={out}",
        "short=64",
    )  # fmt: skip
    said = prepare(
        commands, "vocabulary", f"shards={out}", f"wordnet={wordnet}", "least=2",
        f"out={tmp_path / 'vocabulary.json'}",
    )  # fmt: skip
    assert "unknown" in said  # words that are no nouns
    labels = json.loads((tmp_path / "vocabulary.json").read_text())
    assert len(labels) > 50
    assert {"airport", "man"} & labels.keys()
    assert all(wnid.startswith("n") for label in labels.values() for wnid in label["synsets"])
    words = ["experiment=smoke", "data=shards", f"data.root={tmp_path}", "data.held_out=0.2"]
    words += ["data.vocabulary=vocabulary.json", "data.workers=0", "target.name=''"]
    words += ["protocols=[]", "images=3200", "batch_size=16", "per_gpu=16", "lr=1.6"]
    words += ["save_every=200", "augment={size: 32, resize: 40, crop: random}"]
    do(commands, *words, f"hydra.run.dir={tmp_path / 'run'}")
    losses = [row["loss"] for row in lines(tmp_path / "run") if "lr" in row]
    assert len(losses) == 200
    assert np.mean(losses[-20:]) < np.mean(losses[:5]) - 0.3


NOUNS = {  # CIFAR-10's classes: their synset, and other words for them
    "airplane": ("n02691156", "aeroplane"), "automobile": ("n02958343", "motorcar"),
    "bird": ("n01503061", "bird"), "cat": ("n02121620", "true_cat"),
    "deer": ("n02430045", "cervid"), "dog": ("n02084071", "Domestic-Dog"),
    "frog": ("n01639765", "toad frog"), "horse": ("n02374451", "Equus_caballus"),
    "ship": ("n04194289", "ship"), "truck": ("n04490091", "motortruck"),
}  # fmt: skip


def tag_photos(cifar: Path, folder: Path, files: list[Path]) -> None:
    """Write list.txt of photos with hashtags: of five, one has a wrong class's; half are synonyms.

    Also wnids.txt, the classes' synsets.
    """
    rng, rows = random.Random(0), []
    for path in files:
        own = path.parent.name if rng.random() < 0.8 else rng.choice(list(NOUNS))
        tags = {rng.choice([own, NOUNS[own][1]]).replace(" ", "_"), rng.choice(["love", "photo"])}
        rows.append(f"{path}\t{' '.join(f'#{tag}' for tag in sorted(tags))}")
    (folder / "list.txt").write_text("\n".join(rows))
    (folder / "wnids.txt").write_text("\n".join(wnid for wnid, _ in NOUNS.values()))


def copy_target(folder: Path, train: list[Path], test: list[Path]) -> Path:
    """A target of 50 and 30 photos of each class."""
    for split, several, count in (("train", train, 50), ("test", test, 30)):
        for name in NOUNS:
            (folder / split / name).mkdir(parents=True)
            mine = [file for file in several if file.parent.name == name]
            for file in mine[:count]:
                shutil.copy(file, folder / split / name)
    return folder


@pytest.mark.slow
def test_photos_tagged_by_synonyms_with_noise_give_a_trunk_that_is_probed_and_searched(
    shared_data, commands, tmp_path
):
    """CIFAR-10: class names, synonyms and noise as tags; probe; a copy in the test folder."""
    wordnet, cifar, out = find_whole(), shared_data / "cifar10_jpeg", tmp_path / "shards"
    files = sorted((cifar / "train").glob("*/*.jpg"))
    random.Random(0).shuffle(files)
    tag_photos(cifar, tmp_path, files[:2000])
    prepare(
        commands, "shards", "source=list", f"list={tmp_path / 'list.txt'}",
        f"root={cifar / 'train'}", f"out={out}", "per_shard=250",
    )  # fmt: skip
    prepare(
        commands, "vocabulary", f"shards={out}", f"wordnet={wordnet}", "rule=vocabulary",
        f"classes={tmp_path / 'wnids.txt'}", f"out={tmp_path / 'vocabulary.json'}",
    )  # fmt: skip
    assert len(json.loads((tmp_path / "vocabulary.json").read_text())) == 10
    tested = sorted((cifar / "test").glob("*/*.jpg"))
    target = copy_target(tmp_path / "target", files[2000:], tested)
    words = ["experiment=mini", "data=shards", f"data.root={tmp_path}", "data.workers=0"]
    words += ["data.vocabulary=vocabulary.json", "data.held_out=0.02", "batch_size=64"]
    words += [f"target={{name: cifar10, root: {target}}}", "per_gpu=64", "lr=1.0"]
    do(commands, *words, "images=12_800", f"hydra.run.dir={tmp_path / 'tags'}")
    losses = [row["loss"] for row in lines(tmp_path / "tags") if "lr" in row]
    assert losses[-1] < losses[0] - 0.2
    result = json.loads((tmp_path / "tags" / "result.json").read_text())
    assert result["metrics"]["probe"] > 20  # of ten classes
    copied = files[7]
    shutil.copy(copied, target / "test" / copied.parent.name / "copy.jpg")
    said = prepare(
        commands, "duplicates", f"train={out}", f"test={target / 'test'}", "network=small",
        f"init={tmp_path / 'tags'}", "size=32", "threshold=1e-4", f"out={tmp_path / 'found'}",
    )  # fmt: skip
    assert "of 301 test images" in said
    listed = (tmp_path / "found" / "duplicates.txt").read_text().split("\n")
    assert f"{copied.parent.name}/copy.jpg" in listed
    excluded = (tmp_path / "found" / "exclude.txt").read_text().split("\n")
    assert str(copied.relative_to(cifar / "train").with_suffix("")) in excluded
