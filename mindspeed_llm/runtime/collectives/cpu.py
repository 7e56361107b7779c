"""Collectives on CPU. Groups within one host are `shared_memory`'s. This module is the engine of those that cross hosts:
MCCL, but for messages between two ranks of one host.
"""

import sys
from types import ModuleType

from mindspore import Tensor

from mindspeed_llm.runtime.collectives import Group, mccl, shared_memory
from mindspeed_llm.runtime.collectives.mccl import (  # noqa: F401
    WORLD,
    all_gather,
    all_reduce,
    all_to_all,
    barrier,
    broadcast,
    create_group,
    reduce_scatter,
    start_all_gather,
    start_all_reduce,
    start_reduce_scatter,
)


def init() -> tuple[int, int]:
    """Join the job; returns (rank, world size). Rank 0 says so, in one line, when shared memory cannot be used."""
    rank, size = mccl.init()
    world = Group(WORLD, tuple(range(size)), rank)
    reason = shared_memory.init(rank, size, lambda tensor: all_gather(tensor, world))
    if reason and rank == 0:
        print(f"collectives: MCCL only, shared memory is not used ({reason})", flush=True)
    return rank, size


def engine_of(ranks: tuple[int, ...]) -> ModuleType:
    """The engine of a group of these global ranks."""
    return shared_memory if shared_memory.supports(ranks) else sys.modules[__name__]


def start_exchange(sends, receives, group: Group):
    """See the package. Each message takes the way that its two ends share."""
    near_sends, far_sends = _split(sends, group)
    near_receives, far_receives = _split(receives, group)
    near = shared_memory.start_exchange(near_sends, near_receives, group) if near_sends or near_receives else None
    far = mccl.start_exchange(far_sends, far_receives, group) if far_sends or far_receives else None
    return near, far, [_is_near(receive[-1], group) for receive in receives]


def finish_exchange(handle) -> list[Tensor]:
    """See the package."""
    near, far, order = handle
    from_near = iter(shared_memory.finish_exchange(near) if near else ())
    from_far = iter(mccl.finish_exchange(far) if far else ())
    return [next(from_near if is_near else from_far) for is_near in order]


def _is_near(member: int, group: Group) -> bool:
    return shared_memory.reaches(group.ranks[member])


def _split(messages, group: Group) -> tuple[list, list]:
    near = [message for message in messages if _is_near(message[-1], group)]
    return near, [message for message in messages if not _is_near(message[-1], group)]
