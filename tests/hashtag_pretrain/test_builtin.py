"""The built-in data: tags as people might write them, images that show them, and the files."""

import colorsys
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.scenes import render
from hashtag_pretrain.inputs.builtin import (
    CONCEPTS,
    HUES,
    VOCABULARIES,
    Builtin,
    draw_concepts,
    draw_scenes,
    draw_tags,
    make_images,
    make_vocabulary,
    make_world,
    read_records,
    write_builtin,
    zipf_law,
)
from hashtag_pretrain.words.vocabulary import Vocabulary

MANY = 4000


def tiny(**changed: object) -> Builtin:
    few = {"images": 40, "per_shard": 16, "target_train": 1, "target_test": 2}
    return Builtin(**(few | changed))  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAIR_VISION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(_cache: None) -> Path:
    return write_builtin(tiny())


@pytest.fixture(scope="module")
def drawn() -> list[list[int]]:
    return [draw_concepts(Builtin(), "shards", i) for i in range(MANY)]


def test_the_law_is_zipfs_with_the_exponent_asked_for() -> None:
    law = np.sort(zipf_law(Builtin(zipf=1.6)))[::-1]
    assert law.sum() == pytest.approx(1)
    np.testing.assert_allclose(law[0] / law, np.arange(1, 37) ** 1.6)
    np.testing.assert_allclose(zipf_law(Builtin(zipf=0)), 1 / 36)


def test_concepts_are_as_frequent_as_the_law_says(drawn: list[list[int]]) -> None:
    counts = np.bincount(np.concatenate(drawn), minlength=36)
    law, total = zipf_law(Builtin()), counts.sum()
    assert (np.abs(counts - total * law) < 5 * np.sqrt(total * law)).all()
    two = np.mean([len(each) == 2 for each in drawn])
    assert two == pytest.approx(0.3, abs=5 * np.sqrt(0.21 / MANY))


def test_tags_are_missing_and_spurious_as_often_as_asked(drawn: list[list[int]]) -> None:
    vocabulary = make_vocabulary("fine", [])
    for tagged, spurious in ((0.75, 0.0), (0.4, 0.0), (1.0, 0.3)):
        options = Builtin(tagged=tagged, spurious=spurious)
        found = [draw_tags(options, i, np.array(each)) for i, each in enumerate(drawn)]
        solids = sum(map(len, drawn))
        empty = sum((1 - tagged) ** len(each) for each in drawn)  # which get the first concept
        expected = tagged * solids + (spurious * MANY if spurious else empty)
        assert sum(map(len, found)) == pytest.approx(expected, rel=0.02)
        wrong = [
            set(vocabulary.look_up(written)) - set(each)
            for written, each in zip(found, drawn, strict=True)
        ]
        law = zipf_law(options)
        outside = np.mean([1 - sum(law[c] for c in set(each)) for each in drawn])
        assert sum(map(len, wrong)) == pytest.approx(spurious * outside * MANY, rel=0.08)


def test_every_image_has_a_tag_and_on_average_1_3(drawn: list[list[int]]) -> None:
    vocabulary = make_vocabulary("fine", [])
    tags = [draw_tags(Builtin(), i, np.array(each)) for i, each in enumerate(drawn)]
    labels = [vocabulary.look_up(each) for each in tags]
    assert min(map(len, labels)) == 1
    assert np.mean([len(each) for each in labels]) == pytest.approx(1.3, abs=0.03)


def test_a_concept_has_names_and_spellings_that_the_vocabulary_merges(
    drawn: list[list[int]],
) -> None:
    options = Builtin(tagged=1.0, spurious=0.0)
    vocabulary = make_vocabulary("fine", [])
    written: dict[int, set[str]] = {}
    for i, concepts in enumerate(drawn):
        found = draw_tags(options, i, np.array(concepts))
        assert vocabulary.look_up(found) == sorted(set(concepts))
        for tag, concept in zip(found, concepts, strict=True):
            written.setdefault(concept, set()).add(tag)
    frequent = int(zipf_law(options).argmax())
    assert len(written[frequent]) == 12  # 3 names in 4 spellings
    assert len({member for member, i in vocabulary.members.items() if i == frequent}) == 3


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_target_image_shows_a_solid_of_its_class(split: str) -> None:
    options = tiny()
    concepts = [draw_concepts(options, split, i) for i in range(72)]
    assert concepts == [[i % 36] for i in range(72)]
    scenes = draw_scenes(options, split, 0, concepts)
    rendered = render(make_world(options), scenes)
    for i, (scene, (concept,)) in enumerate(zip(scenes, concepts, strict=True)):
        hue, shape = CONCEPTS[concept]
        assert scene.objects[0].shape == shape
        pixels = rendered.images[i][:, rendered.ids[i] == 1].double().mean(1) / 255
        assert (rendered.ids[i] == 1).sum() >= 8
        angle = colorsys.rgb_to_hsv(*pixels.tolist())[0] * 360
        off = (angle - 60 * list(HUES).index(hue) + 180) % 360 - 180
        assert abs(off) < 30


