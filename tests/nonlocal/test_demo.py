"""A video in: its classes, its features, and a picture of what a block attends to."""

import pickle
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.run import checkpoint
from common.run.options import Options
from nonlocal_ import demo
from nonlocal_.config import may_change
from nonlocal_.inputs.builtin import MatchClips
from nonlocal_.model import Network, build_network
from nonlocal_.net.resnet import Sizes

from .small import settings, videos, write_array
from .test_weights import COUNTER, caffe2_name

pytestmark = pytest.mark.filterwarnings("ignore:A non-local block sees a map")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a run on videos, one on the built-in clips, and a video."""
    folder = tmp_path_factory.mktemp("demo")
    cfg = settings(folder / "seed=1", data=videos(folder), task="classification")
    cfg.network = Network(depth="small", at=["res2.0", "res3.0"])
    cfg.test.clips, cfg.test.crops, cfg.test.fuse = 2, 3, "max"
    cfg.clip.frames = 2
    torch.manual_seed(0)
    for name, each in (("seed=1", cfg), ("builtin", settings(folder / "builtin"))):
        model = build_network(each.network, each.block, 2)
        with torch.no_grad():
            model.fc.weight.normal_(std=3)
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm3d):
                    module.weight.fill_(0.5)  # blocks that change something
        (folder / name).mkdir()
        options = Options(each, may_change(each))
        names = ["cat", "dog"]
        checkpoint.save(folder / name, 3, model=model, classes=names, options=options)
    write_array(folder / "noise.npy", 9, 40, 48)
    return folder


@pytest.fixture
def type_words(monkeypatch, capsys, tmp_path):
    """`python demo.py words...` in a folder of its own; what it prints, line by line."""

    def answer(*words: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, words)])
        demo.main()
        return capsys.readouterr().out.splitlines()

    monkeypatch.chdir(tmp_path)
    return answer


def test_classes_are_those_of_all_views_and_features_and_a_picture_are_written(
    home, type_words, tmp_path
):
    video = home / "noise.npy"
    *lines, features, last = type_words(home / "seed=1", video, "features=f.npy")
    assert (features, last) == ("f.npy", "outputs/noise_attention.png")
    trained = demo.load(str(home / "seed=1"), [])
    assert not trained.model.training
    views = demo.data.views_of([demo.Record(str(video), (0,))], trained.cfg, trained.names)
    clips = torch.cat([views[k][0] for k in range(2)])
    assert clips.shape == (6, 3, 2, 32, 32)
    with torch.no_grad():
        scores = trained.model.scores(clips).amax(0)
        mean = trained.model.features(clips).mean((2, 3, 4))
    best = scores.argsort(descending=True).tolist()
    assert lines == [f"{100 * scores[k]:5.1f} %  {['cat', 'dog'][k]}" for k in best]
    np.testing.assert_allclose(np.load("f.npy"), mean.numpy(), atol=1e-5)
    with Image.open(tmp_path / last) as drawn:
        assert min(drawn.size) > 32


def test_any_block_and_place_can_be_drawn_and_options_of_the_run_changed(home, type_words):
    words = [home / "seed=1" / "checkpoint-00000003.pt", home / "noise.npy", "test.crops=1"]
    pictures = []
    for number, more in enumerate(([], ["block=layer1.0.nl"], ["at=[0.9,0.1,0.1]"])):
        out = f"{number}.png"
        assert type_words(*words, *more, f"out={out}")[-1] == out
        pictures.append(Path(out).read_bytes())
    assert len(set(pictures)) == 3
    Path("names").write_text("chat\nchien\n")
    assert {line.split()[-1] for line in type_words(*words, "classes=names")[:2]} == {
        "chat",
        "chien",
    }


def test_a_run_on_the_built_in_clips_sees_a_clip_as_in_its_test(home, type_words, tmp_path):
    cfg = settings(tmp_path)
    clips = MatchClips(cfg.data.builtin, "test")
    clip = clips[0][0]
    np.save(tmp_path / "clip.npy", clip.permute(1, 2, 3, 0).numpy())
    trained = demo.load(str(home / "builtin"), [])
    with torch.no_grad():
        expected = trained.model.scores(clip[None])[0]
    first, *_ = type_words(home / "builtin", "clip.npy")
    assert first == f"{100 * expected.max():5.1f} %  {['cat', 'dog'][int(expected.argmax())]}"


def test_a_network_without_blocks_draws_nothing(home, type_words, tmp_path):
    cfg = settings(tmp_path / "run", data=videos(home), network=Network(depth="small"))
    model = build_network(cfg.network, cfg.block, 2)
    (tmp_path / "run").mkdir()
    options = Options(cfg, may_change(cfg))
    checkpoint.save(tmp_path / "run", 1, model=model, classes=["a", "b"], options=options)
    *_, last = type_words("run", home / "noise.npy", "test.clips=1", "test.crops=1")
    assert last == "The network has no non-local block to draw."
    assert not list(tmp_path.glob("*.png"))


def test_a_file_of_others_needs_the_options_of_its_network_and_names(
    home, type_words, tmp_path, monkeypatch
):
    """The official names, of a network that is narrower by the factor 8."""
    sizes = Sizes((3, 4, 6, 3), (8, 8, 8, 8), (8, 7, 5), 2, (2, 2), 0)
    monkeypatch.setattr("nonlocal_.model.sizes_of", lambda network: sizes)
    torch.manual_seed(0)
    cfg = replace(settings(tmp_path), network=Network(at=["res4.4"]))
    state = build_network(cfg.network, cfg.block, 3).state_dict()
    blobs = {caffe2_name(n): v.numpy() for n, v in state.items() if not n.endswith(COUNTER)}
    (tmp_path / "nl.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    Path("names").write_text("run\nsit\nwalk\n")
    words = ["nl.pkl", home / "noise.npy", "clip.frames=8", "test.size=64", "test.clips=1"]
    words += ["classes=names", "test.crops=1", "network.at=[res4.4]"]
    printed = type_words(*words)
    assert any("CC-BY-NC" in line for line in printed)
    assert {line.split()[-1] for line in printed if line.endswith(("run", "sit", "walk"))} == {
        "run",
        "sit",
        "walk",
    }
    assert printed[-1] == "outputs/noise_attention.png"
    Path("names").write_text("run\nsit\n")
    with pytest.raises(ValueError, match=r"names has 2 classes, and nl\.pkl 3"):
        type_words(*words)
    with pytest.raises(ValueError, match=r"set network\.at=\[res4\.4\]"):
        type_words(*words[:-1], "classes=")


WRONG = [
    ([], "usage"),
    (["block=layer9"], r"block=layer9 is not there: choose layer1\.0\.nl, layer2\.0\.nl"),
    (["at=[0.5,2,0]"], r"at=\[0\.5, 2, 0\]: give shares"),
    (["at=[a,b,c]"], "give shares"),
    (["at=[0.5"], "a list does not end"),
    (["classes=none.txt"], r"none\.txt cannot be read"),
    (["test.clip=1"], "clip"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=lambda each: str(each)[:30])
def test_faults_are_one_sentence(words, sentence, home, type_words, monkeypatch, capsys):
    video = [home / "noise.npy"] if words else []
    monkeypatch.setattr(sys, "argv", ["demo.py", str(home / "seed=1"), *map(str, video), *words])
    with pytest.raises(SystemExit) as stop:
        demo.run_command(demo.main)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1
    assert re.search(sentence, printed)


def test_a_missing_video_or_run_is_named(home, type_words):
    with pytest.raises(ValueError, match=r"nothing\.mp4 does not exist"):
        type_words(home / "seed=1", "nothing.mp4")
    with pytest.raises((ValueError, OSError), match="no_run"):
        type_words("no_run", home / "noise.npy")
