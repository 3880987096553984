"""The built-in clips: what they show is what their labels and their truth say."""

import colorsys
import itertools
import pickle
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from common.scenes.place import place
from nonlocal_.inputs.builtin import (
    EDGE,
    Builtin,
    MatchClips,
    Plan,
    draw_plan,
    make_clips,
    make_world,
)


def tiny(**changed: object) -> Builtin:
    few = {"train": 12, "test": 5, "frames": 8, "side": 32}
    return Builtin(**(few | changed))  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAIR_VISION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def draw_plans(options: Builtin, count: int) -> list[Plan]:
    world = make_world(options)
    floor = place(world, 0, 0)
    rng = np.random.default_rng(0)
    return [draw_plan(options, world, floor, rng) for _ in range(count)]


def colourful(clip: Tensor) -> Tensor:
    """Pixels (T, H, W) that are not grey."""
    return (clip.amax(0).int() - clip.amin(0)) > 60


def test_colour_is_seen_in_the_frames_and_boxes_of_the_truth_and_nowhere_else() -> None:
    clips = MatchClips(tiny(noise=0.0, distractors=3), "train")
    for number in range(len(clips)):
        clip, _ = clips[number]
        truth = clips.truth(number)
        seen = colourful(clip)
        for (x1, y1, x2, y2), (begin, end) in zip(
            truth.boxes.tolist(), truth.frames.tolist(), strict=True
        ):
            inside = seen[begin:end, y1:y2, x1:x2]
            assert inside.float().mean((1, 2)).min() > 0.3
            seen[begin:end, max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
        assert not seen.any(), f"clip {number}"


def test_the_label_says_whether_both_hues_are_the_same() -> None:
    options = tiny(noise=0.0, colors=5, train=24)
    clips = MatchClips(options, "train")
    for number in range(len(clips)):
        clip, label = clips[number]
        truth = clips.truth(number)
        hues = []
        for (x1, y1, x2, y2), (begin, _) in zip(
            truth.boxes.tolist(), truth.frames.tolist(), strict=True
        ):
            pixels = clip[:, begin, y1:y2, x1:x2].reshape(3, -1).double() / 255
            brightest = pixels[:, (pixels.amax(0) - pixels.amin(0)).argmax()]
            hues.append(round(colorsys.rgb_to_hsv(*brightest.tolist())[0] * 5) % 5)
        assert hues == truth.colors.tolist()
        assert label == (hues[0] == hues[1])


def test_every_colour_is_as_frequent_in_either_place_and_with_either_label() -> None:
    plans = draw_plans(tiny(colors=4), 1500)
    table = Counter(plan.colors for plan in plans)
    for pair in itertools.product(range(4), repeat=2):
        share = 1 / 8 if pair[0] == pair[1] else 1 / 24
        spread = (share * (1 - share) / 1500) ** 0.5
        assert table[pair] / 1500 == pytest.approx(share, abs=4 * spread)


def test_the_second_solid_comes_late_enough_at_a_distant_place() -> None:
    options = tiny(frames=12, show=2, gap=5, distance=0.5, distractors=2)
    world = make_world(options)
    camera = place(world, 0, 0).camera
    starts = set()
    for plan in draw_plans(options, 300):
        (first, _), (second, end) = plan.frames[:2].tolist()
        assert 0 <= first <= second - 5
        assert end == second + 2 <= 12
        starts.add((first, second))
        assert (plan.present.sum(0) == 2).all()
        places = np.array([(solid.x, solid.y, 0.3) for solid in plan.solids])
        pixels = camera.project(places)[:, :2] / 32
        assert (np.abs(pixels - 0.5) <= 0.5 - EDGE).all()
        assert np.linalg.norm(pixels[0] - pixels[1]) >= 0.5
        for other in pixels[2:]:
            assert np.linalg.norm(pixels[:2] - other, axis=1).min() >= 0.25
        assert len(plan.solids) == 4
    assert starts == {(a, b) for a in range(6) for b in range(a + 5, 11)}


def test_every_frame_has_noise_of_its_own() -> None:
    (clean, _), (noisy, _) = (MatchClips(tiny(noise=level), "test")[0] for level in (0.0, 6.0))
    dark = clean.amax(0) < 220  # where noise is not cut off at white
    grain = (noisy.float() - clean)[:, dark]
    assert grain.std() == pytest.approx(6, rel=0.05)
    assert grain.mean().abs() < 0.3
    first, other = (noisy.float() - clean)[:, :2].unbind(1)
    assert torch.corrcoef(torch.stack((first.flatten(), other.flatten())))[0, 1].abs() < 0.1


def test_a_clip_is_the_same_in_any_batch_and_in_any_number_of_clips() -> None:
    options = tiny(distractors=1)
    whole = make_clips(options, range(6))
    assert whole[2:4].tobytes() == make_clips(options, range(2, 4)).tobytes()
    few, many = MatchClips(options, "train"), MatchClips(tiny(distractors=1, train=15), "train")
    clips = torch.stack([clip for clip, _ in few])
    assert clips.shape == (12, 3, 8, 32, 32)
    assert clips.dtype == torch.uint8
    assert torch.equal(clips[:6], torch.from_numpy(whole["clip"]))
    assert torch.equal(clips, torch.stack([many[i][0] for i in range(12)]))
    assert [few[i][1] for i in range(6)] == whole["label"].tolist()


def test_splits_and_seeds_show_other_clips() -> None:
    sets = [
        MatchClips(tiny(), "train"),
        MatchClips(tiny(), "test"),
        MatchClips(tiny(seed=1), "test"),
    ]
    assert [len(each) for each in sets] == [12, 5, 5]
    images = [each[0][0] for each in sets]
    for one, other in itertools.combinations(images, 2):
        assert not torch.equal(one, other)


def test_clips_are_rendered_once_and_read_in_other_processes() -> None:
    options = tiny(seed=3)
    clips = MatchClips(options, "test")
    files = {path: path.stat().st_mtime_ns for path in clips.folder.iterdir()}
    again = pickle.loads(pickle.dumps(MatchClips(options, "test")))
    assert {path: path.stat().st_mtime_ns for path in clips.folder.iterdir()} == files
    assert torch.equal(again[4][0], clips[-1][0])
    with pytest.raises(IndexError, match="clip 5 of 5"):
        clips[5]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"train": 0}, "train=0: choose 1 to"),
        ({"colors": 1}, "colors=1: two solids that differ need 2"),
        ({"frames": 5}, "do not fit into frames=5"),
        ({"show": 5, "gap": 4, "frames": 16}, "choose 1 <= show <= gap"),
        ({"distance": 0.9}, "distance=0.9: choose a share of the side up to"),
        ({"distractors": 9}, "distractors=9: choose 0 to 8"),
    ],
)
def test_options_that_cannot_be_are_refused(changed: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tiny(**changed)
