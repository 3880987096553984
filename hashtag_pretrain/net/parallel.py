"""One model on several processes: gradients, optimizer or all of it shared out by torch itself.

    network = parallelise(model, "zero1")                    # ddp | zero1 | fsdp
    optimizer = shard_optimizer(parameter_groups(network), "zero1", partial(SGD, lr=0.1))
    model_part, optimizer_part = WholeModel(network), WholeOptimizer(network, optimizer)
    ...
    share_norms(model)                                       # before a save, on all ranks
    model_part.collect(), optimizer_part.collect()           # likewise
    checkpoint.save(folder, step, model=model_part, optimizer=optimizer_part)

Each of the three takes the same steps, up to rounding, and saves the same states: a run may go on
with another one. Batch norm sees the images of its own process alone, Sec. 2. In one
process all of this leaves model and optimizer as they are.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

WAYS = ("ddp", "zero1", "fsdp")
State = dict[str, Any]


def world_size() -> int:
    """Number of processes."""
    joined = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if joined else 1


def parallelise(
    model: nn.Module, how: str = "ddp", *, compress: bool = False, compiled: bool = False
) -> nn.Module:
    """The network to train: its backward pass leaves the mean of all processes' gradients.

    how: ddp and zero1 keep the whole model in each process, zero1 shares out the optimizer's state
    (`shard_optimizer`). fsdp shares out parameters, gradients and state, block by block, and
    changes the model in place: make the optimizer afterwards, and call the network by its
    `forward` alone. compress: gradients travel in bfloat16. compiled: by `torch.compile`.
    """
    if how not in WAYS:
        raise ValueError(f"parallel={how}: choose from {', '.join(WAYS)}.")
    if how == "fsdp" and world_size() > 1:
        return shard_model(model, compress=compress, compiled=compiled)
    if compiled:
        model.compile()
    if world_size() == 1:
        return model
    device = next(model.parameters()).device
    ids = [device.index] if device.type == "cuda" else None
    network = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    # Norms stay local. The argument of this name is deprecated, its successor not in torch 2.11.
    network.broadcast_buffers = False
    if compress:
        network.register_comm_hook(None, bf16_compress_hook)
    return network


def shard_model(model: nn.Module, *, compress: bool, compiled: bool) -> nn.Module:
    """`parallelise` by "fsdp": every block is gathered when it is its turn."""
    for value in model.state_dict().values():  # rank 0's, which DDP sends out itself
        distributed.broadcast(value, 0)
    mesh = init_device_mesh(next(model.parameters()).device.type, (world_size(),))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if compress else None)
    stages = [each for name, each in model.named_children() if name.startswith("layer")]
    for block in (block for stage in stages for block in stage.children()):
        if compiled:
            block.compile()
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


@contextmanager
def summing(network: nn.Module, *, last: bool) -> Iterator[None]:
    """A forward and backward pass of several for one step; the last one averages the gradients."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(last)
    alone = isinstance(network, DistributedDataParallel) and not last
    with network.no_sync() if alone else nullcontext():  # type: ignore[operator]
        yield


def shard_optimizer(
    groups: Iterable[Any], how: str, make: Callable[[Iterable[Any]], Optimizer]
) -> Optimizer:
    """The optimizer that `make` makes of parameters or groups, each process keeping its share.

    make: such as `partial(torch.optim.SGD, lr=0.1, momentum=0.9)`. With fsdp the parameters are
    shared out already.
    """
    if how == "zero1" and world_size() > 1:
        return ZeroRedundancyOptimizer(groups, optimizer_class=make)  # type: ignore[arg-type]
    return make(groups)


class WholeModel:
    """A network as a part of checkpoints: `collect` on all ranks, then `state_dict` on rank 0."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.collected: State = {}

    def collect(self) -> None:
        """Gather what is shared out."""
        if isinstance(self.network, FSDPModule):
            self.collected = get_model_state_dict(self.network, options=whole())

    def state_dict(self) -> State:
        """The plain model's: its names have no prefix, its tensors are whole."""
        if isinstance(self.network, FSDPModule):
            state, self.collected = self.collected, {}
            return require_collected(state)
        return plain_model(self.network).state_dict()

    def load_state_dict(self, state: State) -> None:
        """Restore the plain model's state; call it on all ranks."""
        if isinstance(self.network, FSDPModule):
            set_model_state_dict(self.network, dict(state), options=whole())
        else:
            plain_model(self.network).load_state_dict(state)


