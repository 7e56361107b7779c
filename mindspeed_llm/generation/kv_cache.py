"""Keys and values of the tokens that sequences have been through, in blocks of a fixed number of tokens.

Blocks belong to a pool, a sequence has a table of blocks (Kwon et al., "Efficient Memory Management for Large Language
Model Serving with PagedAttention", SOSP 2023): sequences of any length share a forward pass and a memory without
padding, and those that begin alike share blocks. A block that several sequences hold is never written. G is this rank's
number of key/value heads (at least one: with more tensor-parallel ranks than query groups several ranks hold the same
head), D the head width.
"""

import weakref
from collections import OrderedDict
from typing import Protocol

import numpy as np
from mindspore import Tensor, mint

from mindspeed_llm.runtime import device
from mindspeed_llm.runtime.memory import from_numpy, numpy_dtype

BLOCK = 64  # tokens; a page of keys that the attention kernel works through at a time
SLAB = 64   # blocks by which a pool without a bound grows


class BlockPool:
    """Blocks of `block_tokens` tokens, each with room for every layer of this stage: `bound` of them, or as many as are
    needed.

    A full block may get a name that says what it holds; when its last sequence lets go of it, it stays to be found
    under that name until its memory is needed, the one longest unused first. All ranks of a model replica make the same
    calls and so have the same tables. A pool without a bound gives its memory back when no sequence is left.
    """

    def __init__(self, block_tokens: int = BLOCK, bound: int | None = None) -> None:
        self.block_tokens, self.bound = block_tokens, bound
        self._per_slab = bound or SLAB
        self._users: list[int] = []                     # of each block, how many sequences hold it
        self._free: list[int] = []                      # the next one to be given out last
        self._found: dict[bytes, int] = {}              # named blocks
        self._names: dict[int, bytes] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()    # named, held by nobody; longest unused first
        self._slabs: dict[int, list[tuple[Tensor, Tensor]]] = {}
        if bound:
            self._grow()

    @property
    def used(self) -> int:
        """Number of blocks that sequences hold."""
        return len(self._users) - len(self._free) - len(self._unused)

    @property
    def spare(self) -> int:
        """Number of blocks that hold nothing that can be found."""
        return len(self._free)

    def has(self, count: int) -> bool:
        """Whether `take(count)` will succeed."""
        return self.bound is None or count <= len(self._free) + len(self._unused)

    def take(self, count: int) -> list[int]:
        """Blocks for one new holder, whose contents are of no use. Raises MemoryError when there are too few."""
        if not self.has(count):
            raise MemoryError(f"{count} blocks wanted, {len(self._free) + len(self._unused)} of {self.bound} left")
        while self.bound is None and count > len(self._free):
            self._grow()
        taken = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._unused.popitem(last=False)
                del self._found[self._names.pop(block)]
            self._users[block] = 1
            taken.append(block)
        return taken

    def share(self, block: int) -> int:
        """One more holder of a block; returns it."""
        self._users[block] += 1
        self._unused.pop(block, None)
        return block

    def shared(self, block: int) -> bool:
        """Whether more than one sequence holds the block: then it must not be written."""
        return self._users[block] > 1

    def release(self, blocks: list[int]) -> None:
        """A holder lets go of its blocks, in the order of their tokens, and forgets them: the list becomes empty."""
        for block in reversed(blocks):      # the last tokens of a text are the first to be forgotten
            self._users[block] -= 1
            if self._users[block]:
                continue
            if block in self._names:
                self._unused[block] = None
            else:
                self._free.append(block)
        blocks.clear()
        if self.bound is None and len(self._free) == len(self._users):
            self._users, self._free, self._slabs = [], [], {}

    def name(self, block: int, name: bytes) -> None:
        """Let a block be found under a new name."""
        self._found[name], self._names[block] = block, name

    def find(self, name: bytes) -> int | None:
        """The block of that name."""
        return self._found.get(name)

    def slabs(self, layer: int, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of a layer in `(blocks, block_tokens, G, D)`; block b is in slab b // blocks.

        `like (any, any, G, D)` shows shape and dtype of a token.
        """
        slabs = self._slabs.setdefault(layer, [])
        while len(slabs) * self._per_slab < max(1, len(self._users)):   # kernels want one, though nothing be kept
            shape = (self._per_slab, self.block_tokens, *like.shape[2:])
            slabs.append((_empty(shape, like), _empty(shape, like)))
        return [keys for keys, _ in slabs], [values for _, values in slabs]

    def copied(self, block: int) -> int:
        """A new block for one holder with the same contents; the old one loses a holder."""
        (twin,) = self.take(1)
        (slab, place), (new_slab, new_place) = divmod(block, self._per_slab), divmod(twin, self._per_slab)
        for layer, ((first, _), *_) in self._slabs.items():
            for slabs in self.slabs(layer, first):
                if device.on_cpu():
                    slabs[new_slab].asnumpy()[new_place] = slabs[slab].asnumpy()[place]
                else:
                    slabs[new_slab][new_place] = slabs[slab][place]
        self.release([block])
        return twin

    def _grow(self) -> None:
        first = len(self._users)
        self._users += [0] * self._per_slab
        self._free[:0] = range(first + self._per_slab - 1, first - 1, -1)


class Cache(Protocol):
    """What the forward pass asks of a sequence's past."""

    pool: BlockPool
    table: list[int]
    """The blocks of the tokens, in order; there may be more behind them."""
    length: int
    keeps: bool
    """Whether new tokens join the past; all caches of a pass are alike in this."""

    def reserve(self, length: int) -> None:
        """Before a pass: have the blocks for `length` tokens, if new tokens are kept."""

    def advance(self, count: int) -> None:
        """The `count` new tokens have been through all layers of all chunks."""


class KVCache:
    """The cache of a sequence that goes on. `length` counts the tokens in it. Its blocks go back with it."""

    keeps = True

    def __init__(self, pool: BlockPool, table: list[int] | None = None, length: int = 0) -> None:
        self.pool, self.table, self.length = pool, table or [], length
        weakref.finalize(self, pool.release, self.table).atexit = False

    def missing(self, length: int) -> int:
        """How many blocks `reserve(length)` will take, of those that no other sequence holds."""
        return max(0, -(-length // self.pool.block_tokens) - len(self.table))

    def reserve(self, length: int) -> None:
        """See `Cache`. Raises MemoryError when the pool has too few blocks."""
        place, inside = divmod(self.length, self.pool.block_tokens)
        if length > self.length and inside and self.pool.shared(self.table[place]):
            self.table[place] = self.pool.copied(self.table[place])
        self.table += self.pool.take(self.missing(length))

    def advance(self, count: int) -> None:
        """See `Cache`."""
        self.length += count

    def adopt(self, place: int, block: int) -> None:
        """Take a full block that holds the next tokens, of which it is number `place`, instead of computing them."""
        self.pool.share(block)
        if place < len(self.table):
            self.pool.release([self.table[place]])
            self.table[place] = block
        else:
            self.table.append(block)
        self.length += self.pool.block_tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        self.length = min(self.length, length)
        kept = -(-self.length // self.pool.block_tokens)
        behind = self.table[kept:]
        del self.table[kept:]
        self.pool.release(behind)

    def fork(self) -> "KVCache":
        """A copy that goes its own way: it shares the blocks until one of the two writes."""
        blocks = self.table[:-(-self.length // self.pool.block_tokens)]
        return KVCache(self.pool, [self.pool.share(block) for block in blocks], self.length)


class SharedPrefix:
    """A past that many sequences begin with; what comes after it is used once and not kept."""

    keeps = False

    def __init__(self, prefix: KVCache) -> None:
        self._prefix = prefix   # its blocks stay as long as it does
        self.pool, self.table, self.length = prefix.pool, prefix.table, prefix.length

    def reserve(self, length: int) -> None:
        """See `Cache`. Nothing will be kept."""

    def advance(self, count: int) -> None:
        """See `Cache`. Nothing was kept."""


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A tensor of the dtype of `like`; on CPU in memory that is not written before it is used."""
    if not device.on_cpu():
        return mint.zeros(shape, dtype=like.dtype)
    return from_numpy(np.empty(shape, numpy_dtype(like.dtype)))
