"""Preference tuning under parallel layouts: losses, what is reported and gradients are PyTorch's of make_dpo.py."""

import pytest

from tests.distributed.preference_cases import BUGS
from tests.golden.preference_trial import CASES

TOLERANCE = 2e-5
CONTEXT = {"context_parallel_size": 2}
LAYOUTS = {
    "tp2 sp": (2, 2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "pp2": (2, 1, {"pipeline_model_parallel_size": 2}),
    "cp2": (2, 2, CONTEXT),
    "dp2": (2, 1, {"use_distributed_optimizer": True}),
    "pp2 virtual cp2 ulysses": (4, 1, {"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 1,
                                       "context_parallel_algo": "ulysses_cp_algo", **CONTEXT}),
    "tp2 dp2": (4, 1, {"tensor_model_parallel_size": 2, "overlap_grad_reduce": True}),
}


def _worst(ranks):
    """{case: {what: largest error of all ranks}}."""
    return {case: {what: max(rank[case][what] for rank in ranks) for what in found} for case, found in ranks[0].items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_metrics_and_gradients(layout, ranks):
    world, micro_batch, parallel = LAYOUTS[layout]
    worst = _worst(ranks(world).run("tests.distributed.preference_cases:errors", parallel, micro_batch))
    assert tuple(worst) == CASES
    for case, found in worst.items():
        assert max(found.values()) < TOLERANCE, (case, found)


@pytest.mark.parametrize("bug", BUGS)
def test_tolerance_catches_a_planted_bug(bug, ranks):
    worst = _worst(ranks(2).run("tests.distributed.preference_cases:errors", CONTEXT, 2, bug))
    assert max(max(found.values()) for found in worst.values()) > 100 * TOLERANCE, worst
