"""The command that learns classes from a handful of images."""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.run import checkpoint
from common.run.options import Options
from lowshot_hallucination import data, predict
from lowshot_hallucination.config import MAY_CHANGE, Config
from lowshot_hallucination.features.formats import Features
from lowshot_hallucination.features.splits import ClassSplit
from lowshot_hallucination.features.transforms import View
from lowshot_hallucination.hallucinate import build_generator
from lowshot_hallucination.model import build_learner
from lowshot_hallucination.net.trunks import Trunk, build_trunk
from tests.lowshot_hallucination.small import write_folder

COLORS = {"red": (220, 30, 30), "green": (20, 180, 40), "blue": (30, 40, 210), "grey": (90, 90, 90)}
NOVEL = {"yellow": (240, 230, 20), "white": (245, 245, 245), "pink": (250, 90, 200)}


def write_images(folder: Path, color: tuple[int, int, int], count: int) -> Path:
    """Images 40 x 32 of a colour with noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(sum(color))
    for number in range(count):
        pixels = np.array(color) + rng.integers(-25, 26, (32, 40, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Photos of seven colours, features of four by a trunk at random, and a run on them."""
    home = tmp_path_factory.mktemp("predict")
    for name, color in (COLORS | NOVEL).items():
        write_images(home / "photos" / name, color, 6)
    torch.manual_seed(0)
    trunk, view = Trunk("small", channels=8), View(32, 32)
    network = build_trunk(trunk, 4).eval()
    parts = {"model": network, "trunk": asdict(trunk), "classes": list(COLORS)}
    checkpoint.save(home / "trunk", 1, **parts)
    rows, labels = embed(network, view, [home / "photos" / name for name in COLORS])
    split = ClassSplit(list(COLORS), [0], [1], [2], [3])
    made = {"folder": str(home / "trunk"), "options": asdict(trunk), "view": asdict(view)}
    held_out = np.arange(len(rows)) % 6 > 3
    train, test = (Features(rows[part], labels[part]) for part in (~held_out, held_out))
    write_folder(home / "features", train, test, split, made)
    write_run(home / "run", Config(features=str(home / "features")))
    return home


def embed(network, view, folders) -> tuple[np.ndarray, np.ndarray]:
    """Features of the images in folders, and the number of the folder of each."""
    files = [(k, file) for k, folder in enumerate(folders) for file in sorted(folder.iterdir())]
    images = [view.centre(predict.read_image(file)) for _, file in files]
    with torch.no_grad():
        rows = network.features(torch.stack(images)).numpy()
    return rows, np.array([k for k, _ in files])


def write_run(folder: Path, cfg: Config) -> None:
    """A run with nets at random weights, and what its test has chosen."""
    cfg.learner.embed, cfg.hallucination.init = "none", "identity_noise"
    cfg.test.shots, cfg.problem.rescale = [1, 2], True
    problem = data.build(cfg)
    width = problem.train.width
    learner = build_learner(cfg.learner, width)
    generator = build_generator(cfg.hallucination, width)
    options = Options(cfg, MAY_CHANGE)
    nets = {"learner": learner, "generator": generator}
    checkpoint.save(folder, 3, **nets, data=problem.digest(), options=options)
    chosen = {"5": {"n_aug": 9, "mu": 0.1}, "1": {"n_aug": 4, "shrink": 1.0, "mu": 0.6}}
    (folder / "chosen.json").write_text(json.dumps(chosen))


@pytest.fixture
def type_words(monkeypatch, capsys, tmp_path):
    """`python predict.py words...` in a folder of its own; what it prints, line by line."""

    def answer(*words: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["predict.py", *words])
        predict.main()
        return capsys.readouterr().out.splitlines()

    monkeypatch.chdir(tmp_path)
    return answer


def classes_of(home: Path, *names: str) -> str:
    """The add= word of these folders of photos."""
    return f"add=[{','.join(f'{name}:{home}/photos/{name}' for name in names)}]"


