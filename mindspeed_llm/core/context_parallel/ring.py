"""Ring attention: queries stay, keys and values travel around the context-parallel ranks.

Method: Liu et al., "Ring Attention with Blockwise Transformers", 2023, with partial results merged by their log-sum-exp
as in FlashAttention, and the zigzag division of `partition.py`. Shapes: s length of a piece, a rank holds two; B batch,
N heads, G query groups, D head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mindspore import Tensor, mint
from mindspore import dtype as mstype

from mindspeed_llm import kernels
from mindspeed_llm.runtime import device
from mindspeed_llm.runtime.autograd import Function
from mindspeed_llm.runtime.collectives import Group, finish_exchange, start_exchange


@dataclass(frozen=True)
class Block:
    """One call of the attention kernel: rows of the local queries and of the visiting keys, and the position of the
    first row of each in the whole sequence (only what is visible of keys depends on it).
    """

    queries: slice
    keys: slice
    q_start: int
    k_start: int


def ring_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, group: Group, cu_seqlens=None) -> Tensor:
    """Causal attention over the whole sequence for this rank's zigzag part: `q (2s, B, N, D)`, `k, v (2s, B, G, D)`.

    `cu_seqlens`: boundaries of packed segments in the whole sequence. Returns `(2s, B, N, D)`.
    """
    return _RingAttention.apply(q, k, v, scale, group, cu_seqlens)


def blocks(rank: int, owner: int, size: int, piece: int, packed: bool) -> Iterator[Block]:
    """The visible blocks between the queries of `rank` and the keys of `owner`, for pieces of length `piece`."""
    early, late, whole = slice(0, piece), slice(piece, 2 * piece), slice(0, 2 * piece)
    if not packed:
        # Positions matter only relative to each other: everything visible, or causal within the rank's own part.
        if owner == rank:
            yield Block(whole, whole, 0, 0)
        elif owner < rank:
            yield Block(whole, early, piece, 0)
        else:
            yield Block(late, whole, 2 * piece, 0)
        return
    for queries, q_piece in ((early, rank), (late, 2 * size - 1 - rank)):
        for keys, k_piece in ((early, owner), (late, 2 * size - 1 - owner)):
            if k_piece <= q_piece:
                yield Block(queries, keys, q_piece * piece, k_piece * piece)


class _RingAttention(Function):
    @staticmethod
    def forward(ctx, q, k, v, scale, group, cu_seqlens):
        p, rows = kernels.primitives(), q.shape[0]
        piece = rows // 2
        merged = [_Partial(), _Partial()]
        visiting = mint.cat((k, v), dim=0)
        for step in range(group.size):
            last = step == group.size - 1
            moving = None if last else _start_shift(visiting, group)
            owner = (group.rank - step) % group.size
            for block in blocks(group.rank, owner, group.size, piece, cu_seqlens is not None):
                out, lse = p.attention_fwd(_rows(q, block.queries), _rows(visiting[:rows], block.keys),
                                           _rows(visiting[rows:], block.keys), scale, block.q_start, block.k_start,
                                           cu_seqlens)
                for half in (0, 1):
                    part = _overlap(block.queries, half, piece)
                    if part is not None:
                        merged[half].add(out[part], lse[:, :, part])
            if not last:
                (visiting,) = finish_exchange(moving)
        out = device.cast(mint.cat([half.out for half in merged], dim=0), q.dtype)
        ctx.save_for_backward(q, k, v, out, mint.cat([half.lse for half in merged], dim=2))
        ctx.args = (scale, group, cu_seqlens)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, lse = ctx.saved_tensors
        scale, group, cu_seqlens = ctx.args
        p, rows = kernels.primitives(), q.shape[0]
        piece = rows // 2
        d_q = [None, None]
        visiting, d_visiting = mint.cat((k, v), dim=0), None
        for step in range(group.size):
            last = step == group.size - 1
            # The keys of the next step, and the gradients that the previous rank has finished for this step's keys,
            # travel while this step's blocks are computed; one batch each: HCCL takes one tensor per peer in a batch.
            moving = None if last else _start_shift(visiting, group)
            d_moving = None if d_visiting is None else _start_shift(d_visiting, group)
            d_k, d_v = [None, None], [None, None]
            owner = (group.rank - step) % group.size
            for block in blocks(group.rank, owner, group.size, piece, cu_seqlens is not None):
                d_block = p.attention_bwd(
                    _rows(grad, block.queries), _rows(q, block.queries), _rows(visiting[:rows], block.keys),
                    _rows(visiting[rows:], block.keys), _rows(out, block.queries),
                    lse[:, :, block.queries].contiguous(), scale, block.q_start, block.k_start, cu_seqlens)
                for halves, value, taken in zip((d_q, d_k, d_v), d_block, (block.queries, block.keys, block.keys),
                                                strict=True):
                    _add_halves(halves, value, taken, piece)
            if not last:
                (visiting,) = finish_exchange(moving)
            d_visiting = mint.cat([_half(half, k, piece) for half in d_k + d_v], dim=0)
            if d_moving is not None:
                d_visiting = d_visiting + finish_exchange(d_moving)[0]
        (d_own,) = finish_exchange(_start_shift(d_visiting, group))
        return (device.cast(mint.cat([_half(half, q, piece) for half in d_q], dim=0), q.dtype),
                device.cast(d_own[:rows], k.dtype), device.cast(d_own[rows:], v.dtype), None, None, None)


class _Partial:
    """Attention over the keys seen so far: `out (s, B, N, D)` fp32 and `lse (B, N, s)`."""

    def __init__(self) -> None:
        self.out, self.lse = None, None

    def add(self, out: Tensor, lse: Tensor) -> None:
        """Take in the result over further keys."""
        out = device.cast(out, mstype.float32)
        if self.out is None:
            self.out, self.lse = out, lse
            return
        top = mint.maximum(self.lse, lse)
        # A row without any key yet has -inf twice: the difference to a finite stand-in keeps NaN out.
        safe = mint.clamp(top, min=-1e30)
        old, new = mint.exp(self.lse - safe), mint.exp(lse - safe)
        total = old + new
        self.out = (self.out * _per_row(old) + out * _per_row(new)) / _per_row(mint.clamp(total, min=1e-30))
        self.lse = safe + mint.log(total)


def _per_row(weight: Tensor) -> Tensor:
    """`(B, N, s)` -> `(s, B, N, 1)`."""
    return weight.transpose(2, 0, 1).expand_dims(-1)


def _rows(tensor: Tensor, rows: slice) -> Tensor:
    return tensor if rows == slice(0, tensor.shape[0]) else tensor[rows].contiguous()


def _overlap(rows: slice, half: int, piece: int) -> slice | None:
    """Where half 0 or 1 of the local rows lies within `rows`, counted from their start; None if it does not."""
    start = half * piece - rows.start
    return slice(start, start + piece) if rows.start <= half * piece < rows.stop else None


def _add_halves(halves: list[Tensor | None], value: Tensor, rows: slice, piece: int) -> None:
    for half in (0, 1):
        part = _overlap(rows, half, piece)
        if part is not None:
            addend = device.cast(value[part], mstype.float32)
            halves[half] = addend if halves[half] is None else halves[half] + addend


def _half(half: Tensor | None, like: Tensor, piece: int) -> Tensor:
    return mint.zeros((piece, *like.shape[1:]), dtype=mstype.float32) if half is None else half


def _start_shift(tensor: Tensor, group: Group):
    """Send to the next rank, receive the same shape from the previous one."""
    following, previous = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    return start_exchange([(tensor, following)], [(tensor.shape, tensor.dtype, previous)], group)
