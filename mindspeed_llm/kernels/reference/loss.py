"""Cross entropy over a shard of the vocabulary, in pieces that a single gather of three numbers per token completes."""

import numpy as np
from mindspore import Tensor, mint
from mindspore import dtype as mstype

from mindspeed_llm.kernels.reference.dense import f32
from mindspeed_llm.runtime import device


def cross_entropy_stats(logits: Tensor, labels: Tensor, vocab_start: int) -> Tensor:
    """`logits (T, V)`, `labels (T)` -> `(T, 3)` fp32: maximum, sum of exp(x - maximum), the label's logit or 0 if elsewhere."""
    wide = f32(logits)
    highest = wide.max(axis=-1)
    total = mint.exp(wide - highest.expand_dims(-1)).sum(axis=-1)
    target = (wide * _one_hot(labels, vocab_start, logits.shape[-1])).sum(axis=-1)
    return mint.cat([column.expand_dims(-1) for column in (highest, total, target)], dim=-1)


def cross_entropy_grad(logits: Tensor, labels: Tensor, vocab_start: int, lse: Tensor, grad: Tensor) -> Tensor:
    """`grad (T) * (softmax - one-hot)`, `(T, V)` in the logits' dtype; `lse (T)` is over the whole vocabulary."""
    probs = mint.exp(f32(logits) - lse.expand_dims(-1))
    d_logits = (probs - _one_hot(labels, vocab_start, logits.shape[-1])) * grad.expand_dims(-1)
    return device.cast(d_logits, logits.dtype)


def _one_hot(labels: Tensor, vocab_start: int, vocab: int) -> Tensor:
    local = device.cast(labels, mstype.int32) - vocab_start
    columns = Tensor(np.arange(vocab, dtype=np.int32))
    return f32(mint.eq(columns.expand_dims(0), local.expand_dims(-1)))
