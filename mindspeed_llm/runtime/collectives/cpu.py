"""Collectives on CPU: shared memory between the ranks of one host, MCCL for groups and messages that cross hosts."""

from mindspore import Tensor

from mindspeed_llm.runtime.collectives import Group, mccl, shared_memory

WORLD = mccl.WORLD
_state = {"world": None}


def init() -> tuple[int, int]:
    """Join the job; returns (rank, world size). Rank 0 says so, in one line, when shared memory cannot be used."""
    rank, size = mccl.init()
    _state["world"] = world = Group(WORLD, tuple(range(size)), rank)
    reason = shared_memory.init(rank, size, lambda tensor: mccl.all_gather(tensor, world))
    if reason and rank == 0:
        print(f"collectives: MCCL only, shared memory is not used ({reason})", flush=True)
    return rank, size


def create_group(name: str, ranks: tuple[int, ...]) -> None:
    """Create a communication group; members only, same order on each."""
    (shared_memory if shared_memory.supports(ranks) else mccl).create_group(name, ranks)


def all_reduce(tensor: Tensor, group: Group, op: str) -> Tensor:
    """See the package."""
    return _engine(group).all_reduce(tensor, group, op)


def all_gather(tensor: Tensor, group: Group) -> Tensor:
    """See the package."""
    return _engine(group).all_gather(tensor, group)


def reduce_scatter(tensor: Tensor, group: Group) -> Tensor:
    """See the package."""
    return _engine(group).reduce_scatter(tensor, group)


def start_all_reduce(tensor: Tensor, group: Group):
    """See the package."""
    return _engine(group).start_all_reduce(tensor, group)


def start_all_gather(tensor: Tensor, group: Group):
    """See the package."""
    return _engine(group).start_all_gather(tensor, group)


def start_reduce_scatter(tensor: Tensor, group: Group):
    """See the package."""
    return _engine(group).start_reduce_scatter(tensor, group)


def broadcast(tensor: Tensor, group: Group, source: int) -> Tensor:
    """See the package."""
    return _engine(group).broadcast(tensor, group, source)


def all_to_all(parts: list[Tensor], group: Group) -> list[Tensor]:
    """See the package."""
    return _engine(group).all_to_all(parts, group)


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


def barrier() -> None:
    """See the package."""
    if shared_memory.supports(_state["world"].ranks):
        shared_memory.barrier(_state["world"])
    else:
        mccl.barrier()


def _engine(group: Group):
    return shared_memory if shared_memory.supports(group.ranks) else mccl


def _is_near(member: int, group: Group) -> bool:
    return shared_memory.reaches(group.ranks[member])


def _split(messages, group: Group) -> tuple[list, list]:
    near = [message for message in messages if _is_near(message[-1], group)]
    return near, [message for message in messages if not _is_near(message[-1], group)]
