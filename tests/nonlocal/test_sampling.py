"""Which frames and which squares: the card's rules, spelled out anew (section 7, oracle 11)."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nonlocal_.clips.augment import Augment, evaluation_crops, resize
from nonlocal_.clips.sampling import (
    crop_corner,
    evaluation_indices,
    part_of,
    scaled_size,
    training_indices,
)

COUNTS = [1, 7, 20, 50, 64, 65, 300]
CLIPS = [(32, 2), (8, 8), (4, 1)]


def ramp(height: int, width: int, frames: int = 2) -> Tensor:
    """A clip uint8 (T, 3, H, W) whose channels hold row, column and frame."""
    clip = torch.zeros(frames, 3, height, width, dtype=torch.uint8)
    clip[:, 0] = torch.arange(height)[:, None] % 256
    clip[:, 1] = torch.arange(width) % 256
    clip[:, 2] = torch.arange(frames)[:, None, None]
    return clip


# Frames


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize(("frames", "stride"), CLIPS)
def test_training_clips_start_anywhere_and_wrap_around(n, frames, stride):
    generator = torch.Generator().manual_seed(0)
    starts = set()
    for _ in range(3000):
        clip = training_indices(n, frames, stride, generator).tolist()
        start = clip[0]
        assert clip == [(start + t * stride) % n for t in range(frames)]
        starts.add(start)
    assert starts == set(range(max(n - frames * stride, 0) + 1))


def test_the_starts_of_training_are_uniform():
    generator = torch.Generator().manual_seed(0)
    starts = torch.stack([training_indices(74, 32, 2, generator)[0] for _ in range(4400)])
    assert (torch.bincount(starts, minlength=11) - 400).abs().max() < 80  # 4 sigma


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize(("frames", "stride"), CLIPS)
def test_the_clips_of_a_test_are_those_of_the_official_code(n, frames, stride):
    found = evaluation_indices(n, frames, stride)
    for k in range(10):
        start = int(n / 10 * k) % n
        assert found[k].tolist() == [(start + t * stride) % n for t in range(frames)]


@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("clips", [1, 2, 10])
def test_clips_between_both_ends_are_those_of_slowfast_on_charades(n, clips):
    found = evaluation_indices(n, 32, 4, clips=clips, sampler="ends")
    spare = max(n - (31 * 4 + 1), 0)
    for k in range(clips):
        start = round(spare / (clips - 1) * k) if clips > 1 else spare // 2
        expected = [max(min(start + i * 4, n - 1), 0) for i in range(32)]
        assert found[k].tolist() == expected
    if clips > 1:
        assert found[0, 0] == 0
        assert found[-1, -1] == n - 1


def test_the_clip_in_the_middle():
    assert evaluation_indices(100, 8, 8, clips=1, sampler="center").tolist() == [
        list(range(18, 82, 8))
    ]
    assert evaluation_indices(3, 4, 2, clips=1, sampler="center").tolist() == [[0, 2, 1, 0]]
    with pytest.raises(ValueError, match=r"test\.clips=1"):
        evaluation_indices(100, 8, 8, clips=10, sampler="center")


@pytest.mark.parametrize("n", [2, 3, 50, 51])
def test_halves_have_no_frame_in_common_and_all_together(n):
    first, second = part_of(n, (0, 0.5)), part_of(n, (0.5, 1))
    assert [*first, *second] == list(range(n))
    assert first
    assert second
    assert list(part_of(n, (0.0, 1.0))) == list(range(n))


def test_a_part_of_one_frame_is_that_frame():
    assert list(part_of(1, (0, 0.5))) == list(part_of(1, (0.5, 1))) == [0]


# Squares


def transcribed(height: int, width: int, size: int, position: int) -> tuple[int, int]:
    """The rule of the official code, with its own variables."""
    h0, w0 = (height - size) // 2, (width - size) // 2
    if h0 > 0:
        h0 = h0 * position
    else:
        w0 = w0 * position
    return h0, w0


@pytest.mark.parametrize("position", [0, 1, 2])
def test_squares_lie_along_the_longer_side(position):
    for height, width in [(256, 256), (256, 257), (256, 340), (340, 256), (256, 341), (257, 256)]:
        corner = crop_corner(height, width, 256, position)
        assert corner == transcribed(height, width, 256, position)
    assert crop_corner(256, 340, 256, position) == (0, 42 * position)
    assert crop_corner(340, 256, 256, position) == (42 * position, 0)
    assert crop_corner(256, 256, 256, position) == (0, 0)
    assert crop_corner(256, 257, 256, position) == (0, 0)  # all equal, and one pixel missed
    assert crop_corner(256, 341, 256, 2) == (0, 84)


def test_sizes_are_rounded_down_and_the_shorter_side_is_exact():
    assert scaled_size(256, 340, 256) == (256, 340)
    assert scaled_size(240, 320, 256) == (256, int(320 * (256 / 240))) == (256, 341)
    assert scaled_size(1920, 1080, 256) == (455, 256)
    for side in range(1, 2000):
        assert scaled_size(side, side, 256) == (256, 256)


def test_thirty_views_are_ten_clips_of_three_squares_and_sixty_with_mirrors():
    clip = ramp(64, 100)
    views = evaluation_crops(clip, 64)
    assert views.shape == (3, 2, 3, 64, 64)
    assert views[:, 0, 1, 0, 0].tolist() == [0, 18, 36]  # the left columns
    both = evaluation_crops(clip, 64, mirror=True)
    assert torch.equal(both[:3], views)
    for position in range(3, 6):  # mirror = position // 3, place = position % 3
        assert torch.equal(both[position], views[position % 3].flip(-1))
    assert torch.equal(evaluation_crops(clip, 64, crops=1), views[1:2])
    assert torch.equal(evaluation_crops(clip, 64, crops=0), clip[None])


# Training


def opencv(clip: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear in float64: output pixel x lies at (x + 0.5) W / w - 0.5, edges are repeated."""
    out = clip.double()
    for axis, target in ((2, size[0]), (3, size[1])):
        source = out.shape[axis]
        place = ((torch.arange(target) + 0.5).double() * source / target - 0.5).clamp(0, source - 1)
        low = place.floor().long()
        high = (low + 1).clamp(max=source - 1)
        share = (place - low).view(-1, *[1] * (3 - axis))
        out = out.index_select(axis, low) * (1 - share) + out.index_select(axis, high) * share
    return out


