"""Published weights load by their names or are refused with the reason; others load our trunk."""

import copy
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.regnet import BlockParams

from common.run import checkpoint
from hashtag_pretrain.model import Network, build_model
from hashtag_pretrain.net.resnext import ResNeXt
from hashtag_pretrain.net.swag import SWAG, RegNet, Transformer
from hashtag_pretrain.weights import initialise as weights
from hashtag_pretrain.weights.formats import URLS, find_network
from hashtag_pretrain.weights.initialise import export_trunk, initialise, load_trunk

State = dict[str, Tensor]


def small(classes: int = 6, width: int = 8) -> nn.Module:
    return build_model(Network("small", width=width), classes)


def tiny(classes: int = 10, width: int = 8) -> ResNeXt:
    return ResNeXt((1, 1, 1, 1), 2, width, classes=classes)


def holds(model: nn.Module, state: State, but: str = "-") -> bool:
    """Whether all of the model's tensors, but for names that start so, are the state's."""
    own = {name: v for name, v in model.state_dict().items() if not name.startswith(but)}
    return all(torch.equal(value, state[name]) for name, value in own.items())


@pytest.fixture
def theirs() -> ResNeXt:
    torch.manual_seed(5)
    return tiny()


def save(content: object, path: Path, **options: bool) -> str:
    torch.save(content, path, **options)
    return str(path)


# Files of others


@pytest.mark.parametrize("zipped", [True, False])
def test_torchvisions_names_load_whole(theirs, tmp_path, zipped):
    """As of WSL, whose files are of PyTorch 1.1."""
    file = save(theirs.state_dict(), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    model = tiny()
    report = initialise(model, file)
    assert holds(model, theirs.state_dict())
    assert (report.loaded, report.kept, report.notes) == (len(theirs.state_dict()), [], [])


def test_fixres_files_load_from_under_their_prefix(theirs, tmp_path):
    content = {"model": {f"module.{name}": v for name, v in theirs.state_dict().items()}}
    model = tiny()
    initialise(model, save(content | {"epoch": 1}, tmp_path / "ResNeXt_101.pth"))
    assert holds(model, theirs.state_dict())


def test_files_without_counters_of_batches_load(theirs, tmp_path):
    state = {n: v for n, v in theirs.state_dict().items() if "num_batches" not in n}
    model = tiny()
    assert initialise(model, save(state, tmp_path / "x.pt")).kept == []
    assert holds(model, theirs.state_dict())


def test_a_large_file_is_mapped_and_gives_the_same(theirs, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "LARGE", 0)
    model = tiny()
    file = save(theirs.state_dict(), tmp_path / "x.pt")
    initialise(model, file)
    assert holds(model, theirs.state_dict())
    content = bytearray(Path(file).read_bytes())
    content[200:300] = bytes(100)
    Path(file).write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pt is refused"):
        initialise(model, file)


@pytest.mark.parametrize(
    "name", ["ig_resnext101_32x8-{}.pth", "semi_weakly_supervised_resnet50-{}.pth"]
)
def test_a_published_file_must_have_the_digest_of_its_name(theirs, tmp_path, name):
    file = save(theirs.state_dict(), tmp_path / "x")
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:8]
    good, bad = tmp_path / name.format(digest), tmp_path / name.format("0badf00d")
    for path in (good, bad):
        path.write_bytes(Path(file).read_bytes())
    model = tiny()
    initialise(model, good)
    assert holds(model, theirs.state_dict())
    with pytest.raises(ValueError, match=f"starts with {digest}, not with the 0badf00d"):
        initialise(model, bad)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ig_resnext101_32x8.pth", True),
        ("semi_supervised_resnet50.pth", True),
        ("ResNext101_32x48d_v2.pth", True),
        ("fb_wsl_ig1b_ft_in1k.bin", True),
        ("resnext101_32x8d.pth", False),
        ("trunk_resnext101_32x48d.pt", False),
    ],
)
def test_the_licence_of_noncommercial_weights_is_told_once(theirs, tmp_path, name, told):
    report = load_trunk(tiny(), save(theirs.state_dict(), tmp_path / name))
    assert str(report).count("CC-BY-NC 4.0: not for commercial use") == told


# Networks that do not fit


