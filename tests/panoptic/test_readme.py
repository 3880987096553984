"""What the README says of use elsewhere: recipes, files that go together, export."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import panoptic
from panoptic.merging.join import join_stuff
from panoptic.model import Options, build
from panoptic.net.pspnet import PSPNet

FOLDER = Path(panoptic.__file__).parent
TEXT = (FOLDER / "README.md").read_text()
COPIED = re.findall(r"^\| (?!for |:--)(.*?) \| (.*?) \|", TEXT.split("| for | copy |")[1], re.M)
NEED_COMMON = re.search(r"need `common` as well: (.*?)\.\n", TEXT, re.S)


def test_each_recipe_gives_the_library_s_outputs_their_quality():
    names: dict[str, Any] = {}
    images = 0
    for block in re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S):
        exec(block, names)
        images += 1
        assert names["metric"].count == images
        assert names["metric"].compute().all.pq == 1
    assert images == 4


def imported(path: Path) -> set[Path]:
    """Files of the project that a file imports; anything of this repository by name is refused."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            names = [alias.name for alias in node.names]
            found |= {module / f"{n}.py" for n in names} if module.is_dir() else {module}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in ("common", "panoptic"), path
    return {file.with_suffix(".py") for file in found}


def files_of(cell: str) -> set[Path]:
    """The files that are named, those of a folder too."""
    paths = [FOLDER / name for name in re.findall(r"`([\w/]+/|[\w/]+\.py)`", cell)]
    return {file for path in paths for file in (path.glob("*.py") if path.is_dir() else [path])}


@pytest.mark.parametrize(("name", "cell"), COPIED)
def test_the_files_that_are_said_to_go_together_need_no_others(name, cell):
    files = files_of(cell)
    if "the metric needs" in cell:
        files |= files_of(dict(COPIED)["the metric"])
    assert files
    for file in files - files_of(NEED_COMMON[1]):
        assert imported(file) <= files, file


def test_every_row_of_files_was_looked_at():
    assert len(COPIED) == 6
    assert len(files_of(NEED_COMMON[1])) == 4


class Method(nn.Module):
    """A network of which a method maps tensors to tensors."""

    def __init__(self, network: nn.Module, work) -> None:
        super().__init__()
        self.network, self.work = network, work

    def forward(self, batch: Tensor) -> Tensor:
        return self.work(self.network, batch)


@pytest.mark.parametrize("name", ["pspnet", "panoptic_fpn"])
def test_torch_export_takes_the_semantic_networks(name):
    torch.manual_seed(0)
    batch = torch.randn(2, 3, 32, 48)
    if name == "pspnet":
        network = PSPNet(5, backbone="mini", norm="gn")
        method = Method(network, lambda net, x: net.logits(x)[0])
    else:
        options = Options(backbone="mini", norm="gn", freeze_at=0)
        network = build(options, thing_classes=3, stuff_classes=2)
        method = Method(network, lambda net, x: net.semantic_logits(net.instance.backbone(x)))
    exported = torch.export.export(method.eval(), (batch,))
    torch.testing.assert_close(exported.module()(batch), method(batch))


def test_stuff_of_a_class_is_joined_into_its_first_segment():
    ids = torch.tensor([[1, 1, 2, -1], [3, 4, 2, 5]])
    segments = [
        {"id": 1, "category_id": 10, "area": 2},
        {"id": 2, "category_id": 1, "score": 0.9},
        {"id": 3, "category_id": 10, "area": 1},
        {"id": 4, "category_id": 11},
        {"id": 5, "category_id": 1},
        {"id": 1, "category_id": 10},  # listed twice, as by some
    ]
    for given in (ids, ids.numpy(), ids.short()):
        joined, kept = join_stuff(given, segments, things={1})
        assert joined.tolist() == [[1, 1, 2, 0], [1, 4, 2, 5]]
        assert type(joined) is type(given)
    assert kept == [
        {"id": 1, "category_id": 10},
        {"id": 2, "category_id": 1, "score": 0.9},
        {"id": 4, "category_id": 11},
        {"id": 5, "category_id": 1},
    ]
    nothing, none = join_stuff(torch.full((2, 2), -1), [], things={1})
    assert not nothing.any()
    assert none == []
    with pytest.raises(ValueError, match=r"ids must be whole numbers \(H, W\), not float32"):
        join_stuff(ids.float(), segments, things={1})
    for number in (10**13, -1):
        with pytest.raises(ValueError, match=f"segment id {number} is out of range"):
            join_stuff(ids, [{"id": number, "category_id": 10}], things={1})
    with pytest.raises(ValueError, match=f"segment id {10**13} is out of range"):
        join_stuff(torch.full((1, 1), 10**13), [], things={1})
