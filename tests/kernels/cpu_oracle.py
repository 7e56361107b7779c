"""What the CPU kernels must compute, in numpy float64, and the conversions the tests need."""

import mindspore as ms
import numpy as np
from mindspore import Tensor

# Relative to the largest value of the expected array. fp32: rounding of sums in another order. bf16 has 8 bits: one
# rounding of the result is 2^-9, products of operands are exact in fp32; so this allows three roundings.
TOLERANCE = {"fp32": 2e-6, "bf16": 8e-3}
DTYPES = {"fp32": ms.float32, "bf16": ms.bfloat16}


def random(rng, shape, dtype="fp32", scale=1.0):
    """A tensor of normal numbers and its exact values in float64."""
    tensor = Tensor((rng.standard_normal(shape) * scale).astype(np.float32)).astype(DTYPES[dtype])
    return tensor, values(tensor)


def values(tensor):
    return tensor.astype(ms.float32).asnumpy().astype(np.float64)


def buffer(array):
    """A tensor over the memory of a new fp32 copy of `array`: (tensor, memory)."""
    memory = np.array(array, np.float32)
    return Tensor.from_numpy(memory), memory


def assert_close(actual, expected, dtype="fp32", factor=1.0, least=1e-6):
    """Largest error relative to the largest expected value, or to `least` where terms of that size may cancel."""
    actual = values(actual) if isinstance(actual, Tensor) else np.asarray(actual, np.float64)
    assert actual.shape == expected.shape
    if expected.size == 0:
        return
    finite = np.isfinite(expected)
    assert np.array_equal(actual[~finite], expected[~finite], equal_nan=True)
    scale = max(np.abs(expected[finite]).max(initial=0.0), least)
    error = np.abs(actual[finite] - expected[finite]).max(initial=0.0) / scale
    assert error <= TOLERANCE[dtype] * factor, f"relative error {error:.2e}"


def silu(x):
    return x / (1 + np.exp(-x))


def rope(x, cos, sin, inverse=False):
    """x (S, B, N, D); cos, sin (S, R / 2)."""
    half = cos.shape[1]
    c, s = cos[:, None, None, :], sin[:, None, None, :] * (-1 if inverse else 1)
    out = x.copy()
    even, odd = x[..., 0:2 * half:2], x[..., 1:2 * half:2]
    out[..., 0:2 * half:2] = even * c - odd * s
    out[..., 1:2 * half:2] = odd * c + even * s
    return out


def visible(Sq, Sk, q_start, k_start, cu_seqlens=None):
    i, j = q_start + np.arange(Sq)[:, None], k_start + np.arange(Sk)[None, :]
    mask = j <= i
    if cu_seqlens is not None:
        mask &= np.searchsorted(cu_seqlens, i, "right") == np.searchsorted(cu_seqlens, j, "right")
    return mask


def attention(q, k, v, scale, mask, grad=None):
    """q (Sq, B, N, D), k and v (Sk, B, G, D) -> out, lse and, with grad, dq, dk, dv."""
    n = q.shape[2] // k.shape[2]
    Q, K, V = q.transpose(1, 2, 0, 3), k.transpose(1, 2, 0, 3).repeat(n, 1), v.transpose(1, 2, 0, 3).repeat(n, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.where(mask, Q @ K.swapaxes(-1, -2) * scale, -np.inf)
        top = scores.max(-1, keepdims=True, initial=-np.inf)
        weights = np.where(mask, np.exp(scores - top), 0)
        total = weights.sum(-1, keepdims=True)
        lse = np.where(total > 0, top + np.log(total), -np.inf)[..., 0]
        P = np.where(total > 0, weights / total, 0)
    O = P @ V
    out = O.transpose(2, 0, 1, 3)
    if grad is None:
        return out, lse
    dO = grad.transpose(1, 2, 0, 3)
    dS = P * (dO @ V.swapaxes(-1, -2) - (dO * O).sum(-1, keepdims=True)) * scale
    per_head = [x.reshape(x.shape[0], k.shape[2], n, *x.shape[2:]).sum(2).transpose(2, 0, 1, 3)
                for x in (dS.swapaxes(-1, -2) @ Q, P.swapaxes(-1, -2) @ dO)]
    return out, lse, (dS @ K).transpose(2, 0, 1, 3), *per_head
