"""What four ranks do together beside being right: agree about bad gradients and overflows, overlap, evaluate, talk
between hosts.
"""

import json
from pathlib import Path

import pytest

from tests.distributed.launch import run_msrun
from tests.distributed.scaling_cases import FIRST_SCALE, FORCED, GROWTH_INTERVAL, ITERATIONS, RUNS, write_data
from tests.golden.reference import Golden


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("behaviour")
    write_data(folder)
    job = run_msrun(Path(__file__).with_name("behaviour_cases.py"), 4, folder, timeout=200)
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(4)]


def test_engine_between_hosts_is_exact(ranks):
    assert [rank["mccl"] for rank in ranks] == [[]] * 4


def test_bad_gradient_is_named_and_skipped_everywhere(ranks):
    assert {rank["bad_gradient"]["name"] for rank in ranks} == {"decoder.layers.3.mlp.linear_fc2.weight (rank 3)"}
    for rank in ranks:
        seen = rank["bad_gradient"]
        assert not seen["updated"] and seen["unchanged"] and seen["steps"] == 0


def test_buckets_start_during_backward(ranks):
    for rank in ranks:
        assert rank["early_buckets"]["started"] == rank["early_buckets"]["early"] > 2


def test_interleaved_evaluation(ranks):
    for rank in ranks:
        assert rank["evaluation"]["forward_only"] == pytest.approx(rank["evaluation"]["training"], rel=1e-6)
        assert rank["evaluation"]["training"] == pytest.approx(float(Golden()["loss"]), rel=1e-6)


def _steps(ranks, run):
    """What every rank saw of a run, which must be the same on all."""
    first = ranks[0]["scaling"][run]["steps"]
    assert all(rank["scaling"][run]["steps"] == first for rank in ranks)
    return first


@pytest.mark.parametrize("run", [run for run, (_, forced) in RUNS.items() if forced])
def test_overflow_of_one_rank_is_skipped_by_all(run, ranks):
    steps = _steps(ranks, run)
    skipped = [number in FORCED for number in range(1, ITERATIONS + 1)]
    assert [not step["updated"] for step in steps] == [step["unchanged"] for step in steps] == skipped
    assert [step["skipped"] for step in steps] == [sum(skipped[:number]) for number in range(1, ITERATIONS + 1)]
    assert steps[-1]["optimizer_steps"] == ITERATIONS - len(FORCED)
    assert [step["nans"] for step in steps] == [0] * ITERATIONS
    # the first overflow is tolerated, the second halves the scale, then calm doubles it again
    calm_after = FORCED[-1] + GROWTH_INTERVAL
    expected = [FIRST_SCALE / 2 if FORCED[-1] <= number < calm_after else FIRST_SCALE
                for number in range(1, ITERATIONS + 1)]
    assert [step["scale"] for step in steps] == expected
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_forced_overflows_leave_the_same_training(ranks):
    """Two layouts that round alike (TP2 both) skip the same steps and see the same losses."""
    runs = [[step["loss"] for step in _steps(ranks, run)] for run, (_, forced) in RUNS.items() if forced]
    assert runs[0] == pytest.approx(runs[1], rel=2e-5)


def test_natural_overflow_halves_the_scale_until_training_goes_on(ranks):
    (run,) = (run for run, (_, forced) in RUNS.items() if not forced)
    steps = _steps(ranks, run)
    overflows = sum(not step["updated"] for step in steps)
    assert 2 <= overflows < ITERATIONS
    assert [step["updated"] for step in steps] == [number >= overflows for number in range(ITERATIONS)]
    assert [step["unchanged"] for step in steps] == [number < overflows for number in range(ITERATIONS)]
    assert steps[overflows]["scale"] == 2.0**25 / 2 ** (overflows - 1)


@pytest.mark.parametrize("run", RUNS)
def test_parameters_are_equal_wherever_they_are_held_after_overflows(run, ranks):
    held = {}
    for rank in ranks:
        for part, digest in rank["scaling"][run]["final"].items():
            held.setdefault(part, []).append(digest)
    assert all(len(set(digests)) == 1 for digests in held.values())
    assert max(len(digests) for digests in held.values()) > 1
