"""Kernels on Ascend: MindSpore's documented fused operators, whose gradients MindSpore knows.

Has passed contract tests only (tests/kernels/test_ascend_contract.py); it has not run on NPU hardware.
"""

from types import SimpleNamespace

from mindspore import Tensor, ops
from mindspore import dtype as mstype

from mindspeed_llm.kernels import reference
from mindspeed_llm.kernels.functions import build

CAUSAL_BLOCK = 2048  # side of the compressed causal mask that sparse_mode 2 and 3 ask for


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`ops.rms_norm`; see `kernels.rms_norm`."""
    return ops.rms_norm(x, weight, epsilon=eps)[0]


def swiglu(x: Tensor) -> Tensor:
    """`ops.swiglu`; see `kernels.swiglu`."""
    return ops.swiglu(x, dim=-1)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`ops.rotary_position_embedding`, mode 1 (interleaved pairs), over the rotated part; see `kernels.rope`."""
    rotary = 2 * cos.shape[-1]
    cos, sin = (ops.repeat_interleave(t, 2, axis=-1).reshape(x.shape[0], 1, 1, rotary).astype(x.dtype) for t in (cos, sin))
    turned = ops.rotary_position_embedding(x[..., :rotary], cos, sin, mode=1)
    return turned if rotary == x.shape[-1] else ops.cat((turned, x[..., rotary:]), axis=-1)


def qkv_rope(qkv: Tensor, cos: Tensor, sin: Tensor, groups: int, heads_per_group: int,
             head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split, then `rope`; see `kernels.qkv_rope`."""
    seq, batch = qkv.shape[:2]
    grouped = qkv.reshape(seq, batch, groups, heads_per_group + 2, head_dim)
    q = grouped[:, :, :, :heads_per_group].reshape(seq, batch, groups * heads_per_group, head_dim)
    return rope(q, cos, sin), rope(grouped[:, :, :, heads_per_group], cos, sin), grouped[:, :, :, heads_per_group + 1]


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, cu_seqlens: Tensor | None = None) -> Tensor:
    """`ops.flash_attention_score`: layout SBH with sparse_mode 2, or TND with sparse_mode 3 when packed.

    See `kernels.attention`. Packed sequences need a batch of one, as TND has no batch axis.
    """
    seq, batch, heads, dim = q.shape
    mask = _causal_mask()
    if cu_seqlens is None:
        flat = (t.reshape(seq, batch, -1) for t in (q, k, v))
        out = ops.flash_attention_score(*flat, heads, attn_mask=mask, scalar_value=scale, input_layout="SBH",
                                        sparse_mode=2)
        return out.reshape(seq, batch, heads, dim)
    if batch != 1:
        raise ValueError(f"packed attention takes a batch of 1, got {batch}: use --micro-batch-size 1 with packed data")
    ends = cu_seqlens[1:]
    packed = (t.reshape(seq, t.shape[2], dim) for t in (q, k, v))
    out = ops.flash_attention_score(*packed, heads, actual_seq_qlen=ends, actual_seq_kvlen=ends, attn_mask=mask,
                                    scalar_value=scale, input_layout="TND", sparse_mode=3)
    return out.reshape(seq, 1, heads, dim)


def _causal_mask() -> Tensor:
    return ops.triu(ops.ones((CAUSAL_BLOCK, CAUSAL_BLOCK), mstype.uint8), diagonal=1)


def primitives():
    """Matrix products, loss pieces and optimizer as MindSpore operations (`reference` runs on any device)."""
    return reference


def api() -> SimpleNamespace:
    """The differentiable API: the fused operators above, the rest built over `reference`."""
    return SimpleNamespace(**{**build(reference), "rms_norm": rms_norm, "swiglu": swiglu, "rope": rope,
                              "qkv_rope": qkv_rope, "attention": attention})
