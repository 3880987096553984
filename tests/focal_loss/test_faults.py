"""`train.py` under kills, stop signals, a full disk, a second run, and faulty data.

The run that never met any of this is the oracle: the others must end with its weights, optimizer,
random states and losses, to the bit. Most commands are forks of a warm process, see commands.py.
"""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from PIL import Image

from common.coco.check_data import main as check_data
from common.coco.dataset import CocoDataset
from common.coco.files import find_split
from common.config import to_dataclass
from common.run import checkpoint
from focal_loss.config import Config
from focal_loss.train import train as train_here
from tests.commands import REPOSITORY, Commands, Run, environment

PROJECT = REPOSITORY / "focal_loss"
RUN = ("experiment=smoke", "steps=90", "save_every=3")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def outcome(commands: Commands, *words: str) -> tuple[int, str]:
    """Exit code of `train.py`, and all that it printed."""
    done = commands.run("focal_loss", *words)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def whole(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that was never disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, text = outcome(commands, *RUN, f"hydra.run.dir={folder}")
    assert code == 0, text
    return folder


def same(a: Any, b: Any) -> bool:
    """Equality to the bit of nested values with tensors."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def lines(folder: Path) -> list[dict]:
    """What was logged, without the times."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in found]


def assert_same_run(folder: Path, expected: Path) -> None:
    """Final weights, optimizer, random states and all logged figures are those of another run."""
    name = max(path.name for path in expected.glob("checkpoint-*.pt"))
    found, wanted = checkpoint.load(folder / name), checkpoint.load(expected / name)
    for part in wanted["parts"]:
        assert same(found["parts"][part], wanted["parts"][part]), part
    assert same(found["random"], wanted["random"])
    assert lines(folder) == lines(expected)
    assert not [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def first_step(text: str) -> int:
    """The first step that a run logged."""
    return next(int(line[5:].split("/")[0]) for line in text.splitlines() if line[:5] == "step ")


def test_a_run_killed_again_and_again_ends_as_one_never_killed(commands, whole, tmp_path):
    draw = random.Random(0)
    words = (*RUN, f"hydra.run.dir={tmp_path}")
    kills = 0
    # A fast machine is twenty steps further when the signal comes, so none is sent near the end.
    while kills < 20 and not [*tmp_path.glob("checkpoint-000000[5-9]*.pt")]:
        run = commands.start("focal_loss", *words)
        steps = draw.choice((0, 0, 1, 1, 2, 3, 4, 6))
        run.until(steps)
        time.sleep(draw.uniform(0, 0.04 if steps else 0.4))  # also while it starts
        run.kill()
        kills += 1
    assert kills > 2
    code, text = outcome(commands, *words)
    assert code == 0, text
    assert first_step(text) > 1
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(
    ("stall", "newest"),
    [(3, 3), (4, 6)],  # a checkpoint takes two fsyncs: of the file, and of the folder it is in
    ids=["before the rename", "after the rename"],
)
def test_a_kill_while_a_checkpoint_is_written_loses_no_earlier_one(
    commands, whole, tmp_path, stall, newest
):
    words = (*RUN, f"hydra.run.dir={tmp_path}")
    run = commands.start("focal_loss", *words, stall=stall)
    run.until(1, "stalled")
    run.kill()
    assert bool([*tmp_path.glob(".checkpoint-00000006.pt.*.tmp")]) == (newest == 3)
    checkpoint.load(tmp_path / f"checkpoint-{newest:08d}.pt")
    code, text = outcome(commands, *words)
    assert code == 0, text
    assert first_step(text) == newest + 1
    assert_same_run(tmp_path, whole)


def test_sigterm_ends_the_command_with_75_and_the_same_command_goes_on(commands, whole, tmp_path):
    words = (*RUN, f"hydra.run.dir={tmp_path}/run")
    run = commands.start("focal_loss", *words)
    run.until(2)
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait() == 75, run.text
    assert "SIGTERM: finishing this step, then saving" in run.text
    said, again = (f.read_text().strip().splitlines()[-1] for f in (run.output, run.errors))
    assert said.startswith("Stopped on request after step ")
    assert again.endswith(f"hydra.run.dir={tmp_path}/run")
    stopped = int(said.split()[5].rstrip("."))
    code, text = outcome(commands, *words)
    assert code == 0, text
    assert first_step(text) == stopped + 1
    assert_same_run(tmp_path / "run", whole)


def test_a_second_run_in_the_same_folder_is_refused_and_disturbs_nothing(commands, whole, tmp_path):
    words = (*RUN, f"hydra.run.dir={tmp_path}")
    first = commands.start("focal_loss", *words)
    first.until(1)
    code, text = outcome(commands, *words)
    assert code == 2
    assert f"{tmp_path} is in use by process {first.pid}" in text
    assert len(text.splitlines()) == 1, text
    assert first.wait() == 0, first.text
    assert_same_run(tmp_path, whole)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB; where mounting is not allowed, a plain folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    mounted = not os.geteuid() and not subprocess.run(mount, capture_output=True).returncode
    yield folder
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, run: Run) -> None:
    """Leave `run` no room for another checkpoint, until it ends."""
    if not disk.is_mount():
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (20_000, hard))
    with (disk / "filler").open("wb", buffering=0) as filler:
        while run.ended() is None:
            with suppress(OSError):
                while disk.is_mount():
                    filler.write(bytes(4096))
            time.sleep(0.005)  # the run may remove a file yet


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_a_disk_that_fills_up_stops_the_run_which_goes_on_when_there_is_room(commands, whole, disk):
    words = (*RUN, f"hydra.run.dir={disk}/run")
    run = commands.start("focal_loss", *words)
    run.until(7)
    fill(disk, run)
    assert run.wait() == 2, run.text
    last = run.text.strip().splitlines()[-1]
    assert "could not be written" in last
    assert "what was there is intact" in last
    assert "Traceback" not in run.text
    kept = sorted((disk / "run").glob("checkpoint-*.pt"))
    assert len(kept) == 2
    steps = [checkpoint.load(path)["meta"]["step"] for path in kept]
    (disk / "filler").unlink()
    code, text = outcome(commands, *words)
    assert code == 0, text
    assert first_step(text) == steps[-1] + 1
    assert_same_run(disk / "run", whole)


