"""R-MAC, exact neighbours, duplicates; real images are those of cifar10_jpeg."""

import io
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import resnet18
from torchvision.transforms.functional import pil_to_tensor

from hashtag_pretrain.duplicates.neighbours import find_neighbours
from hashtag_pretrain.duplicates.report import find_duplicates, lower_bound, write_report
from hashtag_pretrain.duplicates.rmac import describe, regions, rmac

# R-MAC


def public_regions(height: int, width: int, levels: int = 3) -> list[tuple[int, int, int]]:
    """The squares as filipradenovic/cnnimageretrieval-pytorch (MIT) computes them."""
    steps = torch.tensor([2.0, 3, 4, 5, 6, 7])
    w = min(width, height)
    b = (max(height, width) - w) / (steps - 1)
    index = int(((w**2 - w * b) / w**2 - 0.4).abs().argmin())
    more_wide = index + 1 if height < width else 0
    more_high = index + 1 if height > width else 0
    found = []
    for level in range(1, levels + 1):
        side = math.floor(2 * w / (level + 1))
        if side == 0:
            continue
        half = math.floor(side / 2 - 1)
        corners = []
        for length, more in ((height, more_high), (width, more_wide)):
            b = 0 if level + more == 1 else (length - side) / (level + more - 1)
            centres = half + torch.tensor([float(i) for i in range(level + more)]) * b
            corners.append((centres.floor() - half).int().tolist())
        found += [(top, left, side) for top in corners[0] for left in corners[1]]
    return found


def test_a_square_map_has_1_4_and_9_squares():
    squares = regions(12, 12)
    assert len(squares) == 14
    assert [side for _, _, side in squares] == [12] + [8] * 4 + [6] * 9
    assert squares[1:5] == [(0, 0, 8), (0, 4, 8), (4, 0, 8), (4, 4, 8)]


def test_a_map_of_7_by_10_has_2_6_and_12_squares():
    sides = [side for _, _, side in regions(7, 10)]
    assert [sides.count(side) for side in (7, 4, 3)] == [2, 6, 12]
    assert regions(10, 7) == [(top, left, side) for left, top, side in sorted_by_side(7, 10)]


def sorted_by_side(height: int, width: int) -> list[tuple[int, int, int]]:
    """Squares of a map in the order of those of its transpose."""
    return sorted(regions(height, width), key=lambda square: (-square[2], square[1], square[0]))


def is_tied(height: int, width: int) -> bool:
    """Whether two counts of squares are equally near to 40 %: float32 then decides for them."""
    short, long = sorted((height, width))
    errors = [abs(Fraction(3, 5) - Fraction(long - short, n * short)) for n in range(1, 7)]
    return long > short and errors.count(min(errors)) > 1


def test_the_squares_are_those_of_the_public_code():
    sizes = [(h, w) for h in range(1, 20) for w in range(1, 20) if not is_tied(h, w)]
    assert len(sizes) > 340
    for height, width in sizes:
        assert regions(height, width) == public_regions(height, width), (height, width)


def test_squares_stay_inside_the_map_and_reach_its_edges():
    for height, width in ((7, 7), (5, 16), (30, 4), (2, 2)):
        squares = regions(height, width)
        assert min(min(top, left) for top, left, _ in squares) == 0
        assert max(top + side for top, _, side in squares) == height
        assert max(left + side for _, left, side in squares) == width


def test_the_descriptor_of_a_constant_map_is_the_unit_vector_of_its_values():
    maps = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 5, 5)
    for whole in (False, True):
        torch.testing.assert_close(rmac(maps, whole=whole), torch.tensor([[0.6, 0.8]]))


def test_the_descriptor_sums_unit_maxima_of_the_squares(generator):
    maps = torch.rand(2, 3, 4, 6, generator=generator)
    for whole in (False, True):
        total = torch.zeros(2, 3)
        for n in range(2):
            squares = [maps[n, :, y : y + s, x : x + s] for y, x, s in public_regions(4, 6)]
            for tile in [*squares, *([maps[n]] if whole else [])]:
                maxima = torch.stack([channel.max() for channel in tile])
                total[n] += maxima / maxima.norm()
        expected = total / total.norm(dim=1, keepdim=True)
        torch.testing.assert_close(rmac(maps, whole=whole), expected)


def test_a_black_map_has_a_finite_descriptor():
    assert rmac(torch.zeros(1, 4, 3, 3)).tolist() == [[0, 0, 0, 0]]


