"""Cross entropy over a vocabulary that is cut over tensor-parallel ranks: no rank holds all logits of a token.

Each rank reduces its shard to three numbers per token (maximum, sum of exponentials, the label's logit); one gather of
these gives every rank the log-sum-exp and the loss. Numerically the streaming log-sum-exp of Milakov and Gimelshein,
"Online normalizer calculation for softmax", 2018.
"""

from mindspore import Tensor, mint

from mindspeed_llm import kernels
from mindspeed_llm.runtime.autograd import Function
from mindspeed_llm.runtime.collectives import Group, all_gather


def vocab_parallel_cross_entropy(logits: Tensor, labels: Tensor, group: Group) -> Tensor:
    """`logits (S, B, V/T)`, int32 `labels (S, B)` -> loss of every token, fp32 `(S, B)`."""
    return _CrossEntropy.apply(logits, labels, group)


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx, logits, labels, group):
        vocab_start = group.rank * logits.shape[-1]
        flat, flat_labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
        stats = kernels.primitives().cross_entropy_stats(flat, flat_labels, vocab_start)
        stats = all_gather(stats, group).reshape(group.size, -1, 3)
        highest, total, target = stats[:, :, 0], stats[:, :, 1], stats[:, :, 2].sum(axis=0)
        top = highest.max(axis=0)
        lse = top + mint.log((total * mint.exp(highest - top)).sum(axis=0))
        ctx.save_for_backward(flat, flat_labels, lse)
        ctx.vocab_start, ctx.shape = vocab_start, logits.shape
        return (lse - target).reshape(labels.shape)

    @staticmethod
    def backward(ctx, grad):
        logits, labels, lse = ctx.saved_tensors
        d_logits = kernels.primitives().cross_entropy_grad(logits, labels, ctx.vocab_start, lse,
                                                           grad.reshape(-1).contiguous())
        return d_logits.reshape(ctx.shape), None, None