def worker(parent: int, rank: int) -> int:
    """Process id of the rank among the children of torchrun."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            its_parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if its_parent == parent and f"\0RANK={rank}\0" in (entry / "environ").read_text():
                return int(entry.name)
        except OSError:  # has ended meanwhile
            continue
    raise AssertionError(f"torchrun, process {parent}, has no rank {rank}")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the worker in /proc")
def test_torchrun_with_a_killed_worker_ends_and_resumes_as_two_processes_never_killed(tmp_path):
    def start(name: str, *words: str) -> subprocess.Popen:
        command = [sys.executable, *words, *RUN, "steps=24", "processes=2"]
        command += [f"hydra.run.dir={tmp_path}/{name}"]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        env = environment(FAIR_VISION_TIMEOUT="20")
        return subprocess.Popen(command, cwd=PROJECT, env=env, **streams)

    torchrun = start("killed", *TORCHRUN, "train.py")
    assert torchrun.stdout is not None
    while not (line := torchrun.stdout.readline()).startswith("step 5/"):
        assert line
    os.kill(worker(torchrun.pid, 1), signal.SIGKILL)
    text, _ = torchrun.communicate(timeout=240)
    assert torchrun.returncode == 1
    assert "rank 0 stopped after step " in text
    assert not (tmp_path / "killed" / "result.json").exists()

    torchrun = start("killed", *TORCHRUN, "train.py")
    text, _ = torchrun.communicate(timeout=240)
    assert torchrun.returncode == 0, text
    assert first_step(text) > 3
    spawned = start("spawned", "train.py")
    text, _ = spawned.communicate(timeout=240)
    assert spawned.returncode == 0, text
    assert_same_run(tmp_path / "killed", tmp_path / "spawned")


@pytest.mark.slow
def test_multirun_trains_each_setting_in_a_folder_of_its_own(tmp_path):
    words = ("-m", "experiment=smoke", "seed=0,1", "steps=2", f"hydra.sweep.dir={tmp_path}")
    command = [sys.executable, "train.py", *words]
    done = subprocess.run(command, cwd=PROJECT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folders = sorted(path.parent for path in tmp_path.rglob("result.json"))
    assert ["seed=0" in str(folders[0]), "seed=1" in str(folders[1])] == [True, True]
    first, second = (lines(folder) for folder in folders)
    assert [line["step"] for line in first] == [line["step"] for line in second] == [1, 2, 2]
    assert first[0]["classification"] != second[0]["classification"]


class CocoSet:
    """A data set in COCO's format: five images to train on, two to validate on."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "annotations").mkdir(parents=True)
        (root / "images").mkdir()
        self.content = {"train": self.split(range(5)), "val": self.split(range(5, 7))}

    def split(self, numbers: range) -> dict[str, list]:
        """Its content: a category of two boxes an image, of ids with gaps, in no order."""
        generator = torch.Generator().manual_seed(numbers.start)
        images, annotations = [], []
        for i in numbers:
            pixels = torch.randint(256, (48, 64, 3), generator=generator, dtype=torch.uint8)
            name = f"{i}.{'png' if i % 2 else 'jpg'}"
            Image.fromarray(pixels.numpy()).save(self.root / "images" / name)
            images.append({"id": 10 * i, "file_name": name, "height": 48, "width": 64})
            for k, category in enumerate(([90, 7], [7, 16], [16, 90])[i % 3]):
                box = [4 + 20 * k, 6, 22, 30]
                box_of = {"id": 2 * i + k, "image_id": 10 * i, "category_id": category}
                annotations.append(box_of | {"bbox": box, "area": 660, "iscrowd": 0})
        names = {90: "cup", 7: "train", 16: "bird"}
        categories = [{"id": number, "name": name} for number, name in names.items()]
        return {"images": images, "annotations": annotations, "categories": categories}

    def words(self, *more: str) -> tuple[str, ...]:
        """Write the annotations; the overrides that train on them."""
        for split, content in self.content.items():
            (self.root / "annotations" / f"{split}.json").write_text(json.dumps(content))
        sizes = ("data.short_side=[64]", "data.test_short_side=64", "data.long_side=128")
        data = ("data=coco_format", f"data.root={self.root}", *sizes, "data.pad_multiple=32")
        return ("experiment=smoke", *data, "data.workers=0", "steps=3", *more)


