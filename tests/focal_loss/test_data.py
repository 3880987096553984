"""The focal loss project's data, evaluation, figure and tables."""

import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

import focal_loss
from common import draw
from common.config import to_dataclass
from common.errors import UserError
from common.tables.plan import compose_rows
from focal_loss import analyse, data, train
from focal_loss.config import Config
from focal_loss.evaluate import contact_sheet, detect, evaluate
from focal_loss.model import Architecture, RetinaNet
from focal_loss.tables import TABLES

FOLDER = Path(focal_loss.__file__).parent


def settings(*words: str) -> Config:
    """What `python train.py WORDS` would train."""
    ConfigStore.instance().store("schema", Config)  # other tests keep theirs under this name
    with initialize_config_dir(str(FOLDER / "conf"), version_base="1.3"):
        return to_dataclass(compose("config", [*words, "output_dir=unused"]))


@pytest.fixture(scope="module")
def smoke() -> Config:
    return settings("experiment=smoke")


@pytest.mark.parametrize(
    "name", sorted(p.stem for p in (FOLDER / "conf/experiment").glob("*.yaml"))
)
def test_every_experiment_composes_into_a_model_and_a_loss(name):
    words = [f"experiment={name}"]
    words += ["data=coco", "data.root=x"] if name == "paper" else []
    cfg = settings(*words)
    from focal_loss.criterion import DetectionLoss

    DetectionLoss(**asdict(cfg.loss))
    assert cfg.steps > 0


def test_every_row_of_every_table_composes_in_both_scales():
    rows = list(compose_rows(TABLES))
    assert {label.split()[1].rstrip(":") for label, _ in rows} == {"mini", "paper"}
    assert len(rows) == 2 * sum(len(table.rows) for table in TABLES)
    from focal_loss.criterion import DetectionLoss

    for _, overrides in rows:
        root = ["data.root=x"] if "data=coco" in overrides else []
        DetectionLoss(**asdict(settings(*overrides, *root).loss))


def test_the_defaults_are_the_paper():
    cfg = settings("experiment=paper", "data=coco", "data.root=x")
    assert (cfg.steps, cfg.batch_size, cfg.lr) == (90_000, 16, 0.01)
    assert [round(share * cfg.steps) for share in cfg.milestones] == [60_000, 80_000]
    assert (cfg.momentum, cfg.weight_decay) == (0.9, 1e-4)
    assert (cfg.loss.gamma, cfg.loss.alpha, cfg.model.prior) == (2, 0.25, 0.01)
    assert (cfg.data.short_side, cfg.data.long_side, cfg.data.flip) == ([600], 1000, 0.5)
    assert (cfg.test.score, cfg.test.topk, cfg.test.nms) == (0.05, 1000, 0.5)


@pytest.mark.parametrize(
    "word",
    [
        *("test.nms_kind=x", "test.evaluator=foo", "test.evaluator=faster", "test.nms=-1"),
        *("test.score=2", "test.topk=0", "test.detections=0", "test.batch_size=0"),
        *("test.pictures=-1", "test.short_sides=[0]", "data.limit=-2", "data.workers=-1"),
        *("data.mean=[0.5]", "data.std=[0,0,0]", "data.short_side=[]", "data.long_side=0"),
        *("data.scenes.objects=[0,0]", "data.scenes.objects=[3]", "data.scenes.val_images=0"),
        *("clip=-1", "weight_decay=-1", "momentum=2", "bias_lr=-1", "milestones=[2]", "warmup=-1"),
        *("warmup_start=2", "ema=2", "save_every=0", "log_every=0", "evaluate_every=-1"),
    ],
)
def test_a_wrong_option_is_one_sentence_with_its_name(word, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)  # as where it is not installed
    key = word.partition("=")[0]
    with pytest.raises(UserError, match=rf"^{re.escape(key)}=[^\n]*[.?]$"):
        settings("experiment=smoke", "data.resize=true", word)


def test_the_axis_of_the_demos_figure_says_which_images_were_scored(monkeypatch):
    seen = {}
    monkeypatch.setattr("common.run.versus.run_all", lambda *_, **options: seen.update(options))
    with initialize_config_dir(str(FOLDER / "conf"), version_base="1.3"):
        ConfigStore.instance().store("schema", Config)
        for images in (300, 0):
            words = ["experiment=demo", f"evaluate_images={images}", "output_dir=unused"]
            train.main(compose("config", words))
            found = (seen["curve"], seen["label"])
            label = "AP of the first 300 images"
            assert found == (("AP_first_300", label) if images else ("AP", ""))


