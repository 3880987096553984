"""prepare.py: shards from what people have, faults by name, vocabularies, and copies found."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from common.errors import UserError
from common.run import checkpoint
from hashtag_pretrain import prepare
from hashtag_pretrain.inputs.sources import Photo, give_keys, read_captions, read_list
from hashtag_pretrain.inputs.whole import WholeImages, find_copies
from hashtag_pretrain.model import Network, build_model, normalise
from hashtag_pretrain.shards.archive import Shards
from hashtag_pretrain.words.vocabulary import Vocabulary

from .small import encode, image_bytes, make_shards, make_vocabulary, write_tar


def call(command: str, **options: object) -> None:
    prepare.main([command, *(f"{name}={value}" for name, value in options.items())])


def tags_of(folder: Path) -> dict[str, set[str]]:
    """The tags in normal form of each key."""
    shards = Shards(folder)
    found = {}
    for shard in range(len(shards.paths)):
        index = shards._shard(shard).index
        for i, key in enumerate(index.keys):
            found[key] = {index.table[number] for number in index.raw.row(i)}
    return found


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Folders named after what is in them."""
    root = tmp_path / "photos"
    for i, name in enumerate(["Brown_Bear/a.png", "Brown_Bear/b.v2.jpg", "crane/bird/a.png"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(i, side=48, form="jpeg" if name.endswith("jpg") else "png"))
    return root


@pytest.mark.parametrize("processes", [0, 2])
def test_folders_become_shards_with_their_names_as_tags(photos, tmp_path, capsys, processes):
    call("shards", source="folder", root=photos, out=tmp_path / "shards", processes=processes)
    assert tags_of(tmp_path / "shards") == {
        "Brown_Bear/a": {"brownbear"},
        "Brown_Bear/b_v2": {"brownbear"},
        "crane/bird/a": {"crane", "bird"},
    }
    shards = Shards(tmp_path / "shards")
    assert shards.read(1) == (photos / "Brown_Bear" / "b.v2.jpg").read_bytes()
    out = capsys.readouterr().out
    assert "3 images in 1 shards, 0 of them without tags" in out
    assert "no fault found" in out or "left out" not in out


def test_a_list_gives_paths_and_tags(photos, tmp_path):
    path = tmp_path / "list.txt"
    outside = tmp_path / "x.png"
    outside.write_bytes(image_bytes(9))
    path.write_text(
        f"\ufeffcrane/bird/a.png\t#Crane bird\n\nBrown_Bear/a.png\t\n{outside}\tfar\n",
        encoding="utf-8",
    )
    call("shards", source="list", list=path, root=photos, out=tmp_path / "shards", processes=0)
    away = str(outside).lstrip("/").removesuffix(".png")
    assert tags_of(tmp_path / "shards") == {
        "crane/bird/a": {"crane", "bird"},
        "Brown_Bear/a": set(),
        away: {"far"},
    }
    path.write_text("a.png crane\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 1: expected PATH<tab>tag tag tag"):
        read_list(path)


def test_larger_images_are_stored_smaller_and_upright(photos, tmp_path):
    wide, turned = Image.new("RGB", (90, 60)), Image.Exif()
    turned[0x0112] = 6
    (photos / "crane" / "wide.jpg").write_bytes(encode(wide, "jpeg", exif=turned.tobytes()))
    call("shards", source="folder", root=photos, out=tmp_path / "shards", short=50, processes=0)
    shards = Shards(tmp_path / "shards")
    whole = WholeImages(tmp_path / "shards", 8)
    number = next(i for i in range(4) if whole.name(i) == "crane/wide")
    stored = tmp_path / "stored.jpg"
    stored.write_bytes(shards.read(number))
    assert Image.open(stored).size == (50, 75)
    assert shards.read(0) == (photos / "Brown_Bear" / "a.png").read_bytes()


def test_what_cannot_be_read_is_left_out_and_named(photos, tmp_path, capsys):
    (photos / "crane" / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="1 images cannot be read and were left out"):
        call("shards", source="folder", root=photos, out=tmp_path / "shards", processes=0)
    assert "bad.jpg cannot be read as an image" in capsys.readouterr().err
    assert len(Shards(tmp_path / "shards")) == 3


def test_keys_are_paths_without_an_extension_and_differ():
    names = ["/d/a.jpg", "/d/a.png", "/d/b.c.jpg", "/e/a.jpg"]
    found = give_keys([Photo(name, []) for name in names], "/d")
    assert [photo.key for photo in found] == ["a", "a_png", "b_c", "e/a"]
    with pytest.raises(ValueError, match=r"a\.jpg stands twice in the list: give it one line"):
        give_keys([Photo("/d/a.jpg", []), Photo("/d/x/../a.jpg", ["other"])], "/d")
    names = ["/d/a_png.jpg", "/d/a_png_png.gif", "/d/a_png.png"]
    with pytest.raises(ValueError, match=r"/d/a_png\.png has the key a_png_png of another file"):
        give_keys([Photo(name, []) for name in names], "/d")


def test_separators_of_unicode_in_a_tag_end_no_line_of_a_list(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("a.jpg\tdog\u2028cat\x85x\x0b\x1cy\r\nb.jpg\t猫 \r\n".encode())
    first, second = read_list(path)
    assert (first.tags, second.tags) == (["dog", "cat", "x", "y"], ["猫"])


def test_words_of_real_captions_become_tags(shared_data, tmp_path):
    root = shared_data / "coco_mini"
    (tmp_path / "stop.txt").write_text("airport\n")
    out = tmp_path / "shards"
    call("shards", source="coco", root=root, out=out, stop=tmp_path / "stop.txt", processes=0)
    tags = tags_of(out)
    assert len(tags) == 80
    content = json.loads((root / "annotations" / "captions_train2017.json").read_text())
    files = {image["id"]: image["file_name"] for image in content["images"]}
    entry = next(e for e in content["annotations"] if e["caption"].startswith("An airport filled"))
    found = tags[files[entry["image_id"]].removesuffix(".jpg")]
    assert {"passenger", "jets", "filled"} <= found
    assert not {"an", "with", "airport", "to", ""} & found
    assert min(map(len, tags.values())) >= 4
    shards = Shards(out)
    assert shards.read(0) == (root / "train2017" / f"{shards.keys(0)[0]}.jpg").read_bytes()


def test_captions_of_another_form_stop_with_the_file(tmp_path):
    (tmp_path / "annotations").mkdir()
    with pytest.raises(ValueError, match=r"captions_val2017\.json does not exist"):
        read_captions(tmp_path, "val2017")
    path = tmp_path / "annotations" / "captions_val2017.json"
    path.write_text('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1}]}')
    with pytest.raises(ValueError, match=r"captions_val2017\.json has not the fields of COCO's"):
        read_captions(tmp_path, "val2017")


def test_check_counts_tags_and_names_every_fault(tmp_path, capsys):
    folder = make_shards(tmp_path / "shards", [["a"], ["b", "c"], ["a"]], per_shard=2)
    make_vocabulary("a", "z").write(tmp_path / "vocabulary.json")
    call("check", shards=folder, vocabulary=tmp_path / "vocabulary.json", processes=0)
    out = capsys.readouterr().out
    assert "3 images in 2 shards" in out
    assert "1 images have no tag of the vocabulary" in out
    assert "1 of its 2 labels have no image: z" in out
    assert "1 tags, 0.67 an image" in out
    assert "no fault found" in out
    files = [("b.png", image_bytes()), ("b.json", b"{"), ("c.png", b"bytes"), ("d.png", b"")]
    write_tar(folder / "000002.tar", [*files, ("000000.png", image_bytes())])
    path = folder / "000000.tar"
    times, content = path.stat(), bytearray(path.read_bytes())
    content[600:610] = b"0123456789"  # within an image; the index takes no notice
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match="faults"):
        call("check", shards=folder, processes=2)
    printed = capsys.readouterr()
    assert "1 keys stand in another shard, too" in printed.out
    for sentence in (
        "000000.tar: its bytes are not those that were indexed",
        "000002.tar: b.json is not",
        "000002.tar: d.png has no bytes",
        "000002.tar: c cannot be read as an image",
    ):
        assert sentence in printed.err
    with pytest.raises(UserError):
        call("check", shards=folder, decode="false", processes=0)
    assert "cannot be read" not in capsys.readouterr().err


def test_index_is_written_beside_each_shard_and_names_faults(tmp_path, capsys):
    folder = make_shards(tmp_path / "shards", [["a"]] * 5, per_shard=2)
    call("index", shards=folder, processes=2)
    assert len(list(folder.glob("*.index.npz"))) == 3
    assert "5 images, 3 shards" in capsys.readouterr().out
    write_tar(folder / "000003.tar", [("d.png", b"")])
    with pytest.raises(UserError, match="1 faults"):
        call("index", shards=folder, processes=0)
    assert "000003.tar: d.png has no bytes" in capsys.readouterr().err


def test_a_vocabulary_is_made_of_the_tags_of_shards(tmp_path, capsys):
    tags = [["Crane", "bear"], ["#crane"], ["bear"], ["CRANE"], ["rare"]]
    folder = make_shards(tmp_path / "shards", tags)
    (tmp_path / "stop.txt").write_text("bear\n")
    out = tmp_path / "new" / "vocabulary.json"
    call("vocabulary", shards=folder, out=out, rule="none", least=2)
    assert Vocabulary.read(out).names == ["crane", "bear"]
    assert Vocabulary.read(out).counts == [3, 2]
    assert "2 labels" in capsys.readouterr().out
    call("vocabulary", shards=folder, out=out, rule="none", stop=tmp_path / "stop.txt", most=1)
    assert Vocabulary.read(out).names == ["crane"]
    with pytest.raises(ValueError, match=r"data\.noun cannot be read"):
        call("vocabulary", shards=folder, out=out, wordnet=tmp_path)


@pytest.mark.parametrize("out", ["full", "file/vocabulary.json"])
def test_an_output_that_cannot_be_written_stops_in_a_sentence(out, tmp_path):
    folder = make_shards(tmp_path / "shards", [["a"], ["b"]])
    (tmp_path / "full" / "x").mkdir(parents=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"out=\S*{out} is not written \(.*give another out="):
        call("vocabulary", shards=folder, out=tmp_path / out, rule="none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "shards"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shard"], "shard is unknown: choose shards, index"),
        (["shards", "out=x"], "source= is missing"),
        (["shards", "source=list", "out=x"], "list= is missing"),
        (["shards", "source=coco", "out=x"], "root= is missing"),
        (["index", "shards=/none"], "has no shards"),
        (["index", "shards=x", "rule=loose"], "rule=loose is unknown"),
        (["check", "shards=x", "quality=0"], "quality=0 is out of range"),
        (["index", "shards=x", "threshold=inf"], "threshold=inf is out of range"),
    ],
)
def test_what_is_missing_or_unknown_stops_in_a_sentence(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, UserError), match=message):
        prepare.main(words)


