"""Rows are filled well, no conversation is lost, split or put in two rows."""

import numpy as np
import pytest

from mindspeed_llm.tasks.preprocess.packing import assign_rows


def test_every_item_has_one_place_and_rows_fit():
    lengths = np.random.default_rng(0).integers(1, 512, 5000)
    rows = assign_rows(lengths.tolist(), 2048)
    assert sorted(item for row in rows for item in row) == list(range(5000))
    filled = [int(lengths[row].sum()) for row in rows]
    assert max(filled) <= 2048
    assert len(rows) == -(-int(lengths.sum()) // 2048)  # no better packing exists
    assert all(row == sorted(row) for row in rows) and rows == sorted(rows)


def test_small_case_by_hand():
    assert assign_rows([3, 9, 5, 1, 7], 10) == [[0, 4], [1, 3], [2]]
    assert assign_rows([10, 10], 10) == [[0], [1]]
    with pytest.raises(ValueError, match="11 tokens"):
        assign_rows([11], 10)
