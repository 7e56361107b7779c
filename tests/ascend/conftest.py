"""The Ascend backend on a machine without an NPU: the emulator answers its operators, every call is checked."""

from types import SimpleNamespace

import emulator
import mindspore as ms
import numpy as np
import pytest
from contract import Recorder, recorded, recorded_primitive
from mindspore import Tensor, mint, ops
from mindspore.ops.auto_generate import (
    AdamWeightDecay,
    FlashAttentionScore,
    FlashAttentionScoreGrad,
    MatMul,
    RmsNormGrad,
)

from mindspeed_llm.kernels import ascend
from mindspeed_llm.kernels.ascend import attention, dense, optimizer, rotary
from mindspeed_llm.runtime import device


def _matmul(left, right):
    assert left.dtype == right.dtype, f"matmul of {left.dtype} and {right.dtype}"
    return emulator.tensor(emulator.array(left) @ emulator.array(right), left.dtype)


def _mat_mul(transpose_a=False, transpose_b=False):
    assert transpose_a and not transpose_b
    return lambda left, right: _matmul(left.swapaxes(0, 1), right)


def _index_add_(self, dim, index, source, *, alpha=1):
    assert dim == 0 and alpha == 1 and index.dtype == ms.int32 and index.ndim == 1 and source.dtype == self.dtype
    assert source.shape == (index.shape[0], *self.shape[1:]) and index.asnumpy().max(initial=0) < self.shape[0]
    total = emulator.array(self)
    np.add.at(total, index.asnumpy(), emulator.array(source))
    return self.copy_(emulator.tensor(total, self.dtype))


def _add_(self, other, *, alpha=1):
    """MindSpore's own does not write through to memory shared with numpy on CPU."""
    assert alpha == 1 and other.shape == self.shape and other.dtype in (self.dtype, *emulator.HALF)
    return self.copy_(emulator.tensor(emulator.array(self) + emulator.array(other), self.dtype))


def _mul_(self, other):
    return self.copy_(emulator.tensor(emulator.array(self) * other, self.dtype))


def _zero_(self):
    return self.copy_(emulator.tensor(np.zeros(self.shape), self.dtype))


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
    """`calls` made so far, the `emulators` that answer them by name, the emulator's `flash` attention, the backend's
    `api` and `primitives`.
    """
    device.setup()
    calls, flash = [], emulator.FlashAttention()
    emulators = {
        "ops.rms_norm": emulator.rms_norm, "ops.add_rms_norm": emulator.add_rms_norm, "ops.swiglu": emulator.swiglu,
        "ops.flash_attention_score": flash.flash_attention_score, "RmsNormGrad": lambda: emulator.rms_norm_grad,
        "FlashAttentionScore": flash.score, "FlashAttentionScoreGrad": flash.score_grad,
        "AdamWeightDecay": AdamWeightDecay,
        # Not on CPU, or not in bf16 there.
        "MatMul": _mat_mul, "mint.addcmul": emulator.addcmul,
        "mint.matmul": _matmul, "mint.nn.functional.linear": _linear, "mint.nn.functional.embedding": _embedding,
    }
    for name, method in (("index_add_", _index_add_), ("zero_", _zero_), ("add_", _add_), ("mul_", _mul_)):
        full = f"Tensor.{name}"
        emulators[full] = method
        monkeypatch.setattr(Tensor, name, recorded(getattr(Tensor, name), full, emulators, calls))
    for module in (dense, rotary, attention, optimizer):
        for name, real in (("ops", ops), ("mint", mint)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, Recorder(real, name, emulators, calls))
        for real in (RmsNormGrad, MatMul, AdamWeightDecay, FlashAttentionScore, FlashAttentionScoreGrad):
            if hasattr(module, real.__name__):
                monkeypatch.setattr(module, real.__name__, recorded_primitive(real, real.__name__, emulators, calls))
    cached = (attention._score, attention._score_grad, attention._causal_mask, rotary._right_angle,
              dense._transposed_product, dense._rms_norm_grad, optimizer._adam_weight_decay)
    for function in cached:
        function.cache_clear()
    yield SimpleNamespace(calls=calls, emulators=emulators, flash=flash, api=ascend.api(),
                          primitives=ascend.primitives())
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
