"""Pictures of features, of the prior and of gains, and the figures in them."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import nn

from lowshot_hallucination.figures.features import (
    class_means,
    draw_features,
    measure_shift,
    principal_axes,
    shift_cosine,
)
from lowshot_hallucination.figures.gains import gains, read_scores
from lowshot_hallucination.figures.prior import Curve, draw_prior
from lowshot_hallucination.hallucinate import Support, augment_support

NS = (1, 5)


def two_classes() -> tuple[Support, Support]:
    """One example of a class and two of another, and both filled to three by hand."""
    nan = math.nan
    real = torch.tensor([[[0.0, 0], [nan, nan]], [[2, 2], [4, 2]]])
    augmented = torch.tensor([[[0.0, 0], [3, 0], [3, 0]], [[2, 2], [4, 2], [3, 5]]])
    counts = torch.tensor([1, 2])
    return Support(real, counts), Support(augmented, torch.tensor([3, 3]))


def test_the_shift_points_to_the_true_mean_by_its_cosine():
    real, augmented = two_classes()
    assert class_means(real).tolist() == [[0, 0], [3, 2]]  # the padding is not read
    assert class_means(augmented).tolist() == [[2, 0], [3, 3]]
    means = torch.tensor([[5.0, 5], [3, -1]])  # 45 degrees off, and straight away from it
    expected = torch.tensor([math.sqrt(0.5), -1])
    torch.testing.assert_close(shift_cosine(real, augmented, means), expected)


def test_a_class_that_is_not_moved_has_cosine_zero():
    real, _ = two_classes()
    assert shift_cosine(real, real, torch.ones(2, 2)).tolist() == [0, 0]


def test_prototypes_and_true_means_are_those_of_the_embedded_rows():
    torch.manual_seed(0)
    phi = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
    real = Support(torch.randn(3, 2, 6), torch.tensor([1, 2, 2]))
    augmented = augment_support(real, 4, lambda seeds, real, owner: seeds + 1)
    queries, labels = torch.randn(12, 6), torch.arange(12) % 3
    shift = measure_shift(real, augmented, queries, labels, phi)
    with torch.no_grad():
        for k, count in enumerate([1, 2, 2]):
            rows = phi(augmented.features[k, :4])
            torch.testing.assert_close(shift.before[k], rows[:count].mean(0))
            torch.testing.assert_close(shift.after[k], rows.mean(0))
            torch.testing.assert_close(shift.true_means[k], phi(queries[k::3]).mean(0))
            torch.testing.assert_close(shift.imagined[shift.imagined_owner == k], rows[count:])


def test_a_prototype_is_nearer_by_the_share_of_its_distance():
    real = Support(torch.tensor([[[0.0, 0]], [[0, 0]]]), torch.tensor([1, 1]))
    augmented = Support(torch.tensor([[[0.0, 0], [2, 0]], [[0, 0], [-8, 0]]]), torch.tensor([2, 2]))
    queries = torch.tensor([[4.0, 0], [4, 0]])
    shift = measure_shift(real, augmented, queries, torch.tensor([0, 1]))
    assert shift.nearer.tolist() == [0.25, -1]  # 4 -> 3 and 4 -> 8


def test_queries_of_other_classes_than_those_drawn_are_refused():
    real, augmented = two_classes()
    for labels in ([0, 0], [0, 2]):
        with pytest.raises(ValueError, match="give queries of each class"):
            measure_shift(real, augmented, torch.ones(2, 2), torch.tensor(labels))


def test_principal_axes_are_those_of_the_covariance():
    torch.manual_seed(1)
    rows = torch.randn(200, 5) * torch.tensor([1.0, 5, 0.5, 3, 0.1]) + 2
    centre, axes = principal_axes(rows)
    _, vectors = torch.linalg.eigh(rows.T.cov())
    largest = vectors.flip(1)[:, :2]
    torch.testing.assert_close((axes * largest).sum(0).abs(), torch.ones(2))
    torch.testing.assert_close(centre, rows.mean(0))
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()
    with pytest.raises(ValueError, match="no two principal axes"):
        principal_axes(rows[:1])


def test_the_picture_of_features_comes_with_all_that_is_in_it(tmp_path):
    torch.manual_seed(0)
    real = Support(torch.randn(4, 1, 6), torch.ones(4, dtype=torch.int64))
    augmented = augment_support(real, 5, lambda seeds, real, owner: 0.5 * seeds)
    queries, labels = torch.randn(40, 6), torch.arange(40) % 4
    shift = measure_shift(real, augmented, queries, labels)
    draw_features(tmp_path / "new" / "features.png", shift, ["a", "b", "c", "d"])
    with Image.open(tmp_path / "new" / "features.png") as image:
        assert min(image.size) > 300
    with np.load(tmp_path / "new" / "features.npz") as found:
        assert found["names"].tolist() == ["a", "b", "c", "d"]
        np.testing.assert_array_equal(found["queries"], queries.numpy())
        assert found["imagined"].shape == (16, 6)
        flat = (found["queries"] - found["centre"]) @ found["axes"]
        assert abs(np.cov(flat.T)[0, 1]) < 1e-5  # principal: uncorrelated


def test_the_prior_is_drawn_for_each_n(tmp_path):
    grid = [0, 0.5, 1]
    curve = Curve(grid, novel=[0, 60, 80], base=[90, 80, 0], all=[40, 70, 45])
    draw_prior(tmp_path / "one.png", {1: curve}, {1: 0.5})
    draw_prior(tmp_path / "four.png", dict.fromkeys((1, 2, 5, 10), curve), {})
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "four.png") as four:
        assert four.width > 2 * one.width
        assert four.height > one.height
    with pytest.raises(ValueError, match="as many values as priors"):
        Curve(grid, novel=[0], base=[90, 80, 0], all=[40, 70, 45])


def write_run(folder: Path, novel: dict[int, list[float]], lift: float = 0.0) -> Path:
    """A run's draws.csv with these novel5 at each n; all5 are higher by `lift`."""
    folder.mkdir()
    with (folder / "draws.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["phase", "n", "draw", "novel5", "all5"])
        for n, values in novel.items():
            for draw, value in enumerate(values):
                writer.writerow(["cv", n, draw, 0, 0])
                writer.writerow(["test", n, draw, value, value + lift])
    return folder


@pytest.fixture
def folders(tmp_path) -> dict[str, list[Path]]:
    """PN and PN with G by two seeds, two controls by one run; four draws at n = 1 and n = 5."""
    draws = {1: [40.0, 50, 45, 55], 5: [80.0, 82, 84, 86]}
    plain = [write_run(tmp_path / f"pn{s}", draws) for s in (0, 1)]
    better = {1: [43.0, 52, 48, 57], 5: [80.0, 82, 83, 87]}
    grown = [write_run(tmp_path / f"g{s}", better, lift=2) for s in (0, 1)]
    shrunk = write_run(tmp_path / "shrink", {1: [41.0, 51, 46, 56], 5: [70.0] * 4})
    cosine = write_run(tmp_path / "cosine", {1: [30.0] * 4, 5: [79.0, 81, 83, 85]})
    return {"PN": plain, "PN w/ G": grown, "shrinkage": [shrunk], "centred cosine": [cosine]}


def test_gains_are_means_of_paired_differences_with_students_interval(tmp_path):
    rng = np.random.default_rng(0)
    base, added = 50 + 9 * rng.standard_normal(6), 2 + rng.standard_normal(6)
    rows = {
        "PN": [write_run(tmp_path / "pn", {1: base.tolist()})],
        "PN w/ G": [write_run(tmp_path / "g", {1: (base + added).tolist()})],
    }
    text = gains(rows, "PN", [])
    low, high = stats.t.interval(0.95, 5, added.mean(), stats.sem(added))
    assert f"| +{added.mean():.1f} ± {(high - low) / 2:.1f} |" in text
    assert f"| {base.mean():.1f} ± " in text
    assert "1 seeds x 6 draws" in text


def test_the_learned_g_is_compared_with_the_best_control_at_each_n(folders, tmp_path):
    text = gains(
        folders, "PN", ["shrinkage", "centred cosine"], learned="PN w/ G",
        picture=tmp_path / "gains.png",
    )  # fmt: skip
    rows = [line for line in text.splitlines() if line.startswith("| PN w/ G over the best")]
    cells = [[cell.strip() for cell in row.split("|")[2:-1]] for row in rows]
    # Differences 2 1 2 1 and 1 1 0 2, of both seeds alike: t(3) = 3.182, errors .289 and .408
    assert cells[0] == ["+1.5 ± 0.9 (shrinkage)", "+1.0 ± 1.3 (centred cosine)"]
    assert cells[1] == ["+3.5 ± 0.9 (shrinkage)", "+3.0 ± 1.3 (centred cosine)"]
    assert "- novel, top-5: PN w/ G over the best control: ahead at n = 1." in text
    assert "- all, top-5: PN w/ G over the best control: ahead at n = 1, 5." in text
    with Image.open(tmp_path / "gains.png") as picture:
        assert picture.width > 600


def test_a_gain_inside_its_interval_is_not_called_one(folders):
    text = gains(folders, "PN", ["PN"], learned="PN w/ G")
    assert "novel, top-5: PN w/ G over the best control: ahead at n = 1." in text
    text = gains(folders, "PN", ["PN w/ G"], learned="PN")
    assert "novel, top-5: PN over the best control: behind at n = 1." in text
    text = gains(folders, "PN", ["PN"], learned="PN")
    assert "neither ahead nor behind" in text


def test_scores_are_those_of_the_test_draws_in_order(folders):
    scores = read_scores(folders["PN w/ G"], "novel5")
    assert scores[1].tolist() == [[43, 52, 48, 57]] * 2
    path = folders["PN"][0] / "draws.csv"
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *reversed(lines)]))
    assert read_scores(folders["PN"][:1], "novel5")[1].tolist() == [[40, 50, 45, 55]]