def test_a_network_is_described_by_its_last_stage_and_left_as_it_was(generator):
    torch.manual_seed(0)
    model = resnet18(num_classes=3).eval()
    images = torch.rand(2, 3, 64, 96, generator=generator)
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    maps = model.layer4(model.layer3(model.layer2(model.layer1(x))))
    torch.testing.assert_close(describe(model, images), rmac(maps))
    assert all(not module._forward_hooks for module in model.modules())


def test_a_network_in_training_is_not_asked():
    with pytest.raises(AssertionError, match="call eval"):
        describe(resnet18().train(), torch.zeros(1, 3, 32, 32))


# Neighbours


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("block", [7, 64, 1000])
@pytest.mark.parametrize("form", ["tensor", "array", "half"])
def test_neighbours_are_those_of_all_distances_in_float64(generator, block, form):
    queries = torch.randn(50, 16, generator=generator)
    database: Tensor | np.ndarray = torch.randn(300, 16, generator=generator)
    if form == "half":
        database = database.half()
    every = torch.cdist(
        queries.double(), database.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    expected = every.topk(21, largest=False)
    if form == "array":
        database = database.numpy()
    distances, rows = find_neighbours(queries, database, block=block)
    assert torch.equal(rows, expected.indices)
    torch.testing.assert_close(distances, expected.values)
    assert (distances.dtype, rows.dtype) == (torch.float64, torch.int64)


def test_an_equal_descriptor_is_at_distance_0_however_long_it_is(generator):
    database = 1000 * torch.rand(100, 64, generator=generator)
    distances, rows = find_neighbours(database[[3, 99]], database, 2, block=30)
    assert distances[:, 0].tolist() == [0, 0]
    assert rows[:, 0].tolist() == [3, 99]


def test_of_equal_distances_the_lower_row_comes_first_in_blocks_of_any_size():
    database = torch.eye(4).repeat(5, 1)  # each row five times
    for block in (3, 20):
        distances, rows = find_neighbours(torch.eye(4)[1:2], database, 7, block=block)
        assert rows.tolist() == [[1, 5, 9, 13, 17, 0, 2]]
        assert distances[0, :5].tolist() == [0] * 5


def test_a_small_database_gives_all_it_has():
    rows = find_neighbours(torch.zeros(2, 3), torch.ones(4, 3), 21)[1]
    assert rows.tolist() == [[0, 1, 2, 3]] * 2
    assert find_neighbours(torch.zeros(0, 3), torch.ones(4, 3))[1].shape == (0, 4)
    assert find_neighbours(torch.zeros(2, 3), torch.ones(0, 3))[1].shape == (2, 0)


def test_a_memory_mapped_file_is_searched_as_it_lies(tmp_path, generator, recwarn):
    values = torch.randn(90, 8, generator=generator).numpy()
    np.save(tmp_path / "train.npy", values)
    mapped = np.load(tmp_path / "train.npy", mmap_mode="r")
    queries = torch.from_numpy(values[:5].copy())
    assert find_neighbours(queries, mapped, 1, block=16)[1].flatten().tolist() == [0, 1, 2, 3, 4]
    assert not recwarn.list


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, Tensor):
                self.numbers = max(self.numbers, made.numel())
        return result


def test_the_memory_is_that_of_a_block_not_of_all_pairs(generator):
    descriptors = torch.randn(3000, 4, generator=generator)
    with Largest() as largest:
        _, rows = find_neighbours(descriptors, descriptors, 3, block=200)
    assert torch.equal(rows[:, 0], torch.arange(3000))
    assert largest.numbers <= 3000 * (3 + 16) < 3000 * 3000 / 150


@pytest.mark.parametrize(
    ("queries", "database", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), r"\(2, 3\) and \(2, 4\) cannot be compared"),
        (torch.zeros(3), torch.zeros(2, 3), "cannot be compared"),
        (torch.tensor([[0.0], [math.nan]]), torch.zeros(2, 1), "query 1 is not finite"),
        (torch.zeros(1, 1), torch.tensor([[0.0]] * 9 + [[math.inf]]), "descriptor 9 is not finite"),
    ],
)
def test_descriptors_that_cannot_be_compared_are_named(queries, database, message):
    with pytest.raises(ValueError, match=message):
        find_neighbours(queries, database, 1, block=4)


# Duplicates


def line(*values: float) -> Tensor:
    """Descriptors of one number each."""
    return torch.tensor(values).view(-1, 1)


def test_pairs_within_the_threshold_come_nearest_first():
    pairs = find_duplicates(line(0, 1, 5, 9), line(8.75, 3, 0.5), 0.5)
    assert pairs.test.tolist() == [0, 2, 2]
    assert pairs.train.tolist() == [3, 0, 1]
    assert pairs.distance.tolist() == [0.25, 0.5, 0.5]
    assert pairs.duplicates == [0, 2]
    assert not pairs.mirrored.any()


