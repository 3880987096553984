"""The paper's augmentation: which crop, how it is cut, and from which random numbers."""

import math

import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from large_minibatch.inputs import augment
from large_minibatch.inputs.augment import (
    Augment,
    View,
    centre_view,
    crop_fb,
    crop_torchvision,
    uniforms,
)

MASK = 2**64 - 1
FULL = (0.08, 1.0)


def mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def rows(count: int, columns: int = augment.DRAWS) -> list[list[float]]:
    indices = torch.arange(count)
    return uniforms(1, torch.zeros_like(indices), indices, columns).tolist()


def image(height: int = 60, width: int = 80, count: int = 1) -> torch.Tensor:
    """Smooth images (count, height, width, 3), as photos are."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, 3, 9, 9, generator=generator) * 255
    image = torch.nn.functional.interpolate(small, (height, width), mode="bicubic")
    return image.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def pil(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.numpy())


def furthest(ours: torch.Tensor, theirs: Image.Image) -> int:
    other = torch.frombuffer(bytearray(theirs.tobytes()), dtype=torch.uint8).view(ours.shape)
    return int((ours.int() - other.int()).abs().max())


def test_the_numbers_are_those_of_splitmix64():
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # its first output from state 0
    seed, epoch, index = 7, 3, 12345
    state = mix((mix((mix(seed) + epoch) & MASK) + index) & MASK)
    expected = [(mix((state + k * 0x9E3779B97F4A7C15) & MASK) >> 11) * 2**-53 for k in range(1, 9)]
    assert uniforms(seed, torch.tensor([epoch]), torch.tensor([index]), 8)[0].tolist() == expected


def test_a_row_does_not_depend_on_its_batch():
    indices = torch.tensor([5, 9, 5, 0])
    epochs = torch.tensor([0, 0, 1, 0])
    together = uniforms(2, epochs, indices)
    for k in range(4):
        assert torch.equal(uniforms(2, epochs[k : k + 1], indices[k : k + 1])[0], together[k])
    assert torch.equal(uniforms(2, epochs, indices, 3), together[:, :3])
    assert not torch.equal(together[0], together[2])
    assert not torch.equal(uniforms(3, epochs, indices), together)


def test_the_numbers_are_uniform_and_independent():
    u = uniforms(0, torch.zeros(50_000, dtype=torch.int64), torch.arange(50_000), 12)
    assert u.min() >= 0
    assert u.max() < 1
    for column in u.T:
        counts = torch.histc(column, 20, 0, 1)
        assert ((counts - 2500) ** 2 / 2500).sum() < 50  # chi square of 19: p < 1e-4
    assert torch.corrcoef(torch.cat([u, u.roll(1, 0)], 1).T).fill_diagonal_(0).abs().max() < 0.025


def test_the_crop_of_fb_has_uniform_area_and_aspect_inverted_half_of_the_time():
    boxes = [crop_fb(1000, 1000, row[augment.CROP], (0.08, 0.5)) for row in rows(20_000)]
    _, _, h, w = torch.tensor(boxes, dtype=torch.float64).unbind(1)
    area = (h * w / 1e6 - 0.08) / 0.42
    quantiles = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    torch.testing.assert_close(area.quantile(quantiles), quantiles, atol=0.015, rtol=0)
    aspect = w / h
    assert aspect.min() > 3 / 4 - 0.01
    assert aspect.max() < 4 / 3 + 0.01
    # P(aspect < 7/8): half of P(a < 7/8) and half of P(a > 8/7), a uniform in 3/4..4/3.
    expected = 0.5 * (7 / 8 - 3 / 4) / (7 / 12) + 0.5 * (4 / 3 - 8 / 7) / (7 / 12)
    assert (aspect < 7 / 8).double().mean() == pytest.approx(expected, abs=0.01)


def test_the_corner_of_a_crop_is_uniform_over_all_places():
    boxes = [crop_fb(40, 30, row[augment.CROP], FULL) for row in rows(20_000)]
    found = torch.tensor([box for box in boxes if box])
    top, left, h, w = found.unbind(1)
    assert (top + h).max() == 40
    assert (left + w).max() == 30
    assert top.min() == left.min() == 0
    small = w == 20
    counts = left[small].bincount(minlength=11)
    mean = counts.double().mean()
    assert ((counts - mean) ** 2 / mean).sum() < 35  # chi square of 10: p < 1e-4


def test_torchvisions_crop_has_torchvisions_distribution():
    blank = torch.empty(3, 375, 500)
    torch.manual_seed(0)
    get = transforms.RandomResizedCrop.get_params
    theirs = torch.tensor([get(blank, list(FULL), [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = torch.tensor([crop_torchvision(375, 500, row[augment.CROP], FULL) for row in rows(4000)])
    q = torch.linspace(0.1, 0.9, 9)
    for a, b in zip(ours.float().unbind(1), theirs.float().unbind(1), strict=True):
        torch.testing.assert_close(a.quantile(q), b.quantile(q), atol=14.0, rtol=0)


@pytest.mark.parametrize("size", [(100, 1000), (1000, 100), (300, 400), (31, 100)])
def test_torchvisions_crop_falls_back_as_torchvision_does(size):
    get = transforms.RandomResizedCrop.get_params
    theirs = get(torch.empty(3, *size), [1.5, 1.5], [3 / 4, 4 / 3])  # never fits
    assert crop_torchvision(*size, [0.5] * 50, (1.5, 1.5)) == theirs


def test_an_image_no_crop_of_fb_fits_is_resized_and_cut_in_the_centre():
    options = Augment(size=20, resize=32, area=(0.99, 1.0))
    view = options.view(30, 300, [0.5] * augment.DRAWS)
    assert view == View((0, 0, 30, 300), (20, 200), (0, 90), 20)


def test_a_crop_has_pillows_pixels_within_one_level():
    pixels = image(120, 160)[0]
    for mode, theirs in (
        ("bicubic", InterpolationMode.BICUBIC),
        ("bilinear", InterpolationMode.BILINEAR),
    ):
        ours = View((10, 20, 80, 100), (32, 32), (0, 0), 32).cut(pixels[10:90, 20:120], mode)
        reference = transforms.functional.resized_crop(
            pil(pixels), 10, 20, 80, 100, [32, 32], theirs
        )
        assert furthest(ours, reference) <= 1


@pytest.mark.parametrize("size", [(60, 81), (83, 60), (33, 47)])
def test_the_evaluations_crop_is_torchvisions(size):
    pixels = image(*size)[0]
    reference = transforms.Compose(
        [transforms.Resize(32, InterpolationMode.BICUBIC), transforms.CenterCrop(28)]
    )
    ours = Augment(size=28, resize=32, crop="torchvision").view(*size).cut(pixels)
    assert furthest(ours, reference(pil(pixels))) <= 1


def test_an_odd_margin_is_rounded_as_in_fb():
    assert centre_view(37, 40, 32, resize=0).corner == (3, 4)
    assert centre_view(37, 40, 32, resize=0, rounding="torchvision").corner == (2, 4)


def test_an_image_smaller_than_the_crop_is_refused():
    with pytest.raises(ValueError, match="20 x 30 pixels is smaller than the crop of 24"):
        centre_view(30, 20, 24, resize=0)
    with pytest.raises(ValueError, match="resize=16 is less than the crop's size=24"):
        Augment(size=24, resize=16)
    with pytest.raises(ValueError, match="area"):
        Augment(area=(0.5, 0.1))


def test_flipping_mirrors_the_chosen_images_only():
    images = image(count=4)
    which = torch.tensor([True, False, True, False])
    flipped = augment.flip(images.clone(), which)
    assert torch.equal(flipped[1::2], images[1::2])
    assert torch.equal(flipped[::2], images[::2].flip(2))


def test_shifting_is_cutting_from_the_padded_image():
    images = image(16, 16, count=3)
    fill = (124, 116, 104)
    padded = augment.pad(images, fill)
    assert padded[0, 0, 0].tolist() == list(fill)
    picks = torch.tensor([2, 0, 1, 2, 2])
    u = torch.tensor(rows(5, 10), dtype=torch.float64)
    u[3, augment.SHIFT], u[4, augment.SHIFT] = 0.0, 1 - 1e-9
    shifted = augment.shift(padded, picks, u)
    for k in range(5):
        top, left = (math.floor(9 * float(v)) for v in u[k, augment.SHIFT])
        expected = padded[picks[k], top : top + 16, left : left + 16]
        assert torch.equal(shifted[k], expected)


def test_colour_in_the_middle_of_its_range_changes_nothing():
    images = image(count=2)
    u = torch.full((2, 10), 0.5, dtype=torch.float64)
    assert torch.equal(augment.recolour(images, u, jitter=0.4, lighting=0.1), images)


def test_lighting_adds_the_principal_components():
    images = torch.full((1, 4, 4, 3), 100, dtype=torch.uint8)
    u = torch.full((1, 10), 0.5, dtype=torch.float64)
    u[0, augment.LIGHT.start] = 0.8413447  # one standard deviation of the first component
    change = augment.recolour(images, u, jitter=0.0, lighting=0.1)[0, 0, 0].double() - 100
    expected = torch.tensor([-0.5675, -0.5808, -0.5836]) * 0.2175 * 0.1 * 255
    assert torch.equal(change, expected.round().double())


@pytest.mark.parametrize("number", range(6))
def test_jitter_mixes_in_its_order_with_black_the_mean_grey_and_the_grey_image(number):
    order = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)][number]
    images = image(count=3)
    u = torch.tensor(rows(3, 10), dtype=torch.float64)
    u[:, augment.COLOR.start] = (number + 0.5) / 6
    ours = augment.recolour(images, u, jitter=0.4, lighting=0.0)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    for k in range(3):
        x = images[k].double() / 255
        for step in order:
            alpha = 1 + 0.4 * (2 * u[k, augment.COLOR.start + 1 + step] - 1)
            grey = (x * weights).sum(2, keepdim=True)
            x = alpha * x + (1 - alpha) * (torch.zeros(()), grey.mean(), grey)[step]
        expected = (x * 255).clamp(0, 255)
        assert (ours[k].double() - expected).abs().max() < 0.51
