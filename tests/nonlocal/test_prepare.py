"""prepare.py: lists, faults, smaller copies, and going on where it was stopped."""

from pathlib import Path

import pytest
from PIL import Image

from common.errors import UserError
from nonlocal_ import prepare
from nonlocal_.clips.lists import read_list
from nonlocal_.clips.readers import open_video

from .written import numbers, write_sound, write_video

av = pytest.importorskip("av", reason="PyAV is not installed (extra `video`)")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of three videos, of 12, 30 and 5 frames."""
    folder = tmp_path / "videos"
    for name in ("run", "jump high"):
        (folder / name).mkdir(parents=True)
    write_video(folder / "run" / "a.mp4", 12)
    write_video(folder / "run" / "b.avi", 30, codec="mpeg4")
    write_video(folder / "jump high" / "c d.mkv", 5)
    return folder


def call(command: str, **options: object) -> None:
    prepare.main([command, *(f"{name}={value}" for name, value in options.items())])


def list_of(root: Path) -> Path:
    path = root.parent / "list.txt"
    call("list", root=root, out=path)
    return path


def test_a_list_of_folders_and_its_classes(root, capsys):
    path = list_of(root)
    records = read_list(path)
    assert [(Path(r.path).name, r.labels) for r in records] == [
        ("c d.mkv", (0,)),
        ("a.mp4", (1,)),
        ("b.avi", (1,)),
    ]
    assert all(Path(record.path).is_file() for record in records)
    assert (root.parent / "list_classes.txt").read_text() == "jump high\nrun\n"
    assert "3 videos of 2 classes" in capsys.readouterr().out


def test_a_list_with_a_class_for_each_file(root, tmp_path):
    call("list", root=root / "run", out=tmp_path / "own.txt", classes="file")
    assert [record.labels for record in read_list(tmp_path / "own.txt")] == [(0,), (1,)]


def test_check_counts_frames_and_names_faults(root, tmp_path, capsys):
    call("check", list=list_of(root), clip=10, decode="true", processes=0)
    out = capsys.readouterr().out
    assert "3 videos of 2 classes, 3 readable" in out
    assert "5 to 30 frames, half of the videos at most 12" in out
    assert "1 are shorter than 10 frames" in out
    assert "no fault found" in out
    assert "decode=true" not in out
    write_sound(root / "run" / "sound.mp4")
    path = list_of(root)
    path.write_text(path.read_text() + "gone.mp4\t3\n")
    with pytest.raises(UserError, match="2 videos have faults"):
        call("check", list=path, out=tmp_path / "good.txt", processes=0)
    printed = capsys.readouterr()
    assert "decode=true finds files broken in the middle" in printed.out
    assert "no video has label 2" in printed.out
    assert "sound.mp4 has no images, only audio" in printed.err
    assert "gone.mp4 does not exist" in printed.err
    assert len(read_list(tmp_path / "good.txt")) == 3
    call("check", list=tmp_path / "good.txt", processes=0)


@pytest.mark.parametrize("processes", [0, 2])
def test_encode_keeps_every_frame_at_the_size_asked_for(root, tmp_path, processes):
    out = tmp_path / "small"
    call("encode", list=list_of(root), out=out, short=24, gop=4, processes=processes)
    records = read_list(out / "list.txt")
    assert [record.labels for record in records] == [(0,), (1,), (1,)]
    for record, count in zip(records, (5, 12, 30), strict=True):
        video = open_video(record.path)
        frames = video.read(range(count))
        assert (video.count, frames.shape[2:]) == (count, (24, 48))
        assert numbers(frames.repeat_interleave(4, 2).repeat_interleave(4, 3)[..., ::3, ::3]) == [
            *range(count)
        ]
        with av.open(record.path) as container:
            packets = [p for p in container.demux(video=0) if p.size]
        assert sum(packet.is_keyframe for packet in packets) >= -(-count // 4)


def test_frames_are_written_as_folders(root, tmp_path):
    out = tmp_path / "frames"
    call("frames", list=list_of(root), out=out, short=32, processes=0)
    records = read_list(out / "list.txt")
    assert [record.count for record in records] == [5, 12, 30]
    for record in records:
        video = open_video(record.path, count=record.count)
        assert numbers(video.read(range(video.count))) == list(range(record.count))
    assert Image.open(out / "videos" / "run" / "a" / "img_00001.jpg").size == (64, 32)


HEADER = "id,subject,actions,length"
TIMES = "c092 0.40 0.80;c001 0.00 0.20"


def test_charades_times_are_kept(root, tmp_path):
    """Seconds of videos; of folders of frames those at Charades' 24 a second."""
    (tmp_path / "charades.csv").write_text(f"{HEADER}\na,x,{TIMES},1\nb,x,,1\ngone,x,,1\n")
    words = {"list": tmp_path / "charades.csv", "root": root, "processes": 0}
    with pytest.raises(UserError, match="1 videos have faults"):
        call("check", out=tmp_path / "good.txt", **words)
    listed = read_list(tmp_path / "charades.csv", root)
    assert read_list(tmp_path / "good.txt") == listed[:2]
    assert listed[0].spans == ((92, 0.4, 0.8), (1, 0.0, 0.2))
    words = {"list": tmp_path / "good.txt", "processes": 0}
    call("encode", out=tmp_path / "small", **words)
    copies = read_list(tmp_path / "small" / "list.txt")
    assert [(r.labels, r.spans) for r in copies] == [(r.labels, r.spans) for r in listed[:2]]
    for _ in range(2):  # all there the second time
        call("frames", out=tmp_path / "frames", **words)
        first, second = read_list(tmp_path / "frames" / "list.txt")
        assert (first.count, second.count, second.labels) == (12, 30, ())
        for a, b in zip(first.spans, listed[0].spans, strict=True):
            assert a == pytest.approx((b[0], b[1] * 25 / 24, b[2] * 25 / 24))


