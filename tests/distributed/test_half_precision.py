"""bf16 and fp16 under parallel layouts, with limits derived from where each layout rounds: see half_precision.py."""

import pytest

from tests.distributed.half_precision import DTYPES, baseline, excess, limits, noise, rounds
from tests.distributed.planted import PLANTED_HALF, with_bug
from tests.distributed.rows import HALF_PRECISION_ROWS
from tests.golden.reference import Golden


@pytest.fixture(scope="session")
def one_process(records):
    """`{dtype: record of one process}`."""
    return {dtype: Golden(records / f"{dtype}.npz") for dtype in DTYPES}


@pytest.fixture(scope="session")
def over_limits(table, one_process):
    """`over_limits(row, name)`: every distance of row `name`, which is `row` or `row` with a bug, over its limit."""
    def look(row, name):
        plain = baseline(row, HALF_PRECISION_ROWS)
        return excess([rank[name] for rank in table(row.world)], table(plain.world)[0][plain.name],
                      limits(row, one_process[row.dtype]))
    return look


@pytest.mark.parametrize("row", HALF_PRECISION_ROWS, ids=lambda row: f"{row.world}-{row.name}")
def test_within_the_limits_of_rounding(row, over_limits):
    seen = over_limits(row, row.name)
    assert max(seen.values()) <= 1, seen


@pytest.mark.parametrize("bug", PLANTED_HALF)
def test_limits_catch_a_planted_bug(bug, over_limits):
    row, _ = with_bug(bug)
    seen = over_limits(row, bug)
    assert max(seen.values()) > 3, seen


def test_noise_is_the_dtypes_own(one_process):
    """fp16 has three more bits than bf16: about an eighth of its noise. A sum that is kept in bf16 shows here."""
    bf16, fp16 = noise(one_process["bf16"]), noise(one_process["fp16"])
    assert 5 < bf16.grad_rms / fp16.grad_rms < 16
    assert bf16.grad_rms < 4 * 2.0**-8


def test_table_has_both_dtypes_and_both_kinds():
    kinds = {(row.dtype, rounds(row)) for row in HALF_PRECISION_ROWS}
    assert kinds == {("bf16", True), ("bf16", False), ("fp16", True), ("fp16", False)}
