"""Other families against Hugging Face's Glm4ForCausalLM and Qwen3ForCausalLM: logits, loss, every gradient, AdamW steps;
decoding with a cache.
"""

import numpy as np
import pytest
from mindspore import Tensor
from mindspore import dtype as mstype

from mindspeed_llm import kernels
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core import parallel_state
from mindspeed_llm.core.gpt_model import GPTModel
from mindspeed_llm.generation.generator import Generator
from mindspeed_llm.runtime import autograd, device
from tests.golden.reference import Golden
from tests.golden.trial import Trial

# GLM-4-32B-0414 runs 61 layers as 64; here 3 as 4.
FAMILIES = {"glm4": ParallelConfig(noop_layers=(1,)), "qwen3": ParallelConfig()}


def record(family: str) -> tuple[Golden, ParallelConfig]:
    parallel = FAMILIES[family]
    return Golden.of_family(family, parallel.noop_layers), parallel


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_loss(backend, family):
    golden, parallel = record(family)
    trial = Trial(golden, parallel, micro_batch=len(golden["ids"]))
    logits, loss = trial.logits_and_loss()
    assert np.abs(logits - golden["logits"]).max() < 1e-5
    assert abs(loss - golden["loss"]) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_and_adamw(steps, family):
    golden, parallel = record(family)
    errors = Trial(golden, parallel, 2).errors(steps)
    assert errors.grad < 1e-5, errors
    assert errors.parameter < 1e-6, errors
    assert errors.loss < 1e-5 and errors.grad_norm < 3e-5, errors     # ten steps, whose last norms are 1e-5 apart


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_with_a_cache(backend, family):
    """Token by token, the first ten together: the logits of the whole sequences."""
    golden, parallel = record(family)
    model = GPTModel(golden.model, parallel, parallel_state.build(golden.model, parallel), mstype.float32, trainable=False)
    for name, spec in model.parameters.specs.items():
        model.parameters.load(name, golden.local("weight", spec))
    generator = Generator([model], golden.model.padded_vocab_size, 32)
    rows = golden["ids"].tolist()
    caches, logits = generator.prefill([row[:10] for row in rows])
    for position in range(10, 16):
        assert np.abs(logits.logits - golden["logits"][:, position - 1]).max() < 1e-5
        logits = generator.decode(caches, [row[position] for row in rows])
    assert np.abs(logits.logits - golden["logits"][:, -1]).max() < 1e-5


def test_tolerance_sees_the_other_order_of_pairs():
    """Qwen3's rows of q and k left in the order of halves: another model."""
    device.setup()
    kernels.setup()
    golden, parallel = record("qwen3")
    heads = golden.model.heads_per_group + 1
    order = np.arange(golden.model.kv_channels).reshape(-1, 2).T.reshape(-1)
    name = "weight/decoder.layers.0.self_attention.linear_qkv.weight"
    rows = golden[name].reshape(golden.model.num_query_groups, heads + 1, golden.model.kv_channels, -1).copy()
    rows[:, :heads] = rows[:, :heads, order]
    wrong = golden.with_changes(golden.model, **{name: rows.reshape(golden[name].shape)})
    errors, _ = Trial(wrong, parallel, 4).sgd_step()
    assert max(errors.values()) > 1e-3


def test_bf16_is_near_fp32():
    """Every kernel that Qwen3 uses and GLM4 does not runs in bf16 too; the loss is a rounding away."""
    device.setup()
    kernels.setup("bf16")
    golden, parallel = record("qwen3")
    losses, norms = Trial(golden, parallel, 4, "bf16").adamw(2)
    assert np.allclose(losses, golden["adamw_losses"][:2], rtol=2e-3)
    assert np.allclose(norms, golden["adamw_grad_norms"][:2], rtol=3e-2)


def test_gradients_of_q_k_and_v_may_be_views(backend):
    """Those of attention may be: the gradient before the split is that of the same numbers in order."""
    draw = np.random.default_rng(6)
    grads = [draw.standard_normal((2, heads, 3, 8)).astype(np.float32) for heads in (4, 2, 2)]     # (B, N, S, D)

    def gradient(of):
        qkv = autograd.leaf(Tensor(np.zeros((3, 2, 64), np.float32)))
        autograd.backward(kernels.split_qkv(qkv, 2, 2, 8), [of(grad) for grad in grads])
        return autograd.grad_of(qkv).asnumpy()
    views = gradient(lambda grad: Tensor(grad).transpose(2, 0, 1, 3))
    in_order = gradient(lambda grad: Tensor(np.ascontiguousarray(grad.transpose(2, 0, 1, 3))))
    np.testing.assert_array_equal(views, in_order)
    assert views.any()
