"""`train.py` passes every option on: three of its steps are those of a loop written out by hand."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from common.data import seed_everything, seed_of
from common.run import checkpoint
from common.sampling import SampleStream
from maskx_rcnn import config, data, train
from maskx_rcnn.config import Config, Data, Paintings
from maskx_rcnn.evaluate import COLUMNS
from maskx_rcnn.frozen import FrozenBranch, FrozenNetwork, FrozenRegions, Regions, find_regions
from maskx_rcnn.model import MaskBranch, Network, mask_rcnn
from maskx_rcnn.optimizer import build_optimizer
from maskx_rcnn.transfer import MLP, MaskPredictor, MaskXHeads, Standardise, WeightTransfer

State = dict[str, Tensor]
STEPS, CLASSES = 3, 6
BRANCH = ("roi_heads.mask_head.", "roi_heads.mask_predictor.")
CFG = Config(
    seed=3,
    steps=STEPS,
    batch_size=4,
    images_per_gpu=2,
    lr=0.05,
    momentum=0.8,
    weight_decay=0.01,
    bias_lr=3.0,
    bias_decay=False,
    warmup=2,
    warmup_start=0.25,
    milestones=[0.7],
    clip=2.5,
    log_every=1,
    data=Data(
        name="paintings",
        root="",
        masks="odd",
        mask_share=0.6,
        skip_empty=False,
        aspect_groups=False,
        workers=0,
        paintings=Paintings(train_images=10, val_images=2, classes=CLASSES, seed=2),
    ),
    network=Network(
        backbone="small",
        channels=8,
        hidden=12,
        mask_convs=1,
        mask_size=8,
        anchors=[12, 24],
        ratios=[1.0],
        short_side=56,
        long_side=56,
        mean=[0.3, 0.4, 0.5],
        std=[0.2, 0.25, 0.3],
        proposals=[30, 20],
        proposal_nms=0.8,
        rois=4,  # fewer than there are, so that chance decides
        positive=0.5,
        cls_std=0.05,
        box_std=0.02,
    ),
    branch=MaskBranch(
        source="cls",
        layers=3,
        hidden=5,
        activation="relu",
        init="fan_in",
        init_scale=0.7,
        standardise=True,
        stop_gradient=False,
        mlp=2,
        mlp_pool=2,
        match="overlap",
    ),
    test=config.Test(batch_size=3, images=0),
)


@pytest.fixture(autouse=True)
def _not_evaluated(monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda *_, **__: dict.fromkeys(COLUMNS, 1.0))


def network(start: State | None = None) -> MaskRCNN:
    """The network of CFG, its mask branch put together by hand; `start`: of the detector."""
    known = {2, 4, 6}  # labels 1, 3, 5 of the odd ones, from 1 here
    model = mask_rcnn(CLASSES, CFG.network, MaskBranch(mlp=0), classes_with_masks={1})
    model.roi_heads = MaskXHeads.of(
        model.roi_heads, predictor(), classes_with_masks=known, match="overlap"
    )
    seed_everything(3)
    model.load_state_dict(mask_rcnn(CLASSES, CFG.network, CFG.branch).state_dict())
    if start is not None:
        model.load_state_dict(model.state_dict() | without_branch(start))
    return model.train()


def predictor() -> MaskPredictor:
    transfer = WeightTransfer(12, 8, layers=3, hidden=5, activation="relu")
    return MaskPredictor(
        8,
        8,
        transfer=transfer,
        source="cls",
        standardise=Standardise([12]),
        stop_gradient=False,
        mlp=MLP(8, 8, layers=2, pool=2),
    )


@pytest.fixture(scope="module")
def detector() -> State:
    """Weights of another start, their mask branch too."""
    torch.manual_seed(9)
    return mask_rcnn(CLASSES, CFG.network, CFG.branch).state_dict()


def without_branch(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith(BRANCH)}


def run(cfg: Config) -> State:
    """Weights after `train.py`."""
    try:
        train.train(cfg)
    finally:
        checkpoint.unlock(cfg.output_dir)
    return saved(cfg)["model"]


def saved(cfg: Config) -> dict:
    return checkpoint.load(Path(cfg.output_dir) / f"checkpoint-{cfg.steps:08d}.pt")["parts"]


def step_by_hand(
    trained: dict[str, Tensor], gradients: State, velocity: State, rate: float, clip: float
) -> bool:
    """SGD of CFG on some parameters; whether their gradient was clipped."""
    norm = float(torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt())
    for name, parameter in trained.items():
        normal = parameter.ndim == 1 and f"{name.rsplit('.', 1)[0]}.weight" in NORMS
        bias = name.endswith("bias") and not normal
        slope = min(1.0, clip / (norm + 1e-6)) * gradients[name]
        slope = slope + (0.0 if bias or normal else 0.01) * parameter.detach()
        velocity[name] = 0.8 * velocity.get(name, torch.zeros(())) + slope
        parameter.data -= 0.05 * (3 if bias else 1) * rate * velocity[name]
    return norm > clip


NORMS = {
    name
    for name, value in mask_rcnn(CLASSES, CFG.network, CFG.branch).named_parameters()
    if value.ndim == 1 and name.endswith("weight")  # of GroupNorm alone
}


def by_hand(
    model: MaskRCNN, names: tuple[str, ...], trained: dict[str, Tensor], clip: float
) -> State:
    """Weights after the steps of CFG, by those losses of the whole network that are named."""
    pieces = data.PartialMasks(CFG.data, True).batches(CFG, 0, STEPS)
    velocity: State = {}
    clipped = []
    for number, (batch, rate) in enumerate(zip(pieces, (0.25, 0.625, 0.1), strict=True), 1):
        total: State = {name: torch.zeros_like(value) for name, value in trained.items()}
        for place, piece in enumerate(batch):
            seed_everything(seed_of(3, number, place))
            losses = model(*piece.to(torch.device("cpu")))
            loss = sum(losses[name] for name in names)
            found = torch.autograd.grad(loss / 2, list(trained.values()))
            total = {n: t + g for (n, t), g in zip(total.items(), found, strict=True)}
        assert len(batch) == 2
        clipped.append(step_by_hand(trained, total, velocity, rate, clip))
    assert set(clipped) == {False, True}
    return model.state_dict()


def assert_close(found: State, expected: State) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_three_steps_end_to_end_with_every_option_are_those_of_a_loop_by_hand(tmp_path):
    torch.set_num_threads(1)  # several add up in an order that differs from run to run
    model = network()
    names = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")
    expected = by_hand(model, names, dict(model.named_parameters()), 2.5)
    assert_close(run(replace(CFG, output_dir=str(tmp_path))), expected)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"]: row["lr"] for row in rows if "lr" in row} == pytest.approx(
        {1: 0.0125, 2: 0.03125, 3: 0.005}
    )
    assert set(names) <= rows[0].keys()


def stage_of_masks(folder: Path, detector: State, **options) -> Config:
    folder.mkdir(exist_ok=True)
    torch.save(detector, folder / "detector.pth")
    return replace(
        CFG, stage="masks", init=str(folder / "detector.pth"), output_dir=str(folder), **options
    )


def of_branch(model: MaskRCNN) -> dict[str, Tensor]:
    return {n: p for n, p in model.named_parameters() if n.startswith(BRANCH)}


def test_three_steps_of_the_mask_branch_leave_the_detector_as_it_is(tmp_path, detector):
    model = network(detector)
    expected = by_hand(model, ("loss_mask",), of_branch(model), 0.08)
    cfg = stage_of_masks(tmp_path, detector, clip=0.08)
    found = run(cfg)
    assert_close(found, expected)
    assert all(torch.equal(found[name], value) for name, value in without_branch(detector).items())
    momenta = saved(cfg)["optimizer"]["state"].values()
    shapes = sorted(tuple(state["momentum_buffer"].shape) for state in momenta)
    assert shapes == sorted(tuple(p.shape) for p in of_branch(model).values())  # of no other


def regions_by_hand(model: MaskRCNN) -> Regions:
    """Those of the training images as they are, three at a time."""
    dataset = data.PartialMasks(replace(CFG.data, flip=0.0), True)
    examples = [dataset[index] for index in range(10)]
    seed_everything(seed_of(3, 0, 0))
    parts = []
    for first in range(0, 10, 3):
        inputs = data.to_device(data.collate(examples[first : first + 3]), torch.device("cpu"))
        parts.append(find_regions(model, *inputs))
    return Regions(
        *(torch.cat([getattr(p, n) for p in parts]) for n in ("features", "labels", "masks"))
    )


def test_three_steps_on_kept_features_are_those_of_a_loop_by_hand(tmp_path, detector):
    options = {"optimizer": "adamw", "schedule": "one_cycle", "bias_lr": 1.0, "bias_decay": True}
    cfg = stage_of_masks(tmp_path, detector, cached_rois=5, lr=0.01, clip=0.05, **options)
    model = network(detector)
    regions = regions_by_hand(model)
    trained = of_branch(model)
    decayed = [p for name, p in trained.items() if name not in NORMS and not in_norm(name)]
    normal = [p for name, p in trained.items() if name in NORMS or in_norm(name)]
    groups = [{"params": decayed}, {"params": normal, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 0.01, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.01, total_steps=STEPS, cycle_momentum=False
    )
    stream = SampleStream(len(regions.labels), 5, seed=3)
    for step in range(STEPS):
        rows = [index for _, index in stream.batch(step)]
        heads = model.roi_heads
        features = heads.mask_head(regions.features[rows])
        logits = heads.mask_predictor(features, regions.labels[rows], heads.box_predictor)
        loss = F.binary_cross_entropy_with_logits(logits, regions.masks[rows].float())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 0.05)
        optimizer.step()
        if step < STEPS - 1:
            schedule.step()
    assert_close(run(cfg), model.state_dict())


def in_norm(name: str) -> bool:
    return f"{name.rsplit('.', 1)[0]}.weight" in NORMS


def test_kept_features_give_the_loss_of_the_images_and_of_the_whole_network(detector):
    model = network(detector)
    dataset = data.PartialMasks(CFG.data, True)
    examples = data.collate([dataset[index] for index in range(4)])

    def seeded(call: Callable) -> object:
        torch.manual_seed(1)
        return call(*data.to_device(examples, torch.device("cpu")))

    regions = seeded(lambda *inputs: find_regions(model, *inputs))
    kept = FrozenBranch(model)(*regions.to(torch.device("cpu")))["loss_mask"]
    images = seeded(FrozenNetwork(model))["loss_mask"]
    assert kept.item() > 0
    torch.testing.assert_close(kept, images)
    torch.testing.assert_close(images, seeded(model)["loss_mask"])


def test_images_without_any_mask_have_no_regions(detector):
    cfg = replace(CFG.data, mask_share=0.0)
    examples = data.collate([data.PartialMasks(cfg, True)[index] for index in range(2)])
    inputs = data.to_device(examples, torch.device("cpu"))
    regions = find_regions(network(detector), *inputs)
    assert regions.features.shape == (0, 8, 4, 4)
    assert regions.masks.shape == (0, 8, 8)


def test_two_processes_draw_the_regions_of_one(detector, monkeypatch):
    cfg = replace(CFG, cached_rois=6)
    source = FrozenRegions(network(detector), data.PartialMasks(cfg.data, True))
    monkeypatch.setattr(source, "find", lambda _: regions)
    regions = regions_by_hand(source.model)
    whole = [piece for (piece,) in source.batches(cfg, 1, 3)]
    monkeypatch.setattr("common.dist.world_size", lambda: 2)
    halves: list[list[Regions]] = []
    for rank in range(2):
        monkeypatch.setattr("common.dist.rank", lambda rank=rank: rank)
        halves.append([piece for (piece,) in source.batches(cfg, 1, 3)])
    for one, *two in zip(whole, *halves, strict=True):
        assert len(one.labels) == 6
        assert torch.equal(one.features, torch.cat([each.features for each in two]))
        assert torch.equal(one.labels, torch.cat([each.labels for each in two]))


def test_resuming_on_kept_features_equals_never_stopping(tmp_path, detector):
    options = {"cached_rois": 5, "save_every": 2, "schedule": "one_cycle", "optimizer": "adamw"}
    cfg = stage_of_masks(tmp_path / "whole", detector, **options)
    whole = run(cfg)
    (tmp_path / "cut").mkdir()
    shutil.copy(tmp_path / "whole" / "checkpoint-00000002.pt", tmp_path / "cut")
    cut = run(replace(cfg, output_dir=str(tmp_path / "cut")))
    assert all(torch.equal(cut[name], value) for name, value in whole.items())


@pytest.mark.parametrize("schedule", ["multistep", "one_cycle"])
def test_a_longer_run_goes_on_with_the_rates_of_its_own_length(schedule, tmp_path, detector):
    cfg = stage_of_masks(tmp_path, detector, cached_rois=5, schedule=schedule, bias_lr=1.0)
    run(cfg)
    longer = replace(cfg, steps=6)
    run(longer)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row["lr"] for row in rows if "lr" in row and row["step"] > STEPS}
    _, fresh = build_optimizer(network(), longer)
    (factor, *_) = fresh.lr_lambdas
    assert found == pytest.approx({step: 0.05 * factor(step - 1) for step in (4, 5, 6)})


def test_an_evaluation_alone_counts_the_steps_of_the_run(tmp_path, capsys):
    cfg = replace(CFG, output_dir=str(tmp_path))
    run(cfg)
    capsys.readouterr()
    train.train(replace(cfg, steps=1, only_evaluate=True))
    checkpoint.unlock(cfg.output_dir)
    assert "step 3/3  mask_AP_B 1" in capsys.readouterr().out
