"""Causal grouped-query attention on Ascend by `FlashAttentionScore`, memory linear in the sequence.

The operator takes fp16 and bf16 and head widths that are multiples of 16 up to 512; anything else is computed by
`reference`, with memory O(S^2). Causal calls pass the compressed mask of 2048 x 2048 that sparse_mode 2 (diagonal from
the upper left) and 3 (diagonal into the lower right) ask for, whatever the length.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from mindspore import Tensor, mint, ops
from mindspore import dtype as mstype
from mindspore.ops.auto_generate import FlashAttentionScore, FlashAttentionScoreGrad

from mindspeed_llm.kernels import reference
from mindspeed_llm.kernels.ascend.spans import spans
from mindspeed_llm.kernels.functions import build

PRIMITIVES = ("attention_fwd", "attention_bwd", "attention_cached")
DTYPES = (mstype.float16, mstype.bfloat16)
MASK_SIDE = 2048
MOST_SEGMENTS = 1024
_UNLIMITED = 2147483647
_STATISTIC = 8  # the operator repeats a row's maximum and sum so often

_composite_attention = build(reference)["attention"]


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, cu_seqlens: Tensor | None = None) -> Tensor:
    """`ops.flash_attention_score`, differentiated by MindSpore; see `kernels.attention`.

    Layout SBH with sparse_mode 2, or TND with sparse_mode 3 when packed: then the batch lies along T, row after row,
    and the segments' ends are given as ints, which costs a device synchronisation if `cu_seqlens` is on the device. TND
    is documented for at most 1,024 segments: more of them are several calls.
    """
    if not _fused(q):
        return _composite_attention(q, k, v, scale, cu_seqlens)
    seq, batch, heads, dim = q.shape
    if cu_seqlens is None:
        out = ops.flash_attention_score(_sbh(q), _sbh(k), _sbh(v), heads, attn_mask=_causal_mask(), scalar_value=scale,
                                        input_layout="SBH", sparse_mode=2)
        return out.reshape(q.shape)
    q, k, v = _tnd(q), _tnd(k), _tnd(v)
    outs = []
    for rows, ends in _calls(_segment_ends(cu_seqlens, seq, batch)):
        outs.append(ops.flash_attention_score(
            _rows(q, rows), _rows(k, rows), _rows(v, rows), heads, actual_seq_qlen=ends, actual_seq_kvlen=ends,
            attn_mask=_causal_mask(), scalar_value=scale, next_tokens=0, input_layout="TND", sparse_mode=3))
    out = outs[0] if len(outs) == 1 else mint.cat(outs, dim=0)
    return out.reshape(batch, seq, heads, dim).swapaxes(0, 1)


def attention_fwd(q: Tensor, k: Tensor, v: Tensor, scale: float, q_start: int, k_start: int,
                  cu_seqlens=None) -> tuple[Tensor, Tensor]:
    """`q (Sq, B, N, D)`, `k, v (Sk, B, G, D)` -> (out, log-sum-exp `(B, N, Sq)` fp32); see `reference.attention_fwd`.

    One operator call per span; with TND, all segments in one call, the order of the statistics is not documented.
    """
    if not _fused(q):
        return reference.attention_fwd(q, k, v, scale, q_start, k_start, cu_seqlens)
    outs, lses = [], []
    for span in spans(q.shape[0], k.shape[0], q_start, k_start, _bounds(cu_seqlens)):
        rows = _rows(q, span.queries)
        if span.keys.start == span.keys.stop:
            outs.append(mint.zeros(rows.shape, dtype=q.dtype))
            lses.append(mint.log(mint.zeros((*rows.shape[1:3], rows.shape[0]), dtype=mstype.float32)))  # -inf
            continue
        highest, total, _, out = _score(q.shape[2], scale, span.diagonal)(
            _sbh(rows), _sbh(_rows(k, span.keys)), _sbh(_rows(v, span.keys)),
            attn_mask=_causal_mask() if span.diagonal else None)
        outs.append(out.reshape(rows.shape))
        lses.append(highest[..., 0] + mint.log(total[..., 0]))
    return (outs[0], lses[0]) if len(outs) == 1 else (mint.cat(outs, dim=0), mint.cat(lses, dim=2))


def attention_bwd(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, q_start: int,
                  k_start: int, cu_seqlens=None) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; `out` and `lse` may be over more keys than `k` holds; see `reference.attention_bwd`.

    `FlashAttentionScoreGrad` recomputes probabilities as exp(score - softmax_max) / softmax_sum, so that the
    log-sum-exp can stand for the maximum, with a sum of 1. MindSpore documents the operator by its parameters' names
    only; their meaning is CANN's aclnnFlashAttentionScoreGrad.
    """
    if not _fused(q):
        return reference.attention_bwd(grad, q, k, v, out, lse, scale, q_start, k_start, cu_seqlens)
    d_q, d_k, d_v = (mint.zeros(tensor.shape, dtype=mstype.float32) for tensor in (q, k, v))
    for span in spans(q.shape[0], k.shape[0], q_start, k_start, _bounds(cu_seqlens)):
        if span.keys.start == span.keys.stop:
            continue
        highest = lse[:, :, span.queries].expand_dims(-1)
        highest = mint.broadcast_to(highest, (*highest.shape[:-1], _STATISTIC)).contiguous()
        span_q, span_k, span_v, *_ = _score_grad(q.shape[2], scale, span.diagonal)(
            _sbh(_rows(q, span.queries)), _sbh(_rows(k, span.keys)), _sbh(_rows(v, span.keys)),
            _sbh(_rows(grad, span.queries)), atten_mask=_causal_mask() if span.diagonal else None, softmax_max=highest,
            softmax_sum=mint.ones(highest.shape, dtype=mstype.float32), attention_in=_sbh(_rows(out, span.queries)))
        for total, rows, part in ((d_q, span.queries, span_q), (d_k, span.keys, span_k), (d_v, span.keys, span_v)):
            total[rows] = total[rows] + part.astype(mstype.float32).reshape(-1, *total.shape[1:])
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype)


