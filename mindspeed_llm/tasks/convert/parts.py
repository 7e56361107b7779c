"""Cutting large tensors, so that no conversion holds a whole embedding."""

import math
from collections.abc import Iterator

PART_BYTES = 1 << 24  # small enough that the memory of one part is used again for the next


def row_ranges(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
    """Flat ranges [start, stop) of whole rows that together are the tensor, each of about 16 MB at most."""
    width, total = math.prod(shape[1:]), math.prod(shape)
    step = max(1, PART_BYTES // max(1, width * itemsize)) * width
    for start in range(0, total, step):
        yield start, min(start + step, total)
