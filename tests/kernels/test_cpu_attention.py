"""Flash attention of the CPU backend against float64 and against itself."""

import numpy as np
import pytest
from mindspore import Tensor
from cpu_oracle import assert_close, attention, random, values, visible

BOTH = pytest.mark.parametrize("dtype", ["fp32", "bf16"])
# Sq, Sk, q_start, k_start
BLOCKS = [(1, 1, 0, 0), (5, 5, 0, 0), (64, 64, 0, 0), (49, 49, 0, 0), (200, 200, 0, 0), (1, 300, 299, 0),
          (1, 1200, 1199, 0), (3, 100, 97, 0), (65, 130, 1000, 0), (50, 80, 0, 30), (40, 40, 0, 1000), (20, 0, 5, 0),
          (0, 20, 0, 0), (1, 40, 0, 1000)]
# B, N, G, D
HEADS = [(1, 8, 2, 64), (2, 4, 4, 16), (1, 3, 1, 20)]


def least_size(dtype, alone):
    """Gradients of scores are differences of sums of D products, of size sqrt(D): where one key is visible (`alone`)
    only their fp32 rounding remains.
    """
    return 1.0 if alone and dtype == "fp32" else 0.1


def run(cpu, q, k, v, g, scale, q_start, k_start, cu_seqlens=None):
    out, lse = cpu.attention_fwd(q, k, v, scale, q_start, k_start, cu_seqlens)
    return (out, lse, *cpu.attention_bwd(g, q, k, v, out, lse, scale, q_start, k_start, cu_seqlens))


def compare(cpu, Sq, Sk, q_start, k_start, heads, dtype, cu_seqlens=None):
    B, N, G, D = heads
    rng = np.random.default_rng(Sq + 3 * Sk + D)
    (q, q64), (g, g64) = (random(rng, (Sq, B, N, D), dtype) for _ in range(2))
    (k, k64), (v, v64) = (random(rng, (Sk, B, G, D), dtype) for _ in range(2))
    scale = D ** -0.5
    mask = visible(Sq, Sk, q_start, k_start, cu_seqlens)
    expected = attention(q64, k64, v64, scale, mask, g64)
    borders = None if cu_seqlens is None else Tensor(np.array(cu_seqlens, np.int32))
    actual = run(cpu, q, k, v, g, scale, q_start, k_start, borders)
    assert_close(actual[1], expected[1], "fp32", factor=2 if dtype == "fp32" else 1000)
    # gradients pass through exp(score - lse): the rounding of scores (size ~ 4) enters them
    for got, want in zip((actual[0], *actual[2:]), (expected[0], *expected[2:])):
        assert_close(got, want, dtype, factor=3, least=least_size(dtype, Sk == 1))


@BOTH
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("Sq,Sk,q_start,k_start", BLOCKS)
def test_forward_and_gradients(cpu, Sq, Sk, q_start, k_start, heads, dtype):
    compare(cpu, Sq, Sk, q_start, k_start, heads, dtype)


@BOTH
@pytest.mark.parametrize("cu_seqlens", [[0, 100], [0, 1, 2, 3, 50, 51, 100], [0, 30, 30, 70, 100], [0, 99, 100],
                                        [0, 60]])
def test_packed_segments(cpu, cu_seqlens, dtype):
    compare(cpu, 100, 100, 0, 0, (2, 4, 2, 32), dtype, cu_seqlens)


@BOTH
def test_many_segments_longer_than_a_tile(cpu, dtype):
    compare(cpu, 700, 700, 0, 0, (1, 2, 1, 64), dtype, [0, 1, 250, 251, 500, 649, 700])


@pytest.mark.parametrize("q_start,k_start", [(40, 0), (40, 40), (80, 40), (0, 40)])
def test_packed_blocks_of_a_ring(cpu, q_start, k_start):
    compare(cpu, 40, 40, q_start, k_start, (1, 4, 2, 16), "fp32", [0, 10, 45, 46, 90, 120])


def test_glm_heads(cpu):
    compare(cpu, 300, 300, 0, 0, (1, 32, 2, 128), "fp32")


