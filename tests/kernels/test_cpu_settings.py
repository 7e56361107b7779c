"""Every instruction set gives right results; on each of them the number of threads changes no bit."""

import os
from functools import cache

import numpy as np
import pytest
from mindspore import Tensor
from cpu_oracle import DTYPES, assert_close, attention, buffer, random, silu, values, visible

NAMES = ("base", "avx2", "avx512", "avx512_bf16", "amx")


def choose(backend, name):
    """Use this instruction set; skips the test where the processor has not got it."""
    if name not in backend.instruction_sets():
        pytest.skip(f"this processor has no {name}")
    assert backend.instruction_set(name) == name


def everything(backend, dtype):
    """Results of all kernels on one set of inputs, as numpy arrays."""
    rng = np.random.default_rng(11)
    S, B, G, n, D, V = 203, 2, 2, 3, 32, 517
    x, qkv = random(rng, (S, B, 190), dtype)[0], random(rng, (S * B, G * (n + 2) * D), dtype)[0]
    cos, sin = (random(rng, (S, D // 4))[0] for _ in range(2))
    weight, row, bias = (random(rng, shape, dtype)[0] for shape in ((V, 190), (190,), (V,)))
    ids, labels = (Tensor(rng.integers(0, V, shape).astype(np.int32)) for shape in ((S, B), (S * B,)))
    flat = [buffer(np.abs(rng.standard_normal(100_003))) for _ in range(4)]
    grads = [buffer(np.zeros(shape)) for shape in ((V, 190), (190,), (V,), (V, 190))]
    results = []
    logits = backend.linear_fwd(x, weight, bias)
    backend.linear_wgrad(logits, x, grads[0][0])
    y, rstd = backend.rms_norm_fwd(x, row, 1e-5)
    results += [logits, backend.linear_dgrad(logits, weight), y, rstd]
    results += [backend.rms_norm_bwd(y, x, row, rstd, grads[1][0]), backend.swiglu_fwd(x)]
    backend.bias_grad(logits, grads[2][0])
    results.append(backend.swiglu_bwd(results[-1], x))
    q, k, v = backend.qkv_rope_fwd(qkv, cos, sin, G, n, D)
    out, lse = backend.attention_fwd(q, k, v, 0.2, 0, 0, [0, 50, 51, 203])
    results += [q, k, v, out, lse, *backend.attention_bwd(q, q, k, v, out, lse, 0.2, 0, 0, [0, 50, 51, 203])]
    results += backend.attention_fwd(q[-1:], k, v, 0.2, S - 1, 0)
    results.append(backend.qkv_rope_bwd(q, k, v, cos, sin, G, n, D))
    two = logits.reshape(S * B, V)
    stats = backend.cross_entropy_stats(two, labels, 0)
    lse32 = Tensor(np.log(stats.asnumpy()[:, 1]) + stats.asnumpy()[:, 0])
    results += [stats, backend.cross_entropy_grad(two, labels, 0, lse32, lse32)]
    results.append(backend.embedding_fwd(weight, ids, 0))
    backend.embedding_wgrad(results[-1], ids, 0, grads[3][0])
    param = flat[0][0].astype(DTYPES[dtype]) if dtype == "bf16" else flat[0][0]
    backend.adamw(param, *(t for t, _ in flat), lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, step=2,
                  grad_scale=0.7)
    sums = backend.sum_squares([t for t, _ in flat]).asnumpy()
    return [values(t) for t in (*results, param)] + [m for _, m in (*grads, *flat)] + [sums]


def products(backend, dtype):
    """Results of products whose tasks depend on the number of threads: few columns, a long depth, many rows."""
    rng = np.random.default_rng(13)
    results = []
    for M, N, K in ((2000, 24, 40), (90, 31, 9000), (300, 700, 70)):
        x, w, g = (random(rng, shape, dtype)[0] for shape in ((M, K), (N, K), (M, N)))
        main_grad, memory = buffer(np.zeros((N, K)))
        backend.linear_wgrad(g, x, main_grad)
        results += [values(backend.linear_fwd(x, w)), values(backend.linear_dgrad(g, w)), memory]
    return results


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_thread_count_changes_no_bit(settings, name, dtype):
    choose(settings, name)
    runs = []
    for threads in (1, 2, 3, 7):
        assert settings.threads(threads) == threads
        runs.append(everything(settings, dtype) + products(settings, dtype))
    for other in runs[1:]:
        for index, (a, b) in enumerate(zip(runs[0], other)):
            assert np.array_equal(a, b, equal_nan=True), f"result {index}"


@cache
def of_base(backend, dtype):
    choose(backend, "base")
    return everything(backend, dtype) + products(backend, dtype)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES[1:])
def test_instruction_sets_agree(settings, name, dtype):
    choose(settings, name)
    found = everything(settings, dtype) + products(settings, dtype)
    for want, got in zip(of_base(settings, dtype), found, strict=True):
        assert_close(got, want.astype(np.float64), dtype, factor=5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_each_instruction_set_against_float64(settings, name, dtype):
    choose(settings, name)
    rng = np.random.default_rng(12)
    x, x64 = random(rng, (9, 86), dtype)
    a, b = np.split(x64, 2, -1)
    assert_close(settings.swiglu_fwd(x), silu(a) * b, dtype)
    for M, N, K in ((67, 129, 31), (130, 70, 45), (40, 33, 4200), (70, 33, 17000)):
        (x, x64), (w, w64), (g, g64) = (random(rng, shape, dtype) for shape in ((M, K), (N, K), (M, N)))
        assert_close(settings.linear_fwd(x, w), x64 @ w64.T, dtype)
        assert_close(settings.linear_dgrad(g, w), g64 @ w64, dtype)
        main_grad, memory = buffer(np.zeros((N, K)))
        settings.linear_wgrad(g, x, main_grad)
        assert_close(memory, g64.T @ x64, factor=2)
    for Sq, D in ((150, 40), (97, 64), (1, 40)):
        (q, q64), (g, g64) = (random(rng, (Sq, 1, 4, D), dtype) for _ in range(2))
        (k, k64), (v, v64) = (random(rng, (230, 1, 2, D), dtype) for _ in range(2))
        expected = attention(q64, k64, v64, 0.3, visible(Sq, 230, 80, 0), g64)
        out, lse = settings.attention_fwd(q, k, v, 0.3, 80, 0)
        gradients = settings.attention_bwd(g, q, k, v, out, lse, 0.3, 80, 0)
        for got, want in zip((out, *gradients), (expected[0], *expected[2:])):
            assert_close(got, want, dtype, factor=3)


def test_the_environment_chooses_the_instruction_set(settings):
    """The best that the processor has, or MINDSPEED_LLM_ISA: see tests/test_instruction_sets.py."""
    chosen = settings.instruction_set()
    assert chosen == os.environ.get("MINDSPEED_LLM_ISA", settings.instruction_sets()[-1])


def test_unknown_instruction_set_is_refused(settings):
    with pytest.raises(ValueError, match="sse9"):
        settings.instruction_set("sse9")
