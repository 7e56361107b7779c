"""The Ascend operators as documented, in numpy: what they compute, and what they refuse.

Sources: the docstrings of MindSpore 2.10 (ops.rms_norm, RmsNormGrad, ops.add_rms_norm, ops.swiglu, mint.addcmul,
ops.flash_attention_score, FlashAttentionScore) and CANN's descriptions of aclnnFlashAttentionScore and its gradient.
Where a document forbids something, or documents disagree, the emulator raises or answers NaN, so that code which relies
on it fails. Arithmetic is in float64, results are rounded to the documented dtype.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor

HALF = (ms.float16, ms.bfloat16)
FLOATS = (*HALF, ms.float32)
MASK_SIDE = 2048
STATISTIC = 8
UNLIMITED = 2147483647


def array(tensor):
    return tensor.astype(ms.float32).asnumpy().astype(np.float64)


def tensor(values, dtype):
    return Tensor(np.ascontiguousarray(values, np.float32)).astype(dtype)


def require(condition, error, text):
    if not condition:
        raise error(text)


def rms_norm(x, gamma, epsilon=1e-6):
    require(x.dtype in FLOATS and gamma.dtype == x.dtype, TypeError, f"rms_norm: dtypes {x.dtype}, {gamma.dtype}")
    require(isinstance(epsilon, float) and 0 < epsilon <= 1, ValueError, f"rms_norm: epsilon {epsilon}")
    require(gamma.ndim <= x.ndim, ValueError, "rms_norm: rank of gamma")
    values = array(x)
    axes = tuple(range(x.ndim - gamma.ndim, x.ndim))
    rstd = 1 / np.sqrt(np.square(values).mean(axis=axes, keepdims=True) + epsilon)
    return tensor(values * rstd * array(gamma), x.dtype), tensor(rstd, ms.float32)


def rms_norm_grad(dy, x, rstd, gamma):
    require(rstd.shape == (*x.shape[:-1], 1) and dy.shape == x.shape, ValueError, f"RmsNormGrad: rstd {rstd.shape}")
    require(dy.dtype == x.dtype == gamma.dtype, TypeError, "RmsNormGrad: dtypes")
    normed = array(x) * array(rstd)
    g = array(dy) * array(gamma)
    dx = (g - normed * (g * normed).mean(axis=-1, keepdims=True)) * array(rstd)
    d_gamma = (array(dy) * normed).reshape(-1, x.shape[-1]).sum(axis=0)
    return tensor(dx, dy.dtype), tensor(d_gamma, ms.float32)


def swiglu(input, dim=-1):
    require(input.dtype in FLOATS, TypeError, "swiglu: dtype")
    require(input.shape[dim] % 2 == 0, RuntimeError, "swiglu: size of dim")
    a, b = np.split(array(input), 2, axis=dim)
    return tensor(a / (1 + np.exp(-a)) * b, input.dtype)


def add_rms_norm(x1, x2, gamma, epsilon=1e-6):
    require(x1.dtype == x2.dtype and x1.shape == x2.shape, RuntimeError, "add_rms_norm: x1 and x2 differ")
    total = tensor(array(x1) + array(x2), x1.dtype)
    normed, rstd = rms_norm(total, gamma, epsilon)
    return normed, rstd, total


def addcmul(input, tensor1, tensor2, *, value=1):
    require(input.dtype == tensor1.dtype == tensor2.dtype, TypeError, "addcmul: dtypes")
    return tensor(array(input) + value * array(tensor1) * array(tensor2), input.dtype)


class FlashAttention:
    """The flash attention operators. `dtypes` are those accepted: fp16 and bf16 by the documentation."""

    def __init__(self, dtypes=HALF):
        self.dtypes = dtypes

    def flash_attention_score(self, query, key, value, head_num, real_shift=None, drop_mask=None, padding_mask=None,
                              attn_mask=None, prefix=None, actual_seq_qlen=None, actual_seq_kvlen=None, keep_prob=1.0,
                              scalar_value=1.0, pre_tokens=UNLIMITED, next_tokens=UNLIMITED, inner_precise=0,
                              input_layout="BSH", sparse_mode=0):
        """`ops.flash_attention_score`: the output alone."""
        call = self.score(head_num, keep_prob, scalar_value, pre_tokens, next_tokens, inner_precise, input_layout,
                          sparse_mode)
        return call(query, key, value, real_shift, drop_mask, padding_mask, attn_mask, prefix, actual_seq_qlen,
                    actual_seq_kvlen)[3]

    def score(self, head_num, keep_prob=1.0, scale_value=1.0, pre_tokens=UNLIMITED, next_tokens=UNLIMITED,
              inner_precise=0, input_layout="BSH", sparse_mode=0):
        """`FlashAttentionScore(...)`: (softmax_max, softmax_sum, unused, out)."""
        settings = self._settings(head_num, keep_prob, scale_value, pre_tokens, next_tokens, inner_precise,
                                  input_layout, sparse_mode)

        def call(query, key, value, real_shift=None, drop_mask=None, padding_mask=None, attn_mask=None, prefix=None,
                 actual_seq_qlen=None, actual_seq_kvlen=None):
            require(real_shift is None and padding_mask is None and prefix is None, ValueError, "not used here")
            require(drop_mask is None, ValueError, "drop_mask must be None when keep_prob is 1")
            parts = self._sequences(settings, query, key, value, attn_mask, actual_seq_qlen, actual_seq_kvlen)
            outs, highest, sums = zip(*(_softmax_attention(*part, settings["scale"]) for part in parts), strict=True)
            out = tensor(_to_layout(outs, input_layout).reshape(query.shape), query.dtype)
            return (_statistic(highest, input_layout), _statistic(sums, input_layout), Tensor(0.0), out)

        return call

    def score_grad(self, head_num, keep_prob=1.0, scale_value=1.0, pre_tokens=65536, next_tokens=65536, inner_precise=1,
                   input_layout="BSH", sparse_mode=0):
        """`FlashAttentionScoreGrad(...)`: (dq, dk, dv, unused)."""
        settings = self._settings(head_num, keep_prob, scale_value, pre_tokens, next_tokens, inner_precise,
                                  input_layout, sparse_mode)
        require(input_layout != "TND", ValueError, "the order of the statistics in TND is not documented")

        def call(query, key, value, dy, pse_shift=None, drop_mask=None, padding_mask=None, atten_mask=None,
                 softmax_max=None, softmax_sum=None, softmax_in=None, attention_in=None, prefix=None,
                 actual_seq_qlen=None, actual_seq_kvlen=None):
            require(all(extra is None for extra in (pse_shift, drop_mask, padding_mask, prefix)), ValueError,
                    "not used by this project")
            require(dy.dtype == attention_in.dtype == query.dtype, TypeError, "dtypes of dy and attention_in")
            require(dy.shape == attention_in.shape == query.shape, ValueError, "shapes of dy and attention_in")
            parts = self._sequences(settings, query, key, value, atten_mask, actual_seq_qlen, actual_seq_kvlen)
            for statistic in (softmax_max, softmax_sum):
                require(statistic.dtype == ms.float32 and statistic.shape == (
                    len(parts), head_num, parts[0][0].shape[1], STATISTIC), ValueError, f"statistics {statistic.shape}")
            grads = []
            for row, part in enumerate(parts):
                dy_NSD, out_NSD = (_from_layout(given, input_layout, head_num)[row] for given in (dy, attention_in))
                highest, total = (array(statistic)[row, :, :, :1] for statistic in (softmax_max, softmax_sum))
                grads.append(_softmax_attention_grad(*part, settings["scale"], dy_NSD, highest, total, out_NSD))
            return (*(tensor(_to_layout(parts, input_layout).reshape(like.shape), like.dtype)
                      for parts, like in zip(zip(*grads, strict=True), (query, key, value), strict=True)), Tensor(0.0))

        return call

    def _settings(self, head_num, keep_prob, scale, pre_tokens, next_tokens, inner_precise, layout, sparse_mode):
        require(isinstance(head_num, int) and head_num > 0, RuntimeError, f"head_num {head_num}")
        require(isinstance(scale, float) and isinstance(keep_prob, float), TypeError, "scale and keep_prob are floats")
        require(keep_prob == 1.0, ValueError, "dropout is not used by this project")
        require(layout in ("BSH", "BNSD", "SBH", "BSND", "TND"), ValueError, f"layout {layout}")
        require(sparse_mode in (0, 2, 3), RuntimeError, f"sparse_mode {sparse_mode} is not emulated")
        require(inner_precise == 0, ValueError, "inner_precise: 0 is the documented choice")
        return {"heads": head_num, "scale": scale, "window": (pre_tokens, next_tokens), "layout": layout,
                "mode": sparse_mode}

    def _sequences(self, settings, query, key, value, mask, q_ends, k_ends):
        """[(q (N, S1, D), k and v (G, S2, D), visible (S1, S2))], one per sequence of the batch."""
        require(query.dtype in self.dtypes, TypeError, f"dtype of query is {query.dtype}")
        require(query.dtype == key.dtype == value.dtype, TypeError, "query, key and value have one dtype")
        require(key.shape == value.shape, ValueError, "key and value have one shape")
        heads, layout, mode = settings["heads"], settings["layout"], settings["mode"]
        dim = query.shape[-1] if layout in ("BNSD", "BSND", "TND") else query.shape[-1] // heads
        require(dim % 16 == 0 and dim <= 512, RuntimeError, f"D {dim}: a multiple of 16 up to 512")
        groups = {"BNSD": lambda: key.shape[1], "BSND": lambda: key.shape[2], "TND": lambda: key.shape[1]}.get(
            layout, lambda: key.shape[-1] // dim)()
        require(groups > 0 and heads % groups == 0, RuntimeError, f"head_num {heads} with {groups} groups")
        _check_mask(mask, mode)
        if layout == "TND":
            q_ends, k_ends = _ends(q_ends, query.shape[0]), _ends(k_ends, key.shape[0])
            require(len(q_ends) == len(k_ends) <= 1024, ValueError, "1024 sequences, as many of keys as queries")
            require(mode in (2, 3), ValueError, "TND wants a lower triangle: sparse_mode 2 or 3")
            require(settings["window"][1] == 0 and settings["window"][0] >= max(np.diff([0, *q_ends])), ValueError,
                    "TND: next_tokens is 0, pre_tokens at least the longest sequence")
            require(min(np.diff([0, *k_ends])) > 0, ValueError, "TND: a key length is 0")
            q, k, v = (array(part).swapaxes(0, 1) for part in (query, key, value))
            rows = [(q[:, a:b], k[:, c:d], v[:, c:d])
                    for a, b, c, d in zip((0, *q_ends), q_ends, (0, *k_ends), k_ends)]
        else:
            require(q_ends is None and k_ends is None, ValueError, "sequence lengths belong to TND")
            rows = list(zip(*(_from_layout(part, layout, count)
                              for part, count in ((query, heads), (key, groups), (value, groups))), strict=True))
        return [(*row, _visible(row[0].shape[1], row[1].shape[1], mask, mode, settings["window"])) for row in rows]


def _check_mask(mask, mode):
    if mask is None:
        return  # everything is computed then, whatever the mode
    require(mask.dtype in (ms.uint8, ms.bool_), TypeError, f"dtype of the mask is {mask.dtype}")
    if mode in (2, 3):
        require(mask.shape == (MASK_SIDE, MASK_SIDE), RuntimeError, f"compressed mask of shape {mask.shape}")
        require(np.array_equal(mask.asnumpy().astype(bool), np.triu(np.ones(mask.shape, bool), 1)), RuntimeError,
                "compressed mask: 1 above the diagonal, 0 elsewhere")


def _visible(rows, columns, mask, mode, window):
    if mask is None:
        return np.ones((rows, columns), bool)
    i, j = np.arange(rows)[:, None], np.arange(columns)[None, :]
    if mode == 0:
        require(mask.shape == (rows, columns), RuntimeError, f"full mask of shape {mask.shape}")
        visible = ~mask.asnumpy().astype(bool) & (j >= i - window[0]) & (j <= i + window[1])
    elif mode == 2:
        visible = j <= i
    else:
        require(rows <= columns, RuntimeError, "sparse_mode 3: more queries than keys")
        visible = j <= i + columns - rows
    require(visible.any(axis=1).all(), RuntimeError, "a row of the mask is all 1")
    return visible


def _ends(ends, total):
    require(ends is not None, ValueError, "TND: actual_seq_qlen and actual_seq_kvlen are needed")
    if isinstance(ends, Tensor):
        require(ends.dtype == ms.int64, TypeError, "actual_seq lengths: int64")
        ends = ends.asnumpy().tolist()
    require(isinstance(ends, (tuple, list)) and all(type(end) is int for end in ends), TypeError,
            "actual_seq lengths: ints")
    require(list(ends) == sorted(ends) and ends[-1] == total, ValueError, f"actual_seq lengths {ends} for T {total}")
    return tuple(ends)


def _from_layout(given, layout, count):
    """(B, N, S, D) from any layout but TND."""
    values = array(given)
    if layout in ("SBH", "BSH"):
        values = values.reshape(*values.shape[:2], count, -1)
    return values.transpose({"SBH": (1, 2, 0, 3), "BSH": (0, 2, 1, 3), "BSND": (0, 2, 1, 3),
                             "BNSD": (0, 1, 2, 3)}[layout])


def _to_layout(parts, layout):
    if layout == "TND":
        return np.concatenate([part.swapaxes(0, 1) for part in parts])
    return np.stack(parts).transpose({"SBH": (2, 0, 1, 3), "BSH": (0, 2, 1, 3), "BSND": (0, 2, 1, 3),
                                      "BNSD": (0, 1, 2, 3)}[layout])


def _statistic(parts, layout):
    if layout == "TND":
        # MindSpore says (T1, N1, D), CANN [N, T, 8]: unusable until seen on hardware.
        tokens = sum(part.shape[1] for part in parts)
        return Tensor(np.full((tokens, parts[0].shape[0], STATISTIC), np.nan, np.float32))
    return Tensor(np.repeat(np.stack(parts), STATISTIC, axis=3).astype(np.float32))


def _scores(q, k, visible, scale):
    k = np.repeat(k, q.shape[0] // k.shape[0], axis=0)
    return np.where(visible, q @ k.swapaxes(1, 2) * scale, -np.inf), k


def _softmax_attention(q, k, v, visible, scale):
    scores, _ = _scores(q, k, visible, scale)
    highest = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - highest)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / total @ np.repeat(v, q.shape[0] // v.shape[0], axis=0), highest, total


def _softmax_attention_grad(q, k, v, visible, scale, dy, highest, total, out):
    groups, repeat = k.shape[0], q.shape[0] // k.shape[0]
    scores, wide_k = _scores(q, k, visible, scale)
    probs = np.exp(scores - highest) / total
    d_probs = dy @ np.repeat(v, repeat, axis=0).swapaxes(1, 2)
    d_scores = probs * (d_probs - (dy * out).sum(axis=-1, keepdims=True)) * scale
    d_k, d_v = d_scores.swapaxes(1, 2) @ q, probs.swapaxes(1, 2) @ dy
    return (d_scores @ wide_k, *(grad.reshape(groups, repeat, *grad.shape[1:]).sum(axis=1) for grad in (d_k, d_v)))
