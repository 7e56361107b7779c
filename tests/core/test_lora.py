"""Low-rank adapters in one process against PEFT on Hugging Face's GlmForCausalLM, and what freezing the rest saves."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from mindspeed_llm import kernels
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core.tensor_parallel import layers
from mindspeed_llm.core.transformer.lora import ADAPTERS_OFF
from mindspeed_llm.runtime import autograd
from tests.golden.reference import Golden
from tests.golden.trial import Trial

TOLERANCE = 2e-5


RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 2}


@pytest.mark.parametrize("backend, options", [("reference", {}), ("cpu", {}), ("cpu", RECOMPUTE)], indirect=["backend"],
                         ids=["reference", "cpu", "cpu recompute"])
def test_losses_and_gradients_are_those_of_peft(backend, options, steps):
    golden = Golden.of_lora()
    errors = Trial(golden, ParallelConfig(**options), micro_batch=2).errors(steps)
    assert max(errors.loss, errors.grad_norm, errors.grad, errors.parameter) < TOLERANCE, errors


def test_logits_with_and_without_adapters(backend):
    golden, plain = Golden.of_lora(), Golden()
    trial = Trial(golden, ParallelConfig(), micro_batch=4)
    logits, _ = trial.logits_and_loss()
    assert np.abs(logits - golden["logits"]).max() < 1e-5
    (model,), (micro,) = trial.chunks, trial.micro_batches
    with autograd.no_grad():
        hidden = model.hidden_states(Tensor(micro.tokens), model.training_context(micro.seq_length,
                                                                                  adapters=ADAPTERS_OFF))
        without = model.logits(hidden).asnumpy().transpose(1, 0, 2)
    assert np.abs(without - plain["logits"]).max() < 1e-5 < np.abs(without - logits).max()


def test_a_frozen_layer_computes_no_gradient_and_keeps_no_input(backend, monkeypatch):
    """Adapters of linear_fc2 alone: of a layer there are two gradients, and of four products one keeps its input."""
    golden = Golden.of_lora()
    golden.lora = replace(golden.lora, target_modules=("linear_fc2",))
    trial = Trial(golden, ParallelConfig(), micro_batch=4)
    trial.load()
    shapes, kept = [], []
    wgrad, keep = kernels.primitives().linear_wgrad, layers.keep_input
    monkeypatch.setattr(kernels.primitives(), "linear_wgrad",
                        lambda grad, x, target, *more: (shapes.append(target.shape), wgrad(grad, x, target, *more))[1])

    def counting(ctx, x, hidden):
        kept.append(0)
        keep(SimpleNamespace(weight=ctx.weight, low_rank=ctx.low_rank,
                             save_for_backward=lambda *tensors: kept.append(kept.pop() + len(tensors))), x, hidden)
        keep(ctx, x, hidden)

    monkeypatch.setattr(layers, "keep_input", counting)
    trial.forward_backward()
    model = golden.model
    a, b = (golden.lora.r, model.ffn_hidden_size), (model.hidden_size, golden.lora.r)
    assert sorted(shapes) == sorted([a, b] * model.num_layers)
    assert kept == [0, 0, 0, 2] * model.num_layers


def test_nothing_goes_back_beyond_the_first_adapter(backend, monkeypatch):
    """Every layer's input has a gradient but that of the first linear_qkv, whose adapter alone has one."""
    golden = Golden.of_lora()
    trial = Trial(golden, ParallelConfig(), micro_batch=4)
    trial.load()
    seen, dgrad = [], kernels.primitives().linear_dgrad
    monkeypatch.setattr(kernels.primitives(), "linear_dgrad",
                        lambda grad, weight: (seen.append(weight.shape), dgrad(grad, weight))[1])
    trial.forward_backward()
    chunk = trial.chunks[0].parameters
    kinds = [f"self_attention.{name}" for name in ("linear_qkv", "linear_proj")] + ["mlp.linear_fc1", "mlp.linear_fc2"]
    weights = [f"decoder.layers.{layer}.{kind}.weight" for layer in range(golden.model.num_layers) for kind in kinds]
    expected = [chunk[name].shape for name in (*weights[1:], "output_layer.weight")]
    assert sorted(seen) == sorted(expected)