def describe(images: torch.Tensor) -> torch.Tensor:
    """Unit vectors of small grey images."""
    grey = torch.nn.functional.adaptive_avg_pool2d(images.float().mean(1), 8).flatten(1)
    return torch.nn.functional.normalize(grey - grey.mean(1, keepdim=True))


def test_copies_between_shards_and_a_folder_are_found_by_name(shared_data, tmp_path):
    root = shared_data / "cifar10_jpeg" / "train"
    files = sorted(path for name in ("cat", "ship") for path in (root / name).iterdir())
    random.Random(0).shuffle(files)
    listing = tmp_path / "list.txt"
    listing.write_text(
        "".join(f"{path.relative_to(root)}\t{path.parent.name}\n" for path in files[:60])
    )
    call("shards", source="list", list=listing, root=root, out=tmp_path / "shards", processes=0)
    test = tmp_path / "test"
    (test / "x").mkdir(parents=True)
    for i, path in enumerate(files[55:65]):  # 5 of them are in the shards
        photo = Image.open(path)
        (ImageOps.mirror(photo) if i % 2 else photo.resize((40, 40))).save(test / "x" / f"{i}.png")
    (test / "x" / "bad.png").write_bytes(b"no image")
    copies = find_copies(
        WholeImages(tmp_path / "shards", 32),
        WholeImages(test, 32),
        describe,
        threshold=0.2,
        k=3,
        batch_size=16,
        workers=0,
        scratch=tmp_path,
    )
    pairs = zip(copies.pairs.test.tolist(), copies.pairs.train.tolist(), strict=True)
    found = {copies.test_name(i): copies.train_name(j) for i, j in pairs}
    expected = {
        f"x/{i}.png": str(files[55 + i].relative_to(root).with_suffix("")) for i in range(5)
    }
    assert found == expected
    assert copies.pairs.test_images == 10
    assert [fault for fault in copies.faults if "bad.png cannot be read" in fault] == copies.faults
    assert not list(tmp_path.glob(".descriptors*"))
    shutil.rmtree(test / "x")
    with pytest.raises(ValueError, match="has neither shards"):
        WholeImages(test, 32)


