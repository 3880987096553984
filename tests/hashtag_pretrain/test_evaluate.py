"""Scores on held-out hashtags against loops over them, and the files that an evaluation writes."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data import _draw_seeded
from hashtag_pretrain import config, data
from hashtag_pretrain.config import Config, Sampling, TargetData
from hashtag_pretrain.evaluate import (
    Scores,
    average_precision,
    columns,
    count_seen,
    evaluate,
    report_tags,
    score_hashtags,
)
from hashtag_pretrain.model import build_model
from hashtag_pretrain.targets.probe import Probe

from .runs import NAMES, run, saved, settings, shards, write_root
from .small import image_bytes, make_vocabulary


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_root(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory) -> tuple[Config, dict[str, float]]:
    """A run of two steps, with its metrics."""
    cfg = settings(root, tmp_path_factory.mktemp("run"), images=16)
    return cfg, run(cfg)


def model_of(cfg: Config) -> torch.nn.Module:
    model = build_model(cfg.network, len(NAMES))
    model.load_state_dict(saved(cfg)["model"])
    return model.eval()


def test_hits_are_those_of_a_loop_over_the_held_out_images(trained):
    cfg, metrics = trained
    model, found = model_of(cfg), data.build(cfg)
    hits: dict[int, list[bool]] = {1: [], 5: []}
    recalls = []
    for place in range(len(found.held_out)):
        image, labels, _ = _draw_seeded(found.held_out, place, 0)
        with torch.no_grad():
            scores = model((image[None].float() / 255 - 0.5) / 0.25)[0]
        order = sorted(range(len(NAMES)), key=lambda label: -scores[label])
        for k, each in hits.items():
            each.append(any(label in labels for label in order[:k]))
        recalls.append(sum(label in order[:5] for label in labels) / len(labels))
    assert len(hits[1]) > 5
    assert 0 < np.mean(hits[1]) < 1
    assert 0 < np.mean(recalls) < np.mean(hits[5])
    wanted = {f"hit{k}": 100 * np.mean(each) for k, each in hits.items()}
    assert metrics == pytest.approx(wanted | {"recall5": 100 * np.mean(recalls)})


def test_batches_of_any_size_and_a_cap_on_the_logits_leave_the_hits_alone(trained, monkeypatch):
    cfg, metrics = trained
    model, found = model_of(cfg), data.build(cfg)
    monkeypatch.setattr("hashtag_pretrain.evaluate._SCORES", 5 * len(NAMES))
    for size, kept in ((3, 6), (64, len(found.held_out))):
        scores = score_hashtags(model, replace(cfg, test=config.Test(batch_size=size)), found)
        assert scores.metrics() == pytest.approx(metrics)
        assert len(scores.logits) == len(scores.tags) == kept
        assert [each.tolist() for each in scores.tags] == [
            found.tagged.labels(int(index)).tolist() for index in found.held_out.order[:kept]
        ]


def scores_of(logits: list[list[float]], tags: list[list[int]]) -> Scores:
    return Scores(
        torch.zeros(0, 2),
        torch.zeros(0),
        [np.array(each, np.int64) for each in tags],
        torch.tensor(logits),
    )


def test_average_precision_is_the_mean_precision_at_the_positives():
    """Ranks of tag 0: 1 and 3 of 4, (1/1 + 2/3) / 2; of tag 1: 2; tag 2 has no image."""
    logits = [[0.9, 0.1, 0.0], [0.2, 0.3, 0.0], [0.8, 0.5, 0.0], [0.7, 0.2, 0.0]]
    found = average_precision(scores_of(logits, [[0], [1], [], [0]]))
    assert found[:2] == pytest.approx([100 * (1 + 2 / 3) / 2, 50])
    assert math.isnan(found[2])


def test_an_image_that_ties_with_another_comes_last():
    logits = [[0.5], [0.5], [0.5], [0.1]]
    for positive in range(3):
        tags = [[0] if i == positive else [] for i in range(4)]
        assert average_precision(scores_of(logits, tags)) == pytest.approx([100 / 3])
    both = average_precision(scores_of(logits, [[0], [], [0], []]))
    assert both == pytest.approx([100 * (1 / 2 + 2 / 3) / 2])


def test_average_precision_is_that_of_a_loop_over_thresholds():
    """Without ties: the mean over the positives of the precision of all images scored as high."""
    rng = np.random.default_rng(0)
    truth, logits = rng.random((50, 4)) < 0.3, rng.normal(size=(50, 4))
    tags = [np.flatnonzero(row).tolist() for row in truth]
    wanted = []
    for label in range(4):
        own = logits[truth[:, label], label]
        wanted.append(np.mean([truth[logits[:, label] >= t, label].mean() for t in own]))
    found = average_precision(scores_of(logits.tolist(), tags))
    assert found == pytest.approx([100 * value for value in wanted], rel=1e-6)


def test_tags_that_are_seen_are_counted_as_the_stream_draws_them(root):
    cfg = settings(root, "", sampling=Sampling("uniform"))
    found = data.build(cfg)
    stream, counts, images = data.stream_of(found, cfg), np.zeros(len(NAMES)), 0
    for step in range(math.ceil(found.length / 8)):
        for _, index in stream.share(step, 0, 1):
            images += 1
            for label in found.tagged.labels(index):
                counts[label] += 1
    assert count_seen(cfg, found) == pytest.approx(counts / images)
    few = [found.tagged.labels(index) for _, index in stream.share(0, 0, 1)]
    wanted = [sum(label in labels for labels in few) / 8 for label in range(len(NAMES))]
    assert count_seen(cfg, found, images=8) == pytest.approx(wanted)


def test_an_evaluation_leaves_a_row_for_each_tag_and_figures(trained):
    cfg, _ = trained
    found, folder = data.build(cfg), Path(cfg.output_dir)
    with (folder / "tags.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["tag", "images", "frequency", "factor", "seen", "AP"]
    assert [row["tag"] for row in rows] == list(NAMES)
    report = report_tags(cfg, found, score_hashtags(model_of(cfg), cfg, found))
    for row, known, count, factor in zip(
        rows, report, found.tagged.counts, found.factors, strict=True
    ):
        assert int(row["images"]) == count
        assert float(row["frequency"]) == pytest.approx(count / found.tagged.images)
        assert float(row["factor"]) == pytest.approx(factor)
        for name in ("seen", "AP"):
            assert float(row[name]) == pytest.approx(known[name], nan_ok=True)
    assert {"tags.png", "predictions.png"} <= {path.name for path in folder.iterdir()}


def write_target(root: Path) -> Path:
    for split, count in (("train", 4), ("test", 2)):
        for kind in range(2):
            (root / split / f"kind{kind}").mkdir(parents=True)
            for i in range(count):
                path = root / split / f"kind{kind}" / f"{i}.png"
                path.write_bytes(image_bytes(10 * kind + i, side=16))
    return root


def test_without_pretraining_the_random_trunk_is_probed_and_a_result_left(root, tmp_path):
    target = TargetData("folder", str(write_target(tmp_path / "target")))
    cfg = settings(
        root,
        tmp_path / "run",
        images=-1,
        target=target,
        protocols=["probe"],
        probe=Probe(size=16, resize=16, held_out=0.5, decays=[0.001]),
    )
    metrics = run(cfg)
    assert metrics.keys() == {"hit1", "hit5", "recall5", "probe", "probe5"}
    assert columns(cfg) == ("probe",)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"result.json", "tags.csv", "probe.csv", "predictions.png"} <= names
    assert not [name for name in names if name.startswith("checkpoint")]
    assert '"steps": 0' in (tmp_path / "run" / "result.json").read_text()


def test_a_run_is_evaluated_alone_from_its_folder_and_as_init(trained, tmp_path):
    cfg, metrics = trained
    assert run(replace(cfg, only_evaluate=True)) == metrics
    alone = replace(cfg, only_evaluate=True, init=cfg.output_dir, output_dir=str(tmp_path))
    assert run(alone) == metrics
    assert not list(tmp_path.glob("checkpoint-*"))
    with pytest.raises(ValueError, match="holds no checkpoint"):
        run(replace(cfg, only_evaluate=True, output_dir=str(tmp_path / "empty")))


def test_weights_of_another_vocabulary_give_the_trunk_and_are_not_evaluated(trained, tmp_path):
    """As many tags in another order: only the digest tells."""
    cfg, _ = trained
    make_vocabulary(*reversed(NAMES)).write(tmp_path / "other.json")
    other = replace(
        cfg,
        init=cfg.output_dir,
        images=-1,
        output_dir=str(tmp_path / "run"),
        data=shards(Path(cfg.data.root), vocabulary=str(tmp_path / "other.json")),
    )
    from hashtag_pretrain.train import build

    state, known = build(other, data.build(other)).state_dict(), saved(cfg)["model"]
    assert torch.equal(state["conv1.weight"], known["conv1.weight"])
    assert not torch.equal(state["fc.weight"], known["fc.weight"])
    with pytest.raises(ValueError, match="another vocabulary"):
        run(replace(other, only_evaluate=True))


def test_nothing_held_out_is_no_score(root, tmp_path):
    cfg = settings(root, tmp_path, data=shards(root, held_out=0.0))
    model = build_model(cfg.network, len(NAMES))
    metrics = evaluate(model, cfg, data.build(cfg))
    assert all(math.isnan(value) for value in metrics.values())
    assert "nan" in (tmp_path / "tags.csv").read_text()
    assert not (tmp_path / "predictions.png").exists()