def test_the_splits_of_the_scenes_share_no_image(smoke):
    train, val = (data.build(smoke.data, split) for split in ("train", "val"))
    assert len(train) == 16
    assert len(val) == 8
    assert not set(train.files) & set(val.files)
    assert train.names == ["cube", "sphere", "cylinder"]


def test_a_batch_is_padded_with_exact_zeros_and_normalised(smoke):
    examples = [data.build(smoke.data, "val")[i] for i in range(2)]
    cut = (examples[0][0][:, :70, :50], examples[0][1])
    batch = data.Collate(smoke.data)([cut, examples[1]])
    assert batch.images.shape == (2, 3, 96, 96)
    assert batch.sizes == [(70, 50), (96, 96)]
    assert (batch.images[0, :, 70:] == 0).all()
    assert (batch.images[0, :, :, 50:] == 0).all()
    mean, std = torch.tensor(smoke.data.mean), torch.tensor(smoke.data.std)
    expected = (examples[1][0] / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(batch.images[1], expected)


def test_bgr_pixels_keep_0_to_255_as_caffe_weights_want(smoke):
    cfg = replace(smoke.data, bgr=True, mean=[102.9801, 115.9465, 122.7717], std=[1.0, 1.0, 1.0])
    image, target = data.build(smoke.data, "val")[0]
    got = data.Collate(cfg)([(image, target)]).images[0]
    torch.testing.assert_close(got, image.flip(0).float() - torch.tensor(cfg.mean)[:, None, None])


class Oracle(torch.nn.Module):
    """Gives the anchors that match an object a high logit and the exact offsets."""

    def __init__(self, model: RetinaNet, targets: list[dict]) -> None:
        super().__init__()
        self.model, self.targets = model, targets
        self.softmax, self.class_specific_box = False, False
        self.num_classes = model.num_classes
        self.anchor_grid = model.anchor_grid
        self.next = 0

    def anchors(self, height: int, width: int) -> torch.Tensor:
        return self.model.anchors(height, width)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from focal_loss.targets.assign import assign
        from focal_loss.targets.boxes import encode

        anchors = self.anchors(*images.shape[-2:])
        targets = self.targets[self.next : self.next + len(images)]
        self.next += len(images)
        boxes = [t["boxes"] for t in targets]
        labels, match = assign(anchors, boxes, [t["labels"] for t in targets], low_quality="any")
        logits = torch.full((len(images), len(anchors), self.num_classes), -20.0)
        offsets = torch.zeros(len(images), len(anchors), 4)
        for i, box in enumerate(boxes):
            positive = labels[i] >= 0
            logits[i, positive, labels[i, positive]] = 20.0
            offsets[i, positive] = encode(box[match[i, positive]], anchors[positive])
        return logits, offsets


def test_a_perfect_model_scores_100(smoke, tmp_path):
    cfg = replace(smoke, output_dir=str(tmp_path))
    dataset = data.build(cfg.data, "val")
    model = RetinaNet(Architecture(num_classes=3, **asdict(cfg.model)))
    oracle = Oracle(model, [dataset[i][1] for i in range(len(dataset))])
    metrics = evaluate(oracle, cfg, dataset, save=True)
    assert metrics["AP"] == pytest.approx(100)
    assert metrics["AP_small"] == 100
    assert "AP_large" not in metrics  # there is no object of that size
    assert (tmp_path / "detections.png").stat().st_size > 1000
    assert json.loads((tmp_path / "detections.json").read_text())


def test_no_detection_at_all_scores_0(smoke):
    dataset = data.build(smoke.data, "val")
    model = RetinaNet(Architecture(num_classes=3, **asdict(smoke.model)))  # at p = 0.01 < 0.05
    assert evaluate(model, smoke, dataset)["AP"] == 0
    assert contact_sheet(dataset, [], smoke).dtype == torch.uint8


class Photographs:
    """Grey ones of several shapes and sizes, with one object of class 1 each."""

    shapes = ((48, 64), (640, 480), (480, 640), (90, 160), (75, 100), (80, 60)) * 2

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict]:
        height, width = self.shapes[index]
        boxes = torch.tensor([[0.2 * width, 0.3 * height, 0.6 * width, 0.9 * height]])
        target = {"boxes": boxes, "labels": torch.tensor([1]), "iscrowd": torch.tensor([False])}
        image = torch.full((3, height, width), 100, dtype=torch.uint8)
        return image, target | {"image_id": index}


