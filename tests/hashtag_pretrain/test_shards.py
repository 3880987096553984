"""Shards: what is written is read, damage is counted and named, mixed-up keys stop."""

import hashlib
import json
import multiprocessing
import os
import pickle
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from hashtag_pretrain.shards.archive import Shards, relabel
from hashtag_pretrain.shards.index import Tags, hash_key, load_index, scan
from hashtag_pretrain.shards.writer import Sample, split_name, write_shards

from .small import (
    image_bytes,
    make_shards,
    make_vocabulary,
    random_tags,
    samples,
    write_tar,
)

JSON = b'{"tags": ["a"]}'


def labels(shards: Shards, index: int) -> np.ndarray:
    """The labels of an image."""
    shard, place = shards.locate(index)
    return shards.tags(shard).row(place)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("img.v2.jpg", ("img", "v2.jpg")),
        ("dir.v1/000.JPG", ("dir.v1/000", "jpg")),
        (".x.jpg", ("", "")),
        ("d/.x.jpg", ("", "")),
        ("noext", ("", "")),
        ("d.v1/noext", ("", "")),
    ],
)
def test_a_key_ends_at_the_first_dot_of_the_base_name(name, parts):
    assert split_name(name) == parts


def test_what_is_written_is_read_again(tmp_path):
    tags = [["Brown Bear", "#brownbear"], ["crane", "ño"], [], ["crane"], ["Übung"]]
    written = samples(tags)
    paths = write_shards(written, tmp_path / "shards", per_shard=2)
    assert [path.name for path in paths] == ["000000.tar", "000001.tar", "000002.tar"]
    shards = Shards(tmp_path / "shards", make_vocabulary("crane", ["bruin", "brownbear"]))
    assert shards.counts.tolist() == [2, 2, 1]  # the last one is shorter
    assert shards.starts.tolist() == [0, 2, 4, 5]
    assert [shards.read(i) for i in range(5)] == [each.image for each in written]
    assert shards.name(4) == "000002.tar: 000004"
    assert shards.keys(1) == ["000002", "000003"]
    assert [labels(shards, i).tolist() for i in range(5)] == [[1], [0], [], [0], []]
    assert shards.tags(0).ids.dtype == np.int32
    assert shards.tags(0).offsets.tolist() == [0, 1, 2]
    assert shards.count_tags() == {"brownbear": 1, "crane": 2, "no": 1, "ubung": 1}
    assert shards.dropped == {"image without tags": 1}
    assert shards.faults == []
    with pytest.raises(IndexError):
        shards.read(5)


def test_equal_samples_give_equal_files_and_the_hash_of_a_file(tmp_path):
    one = write_shards(samples([["a"], ["b"]]), tmp_path / "one")
    two = write_shards(samples([["a"], ["b"]]), tmp_path / "two")
    content = one[0].read_bytes()
    assert content == two[0].read_bytes()
    assert load_index(one[0]).summary.sha256 == hashlib.sha256(content).hexdigest()


def test_a_shard_ends_before_its_images_exceed_the_bytes(tmp_path):
    each = [Sample(f"{i}", bytes(100), "jpg", []) for i in range(7)]
    paths = write_shards(each, tmp_path / "shards", most_bytes=350)
    assert [load_index(path).summary.count for path in paths] == [3, 3, 1]
    large = write_shards(each[:2], tmp_path / "large", most_bytes=50)
    assert len(large) == 2


def test_a_folder_of_shards_appears_whole_or_not_at_all(tmp_path):
    def broken():
        yield from samples([["a"], ["b"]])
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_shards(broken(), tmp_path / "shards", per_shard=1)
    assert list(tmp_path.iterdir()) == []
    make_shards(tmp_path / "shards", [["a"]])
    with pytest.raises(ValueError, match="exists: give a new or an empty folder"):
        make_shards(tmp_path / "shards", [["a"]])
    with pytest.raises(ValueError, match="there is no image to write"):
        make_shards(tmp_path / "none", [])


@pytest.mark.parametrize(
    ("key", "ext", "message"),
    [
        ("a.b", "jpg", "would be read otherwise"),
        ("a", "JPG", "would be read otherwise"),
        ("", "jpg", "would be read otherwise"),
        ("a/../../b", "jpg", "no path inside a folder"),
        ("/a", "jpg", "no path inside a folder"),
        ("a", "json", "is no image by its name"),
        ("old", "jpg", "comes twice"),
    ],
)
def test_the_writer_refuses_keys_that_no_reader_would_find(tmp_path, key, ext, message):
    first = Sample("old", b"x", "jpg", [])
    with pytest.raises(ValueError, match=message):
        write_shards([first, Sample(key, b"x", ext, [])], tmp_path / "shards")


