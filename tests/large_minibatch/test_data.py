"""The data of the large-minibatch project: which images a step has, how they are read, faults."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import BadExample
from common.sampling import SampleStream
from large_minibatch import data
from large_minibatch.config import Config, Data, Norm, Scenes
from large_minibatch.inputs.augment import Augment
from large_minibatch.inputs.decode import ImageFiles
from large_minibatch.inputs.folders import Files
from large_minibatch.inputs.memory import InMemory

WNIDS = ("n00000001", "n00000002", "n00000003")


def save(path: Path, color=(200, 30, 60), size=(40, 30), **options) -> Path:
    """An image of `size` (width, height): two colours and a gradient, so that crops differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:] = color
    pixels[: size[1] // 2, :, 1] = np.linspace(0, 255, size[0]).astype(np.uint8)
    pixels[:, : size[0] // 3, 2] = np.linspace(0, 255, size[1]).astype(np.uint8)[:, None]
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def tree(tmp_path):
    """ImageNet's layout: three classes of four images to train on and two to evaluate on."""
    for split, count in (("train", 4), ("val", 2)):
        for k, wnid in enumerate(WNIDS):
            for i in range(count):
                name = tmp_path / split / wnid / f"{wnid}_{i}.JPEG"
                save(name, (60 * k, 255 - 60 * k, 20 * i), quality=95)
    return tmp_path


def options(root, **changes) -> Data:
    changes = {"name": "imagenet", "size": 16, "resize": 20, "workers": 0} | changes
    return Data(root=str(root), **changes)


def settings(cfg: Data, batch_size=4, **changes) -> Config:
    changes = {"per_forward": batch_size, "norm": Norm(group=1)} | changes
    return Config(batch_size=batch_size, data=cfg, output_dir="", **changes)


def planned(dataset, cfg: Config, start: int, stop: int):
    """The steps of this process as a run plans them."""
    return data.training_batches(dataset, cfg, data.plan_of(cfg, len(dataset)), start, stop)


def joined(steps) -> list[tuple[torch.Tensor, torch.Tensor, list[str]]]:
    """Images, labels and files of each step, its pieces put together."""
    out = []
    for step in steps:
        pieces = list(step)
        files = [file for piece in pieces for file in piece.files]
        images = torch.cat([piece.images for piece in pieces])
        out.append((images, torch.cat([piece.labels for piece in pieces]), files))
    return out


def numbered(count=24, size=8, **changes) -> InMemory:
    """Images that are all alike but for their labels, which count them."""
    pixels = torch.arange(size * size * 3, dtype=torch.uint8).view(1, size, size, 3)
    augment = Augment(**({"size": size, "resize": 0, "crop": "pad"} | changes))
    names = [str(i) for i in range(count)]
    pixels = pixels.repeat(count, 1, 1, 1)
    return InMemory(pixels, torch.arange(count), names, names, augment, training=True)


def same(a, b) -> bool:
    return all(
        torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) and x[2] == y[2]
        for x, y in zip(a, b, strict=True)
    )


# Which images a step has (Remark 4 of Sec. 3)


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_the_processes_share_one_permutation_of_the_whole_set(workers):
    stream = SampleStream(50, 16, seed=3)
    order = [int(i) for i in stream._shuffle(0)]
    for step in range(3):
        shares = [stream.share(step, rank, workers) for rank in range(workers)]
        union = [index for share in shares for _, index in share]
        assert union == order[16 * step : 16 * step + 16]


def test_an_epoch_has_each_image_once_and_the_next_another_order():
    dataset = numbered(24)
    steps = joined(planned(dataset, settings(Data(root=""), 8), 0, 6))
    labels = torch.cat([step[1] for step in steps]).view(2, 24)
    assert torch.equal(labels.sort(1).values, torch.arange(24).repeat(2, 1))
    assert not torch.equal(labels[0], labels[1])
    assert [int(file) for file in steps[0][2]] == steps[0][1].tolist()


def test_the_same_image_is_augmented_anew_in_each_epoch_and_unlike_its_neighbours():
    steps = joined(planned(numbered(24), settings(Data(root=""), 24), 0, 2))
    assert len(steps[0][0].flatten(1).unique(dim=0)) > 15  # of 24 alike
    order = [step[1].argsort() for step in steps]
    assert not torch.equal(steps[0][0][order[0]], steps[1][0][order[1]])


@pytest.mark.parametrize("crop", ["none", "pad", "fb", "torchvision"])
def test_pieces_put_together_are_the_step_whatever_their_size(crop):
    dataset = numbered(16, crop=crop)
    cfg = settings(Data(root=""), 8)
    whole = joined(planned(dataset, cfg, 0, 4))
    for per_forward in (1, 2, 4):
        steps = list(planned(dataset, replace(cfg, per_forward=per_forward), 0, 1))
        assert len(list(steps[0])) == 0  # taken from an iterator that has gone on
        cut = planned(dataset, replace(cfg, per_forward=per_forward), 0, 4)
        assert same(joined(cut), whole)


def test_pieces_a_loop_leaves_out_do_not_come_in_the_next_step():
    dataset, cfg = numbered(16), replace(settings(Data(root=""), 8), per_forward=2)
    first = [next(iter(step)).labels for step in planned(dataset, cfg, 0, 2)]
    whole = joined(planned(dataset, cfg, 0, 2))
    assert [f.tolist() for f in first] == [w[1][:2].tolist() for w in whole]


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_run_interrupted_in_mid_epoch_goes_on_with_the_same_pixels(tree, in_memory):
    cfg = settings(options(tree, in_memory=in_memory, crop="pad"))
    dataset = data.build(cfg.data, "train")
    whole = joined(planned(dataset, cfg, 0, 7))
    assert same(joined(planned(dataset, cfg, 0, 2)), whole[:2])
    assert same(joined(planned(dataset, cfg, 2, 7)), whole[2:])


def test_loader_processes_and_pieces_change_nothing_for_files(tree):
    cfg = settings(options(tree, color_jitter=0.4, lighting=0.1))
    dataset = data.build(cfg.data, "train")
    alone = joined(planned(dataset, cfg, 1, 5))
    workers = settings(options(tree, workers=2, color_jitter=0.4, lighting=0.1))
    assert same(joined(planned(dataset, workers, 1, 5)), alone)
    pieces = replace(cfg, per_forward=2)
    assert same(joined(planned(dataset, pieces, 1, 5)), alone)


SCRIPT = """
import sys
import torch
from common import dist
from large_minibatch import data
from large_minibatch.config import Config, Data, Norm

def collect(root):
    found = []
    for in_memory in (False, True):
        cfg = Data(name="imagenet", root=root, size=16, resize=20, workers=0, crop="pad",
                   in_memory=in_memory)
        cfg = Config(batch_size=4, per_forward=2, data=cfg, norm=Norm(group=1), output_dir="")
        dataset = data.build(cfg.data, "train")
        for step in data.training_batches(dataset, cfg, data.plan_of(cfg, 12), 0, 5):
            for piece in step:
                found += list(zip(piece.files, piece.images.tolist()))
        for piece in data.validation_batches(data.build(cfg.data, "val"), cfg, 2):
            found += list(zip(piece.files, piece.images.tolist()))
    return [item for part in dist.gather(found) for item in part]

if __name__ == "__main__":
    torch.save(dist.launch(collect, sys.argv[1], 2), sys.argv[2])
"""


def test_one_process_and_two_see_the_same_images_under_the_same_augmentation(
    commands, tree, tmp_path
):
    script, out = tmp_path / "collect.py", tmp_path / "found.pt"
    script.write_text(SCRIPT)
    words = (str(tree), str(out))
    done = commands.run(tmp_path, *words, script=script.name, forking=True)
    assert done.returncode == 0, done.stderr
    alone: dict = {}
    exec(SCRIPT, alone)
    one, two = (sorted(items, key=repr) for items in (alone["collect"](str(tree)), torch.load(out)))
    assert len(one) == 2 * (5 * 4 + 6)
    assert one == two


def test_every_validation_image_comes_once(tree):
    for in_memory in (False, True):
        cfg = settings(options(tree, in_memory=in_memory))
        dataset = data.build(cfg.data, "val")
        batches = list(data.validation_batches(dataset, cfg, 4))
        assert [len(batch.labels) for batch in batches] == [4, 2]
        files = [file for batch in batches for file in batch.files]
        assert files == list(dataset.files)
        assert torch.cat([batch.labels for batch in batches]).tolist() == [0, 0, 1, 1, 2, 2]


def test_a_minibatch_that_cannot_be_shared_is_refused_before_anything_is_read(tree):
    dataset = data.build(options(tree), "train")
    with pytest.raises(ValueError, match="batch_size=64 is larger than the training set of 12"):
        planned(dataset, settings(options(tree), 64), 0, 1)


# How images are read


@pytest.mark.parametrize("crop", ["none", "fb", "torchvision"])
def test_images_in_memory_have_the_pixels_of_their_files(tree, crop):
    cfg = options(tree, crop=crop, flip=0.0)
    files, memory = (data.build(replace(cfg, in_memory=kept), "train") for kept in (False, True))
    torch.manual_seed(0)
    pixels, label, file = files[5]
    torch.manual_seed(0)
    row = torch.rand(1, 60, dtype=torch.float64)
    batch = memory.batch([5], row)
    assert torch.equal(batch.images[0].permute(1, 2, 0), pixels)
    assert batch.labels.tolist() == [label]
    assert batch.files == [file]
    a, b = (data.build(replace(cfg, in_memory=kept), "val") for kept in (False, True))
    assert torch.equal(b.batch([3]).images[0].permute(1, 2, 0), a[3][0])


def test_labels_follow_the_sorted_wnids_and_limit_takes_the_first_of_each(tree):
    dataset = data.build(options(tree), "train")
    assert dataset.classes == list(WNIDS)
    assert dataset.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert dataset.files[4] == str(tree / "train" / WNIDS[1] / f"{WNIDS[1]}_0.JPEG")
    few = data.build(options(tree, limit=2), "train")
    assert list(few.files) == [f for i, f in enumerate(dataset.files) if i % 4 < 2]
    assert len(data.build(options(tree, limit=1), "val")) == 6


def test_grey_cmyk_png_and_palette_files_become_rgb(tree):
    folder = tree / "train" / WNIDS[0]
    grey = Image.new("L", (40, 30), 77)
    for i, (mode, kind) in enumerate((("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"))):
        grey.convert(mode).save(folder / f"{WNIDS[0]}_{i}.JPEG", kind)
    dataset = data.build(options(tree), "train")
    for i in range(3):
        pixels = dataset[i][0]
        assert pixels.shape == (16, 16, 3)
        assert (pixels.int() - 77).abs().max() <= 2


def test_imagenet_is_read_as_stored_and_other_folders_are_turned_upright(tree):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    path = tree / "val" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG"
    stored = data.build(options(tree), "val")[0][0]
    save(path, (0, 255, 0), quality=95, exif=exif)
    assert torch.equal(data.build(options(tree), "val")[0][0], stored)
    turned = data.build(options(tree, name="folder"), "val")[0][0]
    assert (turned.int() - stored.flip(0, 1).int()).abs().max() <= 2
    assert not torch.equal(turned, stored)


def test_a_draft_is_used_for_large_jpegs_only_and_looks_alike(tmp_path):
    large = save(tmp_path / "large.jpg", size=(400, 320), quality=95)
    small = save(tmp_path / "small.jpg", size=(60, 50), quality=95)
    augment, labels = Augment(size=32, resize=40, crop="none"), torch.zeros(2, dtype=torch.int64)
    names = np.array([os.fsencode(large.name), os.fsencode(small.name)])
    exact, draft = (
        ImageFiles(Files(tmp_path, names), labels, ["a"], augment, training=False, draft=draft)
        for draft in (False, True)
    )
    difference = (exact[0][0].int() - draft[0][0].int()).abs().float()
    assert 0 < difference.mean() < 4
    assert torch.equal(exact[1][0], draft[1][0])


def test_normalising_is_the_formula_in_channels_last():
    cfg = Data(root="")
    images = torch.randint(256, (2, 3, 5, 7), dtype=torch.uint8)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (cfg.mean, cfg.std))
    expected = (images.double() / 255 - mean) / std
    for layout in (torch.contiguous_format, torch.channels_last):
        ours = data.normalise(images.contiguous(memory_format=layout), cfg)
        assert ours.dtype == torch.float32
        assert ours.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours.double(), expected, atol=1e-6, rtol=0)


