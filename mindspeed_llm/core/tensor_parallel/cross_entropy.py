"""Output layer and cross entropy in one, over a vocabulary that is cut over tensor-parallel ranks.

No rank holds all logits of a token, or the logits of more than LOGITS_ROWS tokens: with a vocabulary of 151,552 the logits
of one long sequence would take more memory than all layers together. A rank reduces its logits to three numbers per token
(maximum, sum of exponentials, the label's logit); one gather of these gives every rank the log-sum-exp and the loss.
Backward computes the logits again from the input, a chunk at a time, as activations are in Chen et al., "Training Deep
Nets with Sublinear Memory Cost", 2016. Numerically the streaming log-sum-exp of Milakov and Gimelshein, "Online
normalizer calculation for softmax", 2018.
"""

from mindspore import Tensor, mint

from mindspeed_llm import kernels
from mindspeed_llm.core.sharding import LOGITS_ROWS
from mindspeed_llm.runtime.autograd import Function, accumulate_grad
from mindspeed_llm.runtime.collectives import (
    Group,
    all_gather,
    finish,
    start_all_reduce,
    start_reduce_scatter,
)


def output_cross_entropy(x: Tensor, weight: Tensor, labels: Tensor, group: Group, sequence_parallel: bool) -> Tensor:
    """Loss of every token, fp32 `(S, B)`: `x (S, B, H)` (`(S/T, B, H)` with sequence parallelism) times the output layer's
    `weight (V/T, H)` are the logits, int32 `labels (S, B)` the right ones.

    Gradients as in `column_parallel_linear`. Up to LOGITS_ROWS tokens the logits are kept for backward; more are cut into
    equal chunks and computed twice.
    """
    return _OutputCrossEntropy.apply(x, weight, labels, group, sequence_parallel)


class _OutputCrossEntropy(Function):
    @staticmethod
    def forward(ctx, x, weight, labels, group, sequence_parallel):
        p, vocab_start = kernels.primitives(), group.rank * weight.shape[0]
        total = all_gather(x, group) if sequence_parallel else x
        kept, stats = [], []
        chunks = _chunks(total.reshape(-1, total.shape[-1]), labels.reshape(-1))
        for rows, ids in chunks:
            logits = p.linear_fwd(rows, weight, None)
            stats.append(p.cross_entropy_stats(logits, ids, vocab_start))
            if len(chunks) == 1:
                kept.append(logits)
            del logits  # before the next chunk's are made
        lse, target = _over_shards(_joined(stats), group)
        ctx.save_for_backward(x, labels, lse, *kept)
        ctx.weight, ctx.group, ctx.sequence_parallel = weight, group, sequence_parallel
        return (lse - target).reshape(labels.shape)

    @staticmethod
    def backward(ctx, grad):
        x, labels, lse, *kept = ctx.saved_tensors
        total = all_gather(x, ctx.group) if ctx.sequence_parallel else x
        chunks = _chunks(total.reshape(-1, total.shape[-1]), labels.reshape(-1), lse, grad.reshape(-1).contiguous())
        start = start_reduce_scatter if ctx.sequence_parallel else start_all_reduce

        def add(main_grad: Tensor | None, accumulate: bool) -> Tensor:
            parts = []
            for rows, *of_rows in chunks:
                d_logits = _d_logits(rows, ctx.weight, kept, ctx.group, *of_rows)
                parts.append(kernels.primitives().linear_dgrad(d_logits, ctx.weight))
                if len(parts) == len(chunks):   # the sum over ranks travels while the weight's last gradient is computed
                    summing = start(_joined(parts).reshape(total.shape), ctx.group)
                if main_grad is not None:
                    kernels.primitives().linear_wgrad(d_logits, rows, main_grad, accumulate or len(parts) > 1)
                del d_logits
            return finish(summing)

        return accumulate_grad(ctx.weight, add, needed=True), None, None, None, None


def _over_shards(stats: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and the label's logit of every row, from what the ranks know of their shards, `(rows, 3)`."""
    if group.size == 1:
        return stats[:, 0] + mint.log(stats[:, 1]), stats[:, 2]
    whole = all_gather(stats, group).reshape(group.size, -1, 3)
    highest, exponents, target = whole[:, :, 0], whole[:, :, 1], whole[:, :, 2].sum(axis=0)
    top = highest.max(axis=0)
    return top + mint.log((exponents * mint.exp(highest - top)).sum(axis=0)), target


def _d_logits(rows: Tensor, weight: Tensor, kept: list[Tensor], group: Group, labels: Tensor, lse: Tensor,
              grad: Tensor) -> Tensor:
    """Gradient of a chunk's logits, which are kept or computed again."""
    p = kernels.primitives()
    logits = kept[0] if kept else p.linear_fwd(rows, weight, None)
    return p.cross_entropy_grad(logits, labels, group.rank * weight.shape[0], lse, grad)


def _chunks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Equal parts of at most LOGITS_ROWS rows, of every tensor alike."""
    count = -(-tensors[0].shape[0] // LOGITS_ROWS)
    return [tensors] if count == 1 else list(zip(*(tensor.chunk(count) for tensor in tensors), strict=True))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else mint.cat(parts)
