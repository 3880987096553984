"""Crops: torchvision's distribution and pixels, and files that are no image."""

import pickle
from functools import partial
from io import BytesIO

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as F

from common.config import to_dataclass
from common.images import MAX_PIXELS, UnreadableImage
from hashtag_pretrain.inputs import augment
from hashtag_pretrain.inputs.augment import Augment
from hashtag_pretrain.inputs.decode import View, decode_crop

from .small import encode, image_bytes


def pixels_of(data: bytes) -> torch.Tensor:
    array = np.array(Image.open(BytesIO(data)).convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1)


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth image, as photos are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean difference of two images, in levels of 0..255."""
    assert one.shape == other.shape
    return float((one.float() - other.float()).abs().mean())


@pytest.mark.parametrize("size", [(300, 400), (50, 500), (500, 50), (7, 5)])
def test_boxes_are_those_of_torchvision_from_the_same_state(size):
    image = torch.zeros(3, *size)
    options = Augment(size=32, resize=32)
    for seed in range(20):
        torch.manual_seed(seed)
        box = options.draw(*size).box
        torch.manual_seed(seed)
        assert box == RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])


def test_a_random_crop_has_the_pixels_of_torchvision():
    data = encode(photo(160, 224))
    options = Augment(size=64, resize=64, flip=0.0)
    for seed in range(5):
        torch.manual_seed(seed)
        found = augment.training_image(data, options)
        torch.manual_seed(seed)
        box = RandomResizedCrop.get_params(pixels_of(data), [0.08, 1.0], [3 / 4, 4 / 3])
        expected = F.resized_crop(pixels_of(data), *box, [64, 64])
        assert torch.equal(found, expected)
        assert found.dtype == torch.uint8
        assert found.is_contiguous()


@pytest.mark.parametrize("shape", [(160, 225), (225, 160), (161, 161), (40, 47)])
def test_an_evaluation_takes_the_centre_as_torchvision_does(shape):
    data = encode(photo(*shape))
    expected = v2.Compose([v2.Resize(72), v2.CenterCrop(64)])(pixels_of(data))
    found = augment.test_image(data, Augment(size=64, resize=72))
    assert torch.equal(found, expected)


def test_half_of_the_images_are_mirrored():
    data, options = image_bytes(side=32), Augment(size=32, resize=32, crop="shift")
    torch.manual_seed(0)
    flips = [options.draw(32, 32).flip for _ in range(400)]
    assert 160 < sum(flips) < 240
    view = View((0, 0, 32, 32), (32, 32), (0, 0), 32)
    mirrored = View((0, 0, 32, 32), (32, 32), (0, 0), 32, flip=True)
    one = decode_crop(data, "a", lambda *_: view)
    assert torch.equal(one, pixels_of(data))
    assert torch.equal(decode_crop(data, "a", lambda *_: mirrored), one.flip(2))


def test_a_shift_moves_a_small_image_within_black():
    data, options = image_bytes(side=32), Augment(size=32, resize=32, crop="shift", flip=0.0)
    padded = torch.nn.functional.pad(pixels_of(data), (4, 4, 4, 4))
    seen = set()
    torch.manual_seed(0)
    for _ in range(300):
        view = options.draw(32, 32)
        assert view.shift is not None
        top, left = view.shift
        expected = padded[:, top : top + 32, left : left + 32]
        seen.add((top, left))
        if len(seen) < 20:
            assert torch.equal(decode_crop(data, "a", lambda *_, view=view: view), expected)
    assert {top for top, _ in seen} == {left for _, left in seen} == set(range(9))


def test_the_same_state_gives_the_same_image_and_another_one_another():
    data, options = encode(photo(100, 120)), Augment(size=32, resize=32)
    draw = pickle.loads(pickle.dumps(partial(augment.training_image, options=options)))
    torch.manual_seed(3)
    one, two = draw(data), draw(data)
    torch.manual_seed(3)
    assert torch.equal(one, draw(data))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_large_jpeg_is_decoded_at_a_smaller_size_to_nearly_the_same_pixels(factor):
    image = photo(64 * factor + 5, 80 * factor + 3)
    data, whole = encode(image, "jpeg", quality=95), encode(image)
    sizes = []

    def choose(height, width):
        sizes.append((height, width))
        return Augment(size=64, resize=64).centre(height, width)

    found = decode_crop(data, "a", choose)
    assert sizes == [image.size[::-1]]  # chosen once, of the size in the header
    assert distance(found, augment.test_image(whole, Augment(size=64, resize=64))) < 3


def test_a_smaller_size_still_covers_the_crop(monkeypatch):
    asked, draft = [], JpegImageFile.draft

    def note(self, mode, size):
        asked.append(size)
        return draft(self, mode, size)

    monkeypatch.setattr(JpegImageFile, "draft", note)
    data = encode(photo(480, 640), "jpeg")
    quarter = View((0, 0, 240, 320), (64, 64), (0, 0), 64)  # a quarter of the area
    decode_crop(data, "a", lambda *_: quarter)
    assert asked == [(128, 128)]  # of which the box has 64 x 64


def test_a_box_in_a_smaller_image_is_the_same_part_of_it():
    image = photo(512, 512, seed=4)
    view = View((128, 256, 256, 128), (32, 32), (0, 0), 32)
    found = decode_crop(encode(image, "jpeg", quality=95), "a", lambda *_: view)
    assert distance(found, decode_crop(encode(image), "a", lambda *_: view)) < 2


def test_images_are_turned_upright_before_a_view_is_chosen():
    image = photo(64, 96)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned = encode(image, "png", exif=exif.tobytes())
    upright = encode(image.transpose(Image.Transpose.ROTATE_270))
    options = Augment(size=48, resize=48)
    assert torch.equal(augment.test_image(turned, options), augment.test_image(upright, options))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "RGBA", "LA", "I;16"])
def test_images_of_any_mode_become_rgb(mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 40), 257 * 100, np.uint16))
    else:
        image = photo(40, 40).convert(mode)
    data = encode(image, "jpeg" if mode == "CMYK" else "png")
    found = augment.test_image(data, Augment(size=32, resize=32))
    assert found.shape == (3, 32, 32)
    if mode == "I;16":
        assert (found == 100).all()


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "bomb", "float"])
def test_what_is_no_image_is_unreadable_and_named(kind):
    good = encode(photo(64, 64), "jpeg")
    data = {"empty": b"", "text": b"no image", "cut": good[: len(good) // 2]}.get(kind)
    if kind == "bomb":
        data = encode(Image.new("1", (MAX_PIXELS // 4096 + 1, 4096)))
    elif kind == "float":
        data = encode(Image.new("F", (40, 40)), "tiff")
    assert data is not None
    with pytest.raises(
        UnreadableImage, match=r"^000001\.tar: k cannot be read as an image \([^<>]*\):"
    ):
        augment.training_image(data, Augment(size=32, resize=32), "000001.tar: k")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "centre"}, "augment.crop=centre is unknown"),
        ({"scale": [0.0, 1.0]}, "augment.scale="),
        ({"scale": [0.5, 1.5]}, "above 0, up to 1"),
        ({"ratio": [2.0, 1.0]}, "augment.ratio="),
        ({"flip": 1.5}, "augment.flip=1.5 is out of range"),
        ({"size": 300}, "augment.resize=256 is less than augment.size=300"),
    ],
)
def test_options_out_of_range_stop_with_their_names(options, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        Augment(**options)


def test_options_are_read_from_a_configuration():
    cfg = OmegaConf.structured(Augment)
    cfg.merge_with_dotlist(["size=32", "resize=36", "scale=[0.3,1]"])
    assert to_dataclass(cfg) == Augment(size=32, resize=36, scale=[0.3, 1.0])
