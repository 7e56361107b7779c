"""Flat buffers: one stretch of memory for many tensors, so that reductions and gathers move few, large messages."""

import numpy as np
from mindspore import Tensor, mint, ops
from mindspore import dtype as mstype

from mindspeed_llm.runtime import device


_BFLOAT16 = Tensor(0.0, mstype.bfloat16).asnumpy().dtype  # MindSpore's own; numpy has none
_NUMPY_DTYPES = {mstype.float32: np.dtype(np.float32), mstype.float16: np.dtype(np.float16), mstype.bfloat16: _BFLOAT16,
                 mstype.int32: np.dtype(np.int32), mstype.int64: np.dtype(np.int64)}


def numpy_dtype(dtype: mstype.Type) -> np.dtype:
    """The numpy dtype whose arrays share memory with tensors of `dtype`."""
    return _NUMPY_DTYPES[dtype]


class FlatBuffer:
    """Tensors of the given shapes, and one flat tensor of all of them in order.

    On CPU `views` and `flat` share memory. On Ascend the views are tensors of their own: `pull` copies them into `flat`,
    `push` copies `flat` into them; on CPU both do nothing. Zero at the start.
    """

    def __init__(self, shapes: list[tuple[int, ...]], dtype: mstype.Type) -> None:
        sizes = [int(np.prod(shape)) for shape in shapes]
        self.offsets = [0, *np.cumsum(sizes).tolist()]
        self.numel = self.offsets[-1]
        self.dtype = dtype
        self.shared = device.on_cpu()
        if self.shared:
            self._memory = np.zeros(self.numel, numpy_dtype(dtype))
            self.flat = Tensor.from_numpy(self._memory)
            self.views = [Tensor.from_numpy(self._memory[start:stop].reshape(shape))
                          for start, stop, shape in zip(self.offsets[:-1], self.offsets[1:], shapes, strict=True)]
        else:
            self.flat = mint.zeros((self.numel,), dtype=dtype)
            self.views = [mint.zeros(shape, dtype=dtype) for shape in shapes]

    def slice(self, start: int, stop: int) -> Tensor:
        """Elements start to stop of the flat tensor; on CPU in the same memory."""
        return Tensor.from_numpy(self._memory[start:stop]) if self.shared else self.flat[start:stop]

    def store(self, start: int, tensor: Tensor) -> None:
        """Copy a flat `tensor` of the buffer's dtype into the flat tensor from element `start` on."""
        stop = start + tensor.size
        if self.shared:
            self._memory[start:stop] = tensor.asnumpy()
        else:
            self.flat[start:stop] = tensor

    def write_back(self, start: int, tensor: Tensor) -> None:
        """Put a tensor obtained by `slice` and changed in place back; on CPU it never left."""
        if not self.shared:
            self.store(start, tensor)

    def pull(self) -> Tensor:
        """The flat tensor with the views' current values."""
        if not self.shared:
            self.flat = ops.cat([view.reshape(-1) for view in self.views])
        return self.flat

    def push(self) -> None:
        """Give the views the flat tensor's current values."""
        if not self.shared:
            for view, start, stop in zip(self.views, self.offsets[:-1], self.offsets[1:], strict=True):
                view.copy_(self.flat[start:stop].reshape(view.shape))


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor on the device; on CPU it shares the array's memory."""
    return Tensor.from_numpy(array) if device.on_cpu() else Tensor(array)
