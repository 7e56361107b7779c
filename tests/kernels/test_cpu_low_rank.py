"""Adapters' products of the CPU backend against float64."""

import numpy as np
import pytest
from mindspore import Tensor
from cpu_oracle import assert_close, buffer, random, values

# rows, inputs, outputs, rank; the last rank is above what the kernel takes by itself
SHAPES = [(1, 1, 1, 1), (7, 300, 70, 4), (53, 129, 555, 16), (130, 700, 48, 32), (40, 65, 33, 33)]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("M,K,N,r", SHAPES)
def test_adds_to_a_product_and_to_its_gradient(cpu, M, K, N, r, dtype):
    rng = np.random.default_rng(M + K + N + r)
    (x, x64), (y, y64), (g, g64), (dx, dx64) = (random(rng, (M, 1, size), dtype) for size in (K, N, N, K))
    (a, a64), (b, b64) = random(rng, (r, K), dtype), random(rng, (N, r), dtype)
    out, hidden = cpu.low_rank_fwd(x, a, b, 0.3, y)
    assert_close(hidden, 0.3 * x64 @ a64.T, dtype)
    assert_close(out, y64 + values(hidden) @ b64.T, dtype)
    out, d_hidden = cpu.low_rank_dgrad(g, a, b, 0.3, dx)
    assert_close(d_hidden, 0.3 * g64 @ b64, dtype)
    assert_close(out, dx64 + values(d_hidden) @ a64, dtype)
    for run, of, first in ((cpu.low_rank_fwd, x, hidden), (cpu.low_rank_dgrad, g, d_hidden)):
        none, alone = run(of, a, b, 0.3, None)
        assert none is None and np.array_equal(values(alone), values(first))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["base", "avx2", "avx512", "avx512_bf16", "amx"])
def test_every_instruction_set_and_number_of_threads(settings, name, dtype):
    """Right values, and the same bits from any number of threads."""
    if name not in settings.instruction_sets():
        pytest.skip(f"this processor has no {name}")
    settings.instruction_set(name)
    runs = []
    for threads in (1, 3):
        settings.threads(threads)
        rng = np.random.default_rng(5)
        (x, x64), (y, y64), (g, g64) = (random(rng, (150, size), dtype) for size in (270, 310, 310))
        (a, a64), (b, b64), (small, small64) = (random(rng, shape, dtype) for shape in ((8, 270), (310, 8), (150, 8)))
        wide, thin = buffer(np.ones((8, 310))), buffer(np.ones((310, 8)))
        settings.linear_wgrad(small, g, wide[0])
        settings.linear_wgrad(g, small, thin[0])
        out, hidden = settings.low_rank_fwd(x, a, b, 2.0, y)
        assert_close(hidden, 2 * x64 @ a64.T, dtype)
        assert_close(out, y64 + values(hidden) @ b64.T, dtype)
        assert_close(wide[1], 1 + small64.T @ g64, factor=2)
        assert_close(thin[1], 1 + g64.T @ small64, factor=2)
        runs.append([values(out), values(hidden), wide[1], thin[1]])
    assert all(np.array_equal(one, three) for one, three in zip(*runs, strict=True))


def test_wrong_arguments_are_refused(cpu):
    x, a, b, y = (Tensor(np.zeros(shape, np.float32)) for shape in ((3, 4), (2, 4), (5, 2), (3, 5)))
    cpu.low_rank_fwd(x, a, b, 1.0, y)
    with pytest.raises(ValueError, match="x has shape"):
        cpu.low_rank_fwd(y, a, b, 1.0, y)
    with pytest.raises(ValueError, match="b has shape"):
        cpu.low_rank_fwd(x, a, a, 1.0, y)
    with pytest.raises(ValueError, match="total has shape"):
        cpu.low_rank_dgrad(y, a, b, 1.0, y)
    with pytest.raises(TypeError, match="float32 or bfloat16"):
        cpu.low_rank_fwd(Tensor(np.zeros((3, 4), np.float16)), a, b, 1.0, y)
    with pytest.raises(ValueError, match="in place"):
        cpu.low_rank_fwd(x, a, b, 1.0, Tensor(np.zeros((5, 3), np.float32)).swapaxes(0, 1))
