"""Linear, embedding and RMSNorm on Ascend; contracts are the docstrings of the same names in `reference`.

Matrix products run in the tensors' own dtype: the cube unit multiplies bf16 and sums in fp32. A weight's gradient is
therefore rounded to bf16 once per micro-batch before it is added to the fp32 `main_grad` (MindSpore documents its
fused product with accumulation, `matmul_add_`, for graph mode only).
"""

from mindspore import Tensor, mint, ops
from mindspore import dtype as mstype
from mindspore.ops.auto_generate import RmsNormGrad

from mindspeed_llm.kernels.reference.dense import add, put

PRIMITIVES = ("linear_fwd", "linear_dgrad", "linear_wgrad", "bias_grad", "embedding_fwd", "rms_norm_fwd",
              "add_rms_norm_fwd", "rms_norm_bwd")


def linear_fwd(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x (..., K)`, `weight (N, K)`, `bias (N)` -> `(..., N)`."""
    return mint.nn.functional.linear(x, weight, bias)


def linear_dgrad(grad: Tensor, weight: Tensor) -> Tensor:
    """`grad (..., N)`, `weight (N, K)` -> gradient of the input `(..., K)`."""
    return mint.matmul(grad, weight)


def linear_wgrad(grad: Tensor, x: Tensor, main_grad: Tensor, accumulate: bool = True) -> None:
    """`main_grad (N, K)` fp32 += grad^T x, in place. Here and below, without `accumulate`: = instead of +=."""
    put(main_grad, mint.matmul(_rows(grad).swapaxes(0, 1), _rows(x)), accumulate)


def bias_grad(grad: Tensor, main_grad: Tensor, accumulate: bool = True) -> None:
    """`main_grad (N)` fp32 += column sums of `grad (..., N)`, in place; the sum is taken in fp32."""
    put(main_grad, mint.sum(_rows(grad), dim=0, dtype=mstype.float32), accumulate)


def embedding_fwd(weight: Tensor, ids: Tensor, vocab_start: int) -> Tensor:
    """Rows of `weight (V, H)` for `ids (...)`; zeros for ids outside `vocab_start .. vocab_start + V`."""
    local = ids.astype(mstype.int32) - vocab_start
    inside = mint.logical_and(local >= 0, local < weight.shape[0]).astype(weight.dtype)
    rows = mint.nn.functional.embedding(mint.clamp(local, 0, weight.shape[0] - 1), weight)
    return rows * inside.expand_dims(-1)


def rms_norm_fwd(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x (..., H)` -> (normed, reciprocal rms `(...)` fp32). x and weight must have one dtype."""
    out, rstd = ops.rms_norm(x, weight, epsilon=eps)
    return out, rstd.reshape(x.shape[:-1])


def add_rms_norm_fwd(x: Tensor, branch: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """`x + branch` in their dtype, then `rms_norm_fwd` of it: (sum, normed, reciprocal rms)."""
    total = add(x, branch)
    return total, *rms_norm_fwd(total, weight, eps)


def rms_norm_bwd(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, main_grad: Tensor, accumulate: bool = True,
                 d_sum: Tensor | None = None) -> Tensor:
    """Gradient of the input, plus `d_sum`; the weight's, which the operator gives in fp32, is added to `main_grad (H)`
    in place.
    """
    d_x, d_weight = RmsNormGrad()(grad, x, rstd.expand_dims(-1), weight)
    put(main_grad, d_weight, accumulate)
    return d_x if d_sum is None else add(d_x, d_sum)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
