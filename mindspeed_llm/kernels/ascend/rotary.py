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
    return _rotate(x.expand_dims(2), _tables(cos, sin, x, 1, 0), inverse).reshape(x.shape)


def qkv_rope_fwd(qkv: Tensor, cos: Tensor, sin: Tensor, groups: int, heads_per_group: int,
                 head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.qkv_rope_fwd`. The results share no memory with `qkv`, which would be kept for backward with them,
    but with one another.
    """
    seq = cos.shape[0]
    grouped = qkv.reshape(seq, -1, groups, heads_per_group + 2, head_dim)
    turned = _rotate(grouped, _tables(cos, sin, grouped, heads_per_group + 1, 1), False)
    q, k, v = mint.split(turned, (heads_per_group, 1, 1), dim=3)
    return (q.reshape(seq, -1, groups * heads_per_group, head_dim), k.reshape(seq, -1, groups, head_dim),
            v.reshape(seq, -1, groups, head_dim))


def qkv_rope_bwd(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, groups: int, heads_per_group: int,
                 head_dim: int) -> Tensor:
    """See `reference.qkv_rope_bwd`."""
    grouped = dq.reshape(cos.shape[0], -1, groups, heads_per_group, head_dim)
    turned = mint.cat((grouped, dk.expand_dims(3), dv.expand_dims(3)), dim=3)
    back = _rotate(turned, _tables(cos, sin, turned, heads_per_group + 1, 1), True)
    return back.reshape(-1, groups * (heads_per_group + 2) * head_dim)


def _rotate(x: Tensor, tables: tuple[Tensor, Tensor, Tensor], inverse: bool) -> Tensor:
    """`x (S, B, G, N, D)` by the angles of `_tables`."""
    right_angle, cos, sin = tables
    return mint.addcmul(x * cos, mint.matmul(x, right_angle), sin, value=-1 if inverse else 1)


def _tables(cos: Tensor, sin: Tensor, like: Tensor, turning: int, still: int) -> tuple[Tensor, Tensor, Tensor]:
    """The matrix of `_right_angle`, and cos and sin `(S, 1, 1, turning + still, D)` in the dtype of `like`: per dimension
    of `turning` heads that turn, or of one for any number, and of `still` ones that do not.

    Value heads stand still, with cosine 1 and sine 0. To cut them out, to copy them and to join their gradient would be
    calls of their own; tables as large as the heads cost reading them, by their size below 1 % of a layer's time at 8,192
    tokens. Kept on `cos`: all layers of all passes over the same positions share them, and they go when it goes.
    """
    made = getattr(cos, "per_dimension", {})
    key = (like.dtype, like.shape[-1], turning, still)
    if key not in made:
        made[key] = (_right_angle(like.shape[-1], 2 * cos.shape[-1], like.dtype),
                     *(_per_dimension(table, fill, like, turning, still)
                       for table, fill in ((cos, mint.ones), (sin, mint.zeros))))
        cos.per_dimension = made
    return made[key]


def _per_dimension(table: Tensor, fill: Callable[..., Tensor], like: Tensor, turning: int, still: int) -> Tensor:
    """See `_tables`; `fill` makes what leaves a number as it is."""
    length, rotary, dim = table.shape[0], 2 * table.shape[1], like.shape[-1]
    table = ops.repeat_interleave(table, 2, axis=-1)
    if rotary < dim:
        table = mint.cat((table, fill((length, dim - rotary), dtype=table.dtype)), dim=-1)
    heads = [table] * turning + [fill((length, dim), dtype=table.dtype)] * still
    return mint.cat(heads, dim=-1).reshape(length, 1, 1, turning + still, dim).astype(like.dtype)


@cache
def _right_angle(dim: int, rotary: int, dtype) -> Tensor:
    """`(D, D)`: times it, (even, odd) of each of the first `rotary / 2` pairs becomes (-odd, even), the rest 0."""
    matrix = np.zeros((dim, dim), np.float32)
    even = np.arange(0, rotary, 2)
    matrix[even + 1, even], matrix[even, even + 1] = -1, 1
    return Tensor(matrix).astype(dtype)
