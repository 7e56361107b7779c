"""The learning rate, against values worked out by hand."""

import pytest

from mindspeed_llm.config.training import OptimizerConfig
from mindspeed_llm.core.optimizer.schedule import learning_rate


def test_cosine_with_warmup_fraction():
    config = OptimizerConfig(lr=1.0, min_lr=0.1, lr_decay_style="cosine", lr_warmup_fraction=0.1)
    assert learning_rate(config, 1, 100) == pytest.approx(0.1)
    assert learning_rate(config, 10, 100) == pytest.approx(1.0)
    assert learning_rate(config, 55, 100) == pytest.approx(0.55)
    assert learning_rate(config, 100, 100) == pytest.approx(0.1)


def test_linear_decay_ends_at_the_minimum_and_stays():
    config = OptimizerConfig(lr=1.0, min_lr=0.2, lr_decay_style="linear", lr_decay_iters=10)
    assert learning_rate(config, 5, 100) == pytest.approx(0.6)
    assert learning_rate(config, 10, 100) == pytest.approx(0.2)
    assert learning_rate(config, 50, 100) == 0.2


def test_constant_after_warmup_iterations():
    config = OptimizerConfig(lr=2.0, lr_decay_style="constant", lr_warmup_iters=4)
    assert [learning_rate(config, step, 10) for step in (1, 2, 4, 5, 10)] == [0.5, 1.0, 2.0, 2.0, 2.0]


def test_first_step_of_a_documented_run():
    """2,000 iterations of the 4K script: warm-up over 1% of them, so the first step has a twentieth of 1.25e-6."""
    config = OptimizerConfig(lr=1.25e-6, min_lr=1.25e-7, lr_warmup_fraction=0.01)
    assert f"{learning_rate(config, 1, 2000):.6E}" == "6.250000E-08"
