"""Views of images: crops, mirroring, jitter, and the centre."""

import pickle

import pytest
import torch
from torchvision.transforms import v2

from lowshot_hallucination.features.transforms import View, jitter, random_resized_crop, shift


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Random uint8 (3, height, width)."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), generator=draw, dtype=torch.uint8)


def test_the_test_view_is_torchvisions_resize_and_centre_crop() -> None:
    reference = v2.Compose([v2.Resize(40, antialias=True), v2.CenterCrop(32)])
    for size in ((50, 70), (90, 45), (40, 40)):
        assert torch.equal(View(32, 40).centre(image(*size)), reference(image(*size)))


def test_a_small_image_of_the_right_size_is_its_own_test_view() -> None:
    x = image(32, 32)
    assert torch.equal(View(32, 32, "shift").centre(x), x)


def test_shifts_are_all_translations_up_to_the_limit_equally_often() -> None:
    x = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8).expand(3, 8, 8)
    torch.manual_seed(0)
    counts = torch.zeros(5, 5)
    for _ in range(1000):
        moved = shift(x, 2)[0].int()
        corner = int(moved[2, 2])  # inside the image whatever the shift is
        counts[corner // 8, corner % 8] += 1
        rows = (torch.arange(8) + corner // 8 - 2).clamp(0, 7)
        columns = (torch.arange(8) + corner % 8 - 2).clamp(0, 7)
        assert torch.equal(moved, x[0].int()[rows][:, columns])
    chi2 = ((counts - 40) ** 2 / 40).sum()
    assert chi2 < 51.2  # 24 degrees of freedom, p = 0.001


def test_half_of_the_random_views_are_mirrored_and_none_without_flip() -> None:
    x = image(8, 8)
    torch.manual_seed(0)
    views = [View(8, 8, "none").random(x) for _ in range(200)]
    mirrored = sum(torch.equal(view, x.flip(-1)) for view in views)
    assert mirrored + sum(torch.equal(view, x) for view in views) == 200
    assert 75 <= mirrored <= 125
    assert all(torch.equal(View(8, 8, "none", flip=False).random(x), x) for _ in range(20))


def test_the_random_resized_crop_is_torchvisions() -> None:
    x = image(60, 90)
    for seed in range(5):
        torch.manual_seed(seed)
        expected = v2.RandomResizedCrop(32, antialias=True)(x)
        torch.manual_seed(seed)
        assert torch.equal(random_resized_crop(x, 32), expected)


def test_jitter_equals_the_formulas_of_brightness_contrast_and_colour_in_this_order() -> None:
    x = image(6, 7)
    torch.manual_seed(3)
    got = jitter(x, 0.4)
    torch.manual_seed(3)
    brightness, contrast, colour = (0.6 + 0.8 * torch.rand(3)).tolist()
    weights = torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)
    y = (x * brightness).clamp(0, 255).floor()
    grey = (y * weights).sum(0).floor().mean()
    y = (contrast * y + (1 - contrast) * grey).clamp(0, 255).floor()
    grey = (y * weights).sum(0).floor()
    y = (colour * y + (1 - colour) * grey).clamp(0, 255).floor()
    assert (got.float() - y).abs().max() <= 1
    assert torch.equal(jitter(x, 0.0), x)


def test_a_view_can_be_sent_to_loader_processes() -> None:
    view = View(8, 8, "shift")
    assert pickle.loads(pickle.dumps(view.random)).__self__ == view


def test_a_view_larger_than_the_resized_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.size=64, data.resize=32"):
        View(64, 32)