def attention_cached(q: Tensor, k: Tensor, v: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor],
                     tables: Sequence[Sequence[int]], edges: Sequence[int], lengths: Sequence[int], scale: float,
                     keep: bool = True) -> Tensor:
    """Several sequences over their caches, one after the other by `attention_fwd`: see `reference.attention_cached`."""
    return reference.attention_cached(q, k, v, keys, values, tables, edges, lengths, scale, keep,
                                      attention_fwd)


def _fused(q: Tensor) -> bool:
    return q.dtype in DTYPES and q.shape[3] % 16 == 0 and q.shape[3] <= 512


@cache
def _causal_mask() -> Tensor:
    """1 above the diagonal: not to be seen."""
    return ops.triu(ops.ones((MASK_SIDE, MASK_SIDE), mstype.uint8), diagonal=1)


@cache
def _score(heads: int, scale: float, diagonal: bool) -> FlashAttentionScore:
    return FlashAttentionScore(heads, scale_value=scale, pre_tokens=_UNLIMITED,
                               next_tokens=0 if diagonal else _UNLIMITED, inner_precise=0, input_layout="SBH",
                               sparse_mode=3 if diagonal else 0)


@cache
def _score_grad(heads: int, scale: float, diagonal: bool) -> FlashAttentionScoreGrad:
    # Its defaults are not those of the forward operator: a window of 65536 tokens and another precision mode.
    return FlashAttentionScoreGrad(heads, scale_value=scale, pre_tokens=_UNLIMITED,
                                   next_tokens=0 if diagonal else _UNLIMITED, inner_precise=0, input_layout="SBH",
                                   sparse_mode=3 if diagonal else 0)


def _sbh(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:2], -1)


def _tnd(x: Tensor) -> Tensor:
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def _rows(x: Tensor, rows: slice) -> Tensor:
    return x if rows == slice(0, x.shape[0]) else x[rows]


def _bounds(cu_seqlens: Tensor | np.ndarray | None) -> Sequence[int]:
    if cu_seqlens is None:
        return ()
    return (cu_seqlens.asnumpy() if isinstance(cu_seqlens, Tensor) else np.asarray(cu_seqlens)).tolist()


def _segment_ends(cu_seqlens: Tensor | np.ndarray, seq: int, batch: int) -> tuple[int, ...]:
    """Cumulative lengths of all rows' segments, without the empty ones, which the operator does not take."""
    inner = sorted({end for end in _bounds(cu_seqlens) if 0 < end < seq})
    return tuple(row * seq + end for row in range(batch) for end in (*inner, seq))


def _calls(ends: tuple[int, ...]) -> Iterator[tuple[slice, tuple[int, ...]]]:
    """The rows of each call, and the ends of its segments counted from its first row."""
    start = 0
    for first in range(0, len(ends), MOST_SEGMENTS):
        part = ends[first:first + MOST_SEGMENTS]
        yield slice(start, part[-1]), tuple(end - start for end in part)
        start = part[-1]