def test_a_mirror_image_finds_its_own_pairs_and_none_twice():
    pairs = find_duplicates(line(0, 10), line(0.5, 3), 1, mirrored=line(0.25, 9.5))
    assert list(zip(pairs.test.tolist(), pairs.train.tolist(), strict=True)) == [(0, 0), (1, 1)]
    assert pairs.distance.tolist() == [0.25, 0.5]
    assert pairs.mirrored.tolist() == [True, True]


def test_a_test_image_with_more_copies_than_k_is_counted():
    train = torch.cat([torch.zeros(5, 1), line(7)])
    assert find_duplicates(train, line(0, 7), 0.1, k=5).full == 1
    assert find_duplicates(train, line(0, 7), 0.1, k=6).full == 0


def test_without_duplicates_there_are_no_pairs():
    pairs = find_duplicates(line(0), line(5), 1)
    assert (len(pairs.test), pairs.duplicates) == (0, [])


def test_a_threshold_below_0_is_refused():
    with pytest.raises(ValueError, match="threshold=-1"):
        find_duplicates(line(0), line(0), -1)


def test_the_lower_bound_is_the_accuracy_less_the_right_duplicates():
    correct = torch.tensor([True, True, False, True, False])
    plain = 100 * correct.double().mean().item()
    assert lower_bound(correct, []) == pytest.approx(plain) == pytest.approx(60)
    assert lower_bound(correct, {1, 2}) == pytest.approx(plain - 100 * 1 / 5)
    assert correct.tolist() == [True, True, False, True, False]


def test_the_report_names_both_sides_of_each_pair_and_lists_each_image_once(tmp_path):
    pairs = find_duplicates(line(0, 1, 5), line(0.5, 9, 5.25), 0.5, k=2)
    lines = write_report(tmp_path, pairs, "train{}".format, "test{}.jpg".format)
    assert lines == [
        "2 of 3 test images (66.67 %) have a copy among 3 training images, at most 0.5 apart",
        "1 test images have 2 copies or more: a larger k may find others",
    ]
    content = json.loads((tmp_path / "duplicates.json").read_text())
    assert content["pairs"][0] == {
        "test": "test2.jpg",
        "train": "train2",
        "distance": 0.25,
        "mirrored": False,
    }
    assert (content["duplicated"], content["test_images"], content["k"]) == (2, 3, 2)
    assert (tmp_path / "exclude.txt").read_text() == "train0\ntrain1\ntrain2\n"
    assert (tmp_path / "duplicates.txt").read_text() == "test0.jpg\ntest2.jpg\n"


# Real images


def tensor(photo: Image.Image) -> Tensor:
    """float32 (3, 64, 64), about -1..1."""
    big = photo.resize((64, 64), Image.Resampling.BICUBIC)
    return pil_to_tensor(big).float() / 127.5 - 1


def compress(photo: Image.Image) -> Image.Image:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


COPIES = {
    "compressed": compress,
    "resized": lambda photo: photo.resize((24, 24), Image.Resampling.BILINEAR),
    "mirrored": ImageOps.mirror,
    "equal": lambda photo: photo,
}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Stages of torchvision's names, untrained."""
    torch.manual_seed(0)
    return resnet18().eval()


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[Image.Image]:
    files = sorted((shared_data / "cifar10_jpeg" / "train").glob("*/*"))[::100]
    return [Image.open(file).convert("RGB") for file in files]


def describe_all(network: nn.Module, photos: list[Image.Image]) -> Tensor:
    return describe(network, torch.stack([tensor(photo) for photo in photos]))


@pytest.fixture(scope="module")
def train(network: nn.Module, photos: list[Image.Image]) -> Tensor:
    return describe_all(network, photos)


@pytest.mark.parametrize("kind", list(COPIES))
def test_copies_of_real_images_rank_first(network, photos, train, kind):
    copies = [COPIES[kind](photo) for photo in photos[::5]]
    test = describe_all(network, copies)
    mirrored = describe_all(network, [ImageOps.mirror(copy) for copy in copies])
    pairs = find_duplicates(train, test, math.inf, k=1, mirrored=mirrored)
    best: dict[int, int] = {}
    for i, j in zip(pairs.test.tolist(), pairs.train.tolist(), strict=True):
        best.setdefault(i, j)
    assert best == {i: 5 * i for i in range(len(copies))}
    if kind in ("equal", "mirrored"):
        own = pairs.test * 5 == pairs.train
        assert pairs.distance[own].max() < 1e-5
        assert bool(pairs.mirrored[own].all()) == (kind == "mirrored")
