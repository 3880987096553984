"""The comparison of several runs: what stands in its table, and what is drawn."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from common import draw
from common.errors import UserError
from common.run import versus
from common.run.result import compare


def finished(folder: Path, metrics: dict, lines: list[dict], diverged: dict | None = None) -> Path:
    """What a run leaves behind."""
    folder.mkdir()
    result = {"metrics": metrics, "diverged": diverged, "steps": 3}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """A run, and one that diverged."""
    lines = [{"step": n, "loss": 2.5 / n, "AP": 10.0 * n} for n in (1, 2, 3)]
    good = finished(tmp_path / "good", {"AP": 31.2, "AP50": 40.0}, lines)
    lost = {"step": 2, "part": "box"}
    return {"good": good, "lost": finished(tmp_path / "lost", {}, [], lost)}


def test_the_table_has_the_first_loss_on_request_and_no_empty_column(
    folders: dict[str, Path],
) -> None:
    columns = ("AP", "AP_small", "AP50")
    assert compare(folders, columns).splitlines() == [
        "| run  |                       AP | AP50 |",
        "| :--- | -----------------------: | ---: |",
        "| good |                     31.2 | 40.0 |",
        "| lost | diverged at step 2 (box) |    – |",
    ]
    table = compare(folders, columns, "loss").splitlines()
    assert table[0] == "| run  | first loss |                       AP | AP50 |"
    assert table[2:] == [
        "| good |       2.50 |                     31.2 | 40.0 |",
        "| lost |          – | diverged at step 2 (box) |    – |",
    ]
    assert compare({"lost": folders["lost"]}, columns).count("diverged at step 2") == 1


def test_settings_side_by_side_have_one_process_each(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"processes": 3, "output_dir": str(tmp_path), "versus": {"one": []}})
    with pytest.raises(UserError, match="processes=3 does not go with versus"):
        versus.variants(cfg)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/a"])
def test_a_setting_stays_in_the_folder_of_the_run(tmp_path: Path, name: str) -> None:
    content = {"output_dir": str(tmp_path / "run"), "threads": 1, "versus": {name: []}}
    with pytest.raises(UserError, match="would be a folder elsewhere: give another name"):
        versus.variants(OmegaConf.create(content))
    assert not list(tmp_path.iterdir())


def test_two_names_of_one_folder_are_refused(tmp_path: Path) -> None:
    content = {"output_dir": str(tmp_path / "run"), "threads": 1, "versus": {"x y": [], "x_y": []}}
    with pytest.raises(UserError, match=r"versus\.x_y has the folder of another"):
        versus.variants(OmegaConf.create(content))


def test_a_damaged_result_is_named(folders: dict[str, Path]) -> None:
    (folders["good"] / "result.json").write_bytes(b'{"metrics": \xff')
    with pytest.raises(UserError, match="good holds no result"):
        compare(folders, ["AP"])


@pytest.mark.parametrize(("points", "drawn"), [(3, "curves"), (1, "bars")])
def test_few_points_are_drawn_as_bars_of_the_final_figures(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    points: int,
    drawn: str,
) -> None:
    seen = {}
    words = {}
    for name in ("curves", "bars"):

        def record(path: Path, what: dict, name: str = name, **labels: str) -> None:
            seen[name] = what
            words.update(labels)

        monkeypatch.setattr(draw, name, record)
    path = folders["good"] / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:points]))
    versus._draw(folders, tmp_path / "versus.png", ("AP",), "step", "AP", "AP of 3 images")
    expected = {
        "curves": {"good": ([1, 2, 3], [10.0, 20.0, 30.0])},
        "bars": {"AP": {"good": 31.2, "lost": None}},
    }
    assert seen == {drawn: expected[drawn]}
    axes = {"xlabel": "step", "ylabel": "AP of 3 images"}
    assert words == (axes if drawn == "curves" else {})
