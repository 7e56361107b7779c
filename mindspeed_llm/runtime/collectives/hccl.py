"""Collectives on Ascend: MindSpore's documented `ops.communication` calls over HCCL, one each.

Reductions and gathers give back a new tensor, which MindSpore documents as the way of these functions that is not in
place: one call from Python, where filling a tensor is two. The other functions work in place only.
"""

import sys
from types import ModuleType

from mindspore import Tensor, communication, mint
from mindspore.ops import communication as dist

from mindspeed_llm.runtime.collectives import Group

WORLD = "hccl_world_group"


def init() -> tuple[int, int]:
    """Join the job; returns (rank, world size)."""
    communication.init("hccl")
    dist.set_comm_ops_inplace(False, ["all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor"])
    return communication.get_rank(), communication.get_group_size()


def engine_of(_ranks: tuple[int, ...]) -> ModuleType:
    """The engine of a group of these global ranks: this one."""
    return sys.modules[__name__]


def create_group(name: str, ranks: tuple[int, ...]) -> None:
    """Create a communication group; members only, same order on each."""
    communication.create_group(name, list(ranks))


def all_reduce(tensor: Tensor, group: Group, op: str) -> Tensor:
    """See the package."""
    return dist.all_reduce(tensor.contiguous(), op=op, group=group.name)[0]


def all_gather(tensor: Tensor, group: Group) -> Tensor:
    """See the package."""
    return _all_gather(tensor, group, False)[0]


def reduce_scatter(tensor: Tensor, group: Group) -> Tensor:
    """See the package."""
    return _reduce_scatter(tensor, group, False)[0]


def start_all_reduce(tensor: Tensor, group: Group):
    """See the package."""
    return dist.all_reduce(tensor.contiguous(), group=group.name, async_op=True)


def start_all_gather(tensor: Tensor, group: Group):
    """See the package."""
    return _all_gather(tensor, group, True)


def start_reduce_scatter(tensor: Tensor, group: Group):
    """See the package."""
    return _reduce_scatter(tensor, group, True)


def broadcast(tensor: Tensor, group: Group, source: int) -> Tensor:
    """See the package."""
    result = mint.clone(tensor)
    dist.broadcast(result, src=group.ranks[source], group=group.name)
    return result


def all_to_all(parts: list[Tensor], group: Group) -> list[Tensor]:
    """See the package."""
    received = [mint.empty(part.shape, dtype=part.dtype) for part in parts]
    dist.all_to_all(received, [part.contiguous() for part in parts], group=group.name)
    return received


def start_exchange(sends, receives, group: Group):
    """See the package. One batch on the group's own communicator; peers are global ranks, as everywhere in `dist`."""
    kept = [(tensor.contiguous(), group.ranks[member]) for tensor, member in sends]
    buffers = [mint.empty(shape, dtype=dtype) for shape, dtype, _ in receives]
    operations = [dist.P2POp("isend", tensor, rank, group=group.name) for tensor, rank in kept]
    operations += [dist.P2POp("irecv", buffer, group.ranks[member], group=group.name)
                   for buffer, (_, _, member) in zip(buffers, receives, strict=True)]
    return kept, buffers, dist.batch_isend_irecv(operations)


def finish_exchange(handle) -> list[Tensor]:
    """See the package."""
    _, received, pending = handle
    for work in pending:
        work.wait()
    return received


def barrier(group: Group) -> None:
    """Wait for all members."""
    dist.barrier(group=group.name)


def _all_gather(tensor: Tensor, group: Group, async_op: bool):
    """(result, handle to wait for or None)."""
    tensor = tensor.contiguous() if tensor.ndim else tensor.reshape(1)
    return dist.all_gather_into_tensor(None, tensor, group=group.name, async_op=async_op)


def _reduce_scatter(tensor: Tensor, group: Group, async_op: bool):
    """(result, handle to wait for or None)."""
    return dist.reduce_scatter_tensor(None, tensor.contiguous(), group=group.name, async_op=async_op)
