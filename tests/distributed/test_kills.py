"""The short form of kill_training.py: a killed job resumes to the digit, with saves at once and in the background."""

import pytest

from tests.distributed.kill_training import run


@pytest.mark.full
@pytest.mark.parametrize("flags", [[], ["--async-save", "--save-total-limit", "3"]], ids=["at_once", "async"])
def test_killed_jobs_resume_to_the_digit(flags):
    assert "3 kills" in run(kills=3, ranks=2, iterations=80, flags=flags, seed=3)
