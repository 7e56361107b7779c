"""Collectives on CPU over MindSpore's MCCL.

MCCL has all_reduce (fp32 sum only), all_gather, broadcast, send/recv and barrier. The rest is built from these. The
engine's send returns before its data is received, so "send to all, then receive from all" cannot deadlock.
"""

from functools import cache

import numpy as np
from mindspore import Tensor, communication, mint, ops
from mindspore import dtype as mstype
from mindspore.mint import distributed as dist
from mindspore.mint.distributed import distributed as dist_internals

from mindspeed_llm.runtime.collectives import Group, finish_exchange
from mindspeed_llm.runtime.memory import numpy_dtype

WORLD = "mccl_world_group"


def init() -> tuple[int, int]:
    """Join the job; returns (rank, world size)."""
    communication.init("mccl")
    rank, size = communication.get_rank(WORLD), communication.get_group_size(WORLD)
    # send and isend look their own rank up in HCCL's world group, which does not exist here, unless it is cached.
    dist_internals._GROUP_RANK_CACHE["hccl_world_group"] = rank
    return rank, size


def create_group(name: str, ranks: tuple[int, ...]) -> None:
    """Create a communication group; members only, same order on each."""
    communication.create_group(name, list(ranks))


def all_reduce(tensor: Tensor, group: Group, op: str) -> Tensor:
    """See the package."""
    if op == "max":
        return ops.reshape(all_gather(tensor, group), (group.size, *tensor.shape)).max(axis=0)
    total = tensor.astype(mstype.float32) if tensor.dtype != mstype.float32 else _copy(tensor)
    dist.all_reduce(total, group=group.name)
    return total.astype(tensor.dtype)


def all_gather(tensor: Tensor, group: Group) -> Tensor:
    """See the package."""
    tensor = tensor if tensor.ndim else tensor.reshape(1)
    parts = [_empty(tensor.shape, tensor.dtype) for _ in group.ranks]
    dist.all_gather(parts, tensor.contiguous(), group=group.name)
    return mint.cat(parts, dim=0)


def reduce_scatter(tensor: Tensor, group: Group) -> Tensor:
    """See the package. Direct exchange: each rank receives size-1 pieces and adds them in rank order."""
    received = all_to_all(list(tensor.chunk(group.size, 0)), group)
    total = received[0].astype(mstype.float32)
    for part in received[1:]:
        total = total + part
    return total.astype(tensor.dtype)


def broadcast(tensor: Tensor, group: Group, source: int) -> Tensor:
    """See the package."""
    result = _copy(tensor)
    dist.broadcast(result, src=group.ranks[source], group=group.name)
    return result


def all_to_all(parts: list[Tensor], group: Group) -> list[Tensor]:
    """See the package."""
    others = [member for member in range(group.size) if member != group.rank]
    handle = start_exchange([(parts[member], member) for member in others],
                            [(parts[member].shape, parts[member].dtype, member) for member in others], group)
    received = finish_exchange(handle)
    received.insert(group.rank, parts[group.rank])
    return received


def start_exchange(sends, receives, group: Group):
    """See the package. The handle holds the sent tensors: the engine reads them until the wait."""
    kept = [(tensor.contiguous(), group.ranks[member]) for tensor, member in sends]
    buffers = [_empty(shape, dtype) for shape, dtype, _ in receives]
    pending = [dist.isend(tensor, dst=rank, group=WORLD) for tensor, rank in kept]
    pending += [dist.irecv(buffer, src=group.ranks[member], group=WORLD)
                for buffer, (_, _, member) in zip(buffers, receives, strict=True)]
    return kept, buffers, [work for work in pending if work is not None]


def barrier() -> None:
    """See the package. A sum of one element: cheaper here than the engine's own barrier, and as strict."""
    dist.all_reduce(Tensor(np.zeros(1, np.float32)), group=WORLD)


def _copy(tensor: Tensor) -> Tensor:
    # MindSpore has no clone kernel on CPU; host memory is numpy's to copy.
    return Tensor.from_numpy(tensor.contiguous().asnumpy().copy())


def _empty(shape, dtype) -> Tensor:
    return Tensor.from_numpy(np.empty(shape, _numpy_dtype(dtype)))


@cache
def _numpy_dtype(dtype) -> np.dtype:
    return Tensor(np.zeros(1, np.float32)).astype(dtype).asnumpy().dtype
