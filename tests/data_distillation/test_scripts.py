"""The commands of data_distillation as a user types them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.run import checkpoint
from tests.commands import REPOSITORY, Commands
from tests.train_scripts import TrainScript, lines, weights

TRAIN = str(REPOSITORY / "data_distillation" / "train.py")
FEW = ["experiment=mini", "steps=2", 'teacher=["init=\'\'","steps=1"]', "batch_size=2"]
FEW += ["images_per_gpu=2", "data.builtin={labelled: 4, unlabelled: 3, test: 2}"]
FEW += ["transforms.scales=[]", "test.images=0", "log_every=1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The current folder of the commands, in which teachers and labels lie."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def smoke(commands: Commands, home: Path) -> Callable[[str], Path]:
    """The whole of `experiment=smoke`, run once: teacher, labels, student; to be left as it is."""
    words = ("experiment=smoke", f"hydra.run.dir={home / 'run'}")
    done = commands.run(home, *words, script=TRAIN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is trained first") == 1
    return lambda project: home / "run"


class TestDataDistillation(TrainScript):
    project = "data_distillation"
    figure = "detections.png"
    metrics = ("keypoint_AP", "box_AP", "label_AP", "tta_keypoint_AP", "keypoint_AP50")
    typos = (("labels.factr=2", "labels.factor"),)
    missing = ("data=coco",)
    batch = ("batch_size", 4, 8)

    @pytest.fixture(autouse=True)
    def _stay_at_home(self, home: Path) -> None:
        self.home = home

    def run(self, commands: Commands, folder: Path, *words: str, forking: bool = False):
        words = ("experiment=smoke", *words, f"hydra.run.dir={folder}")
        return commands.run(self.home, *words, script=TRAIN, forking=forking)

    def test_a_student_has_the_labels_of_its_teacher(self, smoke, home):
        stored = checkpoint.load(smoke(self.project) / "checkpoint-00000006.pt")["parts"]
        file = Path(stored["options"]["data.automatic"])
        assert file.is_relative_to(home / "outputs" / "labels")
        teacher = Path(json.loads(file.read_text())["info"]["teacher"])
        assert teacher.is_relative_to(home / "outputs" / "teachers")
        assert sum("lr" in line for line in lines(teacher.parent)) == 3
        assert stored["labelled"] == checkpoint.load(teacher)["parts"]["labelled"]

    @pytest.mark.slow
    def test_two_processes_train_as_one(self, smoke, commands, tmp_path):
        done = self.run(commands, tmp_path, "processes=2", forking=True)
        assert done.returncode == 0, done.stderr
        assert "is trained first" not in done.stdout
        a, b = weights(smoke(self.project), 6), weights(tmp_path, 6)
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)
        one, two = (
            json.loads((folder / "result.json").read_text())["metrics"]
            for folder in (smoke(self.project), tmp_path)
        )
        assert one.keys() == two.keys()

    @pytest.mark.slow
    def test_a_student_that_was_killed_ends_as_never_stopped(self, smoke, commands, tmp_path):
        words = ("experiment=smoke", f"hydra.run.dir={tmp_path}")
        run = commands.start(self.home, *words, script=TRAIN)
        run.until(4)
        run.kill()
        assert self.run(commands, tmp_path).returncode == 0
        a, b = weights(smoke(self.project), 6), weights(tmp_path, 6)
        assert all(torch.equal(a[key], b[key]) for key in a)

    @pytest.mark.slow
    def test_teachers_labels_of_two_processes_are_those_of_one(self, smoke, commands, tmp_path):
        words = ("experiment=smoke", "processes=2", f"hydra.run.dir={tmp_path / 'run'}")
        done = commands.run(tmp_path, *words, script=TRAIN, forking=True)
        assert done.returncode == 0, done.stderr
        stored = checkpoint.load(smoke(self.project) / "checkpoint-00000006.pt")["parts"]
        one = Path(stored["options"]["data.automatic"])
        (two,) = (tmp_path / "outputs" / "labels").glob("*/*.json")
        a, b = (json.loads(file.read_text()) for file in (one, two))
        assert a["images"] == b["images"]
        assert len(a["annotations"]) == len(b["annotations"])
        assert len(list(two.parent.glob("records/shard-*-of-2.jsonl"))) == 2


@pytest.mark.slow
def test_settings_are_compared_side_by_side_on_one_teacher(commands, tmp_path):
    words = [*FEW, "test.images=1", f"hydra.run.dir={tmp_path / 'run'}"]
    words += ["+versus.teacher=['only_evaluate=true','init=teacher',\"data.automatic=''\"]"]
    words += ["+versus.student=[]"]
    done = commands.run(tmp_path, *words, script=TRAIN, forking=True)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "run" / "versus.md").read_text()
    assert ["| teacher " in table, "| student " in table, "label_AP" in table] == [True] * 3
    assert (tmp_path / "run" / "compare.png").exists()
    assert len(list((tmp_path / "outputs" / "teachers").glob("*-seed0"))) == 1
    assert done.stdout.count("is trained first") == 1
