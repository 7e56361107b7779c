"""The Ascend kernels against the reference: forward everywhere, backward where the project calls gradient operators.

The gradients that MindSpore itself computes of rotary, SwiGLU and flash attention need an NPU and are not tested.
"""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from contract import called_names, names
from mindspore import Tensor

import mindspeed_llm.kernels.ascend as package
from mindspeed_llm.kernels import reference
from mindspeed_llm.kernels.ascend import attention, dense, rotary
from mindspeed_llm.kernels.functions import build
from mindspeed_llm.runtime import autograd

FP32 = 1e-5
BF16 = 1.6e-2  # two roundings to 8 bits, of values up to the largest
SCALE = 0.25
REFERENCE = build(reference)
PACKED = np.array([0, 1, 7, 7, 20, 33], np.int32)  # lengths 1, 6, 0, 13, 13


def assert_close(actual, expected, tolerance=FP32):
    actual, expected = (part.astype(ms.float32).asnumpy() for part in (actual, expected))
    assert actual.shape == expected.shape
    finite = np.isfinite(expected)
    assert np.array_equal(actual[~finite], expected[~finite])
    error = np.abs(actual[finite] - expected[finite]).max(initial=0)
    assert error <= tolerance * max(1, np.abs(expected[finite]).max(initial=0)), error


def angles(rng, seq, rotary_dim):
    angle = rng.uniform(-3, 3, (seq, rotary_dim // 2)).astype(np.float32)
    return Tensor(np.cos(angle)), Tensor(np.sin(angle))


@pytest.mark.parametrize("dtype, tolerance", [(ms.float32, FP32), (ms.bfloat16, BF16)])
def test_dense(npu, draw, dtype, tolerance):
    p = npu.primitives
    x, weight, bias, grad = (draw(*shape, dtype=dtype) for shape in ((5, 2, 6), (8, 6), (8,), (5, 2, 8)))
    assert_close(p.linear_fwd(x, weight, bias), reference.linear_fwd(x, weight, bias), tolerance)
    assert_close(p.linear_dgrad(grad, weight), reference.linear_dgrad(grad, weight), tolerance)
    for run, shape in ((lambda k, total: k.linear_wgrad(grad, x, total), weight.shape),
                       (lambda k, total: k.bias_grad(grad, total), bias.shape)):
        ours = draw(*shape)
        theirs = ours.copy()
        run(p, ours)
        run(reference, theirs)
        assert_close(ours, theirs, tolerance)
    ids = Tensor(np.array([[3, 9], [4, 11], [12, 0]], np.int32))
    assert_close(p.embedding_fwd(weight, ids, 4), reference.embedding_fwd(weight, ids, 4), 0)


def test_products_run_in_the_dtype_of_the_tensors(npu, draw):
    """A cast to fp32 on the way, as in the reference, would cost most of an NPU's speed."""
    x, weight, grad = (draw(*shape, dtype=ms.bfloat16) for shape in ((3, 4), (5, 4), (3, 5)))
    npu.primitives.linear_fwd(x, weight, None)
    npu.primitives.linear_dgrad(grad, weight)
    npu.primitives.linear_wgrad(grad, x, draw(5, 4))
    products = [arguments for name, arguments in npu.calls if name in ("mint.matmul", "mint.nn.functional.linear")]
    assert len(products) == 3
    assert all(value.dtype == ms.bfloat16
               for arguments in products for value in arguments.values() if value is not None)


@pytest.mark.parametrize("dtype, tolerance", [(ms.float32, FP32), (ms.bfloat16, BF16)])
def test_rms_norm_through_the_tape(npu, draw, dtype, tolerance):
    """Forward, the input's gradient on the tape, the weight's in fp32 in main_grad, and the notice of it."""
    x, weight, grad, start = draw(4, 2, 8, dtype=dtype), draw(8, dtype=dtype), draw(4, 2, 8, dtype=dtype), draw(8)
    results = []
    for function in (npu.api.rms_norm, REFERENCE["rms_norm"]):
        leaf, ready = autograd.leaf(x), []
        weight.main_grad, weight.grad_ready = start.copy(), lambda ready=ready: ready.append(1)
        out = function(leaf, weight, 1e-5)
        autograd.backward((out,), (grad,))
        assert ready == [1] and weight.main_grad.dtype == ms.float32
        results.append((out, autograd.grad_of(leaf), weight.main_grad))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, tolerance)


def test_add_rms_norm_through_the_tape(npu, draw):
    """A residual stream with two uses: both gradients reach both summands, and the first one replaces main_grad."""
    (x, branch, grad), weight = (draw(4, 2, 8) for _ in range(3)), draw(8)
    results = []
    for function in (npu.api.add_rms_norm, REFERENCE["add_rms_norm"]):
        leaves = [autograd.leaf(x), autograd.leaf(branch)]
        weight.main_grad = draw(8)
        autograd.drop_grad(weight)
        total, normed = function(*leaves, weight, 1e-5)
        total, again = function(total, None, weight, 1e-5)
        autograd.backward((total + normed * again,), (grad,))
        results.append((total, normed, *(autograd.grad_of(leaf) for leaf in leaves), weight.main_grad))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs)


