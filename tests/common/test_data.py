"""Sample streams, loaders, images, transforms and counts of `common`."""

import multiprocessing
import os
import random
import signal
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder as TorchvisionFolder
from torchvision.transforms import v2

from common import transforms
from common.coco.check_data import main as check_data
from common.data import BadExample, BadImages, eval_loader, seed_everything, train_loader
from common.images import ImageFolder, UnreadableImage, image_size, read_image
from common.metrics import Accuracy, Average
from common.sampling import SampleStream


class Numbers(Dataset):
    """Index, and one draw of each global generator."""

    def __init__(self, size=20, bad=None):
        self.size, self.bad = size, bad
        self.files = [f"number-{i}.txt" for i in range(size)]

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index == self.bad:
            raise KeyError("label")
        return torch.tensor([index, random.random(), np.random.rand(), float(torch.rand(()))])


def loader_of(dataset, batch_size, start, stop, *, seed, groups=None, **options):
    stream = SampleStream(len(dataset), batch_size, seed=seed, groups=groups)
    return train_loader(dataset, stream, start, stop, **options)


def indices(keys):
    return [index for _, index in keys]


def noise(*size):
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)


@pytest.fixture
def pictures(tmp_path):
    """Two classes of six 8 x 10 JPEGs."""
    for i in range(12):
        folder = tmp_path / "pictures" / ("cat" if i % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(8, 10, 3)).save(folder / f"{i:02d}.jpg")
    return tmp_path / "pictures"


def test_an_epoch_draws_each_example_at_most_once_and_drops_the_tail():
    stream = SampleStream(50, 8, seed=3)
    for epoch in range(3):
        keys = [key for k in range(6) for key in stream.batch(6 * epoch + k)]
        assert {e for e, _ in keys} == {epoch}
        assert len(set(indices(keys))) == 48
    assert stream.batch(0) != stream.batch(6)


@pytest.mark.parametrize("groups", [None, [i % 3 for i in range(50)]])
def test_the_stream_does_not_depend_on_the_number_of_processes(groups):
    for step in (0, 3, 17):
        stream = SampleStream(50, 8, seed=3, groups=groups)
        whole = stream.batch(step)
        for world in (1, 2, 4, 8):
            parts = [stream.share(step, rank, world) for rank in range(world)]
            assert [key for part in parts for key in part] == whole
            assert {len(part) for part in parts} == {8 // world}


def test_the_stream_is_a_pure_function_of_seed_and_step():
    ahead, fresh = SampleStream(50, 8, seed=3), SampleStream(50, 8, seed=3)
    for step in (40, 3, 11):
        ahead.batch(step)
    assert ahead.batch(7) == fresh.batch(7)
    assert SampleStream(50, 8, seed=4).batch(7) != fresh.batch(7)


def test_a_set_smaller_than_a_batch_is_repeated_across_epochs():
    stream = SampleStream(5, 8, seed=0)
    keys = [key for step in range(5) for key in stream.batch(step)]
    assert keys == [(epoch, i) for epoch in range(8) for i in indices(keys[5 * epoch :][:5])]
    assert all(sorted(indices(keys[5 * e :][:5])) == list(range(5)) for e in range(8))


@pytest.mark.parametrize("chunk", [2, 4, None])
def test_chunks_hold_one_group_only_and_no_example_twice(chunk):
    groups = [int(i % 5 == 0) for i in range(100)]  # 20 and 80
    stream = SampleStream(100, 8, seed=1, groups=groups, chunk=chunk)
    seen, size = [], chunk or 8
    for step in range(stream.steps_per_epoch):
        batch = indices(stream.batch(step))
        assert all(len({groups[i] for i in batch[k : k + size]}) == 1 for k in range(0, 8, size))
        seen += batch
    assert len(seen) == len(set(seen)) >= 100 - 2 * 8
    assert {groups[i] for i in seen} == {0, 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "has no examples"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"groups": [0] * 9}, "9 group ids for 10 examples"),
        ({"groups": [0] * 9 + [1]}, "group 1 has 1 examples"),
        ({"groups": [0] * 10, "chunk": 3}, "not a multiple of chunk 3"),
    ],
)
def test_impossible_streams_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SampleStream(**({"size": 10, "batch_size": 4, "seed": 0} | arguments))


def test_a_batch_that_cannot_be_shared_equally_is_refused():
    with pytest.raises(ValueError, match="batch_size 8 cannot be shared by 3 processes"):
        SampleStream(50, 8, seed=3).share(0, 0, 3)


