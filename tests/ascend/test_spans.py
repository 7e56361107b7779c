"""The rectangles of a causal, packed call cover exactly what is visible."""

import random

import numpy as np

from mindspeed_llm.kernels.ascend.spans import Span, spans


def test_common_cases():
    assert list(spans(5, 5, 0, 0)) == [Span(slice(0, 5), slice(0, 5), True)]
    assert list(spans(1, 9, 8, 0)) == [Span(slice(0, 1), slice(0, 9), False)]
    assert list(spans(3, 9, 6, 0)) == [Span(slice(0, 3), slice(0, 9), True)]
    assert list(spans(4, 4, 4, 0)) == [Span(slice(0, 4), slice(0, 4), False)]
    assert list(spans(4, 4, 0, 4)) == [Span(slice(0, 4), slice(0, 0), False)]


def test_random_places():
    draw = random.Random(0)
    for _ in range(2000):
        rows, columns, q_start, k_start = draw.randint(1, 9), draw.randint(1, 9), draw.randint(0, 8), draw.randint(0, 8)
        bounds = [draw.randint(0, 18) for _ in range(draw.randint(0, 5))]
        i, j, edges = q_start + np.arange(rows)[:, None], k_start + np.arange(columns)[None, :], sorted(bounds)
        visible = (j <= i) & (np.searchsorted(edges, i, "right") == np.searchsorted(edges, j, "right"))
        covered, times = np.zeros_like(visible), np.zeros(rows, int)
        for span in spans(rows, columns, q_start, k_start, bounds):
            high, wide = span.queries.stop - span.queries.start, span.keys.stop - span.keys.start
            times[span.queries] += 1
            assert not span.diagonal or 1 < high <= wide
            covered[span.queries, span.keys] = np.tri(high, wide, wide - high, bool) if span.diagonal else True
        assert np.array_equal(covered, visible) and (times == 1).all(), (rows, columns, q_start, k_start, bounds)
