"""Features of images: their extraction, the files that hold them, batches image by image."""

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.models import resnet18

from common.clevr.arrays import extract as extraction
from common.clevr.arrays.extract import Extractor, extract, image_files, read_resized
from common.clevr.arrays.features import ByImage, Features


@pytest.fixture(scope="module")
def small() -> Extractor:
    torch.manual_seed(0)
    return Extractor(depth=18, weights=None)


def draw_images(folder: Path, count: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"CLEVR_val_{i:06d}.png")
    return folder


def test_a_image_is_resized_bicubically_to_224_without_its_alpha(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = Image.fromarray(pixels[..., :3]).resize((224, 224), Image.Resampling.BICUBIC)
    found = read_resized(tmp_path / "a.png")
    assert torch.equal(found, torch.from_numpy(np.array(expected)).permute(2, 0, 1))


def test_maps_are_those_of_torchvision_with_the_published_normalisation(tmp_path: Path) -> None:
    torch.manual_seed(1)
    resnet = resnet18(weights=None).eval()
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
    images = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    stem = torch.nn.Sequential(*list(resnet.children())[:7])  # conv1 .. layer3
    for std, third in (("iep", 0.224), ("imagenet", 0.225)):
        extractor = Extractor(depth=18, weights=tmp_path / "resnet18.pth", std=std).train()
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        deviation = torch.tensor([0.229, 0.224, third]).view(3, 1, 1)
        with torch.no_grad():
            torch.testing.assert_close(
                extractor(images), stem((images / 255 - mean) / deviation), rtol=0, atol=1e-5
            )


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "own.pth")
    message = r"own\.pth is no state_dict of resnet18: 99 of 100 tensors are missing and 1 have"
    with pytest.raises(ValueError, match=message):
        Extractor(depth=18, weights=tmp_path / "own.pth")
    with pytest.raises(ValueError, match="'nowhere' is neither a file nor one of torchvision's"):
        Extractor(depth=18, weights="nowhere")
    with pytest.raises(ValueError, match="std is 'own': choose one of iep, imagenet"):
        Extractor(depth=18, weights=None, std="own")


@pytest.mark.parametrize("name", ["maps.npy", "maps.h5"])
def test_extracted_maps_lie_in_the_row_of_the_image_number(
    tmp_path: Path, small: Extractor, name: str
) -> None:
    shape = extract(draw_images(tmp_path), tmp_path / name, small, batch_size=2, progress=False)
    assert shape == (3, 256, 14, 14)
    found = Features(tmp_path / name)
    with torch.no_grad():
        alone = small(read_resized(tmp_path / "CLEVR_val_000002.png")[None])
    torch.testing.assert_close(found[[2]], alone, rtol=0, atol=1e-5)
    assert not list(tmp_path.glob(".*"))


def test_half_precision_is_near_and_a_failure_leaves_no_file(
    tmp_path: Path, small: Extractor
) -> None:
    files = image_files(draw_images(tmp_path, 2))
    extract(files, tmp_path / "full.npy", small, progress=False)
    extract(files[::-1], tmp_path / "half.npy", small, half=True, progress=False)
    full, half = Features(tmp_path / "full.npy"), Features(tmp_path / "half.npy")
    assert half.dtype == np.float16
    torch.testing.assert_close(full[[0]], half[[1]], rtol=1e-3, atol=1e-4)
    files[1].write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"CLEVR_val_000001\.png"):
        extract(files, tmp_path / "new.npy", small, progress=False)
    assert not [path for path in tmp_path.iterdir() if "new" in path.name]


def test_a_gap_in_the_numbers_of_the_images_is_named(tmp_path: Path) -> None:
    draw_images(tmp_path)
    (tmp_path / "CLEVR_val_000001.png").unlink()
    with pytest.raises(ValueError, match="2 images, but none with the number 1"):
        image_files(tmp_path)
    (tmp_path / "cat.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cat\.png has no number .*give a list of files"):
        image_files(tmp_path)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