def test_the_16d_file_is_refused_as_8d_with_the_name_that_fits(tmp_path):
    """timm redirects the older names of 16d, 32d and 48d to the file of 8d."""
    models = {}
    for width in (8, 16):
        with torch.device("meta"):
            models[width] = build_model(Network(f"resnext101_32x{width}d"), 1000)
    model, before = models[8], models[8].state_dict()
    found = weights.Weights(models[16].state_dict(), "ig_resnext101_32x16.pth")
    with pytest.raises(
        ValueError, match=r"x16\.pth does not fit the model: .*\d+ of another shape"
    ):
        weights.load(model, found)
    with pytest.raises(ValueError, match=r"set network\.name=resnext101_32x16d\. It has "):
        weights.load(model, found)
    assert all(value is before[name] for name, value in before.items())


def test_a_small_network_of_another_width_is_named(tmp_path):
    file = save(small(width=16).state_dict(), tmp_path / "x.pt")
    model = small()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"set network\.name=small network\.width=16\."):
        initialise(model, file)
    assert holds(model, before)


def test_half_a_file_is_refused_and_changes_nothing(theirs, tmp_path):
    state = theirs.state_dict()
    del state["layer2.0.conv1.weight"]
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"1 missing: layer2\.0\.conv1\.weight"):
        load_trunk(model, save(state, tmp_path / "x.pt"))
    assert holds(model, before)


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d", "resnext101_32x8d"])
def test_torchvisions_networks_are_found_by_their_shapes(name):
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    assert find_network(state) == f"network.name={name}"


@pytest.mark.parametrize("name", SWAG.values())
def test_swags_networks_have_their_parameters_and_are_found_by_their_shapes(name, monkeypatch):
    widths = BlockParams.from_init_params

    def compute(*args: float, **options: float) -> BlockParams:
        with torch.device("cpu"):
            return widths(*args, **options)

    monkeypatch.setattr(BlockParams, "from_init_params", compute)
    with torch.device("meta"):  # shapes need no values, but for the widths of the blocks
        model = build_model(Network(name), 1000)
    published = torchvision.models.get_model_weights(name)["IMAGENET1K_SWAG_LINEAR_V1"]
    assert sum(each.numel() for each in model.parameters()) == published.meta["num_params"]
    side = " network.side=224" if "vit" in name else ""
    assert find_network(model.state_dict()) == f"network.name={name}{side}"
    assert SWAG[model.fc.in_features] == name


def tiny_swag(kind: str) -> tuple[nn.Module, Callable[[nn.Module], nn.Module]]:
    """A network of torchvision of ten classes, and ours around such."""
    if kind == "regnet":
        params = BlockParams.from_init_params(
            depth=6, w_0=8, w_a=8.0, w_m=2.0, group_width=8, se_ratio=0.25
        )
        return torchvision.models.RegNet(params, 10, stem_width=8), RegNet
    net = torchvision.models.VisionTransformer(32, 16, 2, 2, 8, 16, num_classes=10)
    nn.init.normal_(net.heads.head.weight)  # which torchvision leaves at zero
    return net, Transformer


@pytest.mark.parametrize("kind", ["regnet", "vit"])
def test_torchvisions_file_of_swag_loads_whole_and_gives_the_same_logits(tmp_path, kind):
    torch.manual_seed(2)
    theirs, make = tiny_swag(kind)
    model = make(copy.deepcopy(tiny_swag(kind)[0])).eval()
    file = save(theirs.state_dict(), tmp_path / f"{kind}_swag-0000.pth")
    report = initialise(model, file, complete=True)
    assert report.kept == []
    assert report.notes == [weights.LICENCE]
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(images), theirs.eval()(images))
    model.fc = nn.Identity()
    torch.testing.assert_close(model.features(images), model(images))


def test_a_transformer_says_which_images_it_takes():
    with torch.device("meta"), pytest.raises(ValueError, match=r"side=32 .*, not of 24: give si"):
        Transformer(tiny_swag("vit")[0])(torch.rand(1, 3, 24, 24))


