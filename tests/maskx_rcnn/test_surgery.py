"""The box head of many classes, cut for the second stage and put together again."""

import pickle
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from common.run import checkpoint
from common.weights.formats import read
from maskx_rcnn import prepare
from maskx_rcnn.model import MaskBranch, Network, mask_rcnn
from maskx_rcnn.weights.formats import BOX, MASK
from maskx_rcnn.weights.initialise import initialise
from maskx_rcnn.weights.surgery import AWAY, NAMES, SCORES, cut_rows, restore_rows

CLASSES, KEPT = 7, 3  # without the background
SMALL = Network(backbone="small", channels=8, hidden=8, mask_size=8, mask_convs=1, anchors=[12, 24])


def build(classes: int = CLASSES, **branch):
    torch.manual_seed(classes)
    return mask_rcnn(classes, SMALL, MaskBranch(**branch)).eval()


def masks_of_classes(model) -> Tensor:
    """w_seg of each class, (K, C)."""
    with torch.no_grad():
        return model.roi_heads.mask_predictor.w_seg(model.roi_heads.box_predictor)


@pytest.fixture
def detector():
    return build().state_dict()


def test_rows_that_were_cut_off_come_back_as_they_were():
    torch.manual_seed(0)
    state = {
        name: torch.randn(3002 * each, *([16] if name.endswith("weight") else []))
        for name, each in NAMES.items()
    }
    state[f"{MASK}transfer.0.weight"] = torch.randn(2, 2)
    cut = cut_rows(state, 81)
    assert [len(cut[name]) for name in NAMES] == [81, 81, 324, 324]
    assert [len(cut[AWAY + name]) for name in NAMES] == [2921, 2921, 2921 * 4, 2921 * 4]
    for name in NAMES:
        assert torch.equal(cut[name], state[name][: len(cut[name])])
    trained = {name: value for name, value in cut.items() if not name.startswith(AWAY)}
    restored = restore_rows(trained, cut)
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[name], state[name]) for name in state)
    assert len(state[SCORES]) == 3002  # the arguments stay as they are


@pytest.mark.parametrize("standardise", [False, True])
def test_t_that_was_trained_on_the_first_classes_gives_all_of_them_masks(
    tmp_path, capsys, standardise
):
    whole = build(kind="agnostic")
    first, between, second, last = (tmp_path / f"{n}.pt" for n in range(4))
    names = {"ids": list(range(1, 8)), "names": list("abcdefg")}
    parts = {"categories": names, "category_ids": names["ids"], "options": {"stage": "detector"}}
    torch.save({"parts": {"model": whole.state_dict(), **parts}}, first)
    prepare.main(["cut", str(first), f"out={between}", f"rows={KEPT + 1}"])
    assert "4 classes; 4 more are set aside" in capsys.readouterr().out

    small = build(KEPT, standardise=standardise)
    report = initialise(small, str(between), "small", mask_branch=False)
    assert f"{AWAY}{SCORES}" in report
    assert torch.equal(
        small.roi_heads.box_predictor.cls_score.weight, whole.state_dict()[SCORES][:4]
    )
    small.train()
    masks_of_classes(small)  # the statistics of w_det
    small.eval()
    few = {"ids": [1, 2, 3], "names": list("abc")}
    torch.save(
        {"parts": {"model": small.state_dict(), "categories": few, "options": {"stage": "masks"}}},
        second,
    )
    prepare.main(["restore", str(second), f"cut={between}", f"out={last}"])
    assert "masks for 7 classes" in capsys.readouterr().out

    final = build(standardise=standardise)
    checkpoint.load_matching(final, read(last))
    for name, value in whole.state_dict().items():
        if not name.startswith("roi_heads.mask_"):
            assert torch.equal(final.state_dict()[name], value), name
    for name, value in small.state_dict().items():
        if name.startswith("roi_heads.mask_"):
            assert torch.equal(final.state_dict()[name], value), name
    found = masks_of_classes(final)
    assert found.shape == (CLASSES + 1, 8)
    torch.testing.assert_close(found[: KEPT + 1], masks_of_classes(small))
    assert not torch.allclose(found[KEPT + 1 :], found[:1])
    kept = checkpoint.load(last)["parts"]
    assert kept["categories"] == names  # of stage 1
    assert kept["options"] == {"stage": "masks"}


def test_a_new_branch_stands_on_torchvisions_rows_of_the_80_classes_in_use(tmp_path):
    torch.manual_seed(0)
    theirs = build(90, kind="specific").state_dict()  # a row for each of COCO's ids up to 90
    file = tmp_path / "maskrcnn.pth"
    torch.save(theirs, file)
    ours = build(80)
    initialise(ours, str(file), "small", mask_branch=False)
    state = ours.state_dict()
    unused = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    for row, number in enumerate(n for n in range(91) if n not in unused):
        for name, each in NAMES.items():
            span = slice(each * row, each * (row + 1))
            wanted = theirs[name][each * number : each * (number + 1)]
            assert torch.equal(state[name][span], wanted), (name, number)
    oracle = build(80, kind="specific")
    initialise(oracle, str(file), "small")
    name = f"{MASK}mask_fcn_logits.weight"
    assert torch.equal(oracle.state_dict()[name][-1], theirs[name][90])


