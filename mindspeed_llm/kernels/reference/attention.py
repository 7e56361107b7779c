"""Causal grouped-query attention that spells the formula out, scores and all: O(S^2) memory, an oracle for short sequences."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from mindspore import Tensor, mint
from mindspore import dtype as mstype

from mindspeed_llm.kernels.reference.dense import f32
from mindspeed_llm.runtime import device

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
    return _rows_first(out, q.dtype), lse


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
    return (_rows_first(d_q, q.dtype), _rows_first(_sum_group(d_k, heads_per_group), k.dtype),
            _rows_first(_sum_group(d_v, heads_per_group), v.dtype))


def attention_cached(q: Tensor, k: Tensor, v: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor],
                     tables: Sequence[Sequence[int]], edges: Sequence[int], lengths: Sequence[int], scale: float,
                     keep: bool = True, forward: Callable = attention_fwd) -> Tensor:
    """Causal attention of the new tokens of several sequences, each over its own past and itself: `(T, 1, N, D)`.

    The past lies in blocks (Kwon et al., "Efficient Memory Management for Large Language Model Serving with
    PagedAttention", SOSP 2023).

    Args:
        q, k, v: `(T, 1, N, D)`, `(T, 1, G, D)` twice; rows `edges[i]` to `edges[i + 1]` are sequence i's new tokens.
        keys, values: slabs `(blocks, rows of a block, G, D)`, all of one shape; blocks are numbered through the slabs.
        tables: each sequence's blocks in the order of its tokens; several sequences may have the same block.
        lengths: number of tokens in each sequence's past.
        keep: write the new rows of k and v behind the past, in place (the table must have the blocks for them, which no
            other sequence may have). Without it slabs are only read.
        forward: the `attention_fwd` that computes a sequence.

    Raises ValueError where sizes do not fit.
    """
    if not len(tables) == len(lengths) == len(edges) - 1:
        raise ValueError("attention_cached: tables and lengths must have one entry for each sequence, edges one more")
    outs = []
    for start, stop, past, table in zip(edges[:-1], edges[1:], lengths, tables, strict=True):
        used, rows = past + stop - start if keep else past, len(table) * keys[0].shape[1]
        if rows < used:
            raise ValueError(f"attention_cached: a cache has {rows} rows, needs {used}")
        whole = []
        for slabs, fresh in ((keys, k[start:stop]), (values, v[start:stop])):
            if keep:
                _write(slabs, table, past, fresh)
            whole.append(mint.cat((*_read(slabs, table, past), fresh), dim=0) if past else fresh)
        outs.append(forward(q[start:stop], *whole, scale, past, 0)[0])
    return outs[0] if len(outs) == 1 else mint.cat(outs, dim=0)


def _read(slabs: Sequence[Tensor], table: Sequence[int], length: int) -> Iterator[Tensor]:
    """The first `length` rows that lie in the blocks of `table`, a piece `(n, 1, G, D)` for each block."""
    per_slab, size = slabs[0].shape[:2]
    for start in range(0, length, size):
        slab, place = divmod(table[start // size], per_slab)
        yield slabs[slab][place, :min(size, length - start)].expand_dims(1)


def _write(slabs: Sequence[Tensor], table: Sequence[int], length: int, rows: Tensor) -> None:
    """Put `rows (n, 1, G, D)` behind the first `length` ones; on CPU through the memory that numpy shares."""
    per_slab, size = slabs[0].shape[:2]
    done = 0
    while done < rows.shape[0]:
        slab, place = divmod(table[(length + done) // size], per_slab)
        first = (length + done) % size
        count = min(size - first, rows.shape[0] - done)
        fresh = rows[done:done + count].squeeze(1)
        if device.on_cpu():
            slabs[slab].asnumpy()[place, first:first + count] = fresh.asnumpy()
        else:
            slabs[slab][place, first:first + count] = fresh
        done += count


def _heads_first(x: Tensor, repeat: int) -> Tensor:
    x = f32(x).transpose(1, 2, 0, 3)
    if repeat == 1:
        return x
    batch, groups, seq, dim = x.shape
    return mint.broadcast_to(x.expand_dims(2), (batch, groups, repeat, seq, dim)).reshape(batch, -1, seq, dim)


def _rows_first(x: Tensor, dtype: mstype.Type) -> Tensor:
    """`x (B, N, S, D)` as `(S, B, N, D)`."""
    return device.cast(x.transpose(2, 0, 1, 3), dtype)


def _sum_group(x: Tensor, heads_per_group: int) -> Tensor:
    batch, heads, seq, dim = x.shape
    return x.reshape(batch, heads // heads_per_group, heads_per_group, seq, dim).sum(axis=2)


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
    return exponent / mint.clamp(total, min=1e-30), f32(lse)