@pytest.mark.parametrize("size", [(30, 41), (11, 15), (22, 30), (7, 60)])
def test_resizing_is_bilinear_between_centres_without_a_filter(size):
    clip = torch.randint(0, 256, (2, 3, 22, 30), dtype=torch.uint8)
    found = resize(clip, size)
    assert found.dtype == torch.uint8
    assert (found - opencv(clip, size).round()).abs().max() <= 1  # it rounds twice


def test_resizing_is_that_of_opencv():
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed (extra `grabcut`)")
    clip = torch.randint(0, 256, (1, 3, 22, 30), dtype=torch.uint8)
    theirs = cv2.resize(clip[0].permute(1, 2, 0).numpy(), (41, 30), interpolation=cv2.INTER_LINEAR)
    found = resize(clip, (30, 41))[0].permute(1, 2, 0).numpy()
    assert abs(found.astype(int) - theirs.astype(int)).max() <= 1


def test_a_clip_has_one_scale_one_crop_and_one_flip():
    clip = ramp(48, 64)
    augment = Augment(jitter=(48, 48), crop=32)
    seen = set()
    for seed in range(300):
        view = augment(clip, torch.Generator().manual_seed(seed))
        assert view.shape == (2, 3, 32, 32)
        assert torch.equal(view[0, :2], view[1, :2])
        top, columns = int(view[0, 0, 0, 0]), view[0, 1, 0].tolist()
        assert columns in (sorted(columns), sorted(columns)[::-1])
        seen.add((top, min(columns), columns[0] < columns[1]))
    assert {top for top, _, _ in seen} == set(range(17))
    assert {left for _, left, _ in seen} == set(range(33))
    assert {flip for _, _, flip in seen} == {True, False}


def test_scales_are_whole_numbers_of_the_range_with_both_ends():
    clip = ramp(32, 32, frames=1)
    generator = torch.Generator().manual_seed(0)
    # The crop is the whole image at scale 32 alone, and the column's step tells the scale.
    steps = {
        tuple(Augment((32, 36), 32, flip=0)(clip, generator)[0, 1, 0, :8].diff().tolist())
        for _ in range(200)
    }
    shapes = {
        Augment((side, side), side, flip=0)(clip, generator).shape[-1] for side in range(32, 37)
    }
    assert len(steps) > 4
    assert shapes == set(range(32, 37))


def test_the_crop_of_charades_is_resampled():
    view = Augment((48, 48), 32, resample=40, flip=0)(ramp(48, 64))
    assert view.shape == (2, 3, 40, 40)


def test_flips_have_the_probability_asked_for():
    clip = ramp(8, 8, frames=1)
    generator = torch.Generator().manual_seed(0)
    augment = Augment((8, 8), 8)
    flips = sum(int(augment(clip, generator)[0, 1, 0, 0] == 7) for _ in range(1000))
    assert 440 < flips < 560


def test_a_constant_clip_stays_constant():
    clip = torch.full((2, 3, 20, 33), 77, dtype=torch.uint8)
    assert bool((Augment((24, 30), 22)(clip) == 77).all())
    assert F.mse_loss(resize(clip, (37, 61)).float(), torch.full((2, 3, 37, 61), 77.0)) == 0
