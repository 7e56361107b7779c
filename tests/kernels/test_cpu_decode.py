"""Generation's kernels: attention over caches and products of a few rows, at every instruction set of this machine."""

from functools import cache

import numpy as np
import pytest
from cpu_oracle import DTYPES, assert_close, random
from mindspore import Tensor

from mindspeed_llm.kernels import reference

BOTH = pytest.mark.parametrize("dtype", ["fp32", "bf16"])
PASTS = [0, 1, 700, 63, 511, 512, 5, 1300]  # with the new token: one key, a whole chunk of 512 keys, one more, ...


@pytest.fixture(params=["base", "avx2", "avx512", "amx"])
def isa(settings, request):
    """The CPU backend at one instruction set."""
    try:
        settings.instruction_set(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    return settings


def caches(pasts, room, groups, dim, dtype, block=64, per_slab=8):
    """Keys and values as slabs of blocks, and each sequence's table; NaN where nothing was written yet."""
    rng = np.random.default_rng(sum(pasts) + dim)
    counts = [-(-(past + room) // block) for past in pasts]
    slabs = max(1, -(-sum(counts) // per_slab))
    order = np.random.default_rng(block).permutation(slabs * per_slab)[:sum(counts)]
    tables = [part.tolist() for part in np.split(order, np.cumsum(counts)[:-1])]
    both = []
    for _ in "kv":
        past_rows = [random(rng, (past, 1, groups, dim), dtype)[0].asnumpy()[:, 0] for past in pasts]
        memory = np.full((slabs * per_slab, block, groups, dim), np.nan).astype(past_rows[0].dtype)
        for rows, table in zip(past_rows, tables):
            for row, values in enumerate(rows):
                memory[table[row // block], row % block] = values
        both.append([Tensor.from_numpy(memory[start:start + per_slab].copy())
                     for start in range(0, slabs * per_slab, per_slab)])
    return *both, tables


def copies(tensors):
    return [Tensor.from_numpy(tensor.asnumpy().copy()) for tensor in tensors]


def fresh(counts, heads, groups, dim, dtype):
    rng = np.random.default_rng(7)
    total = sum(counts)
    tensors = [random(rng, (total, 1, n, dim), dtype)[0] for n in (heads, groups, groups)]
    return tensors, np.cumsum([0, *counts]).tolist()


def bits(tensor):
    return tensor.asnumpy().view(np.uint8)


@cache
def one_token(heads, groups, dim, dtype):
    """Inputs of a step in which each sequence gets one token: (q, k, v, edges), (keys, values, tables); and what the
    reference makes of them: output, keys and values, the same for every instruction set.
    """
    (q, k, v), edges = fresh([1] * len(PASTS), heads, groups, dim, dtype)
    keys, values, tables = caches(PASTS, 2, groups, dim, dtype)
    theirs = copies(keys), copies(values)
    out = reference.attention_cached(q, k, v, *theirs, tables, edges, PASTS, dim ** -0.5)
    return (q, k, v, edges), (keys, values, tables), (out, *theirs)


@BOTH
@pytest.mark.parametrize("heads, groups, dim", [(8, 1, 64), (8, 2, 128), (8, 8, 16), (6, 2, 20), (5, 1, 7),
                                                (32, 2, 128)])
def test_one_token_of_each_sequence(isa, heads, groups, dim, dtype):
    (q, k, v, edges), (keys, values, tables), theirs = one_token(heads, groups, dim, dtype)
    expected, their_keys, their_values = theirs
    keys, values = copies(keys), copies(values)
    out = isa.attention_cached(q, k, v, keys, values, tables, edges, PASTS, dim ** -0.5)
    assert out.dtype == DTYPES[dtype]
    assert_close(out, expected.astype(DTYPES["fp32"]).asnumpy().astype(np.float64), dtype, factor=3)
    for ours, theirs in zip((*keys, *values), (*their_keys, *their_values)):
        assert np.array_equal(bits(ours), bits(theirs))


@BOTH
@pytest.mark.parametrize("keep", [True, False])
def test_pieces_of_any_length(isa, keep, dtype):
    counts, pasts = [3, 1, 40, 7, 1], [0, 20, 530, 3, 0]
    (q, k, v), edges = fresh(counts, 8, 2, 32, dtype)
    keys, values, tables = caches(pasts, 40 if keep else 0, 2, 32, dtype, block=48)
    theirs = copies(keys), copies(values)
    before = [bits(tensor).copy() for tensor in (*keys, *values)]
    out = isa.attention_cached(q, k, v, keys, values, tables, edges, pasts, 0.2, keep)
    expected = reference.attention_cached(q, k, v, *theirs, tables, edges, pasts, 0.2, keep)
    assert_close(out, expected.astype(DTYPES["fp32"]).asnumpy().astype(np.float64), dtype, factor=3)
    after = [bits(tensor) for tensor in ((*theirs[0], *theirs[1]) if keep else (*keys, *values))]
    assert all(np.array_equal(bits(ours), want) for ours, want in zip((*keys, *values), after if keep else before))


def test_sequences_may_share_a_prefix(isa):
    counts = [1, 2, 1]
    (q, k, v), edges = fresh(counts, 4, 2, 16, "fp32")
    keys, values, tables = caches([600], 0, 2, 16, "fp32")
    out = isa.attention_cached(q, k, v, keys, values, tables * 3, edges, [600, 600, 599], 0.25, False)
    for i, past in enumerate([600, 600, 599]):
        rows = slice(edges[i], edges[i + 1])
        alone = isa.attention_cached(q[rows], k[rows], v[rows], keys, values, tables, [0, counts[i]], [past], 0.25,
                                     False)
        assert np.array_equal(bits(out[rows]), bits(alone))


@BOTH
def test_a_sequence_does_not_depend_on_its_batch_nor_on_threads_nor_on_blocks(isa, dtype):
    (q, k, v), edges = fresh([1] * len(PASTS), 8, 2, 128, dtype)
    keys, values, tables = caches(PASTS, 2, 2, 128, dtype)
    runs = []
    for threads in (1, 2, 5):
        isa.threads(threads)
        runs.append(isa.attention_cached(q, k, v, keys, values, tables, edges, PASTS, 0.1))
    for block in (37, 2048):
        runs.append(isa.attention_cached(q, k, v, *caches(PASTS, 2, 2, 128, dtype, block), edges, PASTS, 0.1))
    assert all(np.array_equal(bits(runs[0]), bits(run)) for run in runs[1:])
    for i, past in enumerate(PASTS):
        one = slice(i, i + 1)
        alone = isa.attention_cached(q[one], k[one], v[one], keys, values, tables[one], [0, 1], [past], 0.1)
        assert np.array_equal(bits(runs[0][one]), bits(alone))


@BOTH
def test_blocks_of_a_prompt_in_passes_of_any_number(isa, dtype):
    """From 64 rows on a row's bits are its own, in products and in attention over what is before it."""
    rng, edges = np.random.default_rng(2), [0, 64, 192, 448]
    for N, K in ((96, 32), (100, 1030), (30, 3424)):
        (x, _), (w, _) = random(rng, (448, K), dtype), random(rng, (N, K), dtype)
        whole = bits(isa.linear_fwd(x, w, None))
        for start, stop in (*zip(edges[:-1], edges[1:], strict=True), (100, 164), (17, 130)):
            assert np.array_equal(bits(isa.linear_fwd(x[start:stop], w, None)), whole[start:stop])
    past = 128
    (q, k, v), _ = fresh([448], 8, 2, 32, dtype)
    keys, values, tables = caches([past], 448, 2, 32, dtype, block=64)
    whole = bits(isa.attention_cached(q, k, v, keys, values, tables, [0, 448], [past], 0.2))
    keys, values, tables = caches([past], 448, 2, 32, dtype, block=64)
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        piece = isa.attention_cached(q[start:stop], k[start:stop], v[start:stop], keys, values, tables,
                                     [0, stop - start], [past + start], 0.2)
        assert np.array_equal(bits(piece), whole[start:stop])


@BOTH
@pytest.mark.parametrize("N, K", [(1, 1), (50, 100), (131, 37), (24, 1030), (300, 5)])
def test_products_of_a_few_rows(isa, N, K, dtype):
    """Against float64; and a row's bits are its own, whatever rows are beside it and however many threads there are."""
    rng = np.random.default_rng(N + K)
    (x, x64), (w, w64), (b, b64) = (random(rng, shape, dtype) for shape in ((15, K), (N, K), (N,)))
    whole = isa.linear_fwd(x, w, b)
    assert_close(whole, x64 @ w64.T + b64, dtype)
    for rows in range(1, 15):
        assert np.array_equal(bits(isa.linear_fwd(x[:rows], w, b)), bits(whole[:rows]))
        assert np.array_equal(bits(isa.linear_fwd(x[rows:rows + 1], w, b)), bits(whole[rows:rows + 1]))
    for threads in (1, 3):
        isa.threads(threads)
        assert np.array_equal(bits(isa.linear_fwd(x, w, b)), bits(whole))


def test_bad_values_reach_the_result(isa):
    x, w = np.ones((9, 40), np.float32), np.ones((30, 40), np.float32)
    x[3, 39], w[9, 0] = np.nan, np.inf
    bad = ~np.isfinite(isa.linear_fwd(Tensor(x), Tensor(w)).asnumpy())
    expected = np.zeros((9, 30), bool)
    expected[3] = expected[:, 9] = True
    assert np.array_equal(bad, expected)


@pytest.mark.parametrize("change, words", [
    (dict(lengths=[3]), "one entry for each sequence"), (dict(edges=[0, 1, 3]), "from 0 to q's rows"),
    (dict(lengths=[3, 9]), "has 5 rows, needs 10"), (dict(lengths=[-1, 3]), "has 5 rows"),
    (dict(edges=[0, 3, 2]), "must not decrease"), (dict(tables=[[0], [8]]), "no block 8 among 8"),
    (dict(tables=[[0], [-1]]), "no block -1"), (dict(values=[]), "same number of slabs")])
def test_wrong_arguments_are_refused(cpu, change, words):
    (q, k, v), edges = fresh([1, 1], 4, 2, 16, "fp32")
    keys, values, tables = caches([3, 3], 2, 2, 16, "fp32", block=5)
    arguments = dict(keys=keys, values=values, tables=tables, edges=edges, lengths=[3, 3], scale=1.0)
    with pytest.raises(ValueError, match=words):
        cpu.attention_cached(q, k, v, **arguments | change)
    with pytest.raises(ValueError, match="slab has shape"):
        cpu.attention_cached(q, k, v, **arguments | dict(keys=[key[:, :, :1] for key in keys]))
    with pytest.raises(TypeError, match="a slab is"):
        cpu.attention_cached(q, k, v, **arguments | dict(keys=[key.astype(DTYPES["bf16"]) for key in keys]))