def test_a_set_of_files_is_small_and_can_be_sent_to_another_process(tree):
    dataset = data.build(options(tree), "train")
    again = pickle.loads(pickle.dumps(dataset))
    assert list(again.files) == list(dataset.files)
    assert again.files[2:4][1] == dataset.files[3]
    assert dataset.files.names.nbytes < 100 * len(dataset)


def test_cifar_has_ten_classes_and_its_pixels(shared_data):
    cfg = options(
        shared_data / "cifar10_jpeg", name="folder", val="test", size=32, resize=0, crop="pad"
    )
    train, val = data.build(cfg, "train"), data.build(cfg, "val")
    assert (len(train), len(val), len(train.classes)) == (10_000, 2_000, 10)
    assert train.labels.bincount().tolist() == [1000] * 10
    pixels, label, file = val[0]
    assert f"/{val.classes[label]}/" in file
    with Image.open(file) as image:
        assert torch.equal(pixels, torch.from_numpy(np.array(image.convert("RGB"))))
    kept = data.build(replace(cfg, in_memory=True, limit=20), "train")
    assert len(kept) == 200
    (batch,) = next(iter(joined(planned(kept, settings(cfg, 64), 0, 1))), None)[:1]
    assert batch.shape == (64, 3, 32, 32)


# Data without files


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIR_VISION_CACHE", str(tmp_path))
    scenes = Scenes(train_images=96, val_images=32, noise=0.0)
    return Data(name="scenes", root="", size=32, resize=0, crop="none", scenes=scenes)


