"""How many operators the host calls for a layer and a micro-batch, forward and backward: what bounds an NPU's speed
when its own work is short.

Counted are the calls that the project's Python code makes: functions of `mint`, `ops` and `dist`, operator classes, and
methods and operators of tensors. What MindSpore calls by itself, differentiating an operator, costs no Python.
"""

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import emulator
import mindspore as ms
import numpy as np
import pytest
from contract import Recorder
from mindspore import Tensor, mint
from mindspore.ops import communication as dist

import mindspeed_llm
from mindspeed_llm import kernels
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.parameters import ParameterSet
from mindspeed_llm.core.transformer.layer import ForwardContext, TransformerLayer
from mindspeed_llm.core.transformer.rotary_embedding import RotaryEmbedding
from mindspeed_llm.kernels import reference
from mindspeed_llm.kernels.functions import build
from mindspeed_llm.runtime import autograd, device
from mindspeed_llm.runtime.collectives import Group, hccl

MODEL = ModelConfig(num_layers=1, hidden_size=64, ffn_hidden_size=96, num_attention_heads=4, num_query_groups=2,
                    kv_channels=16, padded_vocab_size=64, max_position_embeddings=32, add_qkv_bias=True)
LENGTH = 16
PACKAGE = Path(mindspeed_llm.__file__).parent
# Questions about a tensor, not operators on it.
QUESTIONS = {"is_contiguous", "requires_grad_", "asnumpy", "dim", "size", "numel", "element_size", "data_ptr"}
OPERATORS = [f"__{name}__" for name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "neg", "ge",
                                        "gt", "le", "lt", "eq", "getitem", "setitem", "matmul", "pow")]


def ours(frame):
    """Whether the caller is code of the project that runs on Ascend; the reference stands in for operators here."""
    caller = frame.f_back if frame.f_code is device.cast.__code__ else frame     # a cast is its caller's
    path = Path(caller.f_code.co_filename)
    return PACKAGE in path.parents and "reference" not in path.parts


