"""Preference tuning under parallel layouts: losses, what is reported and gradients are PyTorch's of make_dpo.py."""

import numpy as np
import pytest

from tests.distributed.preference_cases import BUGS, write_job
from tests.golden.preference_trial import CASES

TOLERANCE = 2e-5
ERRORS = "tests.distributed.preference_cases:errors"
CONTEXT = {"context_parallel_size": 2}
LAYOUTS = {
    "tp2 sp": (2, 2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "pp2": (2, 1, {"pipeline_model_parallel_size": 2}),
    "cp2": (2, 2, CONTEXT),
    "dp2": (2, 1, {"use_distributed_optimizer": True}),
    "pp2 virtual cp2 ulysses": (4, 1, {"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 1,
                                       "context_parallel_algo": "ulysses_cp_algo", **CONTEXT}),
}
FULL = {
    "tp2 sp pp2": (4, 1, {"tensor_model_parallel_size": 2, "sequence_parallel": True,
                          "pipeline_model_parallel_size": 2}),
    "tp2 dp2": (4, 1, {"tensor_model_parallel_size": 2, "overlap_grad_reduce": True}), **LAYOUTS,
}


def _worst(ranks):
    """{case: {what: largest error of all ranks}}."""
    return {case: {what: max(rank[case][what] for rank in ranks) for what in found} for case, found in ranks[0].items()}


def _check(layout, cases, ranks):
    world, micro_batch, parallel = FULL[layout]
    worst = _worst(ranks(world).run(ERRORS, parallel, micro_batch, cases))
    assert list(worst) == cases
    for case, found in worst.items():
        assert max(found.values()) < TOLERANCE, (case, found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_metrics_and_gradients(layout, ranks):
    """With a sum of log-probabilities and the chosen answers' cross entropy, with means of them, and of adapters, whose
    reference is the model without them.
    """
    _check(layout, ["smooth", "ipo", "adapters"], ranks)


@pytest.mark.full
@pytest.mark.parametrize("layout", FULL)
def test_all_losses(layout, ranks):
    _check(layout, list(CASES), ranks)


def test_a_run_with_precomputed_reference_is_that_of_one_process(ranks, tmp_path):
    """Every rank knows what the replicas computed, also of the last group, which does not come out even."""
    folders = [tmp_path / name for name in ("one", "four")]
    for folder in folders:
        folder.mkdir()
        write_job(folder)
    case, flags = "tests.distributed.preference_cases:whole_run", "--precompute-ref"
    (one,) = ranks(1).run(case, str(folders[0]), flags)
    four = ranks(4).run(case, str(folders[1]), flags + " --pipeline-model-parallel-size 2 --use-distributed-optimizer")
    (plain,) = ranks(1).run(case, str(folders[0]), "")
    assert len(one["logps"]) == 26 and len(one["losses"]) == 6
    for run in (*four, plain):
        np.testing.assert_allclose(run["losses"], one["losses"], rtol=1e-4)
        np.testing.assert_allclose(run["logps"] or one["logps"], one["logps"], rtol=1e-5)
        for got, expected in zip(run["metrics"][1:], one["metrics"][1:], strict=True):
            np.testing.assert_allclose([*got.values()], [*expected.values()], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bug", BUGS)
def test_tolerance_catches_a_planted_bug(bug, ranks):
    worst = _worst(ranks(2).run(ERRORS, CONTEXT, 2, ["sigmoid"], bug))
    assert max(max(found.values()) for found in worst.values()) > 100 * TOLERANCE, worst
