"""The command transfer.py: each protocol from its options to result.json."""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from common.config import UserError, to_dataclass
from common.run import checkpoint
from hashtag_pretrain.model import build_model
from hashtag_pretrain.transfer import TransferConfig, transfer
from hashtag_pretrain.words.vocabulary import Vocabulary

from .small_target import write_images

# Of pycocotools under NumPy 2, in each mask that it decodes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CONF = Path(__file__).resolve().parents[2] / "hashtag_pretrain" / "conf"


def settings(*words: str) -> TransferConfig:
    """What `python transfer.py transfer=smoke WORDS` makes of its options."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_dataclass(compose("transfer", ["transfer=smoke", "output_dir=out", *words]))


def run(folder: Path, *words: str) -> dict[str, float]:
    """The metrics in the result of a run in `folder`."""
    cfg = settings(*words, f"output_dir={folder}")
    metrics = transfer(cfg)
    checkpoint.unlock(folder)
    if cfg.protocol != "export":
        assert json.loads((folder / "result.json").read_text())["metrics"] == metrics
    return metrics


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("target"), size=32)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """A weight file of the smoke test's network, in three classes."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("trunk") / "trunk.pt"
    torch.save(build_model(settings("target.root=x").network, 3).state_dict(), path)
    return path


def test_a_probe_of_a_weight_file(tmp_path, root, trunk):
    (tmp_path / "list.txt").write_text("red/0.png\n")
    words = (f"init={trunk}", f"target.root={root}", f"target.duplicates={tmp_path}/list.txt")
    metrics = run(tmp_path / "run", *words)
    assert metrics["probe"] == 100
    assert metrics["lower_bound"] == pytest.approx(100 * 11 / 12)
    assert (tmp_path / "run/probe.csv").exists()


def test_fine_tuning_leaves_its_scores_and_the_classes(tmp_path, root):
    metrics = run(tmp_path, "protocol=finetune", f"target.root={root}")
    assert set(metrics) == {"finetune", "finetune5"}
    scores = json.loads((tmp_path / "finetune/scores.json").read_text())["scores"]
    assert set(scores) == {"0-0", "1-0"}
    assert (tmp_path / "finetune.csv").exists()


def test_zero_shot_by_a_vocabulary(tmp_path, root, trunk):
    names = ["scarlet", "green", "blue"]
    members = {"scarlet": 0, "green": 1, "blue": 2}
    Vocabulary(names, members, [[], [], []], [1, 1, 1]).write(tmp_path / "vocabulary.json")
    words = (f"zero_shot.vocabulary={tmp_path}/vocabulary.json", f"target.root={root}")
    metrics = run(tmp_path / "run", "protocol=zero_shot", *words)
    assert 0 <= metrics["zero_shot"] <= 200 / 3 + 1e-6  # red has no tag


def few_photos(source: Path, root: Path) -> Path:
    """The first two photos of each split of coco_mini."""
    for file in sorted((source / "annotations").glob("instances_*2017.json")):
        content = json.loads(file.read_text())
        content["images"] = content["images"][:2]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "annotations" / file.name).write_text(json.dumps(content))
        split = file.stem.removeprefix("instances_")
        (root / split).symlink_to(source / split)
    return root


@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_detector_is_trained_and_one_that_is_only_evaluated(tmp_path, shared_data, again):
    coco = few_photos(shared_data / "coco_mini", tmp_path / "coco")
    words = ("protocol=detection", "network.name=resnet50", f"detection.root={coco}")
    metrics = run(tmp_path / "run", *words)
    assert {"box_AP", "box_AP50", "mask_AP"} <= set(metrics)
    checkpoints = [path.name for path in (tmp_path / "run").glob("checkpoint-*")]
    assert checkpoints == ["checkpoint-00000002.pt"]
    if again:
        assert run(tmp_path / "run", *words) == metrics


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_two_processes_probe_as_one(commands, tmp_path, root, trunk, solver):
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        words = ["transfer=smoke", f"init={trunk}", f"target.root={root}", f"probe.solver={solver}"]
        words += ["probe.lrs=[0.1]", f"processes={processes}", f"hydra.run.dir={folder}"]
        done = commands.run("hashtag_pretrain", *words, script="transfer.py", forking=True)
        assert done.returncode == 0, done.stderr
        assert "18 training and 12 test images" in done.stdout
        found.append((folder / "probe.csv").read_text())
    if solver == "lbfgs":  # sgd: each process has an order of its own
        assert found[0] == found[1]
    assert found[1].count("\n") == 4


@pytest.mark.parametrize("form", ["torchvision", "detection", "detectron2"])
def test_a_trunk_is_exported_for_other_code(tmp_path, trunk, form):
    run(tmp_path, "protocol=export", f"init={trunk}", f"form={form}")
    (path,) = tmp_path.glob(f"trunk-{form}.*")
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize("name", ["probe", "finetune", "detection"])
def test_the_settings_of_the_paper_compose(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = [f"transfer={name}", "init=RUN", "target.root=x", "detection.root=y"]
        words.append("output_dir=out")
        cfg = to_dataclass(compose("transfer", words))
    assert (cfg.protocol, cfg.network.name) == (name, "resnext101_32x16d")
    assert len(cfg.finetune.lrs) * len(cfg.finetune.decays) * len(cfg.finetune.head_lrs) == 48


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "target.root"),
        (["protocol=zero_shot", "target.root=x"], "zero_shot.vocabulary"),
        (["protocol=detection"], "detection.root"),
        (["protocol=probing", "target.root=x"], "Did you mean 'protocol=probe'"),
        (["target.root=x", "probe.solver=adam"], "probe.solver"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_read(words, said):
    with pytest.raises(UserError, match=said):
        settings(*words)
