"""Schedules on paper are those that run."""

import pytest

from mindspeed_llm.tasks.planner.schedule import bubble_fraction, events, most_in_flight


@pytest.mark.parametrize("stages, chunks, microbatches, fraction", [
    (1, 1, 8, 0.0), (2, 1, 1, 1 / 2), (4, 1, 4, 3 / 7), (4, 1, 32, 3 / 35), (4, 2, 4, 3 / 11), (2, 5, 32, 1 / 161)])
def test_bubble(stages, chunks, microbatches, fraction):
    assert bubble_fraction(stages, chunks, microbatches) == pytest.approx(fraction, rel=1e-12)


@pytest.mark.parametrize("stages, microbatches, expected", [(1, 4, [1]), (4, 8, [4, 3, 2, 1]), (4, 2, [2, 2, 2, 1])])
def test_in_flight_of_1f1b(stages, microbatches, expected):
    assert [most_in_flight(rank, stages, 1, microbatches) for rank in range(stages)] == expected


@pytest.mark.parametrize("stages, chunks, microbatches", [
    (4, 1, 6), (2, 2, 4), (4, 2, 8), (4, 3, 6), (3, 2, 7), (2, 4, 1)])
def test_order_is_that_of_the_schedule(stages, chunks, microbatches):
    from mindspeed_llm.core.pipeline_parallel.order import order_of_tasks
    for rank in range(stages):
        real = [(task.forward, task.stage // stages) for task in order_of_tasks(rank, stages, chunks, microbatches)]
        assert list(events(rank, stages, chunks, microbatches)) == real


def test_interleaving_keeps_more_in_flight_but_of_smaller_chunks():
    # Warm-up 2 x 3 + 4 forwards, one more in the steady state.
    assert most_in_flight(0, 4, 2, 8) == 11
    assert most_in_flight(3, 4, 2, 8) == 5
