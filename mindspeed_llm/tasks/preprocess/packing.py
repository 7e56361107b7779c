"""`--pack`: several conversations per row, so that little of a long sequence is padding."""

from bisect import bisect_left, insort
from collections.abc import Sequence

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
    rows = assign_rows(parts["input_ids"].sizes.tolist(), seq_length)
    for row in rows:
        packed = {"input_ids": np.full(seq_length, pad_id, np.int32), "attention_mask": np.zeros(seq_length, np.int32),
                  "labels": np.full(seq_length, IGNORE, np.int32)}
        start = 0
        for number, item in enumerate(row, start=1):
            stop = start + int(parts["input_ids"].sizes[item])
            packed["input_ids"][start:stop] = parts["input_ids"][item]
            packed["labels"][start:stop] = parts["labels"][item]
            packed["attention_mask"][start:stop] = number
            start = stop
        for field, tokens in packed.items():
            builders[field].add_item(tokens)
            builders[field].end_document()
    return len(rows)
