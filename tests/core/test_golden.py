"""One process against Hugging Face's GlmForCausalLM: logits, loss, every gradient, AdamW steps."""

import numpy as np
import pytest

from mindspeed_llm import kernels
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.runtime import device
from tests.golden.reference import Golden
from tests.golden.trial import Trial

FULL_BLOCK = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 2}
FULL_UNIFORM = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def test_logits_and_loss(backend):
    golden = Golden()
    trial = Trial(golden, ParallelConfig(), micro_batch=len(golden["ids"]))
    logits, loss = trial.logits_and_loss()
    assert np.abs(logits - golden["logits"]).max() < 1e-5
    assert abs(loss - golden["loss"]) < 1e-5


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_gradients_and_adamw(steps, micro_batch):
    errors = Trial(Golden(), ParallelConfig(), micro_batch).errors(steps)
    assert errors.grad < 1e-5, errors
    assert errors.parameter < 1e-6, errors
    assert errors.loss < 1e-5 and errors.grad_norm < 1e-5, errors


@pytest.mark.parametrize("recompute", [FULL_BLOCK, FULL_UNIFORM], ids=["block", "uniform"])
def test_gradients_through_recompute(backend, recompute):
    grad_errors, _ = Trial(Golden(), ParallelConfig(**recompute), 2).sgd_step()
    assert max(grad_errors.values()) < 1e-5, grad_errors


def test_tolerance_sees_a_wrong_epsilon():
    """GLM4's epsilon is 1.5625e-07, its successor's 1e-05: the gradients tell them apart."""
    device.setup()
    kernels.setup()
    golden = Golden()
    golden.model = type(golden.model)(**{**golden.model.to_dict(), "norm_epsilon": 1e-05})
    grad_errors, _ = Trial(golden, ParallelConfig(), 4).sgd_step()
    assert max(grad_errors.values()) > 1e-5
