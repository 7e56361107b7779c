"""The Ascend kernels against the reference: forward everywhere, backward where the project calls gradient operators.

The gradients that MindSpore itself computes of SwiGLU and flash attention need an NPU and are not tested.
"""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from contract import called_names, names
from mindspore import Tensor, mint

import mindspeed_llm.kernels.ascend as package
from mindspeed_llm.kernels import reference
from mindspeed_llm.kernels.ascend import attention, dense, optimizer, rotary
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
    for accumulate in (True, False):
        ours, d_rows = draw(*weight.shape), draw(3, 2, 6, dtype=dtype)
        theirs = ours.copy()
        p.embedding_wgrad(d_rows, ids, 4, ours, accumulate)
        reference.embedding_wgrad(d_rows, ids, 4, theirs, accumulate)
        assert_close(ours, theirs)


def test_gradients_replace_or_add(npu, draw):
    p, x, grad = npu.primitives, draw(3, 4, dtype=ms.bfloat16), draw(3, 5, dtype=ms.bfloat16)
    once, twice = draw(5, 4), draw(5, 4)
    p.linear_wgrad(grad, x, once, False)
    p.linear_wgrad(grad, x, twice, False)
    p.linear_wgrad(grad, x, twice)
    assert_close(twice, once * 2)


@pytest.mark.parametrize("step, weight_decay", [(1, 0.1), (7, 0.1), (1000, 0.0)])
@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16])
def test_adamw(npu, draw, step, weight_decay, dtype):
    """The operator itself runs here, on CPU: as documented, with the bias correction in its arguments."""
    given = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-3, "weight_decay": weight_decay, "step": step,
             "grad_scale": 0.25}
    start = [draw(50), draw(50), draw(50) * 0.1, draw(50).abs() * 0.1]
    results = []
    for p in (npu.primitives, reference):
        master, grad, exp_avg, exp_avg_sq = (part.copy() for part in start)
        param = master if dtype == ms.float32 else draw(50).astype(dtype)
        p.adamw(param, master, grad, exp_avg, exp_avg_sq, **given)
        results.append((param, master, exp_avg, exp_avg_sq))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs)
    assert names(npu.calls) == {"AdamWeightDecay"}


def test_products_run_in_the_dtype_of_the_tensors(npu, draw):
    """A cast to fp32 on the way, as in the reference, would cost most of an NPU's speed."""
    x, weight, grad = (draw(*shape, dtype=ms.bfloat16) for shape in ((3, 4), (5, 4), (3, 5)))
    npu.primitives.linear_fwd(x, weight, None)
    npu.primitives.linear_dgrad(grad, weight)
    npu.primitives.linear_wgrad(grad, x, draw(5, 4))
    products = [arguments for name, arguments in npu.calls
                if name in ("mint.matmul", "MatMul", "mint.nn.functional.linear")]
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


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("rotary_dim", [32, 16])
def test_rope(npu, draw, rng, rotary_dim, inverse):
    x, (cos, sin) = draw(7, 2, 4, 32), angles(rng, 7, rotary_dim)
    assert_close(npu.primitives.rope(x, cos, sin, inverse), reference.rope(x, cos, sin, inverse))
    bf16 = x.astype(ms.bfloat16)
    assert_close(npu.primitives.rope(bf16, cos, sin, inverse), reference.rope(bf16, cos, sin, inverse), BF16)


# The last one decodes: many more heads than positions.
@pytest.mark.parametrize("seq, groups, heads", [(6, 2, 3), (5, 1, 4), (1, 2, 16)])
@pytest.mark.parametrize("dtype, tolerance", [(ms.float32, FP32), (ms.bfloat16, BF16)])
def test_qkv_rope_through_the_tape(npu, draw, rng, seq, groups, heads, dtype, tolerance):
    qkv, (cos, sin) = draw(seq * 2, groups * (heads + 2) * 16, dtype=dtype), angles(rng, seq, 8)
    grads = [draw(seq, 2, count, 16, dtype=dtype) for count in (groups * heads, groups, groups)]
    results = []
    for function in (npu.api.qkv_rope, REFERENCE["qkv_rope"]):
        leaf = autograd.leaf(qkv)
        outs = function(leaf, cos, sin, groups, heads, 16)
        autograd.backward(outs, grads)
        results.append((*outs, autograd.grad_of(leaf)))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, tolerance)


