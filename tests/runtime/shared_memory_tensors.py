"""A case of a RankPool with two ranks: the tensor layer, joined through MCCL, gives what MCCL gives."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindspeed_llm.runtime import collectives
from mindspeed_llm.runtime.collectives import cpu, mccl, shared_memory


def compare_engines():
    world = collectives.world()
    rank, size = world.rank, world.size
    assert shared_memory.supports(world.ranks) and not shared_memory.supports((0, size))
    matrix = Tensor(np.random.default_rng(rank).standard_normal((6, 10)).astype(np.float32))
    scalar = Tensor(np.float32(rank))
    for tensor in (matrix, ops.cast(matrix, ms.bfloat16), matrix.transpose(1, 0), matrix[2:4], scalar):
        for op in ("sum", "max"):
            want = mccl.all_reduce(tensor.reshape(-1), world, op).reshape(tensor.shape)
            same(shared_memory.all_reduce(tensor, world, op), want)
        same(shared_memory.all_gather(tensor, world), mccl.all_gather(tensor, world))
        want = mccl.broadcast(tensor.reshape(-1), world, 1).reshape(tensor.shape)
        same(shared_memory.broadcast(tensor, world, 1), want)
        if tensor.ndim:
            same(shared_memory.reduce_scatter(tensor, world), mccl.reduce_scatter(tensor, world))
            parts = list(tensor.chunk(size, 1))
            for got, want in zip(shared_memory.all_to_all(parts, world), mccl.all_to_all(parts, world), strict=True):
                same(got, want)
    # An engine that lacks one of the functions of the other would fail at a user's first use of it.
    public = [name for name, value in vars(mccl).items()
              if getattr(value, "__module__", "") == mccl.__name__ and not name.startswith("_")]
    assert all(hasattr(cpu, name) and (name == "init" or hasattr(shared_memory, name)) for name in public)
    assert world.engine is shared_memory and cpu.engine_of((0, size)) is cpu
    same(collectives.finish(collectives.start_all_reduce(matrix, world)), mccl.all_reduce(matrix, world, "sum"))
    same(collectives.finish(collectives.start_reduce_scatter(matrix, world)), mccl.reduce_scatter(matrix, world))
    same(collectives.finish(collectives.start_all_gather(matrix, world)), mccl.all_gather(matrix, world))
    for dtype in (ms.bool_, ms.uint8, ms.int8, ms.float64, ms.int64):
        gathered = shared_memory.all_gather(Tensor(np.array([rank, 1])).astype(dtype), world)
        assert gathered.dtype == dtype and gathered.asnumpy().tolist() == [0, 1, 1, 1]
    other = 1 - rank
    shape = matrix.shape
    theirs = np.random.default_rng(other).standard_normal(shape).astype(np.float32)
    messages = [(matrix, other), (matrix * 2, other)], [(shape, ms.float32, other), (shape, ms.float32, other)]
    both_near = cpu.finish_exchange(cpu.start_exchange(*messages, world))
    for got in (both_near, mixed_ways(messages, world)):
        assert np.array_equal(got[0].asnumpy(), theirs) and np.array_equal(got[1].asnumpy(), theirs * 2)
    first = both_near[0]
    for wrong, call in (("cannot cut", lambda: shared_memory.reduce_scatter(Tensor(np.ones(3, np.float32)), world)),
                        ("parts of one size", lambda: shared_memory.all_to_all([first], world)),
                        ("cannot reduce", lambda: shared_memory.all_reduce(first > 0, world, "sum"))):
        try:
            call()
            raise AssertionError(f"no error about {wrong}")
        except ValueError as error:
            assert wrong in str(error)
    mccl.barrier(world)
    collectives.barrier()


def mixed_ways(messages, world):
    """The exchange as if every second message crossed hosts."""
    sends, receives = messages
    near = shared_memory.start_exchange(sends[:1], receives[:1], world)
    far = mccl.start_exchange(sends[1:], receives[1:], world)
    return cpu.finish_exchange((near, far, [True, False]))


def same(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape, (got.dtype, want.dtype, got.shape, want.shape)
    assert np.array_equal(got.astype(ms.float32).asnumpy(), want.astype(ms.float32).asnumpy())