def test_files_of_a_key_that_stand_apart_stop_with_shard_and_key(tmp_path):
    names = ["0.a.jpg", "1.a.jpg", "0.json", "1.json"]
    path = write_tar(tmp_path / "7.tar", [(name, JSON) for name in names])
    with pytest.raises(ValueError, match=r"7\.tar: the files of 0 do not stand together"):
        scan(path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.json", "a.jpg", "a.JSON"], r"1\.tar: a\.json stands twice"),
        (["a.jpg", "a.png", "a.json"], r"1\.tar: a has two images, jpg and png"),
        (["../a.jpg"], r"1\.tar: '\.\./a\.jpg' leads out of the folder"),
        (["/etc/a.jpg"], r"leads out of the folder"),
    ],
)
def test_a_shard_that_could_be_read_in_two_ways_stops(tmp_path, names, message):
    path = write_tar(tmp_path / "1.tar", [(name, JSON) for name in names])
    with pytest.raises(ValueError, match=message):
        scan(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_special_files_stop(tmp_path, kind):
    path = tmp_path / "1.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(ValueError, match=r"1\.tar: 'a\.jpg' is a link or another special file"):
        scan(path)


def test_other_files_and_folders_in_a_shard_are_passed_by(tmp_path):
    image = image_bytes()
    files = [("./d/a.png", image), ("./d/.b.png", b"x"), ("./d/a.txt", b"x"), ("noext", b"x")]
    path = write_tar(tmp_path / "1.tar", [*files, ("./d/a.json", JSON)])
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    index = scan(path)
    assert index.keys == ["d/a"]
    assert index.raw.row(0).tolist() == [0]
    assert index.summary.faults == {}


def test_names_of_any_length_and_bytes_are_read(tmp_path):
    keys = ["d" * 90 + "/" + "k" * 300, "naïve/été", "b\udcff"]
    write_shards([Sample(key, image_bytes(), "png", ["a"]) for key in keys], tmp_path / "shards")
    shards = Shards(tmp_path / "shards")
    assert shards.keys(0) == keys
    assert [shards.read(i) for i in range(3)] == [image_bytes()] * 3
    assert shards.hashes(0).tolist() == [hash_key(key) for key in keys]


def test_a_hash_of_a_key_is_the_same_on_every_machine():
    digest = hashlib.blake2b(b"000000", digest_size=8).digest()
    assert hash_key("000000") == int.from_bytes(digest, "little")
    assert hash_key("000000") == 1025393110128945871


# Card, oracle 14.
def test_faults_are_counted_and_named_and_the_other_images_stay(tmp_path):
    image = image_bytes()
    files = [
        ("a.png", image), ("a.json", JSON),
        ("b.png", b""), ("b.json", JSON),
        ("c.png", image), ("c.json", b'{"tags": "a"}'),
        ("d.png", image), ("d.json", b"{"),
        ("e.json", JSON),
        ("f.png", image),
        ("g.png", image), ("g.json", b'{"tags": []}'),
        ("h.png", image), ("h.json", '{"tags": ["猫", "cat"]}'.encode()),
        ("i.png", image), ("i.json", b'{"tags": ["a"], "tags": ["cat"]}'),
    ]  # fmt: skip
    write_tar(tmp_path / "1.tar", files)
    shards = Shards(tmp_path, make_vocabulary("a", "cat"))
    assert shards.keys(0) == ["a", "c", "d", "f", "g", "h", "i"]
    assert [labels(shards, i).tolist() for i in range(7)] == [[0], [], [], [], [], [1], []]
    assert shards.dropped == {
        "empty image": 1,
        "bad JSON": 3,
        "no image": 1,
        "no tags": 1,
        "image without tags": 1,
        "tags without a letter or digit": 1,
    }
    named = "\n".join(shards.faults)
    for sentence in (
        "b.png has no bytes",
        "c.json is not",
        "d.json is not",
        "i.json is not",
        "e has",
    ):
        assert f"1.tar: {sentence}" in named
    assert "1.tar: f has no JSON file" in named
    shards.check(1.0)
    with pytest.raises(ValueError, match=r"5 damaged files beside 7 images, more than the 1 that"):
        shards.check(0.001)


def test_of_many_faults_the_first_are_named_and_all_are_counted(tmp_path):
    write_tar(tmp_path / "1.tar", [(f"{i}.png", b"") for i in range(50)])
    shards = Shards(tmp_path)
    assert shards.dropped == {"empty image": 50}
    assert len(shards.faults) == 20
    assert len(shards) == 0


@pytest.mark.parametrize("cut", [1024, 12_000, 9_000, 10_500])
def test_a_shard_whose_end_is_cut_off_keeps_its_first_images(tmp_path, cut):
    files = [(f"{i}.{ext}", data) for i in range(9) for ext, data in
             (("json", JSON), ("png", os.urandom(2500)))]  # fmt: skip
    whole = write_tar(tmp_path / "whole" / "1.tar", files)
    content = whole.read_bytes()
    path = tmp_path / "cut" / "1.tar"
    path.parent.mkdir()
    path.write_bytes(content[: len(content.rstrip(b"\0")) - cut])
    shards, before = Shards(path.parent), Shards(whole.parent)
    assert 0 < len(shards) < 9
    assert sum(shards.dropped.values()) >= 1
    assert all(sentence.startswith("1.tar: ") for sentence in shards.faults)
    assert [shards.read(i) for i in range(len(shards))] == [
        before.read(i) for i in range(len(shards))
    ]
    assert before.faults == []
    shards.check(0.001)  # one shard's end alone does not stop a run


def test_damage_within_a_shard_is_named_with_its_place(tmp_path):
    path = write_tar(tmp_path / "1.tar", [(f"{i}.png", image_bytes(i)) for i in range(6)])
    content = bytearray(path.read_bytes())
    place = int(scan(path).places[3]) - 512
    content[place : place + 200] = b"?" * 200  # the header of image 3
    path.write_bytes(content)
    shards = Shards(tmp_path)
    assert shards.keys(0) == ["0", "1", "2"]
    assert f"1.tar: what follows byte {place} of {len(content)} is damaged" in "\n".join(
        shards.faults
    )


@pytest.mark.parametrize("content", [b"", b"no tar" * 999], ids=["empty", "text"])
def test_what_is_no_tar_stops_with_its_name(tmp_path, content):
    (tmp_path / "3.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"3\.tar is no tar file .*: fetch it again"):
        Shards(tmp_path)


def test_a_folder_without_shards_stops_with_its_name(tmp_path):
    with pytest.raises(ValueError, match=r"has no shards \(\*\.tar\)"):
        Shards(tmp_path)


def test_an_index_is_made_once_and_again_when_the_shard_changes(tmp_path):
    folder = make_shards(tmp_path / "shards", [["a"], ["b"]])
    index = folder / "000000.index.npz"
    assert not index.exists()
    Shards(folder)
    made = index.stat().st_mtime_ns
    Shards(folder).keys(0)
    assert index.stat().st_mtime_ns == made
    write_tar(folder / "000000.tar", [("z.png", image_bytes()), ("z.json", JSON)])
    assert Shards(folder).keys(0) == ["z"]


@pytest.mark.parametrize("keep", [0, 10, 400, -30])
def test_a_damaged_index_is_made_anew(tmp_path, keep):
    folder = make_shards(tmp_path / "shards", [["a"], ["b"]])
    before = load_index(folder / "000000.tar")
    index = folder / "000000.index.npz"
    index.write_bytes(index.read_bytes()[:keep])
    after = load_index(folder / "000000.tar")
    assert after.keys == before.keys == ["000000", "000001"]
    assert after.summary == before.summary
    assert np.load(index)["places"].tolist() == before.places.tolist()


def test_an_index_goes_to_the_cache_where_none_can_stand_beside_the_shard(tmp_path, monkeypatch):
    folder = make_shards(tmp_path / "shards", [["a"], ["b"]])
    monkeypatch.setenv("FAIR_VISION_CACHE", str(tmp_path / "cache"))
    (folder / "000000.index.npz").mkdir()  # nothing can be renamed to it
    assert Shards(folder).keys(0) == ["000000", "000001"]
    (found,) = (tmp_path / "cache").rglob("*.npz")
    made = found.stat().st_mtime_ns
    assert len(Shards(folder)) == 2
    assert found.stat().st_mtime_ns == made
    monkeypatch.setenv("FAIR_VISION_CACHE", str(folder / "000000.tar"))
    with pytest.raises(OSError, match="set FAIR_VISION_CACHE to a folder with room"):
        Shards(folder)


def open_and_read(folder: Path) -> list[str]:
    shards = Shards(folder)
    return [shards.name(i) for i in range(len(shards))]


def test_several_processes_may_want_an_index_at_once(tmp_path):
    folder = make_shards(tmp_path / "shards", [["a"]] * 12)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.map(open_and_read, [folder] * 8, chunksize=1)
    assert all(each == found[0] for each in found)
    assert sorted(path.suffix for path in folder.iterdir()) == [".npz"] * 3 + [".tar"] * 3


def read_some(shards: Shards, indices: list[int]) -> list[bytes]:
    return [shards.read(i) for _ in range(20) for i in indices]


def test_forked_and_unpickled_readers_do_not_disturb_each_other(tmp_path):
    folder = make_shards(tmp_path / "shards", random_tags("abc", 12), per_shard=12)
    shards = Shards(folder, make_vocabulary("a", "b", "c"))
    images = read_some(shards, list(range(12)))  # the file is open before the fork
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=lambda i=i: os._exit(read_some(shards, [i]) != [images[i]] * 20))
        for i in range(4)
    ]
    for process in processes:
        process.start()
    assert read_some(shards, [5, 6]) == [images[5], images[6]] * 20
    for process in processes:
        process.join()
        assert process.exitcode == 0
    again = pickle.loads(pickle.dumps(shards))
    assert again.read(7) == images[7]
    assert labels(again, 7).tolist() == labels(shards, 7).tolist()


