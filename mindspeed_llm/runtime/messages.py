"""Text from rank 0 to every rank."""

import numpy as np

from mindspeed_llm.runtime.collectives import Group, broadcast
from mindspeed_llm.runtime.memory import from_numpy

HEARTBEAT = 5.0
"""Seconds after which rank 0 gives a sign of life where the others wait for it; the CPU engine gives a rank that waits
in a collective up after 600.
"""


def broadcast_text(text: str | None, world: Group) -> str:
    """Rank 0's `text` on every rank (the others pass None)."""
    if world.size == 1:
        return text or ""
    return receive_text(broadcast_int(len((text or "").encode()), world), text, world)


def broadcast_int(value: int, world: Group) -> int:
    """Rank 0's `value` (32 bits) on every rank."""
    return int(broadcast(from_numpy(np.array([value], np.int32)), world, 0).asnumpy()[0])


def receive_text(length: int, text: str | None, world: Group) -> str:
    """Rank 0's `text`, whose `length` in bytes all ranks know."""
    if length == 0:
        return ""
    data = np.frombuffer(text.encode(), np.uint8) if world.rank == 0 else np.zeros(length, np.uint8)
    # int32 carries the bytes on every engine
    return broadcast(from_numpy(data.astype(np.int32)), world, 0).asnumpy().astype(np.uint8).tobytes().decode()