def test_any_number_of_workers_gives_the_same_batches_and_augmentation():
    alone = list(loader_of(Numbers(), 4, 0, 12, seed=7))
    helped = list(loader_of(Numbers(), 4, 0, 12, seed=7, workers=2))
    assert len(alone) == len(helped) == 12
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))
    draws = torch.cat(alone)[:, 1:]
    assert len(draws.unique()) == draws.numel()  # another one for each example and epoch


def test_resuming_inside_an_epoch_gives_the_remaining_batches():
    whole = list(loader_of(Numbers(), 4, 0, 12, seed=7))
    rest = list(loader_of(Numbers(), 4, 7, 12, seed=7))
    assert all(torch.equal(a, b) for a, b in zip(whole[7:], rest, strict=True))
    assert list(loader_of(Numbers(), 4, 12, 12, seed=7)) == []


def test_drawing_examples_leaves_the_global_random_states_alone():
    def draws():
        return random.random(), np.random.rand(), float(torch.rand(()))

    seed_everything(5)
    expected = draws()
    seed_everything(5)
    list(loader_of(Numbers(), 4, 0, 3, seed=7))
    list(loader_of(Numbers(), 4, 0, 3, seed=7, workers=1))
    assert draws() == expected


def test_spawned_workers_give_the_same_batches(pictures):
    dataset = ImageFolder(pictures, v2.RandomCrop(4))
    expected = list(loader_of(dataset, 4, 0, 4, seed=1))
    multiprocessing.set_start_method("spawn", force=True)
    try:
        spawned = list(loader_of(dataset, 4, 0, 4, seed=1, workers=1))
    finally:
        multiprocessing.set_start_method(None, force=True)
    for (images, labels), (others, same) in zip(expected, spawned, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, same)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_in_an_example_names_file_and_index(workers):
    with pytest.raises(RuntimeError, match=r"example 6 \(number-6.txt\): KeyError") as caught:
        list(loader_of(Numbers(bad=6), 4, 0, 5, seed=7, workers=workers))
    assert "__getitem__" in caught.value.__notes__[0]  # the trace of the worker


class Killed(Numbers):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_a_killed_worker_is_explained():
    with pytest.raises(ChildProcessError, match="one of the 1 DataLoader workers"):
        list(loader_of(Killed(), 4, 0, 2, seed=0, workers=1))


@pytest.mark.parametrize("size", [0, 1, 3, 20])
@pytest.mark.parametrize("world", [1, 2, 4, 5])
def test_evaluation_sees_each_example_once(size, world):
    seen = []
    for rank in range(world):
        loader = eval_loader(Numbers(size), 3, rank=rank, world=world)
        batches = list(loader)
        assert len(loader) == len(batches)
        assert all(0 < len(batch) <= 3 for batch in batches)
        seen += [int(i) for batch in batches for i in batch[:, 0]]
    assert sorted(seen) == list(range(size))


def test_evaluation_may_be_repeated_with_the_same_workers():
    loader = eval_loader(Numbers(), 6, workers=2)
    assert torch.equal(torch.cat(list(loader)), torch.cat(list(loader)))


def test_an_empty_file_stops_training_or_is_replaced_by_policy(pictures):
    (pictures / "cat" / "03.jpg").write_bytes(b"")
    dataset = ImageFolder(pictures)
    bad = dataset.files.index(str(pictures / "cat" / "03.jpg"))
    skip = "data.bad_images=skip"
    for loader, advised in (
        (loader_of(dataset, 12, 0, 1, seed=0), False),
        (loader_of(dataset, 12, 0, 1, seed=0, bad=BadImages("raise")), True),
        (eval_loader(dataset, 4), False),
    ):
        with pytest.raises(BadExample, match=f"^example {bad}: .*03.jpg cannot be read") as caught:
            list(loader)
        assert str(caught.value).count("03.jpg") == 1
        assert (skip in str(caught.value)) == advised
    policy = BadImages("skip")
    with pytest.warns(UserWarning, match="image 1 skipped: .*03.jpg"):
        batches = list(loader_of(dataset, 12, 0, 3, seed=0, bad=policy))
    assert list(policy.skipped) == [bad]  # counted once, though met in three epochs
    keys = indices(SampleStream(12, 12, seed=0).batch(0))
    at, follower = keys.index(bad), keys.index(bad + 1)
    assert torch.equal(batches[0][0][at], batches[0][0][follower])
    with pytest.warns(UserWarning, match="skipped"):
        helped = list(loader_of(dataset, 12, 0, 3, seed=0, bad=BadImages("skip"), workers=2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, helped, strict=True))