@pytest.mark.parametrize("name", ["resnet18", "resnet101", "wide_resnet50_2"])
def test_a_network_that_is_not_here_is_not_found(name):
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    assert find_network(state) == ""


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["class_token", "encoder.layers.x"], "in no known format (it holds class_token, "),
        (["a", "b"], "in no known format (it holds a, b)"),
    ],
)
def test_weights_of_other_kinds_are_named(tmp_path, names, sentence):
    file = save({name: torch.zeros(1) for name in names}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_trunk(tiny(), file)


# Words


@pytest.mark.parametrize(("word", "count"), [("wsl", 4), ("swsl", 5), ("ssl", 5)])
def test_the_names_of_downloads_are_those_of_their_networks(word, count):
    assert len(URLS[word]) == count
    for name, url in URLS[word].items():
        file = url.rpartition("/")[2]
        assert weights.HASHED.fullmatch(file)
        assert weights.NONCOMMERCIAL.search(file)
        assert file.partition("res")[2].partition("-")[0] == name.removeprefix("res").removesuffix(
            "d" if "x" in name[4:] else ""
        )


def test_a_word_downloads_the_networks_own_file_and_checks_it(monkeypatch):
    model, asked = build_model(Network("resnet50"), 10), []
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}

    def fetch(url: str, *, map_location: str, check_hash: bool, weights_only: bool) -> State:
        asked.append((url, check_hash, weights_only))
        return state

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    report = load_trunk(model, "swsl")
    assert asked == [(URLS["swsl"]["resnet50"], True, True)]
    assert not model.conv1.weight.any()
    assert model.fc.weight.any()
    assert weights.LICENCE in report.notes


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("wsl", "init=wsl: small has none; there are resnext101_32x8d, "),
        ("imagenet", "init=imagenet: torchvision has none for small; give a file"),
        ("swag", "init=swag: torchvision has none for small; give a file"),
    ],
)
def test_a_word_without_weights_for_the_network_is_told(word, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        initialise(small(), word)


# The last layer


def test_the_trunk_alone_leaves_the_last_layer(theirs, tmp_path):
    model = tiny()
    before = copy.deepcopy(model.fc.state_dict())
    report = load_trunk(model, save(theirs.state_dict(), tmp_path / "x.pt"))
    assert holds(model, theirs.state_dict(), but="fc.")
    assert all(torch.equal(value, before[name]) for name, value in model.fc.state_dict().items())
    assert report.kept == ["fc.weight", "fc.bias"]


def test_a_last_layer_of_other_classes_is_left_and_told(theirs, tmp_path):
    file = save(theirs.state_dict(), tmp_path / "x.pt")
    report = initialise(tiny(7), file)
    assert report.notes == [
        "The last layer stays as initialised: the file has 10 classes, the model 7."
    ]
    with pytest.raises(ValueError, match="10 classes, the model 7, so that there is nothing to ev"):
        initialise(tiny(7), file, complete=True)


@pytest.mark.parametrize(
    ("digest", "reason"),
    [
        ("abc", ""),
        ("def", "the file has another vocabulary of as many tags"),
        (None, "the file does not tell its vocabulary"),
    ],
)
def test_a_last_layer_of_another_vocabulary_is_left_and_told(tmp_path, digest, reason):
    run = small()
    parts = {"model": run, "options": {}} | ({"vocabulary": digest} if digest else {})
    checkpoint.save(tmp_path, 3, **parts)
    checkpoint.unlock(tmp_path)
    model = small()
    report = initialise(model, tmp_path, vocabulary="abc")
    assert holds(model, run.state_dict(), but="fc." if reason else "-")
    assert report.notes == ([f"The last layer stays as initialised: {reason}."] if reason else [])


# Runs of ours


def test_a_runs_newest_checkpoint_is_taken_and_its_pixels_are_told(tmp_path):
    runs = [small(), small()]
    options = {"network.mean": [0.5, 0.5, 0.5], "network.std": [0.25, 0.25, 0.25]}
    for step, run in enumerate(runs, 1):
        checkpoint.save(tmp_path, step, model=run, options=options)
    checkpoint.unlock(tmp_path)
    model = small()
    report = load_trunk(model, tmp_path)
    assert holds(model, runs[1].state_dict(), but="fc.")
    assert report.notes == [
        "These weights want pixels of network.mean=[0.5,0.5,0.5] network.std=[0.25,0.25,0.25]."
    ]


@pytest.mark.parametrize("loading", [load_trunk, initialise])
def test_a_runs_weights_are_refused_for_images_that_are_normalised_otherwise(tmp_path, loading):
    run, model, own = small(), small(), ([0.5] * 3, [0.25] * 3)
    options = {"network.mean": own[0], "network.std": own[1]}
    checkpoint.save(tmp_path, 1, model=run, options=options)
    checkpoint.unlock(tmp_path)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"with network\.mean=\[0\.5,0\.5,0\.5\] .*: give these"):
        loading(model, tmp_path, pixels=(own[0], [0.2] * 3))
    assert holds(model, before)
    assert not loading(model, tmp_path, pixels=own).notes
    assert holds(model, run.state_dict(), but="fc." if loading is load_trunk else "-")


