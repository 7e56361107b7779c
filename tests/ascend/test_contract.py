"""The checks can fail: planted mistakes in a call are found by the signature or by the emulator."""

from types import SimpleNamespace

import emulator
import mindspore as ms
import numpy as np
import pytest
from contract import Recorder, recorded_primitive
from mindspore import Tensor, ops
from mindspore.ops.auto_generate import FlashAttentionScoreGrad

from mindspeed_llm.kernels.ascend import attention

MASK = np.triu(np.ones((2048, 2048), np.uint8), 1)


@pytest.fixture
def stand_in():
    flash = emulator.FlashAttention()
    return Recorder(ops, "ops", {"ops.flash_attention_score": flash.flash_attention_score}, [])


@pytest.fixture
def qkv(draw):
    return [draw(6, 1, 32, dtype=ms.bfloat16) for _ in range(3)]


def test_unknown_keyword(stand_in, qkv):
    with pytest.raises(TypeError, match="scale_value"):
        stand_in.flash_attention_score(*qkv, 2, scale_value=0.5)


def test_unknown_keyword_of_an_operator_class():
    construct = recorded_primitive(FlashAttentionScoreGrad, "FlashAttentionScoreGrad",
                                   {"FlashAttentionScoreGrad": emulator.FlashAttention().score_grad}, [])
    with pytest.raises(TypeError, match="scalar_value"):
        construct(2, scalar_value=0.5)
    with pytest.raises(TypeError, match="attn_mask"):
        construct(2, scale_value=0.5, inner_precise=0)(None, None, None, None, attn_mask=None)


def test_function_that_is_not_there(stand_in):
    with pytest.raises(AttributeError):
        stand_in.flash_attention(1)


def test_function_that_ascend_does_not_have():
    def add(x):
        """Add.

        Supported Platforms:
            ``CPU``
        """
        return x

    with pytest.raises(AssertionError, match="not documented for Ascend"):
        Recorder(SimpleNamespace(add=add), "ops", {}, []).add(1)


@pytest.mark.parametrize("change, error", [
    ({"sparse_mode": 2, "attn_mask": Tensor(MASK[:6, :6])}, "compressed mask of shape"),
    ({"sparse_mode": 2, "attn_mask": Tensor(1 - MASK)}, "1 above the diagonal"),
    ({"sparse_mode": 2, "attn_mask": Tensor(MASK.astype(np.float32))}, "dtype of the mask"),
    ({"sparse_mode": 3, "input_layout": "TND"}, "actual_seq_qlen"),
    ({"actual_seq_qlen": (6,), "actual_seq_kvlen": (6,)}, "belong to TND"),
    ({"scalar_value": 1}, "floats"),
    ({"input_layout": "SBND"}, "layout"),
    ({"attn_mask": Tensor(np.ones((6, 6), np.uint8))}, "all 1"),
])
def test_documented_refusals(stand_in, qkv, change, error):
    with pytest.raises((TypeError, ValueError, RuntimeError), match=error):
        stand_in.flash_attention_score(*qkv, 2, **{"input_layout": "SBH"} | change)


@pytest.mark.parametrize("ends, error", [((3, 3, 6), "key length is 0"), ((3, 5), "for T"),
                                         (Tensor([3, 6], ms.int32), "int64")])
def test_refused_sequence_lengths(stand_in, qkv, ends, error):
    q, k, v = (part.reshape(6, 2, 16) for part in qkv)
    with pytest.raises((TypeError, ValueError), match=error):
        stand_in.flash_attention_score(q, k, v, 2, actual_seq_qlen=ends, actual_seq_kvlen=ends, attn_mask=Tensor(MASK),
                                       next_tokens=0, input_layout="TND", sparse_mode=3)


def test_fp32_is_refused(stand_in, qkv):
    with pytest.raises(TypeError, match="dtype of query"):
        stand_in.flash_attention_score(*(part.astype(ms.float32) for part in qkv), 2, input_layout="SBH")


def test_sparse_modes_differ(stand_in, draw):
    """Upper left against lower right: with more keys than queries only mode 3 shows the last query all keys."""
    q, k = draw(2, 1, 32, dtype=ms.bfloat16), draw(5, 1, 32, dtype=ms.bfloat16)
    call = {"attn_mask": Tensor(MASK), "input_layout": "SBH"}
    full = stand_in.flash_attention_score(q, k, k, 2, input_layout="SBH").astype(ms.float32).asnumpy()
    upper, lower = (stand_in.flash_attention_score(q, k, k, 2, sparse_mode=mode, **call).astype(ms.float32).asnumpy()
                    for mode in (2, 3))
    assert np.array_equal(lower[1], full[1]) and not np.allclose(upper[1], full[1], atol=0.05)
    assert not np.allclose(lower[0], full[0], atol=0.05)


@pytest.mark.parametrize("layout", ["BSH", "SBH", "BSND", "BNSD", "TND"])
def test_layouts_agree(draw, layout):
    """One attention, laid out five ways."""
    q, k, v = draw(2, 4, 6, 16), draw(2, 2, 6, 16), draw(2, 2, 6, 16)  # BNSD
    flash = emulator.FlashAttention(emulator.FLOATS)

    def arrange(x):
        values = x.asnumpy()
        return Tensor(np.ascontiguousarray({
            "BSH": lambda: values.transpose(0, 2, 1, 3).reshape(2, 6, -1), "BNSD": lambda: values,
            "SBH": lambda: values.transpose(2, 0, 1, 3).reshape(6, 2, -1), "BSND": lambda: values.transpose(0, 2, 1, 3),
            "TND": lambda: values.transpose(0, 2, 1, 3).reshape(12, -1, 16)}[layout]()))

    ends = {"actual_seq_qlen": (6, 12), "actual_seq_kvlen": (6, 12)} if layout == "TND" else {}
    common = {"attn_mask": Tensor(MASK), "sparse_mode": 3, "next_tokens": 0, "scalar_value": 0.3}
    expected = arrange(flash.flash_attention_score(q, k, v, 4, input_layout="BNSD", **common))
    out = flash.flash_attention_score(*map(arrange, (q, k, v)), 4, input_layout=layout, **common, **ends)
    assert np.allclose(out.asnumpy(), expected.asnumpy(), atol=1e-6)


def test_a_planted_bug_is_found(wide, draw, monkeypatch):
    """The tolerance is not vacuous: the wrong sparse mode, or a lost scale, is far outside it."""
    q, k = draw(5, 1, 2, 16), draw(12, 1, 2, 16)
    right = wide.primitives.attention_fwd(q, k, k, 0.25, 7, 0)[0].asnumpy()
    planted = attention._score.__wrapped__

    def upper_left(heads, scale, diagonal):
        return attention.FlashAttentionScore(heads, scale_value=scale, input_layout="SBH",
                                             sparse_mode=2 if diagonal else 0)

    for wrong in (upper_left, lambda heads, scale, diagonal: planted(heads, 1.0, diagonal)):
        monkeypatch.setattr(attention, "_score", wrong)
        assert np.abs(wide.primitives.attention_fwd(q, k, k, 0.25, 7, 0)[0].asnumpy() - right).max() > 1e-2