@pytest.fixture
def coco(tmp_path: Path) -> CocoSet:
    return CocoSet(tmp_path / "set")


@pytest.fixture
def train(commands: Commands, coco: CocoSet, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Train on the set; exit code and all that was printed."""
    return lambda *more: outcome(commands, *coco.words(*more), f"hydra.run.dir={tmp_path}/run")


def refused(outcome: tuple[int, str], *words: str) -> None:
    """The command ended before its first step with a sentence that holds `words`."""
    code, text = outcome
    assert code == 2, text
    assert "Traceback" not in text
    assert "step 1/" not in text
    for word in words:
        assert word in text


def test_a_set_with_gaps_in_its_category_ids_trains_and_prints_its_metrics(coco, train, tmp_path):
    val = coco.content["val"]  # knows one category less, which the model finds all the same
    val["categories"] = [c for c in val["categories"] if c["id"] != 16]
    val["annotations"] = [a for a in val["annotations"] if a["category_id"] != 16]
    code, text = train("test.score=0", "test.per_class=true")
    assert code == 0, text
    logged = next(line for line in text.splitlines() if line.startswith("step 3/3  AP "))
    assert "AP/cup" in logged
    assert text.strip().splitlines()[-1].startswith("AP ")
    detections = json.loads((tmp_path / "run" / "detections.json").read_text())
    assert {d["image_id"] for d in detections} == {50, 60}
    assert {d["category_id"] for d in detections} == {7, 16, 90}
    parts = checkpoint.load(tmp_path / "run" / "checkpoint-00000003.pt")["parts"]
    assert parts["category_ids"] == [7, 16, 90]


def test_a_corrupt_image_stops_the_run_or_is_skipped_and_counted(coco, train):
    path = coco.root / "images" / "3.png"
    path.write_bytes(path.read_bytes()[:200])
    code, text = train("data.bad_images=raise")
    assert code == 2
    assert str(path) in text.strip().splitlines()[-1]
    assert "Traceback" not in text
    code, text = train("data.bad_images=skip")
    assert code == 0, text
    assert text.count(f"image 1 skipped: {path}") == 1
    assert "image 2 skipped" not in text


def test_images_without_any_box_are_negatives_or_left_out(coco, train, tmp_path, capsys):
    for content in coco.content.values():
        content["annotations"] = []
    for words in ((), ("data.skip_empty=false",)):
        refused(train(*words), "data.train=train has no objects: take a split")
    coco.content["train"] = coco.split(range(5))
    coco.content["train"]["annotations"] = coco.content["train"]["annotations"][:2]
    code, text = train("data.skip_empty=false", "test.score=0")
    assert code == 0, text
    said = "val has no objects: AP will be left out."
    assert text.index(said) < text.index("step 1/3")
    assert re.match(r"AP, AP50, AP75 undefined after 3 steps, \d+ s; ", text.splitlines()[-1])
    steps = lines(tmp_path / "run")
    assert all(line["classification"] > 0 for line in steps[:-1])
    assert min(line["box"] for line in steps[:-1]) == 0
    assert "AP" not in steps[-1]

    def no_json(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = (tmp_path / "run" / "result.json").read_text()
    assert json.loads(text, parse_constant=no_json)["metrics"].keys().isdisjoint({"AP", "AP50"})
    assert check_data(["coco_format", str(coco.root)]) == 0
    assert said in capsys.readouterr().out


def test_boxes_without_area_are_dropped_with_their_count_or_stop_the_run(coco, train):
    for i in (1, 4):
        coco.content["train"]["annotations"][i]["bbox"][2] = 0
    file = coco.root / "annotations" / "train.json"
    fault = f"{file}: of 10 instances, 2 with a box of no area "
    fault += "(first annotation ids [1, 4] of images [0, 20])"
    code, text = train()
    assert code == 0, text
    assert f"{fault}; 2 dropped" in text
    refused(train("data.strict=true"), fault)


def test_faults_of_the_validation_set_are_found_before_training(coco, train, tmp_path):
    coco.content["val"]["categories"].append({"id": 91, "name": "new"})
    coco.content["val"]["annotations"][0]["category_id"] = 91
    refused(train(), "val.json: annotation 10 of image 50 is of category 91", "[7, 16, 90]")
    del coco.content["val"]
    (coco.root / "annotations" / "val.json").unlink()
    refused(train(), "no annotations of 'val'", "ROOT/annotations/{train,val,test}.json")


def exchange(content: dict[str, list], key: str, one: str, other: str) -> None:
    """Exchange two fields of the first entry with each other, or a field of the first two."""
    first = content[key][0]
    second = content[key][1] if one == other else first
    first[one], second[other] = second[other], first[one]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: exchange(c, "images", "width", "height"), r"5.png is 64 x 48 .* 48 x 64"),
        (
            lambda c: exchange(c, "categories", "name", "name"),
            r"'cup' has id 7 in .*/val.json, but 90 in .*/train.json",
        ),
        (lambda c: c.update(images=[]), "val.json: the list `images` is empty"),
        (
            lambda c: c["images"][0].update(width="64"),
            r"val.json: image 50 has '64' as its `width`",
        ),
        (lambda c: c["images"][1].update(height=None), r"image 60 has null as its `height`"),
        (lambda c: c["images"][1].update(file_name="9.png"), r"9.png is listed in .*val.json, but"),
        (lambda c: c["annotations"][1].update(iscrowd="no"), r"annotation 11 of image 50 has 'no'"),
    ],
)
def test_training_and_check_data_find_the_same_faults_before_step_1(
    coco, tmp_path, capsys, spoil, message
):
    spoil(coco.content["val"])
    words = coco.words(f"output_dir={tmp_path}/run")
    ConfigStore.instance().store("schema", Config)
    with initialize_config_dir(str(PROJECT / "conf"), version_base="1.3"):
        cfg = to_dataclass(compose("config", list(words)))
    with pytest.raises(ValueError, match=message):
        train_here(cfg)
    assert not (tmp_path / "run").exists()
    assert check_data(["coco_format", str(coco.root)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_check_data_says_what_is_odd_where_training_goes_on(coco, capsys):
    val = coco.content["val"]
    val["annotations"][0]["bbox"] = [4, 6, 22]
    val["annotations"][1]["bbox"] = [4, 6, 3, 3]
    coco.words()
    assert check_data(["coco_format", str(coco.root)]) == 0
    printed = capsys.readouterr().out
    assert "warning: " in printed
    assert "1 with a box that is not four finite numbers (first annotation ids [10] of" in printed
    assert "1 of 3 objects are smaller than 64 square pixels" in printed
    coco.content["train"]["annotations"] = []
    coco.words()
    assert check_data(["coco_format", str(coco.root)]) == 2
    assert "train.json has nothing to train on" in capsys.readouterr().err


def test_a_run_resumes_with_the_same_names_only(coco, tmp_path):
    coco.words()
    categories = CocoDataset(*find_split(coco.root, "train")).categories
    checkpoint.save(tmp_path, 1, categories=categories)
    assert checkpoint.resume(tmp_path, categories=categories) == 1
    checkpoint.unlock(tmp_path)
    exchange(coco.content["train"], "categories", "name", "name")
    coco.words()
    categories = CocoDataset(*find_split(coco.root, "train")).categories
    with pytest.raises(
        ValueError, match=r"'cup' has id 7 in .*train.json, but 90 in the checkpoint"
    ):
        checkpoint.resume(tmp_path, categories=categories)
    checkpoint.unlock(tmp_path)
