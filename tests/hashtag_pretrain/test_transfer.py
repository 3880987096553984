"""The command transfer.py: each protocol from its options to result.json."""

import json
import os
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from common.config import UserError, to_dataclass
from common.data import BadExample
from common.images import read_image
from common.run import checkpoint
from common.run.options import Options
from hashtag_pretrain.model import build_model, normalise
from hashtag_pretrain.targets.sets import read_target
from hashtag_pretrain.transfer import MAY_CHANGE, TransferConfig, transfer
from hashtag_pretrain.words.vocabulary import Vocabulary

from .small_target import write_images

# Of pycocotools under NumPy 2, in each mask that it decodes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CONF = Path(__file__).resolve().parents[2] / "hashtag_pretrain" / "conf"


@cache
def smoke() -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("transfer", ["transfer=smoke", "output_dir=out"])


def settings(*words: str) -> TransferConfig:
    """What `python transfer.py transfer=smoke WORDS` makes of its options."""
    cfg = smoke().copy()
    for each in OverridesParser.create().parse_overrides(list(words)):  # as `compose`, only sooner
        OmegaConf.update(cfg, each.key_or_group, each.value())
    return to_dataclass(cfg)


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
    (tmp_path / "list.txt").write_text("")  # somebody looked and found none
    assert run(tmp_path / "none", *words)["lower_bound"] == 100
    assert (tmp_path / "run/probe.csv").exists()


def test_fine_tuning_leaves_its_scores_and_the_classes(tmp_path, root):
    metrics = run(tmp_path, "protocol=finetune", f"target.root={root}")
    assert set(metrics) == {"finetune", "finetune5"}
    scores = json.loads((tmp_path / "finetune/scores.json").read_text())["scores"]
    assert set(scores) == {"0-0", "1-0"}
    assert (tmp_path / "finetune.csv").exists()


def test_fine_tuning_that_began_elsewhere_is_not_gone_on_with(tmp_path, root, trunk):
    words = ("protocol=finetune", f"target.root={root}", "finetune={epochs: 1, head_lrs: [1]}")
    run(tmp_path, *words)
    (tmp_path / "away").symlink_to(root)
    for other, said in (
        (f"init={trunk}", f"began with init=none, .*this one has init={trunk}"),
        ("network.width=9", "began with network.width=8, .*this one has network.width=9"),
        (f"target.root={tmp_path}/away", f"root={root}, images=.*root={tmp_path}/away, images="),
    ):
        with pytest.raises(ValueError, match=said):
            transfer(settings(*words, f"output_dir={tmp_path}", other))
        checkpoint.unlock(tmp_path)
        checkpoint.unlock(tmp_path / "finetune")


def test_a_detector_of_another_trunk_is_not_gone_on_with(tmp_path):
    cfg = settings("protocol=detection", "network.name=resnet50", "detection.root=x")
    checkpoint.save(tmp_path, 1, options=Options(cfg, MAY_CHANGE))
    other = replace(cfg, init="wsl", target=replace(cfg.target, root="y"))
    other = replace(other, network=replace(cfg.network, mean=[0.5] * 3, compile=True), workers=3)
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.resume(tmp_path, options=Options(other, MAY_CHANGE))
    checkpoint.unlock(tmp_path)
    said = str(error.value)
    for name, old, new in (
        ("init", "none", "wsl"),
        ("network.mean", "[0.485, 0.456, 0.406]", "[0.5, 0.5, 0.5]"),
        ("target.root", "", "y"),
    ):
        before, now = said.split(", this run has ")
        assert f"{name}={old}" in before
        assert f"{name}={new}" in now
    assert "compile" not in said
    assert "workers" not in said


@pytest.mark.parametrize("protocol", ["probe", "finetune", "detection"])
def test_a_damaged_training_image_is_told_with_the_key_of_this_command(
    tmp_path, shared_data, protocol
):
    if protocol == "detection":
        coco = few_photos(shared_data / "coco_mini", tmp_path / "coco")
        (coco / "train2017").unlink()
        shutil.copytree(shared_data / "coco_mini" / "train2017", coco / "train2017")
        for path in (coco / "train2017").iterdir():
            path.write_bytes(b"no image")
        words = ["network.name=resnet50", f"detection.root={coco}"]
    else:
        images = write_images(tmp_path / "images", size=32)
        (images / "train" / "red" / "0.png").write_bytes(b"no image")
        words = [f"target.root={images}", "finetune.head_lrs=[1]"]
    cfg = settings(f"protocol={protocol}", *words, f"output_dir={tmp_path}/run")
    with pytest.raises(BadExample, match=r"as an image .*, or set bad_images=skip to count"):
        transfer(cfg)
    for folder in (tmp_path / "run", tmp_path / "run/finetune", tmp_path / "run/finetune/all"):
        checkpoint.unlock(folder)


