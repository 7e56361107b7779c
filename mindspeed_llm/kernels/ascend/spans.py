"""Causal attention at any offset, packed or not, as rectangles that a flash attention operator can take.

The operator knows two shapes: every query sees every key, or the diagonal ends in the lower right corner with at least
as many keys as queries. Its documentation allows no query without a key.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Rows `queries` of q against rows `keys` of k and v. No keys: these queries see nothing."""

    queries: slice
    keys: slice
    diagonal: bool  # causal, aligned at the last query and the last key; otherwise everything is visible


def spans(q_length: int, k_length: int, q_start: int, k_start: int, bounds: Sequence[int] = ()) -> Iterator[Span]:
    """Spans of `q_length` queries from position q_start and `k_length` keys from position k_start, queries in order.

    A query sees the keys at its own and earlier positions, within its segment; `bounds` are the positions where
    segments begin or end (repetitions and values outside the range do no harm). Every query is in exactly one span.
    """
    q_stop, k_stop = q_start + q_length, k_start + k_length
    bounds = sorted(bounds)
    edges = sorted({q_start, q_stop, *(edge for edge in bounds if q_start < edge < q_stop)})
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        before = bisect_right(bounds, low)
        k_low = max(k_start, bounds[before - 1]) if before else k_start
        k_high = min(k_stop, high)  # keys after the segment's last query are seen by nobody
        # Queries low..lit see nothing, lit..past are on the diagonal, past..high lie behind the last key.
        lit = min(max(low, k_low), high) if k_low < k_high else high
        past = max(lit, k_high)
        if past - lit == 1:
            past = lit  # one query on the diagonal sees all the keys up to itself
        for first, last, keys, diagonal in ((low, lit, slice(0, 0), False),
                                            (lit, past, slice(k_low - k_start, past - k_start), True),
                                            (past, high, slice(k_low - k_start, k_high - k_start), False)):
            if first < last:
                yield Span(slice(first - q_start, last - q_start), keys, diagonal)
