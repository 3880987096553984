"""The settings of a run of a few thousand parameters on a few paintings."""

from pathlib import Path
from typing import Any

from maskx_rcnn.config import Config, Data, Paintings, Test
from maskx_rcnn.model import MaskBranch, Network


def settings(folder: Path, images: int = 4, **branch: Any) -> Config:
    return Config(
        stage="e2e",
        output_dir=str(folder),
        data=Data(
            name="paintings",
            root="",
            masks="even",
            flip=0,
            workers=0,
            paintings=Paintings(train_images=images, val_images=images),
        ),
        network=Network(
            backbone="small",
            channels=8,
            hidden=16,
            mask_convs=1,
            mask_size=8,
            anchors=[12, 24],
            short_side=48,
            long_side=48,
            proposals=[20, 20],
            score=0.0,  # an untrained network is sure of nothing
            detections=60,
            cls_std=0.05,
        ),
        branch=MaskBranch(**{"source": "cls", "standardise": True} | branch),
        test=Test(batch_size=4),
    )
