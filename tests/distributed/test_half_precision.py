"""bf16 and fp16 under parallel layouts, with limits derived from where each layout rounds: see half_precision.py."""

from functools import cache

import pytest

from tests.distributed.conftest import CASES
from tests.distributed.half_precision import baseline, excess, limits, noise, replicas, rounds
from tests.distributed.planted import PLANTED_HALF, with_bug
from tests.distributed.rows import HALF_PRECISION_ROWS
from tests.golden.reference import Golden


@pytest.fixture(scope="session")
def one_process(half_records):
    """`one_process(dtype)`: the record of one process."""
    return cache(lambda dtype: Golden(half_records(dtype) / f"{dtype}.npz"))


@pytest.fixture(scope="session")
def over_limits(half_row, one_process):
    """`over_limits(row, seen)`: what the ranks of `row` saw, every distance over its limit."""
    def look(row, seen):
        plain = half_row(baseline(row, HALF_PRECISION_ROWS), replicas(row))[0]
        return excess(row, seen, plain, limits(row, one_process(row.dtype)))
    return look


@pytest.mark.parametrize("row", HALF_PRECISION_ROWS, ids=lambda row: f"{row.world}-{row.name}")
def test_within_the_limits_of_rounding(row, half_row, over_limits):
    seen = over_limits(row, half_row(row))
    assert max(seen.values()) <= 1, seen


@pytest.mark.parametrize("bug", PLANTED_HALF)
def test_limits_catch_a_planted_bug(bug, ranks, half_records, over_limits):
    row, _ = with_bug(bug)
    seen = over_limits(row, ranks(row.world).run(f"{CASES}half_row_with_bug", bug, str(half_records(row.dtype))))
    assert max(seen.values()) > 3, seen


def test_noise_is_the_dtypes_own(one_process):
    """fp16 has three more bits than bf16: about an eighth of its noise. A sum that is kept in bf16 shows here."""
    bf16, fp16 = noise(one_process("bf16")), noise(one_process("fp16"))
    assert 5 < bf16.grad_rms / fp16.grad_rms < 16
    assert bf16.grad_rms < 4 * 2.0**-8


def test_table_has_both_dtypes_and_both_kinds():
    kinds = {(row.dtype, rounds(row)) for row in HALF_PRECISION_ROWS}
    assert kinds == {("bf16", True), ("bf16", False), ("fp16", True), ("fp16", False)}