@pytest.fixture
def counted(npu, monkeypatch):
    """Calls by name while `counted.on`; the operators that MindSpore differentiates are stand-ins with a gradient."""
    stand_ins = build(reference)
    attend = stand_ins["attention"]

    def flash_attention_score(query, key, value, head_num, scalar_value=1.0, **_):
        q, k, v = (part.reshape(*part.shape[:2], -1, query.shape[-1] // head_num) for part in (query, key, value))
        return attend(q, k, v, scalar_value, None).reshape(query.shape)

    npu.emulators |= {"ops.swiglu": lambda x, dim: stand_ins["swiglu"](x), "mint.add": stand_ins["add"],
                      "ops.flash_attention_score": flash_attention_score}
    monkeypatch.setattr(kernels, "_active", SimpleNamespace(name="ascend", api=npu.api, primitives=npu.primitives))
    counts = SimpleNamespace(on=False, methods=Counter(), calls=npu.calls)

    def count(name, real):
        def call(*args, **kwargs):
            idle = name == "contiguous" and args[0].is_contiguous()
            if counts.on and not idle and ours(sys._getframe(1)):
                counts.methods[f"Tensor.{name}"] += 1
            return real(*args, **kwargs)
        return call

    recorded = {name.partition(".")[2] for name in npu.emulators if name.startswith("Tensor.")}
    public = {name for name in dir(Tensor) if not name.startswith("_")} - QUESTIONS - recorded
    for name in (*sorted(public), *OPERATORS):
        real = getattr(Tensor, name, None)
        if callable(real):
            monkeypatch.setattr(Tensor, name, count(name, real))
    return counts


def pass_through(layer, context, rows, counts):
    """Calls of one pass, forward and backward, after one that fills what is kept."""
    for _ in range(2):
        counts.methods.clear()
        counts.calls.clear()
        hidden, grad = (emulator.tensor(np.ones((rows, 64)), ms.bfloat16) for _ in range(2))
        leaves = [autograd.leaf(hidden), autograd.leaf(hidden)]
        counts.on = True
        outs = layer(*leaves, context)
        autograd.backward(outs, (grad, grad))
        counts.on = False
        assert all(autograd.grad_of(leaf).shape == hidden.shape for leaf in leaves)
    return counts.methods + Counter(name for name, _ in counts.calls)


def layer_of(tp):
    """A layer and its context; every weight has a gradient to add to."""
    alone = Group("alone", (0,), 0)
    groups = dict.fromkeys(("world", "cp", "dp", "pp", "dp_cp", "model", "embedding", "kv_replica"), alone)
    state = ParallelState(**groups, tp=tp, sequence_parallel=tp.size > 1)
    layer = TransformerLayer(MODEL, 0)
    layer.bind(ParameterSet(layer.specs(), tp.rank, tp.size, ms.bfloat16).tensors, state)
    context = ForwardContext(*RotaryEmbedding(MODEL)(range(LENGTH)),
                             lambda _, q, k, v: kernels.attention(q, k, v, 0.25))
    return layer, context


# What one call each is made of: counted by hand, so that a new call is seen and has to be wanted.
FORWARD = {
    "ops.add_rms_norm": 2, "mint.nn.functional.linear": 4, "ops.flash_attention_score": 1, "ops.swiglu": 1,
    # Turning the heads: a product, cosine, sine; cut into q, k and v.
    "mint.matmul": 1, "Tensor.__mul__": 1, "mint.addcmul": 1, "mint.split": 1,
    # Heads from rows; q, k, v as heads and as the operator takes them; its result as heads and as rows.
    "Tensor.reshape": 1 + 3 + 3 + 2,
}
BACKWARD = {
    # Of four weights: gradient of the input, product, sum. Of a bias: sum over rows, sum. Of two norms: gradient, sum,
    # and the residual's gradient.
    "mint.matmul": 4, "MatMul": 4, "mint.sum": 1, "RmsNormGrad": 2, "Tensor.add_": 4 + 1 + 2, "mint.add": 2,
}
TURN_BACK = {"Tensor.reshape": 2, "Tensor.expand_dims": 2, "mint.cat": 1, "mint.matmul": 1, "Tensor.__mul__": 1,
             "mint.addcmul": 1}
# A gather before each of four products and again in backward of two; a sum after each of four.
COMMUNICATION = {"dist.all_gather_into_tensor": 6, "dist.reduce_scatter_tensor": 4}


def summed(*parts):
    return sum((Counter(part) for part in parts), Counter())


def test_a_layer(counted):
    total = pass_through(*layer_of(Group("alone", (0,), 0)), LENGTH, counted)
    assert total == summed(FORWARD, BACKWARD, TURN_BACK)
    assert total.total() == 49


def test_a_layer_with_tensor_and_sequence_parallelism(counted, npu, monkeypatch):
    """As above, and ten collectives; communication that nothing waits for lies behind a product."""
    def answer(result_rows):
        def collective(_, x, group=None, op="sum", async_op=False):
            result = emulator.tensor(np.ones((result_rows(x), *x.shape[1:])), x.dtype)
            return result, SimpleNamespace(wait=lambda: npu.calls.append(("wait", {}))) if async_op else None
        return collective

    npu.emulators |= {"dist.all_gather_into_tensor": answer(lambda x: 2 * x.shape[0]),
                      "dist.reduce_scatter_tensor": answer(lambda x: x.shape[0] // 2)}
    for name, real in (("dist", dist), ("mint", mint)):
        monkeypatch.setattr(hccl, name, Recorder(real, name, npu.emulators, npu.calls))
    total = pass_through(*layer_of(Group("tp", (0, 1), 0, hccl)), LENGTH // 2, counted)
    assert total.pop("wait") == 4
    assert total == summed(FORWARD, BACKWARD, TURN_BACK, COMMUNICATION)
    assert total.total() == 59
    # Backward of both column-parallel layers: the input is gathered behind the product for its gradient, and that is
    # summed over ranks behind the product for the weight's.
    behind = ["dist.all_gather_into_tensor", "mint.matmul", "dist.reduce_scatter_tensor", "wait", "MatMul"]
    made = [name for name, _ in npu.calls]
    assert [made[place:place + 5] for place, name in enumerate(made) if made[place + 3:place + 4] == ["wait"]
            and name == behind[0]] == [behind] * 2