@pytest.mark.parametrize("suffix", ["npy", "h5"])
def test_maps_are_read_in_the_order_asked_for(tmp_path: Path, dtype: type, suffix: str) -> None:
    maps = np.arange(5 * 2 * 3 * 3).reshape(5, 2, 3, 3).astype(dtype)
    path = tmp_path / f"maps.{suffix}"
    if suffix == "npy":
        np.save(path, maps)
    else:
        with h5py.File(path, "w") as file:
            file["features"] = maps
    found = pickle.loads(pickle.dumps(Features(path)))  # as a loader's process gets it
    assert found.shape == (5, 2, 3, 3)
    scale = 255 if dtype == np.uint8 else 1
    order = np.array([3, 0, 3, 1])
    expected = torch.from_numpy(maps.astype(np.float32) / np.float32(scale))[order]
    torch.testing.assert_close(found[order], expected, rtol=1e-6, atol=0)
    assert torch.equal(found[torch.tensor([1, 4])], Features(maps)[[1, 4]])


def test_features_of_a_wrong_shape_or_kind_are_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "maps.npy"
    np.save(path, np.zeros((2, 8, 3, 3), np.float32))
    with pytest.raises(ValueError, match=r"image 2 is asked for, but .* holds images 0\.\.1"):
        Features(path)[np.array([0, 2])]
    for bad in (np.zeros((2, 8)), np.zeros((2, 8, 3, 3))):
        np.save(path, bad)
        with pytest.raises(ValueError, match=r"holds float64 of shape .*expected float16"):
            Features(path)
    with pytest.raises(ValueError, match=r"none\.h5 does not exist"):
        Features(tmp_path / "none.h5")
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("features")
    with pytest.raises(ValueError, match=r"group\.h5 has no data set `features`"):
        Features(tmp_path / "group.h5")


def test_batches_by_image_take_each_question_once_and_each_image_together() -> None:
    rng = np.random.default_rng(0)
    images = rng.permutation(np.repeat(np.arange(40), rng.integers(1, 12, 40)))
    loader = ByImage(images, 16, seed=3)
    epoch = np.concatenate([loader.batch(step) for step in range(loader.steps_per_epoch)])
    assert len(set(epoch.tolist())) == len(epoch) == len(images) // 16 * 16
    changes = int((np.diff(images[epoch]) != 0).sum())
    assert changes == len(set(images[epoch].tolist())) - 1  # no image comes back


def test_a_batch_by_image_depends_on_seed_and_step_alone() -> None:
    images = np.arange(60) // 6
    one, two = ByImage(images, 8, seed=0), ByImage(images, 8, seed=0)
    later = one.batch(20)
    for step in range(21):
        last = two.batch(step)
    assert np.array_equal(later, last)
    assert not np.array_equal(later, ByImage(images, 8, seed=1).batch(20))
    shares = [one.share(20, rank, 2) for rank in range(2)]
    assert np.array_equal(np.concatenate(shares), later)
    with pytest.raises(ValueError, match="batch_size 8 cannot be shared by 3"):
        one.share(0, 0, 3)


def test_a_set_smaller_than_a_batch_is_repeated() -> None:
    batch = ByImage([4, 4, 9], 8, seed=0).batch(5)
    assert np.bincount(batch).tolist() in ([3, 3, 2], [2, 3, 3], [3, 2, 3])


def test_real_images_pass_the_extractor_of_the_paper(shared_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    extractor = Extractor(weights=None)
    files = image_files(shared_data / "clevr_small" / "images" / "val")[:2]
    extract(files, tmp_path / "maps.npy", extractor, progress=False)
    maps = Features(tmp_path / "maps.npy")[[0, 1]]
    assert bool(maps.isfinite().all())
    assert not torch.equal(maps[0], maps[1])
    assert F.relu(maps).equal(maps)
    assert extraction.SIZE == 224