def test_added_classes_are_told_from_the_runs_by_images(home, type_words, tmp_path):
    images = home / "photos" / "yellow"
    lines = type_words(f"run={home}/run", classes_of(home, "yellow", "white"), f"images={images}")
    assert lines[0].startswith("2 base and 2 novel classes; probabilities as the learner has them")
    found = json.loads((tmp_path / "outputs" / "predictions.json").read_text())
    assert [each["top"][0]["class"] for each in found["predictions"]] == ["yellow"] * 6
    for each in found["predictions"]:
        assert sum(top["probability"] for top in each["top"]) == pytest.approx(1, abs=1e-5)
    assert lines[1].startswith(f"{images / '0.png'}: yellow ")
    with Image.open(tmp_path / lines[-1]) as picture:
        assert picture.width > 4 * 128


def test_features_of_an_image_are_those_of_the_runs_own_rows(home):
    run = predict.open_run(predict.Options(run=str(home / "run"), save="x"))
    rows, names = predict.Reader(run).read(str(home / "photos" / "green"))
    own = np.array(run.problem.train.values[4:8])
    torch.testing.assert_close(rows[:4], torch.from_numpy(own), rtol=1e-4, atol=1e-5)
    assert run.problem.train.values[:8].mean() == pytest.approx(1)  # divided by the base's mean
    assert names == [str(home / "photos" / "green" / f"{k}.png") for k in range(6)]
    assert (run.n_aug, run.mu) == (4, 0.6)  # of the smallest n


def test_images_are_inverted_for_a_trunk_that_saw_omniglot(home, tmp_path):
    shutil.copytree(home / "features", tmp_path / "ink")
    content = json.loads((tmp_path / "ink" / "classes.json").read_text())
    content["trunk"]["source"] = "omniglot"
    (tmp_path / "ink" / "classes.json").write_text(json.dumps(content))
    photo, negative = home / "photos" / "green" / "0.png", tmp_path / "negative.png"
    with Image.open(photo) as image:
        Image.fromarray(255 - np.asarray(image)).save(negative)

    def read(path, features):
        options = predict.Options(run=str(home / "run"), save="x", features_at=str(features))
        return predict.Reader(predict.open_run(options)).read(str(path))[0]

    inverted, plain = read(negative, tmp_path / "ink"), read(photo, home / "features")
    torch.testing.assert_close(inverted, plain)
    assert not torch.allclose(read(negative, home / "features"), plain)


def test_features_in_files_stand_for_images(home, type_words, tmp_path):
    view, trunk = View(32, 32), Trunk("small", channels=8)
    network = build_trunk(trunk, 4)
    state = checkpoint.load(home / "trunk" / "checkpoint-00000001.pt")["parts"]["model"]
    checkpoint.load_matching(network, state)
    rows, _ = embed(network.eval(), view, [home / "photos" / "yellow"])
    np.save(tmp_path / "mug.npy", rows[:2])
    np.save(tmp_path / "asked.npy", rows[2:])
    by_file = type_words(f"run={home}/run", "add=[mug:mug.npy]", "features=asked.npy", "out=a.json")
    assert by_file[1].startswith("asked.npy, row 0: mug ")
    by_image = [f"mug:{home}/photos/yellow/{k}.png" for k in (0, 1)]
    words = [f"run={home}/run", f"add=[{','.join(by_image)}]", f"images={home}/photos/yellow"]
    type_words(*words, "out=b.json")
    tops = [json.loads(Path(name).read_text())["predictions"] for name in ("a.json", "b.json")]
    for ours, theirs in zip(tops[0], tops[1][2:], strict=True):
        assert ours["top"][0]["class"] == theirs["top"][0]["class"] == "mug"
        assert ours["top"][0]["probability"] == pytest.approx(
            theirs["top"][0]["probability"], abs=1e-4
        )


def test_the_prior_is_the_runs_own_where_many_classes_are_novel(home, type_words):
    run, image = f"run={home}/run", f"images={home}/photos/white/0.png"
    names = [f"{name}:{home}/photos/{name}" for name in NOVEL]
    first, *_ = type_words(run, f"add=[{','.join(names)}]", "shots=2", image)
    assert first == "2 base and 5 novel classes; probabilities with a prior of 0.6 for the novel."
    first, *_ = type_words(run, f"add=[{names[0]}]", "mu=0.25", image)
    assert first == "2 base and 1 novel classes; probabilities with a prior of 0.25 for the novel."
    first, *_ = type_words(run, f"add=[{','.join(names)}]", "base=false", "mu=0.2", image)
    assert first == "0 base and 3 novel classes; probabilities as the learner has them."


