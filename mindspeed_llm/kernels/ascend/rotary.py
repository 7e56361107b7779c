"""Rotary embedding on Ascend from plain operators, and SwiGLU, which MindSpore differentiates.

MindSpore's fused operator for interleaved pairs, `rotary_position_embedding`, is deprecated and CANN refuses it for
decoding shapes (B * N > 8 S); the documented successor `apply_rotary_pos_emb_` rotates halves. Here a product with a
constant matrix of 0, 1 and -1 turns every pair by a right angle, exactly and at the cube unit's speed, and two
elementwise operators with tables of the whole head width do the rest: dimensions that are not rotated have cosine 1 and
sine 0.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from mindspore import Tensor, mint, ops

PRIMITIVES = ("rope", "qkv_rope_fwd", "qkv_rope_bwd")


def swiglu(x: Tensor) -> Tensor:
    """`ops.swiglu`; see `kernels.swiglu`."""
    return ops.swiglu(x, dim=-1)


def rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False) -> Tensor:
    """See `reference.rope`; tables in the dtype of `x`."""
    return _rotate(x.expand_dims(2), cos, sin, inverse).reshape(x.shape)


def qkv_rope_fwd(qkv: Tensor, cos: Tensor, sin: Tensor, groups: int, heads_per_group: int,
                 head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.qkv_rope_fwd`. The results share no memory with `qkv`, which would be kept for backward with them.
    """
    seq, batch = qkv.shape[:2]
    grouped = qkv.reshape(seq, batch, groups, heads_per_group + 2, head_dim)
    # The value heads turn with the others: their part of the work is less than another call to leave them out.
    turned = _rotate(grouped, cos, sin, False)
    q = turned[:, :, :, :heads_per_group].reshape(seq, batch, groups * heads_per_group, head_dim)
    return q, turned[:, :, :, heads_per_group].contiguous(), grouped[:, :, :, heads_per_group + 1].contiguous()


def qkv_rope_bwd(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, groups: int, heads_per_group: int,
                 head_dim: int) -> Tensor:
    """See `reference.qkv_rope_bwd`."""
    seq, batch = dq.shape[:2]
    d_qk = mint.cat((dq.reshape(seq, batch, groups, heads_per_group, head_dim), dk.expand_dims(3)), dim=3)
    d_qkv = mint.cat((_rotate(d_qk, cos, sin, True), dv.expand_dims(3)), dim=3)
    return d_qkv.reshape(seq, batch, -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
    """`x (S, B, G, N, D)` by the angles of `cos, sin (S, R/2)`."""
    wide_cos, wide_sin, wide_minus_sin = _tables(cos, sin, x)
    turned = mint.matmul(x, _right_angle(x.shape[-1], 2 * cos.shape[-1], x.dtype))
    return mint.addcmul(x * wide_cos, turned, wide_minus_sin if inverse else wide_sin)


def _tables(cos: Tensor, sin: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """cos, sin and -sin per dimension of a head, `(S, 1, 1, 1, D)` in the dtype of `like`.

    Kept on `cos`: all layers of all passes over the same positions share them, and they go when it goes.
    """
    made = getattr(cos, "per_dimension", {})
    key = (like.dtype, like.shape[-1])
    if key not in made:
        made[key] = tuple(_per_dimension(table, fill, like)
                          for table, fill in ((cos, mint.ones), (sin, mint.zeros), (-sin, mint.zeros)))
        cos.per_dimension = made
    return made[key]


def _per_dimension(table: Tensor, fill: Callable[..., Tensor], like: Tensor) -> Tensor:
    length, rotary = table.shape[0], 2 * table.shape[1]
    table = ops.repeat_interleave(table, 2, axis=-1)
    if rotary < like.shape[-1]:
        table = mint.cat((table, fill((length, like.shape[-1] - rotary), dtype=table.dtype)), dim=-1)
    return table.reshape(length, 1, 1, 1, -1).astype(like.dtype)


@cache
def _right_angle(dim: int, rotary: int, dtype) -> Tensor:
    """`(D, D)`: times it, (even, odd) of each of the first `rotary / 2` pairs becomes (-odd, even), the rest 0."""
    matrix = np.zeros((dim, dim), np.float32)
    even = np.arange(0, rotary, 2)
    matrix[even + 1, even], matrix[even, even + 1] = -1, 1
    return Tensor(matrix).astype(dtype)
