"""Clips and views of lists of videos, bad ones included, through the loaders."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from common.data import BadExample, BadImages, eval_loader, train_loader
from common.images import UnreadableImage
from common.sampling import SampleStream
from nonlocal_ import config
from nonlocal_.clips.augment import Augment
from nonlocal_.clips.decoders import UnreadableVideo
from nonlocal_.clips.lists import read_list, take_part
from nonlocal_.clips.records import Record
from nonlocal_.clips.sampling import evaluation_indices
from nonlocal_.inputs.videos import Clips, Videos, Views

from .written import HEIGHT, WIDTH, frame, numbers, write_sound, write_video

WHOLE = Augment((HEIGHT, HEIGHT), HEIGHT, flip=0)
CLIPS = Clips(frames=4, stride=2, augment=WHOLE)


def write_array(path: Path, count: int) -> Path:
    """The numbered frames as an array, as it needs no reader of videos."""
    np.save(path, np.stack([frame(i) for i in range(count)]))
    return path


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Videos of 30, 1, 5 and 8 frames."""
    counts = [30, 1, 5, 8]
    paths = [str(write_array(tmp_path / f"{n}.npy", n)) for n in counts]
    return [Record(path, (label,)) for label, path in enumerate(paths)]


def left_half(clips: torch.Tensor) -> list[int]:
    """The numbers that squares (3, T, 32, 32) show: bits 0, 1, 4 and 5, as of the left half."""
    full = torch.zeros(clips.shape[1], 3, HEIGHT, WIDTH)
    full[..., : clips.shape[-1]] = clips.transpose(0, 1)
    return numbers(full)


def visible(number: int, left: int) -> int:
    """The bits of a number that a square from column `left` (0 or 32) shows, moved to its left."""
    bits = number >> (2 if left else 0)
    return bits & 0b00110011


# Training


def test_a_clip_has_the_frames_of_one_start_and_the_label(records):
    videos, starts = Videos(records, CLIPS), set()
    for seed in range(60):
        torch.manual_seed(seed)
        clip, label = videos[0]
        assert clip.shape == (3, 4, HEIGHT, HEIGHT)
        assert (clip.dtype, label.dtype, int(label)) == (torch.uint8, torch.int64, 0)
        seen = left_half(clip)
        options = [
            (start, left)
            for start in range(23)
            for left in (0, 32)
            if [visible(start + 2 * t, left) for t in range(4)] == seen
        ]
        starts.update(start for start, _ in options)
    assert len(starts) > 12


def test_short_videos_wrap_around(records):
    videos = Videos(records, replace(CLIPS, augment=WHOLE))
    clip, label = videos[1]  # of a single frame
    assert int(label) == 1
    assert bool((clip == clip[:, :1]).all())
    torch.manual_seed(0)
    clip, _ = videos[2]  # 0 2 4 and, of 5, 6 is 1
    assert left_half(clip) in [[visible(i, left) for i in (0, 2, 4, 1)] for left in (0, 32)]


def test_a_part_is_all_that_a_dataset_sees(records):
    for part, allowed in (((0, 0.5), range(15)), ((0.5, 1), range(15, 30))):
        videos = Videos(take_part(records[:1], part), CLIPS)
        views = Views(take_part(records[:1], part), CLIPS, config.Test(size=HEIGHT, crops=0))
        seen = [i for k in range(10) for i in numbers(views[k][0][0].transpose(0, 1))]
        assert set(seen) <= set(allowed)
        assert len(set(seen)) > 10
        for seed in range(20):
            torch.manual_seed(seed)
            shown = set(left_half(videos[0][0]))
            assert shown <= {visible(i, left) for i in allowed for left in (0, 32)}


def test_several_labels_are_a_vector_of_0_and_1(records):
    some = [replace(records[0], labels=(1, 3)), replace(records[1], labels=())]
    videos = Videos(some, replace(CLIPS, multi_label=True, classes=5))
    assert videos[0][1].tolist() == [0, 1, 0, 1, 0]
    assert videos[1][1].tolist() == [0, 0, 0, 0, 0]


def test_a_clip_has_the_labels_of_its_own_seconds(records):
    # At 24 frames a second; a clip of 4 frames spans 7.
    record = replace(records[0], labels=(0, 1), spans=((0, 0.0, 4 / 24), (1, 20 / 24, 29 / 24)))
    clips = replace(CLIPS, multi_label=True, classes=2)
    videos, seen = Videos([record], clips), set()
    for seed in range(80):
        torch.manual_seed(seed)
        seen.add(tuple(videos[0][1].tolist()))
    assert seen == {(1, 0), (0, 0), (0, 1)}
    assert Videos([record], replace(clips, clip_labels=False))[0][1].tolist() == [1, 1]
    assert Views([record], clips, config.Test(size=HEIGHT))[0][1].tolist() == [1, 1]


def test_labels_that_do_not_fit_the_task_are_named(records):
    with pytest.raises(ValueError, match=r"30\.npy has 2 labels: set task=multi_label"):
        Videos([replace(records[0], labels=(1, 2))], CLIPS)
    with pytest.raises(ValueError, match=r"8\.npy has label 3, and there are 3 classes"):
        Views(records, replace(CLIPS, classes=3), config.Test())


