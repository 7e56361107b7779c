"""Flat buffers: one stretch of memory for many tensors, so that reductions and gathers move few, large messages."""

from bisect import bisect_right
from functools import cache

import numpy as np
from mindspore import Tensor, mint
from mindspore import dtype as mstype

from mindspeed_llm.runtime import autograd, device


@cache
def numpy_dtype(dtype: mstype.Type) -> np.dtype:
    """The numpy dtype whose arrays share memory with tensors of `dtype`; for bf16 it is MindSpore's own."""
    return Tensor(0, dtype).asnumpy().dtype  # MindSpore's own table is deprecated and warns at every call


class FlatBuffer:
    """Tensors that lie one after another in memory: `views`, in groups of which each is one stretch of memory.

    `groups` gives the shapes. Elements are numbered over all of them: entry n is `offsets[n]` to `offsets[n + 1]`, and a
    range that `slice` or `store` takes lies within one group. Everything is in memory once: a view, a slice and a store
    of the same elements see one another. A group is a single tensor, whose operators count elements in 32 bits on some
    devices: keep it below 2^31. Zero at the start.
    """

    def __init__(self, groups: list[list[tuple[int, ...]]], dtype: mstype.Type) -> None:
        self.dtype = dtype
        sizes = [[int(np.prod(shape)) for shape in group] for group in groups]
        self.offsets = [0, *np.cumsum([size for group in sizes for size in group]).tolist()]
        self.numel = self.offsets[-1]
        self._starts = [0, *np.cumsum([sum(group) for group in sizes]).tolist()]
        self._memory = [_zeros(sum(group), dtype) for group in sizes]
        shapes = [shape for group in groups for shape in group]
        self.views = [self.slice(start, stop, shape)
                      for start, stop, shape in zip(self.offsets[:-1], self.offsets[1:], shapes, strict=True)]

    def slice(self, start: int, stop: int, shape: tuple[int, ...] | None = None) -> Tensor:
        """Elements start to stop, flat or in the given shape, in the same memory."""
        memory, first = self._group(start, stop)
        part = memory[start - first:stop - first]
        if isinstance(part, np.ndarray):
            return Tensor.from_numpy(part.reshape(shape or -1))
        with autograd.no_grad():
            return part.view(shape or (stop - start,))

    def memory(self, start: int, stop: int) -> np.ndarray | None:
        """Elements start to stop as an array that shares their memory; None on a device."""
        memory, first = self._group(start, stop)
        return memory[start - first:stop - first] if isinstance(memory, np.ndarray) else None

    def store(self, start: int, tensor: Tensor) -> None:
        """Copy a flat `tensor` of the buffer's dtype to element `start` and those after it."""
        memory, first = self._group(start, start + tensor.size)
        if isinstance(memory, np.ndarray):
            memory[start - first:start - first + tensor.size] = tensor.asnumpy()
        else:
            with autograd.no_grad():    # views may be leaves of the tape, which must not see them change
                memory[start - first:start - first + tensor.size].copy_(tensor)

    def _group(self, start: int, stop: int) -> tuple[np.ndarray | Tensor, int]:
        """The memory that holds elements start to stop, and the number of its first one."""
        group = bisect_right(self._starts, start, hi=len(self._memory)) - 1
        if stop > self._starts[group + 1]:
            raise ValueError(f"elements {start} to {stop} are not in one group: it ends at {self._starts[group + 1]}")
        return self._memory[group], self._starts[group]


def _zeros(count: int, dtype: mstype.Type) -> np.ndarray | Tensor:
    """Memory of a group: on CPU a numpy array, which tensors share, as MindSpore cannot write into a tensor's slice there.

    NumPy asks the system for huge pages in `empty`, not in `zeros`: with them a processor that streams through weights
    looks up fewer addresses.
    """
    if not device.on_cpu():
        return mint.zeros((count,), dtype=dtype)
    memory = np.empty(count, numpy_dtype(dtype))
    memory.view(np.uint8)[:] = 0
    return memory


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor on the device; on CPU it shares the array's memory."""
    return Tensor.from_numpy(array) if device.on_cpu() else Tensor(array)