def test_swiglu(npu, draw):
    x = draw(3, 2, 10)
    assert_close(npu.api.swiglu(x), reference.swiglu_fwd(x))


@pytest.mark.parametrize("rotary_dim", [32, 16])
def test_rope(npu, draw, rng, rotary_dim):
    x, (cos, sin) = draw(7, 2, 4, 32), angles(rng, 7, rotary_dim)
    assert_close(npu.api.rope(x, cos, sin), reference.rope(x, cos, sin))
    bf16 = x.astype(ms.bfloat16)
    assert_close(npu.api.rope(bf16, cos, sin), reference.rope(bf16, cos, sin), BF16)


@pytest.mark.parametrize("seq", [1, 6])
def test_qkv_rope(npu, draw, rng, seq):
    qkv, (cos, sin) = draw(seq, 2, 2 * (3 + 2) * 16), angles(rng, seq, 8)
    for ours, theirs in zip(npu.api.qkv_rope(qkv, cos, sin, 2, 3, 16), reference.qkv_rope_fwd(qkv, cos, sin, 2, 3, 16),
                            strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("heads, groups", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("bounds", [None, PACKED])
def test_attention(wide, draw, heads, groups, batch, bounds):
    q, k, v = draw(33, batch, heads, 16), draw(33, batch, groups, 16), draw(33, batch, groups, 16)
    cu_seqlens = None if bounds is None else Tensor(bounds)
    expected = reference.attention_fwd(q, k, v, SCALE, 0, 0, bounds)[0]
    assert_close(wide.api.attention(q, k, v, SCALE, cu_seqlens), expected)
    assert names(wide.calls) >= {"ops.flash_attention_score"}


# Query length, key length, positions of the first query and key: training, decoding one token, a later piece of a
# prompt, and the blocks of ring attention, with blocks that see nothing, see all, and see a part.
PLACES = [(9, 9, 0, 0), (1, 12, 11, 0), (5, 12, 7, 0), (8, 4, 8, 0), (8, 4, 0, 8), (6, 8, 4, 6), (7, 5, 3, 0),
          (8, 8, 8, 8)]


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("bounds", [None, np.array([0, 5, 9, 16], np.int32)])
def test_attention_pieces(wide, draw, place, bounds):
    q_length, k_length, q_start, k_start = place
    q, k, v = draw(q_length, 2, 4, 16), draw(k_length, 2, 2, 16), draw(k_length, 2, 2, 16)
    out, lse = wide.primitives.attention_fwd(q, k, v, SCALE, q_start, k_start, bounds)
    expected_out, expected_lse = reference.attention_fwd(q, k, v, SCALE, q_start, k_start, bounds)
    assert_close(out, expected_out)
    assert_close(lse, expected_lse)
    # As in ring attention, the log-sum-exp and the output in backward are over more keys than these.
    grad, out, lse = draw(*q.shape), draw(*q.shape), expected_lse + draw(*expected_lse.shape).abs()
    given = (grad, q, k, v, out, lse, SCALE, q_start, k_start, bounds)
    for ours, theirs in zip(wide.primitives.attention_bwd(*given), reference.attention_bwd(*given), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("keep", [True, False])
def test_attention_over_caches(wide, draw, keep):
    """One token, a piece without a past, a later piece: one operator call each, over the sequence's own cache."""
    edges, pasts = [0, 1, 6, 9], [7, 0, 12]
    q, k, v = draw(9, 1, 4, 16), draw(9, 1, 2, 16), draw(9, 1, 2, 16)
    keys, values = ([draw(past + 6, 1, 2, 16) for past in pasts] for _ in range(2))
    theirs = [[cache.copy() for cache in caches] for caches in (keys, values)]
    out = wide.primitives.attention_cached(q, k, v, keys, values, edges, pasts, SCALE, keep)
    assert_close(out, reference.attention_cached(q, k, v, *theirs, edges, pasts, SCALE, keep))
    assert [name for name, _ in wide.calls].count("FlashAttentionScore") == 3
    for ours, expected in zip((*keys, *values), (*theirs[0], *theirs[1]), strict=True):
        assert_close(ours, expected, 0)


def test_attention_in_bf16(npu, draw):
    q, k, v = (draw(20, 1, heads, 32, dtype=ms.bfloat16) for heads in (4, 2, 2))
    expected, lse = reference.attention_fwd(q, k, v, SCALE, 0, 0)
    for out in (npu.api.attention(q, k, v, SCALE), npu.primitives.attention_fwd(q, k, v, SCALE, 0, 0)[0]):
        assert out.dtype == ms.bfloat16
        assert_close(out, expected, BF16)
    grad = draw(*q.shape, dtype=ms.bfloat16)
    for ours, theirs in zip(npu.primitives.attention_bwd(grad, q, k, v, expected, lse, SCALE, 0, 0),
                            reference.attention_bwd(grad, q, k, v, expected, lse, SCALE, 0, 0), strict=True):
        assert ours.dtype == ms.bfloat16
        assert_close(ours, theirs, BF16)


@pytest.mark.parametrize("dtype, dim", [(ms.float32, 32), (ms.bfloat16, 8)])
def test_attention_that_the_operator_does_not_take_is_composite(npu, draw, dtype, dim):
    q, k, v = (draw(9, 1, 2, dim, dtype=dtype) for _ in range(3))
    assert_close(npu.api.attention(q, k, v, SCALE), reference.attention_fwd(q, k, v, SCALE, 0, 0)[0], 0)
    npu.primitives.attention_fwd(q, k, v, SCALE, 0, 0)
    assert npu.calls == []


def test_one_mask_for_all_calls(npu, draw):
    q = draw(4, 1, 2, 16, dtype=ms.bfloat16)
    for _ in range(3):
        npu.api.attention(q, q, q, SCALE)
    masks = [arguments["attn_mask"] for name, arguments in npu.calls if name == "ops.flash_attention_score"]
    assert len(masks) == 3 and all(mask is masks[0] for mask in masks)


def test_every_call_has_been_checked(npu, draw, rng):
    """Every call of MindSpore in the package's source, found by parsing it, was made under the recorder."""
    q, grad, main_grad = draw(6, 1, 2, 16, dtype=ms.bfloat16), draw(6, 1, 2, 16, dtype=ms.bfloat16), draw(16)
    p, api = npu.primitives, npu.api
    api.attention(q, q, q, SCALE)
    out, lse = p.attention_fwd(q, q, q, SCALE, 0, 3)
    p.attention_bwd(grad, q, q, q, out, lse, SCALE, 0, 3)
    api.rope(q, *angles(rng, 6, 8))
    api.swiglu(q)
    weight = q[0, 0, 0]
    rstd = p.rms_norm_fwd(q, weight, 1e-5)[1]
    p.rms_norm_bwd(grad, q, weight, rstd, main_grad)
    p.linear_wgrad(grad, q, draw(16, 16))
    p.bias_grad(grad, main_grad)
    p.embedding_fwd(p.linear_fwd(q, q[0, 0], None)[0, 0], Tensor([1, 0], ms.int32), 0)
    roots = {"ops", "mint", "RmsNormGrad", "FlashAttentionScore", "FlashAttentionScoreGrad"}
    written = set().union(*(called_names(Path(module.__file__), roots)
                            for module in (package, dense, rotary, attention)))
    assert written and written <= names(npu.calls), written - names(npu.calls)


def test_primitives_are_those_of_the_reference(npu):
    assert set(vars(npu.primitives)) == set(reference.__all__)
    assert set(vars(npu.api)) == set(REFERENCE)
