"""AdamW on Ascend; the contract is the docstring of the same name in `reference`."""

import math
from functools import cache

from mindspore import Tensor
from mindspore.ops.auto_generate import AdamWeightDecay

PRIMITIVES = ("adamw",)


def adamw(param: Tensor, master: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, lr: float, beta1: float,
          beta2: float, eps: float, weight_decay: float, step: int, grad_scale: float) -> None:
    """One operator for moments and weights. `AdamWeightDecay` is documented without the correction of the moments'
    bias, which rate, epsilon and decay can carry: lr' m / (sqrt(v) + eps') with lr' = lr c / (1 - beta1^t), eps' = eps
    c, c = sqrt(1 - beta2^t), and a decay of lr / lr' times the asked for one.
    """
    correction = math.sqrt(1 - beta2**step)
    rate = lr * correction / (1 - beta1**step)
    decay = weight_decay * lr / rate if rate else 0.0
    _adam_weight_decay()(master, exp_avg, exp_avg_sq, rate, beta1, beta2, eps * correction, decay, grad * grad_scale)
    if param is not master:
        param.copy_(master)


@cache
def _adam_weight_decay() -> AdamWeightDecay:
    return AdamWeightDecay()