@BOTH
def test_long_odd_sequence(cpu, dtype):
    """4097 rows: the last one alone in its tile. Checked on some rows and on a forward sum of the gradient of v."""
    S, D = 4097, 32
    rng = np.random.default_rng(4)
    (q, q64), (g, g64) = (random(rng, (S, 1, 2, D), dtype) for _ in range(2))
    (k, k64), (v, v64) = (random(rng, (S, 1, 1, D), dtype) for _ in range(2))
    out, lse, dq, dk, dv = (values(t) for t in run(cpu, q, k, v, g, 0.2, 0, 0))
    for row in (0, 1, 47, 48, 2048, 4095, 4096):
        mask = visible(1, S, row, 0)
        want = attention(q64[row:row + 1], k64, v64, 0.2, mask, g64[row:row + 1])
        assert_close(out[row], want[0][0], dtype, factor=3)
        assert_close(dq[row], want[2][0], dtype, factor=3, least=least_size(dtype, row == 0))
    # every row of probabilities sums to 1, so dv summed over keys is g summed over rows
    assert_close(dv.sum(0), g64.sum(0).sum(1, keepdims=True), dtype, factor=20)


def test_blocks_merged_by_log_sum_exp_equal_the_whole(cpu):
    rng = np.random.default_rng(8)
    q, k, v = (random(rng, (96, 1, heads, 16))[0] for heads in (4, 2, 2))
    whole, whole_lse = (t.asnumpy() for t in cpu.attention_fwd(q, k, v, 0.25, 0, 0))
    parts = [[t.asnumpy() for t in cpu.attention_fwd(q, k[s:s + 32], v[s:s + 32], 0.25, 0, s)] for s in (0, 32, 64)]
    lse = np.logaddexp.reduce([p[1] for p in parts])
    merged = sum(p[0] * np.exp(p[1] - lse).transpose(2, 0, 1)[..., None] for p in parts)
    assert_close(lse, whole_lse.astype(np.float64))
    assert_close(merged, whole.astype(np.float64))


def test_large_scores_do_not_overflow(cpu):
    rng = np.random.default_rng(9)
    (q, q64), (k, k64), (v, v64) = (random(rng, (60, 1, 1, 16), scale=60.0) for _ in range(3))
    out, _ = cpu.attention_fwd(q, k, v, 1.0, 0, 0)
    expected, _ = attention(q64, k64, v64, 1.0, visible(60, 60, 0, 0))
    assert_close(out, expected, factor=2000)  # scores of 5e4 carry rounding of 4e-3


def test_non_contiguous_inputs(cpu):
    rng = np.random.default_rng(10)
    (q, q64), (k, k64), (v, v64) = (random(rng, (2, 50, heads, 16)) for heads in (4, 2, 2))
    q, k, v = (t.transpose(1, 0, 2, 3) for t in (q, k, v))
    expected, _ = attention(*(t.transpose(1, 0, 2, 3) for t in (q64, k64, v64)), 0.25, visible(50, 50, 0, 0))
    assert_close(cpu.attention_fwd(q, k, v, 0.25, 0, 0)[0], expected)


def test_wrong_arguments_are_refused(cpu):
    def t(*shape):
        return Tensor(np.zeros(shape, np.float32))

    with pytest.raises(ValueError, match="multiple of groups"):
        cpu.attention_fwd(t(4, 1, 3, 8), t(4, 1, 2, 8), t(4, 1, 2, 8), 1.0, 0, 0)
    with pytest.raises(ValueError, match="k has shape"):
        cpu.attention_fwd(t(4, 1, 2, 8), t(4, 1, 2, 6), t(4, 1, 2, 6), 1.0, 0, 0)
    with pytest.raises(ValueError, match="v has shape"):
        cpu.attention_fwd(t(4, 1, 2, 8), t(4, 1, 2, 8), t(5, 1, 2, 8), 1.0, 0, 0)
    with pytest.raises(ValueError, match="start with 0"):
        cpu.attention_fwd(t(4, 1, 2, 8), t(4, 1, 2, 8), t(4, 1, 2, 8), 1.0, 0, 0, [1, 4])
    with pytest.raises(ValueError, match="not decrease"):
        cpu.attention_fwd(t(4, 1, 2, 8), t(4, 1, 2, 8), t(4, 1, 2, 8), 1.0, 0, 0, [0, 4, 2])
