"""Gradients of the fused kernels: each is a forward primitive, a backward primitive, and the tape between them.

Every Function takes a backend's primitives `p` first. Gradients of parameters go straight into `main_grad` (see
`runtime.autograd.accumulate_grad`); the tape never sees them.
"""

from functools import cache

from mindspore import Tensor, mint
from mindspore import dtype as mstype

from mindspeed_llm.runtime.autograd import Function, accumulate_grad


class Linear(Function):
    @staticmethod
    def forward(ctx, p, x, weight, bias):
        ctx.save_for_backward(x)
        ctx.p, ctx.weight, ctx.bias = p, weight, bias
        return p.linear_fwd(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        p, (x,) = ctx.p, ctx.saved_tensors
        accumulate_grad(ctx.weight, lambda *target: p.linear_wgrad(grad, x, *target))
        if ctx.bias is not None:
            accumulate_grad(ctx.bias, lambda *target: p.bias_grad(grad, *target))
        return None, p.linear_dgrad(grad, ctx.weight), None, None


@cache
def _unread(shape: tuple[int, ...]) -> Tensor:
    return mint.zeros(shape, dtype=mstype.float32)


def _norm_bwd(p, grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, *d_total: Tensor) -> Tensor:
    """The input's gradient; the kernel makes a frozen weight's too, which nobody reads."""
    def add(main_grad: Tensor | None, accumulate: bool) -> Tensor:
        target = _unread(weight.shape) if main_grad is None else main_grad
        return p.rms_norm_bwd(grad, x, weight, rstd, target, accumulate, *d_total)
    return accumulate_grad(weight, add, needed=True)


class RMSNorm(Function):
    @staticmethod
    def forward(ctx, p, x, weight, eps):
        y, rstd = p.rms_norm_fwd(x, weight, eps)
        ctx.save_for_backward(x, rstd)
        ctx.p, ctx.weight = p, weight
        return y

    @staticmethod
    def backward(ctx, grad):
        x, rstd = ctx.saved_tensors
        return None, _norm_bwd(ctx.p, grad, x, ctx.weight, rstd), None, None


class AddRMSNorm(Function):
    @staticmethod
    def forward(ctx, p, x, branch, weight, eps):
        if branch is None:
            total, (y, rstd) = x, p.rms_norm_fwd(x, weight, eps)
        else:
            total, y, rstd = p.add_rms_norm_fwd(x, branch, weight, eps)
        ctx.save_for_backward(total, rstd)
        ctx.p, ctx.weight, ctx.added = p, weight, branch is not None
        return total, y

    @staticmethod
    def backward(ctx, d_total, grad):
        total, rstd = ctx.saved_tensors
        dx = _norm_bwd(ctx.p, grad, total, ctx.weight, rstd, d_total)
        return None, dx, dx if ctx.added else None, None, None


class SwiGLU(Function):
    @staticmethod
    def forward(ctx, p, x):
        ctx.save_for_backward(x)
        ctx.p = p
        return p.swiglu_fwd(x)

    @staticmethod
    def backward(ctx, grad):
        return None, ctx.p.swiglu_bwd(grad, ctx.saved_tensors[0])


class Rope(Function):
    @staticmethod
    def forward(ctx, p, x, cos, sin):
        ctx.p, ctx.cos, ctx.sin = p, cos, sin
        return p.rope(x, cos, sin)

    @staticmethod
    def backward(ctx, grad):
        return None, ctx.p.rope(grad, ctx.cos, ctx.sin, inverse=True), None, None


class QKVRope(Function):
    @staticmethod
    def forward(ctx, p, qkv, *args):
        ctx.p, ctx.args = p, args
        return p.qkv_rope_fwd(qkv, *args)

    @staticmethod
    def backward(ctx, dq, dk, dv):
        return None, ctx.p.qkv_rope_bwd(dq, dk, dv, *ctx.args), *(None for _ in ctx.args)


class Attention(Function):
    @staticmethod
    def forward(ctx, p, q, k, v, scale, cu_seqlens):
        out, lse = p.attention_fwd(q, k, v, scale, 0, 0, cu_seqlens)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.p, ctx.scale, ctx.cu_seqlens = p, scale, cu_seqlens
        return out

    @staticmethod
    def backward(ctx, grad):
        return None, *ctx.p.attention_bwd(grad, *ctx.saved_tensors, ctx.scale, 0, 0, ctx.cu_seqlens), None, None


class Embedding(Function):
    @staticmethod
    def forward(ctx, p, weight, ids, vocab_start):
        ctx.p, ctx.weight, ctx.ids, ctx.vocab_start = p, weight, ids, vocab_start
        return p.embedding_fwd(weight, ids, vocab_start)

    @staticmethod
    def backward(ctx, grad):
        accumulate_grad(ctx.weight, lambda *target: ctx.p.embedding_wgrad(grad, ctx.ids, ctx.vocab_start, *target))
        return None, None, None, None


class Add(Function):
    @staticmethod
    def forward(ctx, p, x, y):
        return p.add(x, y)

    @staticmethod
    def backward(ctx, grad):
        return None, grad, grad


class SplitQKV(Function):
    """The gradient is put together here: MindSpore 2.10's backward of a split takes the memory of a gradient for its rows
    in order, also that of a view.
    """

    @staticmethod
    def forward(ctx, qkv, groups, heads_per_group, head_dim):
        seq, batch, _ = qkv.shape
        ctx.parts = [(seq, batch, groups, heads, head_dim) for heads in (heads_per_group, 1, 1)]
        grouped = qkv.reshape(seq, batch, groups, heads_per_group + 2, head_dim)
        return tuple(part.reshape(seq, batch, -1, head_dim)
                     for part in mint.split(grouped, [heads_per_group, 1, 1], dim=3))

    @staticmethod
    def backward(ctx, *grads):
        grads = [grad.reshape(part) for grad, part in zip(grads, ctx.parts, strict=True)]
        return mint.cat(grads, dim=3).reshape(*ctx.parts[0][:2], -1), None, None, None


def build(p) -> dict:
    """The differentiable API over one backend's primitives: `{name: function}`."""
    return {
        "linear": lambda x, weight, bias=None: Linear.apply(p, x, weight, bias),
        "rms_norm": lambda x, weight, eps: RMSNorm.apply(p, x, weight, eps),
        "add_rms_norm": lambda x, branch, weight, eps: AddRMSNorm.apply(p, x, branch, weight, eps),
        "swiglu": lambda x: SwiGLU.apply(p, x),
        "rope": lambda x, cos, sin: Rope.apply(p, x, cos, sin),
        "qkv_rope": lambda qkv, *args: QKVRope.apply(p, qkv, *args),
        "split_qkv": SplitQKV.apply,
        "attention": lambda q, k, v, scale, cu_seqlens=None: Attention.apply(p, q, k, v, scale, cu_seqlens),
        "embedding": lambda weight, ids, vocab_start=0: Embedding.apply(p, weight, ids, vocab_start),
        "add": lambda x, y: Add.apply(p, x, y),
    }
