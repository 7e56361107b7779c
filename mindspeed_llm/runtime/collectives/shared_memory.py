"""Collectives on CPU between ranks of one host, through shared memory: results are exact and the same on every rank.

`cpu` and `mccl` serve what crosses hosts: `init` joins, `supports` and `reaches` say what can be served here. Sums are taken in rank order, those of bf16 and fp16 in fp32 with one rounding. See runtime/shared_memory.
"""

from collections.abc import Callable

import numpy as np
from mindspore import Tensor
from mindspore import dtype as mstype

from mindspeed_llm.runtime.collectives import Group
from mindspeed_llm.runtime.memory import numpy_dtype
from mindspeed_llm.runtime.shared_memory import transport as transports

_CODES = {getattr(mstype, name): code for name, code in transports.DTYPE_CODES.items()}

_state: dict[str, transports.Transport | None] = {"transport": None}


def init(rank: int, size: int, gather: Callable[[Tensor], Tensor]) -> str | None:
    """Join the ranks of this host. `gather` is an all_gather of an int32 tensor (n,) over all ranks: (size * n,).

    Every rank of the job must call this. Returns None, or on every rank one line saying why MCCL has to do.
    """
    def exchange(message: bytes) -> list[bytes]:
        codes = np.frombuffer(message, np.uint8).astype(np.int32)
        everybody = gather(Tensor.from_numpy(codes)).asnumpy().astype(np.uint8).reshape(size, len(message))
        return [row.tobytes() for row in everybody]

    joined = transports.connect(rank, size, exchange)
    if isinstance(joined, str):
        return joined
    _state["transport"] = joined
    return None


def supports(ranks: tuple[int, ...]) -> bool:
    """True when shared memory is in use and all the given global ranks are on this host; the same on each of them."""
    return _state["transport"] is not None and _state["transport"].reaches(ranks)


def reaches(rank: int) -> bool:
    """True when messages to and from the given global rank can go through shared memory; the same on both ends."""
    return supports((rank,))


def create_group(name: str, ranks: tuple[int, ...]) -> None:
    """Create a communication group; members only."""
    _state["transport"].group(name, ranks)


def all_reduce(tensor: Tensor, group: Group, op: str) -> Tensor:
    """See the package. Also int32, int64 and fp64."""
    tensor = _contiguous(tensor)
    result = _empty(tensor.shape, tensor.dtype)
    transport, channel = _channel(group)
    transport.all_reduce(channel, tensor.data_ptr(), result.data_ptr(), tensor.size, _code(tensor), op)
    return result


def all_gather(tensor: Tensor, group: Group) -> Tensor:
    """See the package."""
    tensor = _contiguous(tensor) if tensor.ndim else tensor.reshape(1)
    result = _empty((group.size * tensor.shape[0], *tensor.shape[1:]), tensor.dtype)
    transport, channel = _channel(group)
    transport.all_gather(channel, tensor.data_ptr(), result.data_ptr(), tensor.nbytes)
    return result


def reduce_scatter(tensor: Tensor, group: Group) -> Tensor:
    """See the package."""
    tensor = _contiguous(tensor)
    _check_divides(tensor, group)
    result = _empty((tensor.shape[0] // group.size, *tensor.shape[1:]), tensor.dtype)
    transport, channel = _channel(group)
    transport.reduce_scatter(channel, tensor.data_ptr(), result.data_ptr(), result.size, _code(tensor))
    return result


def start_all_reduce(tensor: Tensor, group: Group):
    """See the package. Complete at once, as the next two: a copy has nothing to overlap with on its own core."""
    return all_reduce(tensor, group, "sum"), None


def start_all_gather(tensor: Tensor, group: Group):
    """See the package."""
    return all_gather(tensor, group), None


def start_reduce_scatter(tensor: Tensor, group: Group):
    """See the package."""
    return reduce_scatter(tensor, group), None


def broadcast(tensor: Tensor, group: Group, source: int) -> Tensor:
    """See the package."""
    tensor = _contiguous(tensor)
    result = _empty(tensor.shape, tensor.dtype)
    transport, channel = _channel(group)
    transport.broadcast(channel, tensor.data_ptr(), result.data_ptr(), tensor.nbytes, source)
    return result


def all_to_all(parts: list[Tensor], group: Group) -> list[Tensor]:
    """See the package."""
    parts = [_contiguous(part) for part in parts]
    received = [_empty(part.shape, part.dtype) for part in parts]
    if len(parts) != group.size or len({part.nbytes for part in parts}) != 1:
        raise ValueError(f"all_to_all needs {group.size} parts of one size, got {[part.shape for part in parts]}")
    transport, channel = _channel(group)
    transport.all_to_all(channel, [part.data_ptr() for part in parts], [part.data_ptr() for part in received],
                         parts[0].nbytes)
    return received


def start_exchange(sends, receives, group: Group):
    """See the package. Sending copies and waits for nobody: the sent tensors may be changed at once."""
    transport, tag = _state["transport"], transports.message_tag(group.name, group.ranks)
    for tensor, member in sends:
        tensor = _contiguous(tensor)
        transport.send(group.ranks[member], tag, tensor.data_ptr(), tensor.nbytes)
    buffers = [_empty(shape, dtype) for shape, dtype, _ in receives]
    posted = [transport.post_receive(group.ranks[member], tag, buffer.data_ptr(), buffer.nbytes, buffer)
              for buffer, (_, _, member) in zip(buffers, receives, strict=True)]
    return buffers, posted


def finish_exchange(handle) -> list[Tensor]:
    """See the package. Raises RuntimeError when a sender is gone or sent another size."""
    buffers, posted = handle
    for receive in posted:
        _state["transport"].finish_receive(receive)
    return buffers


def barrier(group: Group) -> None:
    """Wait for all members."""
    transport, channel = _channel(group)
    transport.barrier(channel)


def _channel(group: Group):
    transport = _state["transport"]
    return transport, transport.group(group.name, group.ranks)


def _code(tensor: Tensor) -> int:
    code = _CODES.get(tensor.dtype)
    if code is None:
        raise ValueError(f"cannot reduce a tensor of {tensor.dtype}: cast it to one of "
                         f"{', '.join(transports.DTYPE_CODES)}")
    return code


def _check_divides(tensor: Tensor, group: Group) -> None:
    if not tensor.ndim or tensor.shape[0] % group.size:
        raise ValueError(f"reduce_scatter over {group.size} ranks cannot cut a tensor of shape {tensor.shape} along "
                         "axis 0")


def _contiguous(tensor: Tensor) -> Tensor:
    # contiguous() costs 14 us on a view, even on one that is contiguous
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _empty(shape, dtype) -> Tensor:
    return Tensor.from_numpy(np.empty(shape, numpy_dtype(dtype)))
