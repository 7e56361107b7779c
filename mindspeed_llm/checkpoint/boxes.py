"""Copying between differently cut tensors: what a rank or a file holds is a few boxes of the global tensor.

A global tensor is looked at as a matrix: rows are axis 0, columns all the other axes. Any flat range of any
tensor-parallel shard of it is a handful of boxes (row range x column range), each lying with a constant row stride in
the flat buffer that holds it. Filling a target from sources is then the same for weights and for optimizer ranges,
under any TP and DP: cut boxes against boxes, copy the overlaps.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Segments = Sequence[Sequence[int]]
_READ = 1 << 16     # elements from which a call of the system is the quicker way


@dataclass(frozen=True)
class Box:
    """Rows `row .. row + rows` x columns `col .. col + cols` of a global tensor.

    Element (r, c) of the global tensor lies at `offset + (r - row) * stride + (c - col)` of a flat buffer.
    """

    row: int
    col: int
    rows: int
    cols: int
    offset: int
    stride: int

    def part(self, row: int, row_stop: int, col: int, col_stop: int) -> "Box":
        """The sub-box of these global rows and columns (which must lie inside)."""
        offset = self.offset + (row - self.row) * self.stride + (col - self.col)
        return Box(row, col, row_stop - row, col_stop - col, offset, self.stride)

    @property
    def in_a_row(self) -> bool:
        """Whether its elements lie one after the other."""
        return self.rows == 1 or self.stride == self.cols

    def view(self, flat: np.ndarray) -> np.ndarray:
        """The box's elements (rows, cols) in `flat`, without a copy."""
        span = flat[self.offset:self.offset + (self.rows - 1) * self.stride + self.cols]
        if self.offset < 0 or span.size != (self.rows - 1) * self.stride + self.cols:
            raise ValueError(f"{self} does not lie in a buffer of {flat.size} elements")
        return np.lib.stride_tricks.as_strided(span, (self.rows, self.cols),
                                               (self.stride * flat.itemsize, flat.itemsize))


@dataclass(frozen=True)
class Source:
    """Boxes that some buffer holds; `flat()` gives the buffer when an element of it is needed.

    `read(offset, out)` copies elements in a row into a flat array: for a file without the cost of its mapped pages.
    """

    boxes: tuple[Box, ...]
    flat: Callable[[], np.ndarray]
    read: Callable[[int, np.ndarray], None] | None = None


def shard_boxes(shape: Sequence[int], axis: int | None, segments: Segments, start: int = 0,
                stop: int | None = None) -> tuple[Box, ...]:
    """Boxes of the flat elements [start, stop) of a shard that holds `segments` along `axis` of a global `shape`.

    Offsets count from `start`. `axis` None means axis 0. Raises ValueError for a cut of an inner axis of a tensor that
    is not a matrix.
    """
    if axis not in (None, 0) and not (axis == 1 and len(shape) == 2):
        raise ValueError(f"cannot cut axis {axis} of a tensor of shape {list(shape)}")
    held = sum(end - begin for begin, end in segments)
    if axis == 1:
        rows, width, row_segments, col_segments = shape[0], held, ((0, shape[0]),), segments
    else:
        width = math.prod(shape[1:])
        rows, row_segments, col_segments = held, segments, ((0, width),)
    stop = rows * width if stop is None else stop
    if not 0 <= start <= stop <= rows * width:
        raise ValueError(f"range [{start}, {stop}) does not lie in a shard of {rows * width} elements")
    boxes = []
    for top, bottom, left, right in _strips(width, start, stop):
        for row, row_stop, local_row in _mapped(row_segments, top, bottom):
            for col, col_stop, local_col in _mapped(col_segments, left, right):
                offset = local_row * width + local_col - start
                boxes.append(Box(row, col, row_stop - row, col_stop - col, offset, width))
    return tuple(boxes)


def fill(out: np.ndarray, targets: Iterable[Box], sources: Iterable[Source]) -> list[Box]:
    """Copy every element of `targets` (boxes of the flat buffer `out`) that a source holds; returns what none holds.

    An element that several sources hold (replicated K/V, tied embedding) is copied once.
    """
    pending = list(targets)
    for source in sources:
        if not pending:
            break
        flat = None
        for held in source.boxes:
            rest = []
            for wanted in pending:
                common = _overlap(wanted, held)
                if common is None:
                    rest.append(wanted)
                    continue
                to, of = wanted.part(*common), held.part(*common)
                if source.read is not None and to.in_a_row and of.in_a_row and to.rows * to.cols >= _READ:
                    source.read(of.offset, out[to.offset:to.offset + to.rows * to.cols])
                else:
                    flat = source.flat() if flat is None else flat
                    to.view(out)[...] = of.view(flat)
                rest += _without(wanted, *common)
            pending = rest
    return pending


def uncovered(targets: Iterable[Box], boxes: Iterable[Box]) -> list[Box]:
    """The parts of `targets` that lie in none of `boxes`."""
    pending = list(targets)
    for held in boxes:
        rest = []
        for wanted in pending:
            common = _overlap(wanted, held)
            rest += [wanted] if common is None else _without(wanted, *common)
        pending = rest
    return pending


def _strips(width: int, start: int, stop: int) -> list[tuple[int, int, int, int]]:
    """(top, bottom, left, right) of the at most three strips (head row, body, tail row) of a matrix's flat range."""
    if start == stop:
        return []
    (first, left), (last, right) = divmod(start, width), divmod(stop, width)
    if first == last:
        return [(first, first + 1, left, right)]
    strips = []
    if left:
        strips.append((first, first + 1, left, width))
        first += 1
    if last > first:
        strips.append((first, last, 0, width))
    if right:
        strips.append((last, last + 1, 0, right))
    return strips


def _mapped(segments: Segments, start: int, stop: int) -> Iterable[tuple[int, int, int]]:
    """Global (start, stop) and local start of each piece of the local range [start, stop) under `segments`."""
    first = 0
    for begin, end in segments:
        low, high = max(start, first), min(stop, first + end - begin)
        if low < high:
            yield begin + low - first, begin + high - first, low
        first += end - begin


def _overlap(a: Box, b: Box) -> tuple[int, int, int, int] | None:
    row, row_stop = max(a.row, b.row), min(a.row + a.rows, b.row + b.rows)
    col, col_stop = max(a.col, b.col), min(a.col + a.cols, b.col + b.cols)
    return (row, row_stop, col, col_stop) if row < row_stop and col < col_stop else None


def _without(box: Box, row: int, row_stop: int, col: int, col_stop: int) -> list[Box]:
    """`box` less the given part of it."""
    bottom, right = box.row + box.rows, box.col + box.cols
    around = ((box.row, row, box.col, right), (row_stop, bottom, box.col, right),
              (row, row_stop, box.col, col), (row, row_stop, col_stop, right))
    return [box.part(*edges) for edges in around if edges[0] < edges[1] and edges[2] < edges[3]]
