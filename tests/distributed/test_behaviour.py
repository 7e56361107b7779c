"""What four ranks do together beside being right: agree about bad gradients and overflows, overlap, evaluate, talk
between hosts.
"""

import math

import pytest

from mindspeed_llm.core.structure import model_specs
from tests.distributed.scaling_cases import FIRST_SCALE, FORCED, GROWTH_INTERVAL, ITERATIONS, RUNS, write_data
from tests.golden.reference import Golden


CASES = "tests.distributed.behaviour_cases:"


@pytest.fixture(scope="module")
def scaled(ranks, tmp_path_factory):
    """`{run: what each rank saw}`."""
    folder = tmp_path_factory.mktemp("behaviour")
    write_data(folder)
    return {run: ranks(4).run("tests.distributed.scaling_cases:scaled_run", run, str(folder)) for run in RUNS}


def test_nodes_without_shared_storage_load_the_same_iteration(ranks):
    for rank, (same, fallen_back, missing) in enumerate(ranks(4).run(f"{CASES}iterations_found")):
        assert same == ""
        assert f"has found iteration {5 if rank == 3 else 7} in --load, others 5 to 7" in fallen_back
        assert f"has found iteration {7 if rank else -1} in --load, others -1 to 7" in missing


def test_engine_between_hosts_is_exact(ranks):
    assert ranks(4).run(f"{CASES}mccl_mismatches") == [[]] * 4


def test_bad_gradient_is_named_and_skipped_everywhere(ranks):
    seen = ranks(4).run(f"{CASES}bad_gradient")
    assert {rank["name"] for rank in seen} == {"decoder.layers.3.mlp.linear_fc2.weight (rank 3)"}
    for rank in seen:
        assert not rank["updated"] and rank["unchanged"] and rank["steps"] == 0


@pytest.mark.parametrize("parallel", [
    {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "sequence_parallel": True,
     "overlap_grad_reduce": True},
    {"tensor_model_parallel_size": 4, "recompute_granularity": "full", "recompute_method": "uniform",
     "recompute_num_layers": 2},
    {"context_parallel_size": 2, "use_distributed_optimizer": True, "overlap_grad_reduce": True,
     "overlap_param_gather": True},
], ids=["tp2 pp2 sp", "tp4 recompute", "cp2 dp2 zero"])
def test_frozen_parameters(ranks, parallel):
    """What is trained gets the gradients of a full training, and the norm counts it once; the rest stays as it was.

    Nothing is trained on the first stage of two, nor embedding and output layer.
    """
    golden, frozen = Golden(), ("fc2.weight", "pre_mlp_layernorm.weight")
    trained = [spec.name for spec in model_specs(golden.model) if (spec.layer or 0) >= 2 and not spec.name.endswith(frozen)]
    norm = math.sqrt(sum(golden.norm(name)**2 for name in trained))
    seen = ranks(4).run(f"{CASES}some_frozen", parallel, 2 if "context_parallel_size" in parallel else 1, trained)
    for what in ("moved", "updated"):
        assert set().union(*(rank[what] for rank in seen)) == set(trained)
    for rank in seen:
        assert rank["gradients"] < 1e-5 and rank["parameters"] < 1e-6
        assert rank["norm"] == pytest.approx(norm, rel=1e-5)


def test_buckets_start_during_backward(ranks):
    for rank in ranks(4).run(f"{CASES}early_buckets"):
        assert rank["started"] == rank["early"] > 2


def test_interleaved_evaluation(ranks):
    for rank in ranks(4).run(f"{CASES}evaluation_losses"):
        assert rank["forward_only"] == pytest.approx(rank["training"], rel=1e-6)
        assert rank["training"] == pytest.approx(float(Golden()["loss"]), rel=1e-6)


def _steps(scaled, run):
    """What every rank saw of a run, which must be the same on all."""
    first = scaled[run][0]["steps"]
    assert all(rank["steps"] == first for rank in scaled[run])
    return first


@pytest.mark.parametrize("run", [run for run, (_, forced) in RUNS.items() if forced])
def test_overflow_of_one_rank_is_skipped_by_all(run, scaled):
    steps = _steps(scaled, run)
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


def test_forced_overflows_leave_the_same_training(scaled):
    """Two layouts that round alike (TP2 both) skip the same steps and see the same losses."""
    runs = [[step["loss"] for step in _steps(scaled, run)] for run, (_, forced) in RUNS.items() if forced]
    assert runs[0] == pytest.approx(runs[1], rel=2e-5)


def test_natural_overflow_halves_the_scale_until_training_goes_on(scaled):
    (run,) = (run for run, (_, forced) in RUNS.items() if not forced)
    steps = _steps(scaled, run)
    overflows = sum(not step["updated"] for step in steps)
    assert 2 <= overflows < ITERATIONS
    assert [step["updated"] for step in steps] == [number >= overflows for number in range(ITERATIONS)]
    assert [step["unchanged"] for step in steps] == [number < overflows for number in range(ITERATIONS)]
    assert steps[overflows]["scale"] == 2.0**25 / 2 ** (overflows - 1)


@pytest.mark.parametrize("run", RUNS)
def test_parameters_are_equal_wherever_they_are_held_after_overflows(run, scaled):
    held = {}
    for rank in scaled[run]:
        for part, digest in rank["final"].items():
            held.setdefault(part, []).append(digest)
    assert all(len(set(digests)) == 1 for digests in held.values())
    assert max(len(digests) for digests in held.values()) > 1