def test_the_class_of_a_scene_is_its_shape_and_colour(world):
    train, val = data.build(world, "train"), data.build(world, "val")
    assert len(train.classes) == 24
    assert train.classes[:2] == ["red cube", "blue cube"]
    assert (len(train), len(val)) == (96, 32)
    assert 0 <= int(train.labels.min()) <= int(train.labels.max()) < 24
    assert not set(train.files) & set(val.files)
    red = [i for i, label in enumerate(train.labels.tolist()) if train.classes[label][:3] == "red"]
    images = train.batch(red).images.float()
    assert (images[:, 0] - images[:, 1]).flatten(1).amax(1).min() > 50


def test_noise_is_the_sensors_and_limit_counts_per_class(world):
    clean = data.build(world, "train")
    noisy = data.build(replace(world, scenes=replace(world.scenes, noise=20.0)), "train")
    difference = (noisy.pixels.double() - clean.pixels.double())[:, 20:]
    assert difference.std() == pytest.approx(20, rel=0.1)
    few = data.build(replace(world, limit=2), "train")
    assert few.labels.bincount().max() <= 2


def test_synthetic_images_are_as_many_as_imagenets():
    cfg = Data(name="synthetic", root="", size=16)
    train, val = data.build(cfg, "train"), data.build(cfg, "val")
    assert (len(train), len(val), len(train.classes)) == (1_281_167, 50_000, 1000)
    assert len(data.build(replace(cfg, limit=3), "train")) == 3000
    batch = train.batch([0, 256, 999_999])
    assert batch.images.shape == (3, 3, 16, 16)
    assert torch.equal(batch.images[0], batch.images[1])
    assert batch.labels.tolist() == [0, 256, 999]


