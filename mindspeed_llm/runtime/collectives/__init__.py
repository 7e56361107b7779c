"""Collective communication: one interface, and for every group an engine that carries it.

`hccl` is MindSpore's native set on Ascend. On CPU, `shared_memory` serves groups within one machine and `cpu` those that
cross machines, over `mccl`, which builds what MindSpore's engine there lacks. Every function takes its group explicitly and
is the identity for a group of one, so a single process needs no communication library at all. Tensors are cut and
joined along axis 0. Nothing here is differentiable: gradients are the business of `core/tensor_parallel/layers.py`
and its neighbours.
"""

import os
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType

from mindspore import Tensor

from mindspeed_llm.runtime import device
from mindspeed_llm.runtime.trace import traced


@dataclass(frozen=True)
class Group:
    """Ranks that communicate. `ranks` are global, `rank` is this process's place among them; `engine` is the module that
    serves them, None for a group of one.
    """

    name: str
    ranks: tuple[int, ...]
    rank: int
    engine: ModuleType | None = field(default=None, compare=False, repr=False)

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)


_state = {"device": None, "world": Group("world", (0,), 0)}
_groups: dict[tuple[int, ...], Group] = {}


def launched_ranks() -> int:
    """Number of ranks that `msrun` started; 1 without it."""
    return int(os.environ.get("RANK_SIZE", "1"))


def first_rank_on_node() -> int:
    """Global rank of the first of the ranks that `msrun` started on this node; a node's ranks are consecutive."""
    return world().rank - int(os.environ.get("DEVICE_ID", "0"))


def init() -> Group:
    """Join the job that `msrun` started (RANK_SIZE above 1) and return the world group; one process: a group of one."""
    if _state["device"] is None and launched_ranks() > 1:
        communication = import_module(f"{__name__}.{'cpu' if device.on_cpu() else 'hccl'}")
        rank, size = communication.init()
        ranks = tuple(range(size))
        _state.update(device=communication,
                      world=Group(communication.WORLD, ranks, rank, communication.engine_of(ranks)))
    return _state["world"]


def world() -> Group:
    """The group of all ranks."""
    return _state["world"]


def new_group(name: str, ranks: tuple[int, ...]) -> Group:
    """The group of the given global ranks, this process among them; made once, later calls get the same one.

    Every member must make its groups in the same order; others must not call this.
    """
    if ranks == world().ranks:
        return world()
    if ranks not in _groups:
        engine = _state["device"].engine_of(ranks) if len(ranks) > 1 else None
        if engine is not None:
            engine.create_group(name, ranks)
        _groups[ranks] = Group(name, ranks, ranks.index(world().ranks[world().rank]), engine)
    return _groups[ranks]


@traced("communication")
def all_reduce(tensor: Tensor, group: Group, op: str = "sum") -> Tensor:
    """Sum (or `max`) of every rank's tensor, on every rank. Same shape and dtype; on CPU the sum of bf16/fp16
    is taken in fp32.
    """
    return tensor if group.size == 1 else group.engine.all_reduce(tensor, group, op)


@traced("communication")
def all_gather(tensor: Tensor, group: Group) -> Tensor:
    """`(n, ...)` of every rank, joined along axis 0 in rank order: `(size * n, ...)`."""
    return tensor if group.size == 1 else group.engine.all_gather(tensor, group)


@traced("communication")
def reduce_scatter(tensor: Tensor, group: Group) -> Tensor:
    """Sum over ranks of `(size * n, ...)`, of which rank r keeps rows r*n to (r+1)*n."""
    return tensor if group.size == 1 else group.engine.reduce_scatter(tensor, group)


@traced("communication")
def start_all_reduce(tensor: Tensor, group: Group):
    """`all_reduce` (sum) that may go on while the caller computes; returns a handle for `finish`."""
    return (tensor, None) if group.size == 1 else group.engine.start_all_reduce(tensor, group)


@traced("communication")
def start_all_gather(tensor: Tensor, group: Group):
    """`all_gather` that may go on while the caller computes; returns a handle for `finish`."""
    return (tensor, None) if group.size == 1 else group.engine.start_all_gather(tensor, group)


@traced("communication")
def start_reduce_scatter(tensor: Tensor, group: Group):
    """`reduce_scatter` that may go on while the caller computes; returns a handle for `finish`."""
    return (tensor, None) if group.size == 1 else group.engine.start_reduce_scatter(tensor, group)


@traced("communication")
def finish(handle) -> Tensor:
    """The result of a `start_...`, complete."""
    result, work = handle
    if work is not None:
        work.wait()
    return result


@traced("communication")
def broadcast(tensor: Tensor, group: Group, source: int = 0) -> Tensor:
    """The tensor of group member `source`, on every rank; the others' tensors give shape and dtype."""
    return tensor if group.size == 1 else group.engine.broadcast(tensor, group, source)


@traced("communication")
def all_to_all(parts: list[Tensor], group: Group) -> list[Tensor]:
    """Send `parts[r]` to member r; returns what each member sent here, in rank order. Parts have equal shapes."""
    return parts if group.size == 1 else group.engine.all_to_all(parts, group)


@traced("communication")
def start_exchange(sends: list[tuple[Tensor, int]], receives: list[tuple[tuple[int, ...], object, int]],
                   group: Group):
    """Start point-to-point messages: `sends` are (tensor, member), `receives` are (shape, dtype, member).

    All messages of one call are under way together, so neighbours may send to each other at once without deadlock.
    Returns a handle for `finish_exchange`; communication may go on while the caller computes.
    """
    return group.engine, group.engine.start_exchange(sends, receives, group)


@traced("communication")
def finish_exchange(handle) -> list[Tensor]:
    """Wait for the messages of `start_exchange`; returns the received tensors in the order asked for."""
    engine, messages = handle
    return engine.finish_exchange(messages)


@traced("communication")
def barrier() -> None:
    """Wait for all ranks."""
    if world().size > 1:
        world().engine.barrier(world())
