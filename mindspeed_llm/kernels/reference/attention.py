"""Causal grouped-query attention that spells the formula out, scores and all: O(S^2) memory, an oracle for short sequences."""

import numpy as np
from mindspore import Tensor, mint
from mindspore import dtype as mstype

from mindspeed_llm.kernels.reference.dense import f32

_MASKED = -1e30  # finite, so that a row without any visible key stays free of NaN until it is zeroed


def attention_fwd(q: Tensor, k: Tensor, v: Tensor, scale: float, q_start: int, k_start: int,
                  cu_seqlens=None) -> tuple[Tensor, Tensor]:
    """`q (Sq, B, N, D)`, `k, v (Sk, B, G, D)` -> (out `(Sq, B, N, D)`, log-sum-exp `(B, N, Sq)` fp32).

    Key j is visible to query i if `k_start + j <= q_start + i` and both lie in one segment of `cu_seqlens`. A query that
    sees no key gives 0 and log-sum-exp -inf.
    """
    heads_per_group = q.shape[2] // k.shape[2]
    probs, lse = _probabilities(q, k, scale, q_start, k_start, cu_seqlens)
    out = mint.matmul(probs, _heads_first(v, heads_per_group))
    return out.transpose(2, 0, 1, 3).astype(q.dtype), lse


def attention_bwd(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, q_start: int,
                  k_start: int, cu_seqlens=None) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. `lse` may span more keys than `k` holds (a block of ring attention)."""
    heads_per_group = q.shape[2] // k.shape[2]
    g = _heads_first(grad, 1)
    scores, visible = _scores(q, k, scale, q_start, k_start, cu_seqlens)
    safe_lse = mint.clamp(lse, min=_MASKED).expand_dims(-1)
    probs = mint.exp(mint.clamp(scores - safe_lse, max=0.0)) * visible
    d_v = mint.matmul(probs.swapaxes(-1, -2), g)
    d_probs = mint.matmul(g, _heads_first(v, heads_per_group).swapaxes(-1, -2))
    delta = (g * _heads_first(out, 1)).sum(axis=-1, keepdims=True)
    d_scores = probs * (d_probs - delta) * scale
    d_q = mint.matmul(d_scores, _heads_first(k, heads_per_group))
    d_k = mint.matmul(d_scores.swapaxes(-1, -2), _heads_first(q, 1))
    return (d_q.transpose(2, 0, 1, 3).astype(q.dtype), _sum_group(d_k, heads_per_group).astype(k.dtype),
            _sum_group(d_v, heads_per_group).astype(v.dtype))


def _heads_first(x: Tensor, repeat: int) -> Tensor:
    x = f32(x).transpose(1, 2, 0, 3)
    if repeat == 1:
        return x
    batch, groups, seq, dim = x.shape
    return mint.broadcast_to(x.expand_dims(2), (batch, groups, repeat, seq, dim)).reshape(batch, -1, seq, dim)


def _sum_group(x: Tensor, heads_per_group: int) -> Tensor:
    batch, heads, seq, dim = x.shape
    return x.reshape(batch, heads // heads_per_group, heads_per_group, seq, dim).sum(axis=2).transpose(2, 0, 1, 3)


def _scores(q, k, scale, q_start, k_start, cu_seqlens):
    heads_per_group = q.shape[2] // k.shape[2]
    q_index, k_index = q_start + np.arange(q.shape[0])[:, None], k_start + np.arange(k.shape[0])[None, :]
    visible = k_index <= q_index
    if cu_seqlens is not None:
        bounds = cu_seqlens.asnumpy() if isinstance(cu_seqlens, Tensor) else np.asarray(cu_seqlens)
        visible = visible & (np.searchsorted(bounds, q_index, "right") == np.searchsorted(bounds, k_index, "right"))
    mask = Tensor(visible.astype(np.float32))
    scores = mint.matmul(_heads_first(q, 1), _heads_first(k, heads_per_group).swapaxes(-1, -2)) * scale
    return scores * mask + (1 - mask) * _MASKED, mask


def _probabilities(q, k, scale, q_start, k_start, cu_seqlens):
    scores, visible = _scores(q, k, scale, q_start, k_start, cu_seqlens)
    highest = scores.max(axis=-1, keepdims=True)
    exponent = mint.exp(scores - highest) * visible
    total = exponent.sum(axis=-1, keepdims=True)
    lse = (highest + mint.log(total)).squeeze(-1)  # log(0) = -inf for a query without keys
    return exponent / mint.clamp(total, min=1e-30), lse.astype(mstype.float32)