class WholeOptimizer:
    """Its optimizer likewise: the state is that of the plain optimizer of the plain model."""

    def __init__(self, network: nn.Module, optimizer: Optimizer) -> None:
        self.network, self.optimizer = network, optimizer
        self.collected: State = {}

    def collect(self) -> None:
        """Gather what is shared out."""
        if isinstance(self.optimizer, ZeroRedundancyOptimizer):
            self.optimizer.consolidate_state_dict(to=0)
            main = distributed.get_rank() == 0
            self.collected = self.optimizer.state_dict() if main else {}
        elif isinstance(self.network, FSDPModule):
            named = get_optimizer_state_dict(self.network, self.optimizer, options=whole())
            numbers = {name: number for number, name in enumerate(self.names())}
            self.collected = relabelled(named, numbers) if named.get("param_groups") else {}

    def state_dict(self) -> State:
        """Parameters are numbered through the groups, as torch's optimizers do."""
        if self.shared():
            state, self.collected = self.collected, {}
            return require_collected(state)
        return self.optimizer.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Restore it, each process its share; call it on all ranks."""
        if isinstance(self.network, FSDPModule):
            named = relabelled(state, dict(enumerate(self.names())))
            set_optimizer_state_dict(self.network, self.optimizer, named, options=whole())
        else:
            self.optimizer.load_state_dict(state)

    def shared(self) -> bool:
        """Whether a process has its share alone."""
        sharded = isinstance(self.network, FSDPModule)
        return sharded or isinstance(self.optimizer, ZeroRedundancyOptimizer)

    def names(self) -> list[str]:
        """Names of the parameters, through the groups of the optimizer."""
        names = {parameter: name for name, parameter in self.network.named_parameters()}
        return [names[each] for group in self.optimizer.param_groups for each in group["params"]]


def whole() -> StateDictOptions:
    """Whole tensors: on the CPU of rank 0 when saved, read on all ranks."""
    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def relabelled(state: State, labels: dict) -> State:
    """An optimizer's state with other names of its parameters."""
    groups = [
        {**group, "params": [labels[each] for each in group["params"]]}
        for group in state["param_groups"]
    ]
    values = {labels[each]: value for each, value in state["state"].items()}
    return {"state": values, "param_groups": groups}


def require_collected(state: State) -> State:
    """The state; ValueError where nobody gathered it."""
    if not state:
        raise ValueError(
            "the state is shared out over processes: call collect() on all, then save."
        )
    return state


def plain_model(network: nn.Module) -> nn.Module:
    """The model inside of DistributedDataParallel."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def gather_model(network: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
    """The plain model with all weights in each process, to evaluate or copy; call it on all ranks.

    build: makes a model of the same shape, which is needed for a network that is shared out.
    """
    if not isinstance(network, FSDPModule):
        return plain_model(network)
    state = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True))
    device = next(network.parameters()).device
    model = build().to(device).train(network.training)
    model.load_state_dict(state)
    return model


@torch.no_grad()
def share_norms(model: nn.Module) -> None:
    """Give all ranks the mean of their running statistics of batch norm; call it on all ranks.

    Each rank normalises by its own images, Sec. 2, so that their running statistics differ.
    """
    # Unstated: which ones the paper kept; the mean has the least noise.
    if world_size() == 1:
        return
    norms = [each for each in model.modules() if isinstance(each, _BatchNorm)]
    values: list[Tensor] = [
        value
        for each in norms
        for value in (each.running_mean, each.running_var)
        if value is not None
    ]
    flat = torch.cat([value.flatten() for value in values])
    distributed.all_reduce(flat)
    parts = (flat / world_size()).split([value.numel() for value in values])
    for value, part in zip(values, parts, strict=True):
        value.copy_(part.view_as(value))
