"""Lists of every format give the same records; what is malformed is named by file and line."""

from pathlib import Path

import pytest

from nonlocal_.clips.lists import (
    find_classes,
    format_list,
    read_classes,
    read_list,
    take_part,
)
from nonlocal_.clips.records import Record

NAMES = ["abseiling", "riding a bike", "zumba"]


def listed(tmp_path: Path, text: str, name: str = "train.txt") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def pairs(records: list[Record], root: Path | str) -> list[tuple[str, tuple[int, ...]]]:
    return [(str(Path(r.path).relative_to(root)), r.labels) for r in records]


WANTED = [("a/one.mp4", (0,)), ("b/my video.mp4", (2,)), ("c/2, three.mp4", (1,))]


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", "  "])
def test_paths_with_blanks_and_labels(tmp_path, separator):
    text = "".join(f"{path}{separator}{labels[0]}\n" for path, labels in WANTED)
    assert pairs(read_list(listed(tmp_path, text)), tmp_path) == WANTED


@pytest.mark.parametrize("separator", [" ", "\t", ","])
def test_names_of_classes(tmp_path, separator):
    text = "".join(f"{path}{separator}{NAMES[labels[0]]}\r\n" for path, labels in WANTED)
    assert pairs(read_list(listed(tmp_path, text), classes=NAMES), tmp_path) == WANTED
    folders = text.replace("riding a bike", "Riding_a_bike")  # as folders write it
    assert pairs(read_list(listed(tmp_path, folders), classes=NAMES), tmp_path) == WANTED


