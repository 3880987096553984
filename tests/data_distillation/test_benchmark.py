"""The benchmark of data_distillation, on tiny inputs: what it compares and prints."""

import json

import pytest
import torch
from hydra.core.config_store import ConfigStore
from torch import nn

from common.images import read_image
from data_distillation import benchmark
from data_distillation.benchmark import Options
from data_distillation.config import Config
from data_distillation.model import Network, build_detector

SIZES = {"labelled": 12, "unlabelled": 8, "test": 6}
FEW = ["batch_size=4", "images_per_gpu=2", *(f"data.builtin.{k}={v}" for k, v in SIZES.items())]


def build_narrow(options: Options) -> nn.Module:
    torch.manual_seed(0)
    network = Network(
        backbone="small",
        channels=16,
        hidden=32,
        keypoint_convs=1,
        keypoint_channels=16,
        anchors=[16, 32],
        short_sides=[options.size],
        long_side=2 * options.size,
        proposals=[20, 20],
        detections=options.persons,
        cls_std=0.5,
    )
    return build_detector("keypoints", 1, 17, network)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """Keep the number of threads of the other tests, and give Hydra this folder's options."""
    before = torch.get_num_threads()
    ConfigStore.instance().store("schema", Config)
    monkeypatch.setattr(benchmark, "build_teacher", build_narrow)
    monkeypatch.setattr(benchmark, "STEPS", 3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("what", "words", "told"),
    [
        ("labels", ["size=64", "persons=3"], "labels a second"),
        ("decode", ["regions=4", "sides=[8,40]"], "sides are log-uniform"),
        ("mixture", [f"settings=[{','.join(FEW)}]"], "% of the student's steps"),
    ],
)
def test_contestants_with_equal_results_are_timed_and_printed(what, words, told, tmp_path, capsys):
    out = tmp_path / "out.json"
    benchmark.main([f"what={what}", "threads=1", "repeats=2", *words, f"out={out}"])
    results, printed = json.loads(out.read_text())["results"], capsys.readouterr().out
    assert len(results) == (3 if what == "mixture" else 2)
    assert results[0]["name"] == "ours"
    assert all(min(row["seconds"]) > 0 for row in results)
    assert printed.count(f"\n| {what} ") == len(results)
    assert told in printed
    assert "load average" in printed


def test_both_label_the_persons_of_the_plain_pass_in_18_passes():
    options = Options(size=64, persons=3)
    passes = []
    ours, theirs = benchmark.labels(options).values()
    model = theirs.args[0]
    hook = model.backbone.register_forward_hook(lambda *call: passes.append(len(call[2])))
    found = ours()
    assert len(passes) == 9  # an image and its mirror image at a time
    assert found["keypoints"].shape == (3, 17, 3)
    passes.clear()
    other = theirs()
    assert len(passes) == 18
    hook.remove()
    plain = read_image(theirs.args[1]) / 255
    with torch.no_grad():
        (single,) = model([plain])  # whose heads are torchvision's again
    for name in ("boxes", "scores", "labels"):
        torch.testing.assert_close(found[name], single[name])
        assert torch.equal(other[name], single[name])
    assert not torch.allclose(found["keypoints"][..., :2], single["keypoints"][..., :2])


def test_maps_have_their_peaks_where_the_joints_are():
    maps, boxes = benchmark.make_maps(Options(regions=5, sides=[32, 256]))
    assert maps.shape == (5, 17, 56, 56)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(5, 17))
    assert maps.amax((2, 3)).median() > 20 / 56**2
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() >= 32 - 1e-3
    assert sides.max() <= 256 + 1e-3


def test_a_student_on_a_gpu_is_the_papers():
    options = Options()
    options.device = "cuda"
    cfg = benchmark.student_run(options)
    assert (cfg.network.backbone, cfg.network.short_sides[-1], cfg.amp) == ("resnet50", 800, True)
    assert cfg.data.name == "builtin"


def test_other_results_stop_the_benchmark():
    points = torch.rand(3, 17, 2)
    benchmark.require_same("decode", [points, points + 5e-4])
    with pytest.raises(AssertionError, match="not close"):
        benchmark.require_same("decode", [points, points + 2e-3])
    image, target = (
        torch.zeros(3, 4, 4),
        {"boxes": torch.ones(1, 4), "keypoints": torch.ones(1, 9, 3)},
    )
    batches = [([image + x], [target | {"file": "a.png"}]) for x in (0, 1)]
    benchmark.require_same("mixture", [batches[:1], batches[:1]])
    with pytest.raises(AssertionError, match="not close"):
        benchmark.require_same("mixture", [batches[:1], batches[1:]])


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("what=label", "what=labels"),
        ("sides=[9,3]", "the fewest and the most"),
        ("regions=0", "regions"),
    ],
)
def test_wrong_values_are_answered_with_a_sentence(word, sentence):
    with pytest.raises(SystemExit, match=sentence):
        benchmark.main([word])
