"""AdamW and the sum of squares with MindSpore operations, on flat tensors, in place."""

import math

from mindspore import Tensor, mint
from mindspore import dtype as mstype


def adamw(param: Tensor, master: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, lr: float, beta1: float,
          beta2: float, eps: float, weight_decay: float, step: int, grad_scale: float) -> None:
    """One AdamW step (Loshchilov and Hutter, 2019) on `(n)` tensors; all but `param` are fp32, `param` may be `master`.

    The gradient is multiplied by `grad_scale` (unscaling and clipping) first; `step` counts from 1.
    """
    g = grad * grad_scale
    exp_avg.copy_(exp_avg * beta1 + g * (1 - beta1))
    exp_avg_sq.copy_(exp_avg_sq * beta2 + mint.square(g) * (1 - beta2))
    denominator = mint.sqrt(exp_avg_sq) / math.sqrt(1 - beta2**step) + eps
    update = exp_avg / denominator * (lr / (1 - beta1**step))
    master.copy_(master * (1 - lr * weight_decay) - update)
    if param is not master:
        param.copy_(master)


def sum_squares(tensors: list[Tensor]) -> Tensor:
    """Sum of squares of all elements of fp32 tensors, still on the device: fp32 `(words)` that add up to it in fp64, as
    many words on every rank; NaN and infinity carry over.
    """
    sums = [mint.square(x).sum() for x in tensors]
    return mint.cat([part.reshape(1) for part in sums]).sum().reshape(1) if sums else mint.zeros((1,), dtype=mstype.float32)
