"""The parity table: every combination of parallel modes equals one process, step by step.

By default the pairwise table of covering.py runs, with `--full` the long one of rows.py too.
"""

import pytest

from tests.distributed.conftest import CASES
from tests.distributed.covering import PAIRWISE
from tests.distributed.planted import PLANTED, PLANTED_WORLD
from tests.distributed.rows import FAMILY_ROWS, LONG_RUNS, LORA_ROWS, MORE_LORA_ROWS, ROWS
from tests.golden.trial import LONG_STEPS, SHORT_STEPS

TOLERANCE = 2e-5


def _worst(ranks: list[dict]) -> dict[str, float]:
    """Errors of a row, each the largest of all ranks."""
    return {key: max(rank[key] for rank in ranks) for key in ("loss", "grad_norm", "grad", "parameter")}


def _check(row, steps, ranks, records):
    errors = _worst(ranks(row.world).run(f"{CASES}row", row.to_json(), str(records), steps))
    assert max(errors.values()) < TOLERANCE, errors


def _ids(row):
    return f"{row.world}-{row.name}"


@pytest.mark.parametrize("row", PAIRWISE, ids=_ids)
def test_pairs(row, ranks, records):
    _check(row, SHORT_STEPS, ranks, records)


@pytest.mark.parametrize("row", FAMILY_ROWS, ids=_ids)
def test_other_families(row, ranks, records):
    _check(row, SHORT_STEPS, ranks, records)


@pytest.mark.parametrize("row", LORA_ROWS, ids=_ids)
def test_low_rank_adapters(row, ranks, records):
    _check(row, SHORT_STEPS, ranks, records)


@pytest.mark.full
@pytest.mark.parametrize("row", LORA_ROWS + MORE_LORA_ROWS, ids=_ids)
def test_more_of_low_rank_adapters(row, ranks, records):
    _check(row, LONG_STEPS, ranks, records)


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in LONG_RUNS], ids=_ids)
def test_parity_of_a_longer_run(row, ranks, records):
    _check(row, LONG_STEPS, ranks, records)


@pytest.mark.full
@pytest.mark.parametrize("row", [row for row in ROWS if row.name not in LONG_RUNS], ids=_ids)
def test_parity(row, ranks, records):
    _check(row, LONG_STEPS, ranks, records)


@pytest.mark.parametrize("bug", PLANTED)
def test_tolerance_catches_a_planted_bug(bug, ranks, records):
    errors = _worst(ranks(PLANTED_WORLD).run(f"{CASES}row_with_bug", bug, str(records)))
    assert max(errors.values()) > 10 * TOLERANCE, errors


def test_full_table_is_large_enough():
    """At least 30 combinations over all world sizes, each with a name of its own."""
    assert len({row.name for row in ROWS}) == len(ROWS) >= 30
    assert {row.world for row in ROWS} == {2, 4, 8}
    assert set(LONG_RUNS) <= {row.name for row in ROWS}