def test_a_byte_order_mark_and_empty_lines_do_no_harm(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfa/one.mp4 0\r\n\r\nb/two.mp4 1")
    assert pairs(read_list(path), tmp_path) == [("a/one.mp4", (0,)), ("b/two.mp4", (1,))]


@pytest.mark.parametrize("separator", [" ", "\t", ","])
def test_folders_of_frames_with_their_number(tmp_path, separator):
    text = separator.join(["frames/one", "120", "3"]) + "\n" + separator.join(["two-1", "7", "0"])
    records = read_list(listed(tmp_path, text))
    assert pairs(records, tmp_path) == [("frames/one", (3,)), ("two-1", (0,))]
    assert [record.count for record in records] == [120, 7]


def test_a_number_in_the_name_of_a_video_is_no_count(tmp_path):
    (record,) = read_list(listed(tmp_path, "walk 120.mp4 5"))
    assert (Path(record.path).name, record.count, record.labels) == ("walk 120.mp4", 0, (5,))


def test_several_labels(tmp_path):
    records = read_list(listed(tmp_path, "a.mp4 3,17\nb.mp4\t5,1,5\n"))
    assert [record.labels for record in records] == [(3, 17), (1, 5)]


def test_paths_start_from_the_root_unless_they_are_absolute(tmp_path):
    path = listed(tmp_path, "a.mp4 0\n/videos/b.mp4 1\n")
    assert [r.path for r in read_list(path, "/data")] == ["/data/a.mp4", "/videos/b.mp4"]


def test_the_test_lists_of_ucf_have_their_label_in_the_folder(tmp_path):
    path = listed(tmp_path, "zumba/v_1.avi\nabseiling/v_2.avi\n")
    assert [record.labels for record in read_list(path, classes=NAMES)] == [(2,), (0,)]


def class_folders(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name / "deep").mkdir(parents=True)
        for file in ("b.mp4", "a.AVI", "note.txt", ".hidden.mp4", "deep/c.npy"):
            (root / name / file).touch()
        (root / name / "frames").mkdir()
        for i in range(2):
            (root / name / "frames" / f"{i}.jpg").touch()
    return root


def test_folders_of_classes(tmp_path):
    root = class_folders(tmp_path, ["zumba", "abseiling"])
    expected = [
        (f"{name}/{file}", (label,))
        for label, name in enumerate(["abseiling", "zumba"])
        for file in ("a.AVI", "b.mp4", "deep/c.npy", "frames")
    ]
    assert pairs(read_list(root), root) == expected
    assert find_classes(root) == ["abseiling", "zumba"]
    assert {r.labels for r in read_list(root, classes=NAMES)} == {(0,), (2,)}
    (root / "abseiling" / "loop").symlink_to(root / "abseiling")
    assert pairs(read_list(root), root) == expected


def test_a_folder_of_videos_each_its_own_class(tmp_path):
    for name in ("b.mp4", "a.avi", "notes.txt"):
        (tmp_path / name).touch()
    assert pairs(read_list(tmp_path, by="file"), tmp_path) == [("a.avi", (0,)), ("b.mp4", (1,))]
    assert find_classes(tmp_path, by="file") == ["a", "b"]
    with pytest.raises(ValueError, match=r"no folder for each class.*data\.class_by=file"):
        read_list(tmp_path)
    (tmp_path / "deep" / "in").mkdir(parents=True)
    (tmp_path / "a.avi").rename(tmp_path / "deep" / "in" / "a.avi")
    with pytest.raises(ValueError, match=r"give the folder of .*a\.avi;.*data\.class_by=folder"):
        read_list(tmp_path / "deep", by="file")


KINETICS = """label,youtube_id,time_start,time_end,split
abseiling,--3ouPhoy2A,20,30,train
"riding a bike",--4-0ihtnBU,58,68,train
zumba,-1q7jA3DXQM,0,10,train
"""


def test_the_csv_of_kinetics(tmp_path):
    path = listed(tmp_path, KINETICS, "train.csv")
    (tmp_path / "videos" / "riding_a_bike").mkdir(parents=True)
    (tmp_path / "videos" / "riding_a_bike" / "--4-0ihtnBU_000058_000068.mp4").touch()
    (tmp_path / "videos" / "-1q7jA3DXQM.mkv").touch()
    assert find_classes(path) == NAMES
    root = tmp_path / "videos"
    assert pairs(read_list(path, root), root) == [
        ("abseiling/--3ouPhoy2A_000020_000030.mp4", (0,)),  # it is not there
        ("riding_a_bike/--4-0ihtnBU_000058_000068.mp4", (1,)),
        ("-1q7jA3DXQM.mkv", (2,)),
    ]
    extra = KINETICS.replace("split\n", "split,is_cc\n").replace("train\n", "train,0\n")
    path = listed(tmp_path, extra, "more.csv")
    assert [r.labels for r in read_list(path, root, NAMES[::-1])] == [(2,), (1,), (0,)]


CHARADES = """id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length
46GP8,HR43,Kitchen,6,7,Yes,"Cook, he.",food,"He; ""cooks"".",c092 11.90 21.20;c147 0.00 12.60,24.83
N11GT,0KZ7,Stairs,5,7,Yes,None,none,Nothing.,,18.33
"""


def test_the_csv_of_charades(tmp_path):
    path = listed(tmp_path, CHARADES, "Charades_v1_train.csv")
    first, second = read_list(path, "/data")
    assert (first.path, first.labels) == ("/data/46GP8.mp4", (92, 147))
    assert first.spans == ((92, 11.9, 21.2), (147, 0.0, 12.6))
    assert (second.labels, second.spans) == ((), ())
    assert first.labels_between(0, 11) == (147,)
    assert first.labels_between(12, 12.5) == (92, 147)
    assert first.labels_between(22, 24) == ()
    (tmp_path / "frames" / "46GP8").mkdir(parents=True)
    (tmp_path / "frames" / "46GP8" / "46GP8-000001.jpg").touch()
    assert read_list(path, tmp_path / "frames")[0].path == str(tmp_path / "frames" / "46GP8")


FRAMES = """original_vido_id video_id frame_id path labels
46GP8 0 0 46GP8/46GP8-000001.jpg "92,147"
46GP8 0 1 46GP8/46GP8-000002.jpg "147"
46GP8 0 2 46GP8/46GP8-000003.jpg ""
46GP8 0 3 46GP8/46GP8-000004.jpg "92"
N11GT 1 0 N11GT/N11GT-000001.jpg \"\"\"\"
"""


def test_the_list_of_frames_of_slowfast(tmp_path):
    first, second = read_list(listed(tmp_path, FRAMES, "train.csv"), "/data")
    assert (first.path, first.labels, first.count) == ("/data/46GP8", (92, 147), 4)
    assert sorted(first.spans) == [(92, 0.0, 0.0), (92, 3 / 24, 3 / 24), (147, 0.0, 1 / 24)]
    assert (second.path, second.labels, second.count) == ("/data/N11GT", (), 1)
    by_frame = [first.labels_between(i / 24, i / 24) for i in range(4)]
    assert by_frame == [(92, 147), (147,), (), (92,)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("abseiling\nriding a bike\nzumba\n", NAMES),
        ("c000 Holding clothes\nc001 Putting them\n", ["Holding clothes", "Putting them"]),
        ("1 ApplyEyeMakeup\n2 Archery\n", ["ApplyEyeMakeup", "Archery"]),
        ("0,cat\n1,dog\n", ["cat", "dog"]),
        ("3 points\n3 balls\n", ["3 points", "3 balls"]),
    ],
)  # fmt: skip
def test_names_of_classes_may_be_numbered(tmp_path, text, names):
    assert read_classes(listed(tmp_path, text, "classes.txt")) == names


