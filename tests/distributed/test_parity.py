"""The parity table: every combination of parallel modes equals one process, step by step."""

import pytest

from tests.distributed.planted import PLANTED, PLANTED_WORLD
from tests.distributed.rows import ROWS

TOLERANCE = 2e-5


def _worst(ranks: list[dict], name: str) -> dict[str, float]:
    """Errors of a row, each the largest of all ranks."""
    return {key: max(rank[name][key] for rank in ranks) for key in ("loss", "grad_norm", "grad", "parameter")}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.world}-{row.name}")
def test_parity(row, table):
    errors = _worst(table(row.world), row.name)
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("bug", PLANTED)
def test_tolerance_catches_a_planted_bug(bug, table):
    errors = _worst(table(PLANTED_WORLD), bug)
    assert max(errors.values()) > 10 * TOLERANCE, errors


def test_table_is_large_enough():
    """Issue 4 asks for at least 30 combinations over all world sizes, each with a name of its own."""
    assert len({row.name for row in ROWS}) == len(ROWS) >= 30
    assert {row.world for row in ROWS} == {2, 4, 8}
