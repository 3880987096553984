"""What is trained on and how often, counted again image by image; damaged and missing files."""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import BadExample, _draw_seeded
from common.sampling import mix
from hashtag_pretrain import config, data
from hashtag_pretrain.config import Config, Sampling
from hashtag_pretrain.data import HELD_OUT, TRAINED, UNUSED
from hashtag_pretrain.inputs.augment import Augment, training_image
from hashtag_pretrain.shards.index import hash_key
from hashtag_pretrain.shards.subsets import held_out, nested
from hashtag_pretrain.words.vocabulary import Vocabulary

from .runs import NAMES, settings, shards, write_root
from .small import image_bytes, make_vocabulary, write_tar
from .small_target import write_images

COUNT = 60
EXCLUDED = [f"{i:06d}" for i in (3, 17, 40)]
TAGS = [[*NAMES[i % 6 : i % 6 + 1 + i % 3], "Cat_s"][: 1 + i % 4] for i in range(COUNT)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Sixty images; some have the word `unknown` alone, none has the label `yak`."""
    folder = tmp_path_factory.mktemp("root")
    tags = [["unknown"] if i % 13 == 5 else each for i, each in enumerate(TAGS)]
    files = [
        write_tar(
            folder / "shards" / f"{shard:06d}.tar",
            [
                part
                for i in range(10 * shard, 10 * shard + 10)
                for part in (
                    (f"{i:06d}.png", image_bytes(i, side=16)),
                    (f"{i:06d}.json", json.dumps({"tags": tags[i]}).encode()),
                )
            ],
        )
        for shard in range(6)
    ]
    assert len(files) == 6
    make_vocabulary(("cat", "cats"), *NAMES[1:], "yak").write(folder / "vocabulary.json")
    (folder / "exclude.txt").write_bytes("\r\n".join([*EXCLUDED, "", "no such key"]).encode())
    return folder


def options(root: Path, **changed: Any) -> Config:
    return settings(root, "unused", data=shards(root, **changed))


def labels_by_hand(root: Path) -> list[list[int]]:
    vocabulary = Vocabulary.read(root / "vocabulary.json")
    tags = [["unknown"] if i % 13 == 5 else each for i, each in enumerate(TAGS)]
    return [vocabulary.look_up(each) for each in tags]


def roles_by_hand(root: Path, share: float) -> list[int]:
    hashes = np.array([hash_key(f"{i:06d}") for i in range(COUNT)], np.uint64)
    tested, kept = held_out(hashes, 0.2), nested(hashes, share)
    roles = []
    for i, labels in enumerate(labels_by_hand(root)):
        role = HELD_OUT if tested[i] else TRAINED if kept[i] else UNUSED
        roles.append(UNUSED if not labels or f"{i:06d}" in EXCLUDED else role)
    return roles


def roles_of(found: data.Tagged) -> list[int]:
    return np.concatenate([found.roles(shard) for shard in range(6)]).tolist()


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_roles_counts_and_frequencies_are_those_of_a_loop_over_the_images(root, share):
    found = data.build(options(root, share=share, exclude="exclude.txt")).tagged
    roles, labels = roles_by_hand(root, share), labels_by_hand(root)
    assert roles_of(found) == roles
    assert set(roles) == {UNUSED, TRAINED, HELD_OUT}
    trained = [i for i, role in enumerate(roles) if role == TRAINED]
    counts = [sum(label in labels[i] for i in trained) for label in range(7)]
    assert found.counts.tolist() == counts
    assert counts[6] == 0  # no image has the label: no division by it
    assert found.images == len(trained)
    assert found.frequencies() == pytest.approx([count / len(trained) for count in counts])
    assert found.dropped == sum(not each for each in labels) == 5
    assert found.listed == dict.fromkeys(EXCLUDED, 1)
    assert [found.labels(i).tolist() for i in range(COUNT)] == labels
    assert found.all_with(HELD_OUT).tolist() == [i for i, r in enumerate(roles) if r == HELD_OUT]


def drawn(found: data.Hashtags, cfg: Config) -> set[int]:
    """The images of three epochs."""
    stream = data.stream_of(found, cfg)
    steps = range(3 * stream.steps_per_epoch)
    return {index for step in steps for _, index in stream.share(step, 0, 1)}


def test_held_out_excluded_and_untagged_images_are_never_drawn_and_all_others_are(root):
    cfg = options(root, exclude="exclude.txt", share=0.7)
    found = data.build(cfg)
    roles = roles_by_hand(root, 0.7)
    assert drawn(found, cfg) == {i for i, role in enumerate(roles) if role == TRAINED}
    assert found.held_out.order is not None
    assert found.held_out.order.tolist() == [i for i, r in enumerate(roles) if r == HELD_OUT]
    few = data.build(replace(cfg, test=config.Test(images=2)))
    assert len(few.held_out) == 2


def test_smaller_shares_lie_in_larger_ones_beside_the_same_held_out_images(root):
    made = [data.build(options(root, share=share)).tagged for share in (0.3, 0.6, 1.0)]
    small, middle, whole = (set(each.all_with(TRAINED).tolist()) for each in made)
    assert small < middle < whole
    assert len({tuple(each.all_with(HELD_OUT).tolist()) for each in made}) == 1


def test_noise_is_in_the_trained_images_alone_and_is_counted(root):
    plain = data.build(options(root)).tagged
    found = data.build(options(root, noise=0.6, noise_seed=1)).tagged
    assert roles_of(found) == roles_of(plain)
    changed = [i for i in range(COUNT) if found.labels(i).tolist() != plain.labels(i).tolist()]
    assert changed
    assert set(changed) <= set(plain.all_with(TRAINED).tolist())
    trained = plain.all_with(TRAINED).tolist()
    counts = [sum(label in found.labels(i) for i in trained) for label in range(7)]
    assert found.counts.tolist() == counts
    assert counts[6] == 0  # a draw is of the tags that there are
    again = data.build(options(root, noise=0.6, noise_seed=1)).tagged
    assert all(np.array_equal(again.labels(i), found.labels(i)) for i in range(COUNT))
    other = data.build(options(root, noise=0.6, noise_seed=2)).tagged
    assert any(not np.array_equal(other.labels(i), found.labels(i)) for i in trained)


def factors_by_hand(found: data.Tagged, t: float, rule: str, most: float) -> list[float]:
    """r(I) of every image, 0 for those that are not trained on."""
    factors = []
    for i, role in enumerate(roles_of(found)):
        ratios = [t / found.frequencies()[label] for label in found.labels(i)]
        shaped = [x**0.5 if rule == "square_root" else x for x in ratios]
        own = min(most, max([1.0, *shaped])) if rule != "natural" else 1.0
        factors.append(own if role == TRAINED else 0.0)
    return factors


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling("natural"),
        Sampling("square_root"),
        Sampling("uniform", most=3.0),
        Sampling("square_root", threshold="0.25"),
    ],
    ids=lambda each: f"{each.rule}, {each.threshold}, {each.most:g}",
)
def test_factors_follow_the_rarest_tag(root, sampling):
    cfg = replace(options(root), sampling=sampling)
    found = data.build(cfg)
    frequencies = found.tagged.frequencies()
    t = frequencies.max() if sampling.threshold == "max" else float(sampling.threshold)
    wanted = factors_by_hand(found.tagged, t, sampling.rule, sampling.most)
    stream = data.stream_of(found, cfg)
    made = [value for shard in range(6) for value in stream._factors(shard)]
    assert made == pytest.approx(wanted)
    assert found.totals == pytest.approx(np.reshape(wanted, (6, 10)).sum(1))
    assert found.length == pytest.approx(sum(wanted))


@pytest.mark.parametrize("rule", ["square_root", "uniform"])
@pytest.mark.parametrize("most", [1000.0, 4.0])
def test_an_epoch_has_the_length_that_is_asked_for(root, rule, most):
    for noise in (0.0, 0.3):
        cfg = options(root, noise=noise)
        cfg = replace(cfg, sampling=Sampling(rule, length=2.5, most=most))
        found = data.build(cfg)
        assert found.length == pytest.approx(2.5 * found.tagged.images, rel=1e-3)
        assert found.factors.max() <= most


def test_images_of_one_tag_each_are_seen_equally_often_with_uniform_sampling(tmp_path):
    """Natural sampling keeps the frequencies; the tags of an epoch are counted as drawn."""
    tags = [[NAMES[0 if i % 8 else i // 8 % 4]] for i in range(160)]
    write_root(tmp_path)
    for path in (tmp_path / "shards").iterdir():
        path.unlink()
    write_shard(tmp_path, tags)
    cfg = settings(
        tmp_path,
        "",
        data=shards(tmp_path, held_out=0.0),
        sampling=Sampling("uniform"),
        batch_size=4,
    )
    found = data.build(cfg)
    stream = data.stream_of(found, cfg)
    seen = np.zeros(6)
    for step in range(stream.steps_per_epoch):
        for _, index in stream.share(step, 0, 1):
            seen[found.tagged.labels(index)] += 1
    assert seen[:4] == pytest.approx(np.full(4, seen[:4].mean()), rel=0.01)
    assert seen[4:].sum() == 0


def write_shard(root: Path, tags: Sequence[Sequence[str]], **damage: bytes) -> None:
    """One shard; damage: bytes in the place of an image by its key."""
    files = []
    for i, each in enumerate(tags):
        key = f"{i:06d}"
        files.append((f"{key}.png", damage.get(f"key{key}", image_bytes(i, side=16))))
        files.append((f"{key}.json", json.dumps({"tags": list(each)}).encode()))
    write_tar(root / "shards" / "000000.tar", files)


def test_the_digest_tells_other_data_and_no_other_place(root, tmp_path):
    cfg = options(root)
    known = data.build(cfg).digest()
    assert data.build(cfg).digest() == known
    away = tmp_path / "away"
    away.symlink_to(root)
    assert data.build(options(away, workers=2)).digest() == known
    others = [options(root, share=0.5), options(root, exclude="exclude.txt")]
    others.append(replace(cfg, sampling=Sampling("uniform")))
    digests = {data.build(each).digest() for each in others}
    assert len({known, *digests}) == 4
    made = []
    for seed in (0, 1):  # other pixels under the same keys and tags
        file = ("0.png", image_bytes(seed)), ("0.json", b'{"tags": ["cat"]}')
        write_tar(tmp_path / str(seed) / "shards" / "0.tar", file)
        make_vocabulary(*NAMES).write(tmp_path / str(seed) / "vocabulary.json")
        made.append(data.build(options(tmp_path / str(seed), held_out=0.0)).digest())
    assert made[0] != made[1]
    make_vocabulary(*NAMES).write(tmp_path / "other.json")
    assert data.build(options(root, vocabulary=str(tmp_path / "other.json"))).digest() != known


def test_a_run_says_what_it_trains_on(root):
    cfg = options(root, exclude="exclude.txt")
    found = data.build(cfg)
    said = found.describe(cfg, 24)
    trained = roles_by_hand(root, 1.0).count(TRAINED)
    assert f"{trained} images to train on" in said
    assert "5 without a tag of the vocabulary's 7, 3 in exclude.txt" in said
    assert "exclude.txt: no image has 1 of its keys, such as no such key" in said
    assert "several images" not in said
    assert f"an epoch has {found.length:.0f} images" in said
    assert f"{24 / found.length:.2f} epochs" in said


def test_a_key_of_several_images_that_is_not_to_be_trained_on_is_told(tmp_path):
    for name in "ab":
        file = ("1.png", image_bytes(0, side=16)), ("1.json", b'{"tags": ["cat"]}')
        own = (f"{name}.png", image_bytes(1, side=16)), (f"{name}.json", b'{"tags": ["dog"]}')
        write_tar(tmp_path / "shards" / f"{name}.tar", [*file, *own])
    make_vocabulary(*NAMES).write(tmp_path / "vocabulary.json")
    (tmp_path / "list.txt").write_text("1\na\n")
    cfg = settings(tmp_path, "", data=shards(tmp_path, exclude="list.txt", held_out=0.0))
    said = data.build(cfg).describe(cfg, 24)
    assert "1 images to train on" in said
    assert ", 3 in list.txt" in said
    assert "list.txt: 1 of its keys, such as 1, are of several images, which are all left" in said


def test_the_window_of_the_options_is_the_streams(root):
    mixed = []
    for window in (1, 3):
        cfg = options(root, window=window)
        stream = data.stream_of(data.build(cfg), cfg)
        mixed.append({index // 10 for _, index in stream.share(0, 0, 1)})
    assert len(mixed[0]) == 1 < len(mixed[1])  # of a batch of 8 from shards of 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pieces_come_in_pinned_memory(root):
    cfg = options(root)
    ((piece, _),) = data.batches(data.build(cfg), cfg, 0, 1)
    assert piece.images.is_pinned()
    assert piece.tags.is_pinned()


def test_batches_are_the_streams_images_under_their_own_seeds(root):
    cfg = options(root)
    found = data.build(cfg)
    keys = data.stream_of(found, cfg).share(1, 0, 1)
    (pieces,) = [list(step) for step in data.batches(found, cfg, 1, 2)]
    assert [len(piece.images) for piece in pieces] == [4, 4]
    images, files = (
        [image for p in pieces for image in p.images],
        [f for p in pieces for f in p.files],
    )
    labels = [row[row >= 0].tolist() for p in pieces for row in p.tags]
    for (draw, index), image, own, file in zip(keys, images, labels, files, strict=True):
        one = replace(found.training, transform=plain)
        expected, _, name = _draw_seeded(one, index, mix(1, cfg.seed, draw, index))
        assert torch.equal(image, expected)
        assert own == found.tagged.labels(index).tolist()
        assert file == name == f"{index // 10:06d}.tar: {index:06d}"
    assert {p.tags.dtype for p in pieces} == {torch.int64}
    assert not list(data.batches(found, cfg, 3, 3))  # of an evaluation


def plain(image: bytes, name: str) -> torch.Tensor:
    return training_image(image, Augment(size=16, resize=16, crop="shift"), name)


def test_all_tags_of_an_image_are_kept(tmp_path):
    names = [f"tag{k}" for k in range(40)]
    write_shard(tmp_path, [[names[0]], names, names[:2], names[:1]])
    make_vocabulary(*names).write(tmp_path / "vocabulary.json")
    cfg = settings(tmp_path, "", data=shards(tmp_path, held_out=0.0), batch_size=4)
    found = data.build(replace(cfg, sampling=Sampling("natural")))
    (step,) = data.batches(found, replace(cfg, sampling=Sampling("natural")), 0, 1)
    (piece,) = step
    assert piece.tags.shape == (4, 40)
    assert sorted((piece.tags >= 0).sum(1).tolist()) == [1, 1, 2, 40]


def test_pieces_that_cannot_be_shared_out_name_what_can(root, monkeypatch):
    assert data.pieces_of(options(root)) == 2
    monkeypatch.setattr("common.dist.world_size", lambda: 2)
    cfg = options(root)
    assert data.pieces_of(cfg) == 1
    with pytest.raises(ValueError, match=r"of 16, .* give per_gpu=4 or batch_size=16\."):
        data.pieces_of(replace(cfg, per_gpu=8))
    monkeypatch.setattr("common.dist.world_size", lambda: 3)
    with pytest.raises(ValueError, match=r"3 processes: give batch_size=12\."):
        data.pieces_of(cfg)


@pytest.mark.parametrize(
    ("processes", "per_gpu", "said"),
    [
        (1, 4, "batch_size=52 per_gpu=4"),
        (2, 8, "batch_size=48 per_gpu=8"),
        (1, 64, "=55 per_gpu=55"),
    ],
)
def test_a_batch_of_more_images_than_an_epoch_has_stops_with_one_that_can_be_shared_out(
    root, monkeypatch, processes, per_gpu, said
):
    cfg = replace(options(root, held_out=0.0), batch_size=64, per_gpu=per_gpu)
    cfg = replace(cfg, sampling=Sampling("natural"))
    found = data.build(cfg)
    monkeypatch.setattr("common.dist.world_size", lambda: processes)
    with pytest.raises(ValueError, match=rf"draws 55 images, .*give at most .*{said}\.") as error:
        data.stream_of(found, cfg)
    words = dict(re.findall(r"(\w+)=(\d+)", str(error.value).partition(": ")[2]))
    able = replace(cfg, **{name: int(value) for name, value in words.items()})
    assert data.pieces_of(able) >= 1
    assert data.stream_of(found, able).steps_per_epoch == 1


def test_a_target_that_a_protocol_cannot_use_stops_before_pretraining(root, tmp_path):
    target = config.TargetData("folder", str(write_images(tmp_path, train=1, test=1)))
    cfg = replace(options(root), target=target)
    with pytest.raises(ValueError, match="have no class with two"):
        data.build(replace(cfg, protocols=["probe"]))
    one = config.FineTune(lrs=[0.1], decays=[0.0], head_lrs=[1])
    with pytest.raises(ValueError, match=r"finetune\.batch_size=256 is more than the 3 training"):
        data.build(replace(cfg, protocols=["finetune"], finetune=one))
    assert data.build(replace(cfg, protocols=["probe"], probe=config.Probe(decays=[0.1]))).target


def test_what_is_missing_is_one_sentence(root, tmp_path):
    wrong = [
        (shards(tmp_path / "none"), r"data\.root=.*none does not exist: .*prepare\.py"),
        (shards(root, vocabulary="words.json"), r"/words\.json does not exist"),
        (shards(root, shards="tars"), r"/tars has no shards"),
        (shards(root, exclude="list.txt"), r"data\.exclude=list\.txt: there is no such file"),
        (shards(root, exclude=str(tmp_path / "utf16")), "utf16 is no UTF-8"),
        (
            shards(root, exclude=str(tmp_path / "others")),
            r"others: none of its 2 keys, such as a, is",
        ),
        (shards(root, vocabulary=str(tmp_path / "one.json")), r"one\.json has one label, of which"),
        (shards(root, exclude=str(tmp_path / "all")), r"none of the 60 images .* data\.exclude"),
        (shards(root, vocabulary=str(tmp_path / "o.json")), r"none of the 60 .* data\.vocabulary"),
    ]
    (tmp_path / "utf16").write_text("key", encoding="utf-16")
    (tmp_path / "all").write_text("\n".join(f"{i:06d}" for i in range(COUNT)))
    (tmp_path / "others").write_text("b\na\n")
    make_vocabulary("other", "another").write(tmp_path / "o.json")
    make_vocabulary("cat").write(tmp_path / "one.json")
    for options, sentence in wrong:
        with pytest.raises(ValueError, match=sentence) as error:
            data.build(settings(root, "", data=options))
        assert "\n" not in str(error.value)


def encode(side: int) -> bytes:
    """A JPEG without its last third, which only its decoder finds out."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()[: -len(file.getvalue()) // 3]


def test_an_image_that_cannot_be_decoded_stops_or_is_replaced_by_a_trained_one(tmp_path):
    tags = [[NAMES[i % 6]] for i in range(20)]
    write_shard(tmp_path, tags, key000004=encode(32))
    make_vocabulary(*NAMES).write(tmp_path / "vocabulary.json")

    def epoch(**changed: Any) -> list[str]:
        cfg = settings(tmp_path, "", data=shards(tmp_path, held_out=0.3, **changed), per_gpu=8)
        cfg = replace(cfg, sampling=Sampling("natural"))
        found = data.build(cfg)
        assert 4 in found.tagged.all_with(TRAINED)
        steps = data.batches(found, cfg, 0, 3)  # more than an epoch
        return [file for step in steps for piece in step for file in piece.files]

    with pytest.raises(BadExample, match=r"000000\.tar: 000004 .*set data\.bad_images=skip"):
        epoch()
    with pytest.warns(UserWarning, match=r"image 1 skipped: 000000\.tar: 000004"):
        files = epoch(bad_images="skip")
    assert len(files) == 24
    cfg = settings(tmp_path, "", data=shards(tmp_path, held_out=0.3))
    trained = data.build(cfg).tagged.all_with(TRAINED)
    assert {int(file[-6:]) for file in files} <= set(trained.tolist()) - {4}


def test_more_unreadable_images_than_may_be_skipped_stop(tmp_path):
    damage = {f"key{i:06d}": encode(32) for i in range(20)}
    write_shard(tmp_path, [[NAMES[0]]] * 40, **damage)
    make_vocabulary(*NAMES).write(tmp_path / "vocabulary.json")
    options = shards(tmp_path, held_out=0.0, bad_images="skip", bad_share=0.05)
    cfg = settings(tmp_path, "", data=options, sampling=Sampling("natural"))
    steps = data.batches(data.build(cfg), cfg, 0, 5)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(BadExample, match="of 40 images cannot be read, more than the 2"),
    ):
        [list(step) for step in steps]


