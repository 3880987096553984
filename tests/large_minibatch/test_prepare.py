"""`prepare.py`: a smaller copy of a tree, ILSVRC's validation images sorted, and checking."""

import os

import numpy as np
import pytest
from PIL import Image

from large_minibatch.prepare import main, resize, sort_val

WNIDS = ("n00000001", "n00000002")


def save(path, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, size[0])
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "imagenet"
    for split in ("train", "val"):
        for wnid in WNIDS:
            for i in range(2):
                save(root / split / wnid / f"{wnid}_{i}.JPEG")
    return root


@pytest.fixture
def flat(tmp_path):
    """Four validation images as ILSVRC's archive has them."""
    folder = tmp_path / "val"
    for i in range(1, 5):
        save(folder / f"ILSVRC2012_val_0000000{i}.JPEG")
    return folder


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def size(path):
    with Image.open(path) as image:
        return image.size, image.mode, image.format


@pytest.mark.parametrize("processes", [0, 2])
def test_resizing_keeps_the_tree_and_makes_the_shorter_side_fit(tree, tmp_path, processes):
    save(tree / "train" / WNIDS[0] / "tall.jpg", size=(33, 50))
    assert resize(tree, tmp_path / "small", size=16, processes=processes) == []
    assert files(tmp_path / "small") == [".resized.json", *files(tree)]
    assert size(tmp_path / "small/train" / WNIDS[0] / "tall.jpg") == ((16, 24), "RGB", "JPEG")
    assert size(tmp_path / "small/val" / WNIDS[1] / f"{WNIDS[1]}_1.JPEG")[0] == (21, 16)


def test_resizing_copies_small_jpegs_as_they_are_and_turns_all_else_into_jpeg(tree, tmp_path):
    folder = tree / "train" / WNIDS[0]
    small = save(folder / "small.JPEG", size=(20, 16), quality=70)
    save(folder / "drawing.png")
    Image.new("CMYK", (40, 30)).save(folder / "ink.JPEG")
    save(folder / "hidden_png.JPEG", format="PNG")
    exif = Image.Exif()
    exif[0x0112] = 3
    save(folder / "turned.JPEG", exif=exif)
    assert resize(tree, tmp_path / "out", size=16, processes=0) == []
    out = tmp_path / "out/train" / WNIDS[0]
    assert (out / "small.JPEG").read_bytes() == small.read_bytes()
    for name in ("drawing.png.jpg", "ink.JPEG", "hidden_png.JPEG", "turned.JPEG"):
        assert size(out / name) == ((21, 16), "RGB", "JPEG")
    with Image.open(out / "turned.JPEG") as image:
        assert image.getexif()[0x0112] == 3


