"""Which positions of a sequence a context-parallel rank holds.

Ring attention deals out 2C pieces to C ranks, rank r getting pieces r and 2C-1-r, so that causal attention costs every
rank the same (the "zigzag" of Megatron-LM's context parallelism). Ulysses gives rank r the r-th of C pieces.
"""

import numpy as np

from mindspeed_llm.config.parallel import ULYSSES
from mindspeed_llm.runtime.collectives import Group


def pieces_of(size: int, algorithm: str) -> int:
    """Into how many equal pieces `size` context-parallel ranks cut a sequence."""
    return size if algorithm == ULYSSES or size == 1 else 2 * size


def local_positions(seq_length: int, group: Group, algorithm: str) -> np.ndarray:
    """Positions in the whole sequence of this rank's part, in its order: int64 `(seq_length / C)`.

    Raises ValueError when the sequence cannot be cut evenly.
    """
    pieces = pieces_of(group.size, algorithm)
    if seq_length % pieces:
        raise ValueError(f"sequence length ({seq_length}) must be divisible by {pieces} for --context-parallel-size "
                         f"({group.size}) with {algorithm}")
    positions = np.arange(seq_length)
    if group.size == 1:
        return positions
    cut = positions.reshape(pieces, -1)
    return cut[group.rank] if algorithm == ULYSSES else cut[[group.rank, pieces - 1 - group.rank]].reshape(-1)


def local_part(array: np.ndarray, group: Group, algorithm: str) -> np.ndarray:
    """This rank's rows of `(S, ...)`: `(S / C, ...)`."""
    return array if group.size == 1 else np.ascontiguousarray(array[local_positions(len(array), group, algorithm)])
