"""Collectives on CPU over MindSpore's MCCL.

MCCL has all_reduce (fp32 sum only), all_gather, broadcast, send/recv and barrier. The rest is built from these, on
numpy views of host memory: MindSpore's own cut, join and add cost as much as a message. Algorithms are chosen by group
and message size after what benchmarks/collectives.py measured. The engine's send returns before its data is received,
so "send to all, then receive from all" cannot deadlock.
"""

import os

import numpy as np
from mindspore import Tensor, communication
from mindspore import dtype as mstype
from mindspore.mint import distributed as dist
from mindspore.mint.distributed import distributed as dist_internals

from mindspeed_llm.runtime import device
from mindspeed_llm.runtime.collectives import Group
from mindspeed_llm.runtime.memory import numpy_dtype

WORLD = "mccl_world_group"
_SMALL = 2**15  # bytes; below, latency decides


def init() -> tuple[int, int]:
    """Join the job; returns (rank, world size)."""
    # The engine gives up on a peer after 30 s, which loading or saving a large checkpoint may take.
    os.environ.setdefault("MS_CPU_COMM_OP_TIMEOUT", "600")
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
        return Tensor.from_numpy(_array(all_gather(tensor, group)).reshape(group.size, *tensor.shape).max(axis=0))
    total = Tensor.from_numpy(_array(_wide(tensor)).copy())
    dist.all_reduce(total, group=group.name)
    return device.cast(total, tensor.dtype)


def all_gather(tensor: Tensor, group: Group) -> Tensor:
    """See the package. Between two ranks a plain exchange has half the latency of the engine's gather."""
    mine = _array(tensor if tensor.ndim else tensor.reshape(1))
    result = np.empty((group.size, *mine.shape), mine.dtype)
    if group.size == 2:
        other = 1 - group.rank
        _send(mine, group, other)
        result[group.rank] = mine
        _receive(result[other], group, other)
    else:
        dist.all_gather([Tensor.from_numpy(part) for part in result], Tensor.from_numpy(mine), group=group.name)
    return Tensor.from_numpy(result.reshape(-1, *mine.shape[1:]))


def reduce_scatter(tensor: Tensor, group: Group) -> Tensor:
    """See the package. Direct exchange: each rank receives size-1 pieces and adds them in an order that only depends on
    its rank. Many ranks with little data: the engine's sum of everything has fewer messages in a row.
    """
    parts = _array(_wide(tensor)).reshape(group.size, -1)
    if group.size > 4 and parts.nbytes <= _SMALL:
        total = _array(all_reduce(Tensor.from_numpy(parts), group, "sum"))[group.rank]
    else:
        for step in range(1, group.size):
            member = (group.rank + step) % group.size
            _send(parts[member], group, member)
        total, received = parts[group.rank].copy(), np.empty_like(parts[0])
        for step in range(1, group.size):
            _receive(received, group, (group.rank - step) % group.size)
            total += received
    shape = (tensor.shape[0] // group.size, *tensor.shape[1:])
    return device.cast(Tensor.from_numpy(np.ascontiguousarray(total).reshape(shape)), tensor.dtype)


def start_all_reduce(tensor: Tensor, group: Group):
    """See the package. The engine's collectives block, so this one is complete at once; the same for the next two."""
    return all_reduce(tensor, group, "sum"), None


def start_all_gather(tensor: Tensor, group: Group):
    """See the package."""
    return all_gather(tensor, group), None


def start_reduce_scatter(tensor: Tensor, group: Group):
    """See the package."""
    return reduce_scatter(tensor, group), None


def broadcast(tensor: Tensor, group: Group, source: int) -> Tensor:
    """See the package."""
    result = Tensor.from_numpy(_array(tensor).copy())
    dist.broadcast(result, src=group.ranks[source], group=group.name)
    return result


def all_to_all(parts: list[Tensor], group: Group) -> list[Tensor]:
    """See the package."""
    others = [(group.rank + step) % group.size for step in range(1, group.size)]
    handle = start_exchange([(parts[member], member) for member in others],
                            [(parts[member].shape, parts[member].dtype, member) for member in reversed(others)], group)
    received = dict(zip(reversed(others), finish_exchange(handle), strict=True))
    return [received.get(member, parts[member]) for member in range(group.size)]


def start_exchange(sends, receives, group: Group):
    """See the package. The engine's receive blocks, so receiving waits until `finish_exchange`: until then the data
    travels into the socket's buffers while this rank computes.
    """
    kept = [_array(tensor) for tensor, _ in sends]
    for array, (_, member) in zip(kept, sends, strict=True):
        _send(array, group, member)
    return kept, receives, group


def finish_exchange(handle) -> list[Tensor]:
    """See the package."""
    _, receives, group = handle
    received = [np.empty(shape, numpy_dtype(dtype)) for shape, dtype, _ in receives]
    for array, (_, _, member) in zip(received, receives, strict=True):
        _receive(array, group, member)
    return [Tensor.from_numpy(array) for array in received]


def barrier(group: Group) -> None:
    """Wait for all members. A sum of one element: cheaper here than the engine's own barrier, and as strict."""
    dist.all_reduce(Tensor(np.zeros(1, np.float32)), group=group.name)


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as a contiguous array."""
    return np.ascontiguousarray(tensor.contiguous().asnumpy())


def _wide(tensor: Tensor) -> Tensor:
    return device.cast(tensor, mstype.float32)


def _send(array: np.ndarray, group: Group, member: int) -> None:
    dist.send(Tensor.from_numpy(array), dst=group.ranks[member], group=WORLD)


def _receive(target: np.ndarray, group: Group, member: int) -> None:
    dist.recv(Tensor.from_numpy(target), src=group.ranks[member], group=WORLD)
