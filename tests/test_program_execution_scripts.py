"""The commands of program_execution as a user types them."""

from tests.train_scripts import TrainScript


class TestProgramExecution(TrainScript):
    project = "program_execution"
    picture = "programs.png"
    metrics = ("accuracy", "exist", "count", "query_color", "compare_attribute")
    typos = (
        ("model.hiden=1", "model.hidden"),
        ("stage=jiont", "joint"),
        ("data.subset=frist", "first"),
        ("data.train=train:shrot", "train:short"),
        ("model.name=lstm", "stage=baseline"),
    )
    missing = ("data=clevr",)
    batch = ("ee.batch_size", 16, 8)
