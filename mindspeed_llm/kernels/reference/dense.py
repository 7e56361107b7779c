"""Linear, embedding, RMSNorm, SwiGLU and addition with MindSpore operations."""

from mindspore import Tensor, mint, ops
from mindspore import dtype as mstype

from mindspeed_llm.runtime import device


def f32(x: Tensor) -> Tensor:
    """`x` in fp32 (itself if it is)."""
    return device.cast(x, mstype.float32)


def rows(x: Tensor) -> Tensor:
    """`(..., n)` as `(rows, n)`."""
    return x.reshape(-1, x.shape[-1])


def linear_fwd(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x (..., K)`, `weight (N, K)`, `bias (N)` -> `(..., N)`."""
    out = mint.matmul(f32(rows(x)), f32(weight).swapaxes(0, 1))
    if bias is not None:
        out = out + f32(bias)
    return device.cast(out, x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def linear_dgrad(grad: Tensor, weight: Tensor) -> Tensor:
    """`grad (..., N)`, `weight (N, K)` -> gradient of the input `(..., K)`."""
    out = mint.matmul(f32(rows(grad)), f32(weight))
    return device.cast(out, grad.dtype).reshape(*grad.shape[:-1], weight.shape[1])


def linear_wgrad(grad: Tensor, x: Tensor, main_grad: Tensor, accumulate: bool = True) -> None:
    """`main_grad (N, K)` fp32 += grad^T x, in place. Here and below, without `accumulate`: = instead of +=."""
    put(main_grad, mint.matmul(f32(rows(grad)).swapaxes(0, 1), f32(rows(x))), accumulate)


def bias_grad(grad: Tensor, main_grad: Tensor, accumulate: bool = True) -> None:
    """`main_grad (N)` fp32 += column sums of `grad (..., N)`, in place."""
    put(main_grad, f32(rows(grad)).sum(axis=0), accumulate)


def rms_norm_fwd(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x (..., H)` -> (x / rms(x) * weight, reciprocal rms `(...)` in fp32). Zhang and Sennrich, 2019."""
    wide = f32(x)
    rstd = mint.rsqrt(mint.square(wide).mean(axis=-1) + eps)
    return device.cast(wide * rstd.expand_dims(-1) * f32(weight), x.dtype), rstd


def add_rms_norm_fwd(x: Tensor, branch: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """`x + branch` in their dtype, then `rms_norm_fwd` of it: (sum, normed, reciprocal rms)."""
    total = add(x, branch)
    return total, *rms_norm_fwd(total, weight, eps)


def rms_norm_bwd(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, main_grad: Tensor, accumulate: bool = True,
                 d_sum: Tensor | None = None) -> Tensor:
    """Gradient of the input; the weight's is added to `main_grad (H)` fp32 in place.

    `d_sum`, like x: the gradient from another use of x, added to the result.
    """
    normed, g = f32(x) * rstd.expand_dims(-1), f32(grad)
    put(main_grad, rows(g * normed).sum(axis=0), accumulate)
    g = g * f32(weight)
    projection = (g * normed).mean(axis=-1, keep_dims=True)
    dx = (g - normed * projection) * rstd.expand_dims(-1)
    return device.cast(dx if d_sum is None else dx + f32(d_sum), x.dtype)


def swiglu_fwd(x: Tensor) -> Tensor:
    """`x (..., 2F)` -> silu(first half) * second half, `(..., F)`. Shazeer, "GLU Variants Improve Transformer", 2020."""
    gate, up = f32(x).chunk(2, -1)
    return device.cast(gate * mint.sigmoid(gate) * up, x.dtype)


def swiglu_bwd(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of `swiglu_fwd` with respect to `x (..., 2F)`."""
    gate, up = f32(x).chunk(2, -1)
    g, sigmoid = f32(grad), mint.sigmoid(gate)
    d_gate = g * up * sigmoid * (1 + gate * (1 - sigmoid))
    return device.cast(mint.cat((d_gate, g * gate * sigmoid), dim=-1), x.dtype)


def embedding_fwd(weight: Tensor, ids: Tensor, vocab_start: int) -> Tensor:
    """Rows of `weight (V, H)` for `ids (...)`; zeros for ids outside `vocab_start .. vocab_start + V`."""
    local, inside = _local_ids(weight.shape[0], ids, vocab_start)
    out = ops.gather(f32(weight), local, 0) * inside
    return device.cast(out, weight.dtype).reshape(*ids.shape, weight.shape[1])


def embedding_wgrad(grad: Tensor, ids: Tensor, vocab_start: int, main_grad: Tensor, accumulate: bool = True) -> None:
    """`main_grad (V, H)` fp32 += `grad (..., H)` at the rows of `ids`, in place."""
    local, inside = _local_ids(main_grad.shape[0], ids, vocab_start)
    put(main_grad, ops.unsorted_segment_sum(f32(rows(grad)) * inside, local, main_grad.shape[0]), accumulate)


def _local_ids(vocab: int, ids: Tensor, vocab_start: int) -> tuple[Tensor, Tensor]:
    local = device.cast(ids.reshape(-1), mstype.int32) - vocab_start
    inside = mint.logical_and(local >= 0, local < vocab)
    return mint.clamp(local, 0, vocab - 1), f32(inside).expand_dims(-1)


def add(x: Tensor, y: Tensor) -> Tensor:
    """`x + y`: the residual connection."""
    return mint.add(x, y)


def put(target: Tensor, source: Tensor, accumulate: bool) -> None:
    """`target` fp32 += `source`, or = without `accumulate`, in place."""
    # copy_ writes through to memory shared with numpy; add_ does not.
    target.copy_(target + f32(source) if accumulate else f32(source))