def test_of_a_run_with_averaged_weights_these_are_taken(tmp_path):
    run, model = small(), small()
    average = torch.optim.swa_utils.AveragedModel(small(), use_buffers=True)
    checkpoint.save(tmp_path, 1, model=run, average=average)
    checkpoint.unlock(tmp_path)
    initialise(model, tmp_path)
    assert holds(model, average.module.state_dict())


def test_a_folder_without_checkpoints_is_told(tmp_path):
    with pytest.raises(ValueError, match="has no checkpoint: train that run first"):
        load_trunk(small(), tmp_path)


# Export


def torchvision_tiny(norm: type[nn.Module] | None = None) -> torchvision.models.ResNet:
    """torchvision's network of the shape of `tiny`."""
    block = torchvision.models.resnet.Bottleneck
    return torchvision.models.ResNet(
        block, [1, 1, 1, 1], groups=2, width_per_group=8, norm_layer=norm
    )


def test_torchvisions_resnet_loads_the_trunk_and_computes_the_same_features(theirs, tmp_path):
    export_trunk(theirs.eval(), tmp_path / "trunk.pt")
    content = torch.load(tmp_path / "trunk.pt", weights_only=True)
    net = torchvision_tiny().eval()
    net.fc = nn.Identity()
    net.load_state_dict(content["state_dict"])
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(net(images), theirs.features(images))
    model = tiny()
    assert load_trunk(model, tmp_path / "trunk.pt").loaded == len(content["state_dict"])
    assert holds(model, theirs.state_dict(), but="fc.")


def test_an_exported_file_tells_network_and_pixels(tmp_path):
    export_trunk(small(), tmp_path / "trunk.pt", mean=(0.5, 0.4, 0.3))
    meta = torch.load(tmp_path / "trunk.pt", weights_only=True)["meta"]
    assert meta["network"] == "network.name=small network.width=8"
    assert (meta["mean"], meta["std"]) == ([0.5, 0.4, 0.3], [0.229, 0.224, 0.225])
    assert meta["channels"] == "RGB"


def test_mask_rcnn_loads_the_trunk_without_a_missing_backbone_key(tmp_path):
    model = tiny()
    export_trunk(model, tmp_path / "trunk.pt", form="detection")
    state = torch.load(tmp_path / "trunk.pt", weights_only=True)["state_dict"]
    body = torchvision_tiny(torchvision.ops.FrozenBatchNorm2d)
    detector = MaskRCNN(_resnet_fpn_extractor(body, 3), num_classes=3)
    missing, unexpected = detector.load_state_dict(state, strict=False)
    assert not [name for name in missing if name.startswith("backbone.body.")]
    assert unexpected == []
    torch.testing.assert_close(detector.backbone.body.conv1.weight, model.conv1.weight)


def detectron2_key(name: str) -> str:
    """What tools/convert-torchvision-to-d2.py of detectron2 makes of a name."""
    if "layer" not in name:
        name = f"stem.{name}"
    for number in (1, 2, 3, 4):
        name = name.replace(f"layer{number}", f"res{number + 1}")
    for number in (1, 2, 3):
        name = name.replace(f"bn{number}", f"conv{number}.norm")
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def test_detectron2_gets_the_names_of_its_own_converter(tmp_path):
    with torch.device("meta"):
        names = build_model(Network(), 5).state_dict()
    wanted = [n for n in names if not n.startswith("fc.") and "num_batches" not in n]
    model = tiny()
    export_trunk(model, tmp_path / "trunk.pth", form="detectron2", mean=(0.5, 0.4, 0.3))
    content = torch.load(tmp_path / "trunk.pth", weights_only=True)
    own = [n for n in wanted if n in model.state_dict()]
    assert list(content["model"]) == [detectron2_key(name) for name in own]
    found = weights.rename_trunk(names, "detectron2")
    assert list(found) == [detectron2_key(name) for name in wanted]
    assert torch.equal(content["model"]["res2.0.conv2.weight"], model.layer1[0].conv2.weight)
    assert content["matching_heuristics"] is True
    assert content["meta"]["MODEL.PIXEL_MEAN"] == pytest.approx([127.5, 102.0, 76.5])


def test_an_unknown_form_is_refused_before_a_file_is_written(tmp_path):
    with pytest.raises(ValueError, match="form=caffe2: choose from torchvision, detection, dete"):
        export_trunk(small(), tmp_path / "x.pt", form="caffe2")
    assert not list(tmp_path.iterdir())
