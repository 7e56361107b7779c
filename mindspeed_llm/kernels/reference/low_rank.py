"""What a low-rank adapter adds to a product, of a backend's own products."""

from mindspore import Tensor

from mindspeed_llm.kernels.reference import dense


def low_rank_fwd(x: Tensor, a: Tensor, b: Tensor, scale: float, total: Tensor | None,
                 p=dense) -> tuple[Tensor | None, Tensor]:
    """`total (..., N)` plus `hidden b^T`, and `hidden (..., r)`, which is `scale * x a^T`, for `x (..., K)`, `a (r, K)`,
    `b (N, r)`. May write into the memory of `total`, which the caller gives away. Without it: None and `hidden`.

    `p`: the primitives it is made of.
    """
    hidden = p.linear_fwd(x, a, None) * scale
    return total if total is None else p.add(total, p.linear_fwd(hidden, b, None)), hidden


def low_rank_dgrad(grad: Tensor, a: Tensor, b: Tensor, scale: float, total: Tensor | None,
                   p=dense) -> tuple[Tensor | None, Tensor]:
    """`total (..., K)` plus `d_hidden a`, and `d_hidden (..., r)`, which is `scale * grad b`, for `grad (..., N)`. Otherwise
    like `low_rank_fwd`.
    """
    d_hidden = p.linear_dgrad(grad, b) * scale
    return total if total is None else p.add(total, p.linear_dgrad(d_hidden, a)), d_hidden
