"""The commands of large_minibatch as a user types them."""

from tests.train_scripts import TrainScript


class TestLargeMinibatch(TrainScript):
    project = "large_minibatch"
    picture = "predictions.png"
    metrics = ("error", "val_error", "train_error")
    typos = (
        ("rates.base=1", "rate.base"),
        ("rate.warmups=none", "rate.warmup"),
        ("rate.rule=linaer", "linear"),
        ("batch_size=many", "a whole number"),
        ("batch_size=36", "nearest that works is 32 or 40"),
        ("norm.group=7", "group=7"),
    )
    missing = ("data=imagenet",)
    batch = ("batch_size", 32, 16)
