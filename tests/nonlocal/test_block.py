"""The block against the sums of Eq. 1-6 written as loops, and against PyTorch's attention."""

import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from common import timing
from nonlocal_ import benchmark
from nonlocal_ import block as module
from nonlocal_.block import (
    Block,
    NonLocalBlock,
    attend,
    attend_concat,
    attend_dot,
    attend_softmax,
    concat_weights,
    dot_weights,
    softmax_weights,
)

MODES = ["gaussian", "embedded_gaussian", "dot_product", "concatenation"]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A non-local block sees")
        yield


@pytest.fixture
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of a few queries, so that small inputs need several."""
    monkeypatch.setattr(module, "SLICE", 200)


def make(channels: int, positions: int = 3, **options: Any) -> NonLocalBlock:
    """A block in float64 that changes its input."""
    given: dict[str, Any] = {"norm": "none", "zero_init": "none", "init": "he"} | options
    block = NonLocalBlock(channels, Block(**given), positions=positions).double()
    for name, each in block.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(each)
    return block


def loops(block: NonLocalBlock, x: Tensor) -> Tensor:
    """Eq. 1 to 6 of one example (C, ...) with all frames: two loops over the positions."""
    options, sizes = block.block, x.shape[1:]
    window = [1 if axis == 0 and len(sizes) == 3 else min(2, n) for axis, n in enumerate(sizes)]
    if not options.pool:
        window = [1] * len(sizes)

    def cell(values: dict[Any, Tensor], at: tuple[int, ...]) -> Tensor:
        inside = itertools.product(
            *(range(w * i, w * i + w) for w, i in zip(window, at, strict=True))
        )
        return torch.stack([values[each] for each in inside]).amax(0)

    def linear(conv: Any, column: Tensor) -> Tensor:
        return conv.weight.flatten(1) @ column + conv.bias

    places = list(itertools.product(*map(range, sizes)))
    cells = list(itertools.product(*(range(n // w) for n, w in zip(sizes, window, strict=True))))
    column = {at: x[(slice(None), *at)] for at in places}

    def key(conv: Any, at: tuple[int, ...]) -> Tensor:
        if options.pool_first:
            return linear(conv, cell(column, at))
        inside = itertools.product(
            *(range(w * i, w * i + w) for w, i in zip(window, at, strict=True))
        )
        return torch.stack([linear(conv, column[each]) for each in inside]).amax(0)

    g = [key(block.g, at) for at in cells]
    gaussian = options.mode == "gaussian"
    phi = [cell(column, at) if gaussian else key(block.phi, at) for at in cells]
    z = torch.empty_like(x)
    for at in places:
        theta = column[at] if gaussian else linear(block.theta, column[at])
        scale = 1 / math.sqrt(len(theta)) if options.scale == "sqrt" else 1.0
        f = []
        for phi_j in phi:
            if options.mode == "dot_product":
                f.append(theta @ phi_j)
            elif options.mode == "concatenation":
                f.append(torch.relu(block.w_f @ torch.cat((theta, phi_j))))
            else:
                f.append(torch.exp(scale * theta @ phi_j))
        c = sum(f) if "gaussian" in options.mode else len(f)
        y = sum(f_j * g_j for f_j, g_j in zip(f, g, strict=True)) / c
        z[(slice(None), *at)] = linear(block.out, y) + column[at]
    return z


SHAPES = [(13,), (1,), (7, 7), (5, 1), (2, 5, 7), (1, 4, 6), (3, 1, 1), (1, 1, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_loops_over_queries_and_keys(
    mode: str, shape: tuple[int, ...], few_at_a_time: None
) -> None:
    for pool_first, scale in ((True, "sqrt"), (False, "none")):
        options = {"mode": mode, "pool_first": pool_first, "scale": scale}
        block = make(3, len(shape), **options)
        x = torch.randn(2, 3, *shape, dtype=torch.float64)
        expected = torch.stack([loops(block, each) for each in x])
        torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-10)
        block.block.algorithm = "naive"
        torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_equals_the_loops_without_pooling(mode: str, few_at_a_time: None) -> None:
    block = make(4, pool=False, mode=mode)
    x = torch.randn(1, 4, 2, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(block(x)[0], loops(block, x[0]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_pool_and_convolutions_matters(mode: str) -> None:
    block = make(4, mode=mode)
    x = torch.randn(1, 4, 2, 6, 6, dtype=torch.float64)
    before = block(x)
    block.block.pool_first = False
    assert (block(x) - before).abs().max() > 0.01


@pytest.mark.parametrize(("scale", "factor"), [("none", 1.0), ("sqrt", None)])
def test_embedded_gaussian_equals_scaled_dot_product_attention(
    scale: str, factor: float | None, few_at_a_time: None
) -> None:
    block = make(8, 2, scale=scale, pool=False)
    x = torch.randn(2, 8, 6, 7, dtype=torch.float64)
    q, k, v = (conv(x).flatten(2).transpose(1, 2) for conv in (block.theta, block.phi, block.g))
    y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=factor)[:, 0]
    expected = x + block.out(y.transpose(1, 2).unflatten(2, (6, 7)))
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)


def test_embedded_gaussian_equals_multihead_attention_of_one_head() -> None:
    block = make(8, 1, pool=False, inner_ratio=1.0)
    theirs = nn.MultiheadAttention(8, 1, batch_first=True).double()
    convs = (block.theta, block.phi, block.g)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([each.weight.flatten(1) for each in convs]))
        theirs.in_proj_bias.copy_(torch.cat([each.bias for each in convs]))
        theirs.out_proj.weight.copy_(block.out.weight.flatten(1))
        theirs.out_proj.bias.copy_(block.out.bias)
    x = torch.randn(2, 8, 11, dtype=torch.float64)
    tokens = x.transpose(1, 2)
    y, weights = theirs(tokens, tokens, tokens)
    torch.testing.assert_close(block(x), x + y.transpose(1, 2), rtol=0, atol=1e-12)
    torch.testing.assert_close(block.attention(x), weights, rtol=0, atol=1e-12)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_the_way_for_gpus_equals_the_matrix_for_any_width() -> None:
    for width, out in ((5, 5), (8, 16), (6, 3)):
        q, k, v = random(2, 9, width), random(2, 7, width), random(2, 7, out)
        expected = attend(softmax_weights(q, k, 0.3), v)
        y = module._attend_by_kernel(q, k, v, 0.3)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_on_a_gpu_it_equals_the_cpu_in_linear_memory(mode: str, dtype: torch.dtype) -> None:
    block = make(32, mode=mode).float()
    x = torch.randn(1, 32, 8, 28, 28)
    expected = block(x) - x
    block.cuda()
    x = x.cuda().requires_grad_()

    def run() -> Tensor:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            y = block(x)
        y.sum().backward()
        return (y - x).detach()

    error = (run().cpu() - expected).norm() / expected.norm()
    assert error < (1e-3 if dtype == torch.float32 else 0.03)
    memory = timing.extra_memory(run, "cuda")
    assert memory is not None
    assert memory < 6272 * 1568 * 4  # bytes of one matrix


def test_gradients_of_the_softmax_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE", 16)  # 2 of 7 queries
    q, k, v = random(2, 7, 1), random(2, 4, 1), random(2, 4, 2)
    assert torch.autograd.gradcheck(lambda *each: attend_softmax(*each, 0.7), (q, k, v))


@pytest.mark.parametrize("width", [1, 9])
def test_gradients_of_the_dot_product_in_either_order(width: int) -> None:
    q, k, v = random(2, 7, width), random(2, 5, width), random(2, 5, width)
    assert torch.autograd.gradcheck(attend_dot, (q, k, v))


def test_gradients_of_the_sorted_concatenation() -> None:
    assert torch.autograd.gradcheck(attend_concat, (random(2, 7), random(2, 5), random(2, 5, 3)))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_equal_those_of_the_naive_form(mode: str, few_at_a_time: None) -> None:
    block = make(6, mode=mode)
    x = random(2, 6, 2, 7, 7)
    weights = torch.randn_like(x)
    found = []
    for algorithm in ("auto", "naive"):
        block.block.algorithm = algorithm
        found.append(torch.autograd.grad((block(x) * weights).sum(), [x, *block.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("queries", "keys", "width"), [(40, 10, 8), (40, 10, 7), (8, 8, 64)])
def test_dot_product_takes_the_order_of_fewer_operations(
    queries: int, keys: int, width: int
) -> None:
    q, k, v = random(1, queries, width), random(1, keys, width), random(1, keys, width)
    with FlopCounterMode(display=False) as counter:
        y = attend_dot(q, k, v)
    quadratic, linear = 2 * queries * keys * width, (queries + keys) * width**2
    assert counter.get_total_flops() == 2 * min(quadratic, linear)
    torch.testing.assert_close(y, attend(dot_weights(q, k), v), rtol=0, atol=1e-12)


def test_sorted_concatenation_equals_the_tensor_of_all_pairs() -> None:
    theta, phi, v, w_f = random(2, 9, 4), random(2, 6, 4), random(2, 6, 3), random(8)
    pairs = torch.cat(
        (theta[:, :, None].expand(-1, -1, 6, -1), phi[:, None].expand(-1, 9, -1, -1)), -1
    )  # (B, N, M, 2 D)
    explicit = torch.einsum("bnm,bme->bne", torch.relu(pairs @ w_f), v) / 6
    ours = attend_concat(theta @ w_f[:4], phi @ w_f[4:], v)
    torch.testing.assert_close(ours, explicit, rtol=0, atol=1e-12)
    change = torch.randn_like(ours)
    inputs = (theta, phi, v, w_f)
    expected = torch.autograd.grad(explicit, inputs, change)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, change), expected)


def test_pairs_at_the_kink_of_the_relu_have_no_weight_and_no_gradient() -> None:
    a = torch.tensor([[1.0, -2.0, 0.0]], requires_grad=True)
    b = torch.tensor([[-1.0, 2.0, 2.0, 0.0]], requires_grad=True)
    v = torch.ones(1, 4, 1)
    y = attend_concat(a, b, v)
    # 1: 3 + 3 + 1 over 4 keys; -2: none; 0: 2 + 2
    torch.testing.assert_close(y, torch.tensor([[[1.75], [0.0], [1.0]]]))
    da, db = torch.autograd.grad(y.sum(), (a, b))
    torch.testing.assert_close(da, torch.tensor([[0.75, 0.0, 0.5]]))
    torch.testing.assert_close(db, torch.tensor([[0.0, 0.5, 0.5, 0.25]]))


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("mode", ["softmax", "dot", "concat"])
def test_float32_is_within_1e_5_of_the_naive_form(mode: str, offset: float) -> None:
    q, k, v = torch.randn(2, 1568, 16), torch.randn(2, 392, 16), torch.randn(2, 392, 32)
    if mode == "concat":
        a, b = q[..., 0] + offset, k[..., 0] - offset
        ours, naive = attend_concat(a, b, v), attend(concat_weights(a, b), v)
    elif mode == "dot":
        ours, naive = attend_dot(q, k, v), attend(dot_weights(q, k), v)
    else:
        ours = attend_softmax(q + offset, k, v, 0.25)
        naive = attend(softmax_weights(q + offset, k, 0.25), v)
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-5)


STARTS = [
    {},
    {"norm": "group"},
    {"norm": "none"},
    {"norm": "none", "zero_init": "conv"},
    {"zero_init": "conv"},
]


@pytest.mark.parametrize("options", STARTS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_a_fresh_block_returns_its_input(mode: str, options: dict[str, str]) -> None:
    block = NonLocalBlock(6, Block(mode=mode, **options))  # type: ignore[arg-type]
    x = torch.randn(2, 6, 2, 7, 7)
    for training in (True, False):
        assert torch.equal(block.train(training)(x), x)


def test_zero_init_none_is_no_identity() -> None:
    block = NonLocalBlock(6, Block(zero_init="none", init="he"))
    x = torch.randn(2, 6, 2, 7, 7)
    assert (block(x) - x).abs().max() > 0.1


@pytest.mark.parametrize("mode", MODES)
def test_first_only_the_norm_learns_and_every_parameter_has_a_gradient(mode: str) -> None:
    block = NonLocalBlock(6, Block(mode=mode))
    x = torch.randn(2, 6, 2, 7, 7)
    (block(x) * torch.randn_like(x)).sum().backward()
    for name, each in block.named_parameters():
        assert each.grad is not None, name  # so that DistributedDataParallel waits for none
        assert bool(each.grad.any()) == name.startswith("bn."), name


@pytest.mark.parametrize("over", ["space", "time", "group"])
@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_space_time_and_groups_equal_masked_attention(
    mode: str, pool: bool, over: str, few_at_a_time: None
) -> None:
    given: dict[str, Any] = {"group": 2} if over == "group" else {"over": over}
    block = make(4, mode=mode, pool=pool and over != "time", **given)
    x = torch.randn(2, 4, 4, 5, 6, dtype=torch.float64)
    pooled = F.max_pool3d(x, (1, 2, 2)) if block.block.pool else x

    def tokens(name: str, z: Tensor) -> Tensor:
        return (z if not name else getattr(block, name)(z)).flatten(2).transpose(1, 2)

    gaussian = mode == "gaussian"
    q, k = tokens("" if gaussian else "theta", x), tokens("" if gaussian else "phi", pooled)
    frames, pixels = (torch.cartesian_prod(torch.arange(4), torch.arange(30))).T
    key_frames, key_pixels = torch.cartesian_prod(
        torch.arange(4), torch.arange(pooled[0, 0, 0].numel())
    ).T
    if over == "time":
        seen = pixels[:, None] == key_pixels
    else:
        each = 2 if over == "group" else 1
        seen = (frames // each)[:, None] == key_frames // each
    if mode == "dot_product":
        f = (q @ k.mT).masked_fill(~seen, 0) / seen.sum(1, keepdim=True)
    elif mode == "concatenation":
        f = torch.relu((q @ block.w_f[:2])[:, :, None] + (k @ block.w_f[2:])[:, None])
        f = f.masked_fill(~seen, 0) / seen.sum(1, keepdim=True)
    else:
        f = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, -torch.inf).softmax(-1)
    y = (f @ tokens("g", pooled)).transpose(1, 2).unflatten(2, x.shape[2:])
    torch.testing.assert_close(block(x), x + block.out(y), rtol=0, atol=1e-12)


def test_groups_equal_a_loop_over_them() -> None:
    block, whole = make(4, group=2), make(4)
    whole.load_state_dict(block.state_dict())
    x = torch.randn(2, 4, 6, 5, 6, dtype=torch.float64)
    expected = torch.cat([whole(part) for part in x.split(2, 2)], 2)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(block(x[:, :, :1]), whole(x[:, :, :1]))  # fewer frames: one group
    with pytest.raises(ValueError, match=r"3 frames .* block\.group=2: give block\.group=1"):
        block(x[:, :, :3])


@pytest.mark.parametrize("mode", MODES)
def test_positions_have_no_order_and_equal_ones_stay_equal(mode: str) -> None:
    block = make(4, pool=False, mode=mode)
    x = torch.randn(1, 4, 3, 4, 5, dtype=torch.float64)
    order = torch.randperm(60)

    def permute(z: Tensor) -> Tensor:
        return z.flatten(2)[..., order].view_as(z)

    torch.testing.assert_close(block(permute(x)), permute(block(x)), rtol=0, atol=1e-12)
    constant = block(x[..., :1, :1, :1].expand_as(x))
    torch.testing.assert_close(constant, constant[..., :1, :1, :1].expand_as(x))


@pytest.mark.parametrize("mode", MODES)
def test_attention_gives_the_weights_of_the_output(mode: str) -> None:
    block = make(4, mode=mode)
    x = torch.randn(2, 4, 2, 6, 6, dtype=torch.float64)
    weights = block.attention(x)  # (2, 72, 18)
    v = block.g(F.max_pool3d(x, (1, 2, 2))).flatten(2).transpose(1, 2)
    y = (weights @ v).transpose(1, 2).unflatten(2, x.shape[2:])
    torch.testing.assert_close(block(x), x + block.out(y))
    if "gaussian" in mode:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 72).double())
        assert weights.min() >= 0
    if mode == "dot_product":
        assert weights.min() < 0 < weights.max()


@pytest.mark.parametrize("mode", MODES)
def test_a_tiled_input_gives_a_tiled_output(mode: str) -> None:
    block = make(4, mode=mode)
    x = torch.randn(1, 4, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(block(x.tile(1, 1, 2, 3, 1)), block(x).tile(1, 1, 2, 3, 1))


TINY = [(1, 2, 1, 1), (1, 2, 1, 5), (3, 2, 2, 2), (3, 1, 7, 7), (1, 1, 3, 2), (5, 2, 9, 6)]


@pytest.mark.parametrize("shape", TINY, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_tiny_maps_and_few_channels_keep_their_shape(mode: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(2, *shape)
    for pool_first in (True, False):
        options = Block(mode=mode, zero_init="none", pool_first=pool_first)
        y = NonLocalBlock(shape[0], options)(x)
        assert y.shape == x.shape
        assert y.isfinite().all()
    assert NonLocalBlock(shape[0], options).eval()(x[:0]).shape == (0, *shape)  # no regions


def test_small_maps_are_told_of_once() -> None:
    module._warn_small.cache_clear()
    block = NonLocalBlock(2)
    with pytest.warns(UserWarning, match="3 x 5.*6 x 6"):
        block(torch.randn(1, 2, 1, 3, 5))
    with warnings.catch_warnings(action="error"):
        block(torch.randn(1, 2, 1, 3, 5))
        block(torch.randn(1, 2, 1, 6, 6))
        NonLocalBlock(2, positions=1)(torch.randn(2, 2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_large_half_precision_inputs_are_finite_and_exact(dtype: torch.dtype) -> None:
    options = Block(mode="gaussian", zero_init="none", scale="none", norm="none")
    block = NonLocalBlock(1024, options, positions=2)
    x = (20 * (3 * torch.randn(1, 1024, 12, 12)).abs()).to(dtype)
    with torch.autocast("cpu", dtype):
        y, weights = block(x), block.attention(x)
    assert (y.dtype, weights.dtype) == (dtype, torch.float32)
    assert y.isfinite().all()
    exact = block.double()
    torch.testing.assert_close(weights.double(), exact.attention(x.double()), rtol=0, atol=0.01)
    error = (y.double() - exact(x.double())).abs().max() / y.abs().max()
    assert error < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("mode", MODES)
def test_autocast_computes_the_weights_of_the_half_embeddings_in_float32(mode: str) -> None:
    x = torch.randn(2, 16, 2, 9, 9)
    block = make(16, mode=mode).float()

    def change(algorithm: str, amp: bool) -> Tensor:
        block.block.algorithm = algorithm
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            y = block(x)
            y.sum().backward()
        assert y.dtype == torch.float32
        return y.detach() - x

    ours, naive, exact = change("auto", True), change("naive", True), change("auto", False)
    assert (ours - naive).norm() < 0.004 * exact.norm()  # the rounding of y
    assert (ours - exact).norm() < 0.02 * exact.norm()


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else [made]:
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return made


@pytest.mark.parametrize("mode", MODES)
def test_no_tensor_grows_with_queries_times_keys(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLICE", 2**13)
    block = NonLocalBlock(8, Block(mode=mode))
    largest = {}
    for side in (8, 16):
        x = torch.randn(1, 8, 4, side, side, requires_grad=True)
        with Largest() as seen:
            block(x).sum().backward()
        largest[side] = seen.elements
    queries, keys = 4 * 16 * 16, 4 * 8 * 8
    assert largest[16] <= 4 * largest[8]
    assert largest[16] < queries * keys / 20
    with Largest() as seen:
        NonLocalBlock(8, Block(mode=mode, algorithm="naive"))(x)
    assert seen.elements >= queries * keys


@pytest.mark.slow  # in all sizes: the test above
def test_a_long_clip_takes_less_than_a_quarter_of_the_naive_memory() -> None:
    # 128 frames at res3, here of 32 channels: a matrix of 12,544 x 3,136 weights, 157 MB
    names, shape = ["ours", "the matrix"], (1, 32, 16, 28, 28)
    options = benchmark.Options(threads=1)
    ours, naive = timing.in_new_process(
        benchmark.block_memory, names, "block", shape, options
    ).values()
    if naive is None:
        pytest.skip("this system does not tell the peak of the memory")
    assert ours < 0.25 * naive


@pytest.mark.parametrize(
    "mode", [pytest.param("gaussian", marks=pytest.mark.slow), "concatenation"]
)
def test_compiles_as_one_graph(mode: str) -> None:
    block = make(4, mode=mode).float()
    x = torch.randn(2, 4, 2, 9, 9)
    torch.testing.assert_close(torch.compile(block, backend="eager", fullgraph=True)(x), block(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.trace")
def test_a_softmax_block_that_learns_can_be_traced_and_exported() -> None:
    block = make(8, mode="embedded_gaussian").float().eval()
    x = torch.randn(2, 8, 2, 9, 9)
    graphs = torch.jit.trace(block, x), torch.export.export(block, (x,)).module()
    for graph in graphs:
        torch.testing.assert_close(graph(2 * x), block(2 * x))


def test_names_of_the_parameters_are_those_of_the_released_models() -> None:
    pairs = {f"{name}.{part}" for name in ("g", "out", "bn") for part in ("weight", "bias")}
    pairs |= {"bn.running_mean", "bn.running_var", "bn.num_batches_tracked"}
    assert NonLocalBlock(4, Block(mode="gaussian")).state_dict().keys() == pairs
    pairs |= {f"{name}.{part}" for name in ("theta", "phi") for part in ("weight", "bias")}
    assert NonLocalBlock(4).state_dict().keys() == pairs
    assert NonLocalBlock(4, Block(mode="concatenation")).state_dict().keys() == pairs | {"w_f"}
    assert NonLocalBlock(4).theta.weight.shape == (2, 4, 1, 1, 1)


def test_the_draw_follows_the_released_code_or_the_text() -> None:
    ours = NonLocalBlock(512, Block(mode="concatenation"))
    he = NonLocalBlock(512, Block(mode="concatenation", init="he"))
    for name in ("theta", "phi", "g", "out"):
        weight = ours.get_submodule(name).weight
        assert weight.std().item() == pytest.approx(0.01, rel=0.02)
        fan_in = weight.shape[1]
        std = he.get_submodule(name).weight.std().item()
        assert std == pytest.approx(math.sqrt(2 / fan_in), rel=0.02)
        assert not ours.get_submodule(name).bias.any()
    assert he.w_f.std().item() == pytest.approx(math.sqrt(2 / 512), rel=0.15)


def test_options_that_make_no_sense_are_named() -> None:
    with pytest.raises(ValueError, match="mode=gauss must be one of"):
        Block(mode="gauss")
    for ratio in (0, math.nan, 1e9, "1"):
        with pytest.raises(ValueError, match=f"block.inner_ratio='?{ratio}"):
            Block(inner_ratio=ratio)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"block\.pool='no' must be of type bool"):
        Block(pool="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"block\.group=1\.5 must be of type int"):
        Block(group=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="channels=0"):
        NonLocalBlock(0)
    with pytest.raises(
        ValueError, match=r"has 5 channels, the block 4: make it NonLocalBlock\(5\)"
    ):
        NonLocalBlock(4)(torch.randn(1, 5, 2, 8, 8))
    with pytest.raises(ValueError, match="group=-1"):
        Block(group=-1)
    with pytest.raises(ValueError, match="positions=4"):
        NonLocalBlock(4, positions=4)
    with pytest.raises(ValueError, match=r"over=time.*clips"):
        NonLocalBlock(4, Block(over="time"), positions=2)
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 8\).*3 axes"):
        NonLocalBlock(4)(torch.randn(2, 4, 8, 8))
