"""The gradient norm: one reading back from the device a step, whatever the number of parameters."""

import math

import numpy as np
import pytest
from mindspore import Tensor

from mindspeed_llm import kernels
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core.optimizer import gradients
from mindspeed_llm.runtime import device
from mindspeed_llm.runtime.collectives import Group
from tests.golden.reference import Golden
from tests.golden.trial import SGD, Trial

ALONE = Group("alone", (0,), 0)


@pytest.fixture
def reads(monkeypatch):
    """Readings of a tensor's values with the reference kernels, which compute on the device."""
    device.setup()
    monkeypatch.setenv("MINDSPEED_LLM_KERNELS", "reference")
    kernels.setup()
    seen, real = [], Tensor.asnumpy
    monkeypatch.setattr(Tensor, "asnumpy", lambda self: seen.append(self) or real(self))
    return seen


def test_one_reading_a_step(reads):
    trial = Trial(Golden(), ParallelConfig(), 4)
    trial.load()
    trial.forward_backward()
    optimizer = trial.optimizer(SGD)
    optimizer._reduce()
    reads.clear()
    squares = optimizer._sum_squares()
    assert len(reads) == 1
    assert math.sqrt(squares) * trial.grad_scale == pytest.approx(trial.golden["adamw_grad_norms"][0], rel=1e-5)


def test_nothing_to_sum(reads):
    """A rank that counts no parameter of its own takes part with as many words as the others."""
    assert gradients.global_sum_squares([], ALONE) == 0
    one = kernels.primitives().sum_squares([Tensor(np.ones(3, np.float32))])
    assert kernels.primitives().sum_squares([]).shape == one.shape


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_values_carry_over(reads, bad):
    tensors = [Tensor(np.array(values, np.float32)) for values in ([1, 2], [bad, 1])]
    assert not math.isfinite(gradients.global_sum_squares(tensors, ALONE))
