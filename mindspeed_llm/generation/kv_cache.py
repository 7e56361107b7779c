"""Keys and values of the tokens that a sequence has been through, one store per layer of this stage.

Every sequence has a cache of its own, so sequences of any length can share a forward pass and no padding exists. G is
this rank's number of key/value heads (at least one: with more tensor-parallel ranks than query groups several ranks
hold the same head), D the head width.
"""

from typing import Protocol

import numpy as np
from mindspore import Tensor, mint

from mindspeed_llm.runtime import device
from mindspeed_llm.runtime.memory import from_numpy, numpy_dtype

STEP = 256  # tokens by which a store grows at least


class Cache(Protocol):
    """What the forward pass asks of a sequence's past."""

    length: int
    keeps: bool
    """Whether new tokens join the past; all caches of a pass are alike in this."""

    def stores(self, layer: int, length: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, `(rows, 1, G, D)`: `length` rows, of which the layer has seen all, and, if new
        tokens are kept, room for `count` more. `like (n, 1, G, D)` shows shape and dtype of a row.
        """

    def advance(self, count: int) -> None:
        """The `count` new tokens have been through all layers of all chunks."""


class KVCache:
    """The cache of a sequence that goes on. `length` counts the tokens in it."""

    keeps = True

    def __init__(self) -> None:
        self.length = 0
        self._stores: dict[int, tuple[Tensor, Tensor]] = {}

    def stores(self, layer: int, length: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """See `Cache`."""
        found = self._stores.get(layer)
        needed = length + count
        if found is None:
            found = self._stores[layer] = (_rows(max(STEP, needed), like), _rows(max(STEP, needed), like))
        elif found[0].shape[0] < needed:
            found = self._stores[layer] = self._copies(layer, length, max(needed, 2 * found[0].shape[0]))
        return found

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
        twin._stores = {layer: self._copies(layer, self.length, keys.shape[0])
                        for layer, (keys, _) in self._stores.items()}
        return twin

    def _copies(self, layer: int, length: int, rows: int) -> tuple[Tensor, Tensor]:
        """The first `length` rows of a layer in new stores of `rows` rows."""
        return tuple(_copy(store, length, rows) for store in self._stores[layer])


class SharedPrefix:
    """A past that many sequences begin with; what comes after it is used once and not kept."""

    keeps = False

    def __init__(self, prefix: KVCache) -> None:
        self._prefix = prefix
        self.length = prefix.length

    def stores(self, layer: int, length: int, _count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """See `Cache`."""
        return self._prefix.stores(layer, length, 0, like)

    def advance(self, count: int) -> None:
        """See `Cache`. Nothing was kept."""


def _rows(count: int, like: Tensor) -> Tensor:
    """`count` rows shaped as those of `like`; on CPU in memory that is not written before it is used."""
    shape = (count, *like.shape[1:])
    if not device.on_cpu():
        return mint.zeros(shape, dtype=like.dtype)
    return from_numpy(np.empty(shape, numpy_dtype(like.dtype)))


def _copy(store: Tensor, length: int, rows: int) -> Tensor:
    """A store of `rows` rows that begins with the first `length` of `store`."""
    fresh = _rows(rows, store)
    if device.on_cpu():
        fresh.asnumpy()[:length] = store.asnumpy()[:length]
    else:
        fresh[:length] = store[:length]
    return fresh