def test_resizing_names_unreadable_images_and_goes_on(tree, tmp_path, capsys):
    bad = tree / "train" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG"
    bad.write_bytes(bad.read_bytes()[:300])
    words = ["resize", str(tree), str(tmp_path / "out"), "--size", "16", "--processes", "0"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"{bad} cannot be read as an image" in said
    assert "1 images cannot be read and were left out" in said
    assert len(files(tmp_path / "out")) == 8  # 7 images and the note of how they were made


def test_an_interrupted_resizing_goes_on_and_leaves_no_parts(tree, tmp_path):
    out = tmp_path / "out"
    resize(tree, out, size=16, processes=0)
    done = out / "train" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG"
    gone = out / "val" / WNIDS[0] / f"{WNIDS[0]}_1.JPEG"
    os.utime(done, (1, 1))
    gone.unlink()
    resize(tree, out, size=16, processes=0)
    assert done.stat().st_mtime == 1
    assert gone.exists()
    assert not list(out.rglob(".*.tmp"))


def test_resizing_refuses_a_folder_made_otherwise(tree, tmp_path):
    out = tmp_path / "out"
    resize(tree, out, size=16, processes=0)
    with pytest.raises(ValueError, match=r"was resized with .*16.* not .*20"):
        resize(tree, out, size=20, processes=0)
    with pytest.raises(ValueError, match="holds other files"):
        resize(tree, tree.parent, size=16)
    with pytest.raises(ValueError, match="is inside"):
        resize(tree, tree / "small", size=16)
    with pytest.raises(ValueError, match="is not a folder"):
        resize(tree / "no", out, size=16)


def mapping(folder, *lines):
    path = folder.parent / "mapping.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def sorted_tree():
    return [
        f"{WNIDS[k]}/ILSVRC2012_val_0000000{i}.JPEG" for k, i in ((0, 2), (0, 3), (1, 1), (1, 4))
    ]


def wnids(folder):
    path = folder.parent / "wnids.txt"
    path.write_text("\n".join(WNIDS) + "\n")
    return path


@pytest.mark.parametrize("kind", ["two columns", "kaggle", "devkit", "numbers"])
def test_validation_images_are_sorted_by_mappings_of_every_common_form(flat, kind):
    order = (1, 0, 0, 1)
    names = [f"ILSVRC2012_val_0000000{i}" for i in range(1, 5)]
    rows = {
        "two columns": [f"{n}.JPEG {WNIDS[k]}" for n, k in zip(names, order, strict=True)],
        "kaggle": ["ImageId,PredictionString"]
        + [f"{n},{WNIDS[k]} 1 2 3 4 " for n, k in zip(names, order, strict=True)],
        "devkit": [str(k + 1) for k in order],
        "numbers": [f"{n}.JPEG {k}" for n, k in zip(names, order, strict=True)],
    }[kind]
    numbers = wnids(flat) if kind in ("devkit", "numbers") else None
    assert sort_val(flat, mapping(flat, *rows), wnids=numbers) == 4
    assert files(flat) == sorted_tree()
    assert sort_val(flat, mapping(flat, *rows), wnids=numbers) == 0


def test_nothing_is_moved_by_a_mapping_that_does_not_fit(flat):
    before = files(flat)
    with pytest.raises(ValueError, match=r"00000004.JPEG has no class in .*mapping.txt"):
        sort_val(flat, mapping(flat, "1", "1", "2"), wnids=wnids(flat))
    with pytest.raises(ValueError, match="has class numbers: give --wnids"):
        sort_val(flat, mapping(flat, "1", "1", "2", "1"))
    with pytest.raises(ValueError, match="class number 3, but the 2 WordNet ids"):
        sort_val(flat, mapping(flat, "1", "1", "2", "3"), wnids=wnids(flat))
    rows = [f"ILSVRC2012_val_0000000{i}.JPEG ../x" for i in range(1, 5)]
    with pytest.raises(ValueError, match="no folder name"):
        sort_val(flat, mapping(flat, *rows))
    with pytest.raises(ValueError, match=r"gives 'b.JPEG' no class"):
        sort_val(flat, mapping(flat, "a.JPEG n1", "b.JPEG"))
    assert files(flat) == before


def test_checking_prints_the_counts(tree, capsys):
    assert main(["check", str(tree), "--decode"]) == 0
    out = capsys.readouterr().out
    assert "train: 4 images of 2 classes, 2 to 2 a class" in out
    assert "no fault found" in out
    assert f"{tree}/{{train,val}}/<class>/<image>" in out


def test_checking_names_the_first_bad_file(tree, capsys):
    bad = tree / "val" / WNIDS[1] / f"{WNIDS[1]}_0.JPEG"
    bad.write_bytes(b"")
    assert main(["check", str(tree)]) == 2
    assert f"bad data: {bad} cannot be read as an image" in capsys.readouterr().err


def test_checking_names_a_fault_of_the_layout(flat, tree, capsys):
    os.rename(flat, tree / "val" / "n00000003")
    assert main(["check", str(tree)]) == 2
    assert "1 are in it alone, first 'n00000003'" in capsys.readouterr().err
