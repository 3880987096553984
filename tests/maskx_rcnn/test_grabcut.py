"""GrabCut inside boxes, the baseline that learns no masks."""

import sys

import pytest
import torch

from maskx_rcnn import config, grabcut
from maskx_rcnn.data import PartialMasks
from maskx_rcnn.evaluate import columns, evaluate
from maskx_rcnn.model import mask_rcnn
from tests.maskx_rcnn.small import settings


def test_without_opencv_one_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[grabcut\]'"):
        grabcut.segment_boxes(torch.zeros(3, 9, 9, dtype=torch.uint8), torch.ones(1, 4))
    monkeypatch.setattr(grabcut, "is_installed", lambda: False)
    with pytest.raises(ValueError, match=r"test\.grabcut=true.* pip install"):
        config.Test(grabcut=True)
    assert not config.Test().grabcut


def test_what_differs_from_the_surroundings_of_its_box_is_the_mask():
    pytest.importorskip("cv2")
    torch.manual_seed(0)
    image = torch.randint(90, 110, (3, 60, 80), dtype=torch.uint8)
    disc = (torch.arange(60)[:, None] - 30) ** 2 + (torch.arange(80) - 40) ** 2 <= 15**2
    image[0, disc] += 100
    boxes = torch.tensor([[24.6, 14.7, 55.9, 45.8], [0, 0, 80, 60], [3, 3, 3.2, 3.2]])
    masks = grabcut.segment_boxes(image, boxes)
    assert masks.shape == (3, 60, 80)
    assert (masks[0] & disc).sum() / (masks[0] | disc).sum() > 0.98
    assert masks[1].all()  # nothing around it
    assert masks[2].sum() <= 1
    assert torch.equal(masks, grabcut.segment_boxes(image, boxes))
    assert grabcut.segment_boxes(image, boxes[:0]).shape == (0, 60, 80)


def test_a_detector_alone_is_evaluated_with_masks_by_grabcut(tmp_path):
    pytest.importorskip("cv2")
    cfg = settings(tmp_path)
    cfg.stage = "detector"
    assert "mask_AP_B" not in columns(cfg)
    cfg.test.grabcut = True
    model = mask_rcnn(16, cfg.network, cfg.branch)
    dataset = PartialMasks(cfg.data, False)

    def answer(images):
        """The true boxes, and no masks."""
        answers = []
        for image in images:
            number = next(k for k in range(4) if torch.equal(dataset[k][0].float() / 255, image))
            target = dataset[number][1]
            count = len(target["labels"])
            masks = torch.zeros(count, 1, *image.shape[1:])
            answers.append({"boxes": target["boxes"], "labels": target["labels"] + 1})
            answers[-1] |= {"scores": torch.ones(count), "masks": masks}
        return answers

    model.forward = answer
    metrics = evaluate(model, cfg, dataset, save=True)
    assert metrics["box_AP_B"] == pytest.approx(100)
    assert metrics["mask_AP50_B"] > 30
    assert (tmp_path / "masks.png").is_file()
    assert not (tmp_path / "neighbours.json").exists()
