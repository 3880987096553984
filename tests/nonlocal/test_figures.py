"""Pictures of attention: where the query and what it attends to are drawn, in which colour."""

from collections.abc import Callable
from math import prod

import pytest
import torch
from torch import Tensor

from nonlocal_.block import Block, NonLocalBlock
from nonlocal_.figures.attention import (
    FRAMES,
    GAP,
    NEGATIVE,
    POSITIVE,
    QUERY,
    SIDE,
    Attention,
    Place,
    Size,
    cell_of,
    draw_arrows,
    draw_attention,
    draw_heat,
    middle_of,
    shares_of,
    strongest,
)
from nonlocal_.figures.focus import key_weights, look
from nonlocal_.figures.solids import look_from_a_solid, meets

pytestmark = pytest.mark.filterwarnings("ignore:A non-local block sees a map")

CELLS = (4, 4, 4)
CLIP = (8, 32, 32)
START = (5.0, 10.0, 20.0)  # frame, y, x of the query


def make_entry(weights: dict[int, float], *, frames: int = 8, query: Place = START) -> Attention:
    """A grey clip of 32 x 32 pixels, whose cells of 8 x 8 have these weights and others none."""
    clip = torch.full((3, frames, 32, 32), 120, dtype=torch.uint8)
    table = torch.zeros(prod(CELLS))
    for number, weight in weights.items():
        table[number] = weight
    return Attention(clip, table.view(CELLS), query)


def near(drawn: Tensor, place: Place, color: tuple[int, int, int], reach: int = 14) -> int:
    """How many pixels at most `reach` from a place, of 8 drawn frames, have about that colour."""
    scale = SIDE / 32
    column, y, x = int(place[0]), int(place[1] * scale), int(place[2] * scale)
    left = column * (SIDE + GAP) + x
    part = drawn[:, max(0, y - reach) : y + reach, max(0, left - reach) : left + reach].int()
    return int(((part - torch.tensor(color)[:, None, None]).abs().amax(0) < 40).sum())


def test_a_cell_holds_its_middle_and_all_places_around_it() -> None:
    for clip, cells in ((CLIP, CELLS), ((7, 33, 50), (3, 4, 6)), ((1, 14, 9), (1, 14, 9))):
        for number in range(prod(cells)):
            middle = middle_of(number, clip, cells)
            assert cell_of(middle, clip, cells) == number
            for axis in range(3):
                half = 0.49 * clip[axis] / cells[axis]
                for shift in (-half, half):
                    place = list(middle)
                    place[axis] += shift
                    assert cell_of((place[0], place[1], place[2]), clip, cells) == number
    assert cell_of((8.0, 32.0, 32.0), CLIP, CELLS) == prod(CELLS) - 1
    assert middle_of(0, CLIP, CELLS) == (1.0, 4.0, 4.0)


def test_the_strongest_keys_come_with_their_sign_by_magnitude() -> None:
    weights = torch.tensor([0.0, -4.0, 1.0, 8.0, 0.5]).view(1, 1, 5)
    assert strongest(weights) == [(3, 1.0), (1, -0.5)]
    assert strongest(weights, 1) == [(3, 1.0)]
    assert strongest(torch.zeros(2, 3, 4)) == []
    shares = shares_of(weights.half() * 1000)
    torch.testing.assert_close(shares, weights.double() / 8)


@pytest.mark.parametrize(("weight", "color"), [(0.3, POSITIVE), (-0.3, NEGATIVE)])
def test_an_arrow_leads_from_the_query_to_its_strongest_key(
    weight: float, color: tuple[int, int, int]
) -> None:
    number = 1 * 16 + 2 * 4 + 1  # frames 2, 3 and the pixels from y = 16, x = 8
    drawn = draw_arrows(make_entry({number: weight}))
    assert drawn.shape == (3, SIDE, 8 * SIDE + 7 * GAP)
    assert near(drawn, middle_of(number, CLIP, CELLS), color) > 30
    assert near(drawn, START, QUERY) > 100
    assert near(drawn, (7.0, 20.0, 12.0), color) == 0
    between = (START[0] + 3) / 2, (START[1] + 20) / 2, (START[2] + 12) / 2
    assert near(drawn, between, color, reach=30) > 20
    other = NEGATIVE if color == POSITIVE else POSITIVE
    assert near(drawn, middle_of(number, CLIP, CELLS), other) == 0


def test_heat_lies_on_all_frames_of_the_strongest_cell_and_fades_elsewhere() -> None:
    number = 1 * 16 + 2 * 4 + 1
    drawn = draw_heat(make_entry({number: 0.3, 3 * 16: -0.1}))
    for frame in (2, 3):
        assert near(drawn, (frame, 20.0, 12.0), POSITIVE, reach=3) == 36
        assert near(drawn, (frame, 4.0, 28.0), POSITIVE) == 0
    assert near(drawn, (1, 20.0, 12.0), POSITIVE) == near(drawn, (4, 20.0, 12.0), POSITIVE) == 0
    red, _, blue = drawn[:, 16, 6 * (SIDE + GAP) + 16].tolist()  # a third of the strongest, below 0
    assert blue > red + 20


def test_pictures_are_scaled_per_query() -> None:
    weights = {5: 2e-6, 40: -1e-6, 60: 5e-7}
    small = draw_attention([make_entry(weights)])
    large = draw_attention([make_entry({n: 1e9 * weight for n, weight in weights.items()})])
    assert torch.equal(small, large)