def test_the_sheet_shows_truth_beside_detections_and_photographs_of_all_shapes_fill_it(smoke):
    dataset = data.build(smoke.data, "val")
    dataset.source, dataset.count = Photographs(), 12
    cfg = replace(smoke, test=replace(smoke.test, pictures=12))
    found = [{"image_id": 0, "category_id": 3, "bbox": [5, 6, 20, 30], "score": 0.9}]
    found += [{"image_id": 1, "category_id": 2, "bbox": [5, 6, 20, 30], "score": 0.3}]
    sheet = contact_sheet(dataset, found, cfg)
    assert (sheet == 255).all(0).float().mean() < 0.2
    colors = [torch.tensor(color)[:, None, None] for color in draw.palette(3)]
    none, truth, detected = [int((sheet == color).all(0).sum()) for color in colors]
    assert none == 0
    assert truth > 8 * detected > 0  # twelve objects, one detection that is sure enough


def test_detections_are_in_pixels_of_the_file_and_in_its_categories(smoke):
    dataset = data.build(smoke.data, "val")
    model = RetinaNet(Architecture(num_classes=3, **asdict(smoke.model))).eval()
    image, target = dataset[0]
    batch = data.Collate(smoke.data)(
        [(image, target | {"size": (192, 192)})]
    )  # file twice as large
    oracle = Oracle(model, [target])
    found = detect(oracle, batch, smoke, [10 * (k + 1) for k in range(3)])
    x, y, w, h = found[0]["bbox"]
    box = torch.tensor([x, y, x + w, y + h])
    nearest = (2 * target["boxes"] - box).abs().amax(1).min()
    assert nearest < 0.01
    assert {d["category_id"] for d in found} == {10 * (int(k) + 1) for k in target["labels"]}


def test_gamma_0_is_cross_entropy_in_the_figure_and_every_curve_ends_at_1():
    x_t = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 4
    torch.testing.assert_close(
        analyse.sample_losses(x_t, 0), torch.nn.functional.softplus(-x_t.double())
    )
    for gamma in analyse.GAMMAS:
        curve = analyse.cumulative(x_t, gamma)
        assert curve[-1] == pytest.approx(1)
        assert (curve.diff() >= 0).all()


def test_a_larger_gamma_gives_the_hardest_a_larger_share():
    x_t = 3 + 2 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    shares = [analyse.share_of_hardest(x_t, gamma, 0.01) for gamma in analyse.GAMMAS]
    assert shares == sorted(shares)
    assert shares[-1] > 2 * shares[0]


def test_the_figure_counts_positives_and_leaves_the_ignored_out():
    logits = torch.arange(12.0).reshape(4, 3)
    labels = torch.tensor([1, -1, -2, 0])
    positives, negatives = analyse.split_logits(logits, labels)
    assert positives.tolist() == [1, 9]
    assert negatives.tolist() == [0, -2, -3, -4, -5, -10, -11]


def test_the_figure_is_written_with_its_shares(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = analyse.write(
        tmp_path, torch.randn(50, generator=generator), 5 + torch.randn(900, generator=generator)
    )
    assert [row["gamma"] for row in rows] == [0, 0.5, 1, 2]
    assert (tmp_path / "cdf.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "cdf.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize(("name", "classes"), [("coco_mini", 80), ("bccd", 3)])
def test_real_data_has_its_classes_and_boxes_inside_its_images(shared_data, name, classes):
    cfg = settings("experiment=scratch", "data=coco_format", f"data.root={shared_data / name}")
    if name == "bccd":
        with pytest.warns(UserWarning, match="1 "):
            dataset = data.build(cfg.data, "train")
    else:
        dataset = data.build(cfg.data, "train")
    assert len(dataset.names) == classes
    for index in range(5):
        image, target = dataset[index]
        height, width = image.shape[-2:]
        assert min(height, width) == 240 or max(height, width) == 400
        assert (target["boxes"][:, 2] <= width + 0.01).all()
        assert (target["boxes"][:, 3] <= height + 0.01).all()
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
