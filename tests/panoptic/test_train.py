"""Training and evaluation: the run's folder, resuming, sources, real photographs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.coco.evaluate import evaluate as coco_evaluate
from common.run import checkpoint
from panoptic import data, evaluate, model
from panoptic.config import Config, Data, Merge, Model, Predict, Scenes
from panoptic.evaluate_files import evaluate_files
from panoptic.files.categories import Category
from panoptic.files.predictions import Files
from panoptic.metric.parts import InstanceQuality, annotation, mean_iou
from panoptic.train import COLUMNS, build, poly, seed_of, train

# Of pycocotools under NumPy 2, in each mask that it decodes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TINY = Scenes(train_images=12, val_images=6)
MINI = Model(name="separate", backbone="mini", norm="gn", freeze_at=0, semantic_norm="gn")


def settings(folder: Path, **options) -> Config:
    """A run of seconds on the built-in images."""
    small = {
        "steps": 4,
        "batch_size": 4,
        "warmup": 1,
        "save_every": 2,
        "log_every": 1,
        "data": Data(
            name="scenes", root="", resize=False, aspect_groups=False, workers=0, scenes=TINY
        ),
        "model": MINI,
        "merge": Merge(confidence=0.0, scale_stuff_area=True),
        "predict": Predict(batch_size=4, pictures=2),
    }
    return Config(**small | options, output_dir=str(folder))


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / f"checkpoint-{step:08d}.pt")["parts"]["model"]


def finished(cfg: Config) -> dict[str, float]:
    """Train, and give the folder back, as a process does when it ends."""
    try:
        return train(cfg)
    finally:
        checkpoint.unlock(cfg.output_dir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run that also saves its predictions, its metrics and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    wanted = Predict(
        batch_size=4,
        pictures=2,
        also=["separate", "components", "oracle_semantic", "oracle_instances"],
        ap=True,
        miou=True,
        per_class=True,
        save=True,
    )
    return folder, finished(settings(folder, predict=wanted))


def test_a_run_leaves_figures_of_all_things_and_stuff_and_images(whole):
    folder, metrics = whole
    assert set(COLUMNS) <= metrics.keys()
    assert {"AP", "AP_no", "mIoU", "PQ/cube", "PQ/floor", "components_PQ_th"} <= metrics.keys()
    names = {path.name for path in folder.iterdir()}
    assert {"result.json", "run.json", "metrics.jsonl", "curves.png"} <= names
    with Image.open(folder / "predictions.png") as image:
        assert image.width > 4 * 96
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"objectness", "mask", "semantic", "lr"} <= losses[0].keys()


def test_saved_predictions_score_the_same_from_files(whole, tmp_path):
    folder, metrics = whole
    from panoptic.files.coco import write_panoptic

    validation = data.build(settings(tmp_path).data, "val")
    truth = tmp_path / "truth.json"
    numbers = validation.source.image_ids
    write_panoptic(
        truth,
        categories=validation.categories,
        images=[{"id": n, "file_name": f"{n}.jpg", "height": 64, "width": 96} for n in numbers],
        results=[
            (n, ids.numpy(), segments)
            for n, (_, ids, segments) in zip(
                numbers, map(validation.source.__getitem__, range(len(validation))), strict=True
            )
        ],
    )
    scores = evaluate_files(truth, folder / "predictions.json").percent()
    assert scores == pytest.approx({name: metrics[name] for name in COLUMNS}, abs=1e-9)


def test_things_of_the_merge_score_as_the_instances_alone(whole):
    _, metrics = whole
    for name in ("PQ_th", "SQ_th", "RQ_th"):
        assert metrics[name] == metrics[f"separate_{name}"]  # H4: exactly, Sec. 7
    assert metrics["separate_PQ"] != metrics["separate_PQ"]  # nan: there is no one map


def test_resuming_gives_the_same_weights_as_never_stopping(whole, tmp_path):
    folder, _ = whole
    finished(settings(tmp_path, steps=4))
    cut = tmp_path / "cut"
    cut.mkdir()
    name = "checkpoint-00000002.pt"
    (cut / name).write_bytes((tmp_path / name).read_bytes())
    finished(settings(cut))
    a, b, c = weights(tmp_path, 4), weights(cut, 4), weights(folder, 4)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) and torch.equal(a[key], c[key]) for key in a)


def test_a_run_made_longer_has_the_rates_of_the_longer_one_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("panoptic.train.evaluate", lambda *_, **__: dict.fromkeys(COLUMNS, 0.0))
    for steps in (2, 6):  # drops at 1 and 2, then at 4 and 5
        finished(settings(tmp_path, steps=steps, warmup=0))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["lr"] for line in lines if "lr" in line}
    factors = {1: 1, 2: 0.1, 3: 1, 4: 1, 5: 0.1, 6: 0.01}
    assert rates == pytest.approx({step: 0.02 * factor for step, factor in factors.items()})


def test_a_finished_run_started_again_only_evaluates(whole, capsys):
    folder, metrics = whole
    before = weights(folder, 4)
    again = finished(settings(folder))
    assert all(torch.equal(before[key], value) for key, value in weights(folder, 4).items())
    assert {name: again[name] for name in COLUMNS} == {name: metrics[name] for name in COLUMNS}
    printed = capsys.readouterr().out
    assert "step 1/4" not in printed
    assert [line.split("|")[0].strip() for line in printed.splitlines()[2:5]] == [
        *("All", "Things", "Stuff"),
    ]


@pytest.mark.parametrize("part", ["semantic", "instance"])
def test_half_of_the_pair_is_scored_for_its_own_task(part, tmp_path):
    half = replace(MINI, part=part)
    wanted = Predict(source="separate", ap=part == "instance", miou=part == "semantic", pictures=1)
    metrics = finished(settings(tmp_path, steps=1, model=half, predict=wanted))
    known = {name for name, value in metrics.items() if value == value}
    assert ("PQ_st" in known, "PQ_th" in known) == (part == "semantic", part == "instance")


def test_two_halves_make_the_pair(tmp_path):
    for part in ("semantic", "instance"):
        cfg = settings(
            tmp_path / part,
            steps=1,
            model=replace(MINI, part=part),
            predict=Predict(source="separate", pictures=0),
        )
        finished(cfg)
    files = [str(tmp_path / part / "checkpoint-00000001.pt") for part in ("semantic", "instance")]
    pair = settings(tmp_path / "pair", init=files[0], init_also=files[1], only_evaluate=True)
    dataset = data.build(pair.data, "train", semantic="all")
    state = build(pair, dataset).state_dict()
    for part in ("semantic", "instance"):
        for name, value in weights(tmp_path / part, 1).items():
            assert torch.equal(state[name], value)


def test_panoptic_fpn_trains_and_evaluates(tmp_path):
    one = replace(MINI, name="panoptic_fpn")
    metrics = finished(settings(tmp_path, steps=2, model=one))
    assert set(COLUMNS) <= metrics.keys()


class Perfect(torch.nn.Module):
    """Knows the truth of the images that it is shown, in the order of the data set."""

    def __init__(self, dataset: data.Panoptic) -> None:
        super().__init__()
        self.dataset, self.next = dataset, 0

    def forward(self, images, targets=None, *, sizes=None):
        """The targets as predictions."""
        found = []
        for _ in images:
            _, ids, segments = self.dataset.source[self.next]
            truth = data.training_target(ids, segments, self.dataset.labels)
            classes = len(self.dataset.labels.classes)
            semantic = truth["semantic"].clamp(max=classes)
            logits = torch.nn.functional.one_hot(semantic, classes + 1)[..., :classes]
            found.append(
                {
                    "masks": truth["masks"].bool(),
                    "labels": truth["labels"],
                    "scores": torch.ones(len(truth["labels"])),
                    "semantic": logits.permute(2, 0, 1).float(),
                }
            )
            self.next += 1
        return found


@pytest.mark.parametrize("kind", ["stuff", "all"])
def test_the_truth_as_prediction_has_pq_ap_and_miou_of_100(kind, tmp_path):
    wanted = Predict(batch_size=3, ap=True, miou=True, also=["separate"], pictures=0)
    name = "separate" if kind == "all" else "panoptic_fpn"
    cfg = settings(
        tmp_path, predict=wanted, merge=Merge(stuff_area=0), model=replace(MINI, name=name)
    )
    dataset = data.build(cfg.data, "val", semantic=kind)
    metrics = evaluate.evaluate(Perfect(dataset), cfg, dataset)
    figures = {name: metrics[name] for name in (*COLUMNS, "AP", "AP_no", "mIoU", "separate_PQ_st")}
    assert figures == pytest.approx(dict.fromkeys(figures, 100.0))


def test_ap_without_overlaps_drops_the_second_hypothesis():
    truth = torch.zeros(64, 96, dtype=torch.int32)
    truth[8:40, 8:40] = 1
    first = torch.zeros(64, 96, dtype=torch.bool)
    first[8:40, 8:24] = True  # half of it: an IoU of 0.5
    masks = torch.stack([first, truth.bool()])
    quality = InstanceQuality({1: Category(1, "x", True)}, overlap=0.4)
    found = masks, torch.tensor([0.9, 0.8]), [1, 1]
    quality.add(1, found, (truth, [{"id": 1, "category_id": 1}]))
    figures = quality.compute()
    assert figures["AP"] > figures["AP_no"]
    assert figures["AP_no"] == pytest.approx(10.0)  # right at the threshold of 0.5 alone


def test_mean_iou_is_over_the_classes_that_occur():
    confusion = torch.tensor([[5, 0, 0, 0], [1, 6, 2, 0], [0, 2, 6, 0], [0, 0, 0, 0]])
    assert mean_iou(confusion) == pytest.approx(100 * (6 / 11 + 6 / 10) / 2)


def test_segments_in_cocos_detection_format_find_themselves():
    mask = np.zeros((20, 30), bool)
    mask[4:9, 6:20] = True
    entry = {"image_id": 1, **annotation(mask, {"category_id": 3})}
    truth = {
        "images": [{"id": 1, "height": 20, "width": 30}],
        "annotations": [entry | {"id": 1}],
        "categories": [{"id": 3, "name": "x"}],
    }
    assert coco_evaluate(truth, [entry | {"score": 0.5}], kind="segm")["AP"] == pytest.approx(100)
    assert entry["bbox"] == [6, 4, 14, 5]


def test_several_scales_average_probabilities(tmp_path):
    cfg = settings(tmp_path, predict=Predict(scales=[0.5, 1.0], flip=True, batch_size=2))
    dataset = data.build(cfg.data, "val", semantic="all")
    torch.manual_seed(0)
    mini = {"backbone": "mini", "norm": "gn", "freeze_at": 0, "semantic_norm": "gn"}
    options = model.Options("separate", **mini, part="semantic")
    network = model.build(options, thing_classes=6, stuff_classes=4).eval()
    image = dataset[0][0]
    with torch.no_grad():
        mean = evaluate.average_scales(network, image, (64, 96), cfg)
        mirrored = evaluate.average_scales(network, image.flip(-1), (64, 96), cfg)
        single = replace(cfg, predict=Predict())
        alone = evaluate.average_scales(network, image, (64, 96), single)
        logits = network([image])[0]["semantic"]
    torch.testing.assert_close(mean.sum(0), torch.ones(64, 96))
    torch.testing.assert_close(mirrored.flip(-1), mean)
    torch.testing.assert_close(alone, logits.softmax(0))


def test_the_poly_schedule_falls_to_zero():
    assert [poly(done, steps=100) for done in (0, 50, 100)] == [1.0, 0.5**0.9, 0.0]


def test_every_piece_of_every_step_has_a_seed_of_its_own():
    seeds = {seed_of(0, step, piece) for step in range(200) for piece in range(16)}
    assert len(seeds) == 3200


def test_real_photographs_train_and_evaluate(shared_data, tmp_path):
    photos = Data(
        root=str(shared_data / "coco_panoptic"),
        val="train",
        short_side=[64],
        test_short_side=64,
        workers=0,
        aspect_groups=False,
        limit=8,
        val_limit=3,
    )
    cfg = settings(
        tmp_path,
        steps=2,
        batch_size=2,
        data=photos,
        model=replace(MINI, name="panoptic_fpn"),
        predict=Predict(batch_size=1, pictures=1, save=True),
        merge=Merge(),
    )
    metrics = finished(cfg)
    assert set(COLUMNS) <= metrics.keys()
    saved = json.loads((tmp_path / "predictions.json").read_text())
    sizes = [(image["height"], image["width"]) for image in saved["images"]]
    assert len(saved["annotations"]) == 3
    for entry, (height, width) in zip(saved["annotations"], sizes, strict=True):
        with Image.open(tmp_path / "predictions" / entry["file_name"]) as image:
            assert image.size == (width, height)


def test_a_prediction_is_never_written_out_of_its_folder(tmp_path):
    ids = np.ones((2, 3), np.int32)
    with pytest.raises(ValueError, match=r"image '../a': file_name '../a\.png' leads out of"):
        Files(tmp_path / "x.json").add("../a", ids, [{"id": 1, "category_id": 1}])