def test_duplicates_are_looked_for_with_the_pixels_of_the_run(tmp_path, monkeypatch, capsys):
    folder = make_shards(tmp_path / "shards", [["a"]] * 2, side=32)
    mean, std = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]
    options = {"network.mean": mean, "network.std": std}
    checkpoint.save(tmp_path / "run", 1, model=build_model(Network("small"), 5), options=options)
    checkpoint.unlock(tmp_path / "run")
    used = []

    def noting(images, *pixels):
        used.append(pixels)
        return normalise(images, *pixels)

    monkeypatch.setattr(prepare, "normalise", noting)
    call(
        "duplicates",
        train=folder,
        test=folder,
        init=tmp_path / "run",
        network="small",
        out=tmp_path / "out",
        size=32,
        processes=0,
    )
    assert used
    assert all(pixels == (mean, std) for pixels in used)
    assert "want pixels" not in capsys.readouterr().out


def test_duplicates_take_a_narrow_network_and_name_a_device_that_is_not_there(tmp_path, capsys):
    folder = make_shards(tmp_path / "shards", [["a"]] * 2, side=32)
    torch.save(build_model(Network("small", 8), 5).state_dict(), tmp_path / "weights.pt")
    same = {"train": folder, "test": folder, "init": tmp_path / "weights.pt", "network": "small"}
    same |= {"out": tmp_path / "out", "size": 32, "processes": 0}
    call("duplicates", **same, width=8)
    assert "2 of 2 test images (100.00 %)" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"device=cuda:99 is not there \(.*\): give cpu"):
        call("duplicates", **same, width=8, device="cuda:99")


def test_the_command_writes_what_other_commands_read(tmp_path, capsys):
    folder = make_shards(tmp_path / "shards", [["a"]] * 6, side=64)
    test = tmp_path / "test" / "a"
    test.mkdir(parents=True)
    (test / "copy.png").write_bytes(image_bytes(3, side=64))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (test / "other.png").write_bytes(encode(Image.fromarray(noise)))
    torch.manual_seed(0)
    torch.save(build_model(Network("small"), 5).state_dict(), tmp_path / "weights.pt")
    call(
        "duplicates",
        train=folder,
        test=test.parent,
        init=tmp_path / "weights.pt",
        network="small",
        out=tmp_path / "out",
        size=64,
        threshold=1e-5,
        processes=0,
    )
    assert (tmp_path / "out" / "exclude.txt").read_text() == "000003\n"
    assert (tmp_path / "out" / "duplicates.txt").read_text() == "a/copy.png\n"
    assert "1 of 2 test images (50.00 %)" in capsys.readouterr().out