def test_check_keeps_the_spans_of_a_list_of_frames(tmp_path):
    for name, shown in (("one", ['"92,147"', '"147"', '""']), ("two", ['""'] * 2)):
        (tmp_path / name).mkdir()
        for i, _ in enumerate(shown):
            Image.new("RGB", (16, 16)).save(tmp_path / name / f"{i}.jpg")
        with (tmp_path / "frames.csv").open("a") as file:
            if name == "one":
                file.write("original_vido_id video_id frame_id path labels\n")
            file.writelines(f"{name} 0 {i} {name}/{i}.jpg {s}\n" for i, s in enumerate(shown))
    call("check", list=tmp_path / "frames.csv", out=tmp_path / "good.txt", processes=0)
    assert read_list(tmp_path / "good.txt") == read_list(tmp_path / "frames.csv")


def test_a_stopped_call_goes_on_and_leaves_what_is_there(root, tmp_path):
    path, out = list_of(root), tmp_path / "small"
    call("encode", list=path, out=out, short=24, processes=0)
    kept, lost = out / "videos" / "run" / "a.mp4", out / "videos" / "run" / "b.mp4"
    before, text = kept.stat().st_mtime_ns, (out / "list.txt").read_text()
    lost.unlink()
    (out / "list.txt").unlink()
    call("encode", list=path, out=out, short=24, processes=0)
    assert kept.stat().st_mtime_ns == before
    assert lost.is_file()
    assert (out / "list.txt").read_text() == text
    assert not list(out.rglob("*.tmp"))
    with pytest.raises(ValueError, match="small was made with"):
        call("encode", list=path, out=out, short=16, processes=0)


def test_videos_that_cannot_be_read_are_left_out_and_named(root, tmp_path, capsys):
    write_sound(root / "run" / "sound.mp4")
    with pytest.raises(UserError, match="1 videos have faults"):
        call("frames", list=list_of(root), out=tmp_path / "frames", processes=0)
    assert "sound.mp4 has no images" in capsys.readouterr().err
    assert len(read_list(tmp_path / "frames" / "list.txt")) == 3


def test_mistakes_are_sentences(root, tmp_path):
    with pytest.raises(ValueError, match="encod is unknown: choose list, check, encode, frames"):
        call("encod")
    with pytest.raises(ValueError, match="out= is missing"):
        call("list", root=root)
    with pytest.raises(ValueError, match=r"root=.*nowhere is not a folder"):
        call("list", root=tmp_path / "nowhere", out=tmp_path / "x.txt")
    with pytest.raises(UserError, match="gop=0"):
        call("encode", list=list_of(root), out=tmp_path / "x", gop=0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other").touch()
    with pytest.raises(ValueError, match="full holds other files"):
        call("encode", list=list_of(root), out=tmp_path / "full")
    with pytest.raises(SystemExit):
        prepare.main([])
