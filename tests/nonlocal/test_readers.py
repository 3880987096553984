"""Readers give the frames that were asked for, and say which file is at fault."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nonlocal_.clips.decoders import PyAVReader, UnreadableVideo
from nonlocal_.clips.readers import all_frames, choose_reader, open_video

from .written import HEIGHT, WIDTH, frame, numbers, write_sound, write_video

av = pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")
COUNT = 60


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "numbered.mp4", COUNT)


def require_torchcodec() -> None:
    try:
        choose_reader("torchcodec")
    except ValueError as error:
        pytest.skip(str(error))


# Exact frames


@pytest.mark.parametrize(
    ("name", "gop", "b_frames", "options"),
    [
        ("every_frame_a_key.mp4", 1, 0, {}),
        ("two.mp4", 2, 0, {}),
        ("b_frames.mp4", 12, 3, {}),
        ("one_key.mp4", 250, 2, {}),
        ("open_gop.mp4", 10, 3, {"x264-params": "open-gop=1:scenecut=0:b-adapt=0:bframes=3"}),
        ("b_frames.mkv", 12, 3, {}),
        ("open_gop.mkv", 10, 3, {"x264-params": "open-gop=1:scenecut=0:b-adapt=0:bframes=3"}),
        ("two.mkv", 2, 1, {}),
    ],
)
def test_any_frames_in_any_order_are_found_by_seeking(tmp_path, name, gop, b_frames, options):
    path = write_video(tmp_path / name, COUNT, gop=gop, b_frames=b_frames, options=options)
    video, rng = PyAVReader(str(path)), random.Random(0)
    before = video.frames
    assert video.count == COUNT
    assert before.times is not None
    for _ in range(4):
        wanted = rng.choices(range(COUNT), k=6)
        assert numbers(video.read(wanted)) == wanted
    assert [numbers(video.read([i])) for i in range(0, COUNT, 7)] == [
        [i] for i in range(0, COUNT, 7)
    ]
    assert video.frames is before  # the packets said the truth: nothing was decoded to count


@pytest.mark.parametrize(
    ("name", "codec", "b_frames"),
    [
        ("mpeg4.avi", "mpeg4", 0),
        ("b_frames.avi", "mpeg4", 2),
        ("b_frames.mp4", "mpeg4", 2),
        ("stream.ts", "libx264", 2),
        ("vp8.webm", "libvpx", 0),
        ("vp9.webm", "libvpx-vp9", 0),
        ("mpeg1.mpg", "mpeg1video", 2),
    ],
)
def test_frames_are_exact_where_packets_are_not_to_be_trusted(tmp_path, name, codec, b_frames):
    path = write_video(tmp_path / name, 40, codec=codec, b_frames=b_frames)
    video = open_video(path, "pyav")
    assert video.count == 40
    wanted = [39, 0, 17, 17, 3, 25]
    assert numbers(video.read(wanted)) == wanted


def test_frames_of_a_variable_rate_are_counted_as_they_come(tmp_path):
    times = [0, 4, 5, 30, 31, 90, 91, 92, 200, 204]
    video = open_video(write_video(tmp_path / "variable.mp4", 10, times=times))
    assert video.count == 10
    assert numbers(video.read([9, 3, 8])) == [9, 3, 8]


def test_a_video_of_one_frame_is_one(tmp_path):
    video = open_video(write_video(tmp_path / "one.mp4", 1))
    assert (video.count, numbers(video.read([0, 0]))) == (1, [0, 0])


def test_the_frames_of_a_phone_are_upright(tmp_path):
    flat = open_video(write_video(tmp_path / "flat.mp4", 3)).read([2])
    turned = open_video(write_video(tmp_path / "turned.mp4", 3, rotation=90)).read([2])
    assert turned.shape == (1, 3, WIDTH, HEIGHT)
    assert torch.equal(turned, torch.rot90(flat, 1, (2, 3)))


def test_an_index_beyond_the_video_is_an_error_of_the_code(video):
    with pytest.raises(IndexError):
        open_video(video).read([COUNT])


def test_all_frames_come_in_order(video):
    assert numbers(torch.stack(list(all_frames(open_video(video))))) == list(range(COUNT))


def test_folders_and_arrays_give_the_same_clip_as_the_file(tmp_path, video):
    frames = open_video(video).read(range(12))
    (tmp_path / "frames").mkdir()
    for i, each in enumerate(frames):  # 2.png comes before 10.png
        Image.fromarray(each.permute(1, 2, 0).numpy()).save(tmp_path / "frames" / f"{i}.png")
    np.save(tmp_path / "clip.npy", frames.permute(0, 2, 3, 1).numpy())
    torch.save(frames.permute(0, 2, 3, 1), tmp_path / "clip.pt")
    wanted = [11, 2, 2, 7]
    for name in ("frames", "clip.npy", "clip.pt"):
        other = open_video(tmp_path / name)
        assert other.count == 12
        assert torch.equal(other.read(wanted), frames[wanted])
        assert torch.equal(torch.stack(list(all_frames(other))), frames)


def test_torchcodec_gives_the_same_frames(video):
    require_torchcodec()
    wanted = [50, 3, 3, 17]
    ours, theirs = open_video(video, "pyav"), open_video(video, "torchcodec")
    assert (ours.count, ours.fps) == (theirs.count, theirs.fps)
    difference = ours.read(wanted).int() - theirs.read(wanted).int()
    assert difference.abs().max() <= 2


# Real files

REAL = {  # frames, and one as far in as is quick to decode
    "mma_demo.mp4": (280, 150),
    "mma_demo_skeleton.mp4": (72, 12),
    "mma_demo_spatiotemporal_det.mp4": (57, 56),
    "mma_part_0.mp4": (32, 31),
    "mma_test.avi": (164, 163),
    "mma_test_video_structuralize.mp4": (300, 280),
    "sam2_01_dog.mp4": (289, 30),
    "sam2_05_default_juggle.mp4": (247, 30),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_give_the_frames_of_decoding_in_order(shared_data, name):
    count, far = REAL[name]
    video = open_video(shared_data / "videos" / name, "pyav")
    assert video.count == count
    wanted = [far, 5, 5, far - 3]
    clip = video.read(wanted)
    with av.open(video.path) as container:
        for i, each in zip(range(far + 1), container.decode(video=0), strict=False):
            if i in wanted:
                expected = torch.from_numpy(each.to_ndarray(format="rgb24")).permute(2, 0, 1)
                assert torch.equal(clip[wanted.index(i)], expected)


@pytest.mark.parametrize("name", [name for name in REAL if name.endswith("mp4")])
def test_torchcodec_gives_the_frames_of_real_files(shared_data, name):
    require_torchcodec()
    count, far = REAL[name]
    ours, theirs = (open_video(shared_data / "videos" / name, r) for r in ("pyav", "torchcodec"))
    assert ours.count == theirs.count == count
    wanted = [far, 0, 5]
    assert (ours.read(wanted).int() - theirs.read(wanted).int()).abs().max() <= 2


# Faults of files


def faults(tmp_path: Path) -> dict[str, Path]:
    """Files that give no frame, by what is wrong with them."""
    paths = {kind: tmp_path / f"{kind}.mp4" for kind in ("empty", "text", "headless", "missing")}
    paths["empty"].write_bytes(b"")
    paths["text"].write_text("label,youtube_id\n" * 100)
    whole = write_video(tmp_path / "whole.mp4", 30).read_bytes()
    paths["headless"].write_bytes(whole[: len(whole) // 2])  # the index stands at the end
    paths["sound"] = write_sound(tmp_path / "sound.mp4")
    paths["no frames"] = tmp_path / "folder"
    paths["no frames"].mkdir()
    paths["pipe"] = tmp_path / "pipe.mp4"
    os.mkfifo(paths["pipe"])
    paths["no array"] = tmp_path / "text.npy"
    paths["no array"].write_text("no array")
    paths["float array"] = tmp_path / "float.npy"
    np.save(paths["float array"], np.zeros((2, 4, 4, 3)))
    paths["empty array"] = tmp_path / "empty.npy"
    np.save(paths["empty array"], np.zeros((0, 4, 4, 3), np.uint8))
    return paths


@pytest.mark.parametrize("damaged", ["raise", "play"])
def test_a_file_without_frames_is_named(tmp_path, damaged):
    for kind, path in faults(tmp_path).items():
        with pytest.raises(UnreadableVideo, match=str(path)):
            open_video(path, damaged=damaged)
        assert kind


def test_the_message_says_what_is_wrong(tmp_path):
    paths = faults(tmp_path)
    for kind, words in {"sound": "no images, only audio", "missing": "does not exist"}.items():
        with pytest.raises(UnreadableVideo, match=words):
            open_video(paths[kind])


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv", "cut.avi"])
def test_a_file_that_breaks_off_is_played_as_far_as_it_goes_or_named(tmp_path, name):
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = tmp_path / name
    if name.endswith("mp4"):  # with its index in front
        whole = str(write_video(tmp_path / "whole.mp4", 40, b_frames=0, noise=60))
        front = {"movflags": "faststart"}
        with av.open(whole) as source, av.open(str(path), "w", options=front) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    else:
        write_video(path, 40, codec=codec, b_frames=0, noise=60)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(UnreadableVideo, match=f"{name} is damaged: .* frames can be decoded"):
        open_video(path)
    video = open_video(path, damaged="play")
    assert 5 < video.count < 40
    assert "can be decoded" in video.damage
    last = video.count - 1
    assert numbers(video.read([last, 0, 3])) == [last, 0, 3]


def test_bytes_that_are_lost_in_the_middle_are_damage(tmp_path):
    path = write_video(tmp_path / "hole.mp4", 40, gop=10, b_frames=0, noise=60)
    content = bytearray(path.read_bytes())
    first, last = len(content) * 3 // 8, len(content) // 2
    content[first:last] = bytes(last - first)
    path.write_bytes(content)
    with pytest.raises(UnreadableVideo, match=r"hole\.mp4 is damaged: .* frames can be decoded"):
        open_video(path).read(range(40))
    video = open_video(path, damaged="play")
    assert numbers(video.read([0, 5])) == [0, 5]
    assert numbers(video.read([39])) == [39]
    left = len(video.read(range(40)).flatten(1).unique(dim=0))
    assert left == video.count < 40
    assert len(list(all_frames(video))) == video.count


def test_a_folder_with_fewer_frames_than_listed_is_damaged(tmp_path):
    for i in range(3):
        Image.fromarray(frame(i)).save(tmp_path / f"img_{i:05d}.jpg")
    with pytest.raises(UnreadableVideo, match="3 frames, and the list says 5"):
        open_video(tmp_path, count=5)
    assert open_video(tmp_path, count=5, damaged="play").count == 3
    assert open_video(tmp_path, count=2).count == 2


def test_a_broken_frame_of_a_folder_is_named(tmp_path):
    for i in range(3):
        Image.fromarray(frame(i)).save(tmp_path / f"{i}.jpg")
    (tmp_path / "1.jpg").write_bytes(b"no image")
    video = open_video(tmp_path)
    assert video.read([0, 2]).shape == (2, 3, HEIGHT, WIDTH)
    with pytest.raises(UnreadableVideo, match=r"1\.jpg cannot be read"):
        video.read([0, 1])
    Image.fromarray(frame(1)[:16]).save(tmp_path / "1.jpg")
    with pytest.raises(UnreadableVideo, match=r"1\.jpg has the size"):
        video.read([0, 1])


def test_an_array_of_objects_is_not_unpickled(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([print], object), allow_pickle=True)
    with pytest.raises(UnreadableVideo, match=r"objects\.npy"):
        open_video(tmp_path / "objects.npy")


def test_unknown_choices_are_named(video):
    with pytest.raises(ValueError, match="reader=decord is not known"):
        open_video(video, "decord")
    with pytest.raises(ValueError, match="damaged=skip is not known"):
        open_video(video, damaged="skip")