def test_what_was_learned_is_saved_and_taken_up(home, type_words, tmp_path):
    run, images = f"run={home}/run", f"images={home}/photos/white"
    lines = type_words(run, classes_of(home, "yellow"), "save=shop.pt", "export=shop.npz")
    assert lines[1:] == ["shop.pt", "shop.npz"]
    with np.load("shop.npz") as found:
        assert found["names"].tolist() == ["red", "green", "yellow"]
        assert found["novel"].tolist() == [False, False, True]
        assert found["counts"].tolist() == [4, 4, 6]
    type_words(run, "load=shop.pt", classes_of(home, "white"), images, "out=a.json")
    type_words(run, classes_of(home, "yellow", "white"), images, "out=b.json")
    assert json.loads(Path("a.json").read_text()) == json.loads(Path("b.json").read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["images=x"], "run is not set"),
        (["run=RUN"], "nothing to do"),
        (["run=RUN", "images=x", "features=y"], "give one of them"),
        (["run=RUN", "save=x", "add=[mug]"], "write NAME:PATH"),
        (["run=RUN", "save=x", "add=[mug:absent]"], "there is no absent"),
        (["run=.", "save=x"], r"run=. has no checkpoint: give the folder"),
        (["run=HOME", "save=x"], r"has no checkpoint: give one of .*run"),
        (["run=HOME/trunk", "save=x"], "of another stage"),
        (["run=RUN", "images=absent"], "absent does not exist"),
        (["run=RUN", "images=empty"], "empty holds no images"),
        (["run=RUN", "images=bad.png"], "bad.png cannot be read as an image"),
        (["run=RUN", "features=absent.npy"], "absent.npy does not exist"),
        (["run=RUN", "features=wide.npy"], "the queries: features of width 5"),
        (["run=RUN", "add=[red:wide.npy]", "save=x"], "'red' is there already"),
        (["run=RUN", "images=x", "out=x.png"], "ends in .json"),
        (["run=RUN", "images=x", "out=bad.png/x.json"], r"bad.png/x.json cannot be written .*give"),
        (["run=RUN", "save=bad.png/x.pt"], r"bad.png/x.pt cannot be written"),
        (["run=RUN", "images=x", "mu=2"], "mu=2"),
        (["run=RUN", "images=x", "shots=-1"], "shots=-1"),
    ],
)
def test_bad_words_are_named(home, type_words, words, message):
    Path("empty").mkdir()
    Path("bad.png").write_bytes(b"no image")
    np.save("wide.npy", np.ones((2, 5), np.float32))
    given = [word.replace("RUN", f"{home}/run").replace("HOME", str(home)) for word in words]
    with pytest.raises((ValueError, SystemExit), match=message):
        type_words(*given)


def test_a_run_is_not_opened_with_features_of_others(home, type_words, tmp_path):
    shutil.copytree(home / "features", tmp_path / "other")
    np.save("other/train.npy", np.load("other/train.npy")[::-1])
    with pytest.raises(ValueError, match=r"other features than those of other/train.npy"):
        type_words(f"run={home}/run", "features_at=other", "save=x")


def test_a_run_whose_test_has_not_ended_is_refused(home, type_words, tmp_path):
    run = tmp_path / "run"
    write_run(run, Config(features=str(home / "features")))
    for text in ("{", ""):
        (run / "chosen.json").write_text(text)
        with pytest.raises(ValueError, match=r"chosen\.json is absent or damaged: start the run"):
            type_words(f"run={run}", f"export={tmp_path}/out.npz")


def test_features_without_their_trunk_ask_for_features(home, type_words, tmp_path):
    shutil.copytree(home / "features", tmp_path / "bare")
    content = json.loads((tmp_path / "bare" / "classes.json").read_text())
    content["trunk"] = {}
    (tmp_path / "bare" / "classes.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"come without their trunk.*give features in a .npy"):
        type_words(f"run={home}/run", "features_at=bare", f"images={home}/photos/red")
