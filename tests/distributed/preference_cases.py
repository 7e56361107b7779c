"""Cases of a RankPool for test_preference_parity.py: preference tuning under a parallel layout, with and without bugs."""

from contextlib import nullcontext
from unittest.mock import patch

from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core.context_parallel import sums
from mindspeed_llm.training.objectives import preference
from tests.golden.preference_trial import CASES, PreferenceTrial


def _own_part(values, group):
    return values


class _OwnGradient(sums._SumOverParts):
    @staticmethod
    def backward(ctx, grad):
        return grad, None


BUGS = {"log-probabilities not summed over the parts of a sequence":
        lambda: patch.object(preference, "sum_over_parts", _own_part),
        "every part has the gradient of its own share of the loss": lambda: patch.object(sums, "_SumOverParts", _OwnGradient),
        "metrics not shared among the parts": lambda: patch.object(
            preference, "pair_metrics", lambda config, scores, logps, honest=preference.pair_metrics: {
                name: 2 * value for name, value in honest(config, scores, logps).items()})}


def errors(parallel: dict, micro_batch: int, bug: str | None = None) -> dict[str, dict[str, float]]:
    """`{case: errors}` of every recorded case (with a bug: of the first)."""
    with BUGS[bug]() if bug else nullcontext():
        return {case: PreferenceTrial(case, ParallelConfig(**parallel), micro_batch).measure()
                for case in (CASES[:1] if bug else CASES)}
