"""Gradients of the fused kernels: each is a forward primitive, a backward primitive, and the tape between them.

Gradients of parameters go straight into `main_grad` (see `runtime.autograd.accumulate_grad`); the tape never sees them.
"""

from mindspore import Tensor, mint
from mindspore import dtype as mstype

from mindspeed_llm.runtime.autograd import Function, accumulate_grad


def build(primitives) -> dict:
    """The differentiable API over one backend's primitives: `{name: function}`."""
    p = primitives

    class Linear(Function):
        @staticmethod
        def forward(ctx, x, weight, bias):
            ctx.save_for_backward(x)
            ctx.weight, ctx.bias = weight, bias
            return p.linear_fwd(x, weight, bias)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            accumulate_grad(ctx.weight, lambda *target: p.linear_wgrad(grad, x, *target))
            if ctx.bias is not None:
                accumulate_grad(ctx.bias, lambda *target: p.bias_grad(grad, *target))
            return p.linear_dgrad(grad, ctx.weight), None, None

    def norm_bwd(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, *d_total: Tensor) -> Tensor:
        """The input's gradient; the kernel makes a frozen weight's too, which is thrown away."""
        def add(main_grad: Tensor | None, accumulate: bool) -> Tensor:
            target = mint.zeros(weight.shape, dtype=mstype.float32) if main_grad is None else main_grad
            return p.rms_norm_bwd(grad, x, weight, rstd, target, accumulate, *d_total)
        return accumulate_grad(weight, add, needed=True)

    class RMSNorm(Function):
        @staticmethod
        def forward(ctx, x, weight, eps):
            y, rstd = p.rms_norm_fwd(x, weight, eps)
            ctx.save_for_backward(x, rstd)
            ctx.weight = weight
            return y

        @staticmethod
        def backward(ctx, grad):
            x, rstd = ctx.saved_tensors
            return norm_bwd(grad, x, ctx.weight, rstd), None, None

    class AddRMSNorm(Function):
        @staticmethod
        def forward(ctx, x, branch, weight, eps):
            if branch is None:
                total, (y, rstd) = x, p.rms_norm_fwd(x, weight, eps)
            else:
                total, y, rstd = p.add_rms_norm_fwd(x, branch, weight, eps)
            ctx.save_for_backward(total, rstd)
            ctx.weight, ctx.added = weight, branch is not None
            return total, y

        @staticmethod
        def backward(ctx, d_total, grad):
            total, rstd = ctx.saved_tensors
            dx = norm_bwd(grad, total, ctx.weight, rstd, d_total)
            return dx, dx if ctx.added else None, None, None

    class SwiGLU(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return p.swiglu_fwd(x)

        @staticmethod
        def backward(ctx, grad):
            return p.swiglu_bwd(grad, ctx.saved_tensors[0])

    class Rope(Function):
        @staticmethod
        def forward(ctx, x, cos, sin):
            ctx.cos, ctx.sin = cos, sin
            return p.rope(x, cos, sin)

        @staticmethod
        def backward(ctx, grad):
            return p.rope(grad, ctx.cos, ctx.sin, inverse=True), None, None

    class QKVRope(Function):
        @staticmethod
        def forward(ctx, qkv, cos, sin, groups, heads_per_group, head_dim):
            ctx.args = (cos, sin, groups, heads_per_group, head_dim)
            return p.qkv_rope_fwd(qkv, *ctx.args)

        @staticmethod
        def backward(ctx, dq, dk, dv):
            return (p.qkv_rope_bwd(dq, dk, dv, *ctx.args), None, None, None, None, None)

    class Attention(Function):
        @staticmethod
        def forward(ctx, q, k, v, scale, cu_seqlens):
            out, lse = p.attention_fwd(q, k, v, scale, 0, 0, cu_seqlens)
            ctx.save_for_backward(q, k, v, out, lse)
            ctx.scale, ctx.cu_seqlens = scale, cu_seqlens
            return out

        @staticmethod
        def backward(ctx, grad):
            q, k, v, out, lse = ctx.saved_tensors
            return (*p.attention_bwd(grad, q, k, v, out, lse, ctx.scale, 0, 0, ctx.cu_seqlens), None, None)

    class Embedding(Function):
        @staticmethod
        def forward(ctx, weight, ids, vocab_start):
            ctx.weight, ctx.ids, ctx.vocab_start = weight, ids, vocab_start
            return p.embedding_fwd(weight, ids, vocab_start)

        @staticmethod
        def backward(ctx, grad):
            accumulate_grad(ctx.weight,
                            lambda *target: p.embedding_wgrad(grad, ctx.ids, ctx.vocab_start, *target))
            return None, None, None

    class Add(Function):
        @staticmethod
        def forward(ctx, x, y):
            return p.add(x, y)

        @staticmethod
        def backward(ctx, grad):
            return grad, grad

    def split_qkv(qkv: Tensor, groups: int, heads_per_group: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
        seq, batch, _ = qkv.shape
        grouped = qkv.reshape(seq, batch, groups, heads_per_group + 2, head_dim)
        return tuple(part.reshape(seq, batch, -1, head_dim)
                     for part in mint.split(grouped, [heads_per_group, 1, 1], dim=3))

    def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, cu_seqlens: Tensor | None = None) -> Tensor:
        return Attention.apply(q, k, v, scale, cu_seqlens)

    return {
        "linear": lambda x, weight, bias=None: Linear.apply(x, weight, bias),
        "rms_norm": RMSNorm.apply,
        "add_rms_norm": AddRMSNorm.apply,
        "swiglu": SwiGLU.apply,
        "rope": Rope.apply,
        "qkv_rope": QKVRope.apply,
        "split_qkv": split_qkv,
        "attention": attention,
        "embedding": lambda weight, ids, vocab_start=0: Embedding.apply(weight, ids, vocab_start),
        "add": Add.apply,
    }