# Classes


def lines(path: Path, *names: str) -> str:
    path.write_text("\n".join(names) + "\n")
    return str(path)


def test_a_list_restricts_and_orders_the_classes(tree):
    cfg = options(tree, classes=lines(tree / "list.txt", WNIDS[2], WNIDS[0]))
    train, val = data.build(cfg, "train"), data.build(cfg, "val")
    assert train.classes == val.classes == [WNIDS[2], WNIDS[0]]
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert f"/{WNIDS[2]}/" in train.files[0]


def test_evaluation_may_be_a_choice_among_fewer_classes(tree):
    cfg = options(tree, evaluated=lines(tree / "list.txt", WNIDS[2], WNIDS[1]))
    val = data.build(cfg, "val")
    assert sorted(set(val.labels.tolist())) == [1, 2]
    assert data.evaluation_columns(val, cfg).tolist() == [False, True, True]
    assert data.evaluation_columns(val, options(tree)) is None


# Faults


def refused(cfg: Data, split: str, *words: str) -> None:
    """`build` stops with one sentence that has all these words in it."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are looked at
        data.build(cfg, split)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_root_or_split_is_named_with_the_expected_layout(tree):
    refused(options(tree / "no"), "train", "data.root=", "train/<class>/<image>")
    refused(options(tree, val="dev"), "val", f"{tree}/dev is not a folder", "<wnid>")


def test_unsorted_validation_images_are_pointed_to_the_devkits_mapping(tree):
    for i in (2, 1):
        save(tree / "val" / f"ILSVRC2012_val_0000000{i}.JPEG")
    words = ("val/ILSVRC2012_val_00000001.JPEG", "2 such", "devkit", "python prepare.py sort_val")
    refused(options(tree), "val", *words)


def test_packed_archives_are_named(tree):
    (tree / "train" / "n00000004.tar").write_bytes(b"")
    refused(options(tree), "train", "n00000004.tar is still packed", "unpack")


def test_an_empty_class_folder_is_named(tree):
    (tree / "train" / "n00000000").mkdir()
    refused(options(tree), "train", "'n00000000' has no images", "empty folder")


def test_other_classes_in_the_two_splits_are_named(tree):
    save(tree / "val" / "n00000009" / "a.JPEG")
    os.rename(tree / "val" / WNIDS[1], tree / "val" / "n00000008")
    words = (f"1 are missing, first '{WNIDS[1]}'", "2 are in it alone, first 'n00000008'")
    refused(options(tree), "val", *words)


def test_folders_that_are_no_wnids_are_refused_for_imagenet_alone(tree):
    for split in ("train", "val"):
        save(tree / split / "cats" / "a.JPEG")
    refused(options(tree), "train", "train/cats", "n01440764", "data.name=folder")
    assert len(data.build(options(tree, name="folder"), "train").classes) == 4


def test_a_bad_list_of_classes_is_named(tree):
    refused(options(tree, classes=str(tree / "no.txt")), "train", "no.txt cannot be read")
    twice = lines(tree / "twice.txt", WNIDS[0], WNIDS[0])
    refused(options(tree, classes=twice), "train", "lists the class 'n00000001' twice")
    other = lines(tree / "other.txt", WNIDS[0], "n00000007")
    refused(options(tree, classes=other), "train", "lists 'n00000007', which", "1 such of 2")
    refused(options(tree, evaluated=other), "val", "lists 'n00000007', which")


def test_an_image_smaller_than_the_crop_is_named(tree):
    dataset = data.build(options(tree, size=32, resize=0, crop="none"), "train")
    with pytest.raises(ValueError, match=r"n00000001_0.JPEG: an image of 40 x 30 .* crop of 32"):
        dataset[0]


def test_images_of_several_sizes_do_not_fit_into_memory_uncut(tree):
    save(tree / "train" / WNIDS[1] / "wide.JPEG", size=(60, 30))
    cfg = options(tree, in_memory=True)
    refused(cfg, "train", "wide.JPEG has 60 x 30 pixels", "data.in_memory=false")
    assert data.build(replace(cfg, crop="pad"), "train").pixels.shape == (13, 24, 24, 3)


@pytest.mark.parametrize("left", [0, 10, 400])
def test_a_truncated_image_stops_with_its_name(tree, left):
    path = tree / "train" / WNIDS[1] / f"{WNIDS[1]}_2.JPEG"
    path.write_bytes(path.read_bytes()[:left])
    cfg = settings(options(tree))
    with pytest.raises(BadExample, match=f"{path.name} cannot be read as an image"):
        joined(planned(data.build(cfg.data, "train"), cfg, 0, 3))
    refused(options(tree, in_memory=True), "train", f"{path.name} cannot be read as an image")


@pytest.mark.filterwarnings("ignore:image 1 skipped")
@pytest.mark.parametrize("in_memory", [False, True])
def test_an_unreadable_image_may_be_replaced_by_the_next(tree, in_memory):
    path = tree / "train" / WNIDS[1] / f"{WNIDS[1]}_3.JPEG"
    path.write_bytes(b"not an image")
    cfg = settings(options(tree, bad_images="skip", in_memory=in_memory))
    dataset = data.build(cfg.data, "train")
    steps = joined(planned(dataset, cfg, 0, 3))
    files = [file for step in steps for file in step[2]]
    labels = torch.cat([step[1] for step in steps])
    assert len(files) == 12
    assert files.count(str(tree / "train" / WNIDS[2] / f"{WNIDS[2]}_0.JPEG")) == 2
    assert labels.bincount().tolist() == [4, 3, 5]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("crop", ["none", "pad"])
def test_a_gpu_makes_the_same_batches(crop):
    dataset, cfg = numbered(16, crop=crop), Data(root="")
    keys = [(1, 3), (0, 15), (2, 3), (0, 0)]
    here, there = dataset, numbered(16, crop=crop).to(torch.device("cuda"))
    indices = [index for _, index in keys]
    a = here.batch(indices, here.rows(keys, 5))
    b = there.batch(indices, there.rows(keys, 5))
    assert b.images.is_cuda
    assert torch.equal(a.images, b.images.cpu())
    assert torch.equal(a.labels, b.labels.cpu())
    normalised = data.normalise(b.images, cfg).cpu()
    torch.testing.assert_close(normalised, data.normalise(a.images, cfg), atol=1e-6, rtol=0)
