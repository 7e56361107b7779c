"""Fused kernels: one API, three backends, chosen once at start-up.

`reference`  MindSpore operations, slow and obvious: the oracle, and the fallback without a compiler
`cpu`        C++ built on first use, for the best instruction set of the processor
`ascend`     MindSpore's documented fused operators

The functions below are differentiable; layout is sequence-first, `(S, B, ...)`; gradients of parameters are added to their
`main_grad` in place. `primitives()` gives the plain forward/backward pieces for code that places communication between
them (tensor parallelism, cross entropy, the optimizer); every primitive's contract is its docstring in `reference`.

Importing this package does not import the framework; `setup` does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.runtime.trace import span

if TYPE_CHECKING:
    from mindspore import Tensor

BACKENDS = ("reference", "cpu", "ascend")

_active = SimpleNamespace(name=None, api=None, primitives=None)


def setup(params_dtype: str = "fp32") -> list[str]:
    """Choose the backend: MINDSPEED_LLM_KERNELS, or by device target. Returns lines to print once, on rank 0.

    Raises UserError for an unknown name, or for one that cannot run here.
    """
    from mindspeed_llm.kernels.functions import build
    from mindspeed_llm.runtime import device

    requested = os.environ.get("MINDSPEED_LLM_KERNELS")
    if requested and requested not in BACKENDS:
        raise UserError(f"MINDSPEED_LLM_KERNELS ({requested}) must be one of {', '.join(BACKENDS)}")
    name = requested or ("cpu" if device.on_cpu() else "ascend")
    if (name == "ascend") == device.on_cpu():
        raise UserError(f"MINDSPEED_LLM_KERNELS={name} cannot run on {device.target()}: "
                        f"use {'cpu or reference' if device.on_cpu() else 'ascend'}")
    notes = []
    if name == "cpu":
        reason = _use_cpu(params_dtype)
        if reason is not None:
            if requested:
                raise UserError(f"MINDSPEED_LLM_KERNELS=cpu: {reason}")
            notes.append(f"kernels: cpu backend not available ({reason}): using reference")
            name = "reference"
    if name == "ascend":
        from mindspeed_llm.kernels import ascend
        _active.primitives, _active.api = ascend.primitives(), ascend.api()
    elif name == "reference":
        from mindspeed_llm.kernels import reference
        _active.primitives, _active.api = reference, SimpleNamespace(**build(reference))
        if device.on_cpu() and params_dtype != "fp32":
            notes.append(f"kernels: reference computes {params_dtype} in fp32 on CPU and rounds the results")
    _active.name = name
    return [f"kernels: {name} on {device.target()}", *notes]


def _use_cpu(params_dtype: str) -> str | None:
    """Activate the CPU backend; returns why not, if it cannot."""
    if params_dtype == "fp16":
        return "it has no fp16"
    from mindspeed_llm.kernels import cpu
    from mindspeed_llm.kernels.functions import build
    reason = cpu.load()
    if reason is None:
        _active.primitives, _active.api = cpu, SimpleNamespace(**build(cpu))
    return reason


def backend() -> str:
    """Name of the active backend. Raises RuntimeError before `setup`."""
    if _active.name is None:
        raise RuntimeError("kernels.setup() has not been called")
    return _active.name


def primitives():
    """The active backend's forward and backward primitives."""
    return _active.primitives


def trace_calls(*, shapes: bool) -> Callable[[], None]:
    """Make every call of a primitive a span (`runtime.trace`), with the shapes of its tensors if asked, until the returned
    function is called. For the backends whose primitives compute before they return: `reference` and `cpu`.
    """
    from mindspeed_llm.kernels import reference
    from mindspeed_llm.kernels.functions import build
    plain = _active.api, _active.primitives
    _active.primitives = SimpleNamespace(**{name: _in_span(name, getattr(_active.primitives, name), shapes)
                                            for name in reference.__all__})
    _active.api = SimpleNamespace(**build(_active.primitives))

    def undo() -> None:
        _active.api, _active.primitives = plain
    return undo


def _in_span(name: str, primitive: Callable, shapes: bool) -> Callable:
    def call(*args, **kwargs):
        details = {"shapes": [list(arg.shape) for arg in args if hasattr(arg, "shape")]} if shapes else {}
        with span(name, "kernel", **details):
            return primitive(*args, **kwargs)
    return call


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x (..., K)` times `weight (N, K)` transposed, plus `bias (N)`: `(..., N)`."""
    return _active.api.linear(x, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x (..., H)` over its root mean square, times `weight (H)`; statistics in fp32."""
    return _active.api.rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, branch: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`total = x + branch` (`x` if there is no branch) and `rms_norm(total, weight, eps)`, all `(..., H)`.

    The residual stream goes on from `total`; both its uses send their gradients through one kernel, so that no sum of
    activation size is left to the tape.
    """
    return _active.api.add_rms_norm(x, branch, weight, eps)


def swiglu(x: Tensor) -> Tensor:
    """`x (..., 2F)`, gate then up: `silu(gate) * up`, `(..., F)`."""
    return _active.api.swiglu(x)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs of the first R dimensions of `x (S, B, N, D)`; `cos, sin (S, R/2)` fp32."""
    return _active.api.rope(x, cos, sin)


def qkv_rope(qkv: Tensor, cos: Tensor, sin: Tensor, groups: int, heads_per_group: int,
             head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split rows `qkv (S * B, groups * (heads_per_group + 2) * head_dim)`, per group [q.. k v], and rotate q and k by
    `cos, sin (S, R/2)`.

    Returns q `(S, B, groups * heads_per_group, head_dim)`, k and v `(S, B, groups, head_dim)`.
    """
    return _active.api.qkv_rope(qkv, cos, sin, groups, heads_per_group, head_dim)


def split_qkv(qkv: Tensor, groups: int, heads_per_group: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """`qkv (S, B, ...)` split as in `qkv_rope`, without the rotation."""
    return _active.api.split_qkv(qkv, groups, heads_per_group, head_dim)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, cu_seqlens: Tensor | None = None) -> Tensor:
    """Causal attention of `q (S, B, N, D)` over `k, v (S, B, G, D)`, N a multiple of G: `(S, B, N, D)`.

    `cu_seqlens (segments + 1)` int32: boundaries of packed segments, which do not see one another.
    """
    return _active.api.attention(q, k, v, scale, cu_seqlens)


def embedding(weight: Tensor, ids: Tensor, vocab_start: int = 0) -> Tensor:
    """Rows of `weight (V, H)` for int32 `ids (...)`: `(..., H)`; zeros for ids outside this shard of the vocabulary."""
    return _active.api.embedding(weight, ids, vocab_start)


def add(x: Tensor, y: Tensor) -> Tensor:
    """`x + y`: the residual connection."""
    return _active.api.add(x, y)
