"""Keys and values of the tokens that a sequence has been through, one store per layer of this stage.

Every sequence has a cache of its own, so sequences of any length can share a forward pass and no padding exists. G is
this rank's number of key/value heads (at least one: with more tensor-parallel ranks than query groups several ranks
hold the same head), D the head width.
"""

from typing import Protocol

import numpy as np
from mindspore import Tensor, mint

from mindspeed_llm.runtime import device
from mindspeed_llm.runtime.memory import from_numpy

STEP = 256  # tokens by which a store grows at least


class Cache(Protocol):
    """What the forward pass asks of a sequence's past."""

    length: int

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `(length + n, 1, G, D)` of the past and of the `n` new tokens `k, v (n, 1, G, D)`."""

    def advance(self, count: int) -> None:
        """The `count` new tokens have been through all layers."""


class KVCache:
    """The cache of a sequence that goes on. `length` counts the tokens in it."""

    def __init__(self) -> None:
        self.length = 0
        self._stores: dict[int, tuple[_Store, _Store]] = {}

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `Cache`. The new tokens are kept."""
        if layer not in self._stores:
            self._stores[layer] = (_Store(k), _Store(v))
        keys, values = self._stores[layer]
        return keys.write(self.length, k), values.write(self.length, v)

    def advance(self, count: int) -> None:
        """See `Cache`."""
        self.length += count

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        self.length = min(self.length, length)

    def fork(self) -> "KVCache":
        """A copy that goes its own way."""
        twin = KVCache()
        twin.length = self.length
        twin._stores = {layer: (keys.copy(self.length), values.copy(self.length))
                        for layer, (keys, values) in self._stores.items()}
        return twin

    def past(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values `(length, 1, G, D)` of a layer."""
        keys, values = self._stores[layer]
        return keys.read(self.length), values.read(self.length)


class SharedPrefix:
    """A past that many sequences begin with; what comes after it is used once and not kept."""

    def __init__(self, prefix: KVCache) -> None:
        self._prefix = prefix
        self.length = prefix.length

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `Cache`."""
        if self.length == 0:
            return k, v
        past_k, past_v = self._prefix.past(layer)
        return mint.cat((past_k, k), dim=0), mint.cat((past_v, v), dim=0)

    def advance(self, count: int) -> None:
        """See `Cache`. Nothing was kept."""


class _Store:
    """Rows of `(1, G, D)` in one buffer that grows by doubling; on CPU in memory that numpy writes."""

    def __init__(self, like: Tensor) -> None:
        self._row = tuple(like.shape[1:])
        self._dtype = like.asnumpy().dtype if device.on_cpu() else like.dtype
        self._buffer = self._new(STEP)

    def write(self, start: int, rows: Tensor) -> Tensor:
        """Put `rows` at `start` and return everything up to their end."""
        stop = start + rows.shape[0]
        if stop > self._buffer.shape[0]:
            old = self._buffer
            self._buffer = self._new(max(stop, 2 * old.shape[0]))
            self._buffer[:start] = old[:start]
        self._buffer[start:stop] = rows.asnumpy() if device.on_cpu() else rows
        return self.read(stop)

    def read(self, stop: int) -> Tensor:
        """Rows up to `stop`; on CPU without a copy."""
        rows = self._buffer[:stop]
        return from_numpy(rows) if device.on_cpu() else rows

    def copy(self, length: int) -> "_Store":
        """A store of its own with the first `length` rows."""
        twin = _Store.__new__(_Store)
        twin._row, twin._dtype = self._row, self._dtype
        twin._buffer = self._new(max(STEP, self._buffer.shape[0]))
        twin._buffer[:length] = self._buffer[:length]
        return twin

    def _new(self, capacity: int) -> "np.ndarray | Tensor":
        shape = (capacity, *self._row)
        return np.empty(shape, self._dtype) if device.on_cpu() else mint.zeros(shape, dtype=self._dtype)
