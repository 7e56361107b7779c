"""Column- and row-parallel linear layers and the vocabulary-parallel embedding.

Method: Shoeybi et al., "Megatron-LM", 2019 (the functions f and g), and Korthikanti et al., "Reducing Activation
Recomputation in Large Transformer Models", 2022 (sequence parallelism). Shapes: S sequence, B batch, T tensor-parallel
size. With sequence parallelism, activations between the parallel layers are cut along S.
"""

from mindspore import Tensor

from mindspeed_llm import kernels
from mindspeed_llm.core.tensor_parallel.low_rank import (
    LowRank,
    add_low_rank,
    add_low_rank_dgrad,
    low_rank_dgrad,
    low_rank_wgrad,
    trained_tensors,
)
from mindspeed_llm.runtime.autograd import Function, accumulate_grad, wants_grad
from mindspeed_llm.runtime.collectives import (
    Group,
    all_gather,
    all_reduce,
    finish,
    reduce_scatter,
    start_all_gather,
    start_all_reduce,
    start_reduce_scatter,
)


def column_parallel_linear(x: Tensor, weight: Tensor, bias: Tensor | None, group: Group, sequence_parallel: bool,
                           low_rank: LowRank | None = None) -> Tensor:
    """`x (S, ..., K)` (`(S/T, ..., K)` with sequence parallelism) -> `(S, ..., N/T)`; `weight (N/T, K)`, `bias (N/T)`.

    Forward: f, i.e. identity, or gathering the sequence. Backward: the input gradient is summed over ranks (scattered
    along the sequence with sequence parallelism). The gathered input is not kept: backward gathers it again.
    `low_rank`, whose A all ranks have and whose B is cut as the weight is, is added before that.
    """
    return _ColumnParallel.apply(x, weight, bias, group, sequence_parallel, low_rank, *trained_tensors(low_rank))


def row_parallel_linear(x: Tensor, weight: Tensor, group: Group, sequence_parallel: bool,
                        low_rank: LowRank | None = None) -> Tensor:
    """`x (S, ..., K/T)`, `weight (N, K/T)` -> the sum over ranks, `(S, ..., N)` (`(S/T, ..., N)` with sequence
    parallelism). `low_rank`, whose A is cut as the weight is and whose B all ranks have, takes part in the sum.
    """
    return _RowParallel.apply(x, weight, group, sequence_parallel, low_rank, *trained_tensors(low_rank))


def vocab_parallel_embedding(ids: Tensor, weight: Tensor, group: Group, sequence_parallel: bool) -> Tensor:
    """int32 `ids (S, B)`, `weight (V/T, H)` -> `(S, B, H)` (`(S/T, B, H)` with sequence parallelism)."""
    return _VocabParallelEmbedding.apply(weight, ids, group, sequence_parallel)


class _ColumnParallel(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, group, sequence_parallel, low_rank, *trained):
        ctx.weight, ctx.bias, ctx.group, ctx.sequence_parallel = weight, bias, group, sequence_parallel
        ctx.low_rank, ctx.trained = low_rank, trained
        total = all_gather(x, group) if sequence_parallel else x
        y, *hidden = add_low_rank(low_rank, total, kernels.primitives().linear_fwd(total, weight, bias))
        keep_input(ctx, x, hidden)
        return y

    @staticmethod
    def backward(ctx, grad):
        (x, *hidden), p = ctx.saved_tensors or (None,), kernels.primitives()
        # The input travels while its gradient is computed, which does not need it, and the gradient's sum over ranks
        # while the weight's gradient is computed.
        gathering = start_all_gather(x, ctx.group) if ctx.sequence_parallel and x is not None else (x, None)
        start = start_reduce_scatter if ctx.sequence_parallel else start_all_reduce
        if ctx.needs_input_grad[0]:
            d_total, *d_hidden = add_low_rank_dgrad(ctx.low_rank, grad, p.linear_dgrad(grad, ctx.weight))
            summing = start(d_total, ctx.group)
        else:
            summing, d_hidden = (None, None), low_rank_dgrad(ctx.low_rank, grad)
        total = finish(gathering)
        accumulate_grad(ctx.weight, lambda *target: p.linear_wgrad(grad, total, *target))
        if ctx.bias is not None:
            accumulate_grad(ctx.bias, lambda *target: p.bias_grad(grad, *target))
        low_rank_wgrad(ctx.low_rank, grad, total, *d_hidden, *hidden)
        return finish(summing), *(None for _ in range(5 + len(ctx.trained)))


class _RowParallel(Function):
    @staticmethod
    def forward(ctx, x, weight, group, sequence_parallel, low_rank, *trained):
        ctx.weight, ctx.group, ctx.sequence_parallel = weight, group, sequence_parallel
        ctx.low_rank, ctx.trained = low_rank, trained
        partial, *hidden = add_low_rank(low_rank, x, kernels.primitives().linear_fwd(x, weight, None))
        keep_input(ctx, x, hidden)
        return reduce_scatter(partial, group) if sequence_parallel else all_reduce(partial, group)

    @staticmethod
    def backward(ctx, grad):
        (x, *hidden), p = ctx.saved_tensors or (None,), kernels.primitives()
        total = all_gather(grad, ctx.group) if ctx.sequence_parallel else grad
        accumulate_grad(ctx.weight, lambda *target: p.linear_wgrad(total, x, *target))
        if ctx.needs_input_grad[0]:
            dx, *d_hidden = add_low_rank_dgrad(ctx.low_rank, total, p.linear_dgrad(total, ctx.weight))
        else:
            dx, d_hidden = None, low_rank_dgrad(ctx.low_rank, total)
        low_rank_wgrad(ctx.low_rank, total, x, *d_hidden, *hidden)
        return dx, *(None for _ in range(4 + len(ctx.trained)))


def keep_input(ctx, x: Tensor, hidden: list[Tensor]) -> None:
    """Keep for backward what a weight or an adapter learns from: a frozen layer without adapter keeps nothing."""
    if wants_grad(ctx.weight) or ctx.low_rank is not None:
        ctx.save_for_backward(x, *hidden)


class _VocabParallelEmbedding(Function):
    @staticmethod
    def forward(ctx, weight, ids, group, sequence_parallel):
        ctx.weight, ctx.ids, ctx.group, ctx.sequence_parallel = weight, ids, group, sequence_parallel
        partial = kernels.primitives().embedding_fwd(weight, ids, group.rank * weight.shape[0])
        return reduce_scatter(partial, group) if sequence_parallel else all_reduce(partial, group)

    @staticmethod
    def backward(ctx, grad):
        total = all_gather(grad, ctx.group) if ctx.sequence_parallel else grad
        vocab_start = ctx.group.rank * ctx.weight.shape[0]
        accumulate_grad(ctx.weight, lambda *target: kernels.primitives().embedding_wgrad(
            total, ctx.ids, vocab_start, *target))
        return None, None, None, None
