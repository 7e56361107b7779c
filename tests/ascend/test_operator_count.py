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
from mindspore.mint import distributed as dist

import mindspeed_llm
from mindspeed_llm import kernels
from mindspeed_llm.config.model import ModelConfig
from mindspeed_llm.config.parallel import ParallelConfig
from mindspeed_llm.core.parallel_state import ParallelState
from mindspeed_llm.core.parameters import ParameterSet
from mindspeed_llm.core.transformer.layer import ForwardContext, TransformerLayer
from mindspeed_llm.core.transformer.rotary_embedding import RotaryEmbedding
from mindspeed_llm.kernels import reference
from mindspeed_llm.kernels.functions import build
from mindspeed_llm.runtime import autograd
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
    path = Path(frame.f_code.co_filename)
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
        hidden, grad = (emulator.tensor(np.ones((rows, 1, 64)), ms.bfloat16) for _ in range(2))
        leaf = autograd.leaf(hidden)
        counts.on = True
        out = layer(leaf, context)
        autograd.backward((out,), (grad,))
        counts.on = False
        assert autograd.grad_of(leaf).shape == hidden.shape
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


def test_a_layer(counted):
    total = pass_through(*layer_of(Group("alone", (0,), 0)), LENGTH, counted)
    assert total["MatMul"] == 4 and total["RmsNormGrad"] == 2, "a whole backward pass"
    assert sum(total.values()) <= 56, total


def test_a_layer_with_tensor_and_sequence_parallelism(counted, npu, monkeypatch):
    """As above; on top of it a collective and its buffer for each of six gathers and four sums."""
    def answer(output, input, group=None, op="sum", async_op=False):
        output.copy_(emulator.tensor(np.ones(output.shape), output.dtype))
        return SimpleNamespace(wait=lambda: None) if async_op else None

    npu.emulators |= {"dist.all_gather_into_tensor": answer, "dist.reduce_scatter_tensor": answer,
                      "mint.empty": lambda *size, dtype: emulator.tensor(np.zeros(size[0]), dtype)}
    for name, real in (("dist", dist), ("mint", mint)):
        monkeypatch.setattr(hccl, name, Recorder(real, name, npu.emulators, npu.calls))
    total = pass_through(*layer_of(Group("tp", (0, 1), 0, hccl)), LENGTH // 2, counted)
    moved = {name: total[name] for name in total if name.startswith("dist.")}
    assert moved == {"dist.all_gather_into_tensor": 6, "dist.reduce_scatter_tensor": 4}
    assert total["mint.empty"] == 10 and sum(total.values()) <= 76, total