def test_rotary_tables_are_made_once(npu, draw, rng):
    """Per set of positions and dtype, not per layer, pass or micro-batch."""
    positions = angles(rng, 6, 8)
    for _ in range(3):
        out = npu.api.qkv_rope(autograd.leaf(draw(6, 80, dtype=ms.bfloat16)), *positions, 1, 3, 16)
        autograd.backward(out, [part.copy() for part in out])
    assert [name for name, _ in npu.calls].count("ops.repeat_interleave") == 2  # cos, sin


@pytest.mark.parametrize("heads, groups", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("bounds", [None, PACKED])
def test_attention(wide, draw, heads, groups, batch, bounds):
    q, k, v = draw(33, batch, heads, 16), draw(33, batch, groups, 16), draw(33, batch, groups, 16)
    cu_seqlens = None if bounds is None else Tensor(bounds)
    expected = reference.attention_fwd(q, k, v, SCALE, 0, 0, bounds)[0]
    assert_close(wide.api.attention(q, k, v, SCALE, cu_seqlens), expected)
    assert names(wide.calls) >= {"ops.flash_attention_score"}


@pytest.mark.parametrize("segments", [1024, 1025, 2600])
def test_more_segments_than_the_operator_takes_are_several_calls(wide, draw, segments):
    q, k, v = draw(segments, 1, 2, 16), draw(segments, 1, 1, 16), draw(segments, 1, 1, 16)
    out = wide.api.attention(q, k, v, SCALE, Tensor(np.arange(segments + 1, dtype=np.int32)))
    assert_close(out, mint.broadcast_to(v, q.shape))  # every query sees its own key
    assert len(wide.calls) - [name for name, _ in wide.calls].count("mint.cat") == -(-segments // 1024) + 2  # the mask


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
    """One token, a piece without a past, a later piece: one operator call each, over the sequence's own blocks."""
    edges, pasts = [0, 1, 6, 9], [7, 0, 12]
    q, k, v = draw(9, 1, 4, 16), draw(9, 1, 2, 16), draw(9, 1, 2, 16)
    keys, values = ([draw(4, 5, 2, 16) for _ in range(2)] for _ in range(2))
    tables = [[6, 0], [1], [2, 7, 4]]
    theirs = [[slab.copy() for slab in slabs] for slabs in (keys, values)]
    out = wide.primitives.attention_cached(q, k, v, keys, values, tables, edges, pasts, SCALE, keep)
    assert_close(out, reference.attention_cached(q, k, v, *theirs, tables, edges, pasts, SCALE, keep))
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
    qkv = draw(6, 80, dtype=ms.bfloat16)
    d_qkv = p.qkv_rope_fwd(qkv, *angles(rng, 6, 8), 1, 3, 16)
    p.qkv_rope_bwd(*d_qkv, *angles(rng, 6, 8), 1, 3, 16)
    api.swiglu(q)
    weight = q[0, 0, 0]
    rstd = p.rms_norm_fwd(q, weight, 1e-5)[1]
    p.rms_norm_bwd(grad, q, weight, rstd, main_grad, d_sum=q)
    p.linear_wgrad(grad, q, draw(16, 16))
    p.bias_grad(grad, main_grad)
    p.add_rms_norm_fwd(q, q, weight, 1e-5)
    p.linear_dgrad(grad, draw(16, 16, dtype=ms.bfloat16))
    p.embedding_fwd(p.linear_fwd(q, q[0, 0], None)[0, 0], Tensor([1, 0], ms.int32), 0)
    p.adamw(main_grad, main_grad, *(draw(16) for _ in range(3)), lr=0.1, beta1=0.9, beta2=0.9, eps=1e-8,
            weight_decay=0.1, step=1, grad_scale=1.0)
    roots = {"ops", "mint", "RmsNormGrad", "MatMul", "AdamWeightDecay", "FlashAttentionScore",
             "FlashAttentionScoreGrad"}
    written = set().union(*(called_names(Path(module.__file__), roots)
                            for module in (package, dense, rotary, attention, optimizer)))
    assert written and written <= names(npu.calls), written - names(npu.calls)


def test_primitives_are_those_of_the_reference(npu):
    assert set(vars(npu.primitives)) == set(reference.__all__)
    assert set(vars(npu.api)) == set(REFERENCE)
