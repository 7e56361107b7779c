"""`--pack`: several conversations per row, so that little of a long sequence is padding."""

import contextlib
import os
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mindspeed_llm.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from mindspeed_llm.data.templates import IGNORE


def assign_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: the longest first, each into the fullest row that still has room.

    Returns:
        the members of each row in ascending order; rows by their first member, so that rows follow the input's order.

    Raises:
        ValueError: a length above the capacity.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # the keys of by_room, sorted
    for item in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = int(lengths[item])
        if length > capacity:
            raise ValueError(f"item {item} has {length} tokens, a row holds {capacity}")
        place = bisect_left(rooms, length)
        if place == len(rooms):
            row, room = len(rows), capacity
            rows.append([])
        else:
            room = rooms[place]
            row = by_room[room].pop()
            if not by_room[room]:
                del by_room[room]
                rooms.pop(place)
        rows[row].append(item)
        room -= length
        if room not in by_room:
            by_room[room] = []
            insort(rooms, room)
        by_room[room].append(row)
    return sorted(sorted(row) for row in rows)


def pack(parts: dict[str, IndexedDataset], builders: dict[str, IndexedDatasetBuilder], seq_length: int,
         pad_id: int) -> int:
    """Write rows of exactly `seq_length` tokens: input_ids filled up with `pad_id`, labels with -100, and
    attention_mask with the number of its conversation in the row (from 1) per token, 0 for padding.

    Returns:
        the number of rows.
    """
    sizes = parts["input_ids"].sizes
    rows = assign_rows(sizes.tolist(), seq_length)
    with _reading(parts["input_ids"]) as ids, _reading(parts["labels"]) as labels:
        for row in rows:
            packed = _row(row, sizes, ids, labels, seq_length, pad_id)
            for field, tokens in packed.items():
                builders[field].add_item(tokens)
                builders[field].end_document()
    return len(rows)


@contextlib.contextmanager
def _reading(part: IndexedDataset) -> Iterator[Callable[[int], np.ndarray]]:
    """The sequences of a data set by number, in any order, without mapping the file: its pages would count as ours."""
    file = os.open(f"{part.prefix}.bin", os.O_RDONLY)
    try:
        yield lambda item: np.frombuffer(
            os.pread(file, int(part.sizes[item]) * part.dtype.itemsize, int(part.pointers[item])), part.dtype)
    finally:
        os.close(file)


def _row(members: list[int], sizes: np.ndarray, ids: Callable[[int], np.ndarray], labels: Callable[[int], np.ndarray],
         seq_length: int, pad_id: int) -> dict[str, np.ndarray]:
    packed = {"input_ids": np.full(seq_length, pad_id, np.int32), "attention_mask": np.zeros(seq_length, np.int32),
              "labels": np.full(seq_length, IGNORE, np.int32)}
    start = 0
    for number, item in enumerate(members, start=1):
        stop = start + int(sizes[item])
        packed["input_ids"][start:stop] = ids(item)
        packed["labels"][start:stop] = labels(item)
        packed["attention_mask"][start:stop] = number
        start = stop
    return packed
