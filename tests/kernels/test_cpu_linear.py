"""Linear layers of the CPU backend against float64."""

import numpy as np
import pytest
from mindspore import Tensor
from cpu_oracle import assert_close, buffer, random

SHAPES = [(1, 1, 1), (1, 64, 48), (3, 7, 5), (4, 130, 1000), (5, 33, 65), (67, 129, 31), (128, 96, 256), (64, 300, 1),
          (90, 1, 200), (1100, 70, 45), (97, 545, 133), (1100, 40, 5000),
          (70, 9000, 33), (9000, 33, 40)]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("M,N,K", SHAPES)
def test_forward_and_gradients(cpu, M, N, K, dtype):
    rng = np.random.default_rng(M * N + K)
    x, x64 = random(rng, (M, 1, K), dtype)
    w, w64 = random(rng, (N, K), dtype)
    b, b64 = random(rng, (N,), dtype)
    g, g64 = random(rng, (M, 1, N), dtype)
    assert_close(cpu.linear_fwd(x, w), x64 @ w64.T, dtype)
    assert_close(cpu.linear_fwd(x, w, b), x64 @ w64.T + b64, dtype)
    assert_close(cpu.linear_dgrad(g, w), g64 @ w64, dtype)
    start = rng.standard_normal((N, K))
    main_grad, memory = buffer(start)
    for _ in range(2):
        assert cpu.linear_wgrad(g, x, main_grad) is None
    # products of bf16 numbers are exact in fp32, so the fp32 bound holds for both types
    assert_close(memory, start + 2 * g64[:, 0].T @ x64[:, 0], factor=2)
    bias_main, bias_memory = buffer(np.ones(N))
    cpu.bias_grad(g, bias_main)
    assert_close(bias_memory, 1 + g64[:, 0].sum(0))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("M,N,K", [(0, 7, 5), *SHAPES])
def test_first_gradient_replaces_what_was_there(cpu, M, N, K, dtype):
    rng = np.random.default_rng(M + N + K)
    g, x = random(rng, (M, 1, N), dtype)[0], random(rng, (M, 1, K), dtype)[0]
    (fresh, replaced), (zeroed, expected) = buffer(np.full((N, K), np.nan)), buffer(np.zeros((N, K)))
    cpu.linear_wgrad(g, x, fresh, False)
    cpu.linear_wgrad(g, x, zeroed)
    assert np.array_equal(replaced, expected)


def test_fp32_is_as_close_to_float64_as_fp32_arithmetic(cpu):
    """Also where products are summed from bf16 parts: magnitudes over 12 decades, sums of one sign, long sums.

    The bound is relative to the sum of the terms' magnitudes: a sequential fp32 sum of K terms reaches K 2^-24.
    """
    rng = np.random.default_rng(3)
    for K in (64, 1000, 5000):
        for sign in (np.asarray, np.abs):
            x, w = (sign(rng.standard_normal((rows, K)) * 10.0 ** rng.uniform(-6, 6, (rows, 1))).astype(np.float32)
                    for rows in (80, 70))
            y = cpu.linear_fwd(Tensor(x), Tensor(w)).asnumpy()
            x64, w64 = x.astype(np.float64), w.astype(np.float64)
            error = np.abs(y - x64 @ w64.T) / (np.abs(x64) @ np.abs(w64).T)
            assert error.max() < 3e-6 and np.sqrt((error ** 2).mean()) < 1e-6


def test_bad_values_reach_the_result(cpu):
    x, w = np.ones((70, 40), np.float32), np.ones((50, 40), np.float32)
    x[3, 7], x[5, 1], w[9, 0] = np.inf, np.nan, -np.inf
    bad = ~np.isfinite(cpu.linear_fwd(Tensor(x), Tensor(w)).asnumpy())
    expected = np.zeros((70, 50), bool)
    expected[[3, 5]] = expected[:, 9] = True
    assert np.array_equal(bad, expected)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("M,N,K", [(0, 4, 8), (3, 0, 8), (3, 4, 0), (5, 4, 0)])
def test_empty(cpu, M, N, K, dtype):
    rng = np.random.default_rng(0)
    x, w, g = (random(rng, shape, dtype)[0] for shape in ((M, K), (N, K), (M, N)))
    b, b64 = random(rng, (N,), dtype)
    assert_close(cpu.linear_fwd(x, w, b), np.zeros((M, N)) + b64)
    assert_close(cpu.linear_dgrad(g, w), np.zeros((M, K)))
    main_grad, memory = buffer(np.ones((N, K)))
    cpu.linear_wgrad(g, x, main_grad)
    assert (memory == 1).all()


def test_non_contiguous_inputs(cpu):
    rng = np.random.default_rng(1)
    xt, x64 = random(rng, (24, 40))
    wt, w64 = random(rng, (24, 17))
    assert_close(cpu.linear_fwd(xt.swapaxes(0, 1), wt.swapaxes(0, 1)), x64.T @ w64)
    gt, g64 = random(rng, (17, 40))
    main_grad, memory = buffer(np.zeros((17, 24)))
    cpu.linear_wgrad(gt.swapaxes(0, 1), xt.swapaxes(0, 1), main_grad)
    assert_close(memory, g64 @ x64.T)
    part, part64 = random(rng, (12, 10, 24))
    assert_close(cpu.linear_fwd(part[2:9, 3:5], wt.swapaxes(0, 1)), part64[2:9, 3:5] @ w64)


def test_wgrad_writes_into_a_slice_of_a_flat_buffer(cpu):
    rng = np.random.default_rng(2)
    flat = np.zeros(100, np.float32)
    main_grad = Tensor.from_numpy(flat[20:44].reshape(4, 6))
    (g, g64), (x, x64) = random(rng, (9, 4)), random(rng, (9, 6))
    cpu.linear_wgrad(g, x, main_grad)
    assert_close(flat[20:44].reshape(4, 6), g64.T @ x64)
    assert (flat[:20] == 0).all() and (flat[44:] == 0).all()


def test_wrong_arguments_are_refused(cpu):
    x, w = Tensor(np.zeros((3, 4), np.float32)), Tensor(np.zeros((5, 6), np.float32))
    with pytest.raises(ValueError, match="last dimensions must be equal"):
        cpu.linear_fwd(x, w)
    with pytest.raises(TypeError, match="must be Float32|must be float32"):
        cpu.linear_fwd(x, Tensor(np.zeros((5, 4), np.float16)))
    with pytest.raises(TypeError, match="float32 or bfloat16"):
        cpu.linear_fwd(Tensor(np.zeros((3, 4), np.int32)), w)
    with pytest.raises(ValueError, match="main_grad has shape"):
        cpu.linear_wgrad(x, x, w)
    target = Tensor(np.zeros((6, 4), np.float32)).swapaxes(0, 1)
    with pytest.raises(ValueError, match="in place"):
        cpu.linear_wgrad(x, Tensor(np.zeros((3, 6), np.float32)), target)