@pytest.mark.parametrize("begun", [False, True])
def test_a_shard_that_changes_under_a_run_is_named(tmp_path, begun):
    folder = make_shards(tmp_path / "shards", [["a"], ["b"]])
    shards = Shards(folder)
    if begun:
        shards.read(0)
    os.truncate(folder / "000000.tar", 700)
    with pytest.raises(ValueError, match=r"000000\.tar has changed since the run began to read"):
        shards.read(1)


def test_empty_shards_between_others_have_no_images(tmp_path):
    folder = make_shards(tmp_path / "shards", [["a"], ["b"]], per_shard=1)
    write_tar(folder / "000000a.tar", [])
    shards = Shards(folder)
    assert shards.counts.tolist() == [1, 0, 1]
    assert [shards.locate(i) for i in range(2)] == [(0, 0), (2, 0)]
    assert shards.name(1) == "000001.tar: 000001"


def test_labels_of_a_vocabulary_equal_a_look_up_of_each_image(tmp_path):
    names = ["a", "b", "c", "d", "e", "f"]
    tags = [*random_tags(names, 59), ["d"]]
    vocabulary = make_vocabulary(["c", "a"], "f", ["e", "b"])  # d is unknown
    shards = Shards(make_shards(tmp_path / "shards", tags, per_shard=25, side=4), vocabulary)
    found = [labels(shards, i).tolist() for i in range(60)]
    assert found == [vocabulary.look_up(each) for each in tags]
    assert [] in found