def test_the_replacement_comes_from_the_same_group(pictures):
    dataset = ImageFolder(pictures)
    Path(dataset.files[3]).write_bytes(b"")
    groups = [i % 2 for i in range(12)]
    dataset.labels = list(range(12))  # tells which example came
    loader = loader_of(dataset, 6, 0, 2, seed=0, groups=groups, bad=BadImages("skip"), collate=list)
    with pytest.warns(UserWarning, match="skipped"):
        batches = [sorted(index for _, index in batch) for batch in loader]
    assert sorted(batches) == [[0, 2, 4, 6, 8, 10], [1, 5, 5, 7, 9, 11]]


def test_too_many_unreadable_images_stop_even_under_skip(pictures):
    for name in ("cat/03.jpg", "dog/04.jpg"):
        (pictures / name).write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(BadExample, match=r"2 of 12 images .* more than the 1 that may be skipped"),
    ):
        list(loader_of(ImageFolder(pictures), 12, 0, 1, seed=0, bad=BadImages("skip")))


def test_policies_are_checked():
    with pytest.raises(ValueError, match="'ignore'"):
        BadImages("ignore")
    with pytest.raises(ValueError, match="limit is 2"):
        BadImages("skip", limit=2)
    with pytest.raises(ValueError, match="workers is -1"):
        loader_of(Numbers(), 4, 0, 1, seed=0, workers=-1)


def save(image, path, **options):
    image.save(path, **options)
    return path


def test_a_png_is_read_exactly_whatever_its_name(tmp_path):
    pixels = noise(5, 7, 3)
    save(Image.fromarray(pixels), tmp_path / "a.jpg", format="PNG")
    image = read_image(tmp_path / "a.jpg")
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


def test_grey_palette_alpha_and_single_bit_images_become_rgb(tmp_path):
    grey, colour = Image.fromarray(noise(5, 7)), Image.fromarray(noise(5, 7, 3))
    solid = Image.new("RGB", (7, 5), (10, 200, 30))
    expected = torch.tensor([10, 200, 30], dtype=torch.uint8)[:, None, None].expand(3, 5, 7)
    assert torch.equal(
        read_image(save(grey, tmp_path / "l.png")), torch.from_numpy(noise(5, 7)).expand(3, 5, 7)
    )
    assert torch.equal(read_image(save(solid.quantize(4), tmp_path / "p.gif")), expected)
    palette = solid.quantize(4)
    palette.save(tmp_path / "t.png", transparency=bytes([128, 0, 0, 0]))
    assert torch.equal(read_image(tmp_path / "t.png"), expected)
    colour.putalpha(7)
    alpha = read_image(save(colour, tmp_path / "a.png"))
    assert torch.equal(alpha, torch.from_numpy(noise(5, 7, 3)).permute(2, 0, 1))
    bits = read_image(save(grey.convert("1"), tmp_path / "b.png"))
    assert set(bits.unique().tolist()) == {0, 255}


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    values = (noise(5, 7).astype(np.uint16) * 257).copy()
    image = read_image(save(Image.fromarray(values), tmp_path / "a.png"))
    assert torch.equal(image, torch.from_numpy(noise(5, 7)).expand(3, 5, 7))


def test_cmyk_becomes_rgb(tmp_path):
    solid = Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK")
    image = read_image(save(solid, tmp_path / "a.jpg", quality=95))
    expected = torch.tensor([200, 40, 90])[:, None, None]
    assert (image.int() - expected).abs().max() <= 4


def test_the_exif_tag_turns_a_image_unless_told_not_to(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: turn by 90 degrees clockwise
    pixels = noise(4, 6, 3)
    save(Image.fromarray(pixels), tmp_path / "a.png", exif=exif)
    stored = torch.from_numpy(pixels).permute(2, 0, 1)
    assert torch.equal(read_image(tmp_path / "a.png"), stored.rot90(-1, (1, 2)))
    assert torch.equal(read_image(tmp_path / "a.png", exif=False), stored)


@pytest.mark.parametrize("kept", [0, 10, 300, -20])
def test_a_truncated_image_is_named(tmp_path, kept):
    path = save(Image.fromarray(noise(64, 64, 3)), tmp_path / "cut.jpg")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UnreadableImage, match=r"cut.jpg cannot be read .*: replace the file"):
        read_image(path)


def test_float_pixels_and_missing_files_are_named(tmp_path):
    save(Image.fromarray(np.ones((4, 4), np.float32)), tmp_path / "a.tif")
    with pytest.raises(UnreadableImage, match="32-bit floats"):
        read_image(tmp_path / "a.tif")
    with pytest.raises(FileNotFoundError, match=r"none.jpg does not exist"):
        read_image(tmp_path / "none.jpg")


