"""The commands of panoptic as a user types them."""

from tests.train_scripts import TrainScript


class TestPanoptic(TrainScript):
    project = "panoptic"
    picture = "predictions.png"
    metrics = ("PQ", "SQ_th", "RQ_st", "separate_PQ_th", "components_PQ")
    typos = (
        ("merg.overlap=1", "merge.overlap"),
        ("predict.sourse=merged", "predict.source"),
        ("predict.source=merge", "merged"),
        ("model.part=semantic", "predict.source=separate"),
        ("merge.confidence=2", "merge.confidence"),
        ("data.scenes.together=9", "together"),
    )
    missing = ("data=coco",)
    batch = ("batch_size", 4, 8)