def test_a_new_branch_needs_a_whole_detector_of_the_same_classes(tmp_path, detector):
    file = tmp_path / "detector.pt"
    torch.save(detector, file)
    with pytest.raises(ValueError, match=r"it lacks roi_heads.*cls_score.weight \(4, 8\)"):
        initialise(build(KEPT), str(file), "small", mask_branch=False)
    assert "stay as initialised" in initialise(build(KEPT), str(file), "small")


def test_a_pickle_of_the_official_code_is_cut_with_what_its_network_needs(tmp_path, capsys):
    rng = np.random.default_rng(0)
    shapes = {"cls_score_w": (9, 4), "cls_score_b": (9,), "bbox_pred_w": (36, 4)}
    blobs = {n: rng.random(shape, np.float32) for n, shape in shapes.items()}
    blobs["bbox_pred_b"] = np.zeros(36, np.float32)
    file = tmp_path / "model_final.pkl"
    file.write_bytes(pickle.dumps({"blobs": blobs, "cfg": ""}, protocol=2))
    prepare.main(["cut", str(file), f"out={tmp_path / 'cut.pt'}", "rows=5"])
    assert "network.stride_in_1x1=True" in capsys.readouterr().out
    state = read(tmp_path / "cut.pt")
    assert torch.equal(state[SCORES], torch.from_numpy(blobs["cls_score_w"][:5]))
    assert torch.equal(
        state[f"{AWAY}{BOX}bbox_pred.weight"], torch.from_numpy(blobs["bbox_pred_w"][20:])
    )


@pytest.mark.parametrize("rows", [1, 8, 9])
def test_a_cut_leaves_classes_on_both_sides(detector, rows):
    with pytest.raises(ValueError, match=f"rows={rows}: give more than 1 and less than its 8"):
        cut_rows(detector, rows)


def test_a_cut_needs_a_box_head_with_boxes_of_each_class(detector):
    with pytest.raises(ValueError, match="they were cut before"):
        cut_rows(cut_rows(detector, 4), 3)
    without = {name: v for name, v in detector.items() if name != SCORES}
    with pytest.raises(ValueError, match=re.escape(f"{SCORES} is missing: give a detector")):
        cut_rows(without, 4)
    shared = {**detector, f"{BOX}bbox_pred.weight": torch.zeros(4, 8)}
    with pytest.raises(ValueError, match="has not four box outputs for each class"):
        cut_rows(shared, 4)


def test_rows_go_back_to_the_detector_that_they_were_cut_from_alone(detector):
    cut = cut_rows(detector, 4)
    trained = {name: value for name, value in cut.items() if not name.startswith(AWAY)}
    with pytest.raises(ValueError, match="no rows were set aside there"):
        restore_rows(trained, trained)
    for name in (SCORES, "roi_heads.box_head.1.weight", "rpn.head.cls_logits.bias"):
        changed = {**trained, name: trained[name] + 1e-3}
        with pytest.raises(ValueError, match=f"{re.escape(name)} is not as it was cut: train with"):
            restore_rows(changed, cut)
    with pytest.raises(ValueError, match=f"{re.escape(SCORES)} is not as it was cut"):
        restore_rows({f"{MASK}transfer.0.weight": torch.zeros(1)}, cut)
    halves = {name: value.half() for name, value in cut.items()}
    found = restore_rows({n: v.float() for n, v in halves.items() if n in trained}, halves)
    assert len(found[SCORES]) == CLASSES + 1
    agnostic = cut_rows(build(kind="agnostic").state_dict(), 4)
    with pytest.raises(ValueError, match=r"train with branch\.kind=transfer"):
        restore_rows(agnostic, agnostic)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cutt"], "cutt is unknown; did you mean cut?"),
        (["cut", "x.pt"], "out= is missing: python prepare.py cut RUN out=... [rows=...]"),
        (["cut", "out=y.pt"], "one run or file is expected: python prepare.py cut RUN"),
        (["cut", "x.pt", "y.pt", "out=z.pt"], "one run or file is expected"),
        (["cut", "x.pt", "out=y.pt", "row=3"], "row is unknown: python prepare.py cut"),
        (["cut", "x.pt", "out=y.pt", "rows=-1"], "rows=-1: give a number of classes"),
        (["restore", "x.pt", "out=y.pt"], "cut= is missing"),
        (["vg", "root=a"], "coco= is missing: python prepare.py vg root=... coco=... [synsets"),
        (["vg", "all", "root=a", "coco=b"], "python prepare.py vg root="),
        (["cut", "absent.pt", "out=y.pt"], "absent.pt is not a file"),
    ],
)
def test_a_slip_on_the_command_line_shows_the_usage(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare.main(words)
