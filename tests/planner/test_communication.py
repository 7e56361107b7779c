"""Volumes against sums made by hand."""

import pytest

from mindspeed_llm.tasks.planner.communication import volumes
from mindspeed_llm.tasks.planner.memory import stage_memory
from planned import TINY, job, mesh

HIDDEN = 64 * 64 * 4  # a micro-batch's residual stream in bytes


def test_one_rank_sends_nothing():
    assert volumes(job(), 0) == {"tp": 0, "cp": 0, "pp": 0, "dp": 0}


def test_pipeline_sends_each_micro_batch_over_each_boundary_both_ways():
    plan = job(TINY, mesh(pp=4), 4)
    assert [volumes(plan, stage)["pp"] for stage in range(4)] == [64 * HIDDEN * n for n in (1, 2, 2, 1)]
    interleaved = job(TINY, mesh(pp=4) + " --num-layers-per-virtual-pipeline-stage 1", 4)
    assert [volumes(interleaved, stage)["pp"] for stage in range(4)] == [64 * HIDDEN * n for n in (3, 4, 4, 3)]


def test_a_reference_model_sends_its_forward_passes():
    """Of one half of the micro-batch's tokens: a pair has two sequences."""
    dpo = "--stage dpo --is-pairwise-dataset --ref-model reference"
    for sizes in ({"pp": 2}, {"cp": 2}):
        (group,) = sizes
        plain, held, spared = (volumes(job(TINY, f"{mesh(**sizes)} {more}", 2), 0)[group]
                               for more in ("", dpo, f"{dpo} --precompute-ref"))
        assert spared == 2 * plain and held > spared
    tensor = [volumes(job(TINY, f"{mesh(tp=2)} {more}", 2), 0)["tp"] for more in (dpo, f"{dpo} --precompute-ref")]
    assert 1.25 < tensor[0] / tensor[1] < 1.5


def test_data_parallel_gradients():
    plain, sharded = job(TINY, "--bf16", 4), job(TINY, "--bf16 --use-distributed-optimizer", 4)
    numel = stage_memory(plain, 0).numel
    assert volumes(plain, 0)["dp"] == 2 * 3 * numel                  # all-reduce of fp32: 2 x 3/4 x 4 bytes
    assert volumes(sharded, 0)["dp"] == int(3 / 4 * numel * 6)       # reduce-scatter of fp32, all-gather of bf16


def test_tensor_parallel_all_reduces():
    plan = job(TINY, mesh(tp=2) + " --sequence-parallel=false", 2)
    # Per layer 4 all-reduces, one for the embedding, one for the output layer's input gradient: each sends a whole one.
    statistics = 3 * 64 * 4
    assert volumes(plan, 0)["tp"] == 64 * ((4 * 8 + 2) * HIDDEN + statistics)


@pytest.mark.parametrize("flags, passes", [("", 1), ("--recompute-granularity full --recompute-method uniform "
                                                     "--recompute-num-layers 1", 2)])
def test_ring_moves_keys_values_and_their_gradients(flags, passes):
    plan = job(TINY, f"{flags} {mesh(cp=2)}", 2)
    keys = 32 * 2 * 2 * 8 * 4  # 32 tokens, k and v of 2 groups of 8 fp32
    assert volumes(plan, 0)["cp"] == 64 * 8 * (passes * keys + keys + 2 * keys)


def test_ulysses_exchanges_heads():
    plan = job(TINY, f"--context-parallel-algo ulysses_cp_algo {mesh(cp=2)}", 2)
    head = 32 * 8 * 4
    # Its 4 query heads with their group's key and value; its rows of our heads' output.
    to_other = (4 + 2 * 1) * head + 4 * head
    assert volumes(plan, 0)["cp"] == 64 * 8 * 2 * to_other
