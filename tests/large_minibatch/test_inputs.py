"""Image folders that hold what they should not: said before the first step, or counted."""

import os
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from common.config import to_dataclass
from common.errors import UserError
from large_minibatch import data, prepare
from large_minibatch.config import Config, Data, Model, Norm, Rate
from large_minibatch.train import train

CLASSES = ("cat", "dog")


def save(path: Path, size: tuple[int, int] = (24, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").resize(size).convert("RGB").save(path, "JPEG")
    return path


def png(path: Path, side: int) -> None:
    """The beginning of a PNG of `side` x `side` pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9999))))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (cut, "runcated"),
    "empty": (lambda path: path.write_bytes(b""), "cannot identify"),
    "bomb": (lambda path: png(path, 20_000), "bomb"),
    "just under Pillow's limit": (lambda path: png(path, 13_000), "13000 x 13000 pixels"),
    "pipe": (fifo, "not a regular file"),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Six images of each of two classes to train on, two to evaluate on."""
    root = tmp_path / "set"
    for split, count in (("train", 6), ("val", 2)):
        for name in CLASSES:
            for i in range(count):
                save(root / split / name / f"{i}.jpg")
    return root


def settings(root: Path, out: str = "", **changes) -> Config:
    options = {"name": "folder", "size": 16, "resize": 0, "crop": "pad", "workers": 0} | changes
    return Config(
        epochs=1.0,
        batch_size=4,
        threads=1,
        output_dir=out,
        data=Data(root=str(root), **options),
        rate=Rate(warmup="none"),
        norm=Norm(group=2),
        model=Model(name="mini"),
    )


def without_class(val: Path) -> str:
    for path in (val / "dog").iterdir():
        path.unlink()
    (val / "dog").rmdir()
    return "1 are missing, first 'dog'"


def other_class(val: Path) -> str:
    save(val / "emu" / "0.jpg")
    return "1 are in it alone, first 'emu'"


def empty_class(val: Path) -> str:
    for path in (val / "dog").iterdir():
        path.unlink()
    return "class 'dog' has no images"


def flat(val: Path) -> str:
    save(val / "0.jpg")
    return "0.jpg lies outside a class folder"


def too_small(val: Path) -> str:
    save(val / "dog" / "1.jpg", (12, 20))
    return "1.jpg: an image of 12 x 20 pixels is smaller than the crop of 16"


def unreadable(name: str) -> Callable[[Path], str]:
    def spoil(val: Path) -> str:
        make, said = UNREADABLE[name]
        make(val / "dog" / "1.jpg")
        return said

    return spoil


FAULTS = {f.__name__: f for f in (without_class, other_class, empty_class, flat, too_small)} | {
    name: unreadable(name) for name in UNREADABLE
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_validation_images_shows_before_the_first_step(
    fault, tree, tmp_path, capsys
):
    said = FAULTS[fault](tree / "val")
    for in_memory in (False, True):
        cfg = settings(tree, str(tmp_path / "run"), in_memory=in_memory, bad_images="skip")
        with pytest.raises(ValueError, match="val") as caught:
            train(cfg)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert str(caught.value).count("1.jpg") < 2
        assert "bad_images" not in str(caught.value)  # skips images of the training alone
        assert not (tmp_path / "run" / "metrics.jsonl").exists()
    if fault != "too_small":  # the size of the crop is an option of the training
        assert prepare.main(["check", str(tree), "--name", "folder", "--decode"]) == 2
        assert said in capsys.readouterr().err


def test_a_resumed_run_checks_the_images_that_it_will_evaluate(tree, tmp_path):
    cfg = settings(tree, str(tmp_path / "run"))
    train(cfg)
    cut(tree / "val" / "dog" / "1.jpg")
    with pytest.raises(ValueError, match=r"1\.jpg cannot be read"):
        train(replace(cfg, epochs=2.0))
    steps = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"step": 3' in steps
    assert '"step": 4' not in steps


@pytest.mark.filterwarnings("ignore:image 1 skipped")
@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("fault", UNREADABLE)
def test_an_image_that_cannot_be_read_is_replaced_under_skip(fault, in_memory, tree):
    UNREADABLE[fault][0](tree / "train" / "cat" / "0.jpg")
    cfg = settings(tree, in_memory=in_memory, bad_images="skip")
    dataset = data.build(cfg.data, "train")
    plan = data.plan_of(cfg, len(dataset))
    pieces = [p for step in data.training_batches(dataset, cfg, plan, 0, 3) for p in step]
    assert sum(len(piece.labels) for piece in pieces) == 12
    assert torch.cat([piece.labels for piece in pieces]).tolist().count(0) == 6
    names = [os.path.relpath(file, tree / "train") for piece in pieces for file in piece.files]
    assert names.count("cat/1.jpg") == 2


def test_links_that_lead_up_again_add_no_images(tree, tmp_path):
    (tree / "train" / "cat" / "again").symlink_to(tree / "train" / "cat")
    (tree / "train" / "cat" / "up").symlink_to(tree)
    (tree / "train" / "dog" / "other").symlink_to(tree / "train" / "cat")
    cfg = settings(tree).data
    assert len(data.build(cfg, "train")) == 12
    assert len(data.build(replace(cfg, in_memory=True), "train")) == 12
    assert prepare.resize(tree, tmp_path / "small", size=8, processes=0) == []
    assert len(list((tmp_path / "small").rglob("*.jpg"))) == 16


OUT_OF_RANGE = (
    *("epochs=0", "epochs=inf", "evaluate_every=0", "evaluate_every=-1", "save_every=-1"),
    *("log_every=0", "ema=2", "mixup=-1", "data.limit=-2", "data.workers=-1", "data.area=[1]"),
    *("data.mean=[0.5]", "data.mean=[0,0,9]", "data.std=[0,1,1]", "norm.precise_batches=0"),
)


@pytest.mark.parametrize("option", OUT_OF_RANGE)
def test_an_option_out_of_range_is_named_in_one_sentence(option):
    cfg = OmegaConf.merge(Config, {"data": {"root": ""}, "output_dir": ""})
    cfg.merge_with_dotlist([option])
    key = option.split("=")[0]
    with pytest.raises(UserError, match=rf"^{re.escape(key)}=.*(give|must be) [^\n]*\.$"):
        to_dataclass(cfg)
