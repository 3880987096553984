"""Table 3: the row of a number of GPUs, the network, the backbone's weights, a run on COCO."""

import json
import math
from pathlib import Path

import pytest
import torch
import torchvision
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights, maskrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

from common.config import UserError, to_dataclass
from common.run import checkpoint
from large_minibatch.mask_rcnn.instances import Instances, TransferData
from large_minibatch.mask_rcnn.network import fine_tuning, load_backbone, mask_rcnn
from large_minibatch.transfer import (
    TransferConfig,
    TransferModel,
    initialise,
    plan,
    train,
    weights_file,
)

# Of pycocotools under NumPy 2, in each mask that it decodes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CONF = Path(__file__).resolve().parents[2] / "large_minibatch" / "conf"
SMALL = TransferModel(
    backbone="resnet18",
    channels=8,
    rois=16,
    short_side=64,
    long_side=96,
    score=0.0,
    detections=2,
)


def settings(folder, root: str = "", **options) -> TransferConfig:
    """A run of seconds, on the built-in images unless `root` is given."""
    data = TransferData(name="coco" if root else "scenes", root=root, workers=0)
    small = {"init": "none", "gpus": 2, "steps": 3, "warmup": 1, "save_every": 1}
    return TransferConfig(
        **small | options, data=data, model=SMALL, output_dir=str(folder), log_every=1
    )