def test_damaged_shards_stop_or_are_counted_and_named(tmp_path):
    """An empty image, and a shard whose end is cut off; an image without a tag is no fault."""
    tags = [[NAMES[i % 6]] for i in range(20)]
    write_shard(tmp_path, [*tags, []], key000002=b"")
    make_vocabulary(*NAMES).write(tmp_path / "vocabulary.json")
    path = tmp_path / "shards" / "000000.tar"
    path.write_bytes(path.read_bytes()[:-1024])
    with pytest.raises(ValueError, match=r"000002.*set data\.bad_images=skip"):
        data.build(settings(tmp_path, "", data=shards(tmp_path)))
    cfg = settings(tmp_path, "", data=shards(tmp_path, bad_images="skip", bad_share=0.2))
    found = data.build(cfg)
    assert len(found.tagged.shards) in (19, 20)
    assert "000002" in found.describe(cfg, 8)
    strict = settings(tmp_path, "", data=shards(tmp_path, bad_images="skip", bad_share=1e-9))
    damaged = sum(each.damaged for each in found.tagged.shards.summaries)
    if damaged > 1:
        with pytest.raises(ValueError, match=f"{damaged} damaged files .* more than the 1"):
            data.build(strict)


def test_a_held_out_image_that_cannot_be_read_is_passed_over_only_where_asked(tmp_path):
    write_shard(tmp_path, [[NAMES[0]]] * 20, **{f"key{i:06d}": encode(32) for i in range(1)})
    make_vocabulary(*NAMES).write(tmp_path / "vocabulary.json")
    for policy in ("raise", "skip"):
        options = shards(tmp_path, bad_images=policy)
        cfg = settings(tmp_path, "", data=options)
        found = data.build(cfg)
        found.held_out.order = np.array([0, 5, 6])
        if policy == "raise":
            with pytest.raises(BadExample, match=r"000000\.tar: 000000"):
                list(data.held_out_batches(found, cfg))
        else:
            with pytest.warns(UserWarning, match="skipped"):
                (piece,) = data.held_out_batches(found, cfg)
            assert len(piece.files) == 3
            assert not any(file.endswith("000000") for file in piece.files)
