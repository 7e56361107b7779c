"""Normalisation, activation, rotary embedding, loss and embedding of the CPU backend against float64."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from cpu_oracle import assert_close, buffer, random, rope, silu, values

BOTH = pytest.mark.parametrize("dtype", ["fp32", "bf16"])


@BOTH
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 2, 33), (300, 1, 128), (0, 1, 8), (3, 5, 1030)])
def test_rms_norm(cpu, shape, dtype):
    rng = np.random.default_rng(sum(shape))
    eps, H = 1e-5, shape[-1]
    x, x64 = random(rng, shape, dtype)
    w, w64 = random(rng, (H,), dtype)
    g, g64 = random(rng, shape, dtype)
    r = 1 / np.sqrt((x64 ** 2).mean(-1, keepdims=True) + eps)
    y, rstd = cpu.rms_norm_fwd(x, w, eps)
    assert rstd.dtype == ms.float32
    assert_close(y, x64 * r * w64, dtype)
    assert_close(rstd, r[..., 0])
    main_grad, memory = buffer(np.ones(H))
    dx = cpu.rms_norm_bwd(g, x, w, rstd, main_grad)
    gw = g64 * w64
    # a single column cancels to zero: compare with the size of what cancels
    expected = gw * r - x64 * r ** 3 * (gw * x64).mean(-1, keepdims=True)
    assert_close(dx, expected, dtype, factor=2 if H > 1 else 1e9)
    assert_close(memory, 1 + (g64 * x64 * r).reshape(-1, H).sum(0), factor=2)


@BOTH
@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 2, 33), (300, 1, 128), (0, 1, 8)])
def test_add_rms_norm_is_the_norm_of_the_rounded_sum(cpu, shape, dtype):
    rng = np.random.default_rng(sum(shape))
    (x, x64), (branch, b64), (g, _), (d_sum, d64) = (random(rng, shape, dtype) for _ in range(4))
    w, _ = random(rng, shape[-1:], dtype)
    total, y, rstd = cpu.add_rms_norm_fwd(x, branch, w, 1e-5)
    assert_close(total, x64 + b64, dtype)
    alone, alone_rstd = cpu.rms_norm_fwd(total, w, 1e-5)
    assert np.array_equal(values(y), values(alone)) and np.array_equal(values(rstd), values(alone_rstd))
    (added, sums), (separate, sums_alone) = buffer(np.zeros(shape[-1])), buffer(np.zeros(shape[-1]))
    dx = cpu.rms_norm_bwd(g, total, w, rstd, added, True, d_sum)
    dx_alone = cpu.rms_norm_bwd(g, total, w, rstd, separate)
    # the sum of both uses is rounded once
    assert_close(dx, values(dx_alone) + d64, dtype)
    assert np.array_equal(sums, sums_alone)


def test_first_gradient_replaces_what_was_there(cpu):
    """accumulate=False: the same bits as adding to zeros, whatever main_grad held."""
    rng = np.random.default_rng(5)
    (x, _), (g, _), (row, _) = random(rng, (70, 2, 33)), random(rng, (70, 2, 33)), random(rng, (33,))
    rstd, ids = cpu.rms_norm_fwd(x, row, 1e-5)[1], Tensor(rng.integers(0, 9, (70, 2)).astype(np.int32))
    for shape, add in (((33,), lambda *target: cpu.bias_grad(g, *target)),
                       ((33,), lambda *target: cpu.rms_norm_bwd(g, x, row, rstd, *target)),
                       ((9, 33), lambda *target: cpu.embedding_wgrad(g, ids, 1, *target))):
        (fresh, replaced), (zeroed, expected) = buffer(np.full(shape, np.nan)), buffer(np.zeros(shape))
        add(fresh, False)
        add(zeroed, True)
        assert np.abs(expected).max() > 0 and np.array_equal(replaced, expected)


@BOTH
@pytest.mark.parametrize("shape", [(1, 1, 2), (5, 3, 66), (64, 1, 1000), (0, 1, 4), (2, 2, 0)])
def test_swiglu(cpu, shape, dtype):
    rng = np.random.default_rng(sum(shape))
    x, x64 = random(rng, shape, dtype, scale=4.0)
    g, g64 = random(rng, (*shape[:-1], shape[-1] // 2), dtype)
    a, b = np.split(x64, 2, -1)
    assert_close(cpu.swiglu_fwd(x), silu(a) * b, dtype)
    s = 1 / (1 + np.exp(-a))
    assert_close(cpu.swiglu_bwd(g, x), np.concatenate([g64 * b * s * (1 + a * (1 - s)), g64 * silu(a)], -1), dtype)


def test_swiglu_at_the_ends_of_the_range(cpu):
    gate = np.array([-1e4, -200, -88.5, -87, 0, 87, 88.5, 200, 1e4, np.inf, np.nan], np.float32)
    y = cpu.swiglu_fwd(Tensor(np.concatenate([gate, np.ones_like(gate)])[None])).asnumpy()[0]
    assert np.array_equal(y[4:9], gate[4:9]) and (np.abs(y[:4]) < 1e-33).all()
    assert np.isposinf(y[9]) and np.isnan(y[10])


@BOTH
@pytest.mark.parametrize("S,B,N,D,R", [(1, 1, 1, 2, 2), (9, 2, 3, 16, 8), (33, 1, 4, 128, 64), (5, 1, 2, 7, 4),
                                       (4, 1, 2, 8, 0)])
def test_rope(cpu, S, B, N, D, R, dtype):
    rng = np.random.default_rng(S + D)
    x, x64 = random(rng, (S, B, N, D), dtype)
    cos, c64 = random(rng, (S, R // 2))
    sin, s64 = random(rng, (S, R // 2))
    assert_close(cpu.rope(x, cos, sin), rope(x64, c64, s64), dtype)
    assert_close(cpu.rope(x, cos, sin, inverse=True), rope(x64, c64, s64, inverse=True), dtype)


@BOTH
@pytest.mark.parametrize("S,B,G,n,D,R", [(1, 1, 1, 1, 4, 2), (9, 2, 2, 3, 16, 8), (17, 1, 4, 1, 10, 6),
                                         (0, 1, 2, 2, 8, 4)])
def test_qkv_rope(cpu, S, B, G, n, D, R, dtype):
    rng = np.random.default_rng(S + D)
    qkv, qkv64 = random(rng, (S * B, G * (n + 2) * D), dtype)
    cos, c64 = random(rng, (S, R // 2))
    sin, s64 = random(rng, (S, R // 2))
    heads = qkv64.reshape(S, B, G, n + 2, D)
    q, k, v = cpu.qkv_rope_fwd(qkv, cos, sin, G, n, D)
    assert_close(q, rope(heads[:, :, :, :n].reshape(S, B, G * n, D), c64, s64), dtype)
    assert_close(k, rope(heads[:, :, :, n], c64, s64), dtype)
    assert_close(v, heads[:, :, :, n + 1], dtype)
    dq, dk, dv = (random(rng, t.shape, dtype) for t in (q, k, v))
    back = np.concatenate([rope(dq[1], c64, s64, True).reshape(S, B, G, n, D),
                           rope(dk[1], c64, s64, True)[:, :, :, None], dv[1][:, :, :, None]], 3)
    assert_close(cpu.qkv_rope_bwd(dq[0], dk[0], dv[0], cos, sin, G, n, D), back.reshape(qkv64.shape), dtype)


@BOTH
@pytest.mark.parametrize("T,V,start", [(1, 1, 0), (5, 77, 0), (64, 1000, 30), (0, 10, 0)])
def test_cross_entropy(cpu, T, V, start, dtype):
    rng = np.random.default_rng(T + V)
    x, x64 = random(rng, (T, V), dtype, scale=5.0)
    labels = rng.integers(0, V + 2 * start, T).astype(np.int32)
    lse, grad = rng.standard_normal(T) + x64.max(-1, initial=0), rng.standard_normal(T)
    inside = (labels >= start) & (labels < start + V)
    picked = np.where(inside, x64[np.arange(T), np.clip(labels - start, 0, V - 1)], 0)
    top = x64.max(-1, initial=-np.inf)
    stats = np.stack([top, np.exp(x64 - top[:, None]).sum(-1), picked], -1)
    actual = cpu.cross_entropy_stats(x, Tensor(labels), start)
    for column in range(3):
        assert_close(actual.asnumpy()[:, column], stats[:, column])
    lse32, grad32 = lse.astype(np.float32), grad.astype(np.float32)
    onehot = np.zeros((T, V))
    onehot[np.arange(T)[inside], labels[inside] - start] = 1
    expected = grad32[:, None] * (np.exp(x64 - lse32[:, None].astype(np.float64)) - onehot)
    out = cpu.cross_entropy_grad(x, Tensor(labels), start, Tensor(lse32), Tensor(grad32))
    assert_close(out, expected, dtype, factor=3)


@BOTH
@pytest.mark.parametrize("shape,V,H,start", [((1,), 1, 1, 0), ((7, 2), 5, 33, 3), ((400, 1), 20, 130, 0),
                                             ((0, 1), 4, 8, 0)])
def test_embedding(cpu, shape, V, H, start, dtype):
    rng = np.random.default_rng(V + H)
    w, w64 = random(rng, (V, H), dtype)
    ids = rng.integers(0, V + 2 * start, shape).astype(np.int32)
    inside = (ids >= start) & (ids < start + V)
    expected = np.where(inside[..., None], w64[np.clip(ids - start, 0, V - 1)], 0)
    assert_close(cpu.embedding_fwd(w, Tensor(ids), start), expected)
    g, g64 = random(rng, (*shape, H), dtype)
    sums = np.ones((V, H))
    np.add.at(sums, ids[inside] - start, g64[inside])
    main_grad, memory = buffer(np.ones((V, H)))
    cpu.embedding_wgrad(g, Tensor(ids), start, main_grad)
    assert_close(memory, sums)


def test_non_contiguous_inputs(cpu):
    rng = np.random.default_rng(3)
    x, x64 = random(rng, (8, 6, 10))
    expected = x64.transpose(1, 0, 2)
    assert_close(cpu.swiglu_fwd(x.transpose(1, 0, 2)), silu(expected[..., :5]) * expected[..., 5:])
    assert_close(cpu.add(x.transpose(1, 0, 2), x.transpose(1, 0, 2)), 2 * expected)
    assert_close(cpu.add(x[2:5], x[5:8]), x64[2:5] + x64[5:8])  # contiguous, but not at the start of its memory
    w = Tensor(np.ones(6, np.float32))
    y, _ = cpu.rms_norm_fwd(x[:, :, 2:8], w, 0.0)
    part = x64[:, :, 2:8]
    assert_close(y, part / np.sqrt((part ** 2).mean(-1, keepdims=True)))


def test_wrong_arguments_are_refused(cpu):
    x = Tensor(np.zeros((4, 1, 6), np.float32))
    angles = Tensor(np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match="weight has shape"):
        cpu.rms_norm_fwd(x, Tensor(np.zeros(5, np.float32)), 1e-5)
    with pytest.raises(ValueError, match="even"):
        cpu.swiglu_fwd(Tensor(np.zeros((4, 3), np.float32)))
    with pytest.raises(ValueError, match="cos has shape"):
        cpu.rope(Tensor(np.zeros((4, 1, 2, 6), np.float32)), angles, angles)
    with pytest.raises(TypeError, match="must be int32"):
        cpu.embedding_fwd(Tensor(np.zeros((4, 3), np.float32)), Tensor(np.zeros(3, np.int64)), 0)
    with pytest.raises(ValueError, match="labels has shape"):
        cpu.cross_entropy_stats(Tensor(np.zeros((4, 3), np.float32)), Tensor(np.zeros(5, np.int32)), 0)
    with pytest.raises(ValueError, match="dimensions"):
        cpu.swiglu_fwd(Tensor(np.float32(1.0)))