def test_rows_and_files_that_cannot_be_compared_are_named(folders, tmp_path):
    with pytest.raises(ValueError, match="no row 'MN'"):
        gains(folders, "MN", [])
    with pytest.raises(ValueError, match=r"absent.draws.csv is missing"):
        gains(folders | {"MN": [tmp_path / "absent"]}, "PN", [])
    fewer = write_run(tmp_path / "fewer", {1: [40, 50], 5: [80.0, 82]})
    with pytest.raises(ValueError, match="'MN' has draws"):
        gains(folders | {"MN": [fewer]}, "PN", [])
    with pytest.raises(ValueError, match=r"fewer has other draws than .*pn0"):
        gains(folders | {"MN": [folders["PN"][0], fewer]}, "PN", [])
    path = tmp_path / "fewer" / "draws.csv"
    path.write_text("phase,n,draw,novel5,all5\ntest,1,0,\n")
    with pytest.raises(ValueError, match=r"draws.csv, line 2: it lacks .* novel5"):
        gains(folders | {"MN": [fewer]}, "PN", [])
    path.write_text("phase,n,draw,novel5,all5\ntest,1,0,1,1\ntest,1,0,2,2\n")
    with pytest.raises(ValueError, match="draw 0 of n = 1 is there twice"):
        gains(folders | {"MN": [fewer]}, "PN", [])
    path.write_text("phase,n,draw,novel5,all5\ncv,1,0,1,1\n")
    with pytest.raises(ValueError, match="no draw of the phase test"):
        gains(folders | {"MN": [fewer]}, "PN", [])
