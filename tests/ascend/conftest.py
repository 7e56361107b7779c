"""The Ascend backend on a machine without an NPU: the emulator answers its operators, every call is checked."""

from types import SimpleNamespace

import emulator
import mindspore as ms
import numpy as np
import pytest
from contract import Recorder, recorded_primitive
from mindspore import Tensor, mint, ops
from mindspore.ops.auto_generate import FlashAttentionScore, FlashAttentionScoreGrad, RmsNormGrad

from mindspeed_llm.kernels import ascend
from mindspeed_llm.kernels.ascend import attention, dense, rotary
from mindspeed_llm.runtime import device


def _matmul(left, right):
    assert left.dtype == right.dtype, f"matmul of {left.dtype} and {right.dtype}"
    return emulator.tensor(emulator.array(left) @ emulator.array(right), left.dtype)


def _linear(input, weight, bias=None):
    assert input.dtype == weight.dtype and (bias is None or bias.dtype == input.dtype)
    out = emulator.array(input) @ emulator.array(weight).T
    return emulator.tensor(out if bias is None else out + emulator.array(bias), input.dtype)


def _embedding(input, weight):
    ids = input.asnumpy()
    assert ids.min(initial=0) >= 0 and ids.max(initial=0) < weight.shape[0], "embedding: id out of range"
    return emulator.tensor(emulator.array(weight)[ids], weight.dtype)


@pytest.fixture
def npu(monkeypatch):
    """`calls` made so far, the emulator's `flash` attention, the backend's `api` and `primitives`."""
    device.setup()
    calls, flash = [], emulator.FlashAttention()
    emulators = {
        "ops.rms_norm": emulator.rms_norm, "ops.swiglu": emulator.swiglu,
        "ops.rotary_position_embedding": emulator.rotary_position_embedding,
        "ops.flash_attention_score": flash.flash_attention_score, "RmsNormGrad": lambda: emulator.rms_norm_grad,
        "FlashAttentionScore": flash.score, "FlashAttentionScoreGrad": flash.score_grad,
        # Not on CPU, or not in bf16 there.
        "mint.matmul": _matmul, "mint.nn.functional.linear": _linear, "mint.nn.functional.embedding": _embedding,
    }
    for module in (dense, rotary, attention):
        for name, real in (("ops", ops), ("mint", mint)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, Recorder(real, name, emulators, calls))
        for real in (RmsNormGrad, FlashAttentionScore, FlashAttentionScoreGrad):
            if hasattr(module, real.__name__):
                monkeypatch.setattr(module, real.__name__, recorded_primitive(real, real.__name__, emulators, calls))
    cached = (attention._score, attention._score_grad, attention._causal_mask)
    for function in cached:
        function.cache_clear()
    yield SimpleNamespace(calls=calls, flash=flash, api=ascend.api(), primitives=ascend.primitives())
    for function in cached:
        function.cache_clear()


@pytest.fixture
def wide(npu, monkeypatch):
    """The same with fp32 let through flash attention on both sides, so that its arithmetic can be compared to 1e-5."""
    npu.flash.dtypes = emulator.FLOATS
    monkeypatch.setattr(attention, "DTYPES", emulator.FLOATS)
    return npu


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def draw(rng):
    """Tensors of normal numbers: `draw(shape, dtype=float32)`."""
    return lambda *shape, dtype=ms.float32: Tensor(rng.standard_normal(shape).astype(np.float32)).astype(dtype)
