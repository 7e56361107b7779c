"""Rotary embedding and SwiGLU on Ascend: operators that MindSpore differentiates.

MindSpore 2.10 announces that `rotary_position_embedding` will go away in a later version; its documented successor
`apply_rotary_pos_emb_` rotates halves, not GLM's interleaved pairs.
"""

from mindspore import Tensor, ops


def swiglu(x: Tensor) -> Tensor:
    """`ops.swiglu`; see `kernels.swiglu`."""
    return ops.swiglu(x, dim=-1)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`ops.rotary_position_embedding`, mode 1 (interleaved pairs), over the rotated part; see `kernels.rope`.

    The operator wants cos and sin as `(S, 1, 1, R)` in the dtype of x, and B * N below 1000.
    """
    return _rotate(x, _per_dimension(cos, x), _per_dimension(sin, x))


def qkv_rope(qkv: Tensor, cos: Tensor, sin: Tensor, groups: int, heads_per_group: int,
             head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split, then `rope`; see `kernels.qkv_rope`."""
    seq, batch = qkv.shape[:2]
    grouped = qkv.reshape(seq, batch, groups, heads_per_group + 2, head_dim)
    q = grouped[:, :, :, :heads_per_group].reshape(seq, batch, groups * heads_per_group, head_dim)
    cos, sin = _per_dimension(cos, qkv), _per_dimension(sin, qkv)
    return (_rotate(q, cos, sin), _rotate(grouped[:, :, :, heads_per_group], cos, sin),
            grouped[:, :, :, heads_per_group + 1])


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotary = cos.shape[-1]
    turned = ops.rotary_position_embedding(x[..., :rotary], cos, sin, mode=1)
    return turned if rotary == x.shape[-1] else ops.cat((turned, x[..., rotary:]), axis=-1)


def _per_dimension(table: Tensor, like: Tensor) -> Tensor:
    """`(S, R/2)`, one value per pair -> `(S, 1, 1, R)`, one per dimension, in the dtype of `like`."""
    return ops.repeat_interleave(table, 2, axis=-1).reshape(table.shape[0], 1, 1, -1).astype(like.dtype)