def test_zero_shot_by_a_vocabulary(tmp_path, root, trunk):
    names = ["scarlet", "green", "blue"]
    members = {"scarlet": 0, "green": 1, "blue": 2}
    Vocabulary(names, members, [[], [], []], [1, 1, 1]).write(tmp_path / "vocabulary.json")
    words = (f"zero_shot.vocabulary={tmp_path}/vocabulary.json", f"target.root={root}")
    metrics = run(tmp_path / "run", "protocol=zero_shot", *words)
    assert 0 <= metrics["zero_shot"] <= 200 / 3 + 1e-6  # red has no tag


def test_weights_that_know_the_classes_are_evaluated_as_they_are(tmp_path, root, trunk):
    """As WSL's on ImageNet: nothing is trained; another number of classes is refused."""
    words = ("protocol=evaluate", f"target.root={root}")
    cfg = settings(*words, f"init={trunk}")
    model = build_model(cfg.network, 3)
    model.load_state_dict(torch.load(trunk))
    test = read_target("folder", root).test
    images = torch.stack([read_image(path) for path, _ in test])
    with torch.no_grad():
        found = model.eval()(normalise(images, cfg.network.mean, cfg.network.std)).argmax(1)
    expected = 100 * (found == test.labels).double().mean().item()
    metrics = run(tmp_path / "run", *words, f"init={trunk}")
    assert metrics == {"evaluate": pytest.approx(expected), "evaluate5": 100}
    assert (tmp_path / "run/evaluate.csv").exists()
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    torch.save(build_model(cfg.network, 5).state_dict(), tmp_path / "five.pt")
    with pytest.raises(ValueError, match="5 classes, the model 3"):
        transfer(settings(*words, f"init={tmp_path}/five.pt", f"output_dir={tmp_path}/five"))


@pytest.mark.slow
def test_the_published_32x8d_scores_82_7_on_imagenet(tmp_path):
    """With the folder of ImageNet, which has val/<wnid>/, and ig_resnext101_32x8-c38310e5.pth."""
    root, file = os.environ.get("IMAGENET"), os.environ.get("WSL8D")
    if not root or not file:
        pytest.skip("set IMAGENET to ImageNet's folder and WSL8D to the file of 32x8d")
    words = ["protocol=evaluate", f"init={file}", "target.name=imagenet", f"target.root={root}"]
    words += ["network.name=resnext101_32x8d", "finetune={size: 224, resize: 256, images: 64}"]
    assert run(tmp_path, *words)["evaluate"] == pytest.approx(82.7, abs=0.1)


@pytest.mark.parametrize("protocol", ["probe", "evaluate", "export"])
def test_a_run_of_other_pixels_stops_with_the_options_to_give(tmp_path, root, protocol):
    options = {"network.mean": [0.5] * 3, "network.std": [0.25] * 3}
    model = build_model(settings("target.root=x").network, 3)
    checkpoint.save(tmp_path / "run", 1, model=model, options=options)
    checkpoint.unlock(tmp_path / "run")
    words = (f"protocol={protocol}", f"init={tmp_path}/run", f"target.root={root}")
    with pytest.raises(ValueError, match=r"network\.std=\[0\.25,0\.25,0\.25\]: give these"):
        transfer(settings(*words, f"output_dir={tmp_path}/a"))
    run(tmp_path / "b", *words, "network.mean=[0.5,0.5,0.5]", "network.std=[0.25,0.25,0.25]")


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
    words += () if again else ("detection.steps=1", "detection.batch_size=1")
    metrics = run(tmp_path / "run", *words)
    assert {"box_AP", "box_AP50", "mask_AP"} <= set(metrics)
    checkpoints = [path.name for path in (tmp_path / "run").glob("checkpoint-*")]
    assert checkpoints == [f"checkpoint-0000000{2 if again else 1}.pt"]
    if again:
        assert run(tmp_path / "run", *words) == metrics


def test_two_processes_probe_as_one(commands, tmp_path, root, trunk):
    words = [f"init={trunk}", f"target.root={root}"]
    run(tmp_path / "one", *words)
    words += ["transfer=smoke", "processes=2", f"hydra.run.dir={tmp_path}/two"]
    done = commands.run("hashtag_pretrain", *words, script="transfer.py", forking=True)
    assert done.returncode == 0, done.stderr
    assert "18 training and 12 test images" in done.stdout
    one, two = ((tmp_path / name / "probe.csv").read_text() for name in ("one", "two"))
    assert two == one
    assert two.count("\n") == 4


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
        (["protocol=evaluate", "target.root=x"], "protocol=evaluate needs init=RUN"),
        (["protocol=export"], "protocol=export needs init=RUN"),
        (["protocol=probing", "target.root=x"], "Did you mean 'protocol=probe'"),
        (["target.root=x", "probe.splits=0"], "probe.splits"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_read(words, said):
    with pytest.raises(UserError, match=said):
        settings(*words)
