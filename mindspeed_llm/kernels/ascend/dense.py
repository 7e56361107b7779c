"""Linear, embedding and RMSNorm on Ascend; contracts are the docstrings of the same names in `reference`.

Matrix products run in the tensors' own dtype: the cube unit multiplies bf16 and sums in fp32. A weight's gradient is
therefore rounded to bf16 once per micro-batch before it is added to the fp32 `main_grad` (MindSpore documents its
fused product with accumulation, `matmul_add_`, for graph mode only).
"""

from functools import cache

from mindspore import Tensor, mint, ops
from mindspore import dtype as mstype
from mindspore.ops.auto_generate import MatMul, RmsNormGrad

PRIMITIVES = ("linear_fwd", "linear_dgrad", "linear_wgrad", "bias_grad", "embedding_fwd", "embedding_wgrad",
              "rms_norm_fwd", "add_rms_norm_fwd", "rms_norm_bwd", "add")


def linear_fwd(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x (..., K)`, `weight (N, K)`, `bias (N)` -> `(..., N)`."""
    return mint.nn.functional.linear(x, weight, bias)


def linear_dgrad(grad: Tensor, weight: Tensor) -> Tensor:
    """`grad (..., N)`, `weight (N, K)` -> gradient of the input `(..., K)`."""
    return mint.matmul(grad, weight)


def linear_wgrad(grad: Tensor, x: Tensor, main_grad: Tensor, accumulate: bool = True) -> None:
    """`main_grad (N, K)` fp32 += grad^T x, in place. Here and below, without `accumulate`: = instead of +=."""
    _put(main_grad, _transposed_product()(_rows(grad), _rows(x)), accumulate)


def bias_grad(grad: Tensor, main_grad: Tensor, accumulate: bool = True) -> None:
    """`main_grad (N)` fp32 += column sums of `grad (..., N)`, in place; the sum is taken in fp32."""
    _put(main_grad, mint.sum(grad, dim=tuple(range(grad.ndim - 1)), dtype=mstype.float32), accumulate)


def embedding_fwd(weight: Tensor, ids: Tensor, vocab_start: int) -> Tensor:
    """Rows of `weight (V, H)` for `ids (...)`; zeros for ids outside `vocab_start .. vocab_start + V`."""
    local, inside = _local_ids(weight.shape[0], ids, vocab_start)
    return mint.nn.functional.embedding(local, weight) * inside.astype(weight.dtype).expand_dims(-1)


def embedding_wgrad(grad: Tensor, ids: Tensor, vocab_start: int, main_grad: Tensor, accumulate: bool = True) -> None:
    """`main_grad (V, H)` fp32 += `grad (..., H)` at the rows of `ids`, in place; rows of other shards add zeros."""
    local, inside = _local_ids(main_grad.shape[0], ids.reshape(-1), vocab_start)
    if not accumulate:
        main_grad.zero_()
    main_grad.index_add_(0, local, _rows(grad) * inside.astype(mstype.float32).expand_dims(-1))


def rms_norm_fwd(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x (..., H)` -> (normed, reciprocal rms). x and weight must have one dtype. The reciprocal stays as the operator
    gives it and `rms_norm_bwd` hands it back to its gradient: `(..., 1)` fp32.
    """
    return ops.rms_norm(x, weight, epsilon=eps)


def add_rms_norm_fwd(x: Tensor, branch: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """`x + branch` in their dtype, then `rms_norm_fwd` of it: (sum, normed, reciprocal rms)."""
    normed, rstd, total = ops.add_rms_norm(x, branch, weight, eps)
    return total, normed, rstd


def rms_norm_bwd(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, main_grad: Tensor, accumulate: bool = True,
                 d_sum: Tensor | None = None) -> Tensor:
    """Gradient of the input, plus `d_sum`; the weight's, which the operator gives in fp32, is added to `main_grad (H)`
    in place.
    """
    d_x, d_weight = _rms_norm_grad()(grad, x, rstd, weight)
    _put(main_grad, d_weight, accumulate)
    return d_x if d_sum is None else add(d_x, d_sum)


def add(x: Tensor, y: Tensor) -> Tensor:
    """`x + y`: the residual connection."""
    return mint.add(x, y)


def _put(target: Tensor, source: Tensor, accumulate: bool) -> None:
    """`target` fp32 += `source` of any floating dtype, or = without `accumulate`: one operator, no fp32 copy of
    `source`.
    """
    if accumulate:
        target.add_(source)
    else:
        target.copy_(source)


def _local_ids(vocab: int, ids: Tensor, vocab_start: int) -> tuple[Tensor, Tensor]:
    """Rows in this shard of the vocabulary, and which of them are meant; the others point at its first or last row."""
    local = ids.astype(mstype.int32) - vocab_start
    return mint.clamp(local, 0, vocab - 1), mint.logical_and(local >= 0, local < vocab)


def _rows(x: Tensor) -> Tensor:
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


@cache
def _transposed_product() -> MatMul:
    return MatMul(transpose_a=True)


@cache
def _rms_norm_grad() -> RmsNormGrad:
    return RmsNormGrad()
