"""A low-rank addition to a product, on one rank: `y + scale * B (A dropout(x))`, forward and backward.

The parallel layers call these between their communication: what is added to a partial sum is summed with it.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from mindspeed_llm import kernels
from mindspeed_llm.runtime import device
from mindspeed_llm.runtime.autograd import accumulate_grad
from mindspeed_llm.runtime.memory import from_numpy


@dataclass(frozen=True)
class Dropout:
    """Sets elements to 0 with probability `rate` and divides the others by `1 - rate`; which ones depends on `key` alone.

    So backward, and a forward pass that is computed again, draw the same instead of keeping it. Drawn on the host.
    """

    rate: float
    key: str

    def __call__(self, x: Tensor) -> Tensor:
        """`x` with elements dropped; also the gradient's way back."""
        key = int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:16], "little")
        draw = np.random.Generator(np.random.Philox(key=key)).random(x.shape, dtype=np.float32)
        factors = (draw >= self.rate) * np.float32(1 / (1 - self.rate))
        return x * device.cast(from_numpy(factors), x.dtype)


@dataclass(frozen=True)
class LowRank:
    """`a (r, K)` and `b (N, r)` as this rank has them."""

    a: Tensor
    b: Tensor
    scale: float
    dropout: Dropout | None = None

    def dropped(self, x: Tensor) -> Tensor:
        """What the product with `a` sees of `x`."""
        return x if self.dropout is None else self.dropout(x)


def add_low_rank(low_rank: LowRank | None, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Add the low-rank product of `x (..., K)` to `y (..., N)`, which is given away: the sum, and `hidden (..., r)`, scaled,
    which `low_rank_wgrad` wants. Without one: `y` alone.
    """
    if low_rank is None:
        return (y,)
    return kernels.primitives().low_rank_fwd(low_rank.dropped(x), low_rank.a, low_rank.b, low_rank.scale, y)


def add_low_rank_dgrad(low_rank: LowRank | None, grad: Tensor, dx: Tensor) -> tuple[Tensor, ...]:
    """Add what `grad (..., N)` sends back through the low-rank product to `dx (..., K)`, which is given away: the sum, and the
    gradient of the product with `a`, `(..., r)`. Without one: `dx` alone.
    """
    if low_rank is None:
        return (dx,)
    if low_rank.dropout is None:
        return kernels.primitives().low_rank_dgrad(grad, low_rank.a, low_rank.b, low_rank.scale, dx)
    (d_hidden,), p = low_rank_dgrad(low_rank, grad), kernels.primitives()
    return p.add(dx, low_rank.dropped(p.linear_dgrad(d_hidden, low_rank.a))), d_hidden


def low_rank_dgrad(low_rank: LowRank | None, grad: Tensor) -> tuple[Tensor, ...]:
    """The gradient of the product with `a` alone, for a layer whose input nobody learns from. Without one: nothing."""
    if low_rank is None:
        return ()
    return kernels.primitives().low_rank_dgrad(grad, low_rank.a, low_rank.b, low_rank.scale, None)[1:]


def trained_tensors(low_rank: LowRank | None) -> tuple[Tensor, ...]:
    """What the tape has to see of an adapter, so that it begins at the first one of a frozen model."""
    return () if low_rank is None else (low_rank.a, low_rank.b)


def low_rank_wgrad(low_rank: LowRank | None, grad: Tensor, x: Tensor, *of_hidden: Tensor) -> None:
    """Accumulate the gradients of `a` and `b`; `of_hidden`: what `add_low_rank_dgrad` and `add_low_rank` gave."""
    if low_rank is None:
        return
    p, (d_hidden, hidden) = kernels.primitives(), of_hidden
    accumulate_grad(low_rank.a, lambda *target: p.linear_wgrad(d_hidden, low_rank.dropped(x), *target))
    accumulate_grad(low_rank.b, lambda *target: p.linear_wgrad(grad, hidden, *target))