def test_relabelled_tags_are_sets():
    tags = Tags(np.array([0, 1, 2, 1, 2], np.int32), np.array([0, 3, 3, 5]))
    found = relabel(tags, np.array([4, 4, -1], np.int32))
    assert found.ids.tolist() == [4, 4]
    assert found.offsets.tolist() == [0, 1, 1, 2]
    empty = relabel(Tags(np.array([], np.int32), np.array([0, 0])), np.array([], np.int32))
    assert empty.offsets.tolist() == [0, 0]


def test_memory_holds_the_last_shards_alone(tmp_path):
    long = "k" * 200
    each = [Sample(f"{long}{i:05d}", b"x", "jpg", [f"t{i}"]) for i in range(1500)]
    write_shards(each, tmp_path / "shards", per_shard=50)
    labels(Shards(tmp_path / "shards", make_vocabulary("t1")), 0)  # NumPy imports what it needs
    tracemalloc.start()
    shards = Shards(tmp_path / "shards", make_vocabulary("t1"), keep=2)
    for i in range(0, 1500, 50):
        shards.read(i), shards.name(i), labels(shards, i)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 250_000  # the keys alone are 300,000 bytes
    assert len(shards._files) == 2


def test_webdataset_reads_the_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    tags = [["Brown Bear"], ["crane", "x"]]
    (path,) = write_shards(samples(tags), tmp_path / "shards")
    found = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [each["__key__"] for each in found] == ["000000", "000001"]
    assert [json.loads(each["json"])["tags"] for each in found] == tags
    assert [each["png"] for each in found] == [image_bytes(i) for i in range(2)]