def test_weights_of_zero_draw_the_query_alone() -> None:
    drawn = draw_arrows(make_entry({}))
    assert near(drawn, START, QUERY) > 100
    for frame in (0, 1, 2, 3, 6, 7):
        left = frame * (SIDE + GAP)
        assert (drawn[:, :, left : left + SIDE] == 120).all()


@pytest.mark.parametrize(("frames", "query"), [(8, 5.0), (32, 21.0), (9, 8.0), (1, 0.0)])
def test_some_frames_of_a_long_clip_are_drawn_and_the_querys_among_them(
    frames: int, query: float
) -> None:
    entry = make_entry({0: 1.0}, frames=frames, query=(query, 10.0, 20.0))
    shown = entry.shown
    assert int(query) in shown
    assert len(shown) <= FRAMES
    assert set(torch.tensor(shown).diff().tolist()) <= {max(1, -(-frames // FRAMES))}
    drawn = draw_arrows(entry)
    assert drawn.shape[2] == len(shown) * (SIDE + GAP) - GAP
    assert near(drawn, (shown.index(int(query)), 10.0, 20.0), QUERY) > 100


def test_a_wide_clip_is_shrunk_and_its_entries_stand_below_each_other() -> None:
    clip = torch.randint(256, (3, 4, 2 * SIDE, 3 * SIDE), dtype=torch.uint8)
    entry = Attention(clip, torch.rand(2, 3, 5), (0.0, 9.0, 9.0), "one")
    assert draw_heat(entry).shape == draw_arrows(entry).shape == (3, SIDE, 6 * SIDE + 3 * GAP)
    one, two = draw_attention([entry]), draw_attention([entry, entry], "a note")
    assert one.dtype == torch.uint8
    assert two.shape[1] - one.shape[1] > 2 * SIDE
    assert two.shape[2] == one.shape[2]


def test_the_picture_looks_from_the_solid_that_attends_to_the_other() -> None:
    clip = torch.zeros(3, 8, 32, 32, dtype=torch.uint8)
    boxes = torch.tensor([[1, 17, 7, 23], [24, 2, 30, 10]])
    frames = torch.tensor([[1, 3], [6, 8]])
    cells = [meets(*pair, CLIP, CELLS) for pair in zip(boxes, frames, strict=True)]
    assert cells == [[8, 16 + 8], [3 * 16 + 3, 3 * 16 + 4 + 3]]
    queries = (4, 8, 8)
    places = [(2.5, 20.0, 4.0), (7.5, 6.0, 27.0)]
    for number in (0, 1):
        weights = torch.zeros(prod(queries), prod(CELLS))
        row = weights[cell_of(places[number], CLIP, queries)]
        row[cells[1 - number][0]] = -3.0  # the dot product's may be negative
        row[5] = 1.0
        weights[cell_of(places[1 - number], CLIP, queries), cells[1 - number]] = 9.0  # at itself
        found = look_from_a_solid(boxes, frames, seeing(clip, weights, queries))
        assert found.query == places[number]
        assert torch.equal(found.weights, row.view(CELLS))
    nothing = torch.zeros(prod(queries), prod(CELLS))
    look = look_from_a_solid(boxes, frames, seeing(clip, nothing, queries))
    assert look.query == places[1]


def seeing(clip: Tensor, weights: Tensor, queries: Size) -> Callable[[Place], Attention]:
    """What a place attends to, by a whole matrix of weights (queries, keys)."""

    def look(at: Place) -> Attention:
        return Attention(clip, weights[cell_of(at, CLIP, queries)].view(CELLS), at, "one")

    return look


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, "embedded_gaussian"),
        ({"over": "space"}, "dot_product"),
        ({"over": "time"}, "embedded_gaussian"),
        ({"group": 2}, "concatenation"),
    ],
)
def test_the_weights_of_a_query_give_what_the_block_adds_there(options: dict, mode: str) -> None:
    torch.manual_seed(0)
    block = NonLocalBlock(4, Block(mode=mode, norm="none", zero_init="none", init="he", **options))
    x = torch.randn(1, 4, 4, 6, 5)
    t, row, column = 2, 5, 1
    weights = key_weights(block, x, (t, row, column))
    pooled = x if options.get("over") == "time" else torch.nn.functional.max_pool3d(x, (1, 2, 2))
    values = block.g(pooled)[0]  # (2, T, H', W')
    assert weights.shape == values.shape[1:]
    y = (values * weights).sum((1, 2, 3))
    added = block.out(y.view(1, -1, 1, 1, 1))[0, :, 0, 0, 0]
    torch.testing.assert_close((block(x) - x)[0, :, t, row, column], added)


def test_without_a_place_the_picture_looks_from_where_the_block_changes_most() -> None:
    torch.manual_seed(0)
    block = NonLocalBlock(3, Block(zero_init="none", init="he", norm="none"))

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nl = block

        def forward(self, clip: Tensor) -> Tensor:
            return self.nl(clip.float() / 255)

    clip = torch.randint(256, (3, 2, 4, 6), dtype=torch.uint8)
    net = Net().train()
    with torch.no_grad():
        change = (net(clip[None]) - clip[None].float() / 255).norm(dim=1)[0]
    number = int(change.argmax())
    found = look(net, block, clip, title="one")
    assert found.query == middle_of(number, (2, 4, 6), (2, 4, 6))
    assert found.weights.shape == (2, 2, 3)
    assert net.training
