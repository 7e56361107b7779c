"""Rotary position embedding, GLM's kind: interleaved pairs of the first `rotary_dim` of a head (Su et al., 2021)."""

from mindspore import Tensor, mint

from mindspeed_llm.kernels.reference.dense import f32
from mindspeed_llm.runtime import device


def rope(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool = False) -> Tensor:
    """Rotate pairs (2i, 2i+1) of the first R dimensions of `x (S, B, N, D)` by the angles of `cos, sin (S, R/2)` fp32.

    `inverse` rotates back, which is also the gradient of the rotation.
    """
    rotary = 2 * cos.shape[-1]
    seq, batch, heads, _ = x.shape
    pairs = f32(x[..., :rotary]).reshape(seq, batch, heads, rotary // 2, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = cos.reshape(seq, 1, 1, -1), sin.reshape(seq, 1, 1, -1)
    if inverse:
        sin = -sin
    turned = mint.cat(((even * cos - odd * sin).expand_dims(-1), (even * sin + odd * cos).expand_dims(-1)), dim=-1)
    turned = device.cast(turned.reshape(seq, batch, heads, rotary), x.dtype)
    return turned if rotary == x.shape[-1] else mint.cat((turned, x[..., rotary:]), dim=-1)


def qkv_rope_fwd(qkv: Tensor, cos: Tensor, sin: Tensor, groups: int, heads_per_group: int,
                 head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split rows `qkv (S * B, groups * (heads_per_group + 2) * head_dim)`, per group [q.. k v], and rotate q and k by
    `cos, sin (S, R/2)`.

    Returns q `(S, B, groups * heads_per_group, head_dim)`, k and v `(S, B, groups, head_dim)`.
    """
    seq = cos.shape[0]
    grouped = qkv.reshape(seq, -1, groups, heads_per_group + 2, head_dim)
    batch = grouped.shape[1]
    q = grouped[:, :, :, :heads_per_group].reshape(seq, batch, groups * heads_per_group, head_dim)
    k, v = grouped[:, :, :, heads_per_group], grouped[:, :, :, heads_per_group + 1]
    return rope(q, cos, sin), rope(k, cos, sin), v


def qkv_rope_bwd(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, groups: int, heads_per_group: int,
                 head_dim: int) -> Tensor:
    """Gradient of `qkv_rope_fwd` with respect to `qkv`."""
    seq, batch = dq.shape[:2]
    dq = rope(dq, cos, sin, inverse=True).reshape(seq, batch, groups, heads_per_group, head_dim)
    dk = rope(dk, cos, sin, inverse=True)
    return mint.cat((dq, dk.expand_dims(3), dv.expand_dims(3)), dim=3).reshape(seq * batch, -1)