def png(width, height):
    """A PNG file of a few bytes whose header promises many pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest resets ours
@pytest.mark.parametrize("size", [(8200, 8200), (12_000, 12_000), (60_000, 60_000)])
def test_images_of_too_many_pixels_are_skipped_or_named(pictures, size):
    path = pictures / "cat" / "03.jpg"
    path.write_bytes(png(*size))
    for read in (read_image, image_size):
        with pytest.raises(UnreadableImage, match=r"03.jpg cannot be read .*(MAX_PIXELS|bomb)"):
            read(path)
    with pytest.warns(UserWarning, match=r"image 1 skipped: .*03.jpg"):
        list(loader_of(ImageFolder(pictures), 12, 0, 1, seed=0, bad=BadImages("skip")))


def test_a_pipe_is_not_opened_as_an_image(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    for read in (read_image, image_size):
        with pytest.raises(UnreadableImage, match=r"a.jpg cannot be read .* not a regular file"):
            read(tmp_path / "a.jpg")


def test_links_of_folders_that_loop_are_followed_once(pictures):
    elsewhere = pictures.parent / "elsewhere"
    elsewhere.mkdir()
    (pictures / "cat" / "01.jpg").rename(elsewhere / "01.jpg")
    links = {"cat/self": pictures / "cat", "cat/up": pictures, "cat/more": elsewhere}
    links |= {"dog/again": pictures, "dog/cat": pictures / "cat", "cat/twice": elsewhere}
    for name, target in links.items():
        (pictures / name).symlink_to(target, target_is_directory=True)
    dataset = ImageFolder(pictures)
    assert [os.path.basename(f) for f in dataset.files] == [
        *("03.jpg", "05.jpg", "07.jpg", "09.jpg", "11.jpg", "01.jpg"),
        *("00.jpg", "02.jpg", "04.jpg", "06.jpg", "08.jpg", "10.jpg"),
    ]
    assert dataset.labels == [0] * 6 + [1] * 6


def test_an_image_folder_is_torchvisions(shared_data):
    ours = ImageFolder(shared_data / "cifar10_jpeg" / "test")
    theirs = TorchvisionFolder(shared_data / "cifar10_jpeg" / "test")
    assert ours.classes == theirs.classes
    assert list(zip(ours.files, ours.labels, strict=True)) == theirs.samples
    image, label = ours[1999]
    pixels, same = theirs[1999]
    assert torch.equal(image, v2.functional.pil_to_tensor(pixels))
    assert label == same == 9


def test_faulty_image_folders_are_explained(pictures, capsys):
    (pictures / "loose.JPEG").write_bytes(b"")
    with pytest.raises(ValueError, match=r"loose.JPEG lies outside a class folder \(1 such"):
        ImageFolder(pictures)
    (pictures / "loose.JPEG").unlink()
    (pictures / ".hidden").mkdir()
    (pictures / "cow").mkdir()
    with pytest.raises(ValueError, match="class 'cow' has no images"):
        ImageFolder(pictures)
    with pytest.raises(ValueError, match="is not a folder: expected"):
        ImageFolder(pictures / "none")
    with pytest.raises(ValueError, match="has no class folders"):
        ImageFolder(pictures / "cow")
    assert check_data(["image_folder", str(pictures)]) == 2
    assert "class 'cow'" in capsys.readouterr().err


def test_check_data_counts_classes_and_finds_the_bad_file(pictures, capsys):
    assert check_data(["image_folder", str(pictures)]) == 0
    assert "12 images of 2 classes" in capsys.readouterr().out
    path = pictures / "dog" / "04.jpg"
    path.write_bytes(path.read_bytes()[:-40])  # the header is still sound
    assert check_data(["image_folder", str(pictures)]) == 0
    assert check_data(["image_folder", str(pictures), "--decode"]) == 2
    said = capsys.readouterr().err
    assert "04.jpg cannot be read" in said
    assert "bad_images" not in said  # that is an option of the training


@pytest.fixture
def example():
    """A 40 x 60 image; one box, its mask and two joints of it, the second not labelled."""
    image = torch.from_numpy(noise(3, 40, 60))
    masks = torch.zeros(1, 40, 60, dtype=torch.bool)
    masks[0, 8:20, 12:36] = True
    return image, {
        "boxes": torch.tensor([[12.0, 8.0, 36.0, 20.0]]),
        "area": torch.tensor([288.0]),
        "masks": masks,
        "keypoints": torch.tensor([[[12.0, 8.0, 2.0], [0.0, 0.0, 0.0]]]),
        "size": (40, 60),
    }


def box_of(mask):
    rows, columns = mask.nonzero().unbind(1)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def test_flipping_twice_is_the_identity_and_boxes_follow_masks(example):
    flip = transforms.HorizontalFlip(1, mirrored=(1, 0))
    image, target = flip(*example)
    assert torch.equal(image, example[0].flip(-1))
    assert torch.equal(box_of(target["masks"][0]), target["boxes"][0])
    # The first joint changed its name, and is still the corner of the box.
    assert target["keypoints"].tolist() == [[[0, 0, 0], [60 - 12, 8, 2]]]
    image, target = flip(image, target)
    assert torch.equal(image, example[0])
    assert all(torch.equal(target[k], example[1][k]) for k in ("boxes", "masks", "keypoints"))
    assert transforms.HorizontalFlip(0)(*example)[1] is example[1]


def test_cocos_mirrored_joints_are_an_involution():
    assert [transforms.COCO_MIRRORED[j] for j in transforms.COCO_MIRRORED] == list(range(17))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((300, 900), (444, 1333))],
)
def test_the_shorter_side_is_800_unless_the_longer_exceeds_1333(size, expected):
    assert transforms.scaled_size(size, 800, 1333) == expected


def test_resizing_moves_boxes_masks_joints_and_area_alike(example):
    image, target = transforms.Resize(80, 200)(*example)
    assert image.shape == (3, 80, 120)
    assert target["boxes"].tolist() == [[24, 16, 72, 40]]
    assert torch.equal(box_of(target["masks"][0]), target["boxes"][0])
    assert target["area"].item() == target["masks"].sum() == 4 * 288
    assert target["keypoints"].tolist() == [[[24, 16, 2], [0, 0, 0]]]
    assert target["size"] == (40, 60)
    empty = {"boxes": torch.zeros(0, 4), "masks": torch.zeros(0, 40, 60, dtype=torch.bool)}
    assert transforms.Resize(20, 200)(example[0], empty)[1]["masks"].shape == (0, 20, 30)


def test_one_of_several_sizes_is_drawn(example):
    torch.manual_seed(0)
    resize = transforms.Resize((20, 30, 40), 90)
    heights = {resize(*example)[0].shape[1] for _ in range(30)}
    assert heights == {20, 30, 40}
    with pytest.raises(ValueError, match="short <= longest"):
        transforms.Resize((20, 100), 90)


def test_normalising_for_caffe_reverses_the_channels(example):
    caffe = transforms.Normalize((102.9801, 115.9465, 122.7717), (1, 1, 1), scale=1, bgr=True)
    image = caffe(*example)[0]
    mean = torch.tensor(caffe.mean)[:, None, None]
    torch.testing.assert_close(image, example[0].flip(0).float() - mean)
    plain = transforms.Normalize(mean=(0, 0, 0), std=(1, 1, 1))(*example)[0]
    torch.testing.assert_close(plain, example[0] / 255)
    with pytest.raises(ValueError, match="not uint8"):
        caffe(plain, example[1])


def test_batches_are_padded_to_a_multiple_with_zeros():
    batch = [(torch.ones(3, 30, 70), {"i": 0}), (torch.ones(3, 50, 20), {"i": 1})]
    images, sizes, targets = transforms.PadCollate(32)(batch)
    assert images.shape == (2, 3, 64, 96)
    assert sizes.tolist() == [[30, 70], [50, 20]]
    assert images.sum((1, 2, 3)).tolist() == [3 * 30 * 70, 3 * 50 * 20]
    assert images[1, :, :50, :20].eq(1).all()
    assert [target["i"] for target in targets] == [0, 1]


def test_accuracy_counts_exactly_over_uneven_batches():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(103, 10, generator=generator)
    labels = torch.randint(10, (103,), generator=generator)
    accuracy = Accuracy((1, 5))
    for part in torch.arange(103).split(25):
        accuracy.add(logits[part], labels[part])
    hits = [labels[i] in logits[i].topk(5).indices for i in range(103)]
    top1 = (logits.argmax(1) == labels).double().mean() * 100
    assert accuracy.compute() == pytest.approx({"top1": float(top1), "top5": sum(hits) / 1.03})


def test_a_constant_or_nan_output_is_never_right():
    accuracy = Accuracy((1,))
    accuracy.add(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))
    accuracy.add(torch.full((4, 3), torch.nan), torch.zeros(4, dtype=torch.long))
    assert accuracy.compute() == {"top1": 0}
    assert np.isnan(Accuracy().compute()["top1"])


def test_averages_are_weighted():
    average = Average()
    assert np.isnan(average.compute())
    average.add(1.0, 3)
    average.add(torch.tensor(5.0), 1)
    assert average.compute() == 2