def test_an_image_is_the_same_in_any_batch_and_in_any_number_of_images() -> None:
    options = tiny()
    together = make_images(options, "shards", 0, 12)
    apart = np.concatenate([make_images(options, "shards", i, i + 4) for i in (0, 4, 8)])
    assert (together == apart).all()
    more = make_images(tiny(images=80, target_train=3, per_shard=5), "shards", 0, 12)
    assert (together == more).all()
    assert not (make_images(tiny(seed=1), "shards", 0, 12)["image"] == together["image"]).all()


def test_the_sets_share_no_image() -> None:
    first = [make_images(tiny(), split, 0, 8)["image"] for split in ("shards", "train", "test")]
    found = {image.tobytes() for images in first for image in images}
    assert len(found) == 24


def test_shards_hold_the_rendered_images_beside_their_tags(folder: Path) -> None:
    records = read_records(tiny(), "shards", 40)
    paths = sorted((folder / "shards").glob("*.tar"))
    assert [path.name for path in paths] == ["000000.tar", "000001.tar", "000002.tar"]
    number = 0
    for path, count in zip(paths, (16, 16, 8), strict=True):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            assert len(names) == 2 * count
            for image, text in zip(names[::2], names[1::2], strict=True):
                assert (image, text) == (f"{number:08d}.png", f"{number:08d}.json")
                content = [tar.extractfile(name).read() for name in (image, text)]  # type: ignore
                pixels = np.asarray(Image.open(io.BytesIO(content[0]))).transpose(2, 0, 1)
                assert (pixels == records[number]["image"]).all()
                expected = draw_tags(tiny(), number, records[number]["concepts"])
                assert json.loads(content[1]) == {"tags": expected}
                number += 1


@pytest.mark.parametrize(("kind", "labels"), [("fine", 36), ("shape", 6), ("hue", 6)])
def test_vocabularies_count_the_images_of_each_label(folder: Path, kind: str, labels: int) -> None:
    vocabulary = Vocabulary.read(folder / f"vocabulary_{kind}.json")
    assert len(vocabulary) == labels
    assert len(vocabulary.members) == 3 * 36
    records = read_records(tiny(), "shards", 40)
    expected: Counter[int] = Counter()
    for i, row in enumerate(records):
        expected.update(vocabulary.look_up(draw_tags(tiny(), i, row["concepts"])))
    assert vocabulary.counts == [expected[i] for i in range(labels)]


def test_coarse_labels_are_parts_of_the_fine_ones() -> None:
    fine, shape, hue = (make_vocabulary(kind, []) for kind in VOCABULARIES)
    for member, label in fine.members.items():
        parts = (hue.names[hue.members[member]], shape.names[shape.members[member]])
        assert parts == CONCEPTS[label]


def test_the_target_has_a_folder_for_each_class(folder: Path) -> None:
    records = read_records(tiny(), "test", 72)
    for split, count in (("train", 1), ("test", 2)):
        names = sorted(path.name for path in (folder / "target" / split).iterdir())
        assert names == sorted("_".join(concept) for concept in CONCEPTS)
        for number, concept in enumerate(CONCEPTS):
            files = sorted((folder / "target" / split / "_".join(concept)).iterdir())
            assert len(files) == count
            if split == "test":
                pixels = np.asarray(Image.open(files[1])).transpose(2, 0, 1)
                assert (pixels == records[36 + number]["image"]).all()


def test_processes_that_want_the_folder_at_once_get_one() -> None:
    options = tiny(seed=5)
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(write_builtin, [options] * 3))
    assert len(set(folders)) == 1
    left = [path for path in folders[0].parent.iterdir() if path.name.startswith(".")]
    assert left == []
    assert write_builtin(tiny(seed=6)) != folders[0]


def test_a_cache_without_room_is_named(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("FAIR_VISION_CACHE", str(blocked))
    with pytest.raises(OSError, match="set FAIR_VISION_CACHE"):
        write_builtin(tiny())


@pytest.mark.parametrize(
    ("name", "value"),
    [("images", 0), ("per_shard", 0), ("target_test", 10**7), ("two", 1.5), ("zipf", -1.0)],
)
def test_options_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"data.builtin.{name}="):
        tiny(**{name: value})