def test_a_list_that_was_written_reads_the_same(tmp_path):
    records = [
        Record(str(tmp_path / "a b.mp4"), (3,)),
        Record(str(tmp_path / "frames, two"), (1, 7), count=12),
        Record("/elsewhere/c.mp4", (0,)),
        Record(str(tmp_path / "d e.mp4"), (92, 147), spans=((147, 0.0, 12.6), (92, 1 / 24, 21.2))),
        Record(str(tmp_path / "f"), (92,), count=7, spans=((92, 0.0, 0.0),)),
        Record(str(tmp_path / "none.mp4"), ()),
    ]
    assert read_list(listed(tmp_path, format_list(records, tmp_path))) == records


def test_parts_are_shares(tmp_path):
    records = read_list(listed(tmp_path, "a.mp4 3\n"))
    assert take_part(records, [0.5, 1])[0].part == (0.5, 1)
    with pytest.raises(ValueError, match="choose"):
        take_part(records, [0.5, 0.5])


@pytest.mark.parametrize(
    ("name", "text", "classes", "words"),
    [
        ("a.txt", "x.mp4 0\ny.mp4\n", (), "a.txt, line 2: 'y.mp4' has no label"),
        ("a.txt", "x.mp4 0\ny.mp4 swim\n", NAMES, "line 2: the label 'swim' is not one of the 3"),
        ("a.txt", "x.mp4 swim\n", (), r"line 1: the label 'swim' is not a number.*data\.classes"),
        ("a.txt", "x.mp4 0\ny.mp4 3\n", NAMES, "line 2: label 3, and there are 3 .* from 0"),
        ("a.txt", "x.mp4 -1\n", (), "line 1: the label '-1' is not 0 or above: .* from 0"),
        ("a.txt", "x.mp4;1\n", (), "line 1: .* a blank, a comma or a tab"),
        ("a.txt", "x.mp4 1\ny.mp4 5000\n", (), r"line 2: label 5000 makes .*data\.classes=FILE"),
        ("c.csv", CHARADES.replace("c147", "c9999"), (), r"c\.csv, .*46GP8\.mp4: label 9999 makes"),
        ("a.txt", "\n\n", (), "a.txt lists no video"),
        ("k.csv", KINETICS.replace(",10,train", ""), (), "k.csv, line 4: expected 5 columns"),
        ("k.csv", KINETICS.replace("58", "soon"), (), "k.csv, line 3: 'soon' is no number"),
        ("k.csv", KINETICS, NAMES[:2], "k.csv, line 4: 'zumba' is none of the 2 classes"),
        ("k.csv", KINETICS.replace("label,", "name,"), (), "no column `label`"),
        ("c.csv", CHARADES.replace("c092 11.90 21.20", "c092 11.90"), (), "line 2: 'c092 11.90'"),
        ("a.txt", "x.mp4\tc001 0 1;c003 0 1;\n", NAMES, "line 1: action c003, and there are 3"),
        ("a.txt", "x.mp4\tc001 0;\n", (), "line 1: 'c001 0' is no action like"),
        ("c.csv", CHARADES, NAMES, "c.csv, line 2: action c092, and there are 3"),
        ("f.csv", FRAMES.replace("46GP8 0 1 ", "46GP8 "), (), "f.csv, line 3: expected 5 columns"),
        ("f.csv", FRAMES.replace("000003", "000001"), (), "frames of 46GP8 are not those of one"),
        ("f.csv", FRAMES, NAMES, "f.csv, line 2: label 147, and there are 3 classes"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_named(tmp_path, name, text, classes, words):
    with pytest.raises(ValueError, match=words):
        read_list(listed(tmp_path, text, name), classes=classes)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.txt does not exist"):
        read_list(tmp_path / "none.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x9c" * 10)
    with pytest.raises(ValueError, match=r"binary\.txt is no text in UTF-8"):
        read_list(tmp_path / "binary.txt")
    with pytest.raises(ValueError, match=r"classes\.txt names the class 'a' twice"):
        read_classes(listed(tmp_path, "a\nb\na\n", "classes.txt"))
    root = class_folders(tmp_path / "folders", ["swim"])
    with pytest.raises(ValueError, match="swim is none of the 3 classes"):
        read_list(root, classes=NAMES)
