"""Resident ranks: what a case returns or raises reaches the test, and a failed case leaves a pool that works."""

import os

import pytest

from tests.distributed.pool import CaseFailed, RankPool

CASES = "tests.distributed.pool_cases:"


@pytest.fixture
def pool():
    ranks = RankPool(1)
    yield ranks
    ranks.close()


def test_a_failed_case_tells_why_and_the_next_one_runs(pool):
    (first,) = pool.run(f"{CASES}process")
    assert pool.run(f"{CASES}process") == [first]  # the same process serves
    with pytest.raises(CaseFailed, match=r"rank 0 raised(.|\n)*ValueError: seven is too many"):
        pool.run(f"{CASES}fail", 7)
    (second,) = pool.run(f"{CASES}process")
    assert second != first and not os.path.exists(f"/proc/{first}")
    with pytest.raises(CaseFailed, match="rank 0 died"):
        pool.run(f"{CASES}die")
    (third,) = pool.run(f"{CASES}process")
    with pytest.raises(CaseFailed, match="no answer from rank 0"):
        pool.run(f"{CASES}sleep", seconds=0.5)
    assert not os.path.exists(f"/proc/{third}")


def test_operators_of_the_framework_have_no_threads_that_spin(pool):
    (threads,) = pool.run(f"{CASES}threads_of_operators")
    assert list(threads) == ["ActorThread_0"]
    assert threads["ActorThread_0"] < 5     # 16 if it begins with 300,000 calls of sched_yield


def test_a_rank_that_raises_alone_does_not_leave_the_others_waiting(ranks):
    """Rank 1 raises; rank 0 waits for it in a collective."""
    before = ranks(2).run(f"{CASES}process")
    with pytest.raises(CaseFailed, match=r"rank 1 raised(.|\n)*RuntimeError: planted"):
        ranks(2).run(f"{CASES}fail_before_a_sum", 1)
    assert ranks(2).run(f"{CASES}sum_of_ranks") == [1, 1]
    assert not any(os.path.exists(f"/proc/{process}") for process in before)
