"""Ulysses attention: exchange a part of the sequence with all heads for all of the sequence with a part of the heads.

Method: Jacobs et al., "DeepSpeed Ulysses", 2023. With fewer query groups than context-parallel ranks, the ranks whose
heads share a group all get its keys and values, and their gradients are summed. Shapes: S whole sequence, C
context-parallel size, B batch, N heads, G query groups, D head width.
"""

from mindspore import Tensor, mint
from mindspore import dtype as mstype

from mindspeed_llm import kernels
from mindspeed_llm.config.parallel import ulysses_divides
from mindspeed_llm.runtime import device
from mindspeed_llm.runtime.autograd import Function
from mindspeed_llm.runtime.collectives import Group, all_to_all


def ulysses_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, group: Group, cu_seqlens=None) -> Tensor:
    """Causal attention over the whole sequence: `q (S/C, B, N, D)`, `k, v (S/C, B, G, D)` -> `(S/C, B, N, D)`.

    `cu_seqlens`: boundaries of packed segments in the whole sequence.
    """
    return _UlyssesAttention.apply(q, k, v, scale, group, cu_seqlens)


def group_ranges(heads: int, groups: int, size: int) -> list[tuple[int, int]]:
    """Query groups that each of `size` ranks needs for its `heads / size` heads: equally many for all.

    Raises ValueError if the heads, or the groups among them, do not divide evenly.
    """
    if not ulysses_divides(heads, groups, size):
        raise ValueError(f"ulysses_cp_algo cannot cut {heads} heads in {groups} query groups over "
                         f"--context-parallel-size ({size}): use a size that divides the heads and divides, or is a "
                         "multiple of, the groups")
    per_rank, per_group = heads // size, heads // groups
    return [(rank * per_rank // per_group, -(-(rank + 1) * per_rank // per_group)) for rank in range(size)]


class _UlyssesAttention(Function):
    @staticmethod
    def forward(ctx, q, k, v, scale, group, cu_seqlens):
        ranges = group_ranges(q.shape[2], k.shape[2], group.size)
        heads = q.shape[2] // group.size
        # q, k and v of a destination are one message: heads first, then its groups' keys, then values.
        received = mint.cat(all_to_all(
            [mint.cat((q[:, :, rank * heads:(rank + 1) * heads], k[:, :, low:high], v[:, :, low:high]), dim=2)
             for rank, (low, high) in enumerate(ranges)], group), dim=0)
        groups = ranges[0][1] - ranges[0][0]
        q_SBnD, k_SBgD, v_SBgD = (part.contiguous() for part in mint.split(received, (heads, groups, groups), dim=2))
        out_SBnD, lse = kernels.primitives().attention_fwd(q_SBnD, k_SBgD, v_SBgD, scale, 0, 0, cu_seqlens)
        ctx.save_for_backward(q_SBnD, k_SBgD, v_SBgD, out_SBnD, lse)
        ctx.args = (scale, group, cu_seqlens, ranges, k.shape)
        return mint.cat(all_to_all(_sequence_parts(out_SBnD, group), group), dim=2)

    @staticmethod
    def backward(ctx, grad):
        scale, group, cu_seqlens, ranges, kv_shape = ctx.args
        q_SBnD = ctx.saved_tensors[0]
        heads = q_SBnD.shape[2]
        grad_SBnD = mint.cat(all_to_all([part.contiguous() for part in mint.split(grad, heads, dim=2)], group), dim=0)
        grads = kernels.primitives().attention_bwd(grad_SBnD, *ctx.saved_tensors, scale, 0, 0, cu_seqlens)
        returned = all_to_all(_sequence_parts(mint.cat(grads, dim=2), group), group)
        groups = ranges[0][1] - ranges[0][0]
        d_q = mint.cat([part[:, :, :heads] for part in returned], dim=2)
        d_k = _sum_groups([part[:, :, heads:heads + groups] for part in returned], ranges, kv_shape[2])
        d_v = _sum_groups([part[:, :, heads + groups:] for part in returned], ranges, kv_shape[2])
        return d_q, d_k, d_v, None, None, None


def _sequence_parts(tensor: Tensor, group: Group) -> list[Tensor]:
    return [part.contiguous() for part in mint.chunk(tensor, group.size, dim=0)]


def _sum_groups(parts: list[Tensor], ranges: list[tuple[int, int]], groups: int) -> Tensor:
    """Gradients of each query group, summed over the ranks that had it."""
    sums: list[Tensor | None] = [None] * groups
    for part, (low, high) in zip(parts, ranges, strict=True):
        for index in range(low, high):
            addend = device.cast(part[:, :, index - low:index - low + 1], mstype.float32)
            sums[index] = addend if sums[index] is None else sums[index] + addend
    return device.cast(mint.cat(sums, dim=2), parts[0].dtype)