def resnet18_state() -> dict[str, Tensor]:
    """Classification weights with BN statistics that are not the initial ones."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "running_var", "bn1.weight")):
            value.uniform_(0.5, 1.5)
    return model.state_dict()


@pytest.mark.parametrize(
    ("gpus", "batch_size", "lr", "iterations"),
    [
        (1, 2, 0.0025, 1_280_000),
        (2, 4, 0.005, 640_000),
        (4, 8, 0.01, 320_000),
        (8, 16, 0.02, 160_000),
    ],
)
def test_the_rows_of_table_3b_follow_from_the_gpus(gpus, batch_size, lr, iterations):
    row = fine_tuning(gpus)
    assert (row.batch_size, row.lr, row.iterations) == (batch_size, lr, iterations)
    assert row.milestones == (iterations * 3 // 4,)
    assert row.batch_size * row.iterations == 2_560_000


def test_eight_gpus_drop_at_120k_of_160k_as_in_mask_rcnn():
    assert fine_tuning(8).milestones == (120_000,)
    assert fine_tuning(8, iterations=90_000, drops=(2 / 3, 8 / 9)).milestones == (60_000, 80_000)


def test_a_short_run_keeps_the_shares_and_warms_up_no_longer_than_it_lasts():
    row = fine_tuning(8, iterations=100)
    assert (row.iterations, row.milestones, row.warmup) == (100, (75,), 100)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"gpus": 0}, "gpus"),
        ({"gpus": 1, "drops": (0.8, 0.5)}, "drops"),
        ({"gpus": 1, "drops": (1.0,)}, "drops"),
        ({"gpus": 1, "iterations": -1}, "iterations"),
    ],
)
def test_an_impossible_row_is_refused(options, word):
    with pytest.raises(ValueError, match=word):
        fine_tuning(**options)


def test_one_process_plays_all_gpus_of_a_row(tmp_path):
    row, passes = plan(settings(tmp_path, gpus=8))
    assert (row.batch_size, passes) == (16, 8)


def test_the_network_is_torchvisions_maskrcnn_resnet50_fpn():
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    ours = mask_rcnn(90).state_dict()
    shapes = {n: v.shape for n, v in theirs.items() if not n.endswith("num_batches_tracked")}
    assert {name: value.shape for name, value in ours.items()} == shapes


def test_the_network_has_the_number_of_parameters_that_torchvision_states():
    stated = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["num_params"]
    assert sum(p.numel() for p in mask_rcnn(90).parameters()) == stated


def test_512_rois_of_an_image_are_trained_on():
    torch.manual_seed(0)
    network = mask_rcnn(3, backbone="resnet18", channels=8, short_side=256, long_side=256)
    seen = []
    network.roi_heads.box_head.register_forward_hook(
        lambda _, inputs, __: seen.append(len(*inputs))
    )
    box = torch.tensor([[20.0, 30.0, 120.0, 200.0]])
    target = {"boxes": box, "labels": torch.tensor([1]), "masks": torch.ones(1, 256, 256).byte()}
    network(torch.rand(2, 3, 256, 256).unbind(), [target, target])
    assert seen == [2 * 512]
    assert network.roi_heads.fg_bg_sampler.positive_fraction == 0.25


def test_masks_have_28_by_28_pixels_of_each_class():
    heads = mask_rcnn(80, backbone="resnet18", channels=8).roi_heads
    regions = torch.zeros(2, 8, heads.mask_roi_pool.output_size[0], 14)
    assert heads.mask_predictor(heads.mask_head(regions)).shape == (2, 81, 28, 28)


def test_the_stem_and_the_first_stage_do_not_learn():
    names = {
        name.removeprefix("backbone.body.").split(".")[0]
        for name, value in mask_rcnn(3, backbone="resnet18").named_parameters()
        if not value.requires_grad
    }
    assert names == {"conv1", "layer1"}


def test_batch_norm_is_frozen_in_training(tmp_path):
    state = resnet18_state()
    torch.save(state, tmp_path / "resnet18.pt")
    network = mask_rcnn(13, backbone="resnet18", channels=8)
    assert not [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    assert sum(isinstance(m, FrozenBatchNorm2d) for m in network.modules()) == 20
    train(settings(tmp_path / "run", init=str(tmp_path / "resnet18.pt")))
    saved = checkpoint.load(tmp_path / "run" / "checkpoint-00000003.pt")["parts"]["model"]
    for name, value in state.items():
        if ("bn" in name or "downsample.1" in name) and not name.endswith("tracked"):
            assert torch.equal(saved[f"backbone.body.{name}"], value), name
    learned = "layer4.1.conv2.weight"
    assert not torch.equal(saved[f"backbone.body.{learned}"], state[learned])


def test_the_body_computes_what_the_classifier_did():
    state = resnet18_state()
    classifier = torchvision.models.resnet18(num_classes=10).eval()
    classifier.load_state_dict(state)
    network = mask_rcnn(3, backbone="resnet18", channels=8).train()
    assert load_backbone(network, state) == 100
    images = torch.rand(2, 3, 64, 64)
    features = network.backbone.body(images)["3"].mean((2, 3))
    torch.testing.assert_close(classifier.fc(features), classifier(images))


def test_checkpoints_of_this_repository_and_files_of_others_load(tmp_path, capsys):
    state = resnet18_state()
    classifier = torchvision.models.resnet18(num_classes=10)
    classifier.load_state_dict(state)
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": wrapped, "epoch": 90}, tmp_path / "others.pt")
    rcnn = {f"model.backbone.body.{k}": v for k, v in state.items() if not k.startswith("fc.")}
    torch.save(rcnn | {"model.rpn.head.conv.0.0.bias": torch.zeros(8)}, tmp_path / "rcnn.pt")
    ours = checkpoint.save(tmp_path, 7, model=classifier, batch_size=256)
    for path in (ours, *(tmp_path / f"{name}.pt" for name in ("plain", "others", "rcnn"))):
        network = mask_rcnn(3, backbone="resnet18", channels=8)
        initialise(network, settings(tmp_path, init=str(path)))
        body = network.backbone.body.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in body.items())
    assert "1 are unused: rpn.head.conv.0.0.bias." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ("resnet34", "unknown"),
        ("resnet50", "another shape"),
        ("mini", "missing"),
        ("nan", "not finite"),
    ],
)
def test_weights_of_another_network_are_one_sentence(tmp_path, other, word):
    state = resnet18_state()
    if other == "nan":
        state["conv1.weight"].fill_(math.nan)
    elif other == "mini":
        state = {"stem.weight": torch.zeros(3)}
    else:
        state = torchvision.models.get_model(other, weights=None).state_dict()
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=word) as caught:
        train(settings(tmp_path / "run", init=str(tmp_path / "other.pt")))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/other.pt: ")
    assert "model.backbone=resnet18" in message
    assert "\n" not in message
    assert len(message) < 1500


def test_a_file_that_is_no_weights_is_one_sentence(tmp_path):
    (tmp_path / "text.pt").write_text("not weights at all")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("text.pt", "list.pt", "absent.pt"):
        with pytest.raises(ValueError, match=name):
            train(settings(tmp_path / "run", init=str(tmp_path / name)))


def test_refused_weights_change_nothing():
    network = mask_rcnn(3, backbone="resnet18", channels=8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = resnet18_state()
    del state["bn1.weight"]
    with pytest.raises(ValueError, match=r"1 missing: bn1\.weight"):
        load_backbone(network, state)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_crowds_are_not_trained_on(shared_data):
    data = TransferData(root=str(shared_data / "coco_mini"))
    dataset = Instances(data, True, None)
    index = next(i for i in range(len(dataset)) if dataset.source.target(i)["iscrowd"].any())
    _, target = dataset[index]
    alone = int((~dataset.source.target(index)["iscrowd"]).sum())
    assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"]) == alone > 0


def test_real_images_are_trained_on_and_scored(shared_data, tmp_path):
    metrics = train(settings(tmp_path, str(shared_data / "coco_mini"), steps=2))
    assert {"box_AP", "mask_AP", "box_AP50", "mask_AP_small"} <= metrics.keys()
    assert 0 <= metrics["mask_AP"] <= 100
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"]["box_AP"] == metrics["box_AP"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_mask", "loss_classifier", "loss_rpn_box_reg", "lr"} <= lines[0].keys()
    assert [line["lr"] for line in lines[:2]] == pytest.approx([0.005, 0.0005])


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    train(settings(tmp_path / "whole"))
    copied = tmp_path / "cut"
    copied.mkdir()
    name = "checkpoint-00000002.pt"
    (copied / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    train(settings(copied))
    a, b = (
        checkpoint.load(tmp_path / folder / "checkpoint-00000003.pt")["parts"]["model"]
        for folder in ("whole", "cut")
    )
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_another_number_of_gpus_does_not_resume(tmp_path):
    train(settings(tmp_path, steps=1))
    with pytest.raises(ValueError, match=r"gpus=2.*gpus=4"):
        train(settings(tmp_path, gpus=4))


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["data.root=/data/coco"], "init is not set"),
        (["init=none"], "data.root is not set"),
        (["init=none", "data.root=/data/coco", "gpus=-1"], "gpus=-1 is out of range"),
        (["transfer=small", "evaluator=fast"], "evaluator=faster"),
    ],
)
def test_what_is_missing_or_wrong_is_one_sentence(words, hint):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("transfer", [*words, "output_dir=nowhere"])
    with pytest.raises(UserError, match=hint):
        to_dataclass(cfg)


def test_the_paper_is_the_default():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["init=imagenet", "data.root=/data/coco", "output_dir=nowhere"]
        composed = to_dataclass(compose("transfer", words))
    own = TransferConfig(
        init="imagenet", data=TransferData(root="/data/coco"), output_dir="nowhere"
    )
    assert composed == own


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["init=none", "data.root=/no/such/folder"], "/no/such/folder"),
        (["transfer=small", "model.roi=3"], "model.rois"),
    ],
)
def test_the_command_says_what_is_wrong_and_exits_with_2(commands, tmp_path, words, hint):
    words = [*words, f"hydra.run.dir={tmp_path}"]
    done = commands.run("large_minibatch", *words, script="transfer.py")
    assert done.returncode == 2
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_init_may_name_the_folder_of_one_finished_run(tmp_path):
    folder = tmp_path / "batch_size=256,data=imagenet-0a1b2c3d" / "seed0"
    folder.mkdir(parents=True)
    wanted = f"{tmp_path}/batch_size=256,data=imagenet-*/seed0"
    with pytest.raises(ValueError, match="train that run first"):
        weights_file(wanted)
    for step in (100, 2000):
        (folder / f"checkpoint-{step:08d}.pt").touch()
    assert weights_file(wanted) == weights_file(str(folder)) == folder / "checkpoint-00002000.pt"
    assert weights_file(str(folder / "x.pt")) == folder / "x.pt"  # a file, there or not
    with pytest.raises(ValueError, match="no folder matches"):
        weights_file(f"{tmp_path}/batch_size=512,*/seed0")
    (tmp_path / "batch_size=256,data=imagenet-ffffffff" / "seed0").mkdir(parents=True)
    with pytest.raises(ValueError, match="2 folders match"):
        weights_file(wanted)
