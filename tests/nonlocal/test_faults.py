"""What users run into: starts, evaluations, lists and memory that only show in the whole."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

from common import timing
from common.run.log import Diverged
from nonlocal_ import benchmark, data, evaluate, prepare
from nonlocal_.block import Block
from nonlocal_.config import Data
from nonlocal_.model import Network, build_network
from nonlocal_.net.resnet import pool_pairs

from .small import photos, run, settings, videos, write_array, write_list, write_photos
from .written import write_video

pytestmark = pytest.mark.filterwarnings("ignore:A non-local block sees a map")


def test_a_loss_that_is_not_finite_stops_and_names_step_part_and_clips(tmp_path):
    cfg = settings(tmp_path, lr=1e30, momentum=0.0)
    with pytest.raises(Diverged, match=r"loss is not finite in step [23] .*clip \d"):
        run(cfg)


@pytest.mark.parametrize(
    ("lr", "part"), [(3e38, "next"), (1e30, "test")], ids=["weights", "scores"]
)
def test_what_the_last_step_ruins_is_divergence_too(tmp_path, lr, part):
    """Weights that overflow, and finite ones with which the network overflows."""
    cfg = settings(tmp_path, steps=1, lr=lr, weight_decay=1e4 if part == "next" else 0.0)
    with pytest.raises(Diverged, match=f"the {part} loss is not finite in step 1 .*clip \\d"):
        run(cfg)
    assert json.loads((tmp_path / "result.json").read_text())["diverged"] == {
        "step": 1,
        "part": part,
    }
    assert not (tmp_path / "predictions.jsonl").exists()
    assert bool(list(tmp_path.glob("checkpoint-*"))) == (part == "test")


def test_a_run_that_started_from_an_image_network_is_evaluated_from_its_own_checkpoint(
    tmp_path, monkeypatch
):
    """The command of the run with only_evaluate=true; init has no classifier of its classes."""
    cfg = settings(tmp_path, steps=1)
    metrics = run(cfg)
    weights = tmp_path / "images.pth"
    state = build_network(cfg.network, cfg.block, 9).state_dict()
    torch.save({n: v for n, v in state.items() if not n.startswith("fc.")}, weights)
    again = replace(cfg, only_evaluate=True, init=str(weights), new_classifier=False)
    monkeypatch.setattr("common.run.options.Options.changes", lambda *_: ({}, {}))  # of `init`
    assert run(again) == metrics


def test_a_detector_whose_heads_are_random_is_not_evaluated(tmp_path):
    root = write_photos(tmp_path / "coco")
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    cfg = photos(root, tmp_path / "run", only_evaluate=True, init=str(tmp_path / "resnet18.pth"))
    with pytest.raises(ValueError, match="nothing to evaluate"):
        run(cfg)


def test_what_processes_exchange_is_one_line_of_probabilities_a_video(tmp_path, monkeypatch):
    """Kinetics has 600,000 views of 400 classes: 2 GB, several times over in a pickle."""
    classes, count = 400, 4
    for number in range(count):
        write_array(tmp_path / f"{number}.npy", 9, 64, 64, seed=number)
    (tmp_path / "val.txt").write_text("".join(f"{n}.npy {n}\n" for n in range(count)))
    (tmp_path / "names").write_text("".join(f"class {k}\n" for k in range(classes)))
    cfg = settings(tmp_path, data=videos(tmp_path, train="val.txt", classes="names"))
    cfg.test.clips, cfg.test.crops, cfg.test.size, cfg.test.batch_size = 10, 3, 64, 8
    model = build_network(Network(depth="small"), Block(), classes)
    sent: list[int] = []

    def gather(part: Any) -> list[Any]:
        sent.append(len(pickle.dumps(part)))
        return [part]

    monkeypatch.setattr("common.dist.gather", gather)
    evaluate.score_videos(model, cfg, data.build(cfg, training=False))
    assert sent[0] < 2 * 8 * classes * count * 2  # sum and largest, float64


def test_the_commands_of_the_readme_lead_from_a_folder_to_its_training(tmp_path, monkeypatch):
    pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")
    (tmp_path / "flat" / "videos").mkdir(parents=True)
    write_video(tmp_path / "flat" / "videos" / "a.mp4", 10)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "videos" / split / name).mkdir(parents=True)
            write_video(tmp_path / "videos" / split / name / "a.mp4", 10)
    monkeypatch.chdir(tmp_path)
    text = (Path(prepare.__file__).parent / "README.md").read_text()
    for line in text.splitlines():
        if line.startswith("python prepare.py"):
            words = line.partition("#")[0].split()[2:]
            monkeypatch.chdir(tmp_path / "flat" if "classes=file" in words else tmp_path)
            prepare.main([*words, *([] if words[0] == "list" else ["processes=0"])])
    monkeypatch.chdir(tmp_path)
    for training in (True, False):
        found = data.build(
            settings(tmp_path, data=Data(root="small", train="train", val="val")),
            training=training,
        )
        assert found.names == ["cat", "dog"]
        assert [Path(record.path).parts[:2] for record in found.records] == [
            ("small", "train" if training else "val")
        ] * 2


def test_frames_of_another_quality_want_another_folder(tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")
    (tmp_path / "videos" / "run").mkdir(parents=True)
    write_video(tmp_path / "videos" / "run" / "a.mp4", 3)
    words = ["frames", f"list={tmp_path / 'videos'}", f"out={tmp_path / 'out'}", "processes=0"]
    prepare.main(words)
    with pytest.raises(ValueError, match="out was made with"):
        prepare.main([*words, "quality=50"])


def test_too_many_bad_videos_stop_with_the_command_that_lists_the_good_ones(tmp_path):
    write_list(tmp_path, "train", ["0", "1", "1", "0"])
    write_list(tmp_path, "val", ["0"])
    for number in (1, 2):
        (tmp_path / f"train{number}.npy").write_bytes(b"no array")
    cfg = settings(tmp_path / "run", data=videos(tmp_path, bad_videos="skip"), steps=2)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match=r"python prepare\.py check") as error,
    ):
        run(cfg)
    assert "limit=" not in str(error.value)  # data.limit is another option


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["embedded_gaussian", "dot_product", "concatenation"])
def test_a_network_with_blocks_compiles_as_one_graph(mode):
    torch.manual_seed(0)
    block = Block(mode=mode, zero_init="none", init="he")
    network = Network(depth="small", inflate="3x1x1", at=["res2.0", "res3.0"], dropout=0.0)
    model = build_network(network, block, 3).eval()
    clips = torch.randint(0, 256, (2, 3, 8, 48, 48), dtype=torch.uint8)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(clips), model(clips))


@pytest.mark.slow
def test_concatenation_takes_less_than_twice_the_memory_of_the_softmax_by_its_matrix() -> None:
    options, shape = benchmark.Options(threads=1), (1, 32, 16, 28, 28)

    def memory(what: str, name: str) -> int | None:
        found = timing.in_new_process(benchmark.block_memory, [name], what, shape, options)
        return found[name]

    ours, softmax = memory("concat", "ours"), memory("block", "the matrix")
    if ours is None or softmax is None:
        pytest.skip("this system does not tell the peak of the memory")
    assert ours < 2 * softmax


def test_32_frames_with_stride_4_of_the_fast_variant_give_the_maps_of_128_frames():
    maps = []
    for variant, frames in (("org", 128), ("fast", 32)):
        with torch.device("meta"):
            network = Network(variant=variant, inflate="3x1x1", at=["5-block"], norm="frozen")
            model = build_network(network, Block(norm="none"), 400)
            x = model.pool1(model.conv1(torch.empty(1, 3, frames, 224, 224)))
            maps.append(model.layer2[0](pool_pairs(model.layer1(x))).shape)
        assert sum(value.numel() for value in model.parameters()) > 35_000_000
    assert maps == [(1, 512, 16, 28, 28)] * 2


def test_weights_of_a_deeper_network_are_refused(tmp_path):
    from nonlocal_.net.resnet import Sizes, VideoNetwork

    from .test_weights import initialise, narrow
    from .test_weights import settings as options

    deep = VideoNetwork(Sizes((3, 8, 36, 3), (8, 8, 8, 8), (8, 7, 5), 1, (1, 1), 0), 5)
    torch.save(deep.state_dict(), tmp_path / "152.pth")  # of a ResNet-152, by its names
    cfg = options(tmp_path / "152.pth", {"depth": "resnet101"})
    with pytest.raises(ValueError, match=r"152\.pth has layer2\.4\.conv1\.weight, .* lacks"):
        initialise(narrow(cfg.network, cfg.block), cfg)


def test_faults_of_a_list_name_the_options_of_this_command(tmp_path):
    write_array(tmp_path / "a.npy", 3)
    (tmp_path / "x.txt").write_text("a.npy cat\n")
    for words, option in (
        (["list", f"root={tmp_path}", f"out={tmp_path / 'l.txt'}"], r"prepare\.py: classes=file"),
        (["check", f"list={tmp_path / 'x.txt'}"], r"prepare\.py names=FILE"),
    ):
        with pytest.raises(ValueError, match=option):
            prepare.main(words)
