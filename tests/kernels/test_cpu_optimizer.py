"""AdamW, norms and element-wise kernels of the CPU backend against float64."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from cpu_oracle import assert_close, buffer, random, values

SETTINGS = dict(lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_scale=0.5)


def adamw(p, g, m, v, step, lr, beta1, beta2, eps, weight_decay, grad_scale):
    g = g * grad_scale
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    update = (m / (1 - beta1 ** step)) / (np.sqrt(v / (1 - beta2 ** step)) + eps)
    return p * (1 - lr * weight_decay) - lr * update, m, v


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16, ms.float16])
@pytest.mark.parametrize("n", [0, 1, 63, 100_003])
def test_adamw(cpu, n, dtype):
    rng = np.random.default_rng(n)
    start = rng.standard_normal(n)
    master, master_memory = buffer(start)
    param = master if dtype == ms.float32 else Tensor(np.zeros(n, np.float32)).astype(dtype)
    m, m_memory = buffer(np.zeros(n))
    v, v_memory = buffer(np.zeros(n))
    p64, m64, v64 = master_memory.astype(np.float64), np.zeros(n), np.zeros(n)
    for step in (1, 2, 3):
        grad, g64 = random(rng, (n,))
        cpu.adamw(param, master, grad, m, v, step=step, **SETTINGS)
        p64, m64, v64 = adamw(p64, g64, m64, v64, step, **SETTINGS)
    assert_close(master_memory, p64)
    assert_close(m_memory, m64)
    assert_close(v_memory, v64)
    # round to nearest even, the same as the framework's cast
    assert np.array_equal(values(param), values(Tensor(master_memory).astype(dtype)))


def test_adamw_keeps_a_separate_fp32_parameter_in_step(cpu):
    rng = np.random.default_rng(1)
    param, param_memory = buffer(np.zeros(1000))
    master, master_memory = buffer(rng.standard_normal(1000))
    state = [buffer(np.zeros(1000))[0] for _ in range(2)]
    cpu.adamw(param, master, random(rng, (1000,))[0], *state, step=1, **SETTINGS)
    assert np.array_equal(param_memory, master_memory)


@pytest.mark.parametrize("n", [0, 1, 65_535, 300_001])
def test_sum_squares(cpu, n):
    x, x64 = random(np.random.default_rng(n), (n,))
    words = cpu.sum_squares([x, x]).asnumpy()
    assert words.dtype == np.float32
    assert words.astype(np.float64).sum() == pytest.approx(2 * (x64 ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_sum_squares_shows_bad_values(cpu, bad):
    x = np.ones(1000, np.float32)
    x[700] = bad
    assert not np.isfinite(cpu.sum_squares([Tensor(x), Tensor(np.ones(3, np.float32))]).asnumpy()).all()


def test_sum_squares_beyond_fp32_is_infinite(cpu):
    assert np.isinf(cpu.sum_squares([Tensor(np.full(2, 1.5e19, np.float32))]).asnumpy().sum())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(0, 3), (1,), (333, 77)])
def test_add(cpu, shape, dtype):
    rng = np.random.default_rng(6)
    (x, x64), (y, y64) = random(rng, shape, dtype), random(rng, shape, dtype)
    assert_close(cpu.add(x, y), x64 + y64, dtype)


def test_wrong_arguments_are_refused(cpu):
    four, five = (Tensor(np.zeros(n, np.float32)) for n in (4, 5))
    with pytest.raises(ValueError, match="exp_avg_sq has shape"):
        cpu.adamw(four, four, four, four, five, step=1, **SETTINGS)
    with pytest.raises(ValueError, match="step"):
        cpu.adamw(four, four, four, four, four, step=0, **SETTINGS)
    with pytest.raises(TypeError, match="must be float32"):
        cpu.adamw(four, four.astype(ms.float16), four, four, four, step=1, **SETTINGS)