def test_an_example_is_a_function_of_seed_epoch_and_index(records):
    videos = Videos(records, replace(CLIPS, augment=Augment((32, 40), 24)))
    batches = []
    for workers in (0, 1):
        stream = SampleStream(len(videos), 4, seed=5)
        batches.append(list(train_loader(videos, stream, 0, 3, workers=workers)))
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert not torch.equal(batches[0][0][0], batches[0][1][0])


# Testing


def test_views_are_the_clips_of_each_video_in_turn_with_three_squares(records):
    views = Views(records, CLIPS, config.Test(size=HEIGHT))
    assert len(views) == 40
    seen = []
    for clips, label, video in views:
        assert clips.shape == (3, 3, 4, HEIGHT, HEIGHT)
        assert int(label) == video
        seen.append(video)
    assert seen == [video for video in range(4) for _ in range(10)]
    for k in range(10):
        clips, _, _ = views[k]
        places = evaluation_indices(30, 4, 2)[k].tolist()
        for square, left in ((0, 0), (2, 32)):
            assert left_half(clips[square]) == [visible(i, left) for i in places]
        middle = frame(places[0])[:, 16:48].transpose(2, 0, 1)
        assert torch.equal(clips[1, :, 0], torch.from_numpy(middle))


def test_views_stream_through_the_loader_of_any_process_each_once(records):
    views = Views(records, CLIPS, config.Test(clips=3, size=HEIGHT))
    seen = []
    for rank in range(2):
        for clips, labels, videos in eval_loader(views, 4, rank=rank, world=2):
            assert clips.shape[1:] == (3, 3, 4, HEIGHT, HEIGHT)
            assert torch.equal(labels, videos)
            seen += videos.tolist()
    assert sorted(seen) == [video for video in range(4) for _ in range(3)]


# Bad videos


def spoiled(records: list[Record], tmp_path: Path) -> list[Record]:
    """The records with an empty file and a missing one among them, and one with sound alone."""
    (tmp_path / "empty.mp4").write_bytes(b"")
    write_sound(tmp_path / "sound.mp4")
    names = ["empty.mp4", "missing.mp4", "sound.mp4"]
    return [*(Record(str(tmp_path / name), (0,)) for name in names), *records]


def test_a_bad_video_stops_the_training_with_its_name(records, tmp_path):
    videos = Videos(spoiled(records, tmp_path)[:1], replace(CLIPS, advice="; or data.bad_videos"))
    with pytest.raises(UnreadableImage, match=r"empty\.mp4 .*; or data\.bad_videos"):
        videos[0]
    with pytest.raises(BadExample, match=r"empty\.mp4 .*; or data\.bad_videos"):
        list(train_loader(videos, SampleStream(1, 1, seed=0), 0, 1))


def test_bad_videos_are_replaced_and_counted_in_training(records, tmp_path):
    videos = Videos(spoiled(records, tmp_path), CLIPS)
    bad = BadImages("skip", limit=1)
    with pytest.warns(UserWarning, match="skipped"):
        batches = list(train_loader(videos, SampleStream(7, 7, seed=0), 0, 2, bad=bad))
    assert sorted(bad.skipped) == [0, 1, 2]
    assert "no images, only audio" in bad.skipped[2]
    for _, labels in batches:  # 3 replacements by the next that can be read
        assert sorted(labels.tolist()) == [0, 0, 0, 0, 1, 2, 3]


def test_more_bad_videos_than_allowed_stop_the_training(records, tmp_path):
    videos = Videos(spoiled(records, tmp_path), CLIPS)
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(BadExample, match="2 of 7"):
        list(train_loader(videos, SampleStream(7, 7, seed=0), 0, 2, bad=BadImages("skip", 0.2)))


def test_evaluation_never_replaces_a_video(records, tmp_path):
    views = Views(spoiled(records, tmp_path), CLIPS, config.Test(clips=1, size=HEIGHT))
    with pytest.raises(UnreadableVideo, match=r"empty\.mp4"):
        views[0]
    with pytest.raises(BadExample, match=r"example 0: .*empty\.mp4"):
        list(eval_loader(views, 2, bad=BadImages("skip", limit=1)))


# Real files


def test_halves_of_real_videos_train_and_test(shared_data):
    pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")
    folder = shared_data / "videos"
    records = [r for r in read_list(folder, by="file") if "mma_part" in r.path or "det" in r.path]
    assert len(records) == 2
    clips = Clips(frames=4, stride=2, augment=Augment((64, 80), 56))
    videos = Videos(take_part(records, (0, 0.5)), clips)
    batch = default_collate([videos[0], videos[1]])
    assert batch[0].shape == (2, 3, 4, 56, 56)
    views = Views(take_part(records, (0.5, 1)), clips, config.Test(clips=2, size=64))
    assert views[3][0].shape == (3, 3, 4, 64, 64)
    assert views[3][2] == 1


def test_a_video_file_gives_the_clip_of_its_array(tmp_path, records):
    file = Record(str(write_video(tmp_path / "30.mp4", 30)), (0,))
    for k in (0, 7):
        one, other = (
            Views([record], CLIPS, config.Test(size=HEIGHT, crops=0))[k][0][0].transpose(0, 1)
            for record in (file, records[0])
        )
        assert numbers(one) == numbers(other) == evaluation_indices(30, 4, 2)[k].tolist()
